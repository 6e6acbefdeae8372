"""Captions on their way into a network that is trained: encoded once, or anew at every step where the encoder learns.

A new word (textual inversion) lives outside the encoder: its vectors replace the output of the token table where the
word's ids stand, so no row of the table is ever touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..samplers.tuning.textual_inversion import rms, start_vectors, with_word
from .comfy import encode, load_models
from .gradients import grad_mode, normal

_LAST_ORDINARY = 49405  # CLIP's begin and end tokens are the two largest ids


@dataclass(frozen=True)
class Text:
    """One encoded caption: embedding [1, T, D], pooled [1, P] or None."""

    embedding: Tensor
    pooled: Tensor | None = None


def of_conditioning(conditioning: list) -> Text:
    """The text in a CONDITIONING, as ordinary fp32 tensors. ValueError for several prompts at once or none."""
    if len(conditioning) != 1:
        raise ValueError("Wire one plain prompt: not combined with another, not regional.")
    embedding, extra = conditioning[0]
    with torch.inference_mode(False):
        pooled = extra.get("pooled_output")
        return Text(normal(embedding).float(), None if pooled is None else normal(pooled).float())


def joined(texts: Sequence[Text]) -> tuple[Tensor, Tensor | None]:
    """Rows for a network: embeddings [B, T, D], pooled [B, P] or None. Shorter texts are repeated whole, which
    attention doesn't notice (the engine's own way)."""
    longest = max(t.embedding.shape[1] for t in texts)
    rows = []
    for text in texts:
        times, rest = divmod(longest, text.embedding.shape[1])
        if rest:
            raise ValueError(
                "The captions of one batch have lengths that don't divide one another: shorten the longest."
            )
        rows.append(text.embedding.repeat(1, times, 1))
    pooled = None if texts[0].pooled is None else torch.cat([t.pooled for t in texts])
    return torch.cat(rows), pooled


def encoded(clip, texts: Iterable[str]) -> dict[str, Text]:
    """Each different text once, by a text encoder that stays as it is."""
    return {text: of_conditioning(encode(clip, text)) for text in dict.fromkeys(texts)}


def encoders(clip) -> dict[str, nn.Module]:
    """The CLIP encoders by the name that embedding files give them ("clip_l", ...). ValueError if there are others."""
    names = list(clip.tokenize(""))
    found = {f"clip_{name}": getattr(clip.cond_stage_model, f"clip_{name}", None) for name in names}
    other = [name for name, module in zip(names, found.values()) if not hasattr(module, "transformer")]
    if other:
        raise ValueError(
            f"A new word can be taught to CLIP text encoders only, and this model also reads with {', '.join(other)}: "
            "use a Stable Diffusion 1, 2 or XL model."
        )
    return found


def _ids(chunk: Sequence[tuple]) -> list:
    return [entry[0] for entry in chunk]


class NewWord:
    """A word with vectors of its own in every CLIP encoder of a CLIP.

    vectors: name of the encoder -> [k, width], trainable, begun at `start`'s rows. rms: size of each table's numbers.
    ValueError for a word of no token or more than one window, other encoders than CLIP, or an unreadable start."""

    def __init__(self, clip, word: str, start: str, count: int):
        self.clip, self.word, self.count = clip, word.strip(), count
        self.modules = encoders(clip)
        load_models([clip.patcher])
        self.vectors, self.rms = {}, {}
        for name, module in self.modules.items():
            table, device = self._table(module), clip.patcher.load_device
            rows = self._inner(start, name)
            if not rows:
                raise ValueError("The start word is empty: name something near to the new word, such as its class.")
            with torch.no_grad():
                near = normal(table(torch.tensor([rows], device=device))[0].float().cpu())
            self.vectors[name] = start_vectors(near, range(len(rows)), count)
            self.rms[name] = rms(table.weight)
        self.own = {name: self._inner(self.word, name) for name in self.modules}
        if not all(self.own.values()):
            raise ValueError("The new word is empty: choose one that stands in the captions.")

    @staticmethod
    def _table(module: nn.Module) -> nn.Module:
        return module.transformer.get_input_embeddings()

    def _inner(self, text: str, name: str) -> list[int]:
        """The ids of a text between the begin and the end token."""
        ids = _ids(self.clip.tokenize(text)[name.removeprefix("clip_")][0])
        end = next((i for i, t in enumerate(ids[1:], 1) if isinstance(t, int) and t > _LAST_ORDINARY), len(ids))
        return ids[1:end]

    def tokens(self, text: str) -> tuple[dict, dict[str, list[int]]]:
        """The tokens of a text with the word's own ids in place of the word, and those ids by encoder.

        ValueError if the word is not in the text, or the text grows too long by it."""
        tokens, used = self.clip.tokenize(text), {}
        for name, word in self.own.items():
            key, found = name.removeprefix("clip_"), 0
            taken = {t for chunk in tokens[key] for t in _ids(chunk) if isinstance(t, int)}
            free = (i for i in range(_LAST_ORDINARY, 0, -1) if i not in taken)
            used[name] = [next(free) for _ in range(self.count)]
            chunks = []
            for chunk in tokens[key]:
                new, at = [], 0
                while at < len(chunk):
                    if _ids(chunk[at : at + len(word)]) == word:
                        new += [(own, chunk[at][1]) for own in used[name]]
                        at, found = at + len(word), found + 1
                    else:
                        new.append(chunk[at])
                        at += 1
                while len(new) > len(chunk) and _ids(new[-2:]) == [new[-1][0]] * 2:
                    new.pop()  # padding, one end token stays
                if len(new) > len(chunk):
                    raise ValueError(f"The caption {text!r} is too long for {self.count} vectors: shorten it.")
                chunks.append(new + [chunk[-1]] * (len(chunk) - len(new)))
            tokens[key] = chunks
            if not found:
                raise ValueError(f"The caption {text!r} does not hold the word {self.word!r}: write it into it.")
        return tokens, used

    def encode(self, text: str) -> Text:
        """The text with the word's vectors of now; differentiable in them inside `encoder_gradients`."""
        tokens, used = self.tokens(text)
        with contextlib.ExitStack() as hooks:
            for name, module in self.modules.items():
                hook = self._hook(used[name], self.vectors[name])
                hooks.callback(self._table(module).register_forward_hook(hook).remove)
            embedding, pooled = self.clip.encode_from_tokens(tokens, return_pooled=True)
        return Text(embedding.float(), None if pooled is None else pooled.float())

    @staticmethod
    def _hook(own: list[int], vectors: Tensor):
        return lambda module, args, output: with_word(output, args[0], own, vectors)


@contextlib.contextmanager
def encoder_gradients(clip) -> Iterator[None]:
    """`grad_mode` for the text encoder of a CLIP that is loaded."""
    with grad_mode(clip.cond_stage_model):
        yield


def embedding_file(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ComfyUI's `embedding:name` reads: [k, width] by the encoder's name."""
    return {name: value.detach().float().cpu().contiguous().clone() for name, value in vectors.items()}
