"""The directional CLIP loss (Gal et al. 2108.00946), as DiffusionCLIP (Kim et al. 2110.02711) and Asyrp (Kwon et al.
2210.10960) use it: the picture's embedding shall move the way the words move.

    dT = E_T(target) - E_T(source)      dI = E_I(edited) - E_I(source picture)      L_dir = 1 - cos(dI, dT)
    L  = w_clip L_clip + w_1 |edited - kept|_1 + w_id (1 - cos(E_id(edited), E_id(kept)))

L_clip is L_dir as both papers print it, or -log((2 - L_dir)/2) = -log((1 + cos)/2) as both codes compute it. Embeddings
have length 1 before they are subtracted; dT is the mean over templates ("a photo of {}", ...), at length 1 again.
Departures: the templates are the caller's, the authors' code has the ImageNet list; pictures are in 0..1 here and in
-1..1 there, so that |.|_1 is taken twice; the identity loss takes any tower, not a face network; every loss is per
sample and their mean is the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

FORMS = ("log", "printed")
_RANGE = 2.0  # of the authors' pictures, -1..1, against 0..1


def _unit(embedding: Tensor) -> Tensor:
    return F.normalize(embedding.float(), dim=-1)


def phrases(text: str, templates: Sequence[str]) -> list[str]:
    """The text in every template. ValueError for a template without the place {} of the text."""
    wrong = [t for t in templates if "{}" not in t]
    if wrong or not templates:
        raise ValueError(
            f"A template says with {{}} where the text goes; got {wrong[0] if wrong else 'no template'!r}."
        )
    return [t.replace("{}", text) for t in templates]


def text_direction(
    embed_text: Callable[[list[str]], Tensor], source: str, target: str, templates: Sequence[str] = ("{}",)
) -> Tensor:
    """dT [D] of length 1. ValueError where both texts mean the same to the tower."""
    there, here = (_unit(embed_text(phrases(text, templates))) for text in (target, source))
    change = (there - here).mean(0)
    if float(change.norm()) < 1e-4:
        raise ValueError(
            f"{source!r} and {target!r} are the same to the image-text model: choose words that it tells apart."
        )
    return _unit(change)


def text_cosine(embed_text: Callable[[list[str]], Tensor], source: str, target: str) -> float:
    """cos(E_T(source), E_T(target)), by which Asyrp's authors scale their L1 and their level t_edit."""
    a, b = _unit(embed_text([source, target]))
    return float(a @ b)


def agreement(edited: Tensor, source: Tensor, direction: Tensor) -> Tensor:
    """cos(dI, dT) [B] of embeddings [B, D] and a direction [D]."""
    return F.cosine_similarity(_unit(edited) - _unit(source), direction.to(edited)[None], dim=-1)


def directional(cosine: Tensor, form: str = "log") -> Tensor:
    """L_clip of cos(dI, dT), in one of `FORMS`; finite down to cos -1."""
    if form not in FORMS:
        raise ValueError(f"The directional loss {form!r} is not one of {', '.join(FORMS)}.")
    return 1 - cosine if form == "printed" else -((1 + cosine) / 2).clamp(min=1e-6).log()


@dataclass(frozen=True)
class EditLoss:
    """The loss of edited pictures. embed: pictures [B, 3, H, W] in 0..1 -> [B, D]; direction: dT [D].

    clip, l1, identity >= 0: the weights; identity_embed: the tower of the identity loss, `embed` where it is None."""

    embed: Callable[[Tensor], Tensor]
    direction: Tensor
    clip: float = 3.0
    l1: float = 0.0
    identity: float = 0.0
    form: str = "log"
    identity_embed: Callable[[Tensor], Tensor] | None = None
    _known: WeakTensorKeyDictionary = field(
        default_factory=WeakTensorKeyDictionary, init=False, repr=False, compare=False
    )

    def __post_init__(self):
        if min(self.clip, self.l1, self.identity) < 0 or self.clip == self.l1 == self.identity == 0:
            raise ValueError("The weights of the losses can't be below 0, nor all of them 0.")
        directional(torch.zeros(1), self.form)

    def __call__(self, edited: Tensor, source: Tensor, kept: Tensor | None = None) -> dict[str, Tensor]:
        """{"loss", "clip", "cosine", and "l1", "identity" where they weigh}, 0-d each.

        edited, source [B, 3, H, W]; kept: what L1 and identity hold on to, the source where it is None. Neither may be
        written to later: what comes again is embedded once."""
        kept = source if kept is None else kept
        cosine = agreement(self.embed(edited), self._constant(self.embed, source), self.direction)
        parts = {"clip": directional(cosine, self.form).mean()}
        loss = self.clip * parts["clip"]
        if self.l1:
            parts["l1"] = _RANGE * (edited - kept).abs().mean()
            loss = loss + self.l1 * parts["l1"]
        if self.identity:
            embed = self.identity_embed or self.embed
            held = self._constant(embed, kept)
            parts["identity"] = (1 - F.cosine_similarity(embed(edited), held, dim=-1)).mean()
            loss = loss + self.identity * parts["identity"]
        return {"loss": loss, **parts, "cosine": cosine.mean().detach()}

    def _constant(self, embed: Callable[[Tensor], Tensor], picture: Tensor) -> Tensor:
        """The picture's embedding, without a gradient."""
        known = self._known.setdefault(picture, {})
        if embed not in known:
            with torch.no_grad():
                known[embed] = embed(picture)
        return known[embed]
