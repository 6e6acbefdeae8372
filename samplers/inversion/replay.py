"""The way back from an INVERSION: which sampler walks it, from where, at which cfg, and which null embedding belongs to
a sigma.

Starting at step k of the trajectory instead of at the noise end keeps more of the source: the edit's strength is the
share (N - k)/N of the steps that are walked anew (SDEdit's dial, on the inverted trajectory instead of on fresh noise).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..core import Sigma, step_index
from ..ode import sample_euler
from .edit_friendly import sample_edit_friendly
from .exact_pair import sample_exact_pair
from .record import Inversion


def first_step(strength: float, steps: int) -> int:
    """The step k at which a walk of that strength begins: 0 for strength 1, `steps` (nothing to walk) for 0.

    ValueError outside 0..1."""
    if not 0 <= strength <= 1:
        raise ValueError(f"The strength lies between 0 (the source) and 1 (all steps); got {strength:g}.")
    return steps - round(strength * steps)


#: corrections whose null embeddings fit one cfg alone
_TIED = ("null_text", "global_null")


def cfg_of(inversion: Inversion | None, target: float) -> float:
    """The cfg of a run: the target, and for a target of 0 the inversion's own. The one law of every node that samples
    an inversion; without one (None) the target alone counts.

    Guidance may differ on the way back (edit-friendly's authors invert at 3.5 and edit at 15): the source then comes
    back by its stored path or not at all. ValueError for another cfg than the one that null embeddings were optimised
    for, and for 0 without an inversion."""
    if inversion is None:
        if target == 0:
            raise ValueError(
                "A cfg of 0 stands for the inversion's own, and there is no inversion: set a cfg (7.5 is usual)."
            )
        return target
    if target in (0, inversion.cfg):
        return inversion.cfg
    if inversion.correction in _TIED:
        raise ValueError(
            f"This inversion's null embeddings were optimised for cfg {inversion.cfg:g} and fit no other: "
            f"set cfg {inversion.cfg:g} (or 0, the inversion's own), or optimise them again for cfg "
            f"{target:g}."
        )
    return target


def way_back(inversion: Inversion, first: int = 0) -> tuple[Callable, Tensor, Tensor, dict]:
    """(sampler, x [B, C, ...] at sigmas[0], sigmas, options) that bring trajectory[first] back to the source. All of
    these samplers take `after`, a line behind every step.

    With the denoiser of the inversion and no edit the exact pair and the recorded residuals return it but for
    rounding, a converged fixed point nearly, DDIM as closely as its steps are small."""
    x, sigmas = inversion.trajectory[first], inversion.sigmas[first:]
    if inversion.kind.needs == "residuals":
        options = {"residuals": inversion.residuals[first:], "eta": float(inversion.metadata.get("eta", 1.0))}
        return sample_edit_friendly, x, sigmas, options
    if inversion.kind.needs == "pair" and len(sigmas) > 2:
        pair = inversion.trajectory[first : first + 2] if first else inversion.pair
        options = {"pair": pair, "gamma": inversion.metadata.get("gamma")}
        return sample_exact_pair, x, sigmas, options
    return sample_euler, x, sigmas, {}


def calls_back(inversion: Inversion, first: int = 0) -> int:
    """Network calls of `way_back`: one per step, one less for a pair."""
    left = inversion.steps - first
    return max(left - (inversion.kind.needs == "pair" and left > 1), 0)


def null_embedding_at(inversion: Inversion, sigma: Sigma) -> Tensor | None:
    """The null embedding [B, T, D] of the step that sigma lies in, None if the inversion has none."""
    if inversion.null_embeddings is None:
        return None
    return inversion.null_embeddings[step_index(sigma, inversion.sigmas)]
