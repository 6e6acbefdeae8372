"""Every technique on a flow model, the demo's twin: `make bench NAME=flow [ARGS="--quick --fresh"]`.

32 held-out one-object scenes. Nothing was tuned on them: scales and shares are the papers', cfg 5 is what the demo
model is made for, and what the workflows `*_flow` set was chosen on another picture. Reconstructions are in dB against
the autoencoder's own decode of the source latent. Every scene is edited twice by one word, another object colour and
another background: an edit succeeds when the probe reads the new attribute, and the rest is what lies outside the
region that differs between the two drawings, in dB against the decoded source. What draws noise is run with 3 seeds;
its spread is the best seed's share less the worst's. The controls: the source as it is, guidance without its
correction, the same calls without RePaint's jumps, the same noises without a classifier, and the bound of `match`
without a disturbance.

FlowEdit and the edit by inversion make the same number of network rows a picture (84): FlowEdit walks 21 of 32 steps
with both prompts guided, the inversion walks 28 of 42 steps up at cfg 1 and down guided.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import cached_property, partial
from statistics import mean

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ...demo import nets, probe, scenes
from ...demo.classifiers import PAIRS
from ...samplers.core import FLOW, Denoise, gaussian, guided
from ...samplers.guidance.terms import Guidance, with_guidance
from ...samplers.inversion.corrections import null_guided
from ...samplers.inversion.direct_edit import sample_flow_edit
from ...samplers.inversion.exact_pair import invert_exact_pair, sample_exact_pair
from ...samplers.inversion.null_text import default_rate, optimise_null_text, paper_schedule
from ...samplers.inversion.pivots import invert_ddim
from ...samplers.measure.metrics import psnr
from ...samplers.networks.latent_classifier import LatentClassifier
from ...samplers.ode import sample_ancestral, sample_euler
from ...samplers.picture.disturbance import MATCH_ROLLBACK, Disturbance, disturbed
from ...samplers.picture.disturbance_schedules import disturbance_schedule, stable_strength
from ...samplers.picture.repaint import network_calls, official_path, sample_repaint
from ..edits import CEILING, Edit, judged, other_value
from ..from_image.cartoon import drops, median
from ..from_image.fill import filling, holes, seam_and_fill
from ..harness import READ, Bench, table
from ..lab import Demo, some

CFG = 5.0
CHANGES = ("colour", "background")
#: FlowEdit's for Flux (source cfg, target cfg): the twin, like Flux, is at home at a small cfg
FLOW_EDIT = (1.5, 5.5)
STEPS, WALKED = 42, 28  # of an inversion: the schedule's, and those that an edit walks
SEEDS = 3
SDEDIT = 0.6  # t0
CLASS = "yellow star"
COLOUR, SHAPE = scenes.COLOURS.index("yellow"), scenes.SHAPES.index("star")
#: scale, bound and window (in sigma) of the classifier, as the workflow classifier_guidance_flow sets them
GUIDANCE = (40.0, 1.0, (0.9, 0.1))
SEED = 171  # of the scenes
#: way -> network rows of a scene at full length (a backward counts two), for the predicted time
ROWS = {
    "untouched": 0,
    "ddim_cfg1": 2 * STEPS,
    "ddim_cfg5": 3 * STEPS,
    "exact_cfg5": 8 * STEPS + 4,
    "null_text_cfg5": 42 * STEPS // 4,
    "inversion": STEPS + 4 * WALKED,
    "flow_edit": SEEDS * 8 * 21,
    "sdedit": SEEDS * 4 * 20,
    "fill": 4 * 105 // 2,
    "guidance": 4 * 25,
    "disturbance": 6 * 30,
}


def levels(steps: int, start: float = 1.0) -> Tensor:
    """`steps` even steps of the flow from `start` to 0: [steps + 1]."""
    return torch.linspace(start, 0, steps + 1)


class Lab(Demo):
    """The twin, its scenes and their changes."""

    def __init__(self, n: int, quick: bool):
        super().__init__(flow=True)
        self.quick, self.truth = quick, some(n, SEED)
        self.values = {kind: other_value(self.truth, kind, SEED + 1 + k) for k, kind in enumerate(CHANGES)}
        self.batches: dict[tuple, Batch] = {}

    def steps(self, full: int) -> int:
        return max(3, full // 7) if self.quick else full

    def batch(self, items: list[int]) -> Batch:
        """Scenes by index; kept, so that ways share a pivot."""
        if tuple(items) not in self.batches:
            self.batches[tuple(items)] = Batch(self, items)
        return self.batches[tuple(items)]


class Batch:
    """Some scenes, their latents and embeddings."""

    def __init__(self, lab: Lab, items: list[int]):
        part = torch.tensor(items)
        self.lab, self.first, self.truth = lab, items[0], lab.truth[part]
        self.edits = [Edit(k, self.truth, self.truth.changed(k, new[part])) for k, new in lab.values.items()]
        self.latent = lab.encode(scenes.draw(self.truth)[0])
        self.null, self.source = lab.empty(len(items)), lab.context(self.truth)
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


# ------------------------------------------------------------------------------------------- ways: [dict per scene]


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


def fill(b: Batch, truth: scenes.Scenes) -> list[dict]:
    """RePaint at 25/5/5 and, with as many calls, straight down; scenes of their own, whose fill is determined."""
    z, mask = b.lab.encode(scenes.draw(truth)[0]), holes(truth)
    ask = guided(
        partial(b.lab.denoise, embedding=b.lab.context(truth)), partial(b.lab.denoise, embedding=b.null[: len(z)]), 3.0
    )
    jumps = official_path(25, 5, 5)
    pixels, original, out = F.interpolate(mask, scale_factor=8), b.lab.decode(z), [{} for _ in z]
    for name, steps, path in (("repaint", 25, jumps), ("straight", network_calls(jumps), None)):
        noise = gaussian(z, 300 + b.first)
        made = sample_repaint(
            ask, noise(), levels(steps), source=z, mask=mask, process=FLOW, noise=noise, path=path, eta=1.0
        )
        for item, seam, error in zip(out, *seam_and_fill(b.lab.decode(made), original, pixels)):
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


# ---------------------------------------------------------------------------------------------------------- figures


def edit_figures(runs: list[list[dict]], kinds=CHANGES) -> tuple[float, float, float]:
    """(share of successes, its spread over the seeds, mean dB of the rest) of one list of scenes per seed."""
    shares = [mean(row[k]["success"] for row in rows for k in kinds) for rows in runs]
    rest = [row[k]["background"] for rows in runs for row in rows for k in kinds]
    return mean(shares), max(shares) - min(shares), mean(v for v in rest if v is not None)


def edits_of(rows: dict[str, list[dict]]) -> dict[str, list[list[dict]]]:
    """{way: one list of scenes per seed} of what edits."""
    found = {name: [rows[name]] for name in ("untouched", "inversion", "exact_cfg5", "null_text_cfg5")}
    return found | {name: [rows[f"{name} {seed}"] for seed in range(SEEDS)] for name in ("flow_edit", "sdedit")}


def figures_of(rows: dict[str, list[dict]]) -> dict[str, float]:
    figures = {
        f"flow_psnr_{name}": mean(r["psnr"] for r in rows[name])
        for name in ("ddim_cfg1", "ddim_cfg5", "exact_cfg5", "null_text_cfg5")
    }
    for name, runs in edits_of(rows).items():
        success, spread, rest = edit_figures(runs)
        figures |= {f"flow_edit_success_{name}": success, f"flow_rest_psnr_{name}": rest}
        figures |= {f"flow_edit_spread_{name}": spread} if len(runs) > 1 else {}
    for key in ("repaint_seam", "straight_seam", "repaint_fill", "straight_fill"):
        figures[f"flow_{key}"] = mean(r[key] for r in rows["fill"])
    for key in ("guided", "unguided"):
        figures[f"flow_class_share_{key}"] = mean(r[key] for r in rows["guidance"])
    for key in ("backd", "bound_alone"):
        figures[f"flow_texture_drop_{key}"] = median(torch.tensor([r[key] for r in rows["disturbance"]]))
        figures[f"flow_colour_kept_{key}"] = mean(r[f"{key}_colour"] for r in rows["disturbance"])
    return figures


def tables(rows: dict[str, list[dict]], figures: dict[str, float]) -> str:
    lines = []
    for name, runs in edits_of(rows).items():
        for kinds in (CHANGES[:1], CHANGES[1:], CHANGES):
            success, spread, rest = edit_figures(runs, kinds)
            lines.append([name, " and ".join(kinds), success, spread if len(runs) > 1 else "-", f"{rest:.2f}"])
    edits = table(("edit", "change", "success", "spread", "rest in dB"), lines)
    others = table(("figure", "measured"), [[k, v] for k, v in figures.items() if "_edit_" not in k])
    return f"{edits}\n\n{others}"


def seconds_per_row(lab: Lab, b: Batch) -> float:
    """Of a network call on a whole batch."""
    lab.denoise(b.latent, 0.5, b.source)
    start = time.perf_counter()
    lab.denoise(b.latent, 0.5, b.source)
    return (time.perf_counter() - start) / len(b.latent)


def main(argv: list[str]) -> None:
    bench = Bench("flow", __doc__.splitlines()[0], argv, read=(*READ, "diffusion_models/nulltext_flow.safetensors"))
    n, size = (4, 4) if bench.quick else (32, 8)
    torch.set_num_threads(1)
    lab, fills = Lab(n, bench.quick), filling(n // 2, SEED + 9, times=60)
    each = seconds_per_row(lab, lab.batch(list(range(size))))
    whole = 32 * sum(ROWS.values()) * each / 60
    print(f"Predicted: a full run is about {whole:.0f} minutes of one core on this machine now.", flush=True)
    with safe_open(PAIRS, "pt") as file:
        classifier = LatentClassifier.build(load_file(PAIRS), file.metadata())
    ways: dict[str, Callable[[Batch], list[dict]]] = {
        "untouched": lambda b: b.judged(None),
        "ddim_cfg1": lambda b: ddim(b, 1.0),
        "ddim_cfg5": lambda b: ddim(b, CFG),
        "exact_cfg5": exact,
        "inversion": inversion,
        **{f"flow_edit {seed}": partial(flow_edit, seed=seed) for seed in range(SEEDS)},
        **{f"sdedit {seed}": partial(sdedit, seed=seed) for seed in range(SEEDS)},
        "guidance": lambda b: guidance(b, classifier),
        "disturbance": disturbance,
        "fill": lambda b: fill(b, fills[torch.arange(b.first, min(b.first + size, len(fills)))]),
        "null_text_cfg5": null_text,
    }
    share = {"fill": 0.5, "null_text_cfg5": 0.25}  # of the scenes: the dear ones
    rows = {}
    for name, way in ways.items():
        items = range(round(share.get(name, 1) * n))
        rows[name] = bench.each(name, items, lambda part, way=way: way(lab.batch(part)), size)
    figures = figures_of(rows)
    bench.finish(tables(rows, figures), figures)


if __name__ == "__main__":
    main(sys.argv[1:])
