"""The lines that inversion nodes have in common in their reports."""

from __future__ import annotations

from ..samplers.inversion.pivots import whiteness
from ..samplers.inversion.record import Inversion
from .inverting import Result


def error_line(inversion: Inversion, result: Result) -> str:
    """How far the reconstruction lies from the source, per image, in model space."""
    scale = inversion.source.flatten(1).std(1).clamp(min=1e-8)
    parts = [f"{float(e):.2g} ({float(e / s):.1%})" for e, s in zip(result.error, scale)]
    return f"latent rms error {', '.join(parts)} of the latent's std"


def cost_line(inversion: Inversion, result: Result, found: bool) -> str:
    """Network calls and seconds, there and back."""
    there, seconds = inversion.metadata.get("calls", 0), inversion.metadata.get("seconds", 0.0)
    if found:
        return f"network calls {result.calls} back in {result.seconds:.1f} s (found in the cache: {there} calls saved)"
    calls, total = there + result.calls, seconds + result.seconds
    return f"network calls {calls} ({there} there, {result.calls} back) in {total:.1f} s"


def noise_line(inversion: Inversion) -> str:
    """Whether the noise end looks like noise."""
    ratio, neighbours = whiteness(inversion.x_T, inversion.sigmas[0])
    return f"end noise: std {ratio:.2f} of sigma (1 is right), neighbour correlation {neighbours:+.2f} (0 is white)"
