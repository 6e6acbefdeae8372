"""Ways to invert and to edit the demo scenes: each is a function of a batch that composes samplers/, and returns its
reconstruction and, where it edits, what another prompt's embedding makes of the picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from torch import Tensor

from ...demo import nets, scenes
from ...samplers.core import VE, Denoise, NoiseSource, gaussian, guided
from ...samplers.inversion.corrections import negative_prompt, null_guided
from ...samplers.inversion.direct_edit import sample_flow_edit, sample_infedit
from ...samplers.inversion.edit_friendly import invert_edit_friendly, sample_edit_friendly
from ...samplers.inversion.exact_pair import invert_exact_pair, sample_exact_pair
from ...samplers.inversion.null_text import (
    Schedule,
    default_rate,
    optimise_global_null,
    optimise_null_text,
    paper_schedule,
    start_towards,
)
from ...samplers.inversion.pivots import invert_ddim, random_pivot
from ...samplers.inversion.replay import first_step
from ...samplers.ode import sample_euler
from ...samplers.picture.diffedit import difference_map, edit_mask, sample_diffedit
from ..edits import Changing, Edit
from ..lab import Demo
from .cost import Costs, Meter

CFG = 7.5
#: Adam's first rate: the nodes' default at this width, and the authors'. The table shows both
RATE, PAPER_RATE = default_rate(nets.CONTEXT), 1e-2
TOWARDS = 0.5  #: of the way to the source prompt: where null-text starts in a row of its own; chosen on training scenes
#: the authors' settings: 2304.06140 (source cfg, target cfg, share of the steps walked), and the Direct Edit node's
EDIT_FRIENDLY = (3.5, 15.0, 0.64)
DIRECT = (3.5, 7.5, 0.66)
#: DiffEdit: how far the climb goes, noises of the mask, and the time that it is read at
DEPTH, MAPS, MASK_AT = 0.8, 10, 0.5
SEED = 71


@dataclass
class Result:
    """What a way makes of a batch."""

    reconstruction: Tensor | None = None  #: latents
    edit: Callable[[Tensor], Tensor] | None = None  #: a target's embedding -> the edited latents
    notes: dict[str, float] = field(default_factory=dict)  #: further figures, the mean over the batch


class Lab(Changing):
    """The demo model, n scenes and their changes."""

    def __init__(self, n: int, steps: int):
        super().__init__(n, SEED, Batch, steps=steps)


class Batch:
    """Some scenes, their latents and embeddings."""

    def __init__(self, lab: Demo, truth: scenes.Scenes, edits: list[Edit], seed: int):
        self.lab, self.edits, self.seed, self.sigmas = lab, edits, seed, lab.sigmas
        self.latent = lab.encode(scenes.draw(truth)[0])
        self.null, self.source = lab.empty(len(truth)), lab.context(truth)
        self.targets = [lab.context(edit.after) for edit in edits]
        self.decoded = lab.decode(self.latent)

    def of(self, embedding: Tensor, cfg: float = 1.0) -> Denoise:
        """The denoiser of a prompt's embedding, guided away from the empty one."""
        return guided(*(partial(self.lab.denoise, embedding=e) for e in (embedding, self.null)), cfg)

    def noise(self) -> NoiseSource:
        return gaussian(self.latent, 1000 + self.seed)

    def inner(self, rate: float) -> Schedule:
        """The authors' inner loop, 10 updates at most and their thresholds, at another rate."""
        return paper_schedule(len(self.sigmas) - 1, rate=rate)

    @cached_property
    def pivot(self) -> Tensor:
        """DDIM inversion at cfg 1: [N + 1, B, 4, h, w]."""
        return invert_ddim(self.of(self.source), self.latent, self.sigmas, process=VE).trajectory


def ddim(b: Batch, cfg: float) -> Result:
    def walk(context):
        return sample_euler(b.of(context, cfg), b.pivot[0], b.sigmas)

    return Result(walk(b.source), walk)


def ddim_inverted_guided(b: Batch) -> Result:
    guide = b.of(b.source, CFG)
    end = invert_ddim(guide, b.latent, b.sigmas, process=VE).trajectory[0]
    return Result(sample_euler(guide, end, b.sigmas))


def with_null(b: Batch, embeddings: Tensor, context: Tensor) -> Tensor:
    guide = null_guided(b.lab.denoise, partial(b.lab.denoise, embedding=context), b.sigmas, embeddings, CFG)
    return sample_euler(guide, b.pivot[0], b.sigmas)


def negative(b: Batch) -> Result:
    walk = partial(with_null, b, negative_prompt(b.source, len(b.sigmas) - 1, len(b.source)))
    return Result(walk(b.source), walk)


def optimised(b: Batch, source: Denoise, pivot: Tensor, rate: float = RATE, net=None, start=None, **options):
    """Null-text optimisation along a pivot, from the empty embedding unless another is given."""
    net, start = net or b.lab.denoise, b.null if start is None else start
    options |= {"cfg": CFG, "process": VE, "schedule": b.inner(rate)}
    return optimise_null_text(net, source, pivot, b.sigmas, start, **options)


def null_text(b: Batch, costs: Costs, rate: float = RATE) -> Result:
    """Timed, between two measurements of what a single call costs."""
    b.pivot  # noqa: B018 - its calls are not the optimisation's
    meter, rows = Meter(b.lab.denoise), len(b.source)
    costs.measure(b.lab.denoise, b.latent, b.null, b.sigmas)
    with meter.timed():
        found = optimised(b, partial(meter, embedding=b.source), b.pivot, rate, meter)
    costs.measure(b.lab.denoise, b.latent, b.null, b.sigmas)
    work = found.stats
    assert (sum(meter.forwards), sum(meter.backwards)) == (work.forward_rows, work.backward_rows)
    notes = {"forwards": work.forward_rows, "backwards": work.backward_rows, "seconds": meter.seconds}
    notes |= {"expected": costs.expected(meter)} | {k: costs.of(k, rows) for k in ("forward", "backward")}
    per_picture = {name: value / rows for name, value in notes.items()}
    return Result(found.reconstruction, partial(with_null, b, found.embeddings), per_picture)


def towards(b: Batch) -> Result:
    found = optimised(b, b.of(b.source), b.pivot, start=start_towards(b.null, b.source, TOWARDS))
    work, rows = found.stats, len(b.source)
    notes = {"forwards": work.forward_rows / rows, "backwards": work.backward_rows / rows}
    return Result(found.reconstruction, partial(with_null, b, found.embeddings), notes)


def random(b: Batch) -> Result:
    astray = random_pivot(b.latent, b.sigmas, process=VE, noise=b.noise()).trajectory
    return Result(optimised(b, b.of(b.source), astray).reconstruction)


def global_null(b: Batch) -> Result:
    net, source = b.lab.denoise, b.of(b.source)
    found = optimise_global_null(net, source, b.pivot, b.sigmas, b.null, cfg=CFG, process=VE, rate=RATE)
    return Result(found.reconstruction)


def conditional(b: Batch) -> Result:
    found = optimised(b, b.of(b.null), b.pivot, start=b.source, branch="conditional")
    return Result(found.reconstruction)


def exact(b: Batch, cfg: float = CFG) -> Result:
    pair = invert_exact_pair(b.of(b.source, cfg), b.latent, b.sigmas, process=VE).pair

    def walk(context):
        return sample_exact_pair(b.of(context, cfg), b.latent, b.sigmas, process=VE, pair=pair)

    back = walk(b.source)
    return Result(back, walk, {"error": float((back - b.latent).abs().max())})


def edit_friendly(b: Batch) -> Result:
    source_cfg, target_cfg, strength = EDIT_FRIENDLY
    pivot = invert_edit_friendly(b.of(b.source, source_cfg), b.latent, b.sigmas, process=VE, noise=b.noise())
    k = first_step(strength, len(b.sigmas) - 1)

    def walk(context, cfg=target_cfg):
        return sample_edit_friendly(
            b.of(context, cfg), pivot.trajectory[k], b.sigmas[k:], process=VE, residuals=pivot.residuals[k:]
        )

    return Result(walk(b.source, source_cfg), walk)


def direct(b: Batch, sampler: Callable) -> Result:
    source_cfg, target_cfg, strength = DIRECT
    sigmas = b.sigmas[first_step(strength, len(b.sigmas) - 1) :]

    def walk(context):
        return sampler(
            b.of(context, target_cfg), b.latent, sigmas, process=VE, noise=b.noise(), source=b.of(b.source, source_cfg)
        )

    return Result(edit=walk)


#: way -> (its function, network rows per scene and step at most: forwards, backwards)
WAYS: dict[str, tuple[Callable[[Batch, Costs], Result], tuple[int, int]]] = {
    "ddim_cfg1": (lambda b, _: Result(ddim(b, 1.0).reconstruction), (2, 0)),
    "ddim_cfg7.5": (lambda b, _: ddim(b, CFG), (6, 0)),
    "null_text_cfg7.5": (null_text, (16, 10)),
    "null_text_towards_cfg7.5": (lambda b, _: towards(b), (16, 10)),
    "negative_prompt_cfg7.5": (lambda b, _: negative(b), (6, 0)),
    "exact_cfg7.5": (lambda b, _: exact(b), (8, 0)),
    "edit_friendly": (lambda b, _: edit_friendly(b), (6, 0)),
    "flow_edit": (lambda b, _: direct(b, sample_flow_edit), (6, 0)),
    "infedit": (lambda b, _: direct(b, sample_infedit), (6, 0)),
    "ddim_inverted_with_cfg7.5": (lambda b, _: ddim_inverted_guided(b), (4, 0)),
    "global_null": (lambda b, _: global_null(b), (13, 10)),
    "random_pivot": (lambda b, _: random(b), (12, 10)),
    "conditional_embedding_optimised": (lambda b, _: conditional(b), (12, 10)),
    "null_text_paper_rate": (lambda b, costs: replace(null_text(b, costs, PAPER_RATE), edit=None), (12, 10)),
}


def diffedit(b: Batch, denoise, cfg: float) -> tuple[Tensor, Tensor]:
    """(latents, mask [B, 1, h, w]) of DiffEdit to the batch's first target, its climb no higher than the edit begins.
    denoise: as `Demo.denoise`, of whoever counts the rows."""
    source, target, null = (partial(denoise, embedding=e) for e in (b.source, b.targets[0], b.null))

    def pair(x, s):
        return source(x, s), target(x, s)

    heat = difference_map(pair, b.latent, b.lab.at(MASK_AT), process=VE, noise=b.noise(), maps=MAPS)
    mask = edit_mask(heat)[:, None]
    sigmas = b.sigmas[first_step(DEPTH, len(b.sigmas) - 1) :]
    path = invert_ddim(source, b.latent, sigmas, process=VE).trajectory
    more = {"trajectory": path, "edit": mask, "process": VE, "noise": gaussian(b.latent, 1)}
    return sample_diffedit(guided(target, null, cfg), path[0], sigmas, **more), mask
