"""GUIDER that mixes the predictions of one MODEL with and without several LoRAs (DiffusionCLIP, 2110.02711).

The LoRAs are output hooks (weights.py) that are on for their own prediction alone, so that nothing is loaded twice and
both engines work alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..samplers.tuning.diffusion_clip import Share, check_shares, degrees, mixed
from ..samplers.tuning.lora import LowRank
from .comfy import get
from .guider import guider_class
from .weights import attached, check_base, from_lora_model, layers


def factors_of(model, tensors: Mapping[str, Tensor]) -> dict[str, LowRank]:
    """A LORA_MODEL's factors on the MODEL's device. ValueError if it belongs to another model or holds none of its
    layers."""
    check_base(getattr(tensors, "metadata", {}), model)
    found = from_lora_model(tensors, layers(model, "all linear and conv"))
    device = model.load_device
    return {
        name: dataclasses.replace(f, down=f.down.detach().to(device), up=f.up.detach().to(device))
        for name, f in found.items()
    }


@functools.cache
def _class() -> type:
    samplers = get("samplers")

    class MixGuider(guider_class()):
        def prepare(self, tuned: Sequence[tuple[dict[str, LowRank], Share]], cfg: float):
            self.tuned, self._on = [factors for factors, _ in tuned], 0
            self.shares = degrees(*(share for _, share in tuned))
            check_shares(self.shares)
            self.set_cfg(cfg)

        def sample(self, *args, **kwargs):
            where = layers(self.model_patcher, "all linear and conv")
            with contextlib.ExitStack() as hooks:
                for number, factors in enumerate(self.tuned, 1):
                    on = lambda number=number: 1.0 if self._on == number else 0.0  # noqa: E731
                    hooks.enter_context(attached(where, factors, on))
                return super().sample(*args, **kwargs)

        def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 (the engine's signature)
            def model(number):
                def ask(x, sigma):
                    self._on = number
                    return samplers.sampling_function(
                        self.inner_model,
                        x,
                        sigma,
                        self.conds.get("negative"),
                        self.conds["positive"],
                        self.cfg,
                        model_options=model_options,
                        seed=seed,
                    )

                return ask

            return mixed([model(n) for n in range(len(self.tuned) + 1)], self.shares)(x, timestep)

    return MixGuider


def mix_guider(model, tuned: Sequence[tuple[Mapping[str, Tensor], Share]], positive, negative, cfg: float):
    """GUIDER: the MODEL's prediction and those with each LORA_MODEL alone, in the shares of `degrees`.

    One to len(tuned) + 1 predictions a call; LoRAs of weight 0 cost nothing. At cfg 1 the negative is not asked."""
    guider = _class()(model)
    guider.inner_set_conds({"positive": positive, **({} if negative is None else {"negative": negative})})
    guider.prepare([(factors_of(model, tensors), share) for tensors, share in tuned], cfg)
    return guider
