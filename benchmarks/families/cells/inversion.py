"""Cells: inversions, and what edits or samples from them."""

from __future__ import annotations

import torch

from ..graphs import EDIT, cell, changes, decibels, equal, law, neutral, round_trip


@cell
def InvertImage(new):
    g = new()
    made, there = g.kept(g.inversion()[1]), g.kept(g.original)
    left = yield g
    return round_trip(left.latent(there), left.latent(made))


@cell
def Inverter(new):
    """Null-text's reconstruction is no further from the picture than the bare pivot's."""
    g = new()
    more = {"steps": 3, "cfg": 3.0, "inner_steps": 4, "tolerance": 0.0, "use_cache": False}
    ways = [g.kept(g.own("Inverter", correction=way, **more)[1]) for way in ("null-text", "none")]
    there = g.kept(g.original)
    left = yield g
    best, bare = (decibels(left.latent(there), left.latent(way)) for way in ways)
    return law(best >= bare - 0.1, f"null-text {best:.0f} dB, without {bare:.0f}")


@cell
def Optimise(new):
    g = new()
    pivot, back = g.inversion("DDIM", 3), []
    for checkpointing in (False, True):
        more = {"cfg": 3.0, "inner_steps": 2, "tolerance": 0.0, "use_cache": False, "checkpointing": checkpointing}
        back.append(g.kept(g.own("Optimise", inversion=pivot, **more, **g.again)[1]))
    left = yield g
    return equal(*map(left.latent, back), "checkpointing changes nothing")


def back_by_guider(g, inversion):
    """The picture sampled again from an inversion, by its guider and parts on core's own sampler node."""
    return g.guided(g.own("Guider", inversion=inversion, **g.again), g.own("InversionParts", inversion=inversion))


@cell
def Guider(new):
    g = new()
    back, there = back_by_guider(g, g.inversion()), g.kept(g.original)
    left = yield g
    return round_trip(left.latent(there), left.latent(back))


@cell
def Sampler(new):
    """From null embeddings: the stored null branch holds what the family's network asks for."""
    g = new()
    more = {"steps": 3, "cfg": 3.0, "inner_steps": 2, "tolerance": 0.0, "use_cache": False}
    made = g.own("Inverter", correction="null-text", **more)
    open_ = {"positive": None, "negative": None, "mask": None, **g.again}
    again, none = (g.kept(g.own("Sampler", inversion=made, **open_, strength=strength)) for strength in (1.0, 0.0))
    there = g.kept(g.original)
    first = g.kept(made[1])
    left = yield g
    round_trip(left.latent(there), left.latent(none))
    return equal(left.latent(first), left.latent(again), "gives the same reconstruction; strength 0 is the picture")


@cell
def LoadInversion(new):
    g = new()
    g.own("SaveInversion", inversion=g.inversion(), name="inversions/families", overwrite=True)
    yield g
    g = new()
    loaded = g.own("LoadInversion", name="inversions/families", model=g.model)
    back, there = back_by_guider(g, loaded), g.kept(g.original)
    left = yield g
    return round_trip(left.latent(there), left.latent(back))


@cell
def EditGrid(new):
    g = new()
    grid = g.own("EditGrid", inversion=g.inversion("DDIM", 3), prompts=EDIT, strengths="0, 1", mask=None)
    shown = g.shown(grid)
    left = yield g
    return law(len(left.result.pictures[shown.key]) > 0, "draws")


@cell
def DirectEdit(new):
    g = new()
    more = {"steps": 3, "negative": g.empty_prompt, "mask": None}
    same = g.kept(g.own("DirectEdit", target=g.source, source_cfg=3.0, target_cfg=3.0, **more))
    edits = [g.kept(g.own("DirectEdit", method=method, **more)) for method in ("FlowEdit", "InfEdit")]
    there = g.kept(g.original)
    left = yield g
    for edit in edits:
        changes(left.latent(there), left.latent(edit))
    return law(torch.equal(left.latent(there), left.latent(same)), "equal prompts give the source")


@cell
def RFInversion(new):
    g = new()
    more = {"steps": 3, "negative": g.empty_prompt}
    same, edit = (g.kept(g.own("RFInversion", eta=eta, stop=stop, **more)) for eta, stop in ((1.0, 1.0), (0.5, 0.4)))
    there = g.kept(g.original)
    left = yield g
    return neutral(left, "eta 1 to the end gives the picture", there, same, edit)
