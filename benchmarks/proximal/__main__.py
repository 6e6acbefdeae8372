"""Proximal guidance beside its controls, on edits of inverted demo scenes: `make bench NAME=proximal`.

Held-out scenes, inverted by DDIM (no guidance, 20 steps), edited by one word (object colour, background colour) at cfg
7.5 with the source prompt as the null branch; also by what the authors' code comes to (samplers/guidance/proximal.py).
The controls: no threshold (negative-prompt inversion), as many numbers
set to 0 at random, others at every step, and the whole difference shrunk to the same size. Every figure is the mean
over three draws of scenes, then the largest minus the smallest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from ...demo import scenes
from ...samplers.core import VE
from ...samplers.guidance.proximal import proximal, proximal_cond
from ...samplers.inversion.pivots import invert_ddim
from ...samplers.measure.metrics import to_psnr
from ...samplers.ode import sample_euler
from ..edits import FEWEST, Edit, other_value, rest_cell
from ..harness import Bench, table
from ..lab import Demo, some

CFG, QUANTILE, DRAWS, KINDS = 7.5, 0.7, (81, 82, 83), ("colour", "background")


Branch = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def at_random(cond: Tensor, uncond: Tensor, draws: torch.Generator) -> Tensor:
    """The control: QUANTILE of the difference's numbers set to 0, whichever they are, others at every step."""
    return uncond + (cond - uncond) * (torch.rand(cond.shape, generator=draws) >= QUANTILE)


def as_large(cond: Tensor, uncond: Tensor, _: torch.Generator) -> Tensor:
    """The control: the whole difference, shrunk to the size that the hard threshold leaves of it."""
    change = cond - uncond
    size, left = (d.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for d in (change, proximal(change, QUANTILE)))
    return uncond + change * left / size.clamp(min=1e-12)


WAYS: dict[str, Branch] = {
    "negative_prompt": lambda c, u, _: c,
    "proximal_l0": lambda c, u, _: proximal_cond(c, u, QUANTILE, "l0"),
    "proximal_l1": lambda c, u, _: proximal_cond(c, u, QUANTILE, "l1"),
    "authors_code": lambda c, u, _: proximal_cond(c, u, 2 * QUANTILE - 1, "l1"),
    "random": at_random,
    "as_large": as_large,
}


@torch.no_grad()
def one_draw(demo: Demo, n: int, seed: int) -> dict[str, tuple[float, float, int]]:
    """{way: (share of edits that succeed, background PSNR in dB of the mean error, edits that had a background)} over n
    scenes, edited twice."""
    truth = some(n, seed)
    z, source = demo.encode(scenes.draw(truth)[0]), demo.context(truth)
    end = invert_ddim(lambda x, s: demo.denoise(x, s, source), z, demo.sigmas, process=VE).trajectory[0]
    decoded, found = demo.decode(z), {name: ([], []) for name in WAYS}
    for kind in KINDS:
        edit = Edit(kind, truth, truth.changed(kind, other_value(truth, kind, seed)))
        target = demo.context(edit.after)
        for name, branch in WAYS.items():
            draws = torch.Generator().manual_seed(7)

            def denoise(x, sigma, branch=branch, target=target, draws=draws):
                cond, uncond = (demo.denoise(x, sigma, e) for e in (target, source))
                return uncond + CFG * (branch(cond, uncond, draws) - uncond)

            image = demo.decode(sample_euler(denoise, end, demo.sigmas))
            found[name][0].extend(edit.done(demo.judge, image).float().tolist())
            found[name][1].extend(e for e in edit.background(image, decoded, FEWEST) if e is not None)
    means = {name: [torch.tensor(values).mean() for values in both] for name, both in found.items()}
    return {
        name: (float(success), float(to_psnr(error)), len(found[name][1])) for name, (success, error) in means.items()
    }


def main(argv: list[str]) -> None:
    torch.set_num_threads(1)
    bench = Bench("proximal", __doc__.splitlines()[0], argv)
    n, steps = (4, 5) if bench.quick else (8, 20)
    print(f"Predicted: {len(DRAWS) * n * (steps * 0.25 + 3.5) / 60:.1f} minutes on one thread", flush=True)
    demo = Demo(steps)
    draws = [bench.once(f"{n} scenes, draw {seed}", lambda s=seed: one_draw(demo, n, s)) for seed in DRAWS]
    lines, figures = [], {}
    for name in WAYS:
        row = {}
        for k, what in enumerate(("success", "background")):
            values = [draw[name][k] for draw in draws]
            row |= {f"{what}_{name}": sum(values) / len(values), f"{what}_{name}_spread": max(values) - min(values)}
        success, spread, dB, dB_spread = row.values()
        rest = rest_cell(f"{dB:.1f}", sum(draw[name][2] for draw in draws), len(DRAWS) * n * len(KINDS))
        lines.append([name, success, spread, rest, dB_spread])
        figures |= row
    bench.finish(table(("way", "success", "spread", "rest in dB", "spread"), lines), figures)


if __name__ == "__main__":
    main(sys.argv[1:])
