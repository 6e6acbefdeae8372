"""The null branch's wrapper on a network of one line: what is matched, and what fades."""

import copy
import weakref

import pytest
import torch
from nulltext.engine.null_branch import NullBranch
from nulltext.samplers.core import VE
from nulltext.samplers.picture.disturbance import Disturbance as Looks
from nulltext.samplers.picture.disturbance import match_bound

X = torch.ones(1, 1, 2, 2)


def ask(branch, calls, cfg, sigma=0.5, condition=None):
    """One guided evaluation as the engine makes it: the branches in one call or in several, CFG, what comes after."""
    seen = {}
    for kinds in calls:
        args = {"input": torch.cat([X] * len(kinds)), "timestep": torch.tensor([sigma]), "c": {}}
        args["cond_or_uncond"] = kinds
        seen |= dict(zip(kinds, branch(lambda given, sigma: given * 0.5, args).chunk(len(kinds))))
    guided = seen[1] + cfg * (seen[0] - seen[1])
    after = {"denoised": guided, "uncond": branch, "cond_denoised": seen[0], "uncond_denoised": seen[1]}
    after["cond"] = [{"model_conds": {"c_crossattn": branch if condition is None else condition}}]
    return branch.after_cfg({**after, "input": X, "sigma": torch.tensor([sigma])})


@pytest.mark.parametrize("match", [(1.0, 1.0), (0.8, 0.2), None])
@pytest.mark.parametrize("calls", [[[1, 0]], [[0, 1]], [[0], [1]], [[1], [0]]], ids=str)
def test_matching_bounds_the_null_branchs_noise_by_the_conditionals(match, calls):
    """The network sees half of what it is given as noise: .5 in the conditional branch, half of X' in the null."""
    picture, cfg = torch.full((1, 1, 2, 2), 9.0), 3.0
    branch = NullBranch(Looks(VE, start=1.0, reference=picture), 1.0, cfg, match=match)
    bound = match_bound(0.5, 1.0, match) if match else 0.0
    seen = bound * 0.5 if match else 0.5 * 9 * (1 + 0.5**2) ** 0.5  # X' - D_u'
    uncond = X - seen
    torch.testing.assert_close(ask(branch, calls, cfg), uncond + cfg * (X * 0.5 - uncond))


def test_matching_touches_no_evaluation_outside_the_window():
    branch = NullBranch(Looks(VE, start=0.4, end=0.2, reference=X * -9), 1.0, 3.0, match=(1.0, 1.0))
    assert torch.equal(ask(branch, [[1, 0]], 3.0), X * 0.5)
    assert not torch.equal(ask(branch, [[1, 0]], 3.0, sigma=0.3), X * 0.5)
    assert torch.equal(ask(branch, [[1, 0]], 3.0, sigma=0.1), X * 0.5)


def test_a_schedule_that_the_engine_does_not_tell_fades_the_last_step():
    sigmas, cfg = torch.tensor([0.5, 0.4, 0.0]), 10.0
    for known, amount in ((None, 1.0), (sigmas, 0.5 / 9)):
        branch = NullBranch(Looks(VE, start=1.0, reference=X * 9), 1.0, cfg, sigmas=known)
        given = X + amount * (9 * (1 + 0.4**2) ** 0.5 - X)
        uncond = X - given * 0.5
        torch.testing.assert_close(ask(branch, [[1, 0]], cfg, sigma=0.4), uncond + cfg * (X * 0.5 - uncond))


@pytest.mark.parametrize("sigma, bound", [(1.0, 0.6), (0.03**0.5, 0.4), (0.03, 0.2)])
@pytest.mark.parametrize("itself", [True, False])
def test_the_bound_falls_along_the_window(sigma, bound, itself):
    """From .6 at the window's start (1) to .2 at .03; both branches see .5 of noise, the far picture more."""
    looks = Looks(VE, start=1.0, reference=X * 9, itself=itself)
    uncond = X - bound * 0.5
    out = ask(NullBranch(looks, 1.0, 3.0, match=(0.6, 0.2)), [[1, 0]], 3.0, sigma)
    torch.testing.assert_close(out, uncond + 3.0 * (X * 0.5 - uncond))


@pytest.mark.parametrize("match", [None, (0.5, 0.5)])
@pytest.mark.parametrize("itself", [True, False])
def test_strength_0_is_ordinary_guidance_and_half_of_the_bound_alone_half_its_change(itself, match):
    looks = Looks(VE, start=1.0, reference=X * 9, itself=itself)
    assert torch.equal(ask(NullBranch(looks, 0.0, 3.0, match=match), [[1, 0]], 3.0), X * 0.5)
    if itself and match:
        out = ask(NullBranch(looks, 0.5, 3.0, match=match), [[1, 0]], 3.0)
        uncond = X * 0.5 + 0.5 * X * 0.25  # halfway from D_u, .5, to the bounded one, .75
        torch.testing.assert_close(out, uncond + 3.0 * (X * 0.5 - uncond))


def test_the_bound_alone_gives_the_network_what_came_and_never_fades():
    seen = []
    branch = NullBranch(Looks(VE, start=1.0, itself=True), 1.0, 20.0, match=(0.5, 0.5), sigmas=torch.tensor([0.5, 0.0]))
    args = {"input": torch.cat([X, X * 2]), "timestep": torch.tensor([0.5]), "c": {}, "cond_or_uncond": [1, 0]}
    out = branch(lambda given, sigma: seen.append(given) or given * 0.5, args)
    assert torch.equal(seen[0], args["input"]) and torch.equal(out, args["input"] * 0.5) and not branch.said


def test_a_runs_conditions_are_known_again_and_not_kept():
    """A MODEL stays in the graph: what its hooks hold stays on the device, and every clone copies it."""

    class Condition:
        def __deepcopy__(self, memo):
            raise AssertionError("the run's conditions are copied with the MODEL")

    first, second = Condition(), Condition()
    branch = NullBranch(Looks(VE, start=1.0, older=lambda sigma: sigma + 1), 1.0, 3.0)
    levels = lambda: [sigma for sigma, _ in branch.looks["negative", 0].history.entries]
    ask(branch, [[1, 0]], 3.0, 0.5, first)
    ask(branch, [[1, 0]], 3.0, 0.25, first)
    assert levels() == [0.5, 0.25], "the same run"
    copy.deepcopy(branch)
    alive = weakref.ref(first)
    del first
    assert alive() is None
    ask(branch, [[1, 0]], 3.0, 0.125, second)
    assert levels() == [0.125], "another run keeps the latest alone"


def test_a_guider_of_three_conditions_is_refused():
    """ComfyUI's DualCFGGuider asks for its negative prompt first."""
    branch = NullBranch(Looks(VE, start=1.0, reference=X * 9), 1.0, 3.0)
    args = {"input": torch.cat([X] * 3), "timestep": torch.tensor([0.5]), "c": {}, "cond_or_uncond": [2, 1, 0]}
    with pytest.raises(ValueError, match="use CFGGuider or KSampler"):
        branch(lambda given, sigma: given * 0.5, args)
