"""From MODEL and CONDITIONING to the denoisers of `samplers/`, for nodes that own their loop."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..samplers.core import Denoise, Sigma, apply_cfg, gaussian
from ..samplers.underflow import keep_from_underflow, keep_trained_from_underflow
from .comfy import Progress, compute_dtype, get, process_of, sigma_range, timestep, with_patch
from .gradients import control_networks, for_gradients, grad_mode, normal, normal_options
from .guider import guider_class, replace_embedding
from .streamed import settled


class Run:
    """What a loop sees inside a sampling run of the engine; valid only while `sample_with`'s body runs.

    latent: x0 in model space, fp32, on the device. sigmas: the run's schedule. All predictions are fp32."""

    def __init__(self, guider, patcher, sigmas: Tensor, latent: Tensor, options: dict, progress: Progress, seed: int):
        self.guider, self.model, self.patcher = guider, guider.inner_model, patcher
        self.sigmas, self.latent, self.device = sigmas, latent.float(), latent.device
        self.progress, self.process, self._options, self._seed = progress, process_of(patcher), options, seed
        self.sigma_min, self.sigma_max = sigma_range(patcher)
        self.calls = 0

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the network computes in, whatever its weights are stored in."""
        return compute_dtype(self.model)

    def tick(self, n: int = 1) -> None:
        """n network calls done: progress, and the place where an interrupt is noticed."""
        self.progress.tick(n)

    def callback(self, state: dict) -> None:
        """k-diffusion's step report: shows the preview. Counts nothing; `tick` does."""
        self.progress.tick(0, x0=state.get("denoised"))

    def predictions(self, x: Tensor, sigma: Sigma, names: list) -> list[Tensor]:
        """D of each condition (a name or a processed list) at x [B, C, ...], batched in one call where memory allows;
        no CFG."""
        self.calls += 1
        options = self._options if torch.is_inference_mode_enabled() else normal_options(self._options)
        return self.guider.predict(x.float(), timestep(sigma, x), names, options)

    def prepared(self, name: str, shape: Sequence[int]) -> dict:
        """A condition that is one plain prompt, as a run on latents of that shape [C, ...] has it, in ordinary tensors.

        What a network is told of the picture's size (SDXL) is otherwise that of the run's own latent."""
        own = self.guider.conds[name]
        with torch.inference_mode(False), torch.no_grad():
            if tuple(shape) != tuple(self.latent.shape[1:]):
                latent = torch.zeros(1, *shape, device=self.device)
                told = {"latent_image": latent, "denoise_mask": None, "seed": self._seed}
                encode = get("samplers").encode_model_conds
                own = encode(self.model.extra_conds, [own[0]], latent, self.device, name, **told)
            return normal(own[0])

    def guided(self, positive: str, negative: str | None, cfg: float) -> Denoise:
        """The engine's own guided denoiser, the model's cfg patches included. cfg 1 asks for the positive alone."""

        def denoise(x, sigma):
            self.calls += 1
            given = self.guider.conds[positive], self.guider.conds.get(negative), cfg, self._options, self._seed
            return self.guider.guided(x.float(), timestep(sigma, x), *given)

        return denoise

    def start(self, sigma: Tensor, seed: int) -> Tensor:
        """The engine's own start of a run from noise alone: x [B, C, ...] at sigma, drawn from the CPU's generator."""
        noise = gaussian(torch.zeros(self.latent.shape), seed)().to(self.device)
        full = float(sigma) >= self.sigma_max * (1 - 1e-5)
        level = sigma.to(self.device).view((1,) * noise.ndim)
        return self.model.model_sampling.noise_scaling(level, noise, torch.zeros_like(noise), full)

    def differentiable(self, positive: str, negative: str, cfg: float) -> Denoise:
        """Plain CFG of two conditions on ordinary copies of them, so that gradients pass; for inside `gradients()`."""
        conds = [normal(self.guider.conds[name]) for name in (positive, *([negative] if cfg != 1 else []))]

        def denoise(x, sigma):
            out = self.predictions(x, sigma, conds)
            return out[0] if len(out) == 1 else apply_cfg(*out, cfg)

        return keep_from_underflow(denoise) if self.compute_dtype == torch.float16 else denoise

    def embedding_net(self, name: str = "negative") -> Callable[[Tensor, Sigma, Tensor], Tensor]:
        """net(x, sigma, embedding [B or 1, T, D]) -> D of that condition with its text embedding replaced.

        Differentiable in x, sigma and embedding inside `gradients()`. ValueError if the condition is several at
        once."""
        replace_embedding(self.guider.conds[name], torch.zeros(1, 1, 1))  # refuse before any work
        ordinary = functools.cache(lambda: (normal(self.guider.conds[name]), normal_options(self._options)))

        def net(x, sigma, embedding):
            self.calls += 1
            if torch.is_inference_mode_enabled():
                conds, options = self.guider.conds[name], self._options
            else:
                (conds, options), x, sigma = ordinary(), normal(x), normal(torch.as_tensor(sigma))
            return self.guider.predict(x.float(), timestep(sigma, x), [replace_embedding(conds, embedding)], options)[0]

        def scaled(x, sigma, embedding):
            differentiating = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
            if differentiating and self.compute_dtype == torch.float16:
                return keep_from_underflow(net)(x, sigma, embedding)
            return net(x, sigma, embedding)

        return scaled

    def kept_from_underflow(self, parameters: Iterable[Tensor]):
        """`keep_trained_from_underflow` where the network computes in fp16; elsewhere wrap(net) is the net."""
        if self.compute_dtype != torch.float16:
            return contextlib.nullcontext(lambda net: net)
        return keep_trained_from_underflow(parameters)

    @contextlib.contextmanager
    def patched(self, name: str, patch: Callable) -> Iterator[None]:
        """One more transformer patch ("output_block_patch", ...) in every prediction of the duration."""
        kept, self._options = self._options, with_patch(self._options, name, patch)
        try:
            yield
        finally:
            self._options = kept

    @contextlib.contextmanager
    def gradients(self, checkpoint: bool = False) -> Iterator[None]:
        """`grad_mode` for the network and for every control net of the run, beside the MODEL's block patches; a foreign
        attention override steps aside."""
        controls = [m.model for m in getattr(self.guider, "loaded_models", []) if hasattr(m, "model")]
        conds = list(self.guider.conds.values())
        controls += control_networks(conds)
        kept, self._options = self._options, for_gradients(self._options, conds)
        try:
            with grad_mode(self.model, *controls, checkpoint=checkpoint):
                yield
        finally:
            self._options = kept


@functools.cache
def _body_sampler() -> type:
    class Body(get("samplers").Sampler):
        """Hands the engine's sampling run over to a body; what it returns is kept aside, not scaled."""

        def __init__(self, patcher, body, progress):
            self.patcher, self.body, self.progress, self.result = patcher, body, progress, None

        def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, *_):
            options, seed = extra_args["model_options"], extra_args.get("seed") or 0
            self.result = self.body(Run(model_wrap, self.patcher, sigmas, latent_image, options, self.progress, seed))
            return latent_image

    return Body


def sample_with(
    model,
    conds: dict[str, list],
    latent: Tensor,
    sigmas: Tensor,
    body: Callable[[Run], Any],
    *,
    total: int = 1,
    seed: int = 0,
    gradients: bool = False,
) -> Any:
    """Run `body(run)` inside a sampling run of the engine and return what it returns.

    model: MODEL. conds: CONDITIONING by name. latent: LATENT samples [B, C, ...] (not in model space).
    sigmas: SIGMAS [N + 1]. total: network calls for the progress bar. gradients: whether body computes any; of a
    MODEL whose weights are streamed the run then takes one whose weights lie still. The engine loads the model and its
    control nets, prepares conditions and hooks, and cleans up whether body returns, raises or is interrupted."""
    logging.getLogger("nulltext").info("at most %d network calls", total)
    guider = guider_class()(settled(model) if gradients else model)
    guider.inner_set_conds(conds)
    patcher = guider.model_patcher  # which a newer engine exchanges where prompts have hooks
    sampler = _body_sampler()(patcher, body, Progress(total, patcher))
    guider.sample(torch.zeros_like(latent), latent, sampler, sigmas, disable_pbar=True, seed=seed)
    return sampler.result
