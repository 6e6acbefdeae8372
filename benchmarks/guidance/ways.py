"""Sampling one class of the demo scenes in every way that the guidance table compares, and what is measured of each
item."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ...demo import captions, probe, scenes
from ...demo.autoencoder import narrow
from ...demo.classifiers import PAIR_NAMES, PAIRS
from ...demo.image_text import word_rows
from ...demo.weights import MODELS
from ...samplers.core import VE, Denoise, guided
from ...samplers.guidance.clip import ImageLoss
from ...samplers.guidance.semantic import Semantics
from ...samplers.guidance.terms import Guidance, Report, with_guidance
from ...samplers.measure.kid import kid, kid_gain
from ...samplers.networks.image_text import ImageText
from ...samplers.networks.latent_classifier import LatentClassifier
from ...samplers.ode import sample_euler
from ..lab import Demo

COLOUR, SHAPE = "red", "circle"
IMAGE_TEXT = MODELS / "nulltext_image_text.safetensors"
#: what the demo model's classifier is helped by, and no default: pushes of at most so much, in units of the estimate's
#: own uncertainty per step. The table has the classifier with it and without it
CLASSIFIER_BOUND = 1.25
#: (sigma_start, sigma_end) of the tower and of the classifier, chosen on noises that the comparison doesn't use. Above,
#: they tell pairs little better than chance (tower 8 % at sigma 4, classifier 14 %) and push anywhere; below, they draw
#: what only they see
CLIP_WINDOW, CLASSIFIER_WINDOW = (1.8, 0.1), (8.0, 0.1)


def _file(path: Path, build) -> torch.nn.Module:
    with safe_open(path, "pt") as f:
        metadata = f.metadata()
    return build(load_file(path), metadata)


@dataclass(frozen=True)
class Way:
    """One way to sample the class: a CFG caption (None: the empty one), cfg, and guidance terms."""

    terms: tuple[Guidance, ...] = ()
    caption: bool = False
    cfg: float = 1.0


class Lab(Demo):
    """The demo model, the towers that guide and the nets that judge. Guides and judges are different networks."""

    def __init__(self, steps: int):
        super().__init__(steps)
        # the same function as the shipped shape, several times faster
        self.slim = narrow(self.autoencoder.state_dict()).eval().requires_grad_(False)
        self.towers: ImageText = _file(IMAGE_TEXT, ImageText.build)
        self.classifier: LatentClassifier = _file(PAIRS, LatentClassifier.build)
        self.second, self.feature_net = probe.load("query"), probe.load("features")
        self.name = f"{COLOUR} {SHAPE}"
        names = [f"a {c} {s}" for c in scenes.COLOURS for s in scenes.SHAPES]
        target = names.index(f"a {self.name}")
        said = self.towers.embed_text(names)
        self.target, self.others = said[target : target + 1], torch.cat([said[:target], said[target + 1 :]])

    def scenes(self, n: int, seed: int) -> scenes.Scenes:
        """n real scenes of the class, one object each, everything else as it comes."""
        made = scenes.sample(n, torch.Generator().manual_seed(seed), "any", two=0.0)
        made = made.changed("colour", scenes.COLOURS.index(COLOUR)).changed("shape", scenes.SHAPES.index(SHAPE))
        own = made.background == scenes.BACKGROUNDS.index(COLOUR)  # an object is never of its background's colour
        return made.changed(
            "background", torch.where(own, (made.background + 1) % len(scenes.BACKGROUNDS), made.background)
        )

    def clip(self, distance: str, scale: float) -> Guidance:
        """CLIP guidance by the noise-aware tower on x_s, as in the published comparison (there CLIP on the noisy
        picture)."""
        temperature = float(self.towers.log_scale.exp())  # its own, as 100 is CLIP's
        loss = ImageLoss(self.towers.embed_image, self.target, (1.0,), distance, self.others, temperature)
        likelihood = loss.noisy_log_likelihood(self.towers.embed_noisy)
        return Guidance(likelihood, "latent", scale, CLIP_WINDOW, name=distance)

    def clip_decoded(self, mode: str, scale: float) -> Guidance:
        """The same on the decoded estimate, for the cost of the gradient modes."""
        loss = ImageLoss(self.towers.embed_image, self.target, (1.0,), "spherical")
        return Guidance(loss.log_likelihood(self.autoencoder.decode), mode, scale, name=mode)

    def semantic(self, part: str, weight: float) -> Guidance:
        """Semantic guidance towards one scene of the class: part "content", "structure" or "style"."""
        reference = self.slim.encode(scenes.draw(self.scenes(1, 77))[0])
        goal = Semantics(**{f"{part}_weight": weight})
        likelihood = goal.of_noisy(self.towers.embed_noisy, self.towers.noisy_features, reference, VE)
        return Guidance(likelihood, "latent", name=part)

    def classify(self, scale: float, bound: float | None = None) -> Guidance:
        """Classifier guidance as published; with a bound, what suits the demo model."""
        assert self.classifier.labels == PAIR_NAMES
        likelihood = self.classifier.log_likelihood(self.name)
        return Guidance(likelihood, "latent", scale, CLASSIFIER_WINDOW, bound=bound, name="classifier")

    def denoiser(self, way: Way, n: int, rows: Tensor | None = None, report: Report | None = None) -> Denoise:
        if rows is None and way.caption:
            rows = self.caption_rows(n)
        base = partial(self.denoise, embedding=self.empty(n))
        if rows is not None:
            base = guided(partial(self.denoise, embedding=self.net.text(rows)), base, way.cfg)
        return with_guidance(base, way.terms, sigmas=self.sigmas, report=report)

    def caption_rows(self, n: int) -> Tensor:
        """Token rows of "a red circle" in the demo model's vocabulary."""
        one = scenes.sample(1, torch.Generator().manual_seed(0), two=0.0)
        one = one.changed("colour", scenes.COLOURS.index(COLOUR)).changed("shape", scenes.SHAPES.index(SHAPE))
        phrases, form = captions.phrases(one)
        keep = [captions._FORM.index(k) for k in ("a", "colour0", "shape0")]
        short = torch.full_like(phrases, -1)
        short[:, keep] = phrases[:, keep]
        assert word_rows(short, form)[0, :3].tolist() == [self.towers.words[w] for w in f"a {self.name}".split()]
        return captions.token_rows(short, form)[0].expand(n, -1)

    def noise(self, indices: list[int]) -> Tensor:
        """Start noises by item, the same for every way and any batching."""
        draws = [torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(10_000 + i)) for i in indices]
        return torch.stack(draws) * self.sigmas[0]

    @torch.no_grad()
    def sample(self, way: Way, indices: list[int], rows: Tensor | None = None) -> tuple[Tensor, float, Tensor]:
        """Pictures [B, 3, 128, 128], the seconds of sampling (the last decode left out), and of each picture's pushes
        the share that a bound shrank [B]."""
        start, limited = time.perf_counter(), [torch.zeros(0, len(indices))]
        denoise = self.denoiser(way, len(indices), rows, lambda said: limited.append(said["limited"][None]))
        x = sample_euler(denoise, self.noise(indices), self.sigmas)
        took = time.perf_counter() - start
        at_bound = torch.cat(limited)
        shares = at_bound.mean(0) if len(at_bound) else torch.zeros(len(indices))
        return self.slim.decode(x).clamp(0, 1), took, shares

    @torch.no_grad()
    def features(self, images: Tensor) -> list[list[float]]:
        """Features of pictures [B, 3, 128, 128], 128 numbers each, as the results keep them."""
        rows = torch.cat([self.feature_net.features(part) for part in images.split(64)])
        return [[round(v, 4) for v in row] for row in rows.tolist()]

    @staticmethod
    def in_class(judge: torch.nn.Module, images: Tensor) -> Tensor:
        """[B] bool by a probe: an object is there, of that colour and shape."""
        reading = probe.read(judge, images)
        right = reading.at_place("colour") == scenes.COLOURS.index(COLOUR)
        right &= reading.at_place("shape") == scenes.SHAPES.index(SHAPE)
        return right & (reading.present.amax(1) > 0.5)

    def compute(self, way: Way) -> Callable[[list[int]], list[dict]]:
        """For Bench.each: features, class by either judge, seconds, and share of the pushes at the bound of each
        item."""

        def run(indices):
            images, took, limited = self.sample(way, indices)
            judged = (self.in_class(judge, images).tolist() for judge in (self.judge, self.second))
            return [
                {"f": f, "in": a, "in2": b, "s": round(took / len(indices), 4), "b": round(at, 4)}
                for f, a, b, at in zip(self.features(images), *judged, limited.tolist(), strict=True)
            ]

        return run


def kid_of(rows: list[dict] | Tensor, reference: Tensor) -> tuple[float, float]:
    """KID and its error of features as kept (or [N, 128]) against reference [M, 128], both in units of the reference's
    rms: the kernel is a cube, and the feature net's own scale would stand in every value."""
    unit = reference.pow(2).mean().sqrt()
    return kid(_features(rows) / unit, reference / unit)


def gain_of(worse: list[dict], better: list[dict], reference: Tensor) -> float:
    """By how many standard errors of the paired difference `better` has the smaller KID."""
    unit = reference.pow(2).mean().sqrt()
    gain, error = kid_gain(_features(worse) / unit, _features(better) / unit, reference / unit)
    return gain / (error or 1.0)


def _features(rows: list[dict] | Tensor) -> Tensor:
    return rows if isinstance(rows, Tensor) else torch.tensor([row["f"] for row in rows])


def share(rows: list[dict], judge: str = "in") -> float:
    """Share of the class by the first judge ("in") or the second ("in2")."""
    return sum(row[judge] for row in rows) / len(rows)


def seconds_100(rows: list[dict]) -> float:
    """Median seconds per 100 pictures over the batches."""
    return 100 * sorted(row["s"] for row in rows)[len(rows) // 2]
