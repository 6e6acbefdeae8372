"""DreamBooth, textual inversion, Imagic and UniTune on the demo model: `make bench NAME=tuning`.

Subjects that no training of the demo model saw; of the scenes that ask for the class, for other shapes and for the edit
of one picture some may be the demo model's own training scenes. The numbers of the trainings, printed first, were
chosen for the demo model. Everything is kept as it is made: a run that was stopped goes on where it was, and after the
first item of each list the time that is left is predicted.
"""

from __future__ import annotations

import statistics
import sys

import torch

from ...demo import subjects
from ...engine import comfy, tuning, weights
from ...engine.run import sample_with
from ...samplers.tuning import lora
from ..beside_core.__main__ import measured
from ..harness import Bench, table
from ..lab import loaded
from .judged import DREAMBOOTH, IMAGIC, TEXTUAL_INVERSION, UNITUNE
from .single import measure_imagic, measure_unitune
from .subjects import ARMS, WORD_FIRST, measure_subject, measure_word_first


@torch.inference_mode()
def loader_difference() -> float:
    """Largest difference of hooked factors and the same through core's loader, against the largest change they make."""
    model, clip, _ = loaded()
    where = weights.layers(model)
    factors = lora.low_rank_all(where.items(), 8, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for factor in factors.values():
            factor.up.copy_(0.02 * torch.randn(factor.up.shape, generator=generator))
    conds = {"a": comfy.encode(clip, "a photo of a red circle")}
    x = torch.randn(1, 4, 16, 16, generator=generator)
    patched, _ = weights.applied(model, None, weights.to_lora_model(factors))

    def asked(m, attached):
        def body(run):
            with weights.attached(where, factors if attached else {}):
                return tuning.caption_net(run)(x, torch.ones(1), ["a"]).clone()

        return sample_with(m, conds, torch.zeros(1, 4, 16, 16), comfy.sigmas_of(m, "normal", 2), body)

    base, hooked, merged = asked(model, False), asked(model, True), asked(patched, False)
    return float((hooked - merged).abs().max() / (hooked - base).abs().max())


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} .. {max(values):.3f})"


def trained_with() -> list[list[str]]:
    """A row of numbers for each way of training."""
    ways = {"DreamBooth": DREAMBOOTH, "textual inversion": TEXTUAL_INVERSION, "Imagic": IMAGIC, "UniTune": UNITUNE}
    return [[way, ", ".join(f"{key} {value}" for key, value in given.items())] for way, given in ways.items()]


def best_setting(curves: list[dict]) -> tuple[str, float, float]:
    """The one "strength eta" for all pictures that comes nearest to both bars, and what it reaches."""
    found = []
    for key in curves[0]:
        place, kept = (statistics.fmean(c[key][name] for c in curves) for name in ("place", "kept"))
        found.append((min(place / 0.7, kept / 0.8), key, place, kept))
    return max(found)[1:]


def main(argv=None) -> int:
    bench = Bench("tuning", __doc__.split("\n\n")[0], argv)
    print(table(["trained with", "0: as the preset, or the node's default"], trained_with()))
    names = list(subjects.SUBJECTS)[: 1 if bench.quick else None]
    difference = bench.once("loader", loader_difference)
    beside_core, why = bench.once("beside core", lambda: measured(bench.quick))
    found = bench.each("subjects", names, lambda part: [measure_subject(name, bench.quick) for name in part])
    first = bench.each("word first", names, lambda part: [measure_word_first(name, bench.quick) for name in part])
    found = [one | {WORD_FIRST: more} for one, more in zip(found, first, strict=True)]
    pictures = list(range(1 if bench.quick else 8))
    curves = bench.each("imagic", pictures, lambda part: [measure_imagic(i, bench.quick) for i in part])
    edits = bench.each("unitune", pictures, lambda part: [measure_unitune(i, bench.quick) for i in part])

    def of(arm, key):
        return statistics.median(each[arm][key] for each in found)

    rows = []
    for arm in ("truth", "untuned", *ARMS, WORD_FIRST, "textual inversion"):
        keys = ("iou", "background", "texture", "place", "class_colour", "class_shape", "others", "leak")
        rows.append([arm, *(spread([f[arm][k] for f in found]) if k in found[0][arm] else "" for k in keys)])
    print(table(["subjects, median (least .. most)", *keys], rows))
    imagic = [
        [key, *(statistics.fmean(c[key][name] for c in curves) for name in ("place", "kept", "psnr"))]
        for key in curves[0]
    ]
    print(table(["Imagic: LoRA strength, eta", "place reached", "rest kept", "PSNR to the picture"], imagic))
    print(why or table(["batch", "s a step", "core's", "ratio"], [[b, *v] for b, v in beside_core.items()]))
    setting, place, kept = best_setting(curves)
    with_prior, without = ARMS
    figures = {
        "dreambooth_iou": of(with_prior, "iou"),
        "dreambooth_iou_truth": of("truth", "iou"),
        "dreambooth_iou_untuned": of("untuned", "iou"),
        "dreambooth_iou_without_prior": of(without, "iou"),
        "dreambooth_background": of(with_prior, "background"),
        "dreambooth_background_without_prior": of(without, "background"),
        "prior_shape_kept": of(with_prior, "class_shape"),
        "prior_colour_kept": of(with_prior, "class_colour"),
        "prior_shape_kept_without_prior": of(without, "class_shape"),
        "prior_colour_kept_without_prior": of(without, "class_colour"),
        "other_shapes_kept": of(with_prior, "others"),
        "leak_rate": of(with_prior, "leak"),
        **{
            f"word_first_{name}": of(WORD_FIRST, key)
            for name, key in (("iou", "iou"), ("other_shapes_kept", "others"), ("leak_rate", "leak"))
        },
        "prior_shape_kept_word_first": of(WORD_FIRST, "class_shape"),
        "textual_inversion_iou": of("textual inversion", "iou"),
        "imagic_setting": setting,
        "imagic_place_reached": place,
        "imagic_rest_kept": kept,
        "imagic_psnr_at_eta_0": statistics.fmean(c["1 0"]["psnr"] for c in curves),
        "unitune_edit": statistics.fmean(e["colour"] for e in edits),
        "unitune_background_psnr": statistics.fmean(e["background_psnr"] for e in edits),
        "lora_loader_difference": difference,
        "seconds_per_step_over_core": beside_core and beside_core["1"][2],
        "lora_kb": of(with_prior, "kb"),
    }
    bench.finish("", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
