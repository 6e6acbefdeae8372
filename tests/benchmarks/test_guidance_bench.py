"""The guidance benchmark on a few steps: its ways share their noises, its judges and scenes are what they say."""

import pytest
import torch
from nulltext.benchmarks.guidance import __main__ as guidance
from nulltext.benchmarks.guidance import bound as bound_table
from nulltext.benchmarks.guidance.ways import Lab, Way, kid_of, seconds_100, share
from nulltext.benchmarks.harness import Bench
from nulltext.demo import scenes


@pytest.fixture(scope="module")
def lab():
    return Lab(steps=3)  # the last level lies in every window


def test_real_scenes_are_of_the_class_and_the_judges_say_so(lab):
    made = lab.scenes(24, 3)
    assert set(made.colour[:, 0].tolist()) == {scenes.COLOURS.index("red")} and bool((made.count == 1).all())
    assert not bool((made.background == made.colour[:, 0]).any())
    right, wrong = scenes.draw(made)[0], scenes.draw(made.changed("shape", scenes.SHAPES.index("cross")))[0]
    for judge in (lab.judge, lab.second):
        assert lab.in_class(judge, right).float().mean() > 0.8
        assert lab.in_class(judge, wrong).float().mean() < 0.1


def test_kid_tells_the_class_from_other_scenes(lab):
    real, more = (lab.features(scenes.draw(lab.scenes(96, seed))[0]) for seed in (3, 4))
    others = lab.features(scenes.draw(scenes.sample(96, torch.Generator().manual_seed(1)))[0])
    value, error = kid_of([{"f": f} for f in more], torch.tensor(real))
    far, far_error = kid_of([{"f": f} for f in others], torch.tensor(real))
    assert abs(value) < 3 * error and far - value > 3 * max(error, far_error)
    scaled, _ = kid_of(10 * torch.tensor(others), 10 * torch.tensor(real))
    assert scaled == pytest.approx(far, rel=1e-4)  # the feature net's own scale doesn't matter


def test_every_way_runs_from_the_same_noise_in_any_batch(lab):
    ways = [
        Way(),
        Way(caption=True),
        Way((lab.classify(2.0),)),
        Way((lab.clip("spherical", 30.0),)),
        Way((lab.clip("contrastive", 3.0),)),
        Way((lab.clip_decoded("decoder", 10.0),)),
        Way((lab.clip_decoded("network", 10.0),)),
    ]
    pictures = [lab.sample(way, [0, 1])[0] for way in ways]
    for i, a in enumerate(pictures):
        assert bool(torch.isfinite(a).all()) and all((a - b).abs().mean() > 1e-4 for b in pictures[:i])
    torch.testing.assert_close(lab.sample(ways[3], [1])[0], pictures[3][1:], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(lab.noise([1, 7])[:1], lab.noise([0, 1])[1:])
    x = lab.noise([0])
    torch.testing.assert_close(lab.slim.decode(x / 60), lab.autoencoder.decode(x / 60), rtol=1e-3, atol=1e-4)


def test_a_search_keeps_what_it_tried(lab, tmp_path, monkeypatch):
    monkeypatch.setattr("nulltext.benchmarks.harness.OUTPUT", tmp_path)
    made = []

    class Counting:
        def compute(self, way):
            def run(items):
                made.append((way.terms[0].scale, list(items)))
                return [{"f": [float(i % 3), way.terms[0].scale], "in": i % 2 == 0} for i in items]

            return run

    term = lambda k: lab.classify(k)  # noqa: E731
    reference = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]] * 4)
    rows = [
        guidance.search(Bench("guidance", "", []), "x", term, (1.0, 5.0), Counting(), reference, 12) for _ in range(2)
    ]
    assert rows[0] == rows[1] and [row[:2] for row in rows[0]] == [["x", 1.0], ["x", 5.0]]
    assert [k for k, _ in made] == [1.0, 5.0] and min(made[0][1]) >= 5000  # the second run computed nothing
    assert rows[0][0][2] < rows[0][1][2] and rows[0][0][4] == 0.5


def test_scale_1_of_an_exact_classifier_at_the_nodes_defaults():
    lines, share = bound_table.exact_table()
    rows = {(line[0], line[1]): line[2:] for line in lines}
    assert share >= 0.98 and rows["the node's defaults", 1.0] == [share, 0.0]
    assert rows["the class itself", ""][0] > 0.99 and rows["unguided", 0.0][0] < 0.6
    # the control: what the bound does to the same samples, at either scale
    for scale in (1.0, 4.0):
        at, limited = rows["bound 0.5", scale]
        assert at < 0.85 and limited > 0.2
    assert bound_table.node_guidance(None).bound is None


def test_a_bounds_share_is_measured_beside_the_run_without_it(lab, tmp_path, monkeypatch):
    monkeypatch.setattr("nulltext.benchmarks.harness.OUTPUT", tmp_path)
    monkeypatch.setattr(bound_table, "PICTURES", 2)
    lines, shares = bound_table.demo_shares(Bench("guidance", "", []), lab)
    assert set(shares) == set(bound_table.WORKFLOW_BOUND) and len(lines) == 2 * len(shares)
    assert all(at == 0 for _, bound, _, at in lines if bound == "none") and max(shares.values()) > 0


def test_results_of_another_scale_or_bound_are_not_taken_for_these(lab):
    keys = {guidance.kept_as("classifier", Way((lab.classify(k, b),))) for k in (3.0, 10.0) for b in (None, 1.25)}
    assert len(keys) == 4 and guidance.kept_as("unconditional", Way()) == "unconditional"


def test_what_is_made_of_the_rows():
    rows = [{"in": a, "in2": b, "s": s} for a, b, s in ((True, False, 0.1), (False, False, 0.3), (True, True, 2.0))]
    assert share(rows) == pytest.approx(2 / 3) and share(rows, "in2") == pytest.approx(1 / 3)
    assert seconds_100(rows) == 30
    kid = {"unconditional": 0.5, "spherical": 0.3, "contrastive": 0.2, "classifier": 0.06, guidance.CONDITIONAL: 0.04}
    gains = {"spherical": 4.7, "contrastive": 7.1, "order": 2.4}
    said = guidance.verdict({k: {"kid": v, "error": 0.03} for k, v in kid.items()}, gains, 0.98)
    assert "spherical 4.7, contrastive 7.1" in said and "by 2.4" in said and "0.980" in said and "1.50 times" in said
