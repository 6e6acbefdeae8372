"""One cell a node that takes a MODEL: the graphs that run it on a family, and the law that its results must keep.

A cell is a generator: it yields graphs, is given what each left behind, and returns what held, in a few words. A law
that does not hold is a `LawBroken`.
"""

from __future__ import annotations

import torch

from ...samplers.picture.lowpass import dct_low_pass
from ...tools.graph import Node
from .graphs import (
    CELLS,
    EDIT,
    EULER,
    SOURCE,
    FamilyGraph,
    cell,
    changes,
    decibels,
    draws,
    equal,
    held,
    kept_outside,
    law,
    learned,
    neutral,
    round_trip,
)

__all__ = ["CELLS"]

# inversion ------------------------------------------------------------------------------------------------------


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


@cell
def Guider(new):
    g = new()
    made = g.inversion()
    back, there = (
        g.guided(g.own("Guider", inversion=made, **g.again), g.own("InversionParts", inversion=made)),
        g.kept(g.original),
    )
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
    back, there = (
        g.guided(g.own("Guider", inversion=loaded, **g.again), g.own("InversionParts", inversion=loaded)),
        g.original,
    )
    there = g.kept(there)
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


# from a picture -------------------------------------------------------------------------------------------------


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


# guidance -------------------------------------------------------------------------------------------------------


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


# cartoon --------------------------------------------------------------------------------------------------------


@cell
def Disturbance(new):
    g = new()
    plain, none, some = g.drawn(), *(g.drawn(g.own("Disturbance", strength=s, start_percent=0.1)) for s in (0.0, 1.0))
    left = yield g
    return neutral(left, "strength 0 changes nothing", plain, none, some)


@cell
def DisturbanceSampler(new):
    g = new()
    more = {"steps_above": 2, "steps_below": 2}
    none, some = (g.kept(g.own("DisturbanceSampler", strength=s, **more)) for s in (0.0, 1.0))
    left = yield g
    return changes(left.latent(none), left.latent(some))


@cell
def DisturbanceSchedule(new):
    g = new()
    sigmas = g.add("BasicScheduler", scheduler="normal", steps=3, denoise=1.0)
    given = {"sigmas": g.own("DisturbanceSchedule", sigmas=sigmas, steps_above=2, steps_below=2), "noise_seed": 3}
    given |= {"sampler": g.add("KSamplerSelect", **EULER), "latent_image": g.original, "cfg": 5.0}
    made, there = g.kept(g.add("SamplerCustom", **given)), g.kept(g.original)
    left = yield g
    return changes(left.latent(there), left.latent(made))


# attention ------------------------------------------------------------------------------------------------------


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


# h-space --------------------------------------------------------------------------------------------------------


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


# training -------------------------------------------------------------------------------------------------------


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
