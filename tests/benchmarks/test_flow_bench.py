"""The flow bench's figures from rows of known numbers."""

import nulltext.benchmarks.flow.__main__ as flow
import pytest
import torch
from nulltext.benchmarks.flow import ways
from nulltext.benchmarks.inversion.cost import Meter


def row(success, **more):
    return {change: {"success": success, "background": 30.0 + success} for change in flow.CHANGES} | more


ROWS = {
    "untouched": [row(0)],
    "ddim_cfg1": [{"psnr": 20.0}],
    "ddim_cfg5": [{"psnr": 10.0}],
    "exact_cfg5": [row(1, psnr=90.0)],
    "null_text_cfg5": [row(1, psnr=30.0)],
    "inversion": [row(1), row(0)],
    "fill": [{f"{name}_{what}": 0.1 for name in ("repaint", "straight") for what in ("seam", "fill")}],
    "guidance": [{"guided": 1, "unguided": 0}, {"guided": 0, "unguided": 0}],
    "disturbance": [{"backd": 0.4, "backd_colour": 1, "bound_alone": 0.2, "bound_alone_colour": 1}],
    **{f"flow_edit {seed}": [row(seed > 0)] for seed in range(flow.SEEDS)},
    **{f"sdedit {seed}": [row(1)] for seed in range(flow.SEEDS)},
    **{f"rf_inversion {seed}": [row(1)] for seed in range(flow.SEEDS)},
    "rf_not_held": [row(0)],
}


def test_figures_are_shares_and_means_and_the_spread_is_between_seeds():
    figures = flow.figures_of(ROWS)
    assert figures["flow_edit_success_flow_edit"] == pytest.approx(2 / 3)
    assert figures["flow_edit_spread_flow_edit"] == 1.0 and figures["flow_edit_spread_sdedit"] == 0.0
    assert figures["flow_edit_success_inversion"] == 0.5 and figures["flow_rest_psnr_inversion"] == 30.5
    assert figures["flow_edit_success_untouched"] == 0 and "flow_edit_spread_inversion" not in figures
    assert figures["flow_class_share_guided"] == 0.5 and figures["flow_psnr_ddim_cfg1"] == 20.0
    assert figures["flow_edit_success_rf_inversion"] == 1 and figures["flow_edit_success_rf_not_held"] == 0
    assert "flow_edit" in flow.tables(ROWS, figures)


def test_the_rows_of_the_predicted_time_are_those_that_the_ways_ask_for():
    lab, rows = flow.Lab(1, False), {}

    def asked(way) -> int:
        lab.denoise = Meter(lambda x, sigma, embedding: torch.zeros_like(x))
        lab.batches.clear()
        way(lab.batch([0]))
        return lab.denoise.rows

    rows["ddim_cfg1"] = asked(lambda b: ways.ddim(b, 1.0))
    rows["ddim_cfg5"] = asked(lambda b: ways.ddim(b, flow.CFG))
    rows["exact_cfg5"] = asked(ways.exact)
    rows["inversion"] = asked(ways.inversion)
    rows["flow_edit"] = flow.SEEDS * asked(lambda b: ways.flow_edit(b, 0))
    rows["sdedit"] = flow.SEEDS * asked(lambda b: ways.sdedit(b, 0))
    rows["rf_inversion"] = (flow.SEEDS + 1) * asked(lambda b: ways.rf_inversion(b, 0))
    rows["fill"] = asked(lambda b: ways.fill(b, flow.filling(1, 180))) / 2  # of half as many scenes
    assert rows == {name: flow.ROWS[name] for name in rows}
    both = flow.ROWS["flow_edit"] / flow.SEEDS / 2, 3 * flow.WALKED  # of one edit; by inversion one row up, two down
    assert both == (84, 84)


def test_the_scenes_of_the_fill_have_their_object_away_from_the_hole():
    made = flow.filling(6, 180, times=60)
    assert len(made) == 6 and set(made.texture.tolist()) <= {1, 2}
    assert not bool((made.place[:, 0] == ways.scenes.PLACES.index("middle")).any())
