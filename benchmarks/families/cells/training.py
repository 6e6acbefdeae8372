"""Cells: trainings, and what takes their files."""

from __future__ import annotations

from ....tools.graph import Node
from ..graphs import FamilyGraph, cell, changes, equal, law, learned, neutral
from .h_space import WORDS

TRAINED = "training changes the picture"


def pictures(g: FamilyGraph) -> Node:
    return g.own("TuningPictures", images=g.wires["image"], captions="a photo of sks circle", size=g.side, mask=None)


def lora(g: FamilyGraph) -> Node:
    more = {"steps": 1, "batch": 1, "rank": 2, "text_encoder": "leave it", "prior_weight": 0.0}
    more |= {"learning_rate": 0.1}  # a step that weights in fp8 don't round away
    return g.own("TrainLora", pictures=pictures(g), file_name=f"nulltext/families_{g.number}", **more)


@cell
def TrainLora(new):
    g = new()
    trained = lora(g)
    made, plain = g.drawn(trained[0]), g.drawn()
    left = yield g
    return learned(left.latent(plain), left.latent(made), TRAINED)


@cell
def LoadLora(new):
    g = new()
    g.shown(lora(g)[4])
    file = f"nulltext/families_{g.number}"
    yield g
    g = new()
    none = g.drawn(g.own("LoadLora", file=file, strength=0.0))
    some, plain = g.drawn(g.own("LoadLora", file=file)), g.drawn()
    left = yield g
    return neutral(left, "strength 0 changes nothing", plain, none, some)


@cell
def TrainEmbedding(new):
    """The caption with the new word in it, against the caption with the word that it began as."""
    g = new()
    more = {"steps": 1, "batch": 1, "start_word": "circle", "vae": None}
    made = g.own("TrainEmbedding", pictures=pictures(g), file_name="families_word", **more)
    begun = g.prompt("a photo of circle circle")
    # the learnt words, with what the family's text encoder tells beside them
    word = g.add("ConditioningAverage", conditioning_to=begun, conditioning_from=made[1], conditioning_to_strength=0.0)
    start, end = (g.drawn(positive=prompt) for prompt in (begun, word))
    left = yield g
    return learned(left.latent(start), left.latent(end), TRAINED)


@cell
def PriorPictures(new):
    g = new()
    more = {"width": g.side, "height": g.side, "steps": 2, "batch": 1, "class_prompt": "a circle"}
    drawn, there = g.kept(g.own("PriorPictures", count=1, **more)[1]), g.kept(g.original)
    left = yield g
    return law(left.latent(drawn).shape == left.latent(there)[:1].shape, "draws")


def control_net(g: FamilyGraph) -> Node:
    return g.own("MakeControlNet", form="small (Control-LoRA)", rank=4)


def controlled(g: FamilyGraph, net: Node) -> Node:
    more = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    made = g.add("ControlNetApplyAdvanced", control_net=net, image=g.add("EmptyImage", width=128, height=128), **more)
    return g.drawn(positive=made[0], negative=made[1])


@cell
def MakeControlNet(new):
    g = new()
    plain, controls = g.drawn(), controlled(g, control_net(g))
    left = yield g
    return equal(left.latent(plain), left.latent(controls), "changes nothing before training")


@cell
def TrainControlNet(new):
    """It begins as one that changes nothing."""
    g = new()
    hints = g.own("HintMaker")
    more = {"steps": 1, "batch": 1, "learning_rate": 0.1, "file_name": "nulltext/families_control", "vae": None}
    made = g.own("TrainControlNet", control_net=control_net(g), pictures=pictures(g), hints=hints, **more)
    plain, controls = g.drawn(), controlled(g, made)
    left = yield g
    return learned(left.latent(plain), left.latent(controls), TRAINED)


def imagic(g: FamilyGraph) -> Node:
    more = {"embedding_steps": 1, "model_steps": 1, "batch": 1, "rank": 2, "vae": None}
    more |= {"embedding_rate": 0.1, "model_rate": 0.03}  # more overflows in fp16, less drowns in fp8
    return g.own("ImagicOptimise", target=g.edit, file_name="nulltext/families_imagic", **more)


@cell
def ImagicOptimise(new):
    """Both trainings, the text's and the model's."""
    g = new()
    trained = imagic(g)
    text, factors = trained[0], trained[1]
    more = {"target": g.edit, "cfg": 5.0}
    ways = {"eta": 0.0, "optimised": text, "lora": None}, {"eta": 1.0, "optimised": None, "lora": factors}
    ends = [g.guided(g.own("ImagicGuider", **more, **way)) for way in ways]
    plain = g.guided(g.plain_guider(g.edit))
    left = yield g
    for end in ends:
        learned(left.latent(plain), left.latent(end), TRAINED)
    return TRAINED


@cell
def ImagicGuider(new):
    g = new()
    learned = imagic(g)
    more = {"target": g.edit, "optimised": learned[0], "lora": learned[1], "cfg": 5.0}
    made = g.guided(g.own("ImagicGuider", eta=1.0, lora_strength=0.0, **more))
    plain, other = g.guided(g.plain_guider(g.edit)), g.guided(g.own("ImagicGuider", eta=0.3, **more))
    left = yield g
    return neutral(left, "eta 1 is the target prompt", plain, made, other)


def tuned(g: FamilyGraph) -> Node:
    more = {**WORDS, "inversion_steps": 2, "train_steps": 2, "passes": 1, "rank": 2}
    more |= {"lr": 0.1}  # as for Train LoRA
    return g.own("DiffusionCLIPTune", image_text=g.towers(), **more)


@cell
def DiffusionCLIPTune(new):
    g = new()
    made, plain = g.drawn(tuned(g)), g.drawn()
    left = yield g
    return learned(left.latent(plain), left.latent(made), TRAINED)


@cell
def DiffusionCLIPEdit(new):
    g = new()
    more = {"lora_model": tuned(g)[1], "inversion_steps": 2, "steps": 2, "unseen_passes": 1, "unseen_steps": 2}
    made, there = g.kept(g.own("DiffusionCLIPEdit", **more)), g.kept(g.original)
    left = yield g
    return changes(left.latent(there), left.latent(made))


@cell
def MixModels(new):
    g = new()
    net = lora(g)[2]
    none, some = (g.guided(g.own("MixModels", lora_model=net, weight=weight, cfg=5.0)) for weight in (0.0, 1.0))
    plain = g.guided(g.plain_guider())
    left = yield g
    return neutral(left, "weight 0 is the plain picture", plain, none, some)
