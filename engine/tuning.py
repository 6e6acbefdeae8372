"""What a training run asks of ComfyUI: predictions for rows of different captions, texts encoded with gradients, and a
word whose vectors are its own."""

from __future__ import annotations

import contextlib
import copy
import functools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..samplers.record_file import whole_file
from ..samplers.tuning.objective import Net
from ..samplers.tuning.textual_inversion import with_word
from .comfy import embeds_guidance, get, load_models, with_flux_guidance
from .comfy import encode as text_condition
from .gradients import grad_mode, normal
from .guider import filled_like
from .run import Run
from .tuning_set import exchanged, stands_in

#: what makes a condition more than a caption; a prompt's range of steps is named in percent until it is processed
_REGIONAL = ("area", "mask", "control", "gligen", "timestep_start", "timestep_end", "start_percent", "end_percent")
#: CLIP's last ordinary token: ids for new words are taken from here downwards
_LAST_TOKEN = 49405
#: the file that stands for a word which is still being learnt
_STAND_IN = "word"


@contextlib.contextmanager
def training(run: Run, clip=None, checkpoint: bool = False) -> Iterator[None]:
    """The run's network, and a CLIP's text encoders where one is given, ready for backward; both on the device.

    checkpoint: recompute the network's blocks in backward, for less memory. ValueError for quantised weights."""
    if clip is not None:
        load_models([run.patcher, clip.patcher])
    with contextlib.ExitStack() as undo:
        undo.enter_context(run.gradients(checkpoint))
        if clip is not None:
            undo.enter_context(grad_mode(clip.cond_stage_model))
            undo.enter_context(_saved_words_without_gradient(clip))
        yield


@contextlib.contextmanager
def _saved_words_without_gradient(clip) -> Iterator[None]:
    """For saved embeddings in a text ComfyUI of June 2024 encodes with a new table, into which it may write their
    vectors only without gradients; its own table is put back after an error too."""
    method = "set_up_textual_embeddings"

    def frozen(module, own):
        @torch.no_grad()
        def call(*args):
            out = own(*args)
            module.transformer.get_input_embeddings().requires_grad_(False)
            return out

        return call

    with contextlib.ExitStack() as undo:
        for module in clip.cond_stage_model.modules():
            if hasattr(module, method) and method not in vars(module):
                setattr(module, method, frozen(module, getattr(module, method)))
                undo.callback(delattr, module, method)
                undo.callback(module.transformer.set_input_embeddings, module.transformer.get_input_embeddings())
        yield


@dataclass(frozen=True)
class Caption:
    """A condition of the run by name, with another text embedding [1, T, D] and pooled vector [1, P] in it."""

    name: str
    embedding: Tensor
    pooled: Tensor | None = None


def check_caption(name: str, conds: Sequence[dict]) -> None:
    """ValueError unless these are one plain prompt. conds: of a CONDITIONING the dictionaries, or a run's."""
    if len(conds) != 1 or any(conds[0].get(key) is not None for key in _REGIONAL):
        raise ValueError(f"The caption {name!r} must be one plain prompt: not combined, regional or with ControlNet.")


def conditions_of(model, clip, texts: Iterable[str]) -> dict[str, list]:
    """{text: CONDITIONING} for a training. A network that takes its guidance as a number (Flux dev, HunyuanVideo) is
    told 1: its training pictures were made by no guidance, and the guides of kohya and diffusers say so, too (their
    scripts' default, 3.5 as the engine's, is for sampling)."""
    captions = {text: text_condition(clip, text) for text in texts}
    if embeds_guidance(model):
        captions = {text: with_flux_guidance(condition, 1.0) for text, condition in captions.items()}
    return captions


def caption_net(run: Run) -> Net:
    """net(x, sigma, captions) -> D, a caption for each row: a name of the run's conditions, or a `Caption`. control=: a
    control net for all rows.

    All that a condition carries (pooled vector, guidance, the size of x's pictures) goes with its row. Differentiable
    inside `training`.
    ValueError, before any work, for conditions that are combined, regional or have a control net."""
    for name, conds in run.guider.conds.items():
        check_caption(name, conds)
    prepared = functools.cache(run.prepared)

    def row(caption: str | Caption, shape: torch.Size) -> dict:
        cond = prepared(caption if isinstance(caption, str) else caption.name, shape)
        return _on(run.device, cond if isinstance(caption, str) else _replaced(cond, caption))

    def net(x, sigma, captions, control=None):
        joined = _joined([row(c, x.shape[1:]) for c in captions])
        if control is not None:
            joined["control"] = control
        return run.predictions(normal(x), normal(sigma), [[joined]])[0]

    return net


def _replaced(cond: dict, caption: Caption) -> dict:
    parts = dict(cond["model_conds"])
    embedding = filled_like(parts["c_crossattn"].cond, caption.embedding)
    parts["c_crossattn"] = _with(parts["c_crossattn"], embedding)
    if caption.pooled is not None and "y" in parts:  # the pooled vector comes first in every family's y
        old = parts["y"].cond
        pooled = caption.pooled.to(old)
        parts["y"] = _with(parts["y"], torch.cat([pooled, old[:, pooled.shape[1] :]], 1))
    return {**cond, "model_conds": parts, "cross_attn": embedding}


def _on(device: torch.device, cond: dict) -> dict:
    parts = {
        k: _with(p, p.cond.to(device)) if isinstance(p.cond, Tensor) else p for k, p in cond["model_conds"].items()
    }
    return {**cond, "model_conds": parts}


def _with(part, value):
    out = copy.copy(part)
    out.cond = value
    return out


def _joined(rows: list[dict]) -> dict:
    """One processed condition whose batch is these rows."""
    first, *others = (row["model_conds"] for row in rows)
    if any(other.keys() != first.keys() for other in others):
        raise ValueError("The captions carry different extras (sizes, guidance): encode them all in the same way.")
    parts = {}
    for key, part in first.items():
        rest = [other[key] for other in others]
        if not all(part.can_concat(other) for other in rest):
            raise ValueError(f"The captions can't stand in one batch, their {key} differ in size: encode them alike.")
        parts[key] = _with(part, part.concat(rest))
    return {**rows[0], "model_conds": parts}


def encode(clip, tokens: Mapping) -> tuple[Tensor, Tensor | None]:
    """(embedding [1, T, D], pooled [1, P]) of tokens as `clip.tokenize` gives them, as ComfyUI's text node encodes
    them; differentiable inside `training`, since nothing is loaded anew."""
    model = clip.cond_stage_model
    model.reset_clip_options()
    if clip.layer_idx is not None:
        model.set_clip_options({"layer": clip.layer_idx})
    return model.encode_token_weights(tokens)[:2]


def with_trained_text(net: Net, encoded: Callable[[str], tuple[Tensor, Tensor | None]]) -> Net:
    """The net of `caption_net` whose captions are encoded anew at every call, each distinct one once."""

    def encode_all(x, sigma, captions):
        made = {  # in the order of the rows, so that gradients are summed in one order in every process
            name: Caption(name, *(t if t is None else t.to(x.device) for t in encoded(name)))
            for name in dict.fromkeys(captions)
        }
        return net(x, sigma, [made[name] for name in captions])

    return encode_all


# -- a new word


def encoders(clip) -> dict[str, torch.nn.Module]:
    """CLIP's text encoders by their name in embedding files (clip_l, clip_g). ValueError where there is none."""
    found = {name: getattr(clip.cond_stage_model, name, None) for name in ("clip_l", "clip_g", "clip_h")}
    found = {name: encoder for name, encoder in found.items() if encoder is not None}
    if not found:
        raise ValueError("This text encoder is no CLIP, and only CLIP's words can be learnt: use a LoRA instead.")
    return found


def table(encoder: torch.nn.Module) -> torch.nn.Module:
    """The token embedding of one of `encoders`: a module with `weight` [words, width]."""
    return encoder.transformer.get_input_embeddings()


def word_tokens(clip, text: str) -> dict[str, list[int]]:
    """The ids that a text has in the tokenizer of each of `encoders`, by its name; without begin, end and padding."""
    known, tokens, out = encoders(clip), clip.tokenize(text), {}
    for name in known:
        ids = _ids(tokens[name.removeprefix("clip_")][:1])[1:]
        out[name] = ids[: ids.index(49407)] if 49407 in ids else ids
    return out


def _ids(chunks: list[list]) -> list[int]:
    ids = [entry[0] for chunk in chunks for entry in chunk]
    if any(isinstance(token, Tensor) for token in ids):
        raise ValueError("A saved embedding stands in a caption or start word: leave it out while a word is learnt.")
    return ids


def check_saved(clip, word: str) -> None:
    """ValueError for an `embedding:name` of which the text encoder finds no file, or one of another width."""
    if not word.strip().lower().startswith("embedding:"):
        return
    read = {
        (f"clip_{name}", entry[0].shape[-1])
        for name, chunks in clip.tokenize(word.strip()).items()
        for chunk in chunks
        for entry in chunk
        if isinstance(entry[0], Tensor)
    }
    if not read & {(name, table(encoder).weight.shape[1]) for name, encoder in encoders(clip).items()}:
        raise ValueError(
            f"This text encoder finds no file for {word.strip()!r} in models/embeddings that fits it: learn the word "
            "with Train Embedding on this model, or correct its name."
        )


def own_ids(count: int) -> list[int]:
    """Token ids that stand for a new word's vectors while it is learnt: CLIP's last ordinary ones."""
    return [_LAST_TOKEN - i for i in range(count)]


def tokens_with_word(clip, text: str, word: str, own: Sequence[int]) -> dict[str, list]:
    """The tokens of a caption as ComfyUI will read it with a saved embedding where the word stood, `own` in the
    vectors' place. Encoders of other kinds than CLIP read it without the word, as they will then.

    ValueError if the caption lacks the word, has a saved embedding in it, or uses one of those ids."""
    known = encoders(clip)
    if not stands_in(text, word):
        raise ValueError(f"The caption {text!r} does not have the word {word!r} in it: put it where the subject is.")
    for name, chunks in clip.tokenize(text).items():
        if set(_ids(chunks)) & set(own) and f"clip_{name}" in known:
            raise ValueError(f"The caption {text!r} uses a token that stands for the new word: say it otherwise.")
    read = _read_with_saved(clip, exchanged(text, word, f"embedding:{_STAND_IN}"), len(own))
    return {
        name: [_with_own(chunk, own) if f"clip_{name}" in known else _ignoring(clip, name, chunk) for chunk in chunks]
        for name, chunks in read.items()
    }


def _read_with_saved(clip, text: str, count: int) -> dict[str, list]:
    """A text's tokens while `embedding:_STAND_IN` is a file of so many vectors, the jth of them j throughout."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, contextlib.ExitStack() as undo:
        rows = torch.arange(count)[:, None]
        vectors = {name: rows.expand(-1, table(encoder).weight.shape[1]) for name, encoder in encoders(clip).items()}
        save_word(vectors, Path(folder) / f"{_STAND_IN}.safetensors")
        for part in [p for p in vars(clip.tokenizer).values() if hasattr(p, "embedding_directory")]:
            undo.callback(setattr, part, "embedding_directory", part.embedding_directory)
            part.embedding_directory = folder
        tokens = copy.deepcopy(clip.tokenize(text))  # on Windows no file can be removed while a tensor is a part of it
    if not any(isinstance(entry[0], Tensor) for chunks in tokens.values() for chunk in chunks for entry in chunk):
        raise ValueError("This text encoder's tokenizer reads no saved embeddings, so it learns no word: use a LoRA.")
    return tokens


def _with_own(chunk: list, own: Sequence[int]) -> list:
    return [(own[int(token[0])] if isinstance(token, Tensor) else token, weight) for token, weight in chunk]


def _ignoring(clip, name: str, chunk: list) -> list:
    """As ComfyUI encodes a chunk with vectors of a width that is not the encoder's: without them, padded to the same
    length."""
    pad = getattr(getattr(clip.cond_stage_model, name, None), "special_tokens", {}).get("pad", 0)
    ids, weights = [token for token, _ in chunk if not isinstance(token, Tensor)], [weight for _, weight in chunk]
    return list(zip(ids + [pad] * (len(chunk) - len(ids)), weights))


@contextlib.contextmanager
def word_attached(clip, own: Sequence[int], vectors: Mapping[str, Tensor]) -> Iterator[None]:
    """For the duration, own[j] reads as vectors[encoder][j] ([k, width] each); no other id is touched and no hook
    stays. ValueError, before anything is attached, for a width that is not the encoder's."""
    known = encoders(clip)
    for name, value in vectors.items():
        width = table(known[name]).weight.shape[1] if name in known else None
        if value.ndim != 2 or value.shape[1] != width:
            raise ValueError(
                f"The word's vectors for {name} have shape {list(value.shape)}, and this model's text encoder has "
                f"width {width}: learn the word with this model's CLIP."
            )
    with contextlib.ExitStack() as undo:
        for name, value in vectors.items():
            hook = lambda _, inputs, output, value=value: with_word(output, inputs[0], own, value)
            undo.callback(table(known[name]).register_forward_hook(hook).remove)
        yield


def save_word(vectors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] = {}) -> None:  # noqa: B006
    """One safetensors file that core reads as `embedding:<name>`; a file of that name is replaced whole."""
    tensors = {name: value.detach().float().cpu().contiguous().clone() for name, value in vectors.items()}
    with whole_file(path) as part:
        get("utils").save_torch_file(tensors, str(part), metadata=dict(metadata) or None)
