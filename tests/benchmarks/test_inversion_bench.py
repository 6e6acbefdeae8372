"""The inversion benchmark's parts, and the whole of it on toy networks: its keys, its counts, its regions."""

import json
import time
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from nulltext.benchmarks import harness, lab
from nulltext.benchmarks.edits import CHANGES, Edit, other_value
from nulltext.benchmarks.inversion import __main__ as inversion
from nulltext.benchmarks.inversion.cost import Costs, Meter
from nulltext.demo import probe, scenes
from nulltext.demo.probe_nets import OUT, ConvProbe
from nulltext.samplers.core import VE
from nulltext.samplers.inversion.null_text import Schedule, optimise_null_text

#: what is edited by words
METHODS = (
    "ddim",
    "null_text",
    "null_text_towards",
    "negative_prompt",
    "exact",
    "edit_friendly",
    "flow_edit",
    "infedit",
)
KEYS = {
    *("psnr_ddim_cfg1", "psnr_ddim_cfg7.5", "psnr_null_text_cfg7.5", "psnr_negative_prompt_cfg7.5"),
    *("psnr_null_text_towards_cfg7.5", "network_calls_null_text_towards"),
    *("latent_error_exact_cfg7.5", "psnr_ddim_inverted_with_cfg7.5", "psnr_global_null", "psnr_random_pivot"),
    *("psnr_conditional_embedding_optimised", "network_calls_null_text", "seconds_null_text"),
    *("seconds_per_forward", "seconds_per_backward", "null_text_overhead"),
    *(f"{figure}_{method}" for figure in ("edit_success", "background_psnr") for method in METHODS),
}


class ToyUNet:
    """v [B, 4, h, w] that leans on x, the time and the embedding's mean; counts its calls."""

    calls = 0

    def __call__(self, x, t, context):
        self.calls += 1
        shift = context.mean(1)[:, :4, None, None]
        return 0.3 * x + 0.4 * torch.tanh(x + shift) + 0.2 * torch.sin(t / 300.0)[:, None, None, None]


class ToyEncoder:
    def encode(self, image):
        small = F.avg_pool2d(image, 8)
        return torch.cat([small, small.mean(1, keepdim=True)], 1) * 4 - 2

    def decode(self, latent):
        return F.interpolate((latent[:, :3] + 2) / 4, scale_factor=8.0)


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """The benchmark with toy networks, its weights and output in a folder of its own; returns the UNet."""
    table, unet = torch.randn(192, 128, generator=torch.Generator().manual_seed(0)), ToyUNet()
    net = SimpleNamespace(unet=unet, text=lambda rows: table[rows])
    monkeypatch.setattr(lab, "load", lambda flow=False: (net, ToyEncoder()))
    torch.manual_seed(0)
    judge = ConvProbe(8)
    monkeypatch.setattr(probe, "load", lambda which: judge.eval().requires_grad_(False))
    monkeypatch.setattr(harness, "OUTPUT", tmp_path)
    monkeypatch.setattr(harness, "weights", lambda read: "these")
    monkeypatch.setattr(inversion.os, "cpu_count", torch.get_num_threads)
    return unet


def run(capsys):
    inversion.main(["--quick"])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_prints_exactly_the_figures_and_resumes(toy, capsys, monkeypatch):
    figures = run(capsys)
    assert set(figures) == KEYS
    assert figures["latent_error_exact_cfg7.5"] < 1e-4
    assert figures["psnr_negative_prompt_cfg7.5"] == pytest.approx(figures["psnr_ddim_cfg1"], abs=0.01)
    assert figures["psnr_null_text_cfg7.5"] > figures["psnr_ddim_cfg7.5"] + 1
    first = toy.calls
    assert run(capsys) == figures
    again = toy.calls - first  # a few calls to predict the time, none of the ways
    assert again < first / 10
    monkeypatch.setattr(harness, "weights", lambda read: "others")
    run(capsys)
    assert toy.calls - first - again > 0.9 * first, "results of other weights were taken for these weights'"


def test_a_meter_counts_what_the_optimisation_counts():
    """Rows of forwards and backwards, through batches that shrink."""

    def net(x, sigma, e):
        return x / (1 + sigma**2) + e.mean(1)[:, :, None, None]

    g = torch.Generator().manual_seed(0)
    sigmas, start = torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.zeros(3, 5, 2)
    pivot = torch.randn(4, 3, 2, 4, 4, generator=g) * 0.1
    pivot[:, 0] = 0  # one image is done at once
    meter = Meter(net)
    with meter.timed():
        more = {"cfg": 3.0, "process": VE, "schedule": Schedule((0.01,) * 3, (1e-9,) * 3, 4)}
        found = optimise_null_text(meter, lambda x, s: meter(x, s, start), pivot, sigmas, start, **more)
    assert sum(meter.forwards) == found.stats.forward_rows and len(meter.forwards) == found.stats.forwards
    assert sum(meter.backwards) == found.stats.backward_rows and len(meter.backwards) == found.stats.backwards > 0
    assert len(set(meter.backwards)) > 1 and meter.seconds > 0


def test_costs_lie_on_the_line_between_one_row_and_the_batch():
    costs = Costs()
    costs.forward, costs.backward = {1: [1.0, 9.0, 2.0], 5: [6.0]}, {1: [3.0], 5: [7.0]}
    assert [costs.of("forward", rows) for rows in (1, 3, 5)] == [2.0, 4.0, 6.0]
    meter = SimpleNamespace(forwards=[5, 3, 1], backwards=[5, 2])
    assert costs.expected(meter) == pytest.approx(6 + 4 + 2 + 7 + 4)


def test_single_costs_are_measured():
    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            time.sleep(0.002 * len(x))
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            time.sleep(0.006 * len(gradient))
            return gradient

    costs = Costs(repeats=1)
    costs.measure(lambda x, s, e: x + Slow.apply(e).sum(), torch.zeros(4, 2), torch.zeros(4, 3), torch.ones(3))
    assert 0.008 <= costs.of("forward", 4) < 0.02 < 0.024 <= costs.of("backward", 4) < 0.06
    assert 0.004 <= costs.of("forward", 2) < 0.012


def scene(**values):
    truth = lab.some(60, 5)
    keep = torch.ones(len(truth), dtype=torch.bool)
    for name, value in values.items():
        there = getattr(truth, name)
        keep &= (there[:, 0] if there.ndim == 2 else there) == value
    return truth[keep][:1]


def test_changes_are_new_legible_and_held_out():
    truth = lab.some(60, 5)
    assert bool(scenes.held_out(truth).all()) and not bool(scenes.unseen_pair(truth).any())
    for change in CHANGES:
        values = other_value(truth, change, 3)
        new = truth.changed(change, values)
        assert not bool(scenes.unseen_pair(new).any()) and bool((new.colour[:, 0] != new.background).all())
        old = getattr(truth, change)
        assert not bool((values == (old[:, 0] if old.ndim == 2 else old)).any())
        assert len(set(values.tolist())) > 5
        assert torch.equal(values, other_value(truth, change, 3))
        assert not torch.equal(values, other_value(truth, change, 4))


def test_the_region_is_the_difference_and_one_cell_around_it():
    truth = scene(place=0, size=0)
    target = truth.changed("colour", other_value(truth, "colour", 1))
    assert float(Edit("colour", truth, truth).region.sum()) == 0
    differ = scenes.difference(truth, target)[0]
    region = Edit("colour", truth, target).region[0, 0].bool()
    there = differ.nonzero()
    grid = torch.stack(torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij"), -1).reshape(-1, 1, 2)
    nearest = torch.cat([(part - there).abs().amax(-1).amin(1) for part in grid.split(1024)]).reshape(128, 128)
    assert torch.equal(region, nearest <= 8)
    assert bool(region[:, :48].any()) and not bool(region[:, 80:].any())  # an object on the left


def reading_net(target, colour, background):
    """A judge that reads these values, the colour at the object's place only."""
    logits = torch.zeros(len(target), OUT)
    parts = probe.split_logits(logits)  # views
    parts["colour"][:] = 5.0 * F.one_hot((colour + 1) % 8, 8)[:, None]
    parts["colour"][torch.arange(len(target)), target.place[:, 0]] = 5.0 * F.one_hot(colour, 8).float()
    parts["background"][:] = F.one_hot(background, 12).float()
    return lambda image: logits


@pytest.mark.parametrize("change", CHANGES)
def test_an_edit_is_judged_by_its_attribute_and_its_background(change):
    truth = scene(size=2, shape=1)
    value = other_value(truth, change, 1)
    edit = Edit(change, truth, truth.changed(change, value))
    assert sum(a != b for a, b in zip(edit.source.split(), edit.edited.split(), strict=True)) == 1
    right = reading_net(truth, edit.after.colour[:, 0], edit.after.background)
    wrong = reading_net(truth, truth.colour[:, 0], truth.background)
    decoded = scenes.draw(truth)[0]
    region = edit.region
    inside = torch.where(region.bool(), 1 - decoded, decoded)
    done = inversion.judged(right, edit, inside, decoded)[0]
    assert done == {"success": 1, "background": inversion.CEILING}
    assert inversion.judged(wrong, edit, inside, decoded)[0]["success"] == 0
    off = decoded + 0.1 * (1 - region)
    assert inversion.judged(right, edit, off, decoded)[0]["background"] == pytest.approx(20, abs=0.01)


def test_no_background_left_is_not_measured():
    truth = scene(size=0, shape=4)  # a small ring: thinner than two cells
    edit = Edit("background", truth, truth.changed("background", other_value(truth, "background", 1)))
    picture = scenes.draw(truth)[0]
    judge = reading_net(truth, truth.colour[:, 0], truth.background)
    assert inversion.judged(judge, edit, picture, picture)[0] == {"success": 0, "background": None}


def test_edit_figures_count_only_measured_backgrounds():
    rows = [
        {"colour": {"success": 1, "background": 30.0}, "background": {"success": 0, "background": None}},
        {"colour": {"success": 1, "background": 20.0}, "background": {"success": 1, "background": 10.0}},
    ]
    assert inversion.edit_figures(rows) == (0.75, 20.0, 3)
    assert inversion.edit_figures(rows, ("colour",)) == (1.0, 25.0, 2)
    assert inversion.edit_figures(rows[:1], ("background",)) == (0, None, 0)
