"""Cells: techniques that begin at a picture."""

from __future__ import annotations

from ....samplers.picture.lowpass import dct_low_pass
from ..graphs import EDIT, SOURCE, cell, changes, equal, held, kept_outside, law, neutral


@cell
def SDEdit(new):
    g = new()
    flat = g.latent(1, frames=0)  # as an image node makes it, where the model's latents have frames
    edit, none = (g.kept(g.own("SDEdit", latent=flat, mask=g.half, steps=3, t0=t0)) for t0 in (0.5, 0.0))
    there = g.kept(g.original)
    left = yield g
    equal(left.latent(there), left.latent(none), "t0 0 is the picture")
    return held(left.latent(there), left.latent(edit))


@cell
def RePaintSampler(new):
    g = new()
    more = {"schedule": "custom", "levels": 4, "jump": 2, "resamples": 2}
    edit, there = g.kept(g.own("RePaintSampler", latent=g.latent(1, frames=0), **more)), g.kept(g.original)
    left = yield g
    return held(left.latent(there), left.latent(edit), 1)


@cell
def RePaint(new):
    g = new()
    sigmas = g.add("BasicScheduler", scheduler="normal", steps=3, denoise=1.0)
    sampler = g.own("RePaint", schedule="custom", jump=1, resamples=2, model=g.model, sigmas=sigmas)
    masked = g.add("SetLatentNoiseMask", samples=g.original, mask=g.half)
    made = g.add("SamplerCustom", noise_seed=3, cfg=3.0, sampler=sampler, sigmas=sigmas, latent_image=masked)
    edit, there = g.kept(made), g.kept(g.original)
    left = yield g
    return kept_outside(left.latent(there), left.latent(edit))


@cell
def BlendedDiffusion(new):
    g = new()
    edit = g.kept(g.own("BlendedDiffusion", latent=g.latent(1, frames=0), steps=3, shrink=1))
    loss = g.kept(g.own("BlendedDiffusion", steps=2, hold="loss (first variant, drifts)"))
    there = g.kept(g.original)
    left = yield g
    changes(left.latent(there), left.latent(loss))
    return held(left.latent(there), left.latent(edit))


@cell
def DiffEdit(new):
    g = new()
    edit, there = g.kept(g.own("DiffEdit", positive=g.edit, inversion=g.inversion("DDIM"))), g.kept(g.original)
    left = yield g
    return kept_outside(left.latent(there), left.latent(edit))


@cell
def DiffEditMask(new):
    g = new()
    same, other = (g.own("DiffEditMask", target=target, maps=2) for target in (g.source, g.edit))
    mask, heat = g.shown(g.add("MaskToImage", mask=same)), g.shown(other[1])
    left = yield g
    law(left.pixels(heat).max() > 0, "other prompts differ nowhere")
    law(left.pixels(heat).shape[1:3] == (g.side, g.side), "the heat map has not the picture's size")
    return law(left.pixels(mask).max() == 0, "equal prompts, empty mask")


@cell
def ILVR(new):
    g = new()
    plain, ilvr = (g.drawn(model) for model in (None, g.own("ILVR", factor=2.0)))
    none = g.drawn(g.own("ILVR", strength=0.0))
    left = yield g
    return neutral(left, "strength 0 changes nothing", plain, none, ilvr)


@cell
def ILVRSampler(new):
    g = new()
    made = g.own(
        "ILVRSampler", reference=g.latent(1, frames=0), steps=3, factor=2.0, filter="cosines (exact)", stop=1.0
    )
    edit, there = g.kept(made), g.kept(g.original)
    left = yield g
    coarse = dct_low_pass(2.0)
    return equal(*(coarse(left.latent(node)) for node in (there, edit)), "has the reference's coarse part")


@cell
def EditPhoto(new):
    g = new()
    more = {"source_prompt": SOURCE, "latent": g.original, "steps": 4, "blend": False, "method": "draft"}
    same, edit = (g.kept(g.own("EditPhoto", edited_prompt=text, **more)[1]) for text in (SOURCE, EDIT))
    there = g.kept(g.original)
    left = yield g
    return neutral(left, "equal prompts give the source", there, same, edit)
