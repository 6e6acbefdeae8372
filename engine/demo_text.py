"""The demo model's text side: CLIP's tokenizer and encoder over a small vocabulary that the checkpoint itself names.

The file's `token_ids` [rows] says which BPE token stands in each row of the embedding table. Row 0 is the unknown word:
every token that no row names is read from it. Nothing is folded by a remainder: no two words share a row by accident.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor, nn

from . import comfy

BOS, EOS = 49406, 49407
CONFIG = {
    "hidden_act": "quick_gelu",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 77,
    "eos_token_id": EOS,
}


class VocabularyEmbedding(nn.Embedding):
    """BPE token ids [...] -> vectors [..., width], by the rows that `token_ids` [rows] names; -1: no token."""

    def __init__(self, token_ids: Tensor, width: int, dtype=None, device=None):
        super().__init__(len(token_ids), width, dtype=dtype, device=device)
        self.register_buffer("token_ids", token_ids, persistent=False)

    def rows(self, ids: Tensor) -> Tensor:
        """The row of each token id; 0, the unknown word, where no row names it."""
        match = ids[..., None] == self.token_ids.to(ids.device)
        return (match * torch.arange(len(self.token_ids), device=ids.device)).sum(-1)

    def forward(self, ids: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        # upstream says which dtype it wants; the table is small enough to cast whole, which fp8 storage needs
        return nn.functional.embedding(self.rows(ids), self.weight.to(out_dtype or self.weight.dtype))


class WithVectors(nn.Module):
    """An embedding where the negative ids -1, -2, ... are vectors [N, width] of their own (textual inversion).

    Negative, because the pip engine takes the largest id of a prompt for its end token."""

    def __init__(self, table: VocabularyEmbedding, vectors: Tensor):
        super().__init__()
        self.table, self.vectors = table, vectors

    @property
    def weight(self) -> Tensor:
        return self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        own = self.vectors[(-1 - ids).clamp(min=0)]
        return torch.where((ids < 0)[..., None], own, self.table(ids.clamp(min=0)))


class _TextualInversion:
    """For the pip engine, whose way to append vectors needs the full vocabulary. Upstream never calls it."""

    def set_up_textual_embeddings(self, tokens: list[list], current_embeds: VocabularyEmbedding) -> list[list[int]]:
        vectors, out = [], []
        width = current_embeds.weight.shape[1]
        for prompt in tokens:
            ids = []
            for token in prompt:
                if isinstance(token, int):
                    ids.append(token)
                elif token.shape[0] == width:
                    vectors.append(token)
                    ids.append(-len(vectors))
                else:
                    logging.warning(
                        "An embedding of width %d is left out: this text encoder's is %d.", token.shape[0], width
                    )
            out.append(ids + [self.special_tokens["pad"]] * (len(prompt) - len(ids)))
        if vectors:
            own = torch.stack(vectors).to(current_embeds.weight)
            self.transformer.set_input_embeddings(WithVectors(current_embeds, own))
        return out


class _NamesUnknownWords:
    """A tokenizer that says, once per word and checkpoint, which words the demo model doesn't know."""

    known: frozenset[int]
    reported: set[str]

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs):
        chunks = super().tokenize_with_weights(text, return_word_ids, **kwargs)
        new = [word for word in self._unknown(chunks) if word not in self.reported]
        if new:
            self.reported.update(new)
            logging.warning(
                "The demo model reads these words as one unknown word, they are not in its vocabulary: %s.",
                ", ".join(new),
            )
        return chunks

    def _unknown(self, chunks) -> list[str]:
        words, pieces = {}, []
        for token in (entry[0] for chunk in chunks for entry in chunk):
            if not isinstance(token, int) or token in (self.start_token, self.end_token):
                pieces = []
                continue
            pieces.append(token)
            if self.inv_vocab[token].endswith("</w>"):  # the last piece of a word
                if not self.known.issuperset(pieces):
                    words[self.tokenizer.decode(pieces).strip()] = None
                pieces = []
        return list(words)


@functools.cache
def _classes():
    """(tokenizer, clip model) on this engine's own classes; built once, ComfyUI being imported lazily."""
    sd1, clip_model = comfy.get("sd1_clip"), comfy.get("clip_model")

    class TextModel(clip_model.CLIPTextModel):
        def __init__(self, config, dtype, device, operations):
            with torch.no_grad():  # the pip engine fills its projection in place
                super().__init__(config, dtype, device, operations)
                self.text_projection.weight.copy_(torch.eye(config["hidden_size"]))  # upstream leaves it to the file
            embeddings, token_ids = self.text_model.embeddings, config["token_ids"].to(device)
            old = embeddings.token_embedding.weight
            embeddings.register_buffer("token_ids", token_ids)  # saved with the weights, as it came
            embeddings.token_embedding = VocabularyEmbedding(token_ids, config["hidden_size"], old.dtype, device)

    class ClipModel(_TextualInversion, sd1.SDClipModel):
        def __init__(self, device="cpu", dtype=None, token_ids=None, **kwargs):
            kwargs.pop("textmodel_json_config", None)
            config = {**CONFIG, "vocab_size": len(token_ids), "token_ids": token_ids}
            super().__init__(
                device=device,
                dtype=dtype,
                textmodel_json_config=config,
                model_class=TextModel,
                return_projected_pooled=False,
                **kwargs,
            )

    class Clip(sd1.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, **kwargs):
            super().__init__(device=device, dtype=dtype, clip_model=ClipModel, **kwargs)

    class WordTokenizer(_NamesUnknownWords, sd1.SDTokenizer):
        def __init__(self, known=frozenset(), reported=None, **kwargs):
            self.known, self.reported = known, set() if reported is None else reported
            super().__init__(embedding_size=CONFIG["hidden_size"], **kwargs)

    class Tokenizer(sd1.SD1Tokenizer):
        def __init__(self, known, **kwargs):
            super().__init__(tokenizer=functools.partial(WordTokenizer, known=known, reported=set()), **kwargs)

    return Tokenizer, Clip


def text_target(token_ids: Tensor):
    """The ClipTarget of a checkpoint with this vocabulary, token_ids [rows]. ValueError if it can't be one."""
    ids = token_ids.flatten().to(torch.int32)
    named = ids[ids >= 0].tolist()
    if len(set(named)) != len(named) or ids[0] != -1 or not {BOS, EOS} <= set(named):
        raise ValueError(
            "The checkpoint's token_ids must name every token once, the begin and end tokens among them, "
            "and leave row 0 to the unknown word: the file is damaged or made by another version."
        )
    tokenizer, clip = _classes()
    target = comfy.get("supported_models_base").ClipTarget(functools.partial(tokenizer, known=frozenset(named)), clip)
    target.params["token_ids"] = ids
    return target
