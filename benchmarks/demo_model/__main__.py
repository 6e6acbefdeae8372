"""How well the demo model does what its captions say, by the probe: `make bench NAME=demo_model`."""

from __future__ import annotations

import sys
from functools import partial

import torch
import torch.nn.functional as F

from ...demo import captions, nets, probe, scenes
from ...demo.model import generate, load
from ...demo.weights import BOTTLENECK, CHECKPOINT, FLOW
from ...samplers.core import guided
from ...samplers.measure.metrics import psnr
from ..harness import READ, Bench, seconds, table
from ..lab import Demo
from .bottleneck import TARGETS, measure_bottleneck


def draw_seed(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def following(bench: Bench, key: str, truth: scenes.Scenes, score, flow: bool = False) -> dict[str, float]:
    """Mean of `score(reading, scenes)`'s 0/1 columns over images generated from the full captions of `truth`, with
    `flow` by the flow twin."""
    net, autoencoder = load(flow=flow)
    judge = probe.load("conv")

    def compute(indices):
        part = truth[torch.tensor(indices)]
        images = generate(net, autoencoder, part, 5 if bench.quick else 30, 5.0, 1000 + indices[0], flow)
        columns = score(probe.read(judge, images), part)
        return [{k: int(v[i]) for k, v in columns.items()} for i in range(len(indices))]

    rows = bench.each(key, range(len(truth)), compute, batch=16)
    return {k: sum(row[k] for row in rows) / len(rows) for k in rows[0]}


def one_object(reading: probe.Reading, truth: scenes.Scenes) -> dict[str, torch.Tensor]:
    out = probe.right(reading, truth, ("colour", "shape", "background", "texture", "place"))
    return out | {"pair": out["colour"] & out["shape"]}


def two_objects(reading: probe.Reading, truth: scenes.Scenes) -> dict[str, torch.Tensor]:
    """Both colours at their own places, an object seen at each."""
    right = torch.ones(len(truth), dtype=torch.bool)
    for i in range(2):
        at = truth.place[:, i]
        right &= reading.present.gather(1, at[:, None])[:, 0] > 0.5
        right &= reading.at_place("colour", at) == truth.colour[:, i]
    return {"two_objects": right}


@torch.no_grad()
def attention(truth: scenes.Scenes, layers=nets.MAP_LAYERS) -> tuple[float, float]:
    """Mean mass per pixel inside the object's mask over outside, and the share of maps whose peak is inside.

    Colour and shape words, averaged over the layers and t in 100..500."""
    demo, (image, mask) = Demo(), scenes.draw(truth)
    words = captions.token_rows(*captions.phrases(truth))[1]
    latent, context = demo.encode(image), demo.context(truth)
    total = 0
    for t in range(100, 501, 100):
        s = demo.table[t]
        a = (1 + s * s).rsqrt()
        noise = torch.randn(latent.shape, generator=draw_seed(t))
        _, maps = demo.net.unet(a * (latent + s * noise), torch.full((len(latent),), t), context, tuple(layers))
        for m in maps.values():
            side = int(m.shape[1] ** 0.5)
            m = m.transpose(1, 2).reshape(len(m), -1, side, side)
            total = total + F.interpolate(m, size=latent.shape[-2:], mode="bilinear")
    inside = F.avg_pool2d(mask[:, :1], 8)
    inner, outer, peaks = 0.0, 0.0, []
    for k in range(2):
        m = total[torch.arange(len(total)), words[:, 0, k]][:, None]
        mean_in = (m * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3))
        mean_out = (m * (1 - inside)).sum((1, 2, 3)) / (1 - inside).sum((1, 2, 3))
        inner, outer = inner + float(mean_in.sum()), outer + float(mean_out.sum())
        peak = m.flatten(1).argmax(1)
        peaks.append(inside.flatten(1).gather(1, peak[:, None])[:, 0] > 0.25)
    return inner / outer, float(torch.cat(peaks).float().mean())


def through(demo: Demo, image: torch.Tensor) -> torch.Tensor:
    """Pictures as the autoencoder gives them back."""
    return torch.cat([demo.decode(demo.encode(part)) for part in image.split(16)])


@torch.no_grad()
def judges(truth: scenes.Scenes) -> list[list]:
    """Table rows: what each probe reads right off drawn scenes that went through the autoencoder."""
    seen, rows = through(Demo(), scenes.draw(truth)[0]), []
    for name in ("conv", "query"):
        right = probe.accuracy(probe.load(name), seen, truth)
        rows += [[f"probe {name}: {k}", right[k], 0.97] for k in ("colour", "shape", "place", "texture", "background")]
    return rows


def further_networks(bench: Bench, n: int, figures: dict) -> list[list]:
    """Add the figures of the further UNets to `figures`, for those that are there; lines for the table."""
    lines = []
    for path in (FLOW, BOTTLENECK):
        if not path.exists():
            lines.append([f"{path.name}: not trained yet", "", ""])
    if FLOW.exists():
        one, two = (scenes.sample(k, draw_seed(s), "held_out", two=t) for k, s, t in ((n, 21, 0.0), (n // 2, 22, 1.0)))
        twin = following(bench, "flow", one, one_object, flow=True)
        twin |= following(bench, "flow two", two, two_objects, flow=True)
        figures |= {f"flow_{k}": v for k, v in twin.items()} | {"flow_file_mb": FLOW.stat().st_size / 1e6}
    if BOTTLENECK.exists():
        steered, more = measure_bottleneck(bench, 8 if bench.quick else 64)
        figures |= steered | {"bottleneck_file_mb": BOTTLENECK.stat().st_size / 1e6}
        lines += more
    return lines


def main(argv: list[str]) -> None:
    torch.set_num_threads(1)
    bench = Bench("demo_model", __doc__, argv, read=(*READ, "diffusion_models/*.safetensors"))
    n = 16 if bench.quick else 256
    demo = Demo()
    single = following(bench, "one_object", scenes.sample(n, draw_seed(21), "held_out", two=0.0), one_object)
    double = following(bench, "two_objects", scenes.sample(n // 2, draw_seed(22), "held_out", two=1.0), two_objects)
    unseen = following(bench, "unseen", scenes.sample(n // 2, draw_seed(23), "unseen", two=0.0), one_object)
    drawn = scenes.sample(128, draw_seed(24), "held_out")
    quality = {"psnr_autoencoder": scenes.draw(drawn)[0]}
    quality["psnr_unseen_colours"] = scenes.draw(drawn, paint=scenes.unseen_paint(len(drawn)))[0]
    quality = {k: float(psnr(image, through(demo, image)).clamp(max=100).mean()) for k, image in quality.items()}
    ratio, peak = attention(scenes.sample(16 if bench.quick else 128, draw_seed(25), "held_out", two=0.0))
    step = guided(*[partial(demo.denoise, embedding=demo.empty(1))] * 2, 5.0)
    x = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        step_ms = 1000 * seconds(lambda: step(x, torch.tensor(1.0)), 15)
    figures = {k: single[k] for k in ("colour", "shape", "background", "texture", "place")}
    figures |= {"two_objects": double["two_objects"], "unseen_pairs": unseen["pair"]} | quality
    figures |= {"attention_ratio": ratio, "attention_peak": peak, "step_ms": step_ms}
    figures["file_mb"] = CHECKPOINT.stat().st_size / 1e6
    more = further_networks(bench, n, figures)
    bars = dict.fromkeys(("colour", "background", "texture", "place", "two_objects"), 0.95) | {"shape": 0.96}
    bars |= {"unseen_pairs": 0.93, "psnr_autoencoder": 31.5, "psnr_unseen_colours": 28.0}
    bars |= {"attention_ratio": 3.0, "attention_peak": 0.8}
    bars |= dict.fromkeys(("h_zero_change_sigma1", "h_zero_change_sigma5"), 0.15)
    bars |= {f"h_{what}_{name}": bar for what, bar in (("steer", 0.6), ("kept", 0.7)) for name in TARGETS}
    lines = [[k, float(v), bars.get(k, "")] for k, v in figures.items()]
    lines += more + judges(scenes.sample(2 * n, draw_seed(26), "held_out", two=0.0))
    bench.finish(table(("figure", "measured", "to reach"), lines), figures)


if __name__ == "__main__":
    main(sys.argv[1:])
