"""GUIDER that mixes the predictions of one MODEL with and without several LoRAs (DiffusionCLIP, 2110.02711).

The LoRAs are output hooks (weights.py) that are on for their own prediction alone, so that nothing is loaded twice and
both engines work alike.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..samplers.tuning.lora import LayerChange, adaptable
from ..samplers.tuning.mixing import Share, check_shares, degrees, mixed
from ..samplers.tuning.whole import unchanged, unshifted
from .comfy import compute_dtype
from .guider import guider_class
from .lora_names import of_text, standard
from .weights import attached, check_base, from_lora_model, whole_layers, wrong_shape


def _whole(model: Mapping[str, Tensor], name: str, layer: nn.Module) -> LayerChange:
    """The change of a layer's whole weights, or of its bias alone; a bias that the LORA_MODEL lacks is 0."""
    change = unchanged(layer, name=name) if f"{name}.diff" in model else unshifted(layer)
    with torch.no_grad():
        for part, value in change.stored().items():
            given = model.get(f"{name}.{part}", torch.zeros(()))
            if given.shape not in ((), value.shape):
                raise wrong_shape(name)
            value.copy_(given)
    return change


def changes_of(model: Mapping[str, Tensor], where: Mapping[str, nn.Module]) -> list[dict[str, LayerChange]]:
    """What a LORA_MODEL with the standard names does to those layers: low-rank factors, and changes of whole weights
    and biases. A layer may have both.

    ValueError like `from_lora_model`."""
    whole = {
        name: _whole(model, name, layer)
        for name, layer in where.items()
        if f"{name}.diff" in model or f"{name}.diff_b" in model and layer.bias is not None
    }
    adapted = {name: layer for name, layer in where.items() if adaptable(layer)}
    if whole and not any(f"{name}.lora_up.weight" in model for name in adapted):
        return [whole]
    return [from_lora_model(model, adapted), *([whole] if whole else [])]


def changes_to(model, tensors: Mapping[str, Tensor]) -> tuple[list[dict[str, LayerChange]], list[str]]:
    """(A LORA_MODEL's changes to the MODEL's network, whatever tool's names it has; the sentences of `check_base`).
    Parts of text encoders are left aside.

    ValueError if it belongs to another model, holds none of its layers, or holds a part that is no low-rank factor and
    no change of whole weights (DoRA, LoHa, LoKr): those would have to change the weights themselves."""
    notices = check_base(getattr(tensors, "metadata", {}), model)
    found = standard(model, tensors)
    changes = changes_of(found, whole_layers(model))
    taken = {f"{name}.{part}" for each in changes for name, change in each.items() for part in change.stored()}
    left = [key for key, name in zip(tensors, found) if name not in taken and not of_text(key)]
    if left:
        raise ValueError(
            f"The LoRA's {left[0][:80]} ({len(left)} such) is no low-rank factor or weight change of a layer that is "
            "known here, so it can't be switched on and off: lay the LoRA on the model with Load LoRA instead."
        )
    return changes, notices


@contextlib.contextmanager
def laid_on(model, changes: Sequence[Mapping[str, LayerChange]], strength: Callable[[], float]) -> Iterator[None]:
    """Add the changes to the outputs of the MODEL's layers for the duration, at a strength that is asked anew at each
    call. They lie on its device, in the dtype it computes in, only so long."""
    where = whole_layers(model) if changes else {}
    there = model.load_device, compute_dtype(model.model)
    with contextlib.ExitStack() as hooks:
        for part in changes:
            moved = {name: change.to(*there) for name, change in part.items()}
            hooks.enter_context(attached(where, moved, strength))
        yield


@functools.cache
def _class() -> type:
    class MixGuider(guider_class()):
        def prepare(self, tuned: Sequence[tuple[list[dict[str, LayerChange]], Share]], cfg: float):
            self.tuned, self._on = [changes for changes, _ in tuned], 0
            self.shares = degrees(*(share for _, share in tuned))
            check_shares(self.shares)
            self.set_cfg(cfg)

        def sample(self, *args, **kwargs):
            with contextlib.ExitStack() as hooks:
                for number, changes in enumerate(self.tuned, 1):
                    on = lambda number=number: 1.0 if self._on == number else 0.0  # noqa: E731
                    hooks.enter_context(laid_on(self.model_patcher, changes, on))
                return super().sample(*args, **kwargs)

        def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 (the engine's signature)
            def model(number):
                def ask(x, sigma):
                    self._on = number
                    negative = self.conds.get("negative")
                    return self.guided(x, sigma, self.conds["positive"], negative, self.cfg, model_options, seed)

                return ask

            return mixed([model(n) for n in range(len(self.tuned) + 1)], self.shares)(x, timestep)

    return MixGuider


def mix_guider(model, tuned: Sequence[tuple[Mapping[str, Tensor], Share]], positive, negative, cfg: float):
    """GUIDER: the MODEL's prediction and those with each LORA_MODEL alone, in the shares of `degrees`.

    One to len(tuned) + 1 predictions a call; LoRAs of weight 0 cost nothing. At cfg 1 the negative is not asked. Its
    `notices` are sentences on what is not as it was in the LoRAs' training."""
    guider = _class()(model)
    guider.inner_set_conds({"positive": positive, **({} if negative is None else {"negative": negative})})
    found = [changes_to(model, tensors) for tensors, _ in tuned]
    guider.prepare([(changes, share) for (changes, _), (_, share) in zip(found, tuned)], cfg)
    guider.notices = list(dict.fromkeys(notice for _, notices in found for notice in notices))
    return guider
