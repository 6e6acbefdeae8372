"""Cells: attention recorded and edited."""

from __future__ import annotations

from ....tools.graph import Node
from ..graphs import SOURCE, FamilyGraph, cell, equal, law, neutral


@cell
def AttentionRecord(new):
    g = new()
    plain, recorded = g.drawn(), g.drawn(g.own("AttentionRecord"))
    left = yield g
    return equal(left.latent(plain), left.latent(recorded), "recording changes nothing")


@cell
def AttentionReweight(new):
    g = new()
    plain, one, more = g.drawn(), *(g.drawn(g.own("AttentionReweight", weights=f"circle: {w}")) for w in (1, 4))
    left = yield g
    return neutral(left, "weight 1 changes nothing", plain, one, more)


def edited_beside(g: FamilyGraph, same: Node, other: Node):
    """The end of a cell whose nodes give an edit and its source, for equal prompts and for others."""
    edit, source, changed, _ = [g.kept(made[slot]) for made in (same, other) for slot in (0, 1)]
    left = yield g
    return neutral(left, "equal prompts give the source", source, edit, changed)


@cell
def PromptToPrompt(new):
    g = new()
    empty = g.empty(g.side, g.side)
    same, other = (
        g.own("PromptToPrompt", edited=edited, source=g.source, latent=empty, steps=3) for edited in (g.source, g.edit)
    )
    return (yield from edited_beside(g, same, other))


@cell
def MasaCtrl(new):
    g = new()
    more = {"source": g.source, "latent": g.empty(g.side, g.side), "steps": 3, "start": 0.0}
    same, other = (g.own("MasaCtrl", edited=edited, **more) for edited in (g.source, g.edit))
    return (yield from edited_beside(g, same, other))


@cell
def PromptToPromptGuider(new):
    g = new()
    plain = g.guided(g.plain_guider())
    made = g.guided(g.own("PromptToPromptGuider", edited=g.source, source=g.source, cfg=5.0))
    left = yield g
    return equal(left.latent(plain), left.latent(made), "equal prompts give the plain picture")


@cell
def WordMask(new):
    g = new()
    made = g.own("WordMask", prompt=SOURCE, words="circle", latent=g.original, looks=2)
    shown = g.shown(g.add("MaskToImage", mask=made))
    left = yield g
    law(left.pixels(shown).shape[1:3] == (g.side, g.side), "the mask has not the picture's size")
    return law(left.pixels(shown).max() > 0, "finds a place")
