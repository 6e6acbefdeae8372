"""h-space on ComfyUI's UNets: h is read and shifted through the engine's own block patch.

The patch of output block 0 is given the middle block's output, after a ControlNet's part of it; that of output block
k > 0 what output block k - 1 gave. Rows come in one chunk for each condition of a call (`cond_or_uncond`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..samplers.inversion.record import Inversion
from ..samplers.measure.perceptual import perceptual_distance
from ..samplers.tuning.h_direction import Direction, together
from ..samplers.tuning.h_space import Change, Pair, distances, edit_and_boost, sample_asyrp, two_rows
from ..samplers.window import ALWAYS, SigmaWindow
from .comfy import Progress, decode, latent_out, process_of
from .fingerprint import difference, fingerprint
from .rows import NULL_ROLES, roles_of
from .run import Run
from .sampler import held_start, own_sampler

PATCH = "output_block_patch"
#: which rows of a call are shifted
ALL, SECOND_HALF = "all", "second half"
_MEASURED = 8  # pictures of a batch on which levels are measured


def sites(model) -> int:
    """How many sites a MODEL has: the middle block (site 0) and the later output blocks. ValueError for none."""
    network = model.model.diffusion_model
    if getattr(network, "middle_block", None) is None or not hasattr(network, "output_blocks"):
        raise ValueError(
            "This model has no middle block (it is a transformer, not a UNet), so that it has no h-space: use a "
            "Stable Diffusion 1, 2 or XL model."
        )
    return len(network.output_blocks)


def check_site(model, site: int) -> None:
    """ValueError for a site that the MODEL doesn't have."""
    count = sites(model)
    if not 0 <= site < count:
        raise ValueError(f"This model's sites go from 0 (the middle block) to {count - 1}; got {site}.")


def check_belongs(direction: Direction, model) -> None:
    """ValueError in one sentence if the direction was made with another model, or has no place in this one.

    A LoRA more or less is no other model: directions may be tried across them."""
    check_site(model, direction.site)
    if process_of(model).name != direction.process:
        raise ValueError(
            f"This direction was made with a {direction.process} model, and the model given is a "
            f"{process_of(model).name} model: use the one it was made with."
        )
    if direction.fingerprint:
        now = fingerprint(model)
        saved = {**direction.fingerprint, "patches": now["patches"]}
        differs = difference(saved, now, what="direction", again="make it with this")
        if differs:
            raise ValueError(differs)


class Site:
    """One site of a UNet. `patch` is the block patch; it does something only inside `reading` or `shifting`."""

    def __init__(self, site: int = 0):
        self.site = site
        self._read: dict[int, Tensor] | None = None
        self._change: Change | None = None
        self._rows, self._null_branch = ALL, True

    def patch(self, h: Tensor, skip, options: dict):
        if tuple(options.get("block", ())) != ("output", self.site):
            return h, skip
        kinds = options.get("cond_or_uncond") or [0]
        chunks = h.chunk(len(kinds))
        if self._read is not None:
            for kind, chunk in zip(kinds, chunks):
                self._read.setdefault(kind, chunk.detach().clone())
        if self._change is not None:
            h = torch.cat([self._shifted(chunk, role) for (role, _), chunk in zip(roles_of(options, kinds), chunks)])
        return h, skip

    def _shifted(self, chunk: Tensor, role: str) -> Tensor:
        if role in NULL_ROLES and not self._null_branch:
            return chunk
        kept, rows = chunk.tensor_split([0 if self._rows == ALL else len(chunk) // 2])
        return torch.cat([kept, rows + self._change(rows).to(rows)])

    @contextlib.contextmanager
    def reading(self) -> Iterator[dict[int, Tensor]]:
        """{0: h of the first condition, 1: of the second, ...}, each [B, C, h, w], filled by the next call."""
        self._read = found = {}
        try:
            yield found
        finally:
            self._read = None

    @contextlib.contextmanager
    def shifting(self, change: Change, rows: str = ALL, null_branch: bool = True) -> Iterator[None]:
        """h -> h + change(h) in calls of the duration. rows: ALL or SECOND_HALF of each condition's; null_branch: those
        of the negative prompt too."""
        self._change, self._rows, self._null_branch = change, rows, null_branch
        try:
            yield
        finally:
            self._change = None


def read(run: Run, place: Site, x: Tensor, sigma, name: str = "positive") -> tuple[Tensor, Tensor]:
    """(h [B, C, h, w] in fp32 on the CPU, D) of one condition at x [B, C, ...]."""
    with run.patched(PATCH, place.patch), place.reading() as found:
        denoised = run.predictions(x, sigma, [name])[0]
    if 0 not in found:
        raise ValueError(
            "The network never reached this site, because another pack replaces its blocks: take that node out."
        )
    return found[0].float().cpu(), denoised


def training_pair(run: Run, place: Site, name: str = "positive", wrap=lambda net: net) -> Pair:
    """D (without gradients) and D~ of one condition, in two calls. Only inside `run.patched(PATCH, place.patch)`.

    wrap: of `run.kept_from_underflow`, for the call that has gradients."""

    def pair(x, sigma, change):
        with torch.no_grad():
            denoised = run.predictions(x, sigma, [name])[0]
        if change is None:
            return denoised, denoised
        with place.shifting(change):
            return denoised, wrap(lambda x: run.predictions(x, sigma, [name])[0])(x)

    return pair


def measured_levels(model, vae, inversion: Inversion, cosine: float = 1.0) -> tuple[float, float]:
    """(s_edit, s_boost) read off an inversion's path through the VAE, on its first pictures; see `edit_and_boost`.

    Two pictures are decoded for each level; no network is asked."""
    path, progress = inversion.trajectory[:, :_MEASURED], Progress(inversion.steps, model)

    def shown(x):
        return decode(vae, latent_out(model, x))[..., :3].movedim(-1, 1).float().clamp(0, 1)

    picture = shown(path[-1])
    found = distances(
        path,
        inversion.sigmas,
        lambda x: perceptual_distance(shown(x), picture),
        process_of(model),
        on_level=progress.tick,
    )
    return edit_and_boost(inversion.sigmas, *found, cosine)


def acts(directions: Sequence[tuple[Direction, float]], sigmas, window: SigmaWindow) -> bool:
    """Whether a run along sigmas [N+1] shifts h in any of its steps."""
    changes = together(directions, sigmas)
    return any(s in window and changes(s) is not None for s in sigmas[:-1])


def asyrp_sampler(
    directions: Sequence[tuple[Direction, float]],
    *,
    inversion: Inversion | None = None,
    window: SigmaWindow = ALWAYS,
    boost: float = 0.0,
    symmetric: bool = False,
    null_branch: bool = True,
    two_calls: bool = False,
    rescale: bool = True,
):
    """SAMPLER by `sample_asyrp` along directions with their strengths, all of one site.

    inversion: starts at its noise end and keeps what lies outside a noise mask on its path. null_branch: with cfg the
    negative prompt's h is shifted too. two_calls: D and D~ in a call each, for guiders that count rows."""
    places = {direction.site for direction, _ in directions}
    if len(places) != 1:
        raise ValueError("Directions of one site can be added up: make them all at the same site.")
    place = Site(places.pop())

    def walk(denoise, x, sigmas, *, process, noise, callback):
        def ask(x, sigma, change, rows=SECOND_HALF):
            if change is None:
                return denoise(x, sigma)
            with place.shifting(change, rows, null_branch):
                return denoise(x, sigma)

        def one_by_one(x, sigma, change):
            denoised = denoise(x, sigma)
            return denoised, denoised if change is None else ask(x, sigma, change, ALL)

        return sample_asyrp(
            one_by_one if two_calls else two_rows(ask),
            x,
            sigmas,
            changes=together(directions, sigmas, rescale),
            process=process,
            noise=noise,
            callback=callback,
            window=window,
            boost=boost,
            symmetric=symmetric,
        )

    path = {} if inversion is None else held_start(inversion)
    return own_sampler(walk, patches={PATCH: place.patch}, **path)
