"""Editing without inversion: the source's and the target's prediction are asked at the same noise, and only their
difference moves the image.

    FlowEdit (2412.08629, alg. 1)         z_src = noised(x_src, s, n),  z_tar = z_src + (x_edit - x_src)
                                          x_edit += (s' - s) mean_n [ d_tar(z_tar, s) - d_src(z_src, s) ]
    InfEdit's DDCM (2312.04965, alg. 2)   D' = x_src + (D_tar(z_tar, s) - D_src(z_src, s))
                                          z_src' = noised(x_src, s', n'),  z_tar' = noised(D', s', n')

Both hold for eps, v and flow: d = (x - D)/s, and `noised` is the process's own. In the order of operations above equal
prompts give differences of exactly 0, so the source comes back to the bit.

Departures. FlowEdit is stated for flow models; for VE the same line is the same ODE difference. InfEdit's paper
corrects eps; with eps = (x - D)/s that is the D' above. Its attention control is a matter of the denoisers given.
"""

from __future__ import annotations

from torch import Tensor

from ..core import Callback, Denoise, NoiseProcess, NoiseSource, check_descending, expand, report, to_d
from ..ode import sample_euler


def sample_flow_edit(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    process: NoiseProcess,
    noise: NoiseSource,
    source: Denoise,
    callback: Callback | None = None,
    average: int = 1,
    plain_steps: int = 0,
) -> Tensor:
    """x [B, C, ...] is the source latent (not noise); denoise: the target's guided prediction, source: the source's.

    sigmas: where to begin decides how much may change (the paper's n_max: the schedule's last n_max steps). average:
    noise draws per step (n_avg). plain_steps: the last n_min steps sample the target plainly, which lets style change
    more and gives up the exact identity. 2 average calls per step, 1 per plain step."""
    check_descending(sigmas)
    steps = len(sigmas) - 1
    if average < 1 or not 0 <= plain_steps <= steps:
        raise ValueError(
            f"FlowEdit needs at least 1 draw per step and 0 to {steps} plain steps; got {average} and {plain_steps}."
        )
    edit = x
    for i in range(steps - plain_steps):
        s, total = sigmas[i], 0.0
        for _ in range(average):
            z_src = process.noised(x, s, noise())
            z_tar = z_src + (edit - x)
            denoised = denoise(z_tar, s)
            total = total + (to_d(z_tar, s, denoised) - to_d(z_src, s, source(z_src, s)))
        report(callback, i, edit, s, denoised)
        edit = edit + (expand(sigmas[i + 1], x) - expand(s, x)) * total / average
    if plain_steps == 0:
        return edit
    first = steps - plain_steps
    begin = process.noised(x, sigmas[first], noise()) + (edit - x)

    def later(state: dict) -> None:
        report(callback, state["i"] + first, state["x"], state["sigma"], state["denoised"])

    return sample_euler(denoise, begin, sigmas[first:], callback=later)


def sample_infedit(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    process: NoiseProcess,
    noise: NoiseSource,
    source: Denoise,
    callback: Callback | None = None,
) -> Tensor:
    """x [B, C, ...] is the source latent; denoise: the target's prediction, source: the source's. 2 calls per step.

    Few steps (12 in the paper, with a consistency model) are enough; the first sigma decides how much may change."""
    check_descending(sigmas)
    z_src = z_tar = process.noised(x, sigmas[0], noise())
    for i in range(len(sigmas) - 1):
        s = sigmas[i]
        edit = x + (denoise(z_tar, s) - source(z_src, s))
        report(callback, i, z_tar, s, edit)
        if sigmas[i + 1] > 0:
            n = noise()
            z_src, z_tar = process.noised(x, sigmas[i + 1], n), process.noised(edit, sigmas[i + 1], n)
    return edit if sigmas[-1] == 0 else z_tar
