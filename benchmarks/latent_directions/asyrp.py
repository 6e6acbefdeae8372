"""Asyrp on the second demo UNet: does a direction in h edit inverted held-out pictures? Part of `make bench
NAME=latent_directions`.

The directions are mean differences over training pairs, one for each place of the object (`bottleneck.py`'s); the
strength and t_edit are chosen on training scenes; two probes judge held-out ones. Beside it: the symmetric process, a
random direction of the same norm, and no shift; the symmetric process also at a strength of its own, for at equal
strength its step is s/(s - s') times smaller. `asyrp_target` and its like are means over the attributes that h holds:
those whose edits pass both bars on training scenes (all of them where none does). "trained f" is the paper's own: a
network of h trained by the robust image-text model on pictures of one background, judged on held-out ones of that
background.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ...demo import probe, scenes
from ...samplers.core import VE
from ...samplers.inversion.pivots import invert_ddim
from ...samplers.measure.metrics import psnr
from ...samplers.ode import sample_euler
from ...samplers.tuning.h_direction import Direction, together
from ...samplers.tuning.h_space import sample_asyrp
from ...samplers.window import SigmaWindow
from ..demo_model.bottleneck import TARGETS, Bottleneck, one_object, read_off, share_of_bars
from ..edits import CEILING
from ..harness import Bench, ratio
from ..lab import of_split

TOWER = "nulltext_image_text_robust.safetensors"  # of the trained f
STRENGTHS, T_EDIT = (0.3, 0.6, 1.0, 1.5), (0.6, 0.5, 0.0)
SYMMETRIC_STRENGTHS = (1.0, 2.0, 3.0, 4.5, 6.0, 9.0)  # one of its steps moves h's share of a step only
TRAINED_STRENGTHS = (0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
STRIP = (0.0, 0.5, 1.0, 1.5)
JUDGES = ("conv", "query")
passes = partial(share_of_bars, bars=(0.7, 0.75))  # of reached and kept
#: the background that f is trained away from, and what is set for this small model
BEFORE = scenes.BACKGROUNDS.index("pink")
TRAINING = {
    "steps": 12,
    "t_edit": 0.3,
    "passes": 3,
    "optimiser": "Adam",
    "lr": 2e-3,
    "clip_weight": 1.0,
    "l1_weight": 0.3,
}


def subjects(n: int, split: str, seed: int, attribute: str, target: int, before: int | None = None) -> scenes.Scenes:
    """n scenes of the split whose attribute is not the target; with `before` it is that in all of them."""
    if before is None:
        return one_object(n, split, seed, attribute, target)
    return of_split(n, split, lambda count: one_object(count, split, seed, attribute, target), **{attribute: before})


class Edits:
    """Pictures of one split of an attribute, inverted, and their way back along a direction."""

    def __init__(self, model: Bottleneck, attribute: str, n: int, split: str, seed: int, before: int | None = None):
        self.model, self.attribute, self.target = model, attribute, TARGETS[attribute]
        self.scenes = subjects(n, split, seed, attribute, self.target, before)
        self.clean = model.encode(scenes.draw(self.scenes)[0])
        self.start = invert_ddim(model.denoise, self.clean, model.sigmas, process=VE).trajectory[0]

    def images(
        self, directions: list[Direction], strength: float, t_edit: float = 0.0, symmetric: bool = False
    ) -> Tensor:
        """[B, 3, 128, 128]. directions: one for each place, or one for all; t_edit: a share of the time."""
        window = SigmaWindow(float("inf"), float(self.model.table[int(999 * t_edit)]) if t_edit else 0.0)
        groups, out = self.scenes.place[:, 0], torch.zeros(len(self.scenes), 3, 128, 128)
        for g in groups.unique().tolist():
            own = groups == g

            def pair(x, sigma, change):
                plain = self.model.denoise(x, sigma)
                if change is None:
                    return plain, plain
                return plain, self.model.denoise(x, sigma, change(self.model.h))

            changes = together([(directions[g % len(directions)], strength)], self.model.sigmas)
            x = sample_asyrp(
                pair, self.start[own], self.model.sigmas, changes=changes, window=window, symmetric=symmetric
            )
            out[own] = self.model.autoencoder.decode(x).clamp(0, 1)
        return out

    def decibels(self, images: Tensor) -> float:
        """How near pictures are to the autoencoder's own."""
        return float(psnr(images, self.model.decode(self.clean)).clamp(max=CEILING).mean())

    def walked_back(self) -> Tensor:
        """The inversion's own reconstruction."""
        return self.model.decode(sample_euler(self.model.denoise, self.start, self.model.sigmas))

    def judged(self, judge, images: Tensor) -> tuple[float, float]:
        return read_off(judge, images, self.scenes, self.attribute, self.target)


def directions_of(model: Bottleneck, attribute: str, pairs: int) -> tuple[list[Direction], list[Direction]]:
    """(mean differences, random ones of the same norm at each level), one for each place."""
    target = TARGETS[attribute]
    sources = one_object(pairs * len(scenes.PLACES), "train", 32, attribute, target)
    shifts = model.mean_shift(sources, sources.changed(attribute, target), sources.place[:, 0])
    found, generator = torch.stack(shifts, 1), torch.Generator().manual_seed(35)  # [G, N, C, 4, 4]
    noise = torch.randn(found.shape, generator=generator)
    size = (found.flatten(2).norm(dim=2) / noise.flatten(2).norm(dim=2))[..., None, None, None]
    return tuple([Direction(model.sigmas, d) for d in each] for each in (found, noise * size))


def measure_attribute(model: Bottleneck, judges, attribute: str, n: int, pairs: int) -> dict:
    """One attribute: settings chosen on training scenes, every way judged on held-out ones, the strip."""
    steered, control = directions_of(model, attribute, pairs)
    some = Edits(model, attribute, n, "train", 33)
    tried = {(k, t): some.judged(judges["conv"], some.images(steered, k, t)) for k in STRENGTHS for t in T_EDIT}
    strength, t_edit = max(tried, key=lambda way: passes(tried[way]))
    own = {k: some.judged(judges["conv"], some.images(steered, k, t_edit, symmetric=True)) for k in SYMMETRIC_STRENGTHS}
    symmetric = max(own, key=lambda k: passes(own[k]))
    held = Edits(model, attribute, n, "held_out", 46)
    ways = {
        "asymmetric": held.images(steered, strength, t_edit),
        "symmetric at that strength": held.images(steered, strength, t_edit, symmetric=True),
        f"symmetric at its own, {symmetric:g}": held.images(steered, symmetric, t_edit, symmetric=True),
        "random direction": held.images(control, strength, t_edit),
        "no shift": held.images(steered, 0.0),
    }
    return {
        "strength": strength,
        "t_edit": t_edit,
        "symmetric_strength": symmetric,
        "holds": passes(tried[strength, t_edit]) >= 1,
        "strip": [held.judged(judges["query"], held.images(steered, k * strength, t_edit))[0] for k in STRIP],
        "dB": [held.decibels(ways["no shift"]), held.decibels(held.walked_back())],
        "ways": {way: {j: held.judged(net, images) for j, net in judges.items()} for way, images in ways.items()},
    }


def trained_direction(bench: Bench, path) -> Direction:
    """h-Space Train's direction from pink to blue backgrounds, on training scenes."""
    from ...engine.comfy import encode, get
    from ...nodes.h_training import NETWORK, HSpaceTrain
    from ...nodes.loaders import LoadImageText
    from ..lab import loaded

    _, clip, vae = loaded()
    source = subjects(2 if bench.quick else 16, "train", 36, "background", TARGETS["background"], BEFORE)
    image = scenes.draw(source)[0]
    with torch.inference_mode():
        return HSpaceTrain().run(
            model=get("sd").load_unet(str(path)),
            positive=encode(clip, ""),
            latent={"samples": vae.encode(image.movedim(1, -1))},
            vae=vae,
            image_text=LoadImageText().run(TOWER)["result"][0],
            source="pink background",
            target="blue background",
            what=NETWORK,
            scheduler="normal",
            **(TRAINING | ({"passes": 1, "t_edit": 0.8} if bench.quick else {})),
            form="log",
            site=0,
            training_seed=1,
            templates="{}",
        )["result"][0]


def measure_trained(bench: Bench, model: Bottleneck, judges, path, n: int) -> dict:
    """Reached and kept of the paper's f; k chosen on training scenes."""
    direction = trained_direction(bench, path)
    some = Edits(model, "background", min(n, 16), "train", 37, before=BEFORE)
    tried = {k: some.judged(judges["conv"], some.images([direction], k)) for k in TRAINED_STRENGTHS}
    strength = max(tried, key=lambda k: passes(tried[k]))
    held = Edits(model, "background", n, "held_out", 48, before=BEFORE)
    images = held.images([direction], strength)
    return {"strength": strength, "seen": {j: held.judged(net, images) for j, net in judges.items()}}


def measure(bench: Bench, path) -> tuple[dict[str, float], list[list]]:
    """The figures, and lines for the table."""
    with torch.no_grad():
        model = Bottleneck(path)
        judges = {name: probe.load(name) for name in JUDGES}
        n, pairs = (6, 8) if bench.quick else (64, 64)
        figures, lines, means = {}, [], {}
        for attribute in ["background"] if bench.quick else TARGETS:
            key = f"asyrp {attribute} {n} by place"
            found = bench.once(key, lambda a=attribute: measure_attribute(model, judges, a, n, pairs))
            ways, strip = found["ways"], found["strip"]
            setting = f"k {found['strength']:g}, t_edit {found['t_edit']:g}"
            for way, seen in ways.items():
                lines += [[f"Asyrp {attribute}, {way}, {setting}", judge, *pair] for judge, pair in seen.items()]
            lines += [
                [f"Asyrp {attribute}, strip at {k:g} of that strength", "query", reached, ""]
                for k, reached in zip(STRIP, strip)
            ]
            judged = {way: seen["query"] for way, seen in ways.items()}
            asymmetric, control = judged["asymmetric"], judged["random direction"]
            tuned = judged[f"symmetric at its own, {found['symmetric_strength']:g}"]
            own = {
                "target": asymmetric[0],
                "rest_kept": asymmetric[1],
                "symmetric": judged["symmetric at that strength"][0],
                "symmetric_own": tuned[0],
                "symmetric_own_kept": tuned[1],
                "random": control[0],
                "times_random": asymmetric[0] / max(control[0], 1 / n),
                "monotone": float(all(a <= b for a, b in zip(strip, strip[1:]))),
                "identity_db": found["dB"][0],
                "inversion_db": found["dB"][1],
            }
            figures |= {f"asyrp_{name}_{attribute}": value for name, value in own.items()}
            means[attribute] = (found["holds"], own)
        held = [own for holds, own in means.values() if holds] or [own for _, own in means.values()]
        figures |= {f"asyrp_{name}": sum(own[name] for own in held) / len(held) for name in held[0]}
        figures["asyrp_attributes_held"] = [name for name, (holds, _) in means.items() if holds]
        figures["asyrp_time"] = bench.once("asyrp time", lambda: step_time(model))
    trained = bench.once(f"asyrp trained {n}", lambda: measure_trained(bench, model, judges, path, n))
    lines += [
        [f"Asyrp background, trained f, k {trained['strength']:g}", judge, *pair]
        for judge, pair in trained["seen"].items()
    ]
    figures["asyrp_trained_target"], figures["asyrp_trained_kept"] = trained["seen"]["query"]
    return figures, lines


@torch.no_grad()
def step_time(model: Bottleneck) -> float:
    """A step of two rows in one call, over two calls of one row."""
    x, sigma = torch.randn(1, 4, 16, 16), model.sigmas[3]
    model.denoise(x, sigma)
    shift = torch.zeros_like(model.h)
    both = torch.cat([shift, shift])
    return ratio(
        lambda: model.denoise(torch.cat([x, x]), sigma, both),
        lambda: (model.denoise(x, sigma), model.denoise(x, sigma, shift)),
        15,
    )
