"""The peers bench: its keys, and that its DiffEdit does no work that nobody reads."""

import json

import torch
from nulltext.benchmarks.peers import __main__ as peers

KEYS = {
    *("null_text_backwards_rate_paper", "null_text_psnr_rate_paper", "null_text_backwards_default"),
    *("null_text_psnr_default", "null_text_kept_default", "null_text_kept_paper", "diffedit_rows", "diffedit_iou"),
    *("repaint_fill_default", "repaint_fill_plain", "repaint_seam_default", "repaint_seam_plain", "direct_p2p_rows"),
}


def test_diffedit_costs_a_mask_a_climb_and_an_edit(engine):
    with torch.inference_mode():
        found = peers.diffedit(peers.Lab(1, 10), 0)
    assert found["rows"] == 2 * peers.ways.MAPS + 8 + 2 * 8  # of 10 steps at depth 0.8
    assert found["outside"] == 0 and 0 <= found["iou"] <= 1


def test_the_whole_of_it_quickly(engine, capsys, tmp_path, monkeypatch):
    from nulltext.benchmarks import harness

    monkeypatch.setattr(harness, "OUTPUT", tmp_path)
    peers.main(["--quick"])
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    # 5 up, 2 a step down, and the source's while prompt-to-prompt reads it: 0.8 of the steps
    assert set(figures) >= KEYS and figures["direct_p2p_rows"] == 5 + 10 + 4
