"""The ways of the flow table: each takes a batch of scenes and gives a dict of what was measured per scene."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial

import torch
from torch import Tensor

from ...demo import nets, probe, scenes
from ...samplers.core import FLOW, Denoise, gaussian, guided
from ...samplers.guidance.terms import Guidance, with_guidance
from ...samplers.inversion.corrections import null_guided
from ...samplers.inversion.direct_edit import sample_flow_edit
from ...samplers.inversion.exact_pair import invert_exact_pair, sample_exact_pair
from ...samplers.inversion.null_text import default_rate, optimise_null_text, paper_schedule
from ...samplers.inversion.pivots import invert_ddim
from ...samplers.inversion.rf_inversion import invert_rf, sample_rf, strengths
from ...samplers.measure.metrics import psnr
from ...samplers.networks.latent_classifier import LatentClassifier
from ...samplers.ode import sample_ancestral, sample_euler
from ...samplers.picture.disturbance import MATCH_ROLLBACK, Disturbance, disturbed
from ...samplers.picture.disturbance_schedules import disturbance_schedule, stable_strength
from ...samplers.picture.repaint import network_calls, official_path, sample_repaint
from ..edits import CEILING, Changing, Edit, judged
from ..from_image.cartoon import drops
from ..from_image.fill import holes, seam_and_fill_of

CFG = 5.0
#: source cfg, target cfg: the numbers of FlowEdit's own guidance on Flux; the twin is at home at a small cfg
FLOW_EDIT = (1.5, 5.5)
STEPS, WALKED = 42, 28  # of an inversion: the schedule's, and those that an edit walks
SEEDS = 3
SDEDIT = 0.6  # t0
#: RF-Inversion's steps, gamma, eta and the step that eta stops before: its authors' for Flux
RF = (28, 0.5, 0.9, 7)
CLASS = "yellow star"
COLOUR, SHAPE = scenes.COLOURS.index("yellow"), scenes.SHAPES.index("star")
#: scale, bound and window (in sigma) of the classifier, as the workflow classifier_guidance_flow sets them
GUIDANCE = (40.0, 1.0, (0.9, 0.1))
SEED = 171  # of the scenes


def levels(steps: int, start: float = 1.0) -> Tensor:
    """`steps` even steps of the flow from `start` to 0: [steps + 1]."""
    return torch.linspace(start, 0, steps + 1)


class Lab(Changing):
    """The twin, its scenes and their changes."""

    def __init__(self, n: int, quick: bool):
        super().__init__(n, SEED, Batch, flow=True)
        self.quick = quick

    def steps(self, full: int) -> int:
        return max(3, full // 7) if self.quick else full


class Batch:
    """Some scenes, their latents and embeddings."""

    def __init__(self, lab: Lab, truth: scenes.Scenes, edits: list[Edit], first: int):
        self.lab, self.truth, self.edits, self.first = lab, truth, edits, first
        self.latent = lab.encode(scenes.draw(truth)[0])
        self.null, self.source = lab.empty(len(truth)), lab.context(truth)
        self.decoded = lab.decode(self.latent)
        self.sigmas = levels(lab.steps(STEPS))

    def of(self, embedding: Tensor, cfg: float = 1.0) -> Denoise:
        return guided(
            partial(self.lab.denoise, embedding=embedding), partial(self.lab.denoise, embedding=self.null), cfg
        )

    def noise(self, seed: int):
        return gaussian(self.latent, 1000 * seed + self.first)

    @cached_property
    def pivot(self) -> Tensor:
        """DDIM inversion at cfg 1: [N + 1, B, 4, h, w]."""
        return invert_ddim(self.of(self.source), self.latent, self.sigmas, process=FLOW).trajectory

    def psnr(self, latent: Tensor) -> list[float]:
        return psnr(self.lab.decode(latent), self.decoded).clamp(max=CEILING).tolist()

    def judged(self, walk: Callable[[Tensor], Tensor] | None) -> list[dict]:
        """Per scene {kind: {"success", "background"}} of an embedding -> latent (None: the source as it is)."""
        out: list[dict] = [{} for _ in range(len(self.truth))]
        for edit in self.edits:
            image = self.decoded if walk is None else self.lab.decode(walk(self.lab.context(edit.after)))
            for item, value in zip(out, judged(self.lab.judge, edit, image, self.decoded)):
                item[edit.kind] = value
        return out


def ddim(b: Batch, cfg: float) -> list[dict]:
    return [{"psnr": v} for v in b.psnr(sample_euler(b.of(b.source, cfg), b.pivot[0], b.sigmas))]


def exact(b: Batch) -> list[dict]:
    pair = invert_exact_pair(b.of(b.source, CFG), b.latent, b.sigmas, process=FLOW).pair

    def walk(context):
        return sample_exact_pair(b.of(context, CFG), b.latent, b.sigmas, process=FLOW, pair=pair)

    return [{"psnr": v, **e} for v, e in zip(b.psnr(walk(b.source)), b.judged(walk))]


def null_text(b: Batch) -> list[dict]:
    steps = len(b.sigmas) - 1
    found = optimise_null_text(
        b.lab.denoise,
        b.of(b.source),
        b.pivot,
        b.sigmas,
        b.null,
        cfg=CFG,
        process=FLOW,
        schedule=paper_schedule(steps, rate=default_rate(nets.CONTEXT)),
    )

    def walk(context):
        ask = null_guided(b.lab.denoise, partial(b.lab.denoise, embedding=context), b.sigmas, found.embeddings, CFG)
        return sample_euler(ask, b.pivot[0], b.sigmas)

    return [{"psnr": v, **e} for v, e in zip(b.psnr(found.reconstruction), b.judged(walk))]


def inversion(b: Batch) -> list[dict]:
    k = len(b.sigmas) - 1 - b.lab.steps(WALKED)
    return b.judged(lambda context: sample_euler(b.of(context, CFG), b.pivot[k], b.sigmas[k:]))


def flow_edit(b: Batch, seed: int) -> list[dict]:
    source_cfg, target_cfg = FLOW_EDIT
    sigmas = levels(b.lab.steps(32))[-b.lab.steps(21) - 1 :]
    return b.judged(
        lambda context: sample_flow_edit(
            b.of(context, target_cfg),
            b.latent,
            sigmas,
            process=FLOW,
            noise=b.noise(seed),
            source=b.of(b.source, source_cfg),
        )
    )


def sdedit(b: Batch, seed: int) -> list[dict]:
    sigmas = levels(b.lab.steps(20), SDEDIT)

    def walk(context):
        noise = b.noise(seed)
        x = FLOW.noised(b.latent, sigmas[0], noise())
        return sample_ancestral(b.of(context, CFG), x, sigmas, process=FLOW, noise=noise)

    return b.judged(walk)


def rf_inversion(b: Batch, seed: int, held: bool = True) -> list[dict]:
    """held: False for the control, eta 0."""
    steps, gamma, eta, stop = RF
    sigmas, noise = levels(b.lab.steps(steps)), b.noise(seed)()
    x = invert_rf(b.of(b.null), b.latent, sigmas, process=FLOW, noise=noise, gamma=gamma)
    etas = strengths(len(sigmas) - 1, eta if held else 0.0, 0, b.lab.steps(stop))
    return b.judged(lambda context: sample_rf(b.of(context, CFG), x, sigmas, source=b.latent, etas=etas))


def fill(b: Batch, truth: scenes.Scenes) -> list[dict]:
    """RePaint at 25/5/5 and, with as many calls, straight down; scenes of their own, whose fill is determined."""
    z, mask = b.lab.encode(scenes.draw(truth)[0]), holes(truth)
    ask = guided(
        partial(b.lab.denoise, embedding=b.lab.context(truth)), partial(b.lab.denoise, embedding=b.null[: len(z)]), 3.0
    )
    jumps = official_path(25, 5, 5)
    out: list[dict] = [{} for _ in z]
    for name, steps, path in (("repaint", 25, jumps), ("straight", network_calls(jumps), None)):
        noise = gaussian(z, 300 + b.first)
        made = sample_repaint(
            ask, noise(), levels(steps), source=z, mask=mask, process=FLOW, noise=noise, path=path, eta=1.0
        )
        for item, seam, error in zip(out, *seam_and_fill_of(b.lab, made, z, mask)):
            item |= {f"{name}_seam": float(seam), f"{name}_fill": float(error)}
    return out


def guidance(b: Batch, classifier: LatentClassifier) -> list[dict]:
    scale, bound, window = GUIDANCE
    term = Guidance(classifier.log_likelihood(CLASS, FLOW), "latent", scale, window, bound=bound, name="classifier")
    sigmas, start, empty = levels(b.lab.steps(25)), b.noise(0)(), b.of(b.null)
    ways = {"guided": with_guidance(empty, [term], process=FLOW, sigmas=sigmas), "unguided": empty}
    out: list[dict] = [{} for _ in b.latent]
    for name, ask in ways.items():
        seen = probe.read(b.lab.judge, b.lab.decode(sample_euler(ask, start, sigmas)))
        hit = (seen.at_place("colour") == COLOUR) & (seen.at_place("shape") == SHAPE)
        for item, value in zip(out, hit):
            item[name] = int(value)
    return out


def disturbance(b: Batch) -> list[dict]:
    """Back-D with `match`, and the bound alone, from 0.3 of the time on, against the ordinary run; cfg 10."""
    cfg, at = 10.0, 0.3
    sigmas = disturbance_schedule(levels(b.lab.steps(40)), cfg, at, above=12)
    faded = stable_strength(sigmas, cfg)
    strength = {float(s): f for s, f in zip(sigmas, faded)}
    cond, uncond = b.of(b.source), b.of(b.null)

    def run(looks: Disturbance | None) -> Tensor:
        ask = guided(cond, uncond, cfg)
        if looks is not None:
            ask = disturbed(cond, uncond, cfg, looks, lambda s: strength[s], MATCH_ROLLBACK)
        return b.lab.decode(sample_euler(ask, b.noise(0)(), sigmas))

    mask = scenes.draw(b.truth)[1][:, 0]
    plain = run(None)
    looks = {
        "backd": Disturbance(FLOW, at, older=lambda s: min(1.0, s + 0.3)),
        "bound_alone": Disturbance(FLOW, at, itself=True),
    }
    out: list[dict] = [{} for _ in b.latent]
    for name, looked in looks.items():
        image = run(looked)
        seen = probe.read(b.lab.judge, image).at_place("colour", b.truth.place[:, 0]) == b.truth.colour[:, 0]
        for item, drop, right in zip(out, drops(image, plain, mask), seen):
            item |= {name: float(drop), f"{name}_colour": int(right)}
    return out
