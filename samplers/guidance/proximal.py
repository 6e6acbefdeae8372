"""Proximal guidance (Han et al., ProxEdit / ProxNPI, 2306.05414): CFG with a threshold on the difference of
its branches.

    eps = eps_u + cfg prox(eps_c - eps_u),  where the null branch is the *source* prompt (negative-prompt inversion)

    l0, the hard threshold   prox(d) = d where |d| >= t, else 0
    l1, the soft threshold   prox(d) = sign(d) max(|d| - t, 0)

t is a quantile of |d|, 0.7 in the paper and in the command of the authors' README (.6 to .9 in run_npi.py). Where the
edited prompt hardly differs from the source prompt the difference is set to 0 and the run stays on the path of the
source; only the largest part of the change is guided. Of the two predictions any multiple will do (eps, D, x - D): a
quantile moves with its scale, and prox(-d) = -prox(d).

Both maps are the paper's. The authors' code is another: what it calls l0, which all its commands take, is the soft
threshold, and its l1 takes the threshold off a second time. Its quantile is of the source's rows and the edit's
together, and the source's differences are all 0: with Prompt-to-Prompt a quantile q of theirs is 2q - 1 of the edit's
own, .7 is .4. So their runs are norm "l1" at quantile 0.4 here, but for what is left out:

Departures: the quantile is of each picture, so that pictures do not change each other. Their "inversion guidance",
which pulls the unmasked part back to the stored path below t = 400 to 1000 (in full, or by a half or a tenth of the
way), is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

NORMS = ("l0", "l1")


def proximal(change: Tensor, quantile: float, norm: str = "l0") -> Tensor:
    """prox of `change` [B, C, ...]: of each picture the share `quantile` of smallest values becomes 0.

    quantile in [0, 1): 0 gives `change` back. ValueError outside it and for another norm."""
    if norm not in NORMS:
        raise ValueError(f"The norm is one of {', '.join(NORMS)}, not {norm!r}.")
    if not 0 <= quantile < 1:
        raise ValueError(f"A quantile of {quantile:g} leaves nothing or has no meaning: use one from 0 to below 1.")
    if quantile == 0:
        return change
    size = change.abs()
    threshold = torch.quantile(size.flatten(1).float(), quantile, dim=1).to(size)
    threshold = threshold.view(-1, *(1,) * (change.ndim - 1))
    return change * (size >= threshold) if norm == "l0" else change.sign() * (size - threshold).clamp(min=0)


def proximal_cond(cond: Tensor, uncond: Tensor, quantile: float, norm: str = "l0") -> Tensor:
    """The conditional branch that makes of ordinary CFG proximal guidance: uncond + prox(cond - uncond)."""
    return cond if quantile == 0 else uncond + proximal(cond - uncond, quantile, norm)
