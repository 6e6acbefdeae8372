"""Cells: guidance of what is drawn."""

from __future__ import annotations

from ....tools.graph import Node
from ..graphs import EULER, FamilyGraph, cell, draws, equal, learned, neutral


def guided_by(g: FamilyGraph, name: str, *ways: dict) -> list[Node]:
    """KSampler's results: plain, at scale 0, and with the guidance in each of these ways."""
    return [g.drawn(), *(g.drawn(g.own(name, **way)) for way in ({**ways[0], "scale": 0.0}, *ways))]


@cell
def CLIPGuidance(new):
    g = new()
    more = {"image_text": g.towers(), "cutouts": 1, "mask": None, "image": None, "loss": "cosine"}
    ways = ({**more}, {**more, "gradient_mode": "through network and decoder (exact)"})
    nodes = guided_by(g, "CLIPGuidance", *ways)
    left = yield g
    return neutral(left, "scale 0 changes nothing", *nodes)


@cell
def SemanticGuidance(new):
    g = new()
    more = {"image_text": g.towers(), "gradient_mode": "through decoder only", "reference": g.wires["image"]}
    nodes = guided_by(g, "SemanticGuidance", {**more, "vae": g.vae})
    left = yield g
    return neutral(left, "scale 0 changes nothing", *nodes)


def classifier(g: FamilyGraph, **more) -> Node:
    return g.own("TrainLatentClassifier", folder="classes", size=g.side, train_steps=2, batch=2, **more)


def by_class(g: FamilyGraph, classes: Node) -> dict:
    return {"classifier": classes, "class_name": "red circle", "vae": None, "scale": 10.0}


@cell
def ClassifierGuidance(new):
    g = new()
    nodes = guided_by(g, "ClassifierGuidance", by_class(g, classifier(g)))
    left = yield g
    return neutral(left, "scale 0 changes nothing", *nodes)


@cell
def TrainLatentClassifier(new):
    """It begins at random numbers: one that learns faster guides elsewhere than one that hardly learns."""
    g = new()
    made = [classifier(g, learning_rate=rate) for rate in (1e-6, 0.1)]
    start, end = (g.drawn(g.own("ClassifierGuidance", **by_class(g, classes))) for classes in made)
    shown = g.shown(made[1][1])
    left = yield g
    draws(left, shown, "no curve")
    return learned(left.latent(start), left.latent(end), "training changes where it guides")


@cell
def GuidanceTrace(new):
    g = new()
    model = g.own("CLIPGuidance", image_text=g.towers(), cutouts=1, mask=None, image=None)
    made = g.add("KSampler", model=model, seed=3, steps=3, cfg=5.0, scheduler="normal", denoise=1.0, **EULER)
    shown = g.shown(g.own("GuidanceTrace", model=model, latent=made))
    left = yield g
    return draws(left, shown, "draws every step")


@cell
def CFGConvention(new):
    g = new()
    plain, paper = g.drawn(cfg=3.0), g.drawn(g.own("CFGConvention", w=2.0), cfg=7.0)
    left = yield g
    return equal(left.latent(plain), left.latent(paper), "w 2 is cfg 3")


@cell
def ProximalGuidance(new):
    g = new()
    plain, none, some = g.drawn(), *(g.drawn(g.own("ProximalGuidance", quantile=q)) for q in (0.0, 0.7))
    left = yield g
    return neutral(left, "quantile 0 changes nothing", plain, none, some)


@cell
def OptimiseStartNoise(new):
    """The noise that it gives draws its result, and that is not the start's: a lower loss was found. Of its latent it
    takes the shape alone, so the sampler beside it gets no noise mask either."""
    g = new()
    model = g.own("CLIPGuidance", image_text=g.towers(), cutouts=1, mask=None, image=None, loss="cosine")
    empty = g.add("LatentMultiply", samples=g.maskless(1), multiplier=0.0)
    made = g.own("OptimiseStartNoise", model=model, latent=empty, seed=3, steps=2, iterations=3, cfg=1.0)
    guider, sampler = g.plain_guider(cfg=1.0), g.add("KSamplerSelect", **EULER)
    noises = g.add("RandomNoise", noise_seed=3), made[1]
    start, drawn = (g.kept(g.sample(noise, guider, sampler, made[2], empty)) for noise in noises)
    optimised = g.kept(made)
    left = yield g
    equal(left.latent(optimised), left.latent(drawn), "its noise draws its result")
    return learned(left.latent(start), left.latent(optimised), "a better noise than the first draws the result")
