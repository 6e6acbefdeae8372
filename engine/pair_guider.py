"""The GUIDER of prompt-to-prompt: source rows beside the edits' rows.

One step asks for these conditions, each on its own x: every edit with and without its prompt, the source with its
prompt, and, where the source is sampled too (from noise), the source without. pair_calls.py says in how many calls.
"""

from __future__ import annotations

import functools
import time
from typing import NamedTuple

import torch
from torch import Tensor

from ..samplers.attention.branches import Branches, StoredSource
from ..samplers.attention.controllers import MutualSelf, ReplaceSelf
from ..samplers.attention.layers import Controller
from ..samplers.attention.maps import LocalBlend
from ..samplers.inversion.record import Inversion
from ..samplers.inversion.replay import way_back
from ..samplers.ode import sample_euler
from .attention import any_asks, attach, attention_places
from .comfy import check_interrupt, check_latent, get, with_room_for
from .guider import first_level, guider_class, refuse_if_exact, replace_embedding
from .joint_attention import are_joint
from .noise import InversionNoise, source_latent
from .pair_calls import Asked, predict_together
from .record import check_stored, source_conditioning
from .rows import PairEdit, check_joined, check_single, is_regional
from .sampler import core_sampler, is_cfg_pp, is_euler, is_walk, own_sampler, own_way_back, sampler_name
from .shared_noise import with_shared_noise


def source_of(inversion: Inversion) -> list:
    """The source prompt's CONDITIONING as an INVERSION holds it. ValueError if it holds none, or not its words."""
    if not inversion.words:
        raise ValueError(
            "This inversion does not know its source prompt's words: invert with a conditioning from the node "
            '"Prompt (with words)", or wire the source prompt here.'
        )
    return source_conditioning(inversion)


_OTHERS = "wire further edits to the node's other edit inputs"
_TIMED = ", and give the words their time in word_windows"


@functools.cache
def _class() -> type:
    class PromptToPromptGuider(guider_class()):
        def prepare(self, source, edits, negative, cfg, controllers, inversion, keep_source):
            self.controllers: list[Controller] = list(controllers)
            self.places = attention_places(self.model_patcher)
            self.joint = are_joint(self.places)
            self.edits, self.inversion, self.keep_source = len(edits), inversion, keep_source and inversion is None
            each = {f"edit{e}": edit for e, edit in enumerate(edits)}
            self.inner_set_conds({"positive": edits[0], "negative": negative, "source": source, **each})
            self.set_cfg(cfg)
            self.lengths = [source[0][0].shape[1], *(edit[0][0].shape[1] for edit in edits)]
            self.network_rows = 0
            self._branches: Branches | None = None
            self._exact_blend = False

        # one run -------------------------------------------------------------------------------------------------
        def sample(
            self, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None
        ):
            self._refuse(sampler)
            batch, stored, first, walk, options = latent_image.shape[0], None, 0, sample_euler, {}
            if self.inversion is not None:
                first = first_level(self.inversion, sigmas)
                walk, _, _, options = way_back(self.inversion, first)
                stored = StoredSource(self.inversion.trajectory[first:], self.inversion.sigmas[first:])
                noise = InversionNoise(self.inversion, first).generate_noise({"samples": latent_image})
            walks = is_walk(sampler, walk) or (walk is sample_euler and is_euler(sampler))
            if self.inversion is not None and not walks:
                refuse_if_exact(self.inversion, sampler)
            self._branches = branches = Branches(self.edits, batch, self.controllers, sigmas, stored)
            self.network_rows, self._null = 0, None
            for controller in self.controllers:
                if isinstance(controller, LocalBlend):
                    controller.reset()
            if stored is not None and self.inversion.null_embeddings is not None:
                self._null = self.inversion.null_embeddings[first:]
            blends = any(isinstance(c, LocalBlend) for c in self.controllers)
            self._exact_blend = blends and walks
            if walks and (blends or stored is not None):
                start = None if stored is None else branches.doubled(stored.trajectory[0])
                known = None if stored is None else lambda sigma: branches.doubled(stored.at(sigma))
                sampler = own_sampler(
                    walk,
                    start=start,
                    known=known,
                    after=lambda x, step: branches.after_step(x, step.sigma, step.sigma_next),
                    **{name: _per_row(value, branches) for name, value in options.items()},
                )
            sampler = with_shared_noise(sampler, batch, branches.doubled)
            if denoise_mask is not None and denoise_mask.shape[0] == batch:
                denoise_mask = branches.doubled(denoise_mask)

            def shown(i, x0, x, total):
                return callback(i, self._shown(x0), self._shown(x), total)

            try:
                noise, latent_image = branches.doubled(noise), branches.doubled(latent_image)
                step = None if callback is None else shown
                return self._shown(
                    super().sample(noise, latent_image, sampler, sigmas, denoise_mask, step, disable_pbar, seed)
                )
            finally:
                self._branches, self._null = None, None

        def _refuse(self, sampler) -> None:
            """ValueError for what can't tell several prompts in a step apart."""
            if is_cfg_pp(sampler):
                raise ValueError(
                    f"The sampler {sampler_name(sampler)} (CFG++) steps along one prediction of the negative prompt, "
                    "and Prompt-to-Prompt makes one for each edit: use a sampler without CFG++, euler for one."
                )
            if "sampler_calc_cond_batch_function" in self.model_options:
                raise ValueError(
                    "A patch on this MODEL asks the network in ComfyUI's place (skip layer guidance, for one), which "
                    "Prompt-to-Prompt does itself: take that patch out."
                )

        def _shown(self, x: Tensor | None) -> Tensor | None:
            """What leaves the guider: the edits, and the sources in front where they are wanted."""
            if x is None or self.inversion is not None or self.keep_source:
                return x
            return x[self._branches.batch :]

        # one step ------------------------------------------------------------------------------------------------
        def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 (the engine's signature)
            check_interrupt()
            branches, sigma = self._branches, timestep.max()
            count = len(branches.image) + (branches.batch if branches.stored is None else 0)
            if len(x) != count:
                raise ValueError(
                    f"The sampler asks for {len(x)} rows in one call, and the guider of Prompt-to-Prompt has {count}: "
                    "use another sampler, or set calls of Asyrp Sampler to two calls."
                )
            source, target = branches.split(x, sigma)
            edits, moment = target.split(branches.batch), branches.moment(sigma)
            guided = not (abs(self.cfg - 1) < 1e-9 and not model_options.get("disable_cfg1_optimization", False))
            sampled = branches.stored is None
            looked_at = any_asks(self.controllers, self.places, tuple(x.shape[-2:]), moment)
            negative = self.conds["negative"]
            if self._null is not None and guided:
                step = min(int(moment.step + 1e-4), len(self._null) - 1)
                negative = replace_embedding(negative, self._null[step].to(x))

            asked = [Asked("target", e, self.conds[f"edit{e}"], xe) for e, xe in enumerate(edits)]
            asked += [Asked("negative", e, negative, xe) for e, xe in enumerate(edits) if guided]
            mutual = looked_at and any(c.unconditional for c in self.controllers)
            if guided and (sampled or mutual):
                asked.append(Asked("source_negative", 0, negative, source))
            if sampled or looked_at:
                asked.append(Asked("source", 0, self.conds["source"], source))  # last: short of memory it runs first
            self.network_rows += sum(len(a.x) for a in asked)
            t = timestep[: branches.batch]
            found = predict_together(self, asked, t, moment, self.lengths, model_options, self.joint)

            parts = {("target", e): xe for e, xe in enumerate(edits)} | ({("source", 0): source} if sampled else {})
            of_all, self.conds["negative"] = self.conds["negative"], negative  # a patch may ask the network with it
            try:
                after = self._combined(found, parts, t, guided, model_options)
            finally:
                self.conds["negative"] = of_all
            if sampled:
                of_source = after.pop(("source", 0))
            else:
                of_source = branches.stored.denoised(sigma).to(x).expand_as(source)
            denoised = torch.cat([*after.values()])
            if not self._exact_blend:
                denoised = branches.between(denoised, of_source, moment)
            return branches.join(of_source, denoised)

        def _combined(self, found: dict, parts: dict, t: Tensor, guided: bool, options: dict) -> dict:
            """{(role, edit): D after CFG} of parts, {(role, edit): x [B, C, ...]}."""
            null = {"target": "negative", "source": "source_negative"}
            cond = torch.cat([found[part] for part in parts])
            uncond = torch.cat([found[null[role], e] for role, e in parts]) if guided else None
            # once for all rows, since a patch may keep what it saw (APG's momentum)
            cond, uncond = self.before_cfg(cond, uncond, torch.cat([*parts.values()]), t.repeat(len(parts)), options)
            unconds = [None] * len(parts) if uncond is None else uncond.split(len(t))
            out = {}
            for ((role, e), x), c, u in zip(parts.items(), cond.split(len(t)), unconds):
                self.conds["positive"] = self.conds["source" if role == "source" else f"edit{e}"]
                out[role, e] = self.combine(c, u, x, t, options)
            return out

    return PromptToPromptGuider


def _per_row(value, branches: Branches):
    """An option of the way back for all rows of x: tensors [levels, B, ...] (an exact pair, residuals) are repeated."""
    return torch.stack([branches.doubled(level) for level in value]) if isinstance(value, Tensor) else value


def prompt_to_prompt_guider(
    model,
    source: list,
    edits: list[list],
    negative: list,
    cfg: float,
    controllers: list[Controller],
    *,
    inversion: Inversion | None = None,
    keep_source: bool = False,
):
    """GUIDER that edits `source` into each of `edits` (CONDITIONINGs of one prompt each), by any sampler but CFG++'s.

    From noise, source and edits start from the same noise and get the same draws on the way; the run returns [edits *
    B, C, ...], with `keep_source` the B sources in front. With an INVERSION the source is its trajectory, and the edits
    walk its own way back: plain Euler steps, the exact pair's, or edit-friendly's with the recorded residuals.
    `.network_rows` counts the rows the network saw in the last run. ValueError for networks that edits can't reach,
    layers that another patch owns, prompts that aren't single, a negative prompt with an area."""
    for what, conditioning in [("source", source), *(("edited", edit) for edit in edits)]:
        check_single(conditioning, what, _OTHERS, _TIMED)
    if is_regional(negative):
        raise ValueError(
            "The negative prompt must be for the whole picture, not regional: take its area off; a mask may stay, "
            "without its bounds as area."
        )
    if inversion is not None and inversion.kind.needs != "residuals":  # whose levels are the source's own walk too
        check_stored(inversion, "Prompt-to-prompt")
    own = any(isinstance(c, (ReplaceSelf, MutualSelf)) for c in controllers)
    for conditioning in (source, *edits):
        check_joined(conditioning)
    model = attach(model, [PairEdit(c) for c in controllers], ("attn1", "attn2") if own else ("attn2",))
    if inversion is not None:  # the sources run beside the edits, and stand in no latent
        of_source = 2 if any(c.unconditional for c in controllers) else 1
        model = with_room_for(model, lambda rows: 2 * rows + of_source * rows // len(edits))
    guider = _class()(model)
    guider.prepare(source, edits, negative, cfg, controllers, inversion, keep_source)
    return guider


class Edited(NamedTuple):
    """edits [E * B, C, ...] and source [B, C, ...] as LATENT samples; pairs: (edit, image) of each row of edits."""

    edits: Tensor
    source: Tensor
    pairs: list[tuple[int, int]]
    rows: int  # that the network saw
    seconds: float


def run_guider(guider, latent: dict | None, sigmas: Tensor, seed: int) -> Edited:
    """One run of a prompt-to-prompt guider with ComfyUI's euler or the inversion's own way back, its progress, preview
    and interrupt.

    latent: a LATENT, from noise; an inversion brings its own."""
    model, inversion = guider.model_patcher, guider.inversion
    sampler = core_sampler("euler") if inversion is None else own_way_back(inversion)[0]
    if inversion is None:
        samples = check_latent(model, latent)
        noise = get("sample").prepare_noise(samples, seed, latent.get("batch_index"))
        mask = latent.get("noise_mask")
    else:
        samples, noise, mask = source_latent(inversion), torch.zeros(inversion.shape), None
    preview = get("latent_preview").prepare_callback(model, len(sigmas) - 1)
    started, batch = time.perf_counter(), len(samples)
    first = batch if guider.keep_source else 0  # row of the first edit: the preview shows one row

    def callback(i, x0, x, total):
        return preview(i, x0[first:], x[first:], total)

    out = guider.sample(noise, samples, sampler, sigmas, mask, callback, disable_pbar=True, seed=seed).cpu()
    source, edits = (out[:batch], out[batch:]) if guider.keep_source else (samples, out)
    pairs = [(e, b) for e in range(guider.edits) for b in range(batch)]
    return Edited(edits, source, pairs, guider.network_rows, time.perf_counter() - started)
