"""Sixty attacks of the campaign in every test run (`make hostile` makes a thousand): the server lives, and whatever is
refused is refused in a sentence."""

from __future__ import annotations

import pytest
from nulltext.tests.hostile import campaign, cases, load

SEED, NUMBERS = 1, range(66)  # six of them are interrupts, which take too long here
#: workflows that run for a second; `make hostile` spoils all
CHEAP = [
    "attention_reweight",
    "cfg_convention",
    "classifier_guidance",
    "diffedit",
    "direct_edit",
    "edit_grid",
    "sdedit",
]
CHEAP += ["image_classifier", "invert_image_flow", "inversion_files", "null_text_guider", "prompt_to_prompt", "asyrp"]
CHEAP += ["prompt_to_prompt_guider", "proximal_guidance", "repaint_sampler", "disturbance", "edit_photo"]


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    with campaign.arena(tmp_path_factory.mktemp("hostile")) as made:
        yield made


def test_sixty_attacks(ring):
    before = campaign.hashes(ring.server.tree)
    rows = [
        ring.attack(case) for case in (cases.make(SEED, n, ring.infos) for n in NUMBERS) if case.kind != "interrupt"
    ]
    bad = [row for row in rows if row["verdict"] in ("death", "hang", "raw", "nonfinite")]
    assert not bad, "\n".join(f"{r['case']} {r['told']}: {r['verdict']}, {r['said']}" for r in bad)
    assert {"ok", "refused"} <= {row["verdict"] for row in rows}
    assert not campaign.escaped(ring.server.tree)
    assert not campaign.changed(before, campaign.hashes(ring.server.tree))


def test_clients_side_by_side_get_each_result_once(ring):
    found = load.run(ring, clients=2, prompts=3, pictures=2, seconds=120)
    assert found["load_prompts"] == 6 and found["load_lost"] == found["load_wrong"] == 0, found


def test_a_case_is_made_by_its_number_alone(ring):
    for number in (3, 40):
        assert repr(cases.make(5, number, ring.infos)) == repr(cases.make(5, number, ring.infos))
    assert len({cases.make(5, n, ring.infos).told for n in range(40)}) > 35


def test_every_weights_file_that_a_server_finds_is_watched(tmp_path):
    there = {path: tmp_path / "models" / path for path in ("checkpoints/a.safetensors", "loras/b.safetensors")}
    for path in there.values():
        path.parent.mkdir(parents=True)
        path.write_bytes(b"before")
    before = campaign.hashes(tmp_path)
    shipped = {f"pack/{folder}" for folder in ("checkpoints", "controlnet", "diffusion_models")}
    assert shipped <= {name.rsplit("/", 1)[0] for name in before}
    assert not campaign.changed(before, campaign.hashes(tmp_path))
    (tmp_path / "models/loras/trained.safetensors").write_bytes(b"a node saved this")
    assert not campaign.changed(before, campaign.hashes(tmp_path))
    there["loras/b.safetensors"].write_bytes(b"after")
    there["checkpoints/a.safetensors"].rename(tmp_path / "models/checkpoints/moved.safetensors")
    found = campaign.changed(before, campaign.hashes(tmp_path))
    assert found == ["tree/checkpoints/a.safetensors", "tree/checkpoints/moved.safetensors", "tree/loras/b.safetensors"]


def test_the_judge_tells_raw_messages_from_sentences():
    def verdict(said, kind="ValueError", where="NullText_SDEdit", traceback=""):
        result = campaign.Result(error=said, error_type=kind, where=where)
        result.traceback = traceback
        return campaign.judged(result)["verdict"]

    assert verdict("The mask is empty: paint white where the picture may change.") == "refused"
    assert verdict("The size of tensor a (3) must match the size of tensor b (4) at dimension 1") == "raw"
    assert verdict("The mask is empty, and it shall not be.", "RuntimeError") == "raw"
    assert verdict("x" * 501) == "raw"
    assert verdict("mat1 and mat2", "RuntimeError", "KSampler") == "aside"
    assert verdict("mat1 and mat2", "RuntimeError", "KSampler", f"/custom_nodes/{campaign.PACK}/engine/x.py") == "raw"
    nan = campaign.Result(outputs={"1": {"nonfinite": [True]}})
    assert campaign.judged(nan)["verdict"] == "nonfinite"
