"""The table of pivots says what the inversions do: each row against a run of its own."""

import inspect

import pytest
import torch
from nulltext.samplers.core import VE, gaussian
from nulltext.samplers.inversion import pivots
from nulltext.samplers.inversion.edit_friendly import invert_edit_friendly
from nulltext.samplers.inversion.exact_pair import invert_exact_pair
from nulltext.samplers.inversion.table import BY_TITLE, PIVOTS
from nulltext.samplers.measure.mixture import GaussianMixture

MIXTURE = GaussianMixture([[-1.0, 0.5], [1.5, -1.0]], 0.8)
SIGMAS, ITERATIONS = torch.linspace(2, 0, 8, dtype=torch.float64) ** 2, 3
SOURCE = MIXTURE.sample(3, torch.Generator().manual_seed(0)).double()
FILES = {
    "ddim": pivots.invert_ddim,
    "ddim_lower": pivots.invert_ddim_lower,
    "fixed_point": pivots.invert_fixed_point,
    "exact_pair": invert_exact_pair,
    "edit_friendly": invert_edit_friendly,
}


def made(name, seed=1):
    """The pivot, and the network calls that it took."""
    calls, options = [], {"iterations": ITERATIONS, "gamma": 1.0, "noise": gaussian(SOURCE, seed)}

    def denoise(x, sigma):
        calls.append(sigma)
        return MIXTURE.denoise(x, sigma)

    kind = PIVOTS[name]
    out = kind.invert(denoise, SOURCE, SIGMAS, process=VE, **{option: options[option] for option in kind.takes})
    return out, len(calls)


@pytest.mark.parametrize("name", PIVOTS)
def test_it_makes_the_calls_that_are_announced(name):
    assert made(name)[1] == PIVOTS[name].calls(len(SIGMAS) - 1, ITERATIONS)


@pytest.mark.parametrize("name", PIVOTS)
def test_a_seed_changes_what_is_called_seeded_and_nothing_else(name):
    first, second = (made(name, seed)[0].trajectory for seed in (1, 2))
    assert torch.equal(first, second) != PIVOTS[name].seeded


@pytest.mark.parametrize("name", PIVOTS)
def test_it_leaves_what_its_way_back_needs_and_nothing_else(name):
    left = {field for field in ("residuals", "pair") if getattr(made(name)[0], field) is not None}
    assert left == {PIVOTS[name].needs} - {""}


@pytest.mark.parametrize("name", FILES)
def test_a_name_leads_to_its_function_and_takes_all_of_its_choices(name):
    assert PIVOTS[name].invert is FILES[name]
    choices = inspect.signature(FILES[name]).parameters.keys() & {"iterations", "gamma", "noise"}
    assert set(PIVOTS[name].takes) == choices


def test_levels_of_one_noise_each_lie_on_no_path():
    """Where neighbouring levels share their noise, the walk between them is the network's: it can be followed."""
    for name, kind in PIVOTS.items():
        levels = made(name)[0].trajectory
        walked = levels[0] + (SIGMAS[1] - SIGMAS[0]) * (levels[0] - MIXTURE.denoise(levels[0], SIGMAS[0])) / SIGMAS[0]
        assert ((walked - levels[1]).abs().max() < 0.1) == kind.followable, name


def test_boxes_offer_every_pivot_but_the_ablation():
    assert list(BY_TITLE.values()) == [name for name in PIVOTS if name != "random"]
