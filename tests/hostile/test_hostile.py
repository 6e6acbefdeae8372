"""Sixty attacks of the campaign in every test run (`make hostile` makes a thousand): the server lives, and whatever is
refused is refused in a sentence."""

from __future__ import annotations

import pytest
from nulltext.tests.hostile import arena, campaign, cases, load, soak
from nulltext.tests.workflows import short
from nulltext.tools import workflows

SEED, NUMBERS = 1, range(66)  # six of them are interrupts, which take too long here


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    with arena.arena(tmp_path_factory.mktemp("hostile")) as made:
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


def test_an_address_that_the_engine_itself_refuses_is_no_hang(ring):
    for length in (200, 7000, 20_000):
        found = ring.attack(cases.Case(0, "route", "long", route="schedule", query={"kind": "x" * length}))
        assert found["verdict"] == "refused", (length, found)


def test_memory_is_told_over_prompts_and_a_training_leaves_no_tensor(ring):
    def trained(rng, infos):
        while True:
            yield "dreambooth", soak.seeded(short(workflows.load("dreambooth"), 2), rng)

    for make in (soak.ours, soak.core, trained):
        found = soak.run(ring, 3, make, every=1, tell=lambda line: None)
        assert found["prompts"] == 3 and not found["failed"] and found["last_mb"] > 100
        assert found["census"][3]["objects"] > 10_000 and "used_mb" in found["census"][3]
    assert found["census"][3]["tensors"] <= found["census"][2]["tensors"]


def test_drift_is_the_last_fifth_over_the_first_once_it_is_warm():
    assert soak.drift([5, 1, 50, *[100] * 20]) == 0.0
    assert soak.drift([1000] * 10 + [100] * 4 + [300] * 12 + [110] * 4) == pytest.approx(0.1)
    assert soak.drift([]) == 0.0


def test_clients_side_by_side_get_each_result_once(ring):
    found = load.run(ring, clients=2, prompts=3, pictures=2, seconds=120)
    assert found["load_prompts"] == 6 and found["load_unfinished"] == found["load_lost"] == found["load_wrong"] == 0, (
        found
    )


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
        result = arena.Result(error=said, error_type=kind, where=where)
        result.traceback = traceback
        return arena.judged(result)["verdict"]

    assert verdict("The mask is empty: paint white where the picture may change.") == "refused"
    assert verdict("The size of tensor a (3) must match the size of tensor b (4) at dimension 1") == "raw"
    assert verdict("The mask is empty, and it shall not be.", "RuntimeError") == "raw"
    assert verdict("x" * 501) == "raw"
    assert verdict("mat1 and mat2", "RuntimeError", "KSampler") == "aside"
    assert verdict("mat1 and mat2", "RuntimeError", "KSampler", f"/custom_nodes/{arena.PACK}/engine/x.py") == "raw"
    nan = arena.Result(outputs={"1": {"nonfinite": [True]}})
    assert arena.judged(nan)["verdict"] == "nonfinite"
