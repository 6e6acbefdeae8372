"""Gives the null branch of a MODEL another input, without an extra network call (the unet wrapper slot, chained)."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from ..samplers.core import measured_cfg, step_index
from ..samplers.picture.disturbance import Disturbance, disturbed_input, effective_uncond, match_bound, matched_uncond
from ..samplers.picture.disturbance_schedules import stable_strength
from .clock import Clock
from .rows import CALL, NULL_ROLES, NULLS, roles_of


class NullBranch:
    """What the null branch of one patched MODEL sees, and how strongly. A guider that runs a source beside its edits
    has one for each; each looks back at its own run.

    State lives per run (`Clock`). cfg: the scale assumed until the first step has shown the true one. sigmas: the run's
    schedule, for an engine that doesn't tell it."""

    def __init__(self, disturbance: Disturbance, strength: float, cfg: float, previous=None, match=None, sigmas=None):
        self.disturbance, self.strength, self.assumed, self.previous = disturbance, strength, cfg, previous
        self.match, self.clock = match, Clock(sigmas)
        self._restart()

    def _restart(self) -> None:
        self.looks: dict[tuple[str, int], Disturbance] = {}  # by role
        self.cfg, self.said = self.assumed, set()
        self.matching: float | None = None  # the sigma of the latest evaluation in the window
        self.asked = set()  # heights and widths that the null branch is asked for in the evaluation at hand

    def _say(self, sentence: str) -> None:
        key = sentence[:24]
        if key not in self.said:
            self.said.add(key)
            logging.getLogger("nulltext").warning("Null-Text Disturbance: %s", sentence)

    def _amount(self, sigma: float, sigmas: Tensor | None) -> float:
        """The strength at sigma, faded where the schedule's next step would let noise grow."""
        if sigmas is not None:
            here = step_index(sigma, sigmas)
            amount = stable_strength(sigmas, self.cfg, self.strength)[here]
        elif len(self.clock.levels) > 1:  # nobody tells the schedule: the last step's ratio stands in
            before, now = self.clock.levels[-2:]
            amount = stable_strength([1.0, now / before], self.cfg, self.strength)[0]
        else:
            amount = self.strength
        last = sigmas is not None and here == len(sigmas) - 2 and float(sigmas[-1]) == 0  # fades on every schedule
        if amount < self.strength and not last:
            self._say(
                f"strength fades below {self.strength:g} (to {amount:.2f} at sigma {sigma:.3g}): the schedule's steps "
                f"are "
                f"too long for cfg {self.cfg:.3g}. A Disturbance Schedule before the sampler keeps the full strength."
            )
        return amount

    def _other(self, role: tuple[str, int], x: Tensor, sigma: float) -> Tensor | None:
        if role not in self.looks:
            self.looks[role] = replace(self.disturbance)
        return self.looks[role].other(x, sigma)

    def __call__(self, apply_model, args: dict) -> Tensor:
        x, kinds, options = args["input"], args["cond_or_uncond"], args["c"].get("transformer_options", {})
        call = self.previous or (lambda network, a: network(a["input"], a["timestep"], **a["c"]))
        if max(kinds) > 1 and not {CALL, NULLS} & set(options):
            raise ValueError(
                "This guider asks for more than a positive and a negative prompt, and Null-Text Disturbance can't tell "
                "which is the null branch: use CFGGuider or KSampler with it."
            )
        roles = roles_of(options, kinds)
        if not any(role in NULL_ROLES for role, _ in roles):
            return call(apply_model, args)
        sigma = float(args["timestep"].max())
        if self.clock.tick(sigma, options.get("sample_sigmas")):
            self._restart()
        sigmas = self.clock.schedule
        given, changed = list(x.chunk(len(kinds))), {}
        self.asked.add(tuple(x.shape[-2:]))
        for i, role in enumerate(roles):
            other = self._other(role, given[i], sigma) if role[0] in NULL_ROLES else None
            if other is given[i]:  # it looks at itself: only the bound acts
                self.matching, other = sigma, None
            amount = self._amount(sigma, sigmas) if other is not None else 0.0
            if amount > 0:
                changed[i] = given[i]
                given[i] = disturbed_input(given[i], other, amount).to(x.dtype)
        if not changed:
            return call(apply_model, args)
        denoised = list(call(apply_model, {**args, "input": torch.cat(given)}).chunk(len(kinds)))
        for i, here in changed.items():
            denoised[i] = effective_uncond(here, given[i], denoised[i])
        self.matching = sigma
        return torch.cat(denoised)

    def after_cfg(self, args: dict) -> Tensor:
        """Reads the scale off each guided result, notices another run and a run without a null branch; matches.

        Matching waits until here, where both branches are whole: the engine may ask them one by one, or in areas."""
        if self.clock.meet(args["cond"]):
            for look in self.looks.values():
                look.history.entries = look.history.entries[-1:]
        asked, self.asked = self.asked, set()
        if asked - {tuple(args["input"].shape[-2:])}:
            raise ValueError(
                "Null-Text Disturbance looks at the whole picture: give no prompt an area of its own, which ComfyUI "
                "gives the negative prompt too; a mask may stay."
            )
        cond, uncond = args["cond_denoised"], args["uncond_denoised"]
        if args["uncond"] is None or uncond is None:
            self._say(
                "the sampler asks for no null branch (cfg 1), so nothing changes. Set cfg above 1; the paper takes 10."
            )
            return args["denoised"]
        seen = measured_cfg(cond, uncond, args["denoised"], torch.float64)
        self.cfg = self.cfg if seen is None else seen
        if not self.match or self.matching != float(args["sigma"].max()):
            return args["denoised"]
        bound = match_bound(args["sigma"], self.disturbance.start, self.match)
        change = matched_uncond(args["input"], uncond, cond, bound) - uncond
        share = self.strength if self.disturbance.itself else 1.0
        return args["denoised"] + (1 - self.cfg) * share * change


def patch_null_branch(model, disturbance: Disturbance, strength: float, cfg: float, match=None, sigmas=None):
    """A clone of MODEL whose null branch looks where `disturbance` says, at `strength` in [0, 1]; match: two bounds of
    its noise (`match_bound`), None for none. sigmas [N + 1]: the run's schedule, where it is known."""
    patched = model.clone()
    previous = patched.model_options.get("model_function_wrapper")
    branch = NullBranch(disturbance, strength, cfg, previous, match, sigmas)
    patched.set_model_unet_function_wrapper(branch)
    after = patched.model_options.get("sampler_post_cfg_function", [])  # they add to what cfg made, so it comes first
    patched.model_options = {**patched.model_options, "sampler_post_cfg_function": [branch.after_cfg, *after]}
    return patched


def looks_back(model) -> bool:
    """Whether a null branch of this MODEL looks back at its own run (Back-D)."""
    wrapper = model.model_options.get("model_function_wrapper")
    while wrapper is not None:
        if isinstance(wrapper, NullBranch) and wrapper.disturbance.older is not None:
            return True
        wrapper = getattr(wrapper, "previous", None)
    return False
