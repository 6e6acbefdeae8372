"""Cells: directions in h-space."""

from __future__ import annotations

from ....tools.graph import Node
from ..graphs import EULER, FamilyGraph, cell, draws, equal, learned, neutral

WORDS = {"source": "plain background", "target": "striped background"}


def direction(g: FamilyGraph, positive: Node | None = None) -> Node:
    """positive: of several prompts that stand beside it h isn't read, the one alone unless another is given."""
    made = {"way": "two prompts", "target": g.edit, "steps": 2, "samples": 2}
    return g.own("HSpaceDirection", positive=positive or g.single, **made)


#: strength of a direction of two samples, which is short
FAR = 10.0


def along(g: FamilyGraph, made: Node, strength: float) -> tuple[Node, dict]:
    """Asyrp Sampler's result along a direction, and what core's node was given beside the sampler."""
    asyrp = g.own("AsyrpSampler", direction=made, strength=strength, t_boost=0.0)
    given = {"noise_seed": 3, "cfg": 1.0, "sigmas": asyrp[1], "latent_image": g.latent(1)}
    return g.kept(g.add("SamplerCustom", sampler=asyrp[0], **given)), given


def leads(g: FamilyGraph, made: Node, says: str):
    """The end of a cell whose node makes a direction: the picture along it is not the one of strength 0."""
    none, some = (along(g, made, strength)[0] for strength in (0.0, FAR))
    left = yield g
    return learned(left.latent(none), left.latent(some), says)


@cell
def HSpaceDirection(new):
    g = new()
    return (yield from leads(g, direction(g, g.source), "the direction changes the picture"))


@cell
def HSpaceTrain(new):
    """Its network begins at nothing."""
    g = new()
    made = g.own("HSpaceTrain", image_text=g.towers(), steps=2, passes=1, optimiser="Adam", **WORDS)
    return (yield from leads(g, made, "the trained direction changes the picture"))


@cell
def HSpaceMap(new):
    g = new()
    shown = g.shown(g.own("HSpaceMap", direction=direction(g), image_text=g.towers(), steps=2, strengths="0, 1"))
    left = yield g
    return draws(left, shown, "draws")


@cell
def AsyrpSampler(new):
    g = new()
    made = direction(g)
    (none, given), (some, _) = (along(g, made, strength) for strength in (0.0, 1.0))
    plain = g.kept(g.add("SamplerCustom", sampler=g.add("KSamplerSelect", **EULER), **given))
    left = yield g
    return neutral(left, "strength 0 is Euler's picture", plain, none, some)


@cell
def LoadDirection(new):
    g = new()
    made = direction(g)
    g.own("SaveDirection", direction=made, name="h_directions/families", overwrite=True)
    saved = along(g, made, FAR)[0]
    before = (yield g).latent(saved)
    g = new()
    loaded = g.own("LoadDirection", name="h_directions/families", model=g.model)
    none, some = (along(g, loaded, strength)[0] for strength in (0.0, FAR))
    left = yield g
    learned(left.latent(none), left.latent(some), "the direction changes the picture")
    return equal(before, left.latent(some), "edits as the direction that was saved")
