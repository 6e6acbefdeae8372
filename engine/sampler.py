"""SAMPLER objects: our loops inside ComfyUI's sampling run, which begin and end as its own samplers do."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from ..samplers.attention.branches import StoredSource
from ..samplers.core import NoiseProcess, Sigma, gaussian, repeated
from ..samplers.inversion.record import Inversion
from ..samplers.inversion.replay import way_back
from .comfy import Progress, check_interrupt, check_latent, get, process_of, timestep, with_patch
from .gate import check_run
from .interrupts import heard
from .noise import source_latent


def begin_with(sigmas: Tensor, levels: Tensor) -> bool:
    """Whether a schedule's first SIGMAS are those levels."""
    given, levels = sigmas.detach().float().cpu()[: len(levels)], levels.detach().float().cpu()
    return len(given) == len(levels) and torch.allclose(given, levels, rtol=1e-4, atol=1e-5)


def check_levels(sigmas: Tensor, levels: Tensor) -> None:
    """ValueError unless a run's SIGMAS begin with the levels of the inversion that its sampler starts from."""
    if not begin_with(sigmas, levels):
        steps, first = len(levels) - 1, f"{float(levels[0]):.4g}"
        raise ValueError(
            "This sampler starts on an inversion's path and fits "
            + (f"its {steps} steps from sigma {first}" if steps else f"sigmas that begin at {first}")
            + f"; this run has {len(sigmas) - 1} steps from sigma {float(sigmas[0]):.4g}: wire the SIGMAS of the node "
            "that the sampler comes from."
        )


def loop_seed(seed: int) -> int:
    """Seed of a loop's own draws, which must be independent of the start noise (DDIM, eq. 12). The run's own seed has
    drawn that one, and the next seeds draw it in the next runs."""
    return (seed + 0x9E3779B97F4A7C15) % 2**64  # its low 32 bits differ too: torch's CPU generator reads no others


@functools.cache
def own_sampler_class() -> type:
    """The Sampler behind `own_sampler`. Made on first use, since ComfyUI is imported lazily."""

    class OwnSampler(get("samplers").Sampler):
        def __init__(self, function, start, levels, known, calls, holds_mask, from_noise, patches: dict, options: dict):
            self.function, self.start, self.levels, self.known, self.calls = function, start, levels, known, calls
            self.holds_mask, self.from_noise, self.patches, self.options = holds_mask, from_noise, patches, options
            self.draws = gaussian

        def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, *_):
            check_run(latent_image, sigmas, noise)
            if self.levels is not None:
                check_levels(sigmas, self.levels)
            process, seed = process_of(model_wrap.model_patcher), extra_args.get("seed")
            total = self.calls(sigmas, process, latent_image, denoise_mask) if self.calls else len(sigmas) - 1
            full = self.max_denoise(model_wrap, sigmas)
            if self.start is None:
                shows = torch.zeros_like(latent_image) if full and self.from_noise else latent_image
                x = model_wrap.inner_model.model_sampling.noise_scaling(
                    sigmas[0].view((1,) * noise.ndim), noise, shows, full
                )
            else:
                if self.start.shape != latent_image.shape:
                    raise ValueError(
                        f"The start has shape {list(self.start.shape)}, the latent {list(latent_image.shape)}: "
                        "wire the latent that belongs to the start."
                    )
                x = self.start.to(latent_image.device)
            x = x.float()

            def known(sigma):
                if self.known is not None:
                    return self.known(sigma).to(x)
                return process.noised(latent_image, sigma, noise)

            model_options = extra_args["model_options"]
            for name, patch in self.patches.items():
                model_options = with_patch(model_options, name, patch)

            def denoise(x: Tensor, sigma: Sigma) -> Tensor:
                check_interrupt()
                t = timestep(sigma, x)
                options, mask = model_options, None if self.holds_mask else denoise_mask
                copies = max(len(x) // len(latent_image), 1)  # a loop may ask for its batch several times in one call
                if mask is not None:
                    if "denoise_mask_function" in options:
                        mask = options["denoise_mask_function"](
                            t, mask, extra_options={"model": model_wrap, "sigmas": sigmas}
                        )
                    mask = repeated(mask, copies)
                    x = x * mask + repeated(known(sigma), copies) * (1 - mask)
                denoised = model_wrap(x, t, model_options=options, seed=seed)
                return denoised if mask is None else denoised * mask + repeated(latent_image, copies) * (1 - mask)

            def step(state: dict) -> None:
                check_interrupt()
                if callback is not None:
                    callback(state["i"], state["denoised"], state["x"], total)

            options, takes = dict(self.options), inspect.signature(self.function).parameters
            if "tick" in takes:
                options["tick"] = check_interrupt
            if "seed" in takes:
                options["seed"] = loop_seed(loop_seed(seed or 0))
            if "full_noise" in takes:
                options["full_noise"] = full
            if self.holds_mask:
                options |= {"mask": denoise_mask, "source": latent_image}
            draws = self.draws(x, loop_seed(seed or 0))
            x = self.function(denoise, x, sigmas, process=process, noise=draws, callback=step, **options)
            if denoise_mask is not None:
                # the loop has composited already: only what rounding left outside is put right
                outside = known(sigmas[-1]) if sigmas[-1] > 0 else latent_image
                x = torch.where(denoise_mask == 0, outside.to(x), x)
            return model_wrap.inner_model.model_sampling.inverse_noise_scaling(sigmas[-1], x)

    return OwnSampler


def own_sampler(
    function: Callable,
    *,
    start: Tensor | None = None,
    levels: Tensor | None = None,
    known: Callable[[Sigma], Tensor] | None = None,
    calls: Callable[[Tensor, NoiseProcess, Tensor, Tensor | None], int] | None = None,
    holds_mask: bool = False,
    from_noise: bool = False,
    patches: dict[str, Callable] | None = None,
    **options,
):
    """SAMPLER that runs `function(denoise, x, sigmas, *, process, noise, callback, **options) -> x` of samplers/.

    start: x [B, C, ...] at sigmas[0] in model space, taken as it is; None: the engine's own scaled noise.
    levels: what the run's SIGMAS must begin with, the start's own sigma first; ValueError for others.
    known: sigma -> what stands outside a noise mask at that level; None: the source with the run's noise.
    calls: (sigmas, process, clean latent, mask or None) -> how often the callback is called, for the progress bar
    (None: once per step).
    holds_mask: the function composites by the noise mask itself; it is given `mask` (None without one) and `source`,
    the clean latent. Else each call is composited as the engine does it: x and D, by m x + (1 - m) known.
    from_noise: at full noise x is that noise alone; the engine's own holds the latent, too. A function that takes
    `full_noise` is told whether a run begins there.
    patches: transformer patches by their kind, for this sampler's calls of the network alone.
    denoise takes the batch once or several times in one call, [b1 b2 b1 b2].
    The result is x at sigmas[-1], scaled as the engine's own samplers leave it to the next one. A mask's value m (1 =
    change here) mixes exactly once, m D + (1 - m) source for a constant D; where it is 0 the result is the known part
    to the bit."""
    return own_sampler_class()(function, start, levels, known, calls, holds_mask, from_noise, patches or {}, options)


def held_start(inversion: Inversion) -> dict:
    """`own_sampler`'s inputs for a walk from the inversion's noise end, outside a noise mask on its stored path."""
    stored = StoredSource(inversion.trajectory, inversion.sigmas)
    return {"start": inversion.x_T, "levels": inversion.sigmas[:1], "known": stored.at}


def own_way_back(inversion: Inversion, first: int = 0):
    """SAMPLER that walks the inversion back from step `first`, and the sigmas it walks. An exact pair and residuals
    fit these alone; Euler steps may be others from the same start.

    Outside a noise mask the stored trajectory stands."""
    function, start, sigmas, options = way_back(inversion, first)
    stored = StoredSource(inversion.trajectory, inversion.sigmas)
    levels = sigmas if options else sigmas[:1]
    return own_sampler(function, start=start, levels=levels, known=stored.at, **options), sigmas


def walk_back(
    guider, inversion: Inversion, sampler, sigmas: Tensor, *, calls: int | None = None, mask=None, seed: int = 0
) -> Tensor:
    """LATENT samples [B, C, ...] on the CPU, fp32: an inversion walked back by a guider, with preview and progress.

    sampler: one that begins at the inversion's noise end by itself. calls: the bar's length, the steps for None; mask:
    1 = change here."""
    latent, progress = (
        source_latent(inversion),
        Progress(len(sigmas) - 1 if calls is None else calls, guider.model_patcher),
    )
    out = guider.sample(
        torch.zeros_like(latent),
        latent,
        sampler,
        sigmas,
        denoise_mask=mask,
        callback=lambda i, denoised, x, total: progress.tick(1, x0=denoised),
        disable_pbar=True,
        seed=seed,
    )
    return out.float().cpu()


def sample_latent(
    model, positive, negative, cfg: float, sampler, sigmas: Tensor, latent: dict, seed: int, mask: Tensor | None = None
) -> dict:
    """LATENT sampled by the engine's own run, as SamplerCustom makes it: its noise of `seed`, preview, progress.

    latent: LATENT [B, C, ...]; mask [B or 1, 1, h, w] on the latent grid (1 = change here) instead of the latent's
    own noise mask. ValueError for a latent that does not fit the model."""
    samples = check_latent(model, latent)
    noise = get("sample").prepare_noise(samples, seed, latent.get("batch_index"))
    callback = get("latent_preview").prepare_callback(model, len(sigmas) - 1)
    options = {"noise_mask": mask, "callback": callback, "disable_pbar": True, "seed": seed}
    with heard(model.model.diffusion_model):
        out = get("sample").sample_custom(model, noise, cfg, sampler, sigmas, positive, negative, samples, **options)
    return {**{k: v for k, v in latent.items() if k != "noise_mask"}, "samples": out}


def is_own(sampler) -> bool:
    """Whether a SAMPLER came from `own_sampler`."""
    return isinstance(sampler, own_sampler_class())


def core_sampler(name: str):
    """One of ComfyUI's own samplers by name, "euler" for one."""
    return get("samplers").sampler_object(name)


def sampler_name(sampler) -> str:
    """The name of the method behind a SAMPLER, as far as it tells."""
    function = getattr(sampler, "sampler_function", None) or getattr(sampler, "function", None)
    return getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_").removesuffix("_function")


def is_walk(sampler, function: Callable) -> bool:
    """Whether a SAMPLER is `own_sampler(function, ...)`."""
    return is_own(sampler) and sampler.function is function


def is_euler(sampler) -> bool:
    """Whether a SAMPLER walks plain Euler steps (DDIM, eta 0): ComfyUI's euler without churn, or ours."""
    return sampler_name(sampler) == "euler" and not float(getattr(sampler, "extra_options", {}).get("s_churn", 0))


def is_cfg_pp(sampler) -> bool:
    """Whether a SAMPLER steps along the negative prompt's prediction (CFG++: euler_cfg_pp, euler_pp, ...)."""
    return sampler_name(sampler).endswith("pp") or bool(getattr(sampler, "extra_options", {}).get("cfg_pp"))
