"""Corrections of a pivot that need no optimisation, and the guided denoiser that all of them are replayed with.

    negative prompt (2305.16807)   the null embedding is the source prompt's: D_u = D_c, so CFG vanishes for the source
    direct overwrite (2310.01506)  x_src := trajectory[i + 1] after every step. The paper adds the offset between its
                                   own step and the pivot, which comes to the same and costs calls.
                                   `StoredSource` (../attention/branches.py) does it.
    null-text (2211.09794)         the embeddings of samplers/inversion/null_text.py, one per step

A replay is  sample_euler(null_guided(net, conditional, sigmas, embeddings, cfg), x_T, sigmas). Steps are found by
sigma's place in the schedule, never by counting calls, so Heun and the like work too.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..core import Denoise, Sigma, guided, step_index

#: (x [B, C, ...], sigma, embedding [B or 1, T, D]) -> D [B, C, ...]
Net = Callable[[Tensor, Sigma, Tensor], Tensor]


def null_guided(net: Net, conditional: Denoise, sigmas: Tensor, embeddings: Tensor, cfg: float) -> Denoise:
    """CFG whose unconditional branch is `net` with the null embedding of sigma's step.

    embeddings [N, B or 1, T, D] over sigmas [N+1]. At cfg 1 the null branch is not asked."""
    if len(embeddings) != len(sigmas) - 1:
        raise ValueError(f"{len(sigmas) - 1} steps need as many null embeddings; got {len(embeddings)}.")

    def uncond(x, sigma):
        return net(x, sigma, embeddings[step_index(sigma, sigmas)].to(x.device))

    return guided(conditional, uncond, cfg)


def negative_prompt(conditioning: Tensor, steps: int, batch: int) -> Tensor:
    """The source prompt's embedding [B or 1, T, D] in the null embedding's place at every step: [N, B, T, D]."""
    return conditioning.expand(batch, -1, -1).repeat(steps, 1, 1, 1)
