"""Published sentence-embedding models: folders of Hugging Face files to an encoder and its parameters.

Read are folders of the sentence-transformers library (arXiv:1908.10084) around a BERT: `config.json`,
`model.safetensors`, and where they are there `modules.json`, the pooling's `config.json` and
`sentence_bert_config.json`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Float

from rewardjax.data.batching import pad
from rewardjax.data.hf_tokenizer import HFTokenizer
from rewardjax.data.jsonl import read_json
from rewardjax.data.tokenizers import Tokenizer
from rewardjax.models.encoder import EncoderConfig, Pooling, SentenceEncoder
from rewardjax.models.safetensors_io import check_tensors, open_tensors

SIZES = {
    "vocab": "vocab_size",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "context": "max_position_embeddings",
    "types": "type_vocab_size",
    "norm_epsilon": "layer_norm_eps",
}
"""Fields of `EncoderConfig` and what `config.json` calls them."""

MODULES = {
    "tokens": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
"""Modules of `Encoder` and what a BERT checkpoint calls them (in a block: after its number)."""

# In every checkpoint, and no part of an embedding: a count, and the layer of BERT's own first task.
UNUSED = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")


def tensor_name(path: tuple[str, ...]) -> str:
    """The checkpoint's name of the parameter at `path` in an `Encoder`'s parameters."""
    if path[0].startswith("block_"):
        start, path = f"encoder.layer.{path[0].removeprefix('block_')}.", path[1:]
    else:
        start = ""
    return f"{start}{MODULES[path[0]]}.{'bias' if path[-1] == 'bias' else 'weight'}"


def read_config(folder: str | Path) -> EncoderConfig:
    """The encoder that a folder's JSON files describe; mean pooling and unit length by default.

    Raises:
      FileNotFoundError: there is no `config.json`.
      ValueError: a field is missing, or asks for what `Encoder` or its pooling cannot do.
    """
    folder = Path(folder)
    path = folder / "config.json"
    fields = read_json(path)
    lacking = [name for name in ("model_type", *SIZES.values()) if name not in fields]
    if lacking:
        raise ValueError(f"{path}: expected the fields {lacking}, found none of that name")
    for name, expected in [
        ("model_type", "bert"),
        ("hidden_act", "gelu"),
        ("position_embedding_type", "absolute"),
    ]:
        if fields.get(name, expected) != expected:
            raise ValueError(f"{path}: {name}: expected {expected!r}, found {fields[name]!r}")
    pooling, unit_length = _read_modules(folder)
    sizes: dict[str, Any] = {field: fields[name] for field, name in SIZES.items()}
    return EncoderConfig(**sizes, pooling=pooling, unit_length=unit_length)


def load_sentence_encoder(folder: str | Path) -> tuple[SentenceEncoder, Any]:
    """The encoder of a folder and its parameters: a pytree of float32 arrays.

    Raises:
      FileNotFoundError: `config.json` or the file of tensors is not there.
      ValueError: `config.json` asks for another architecture, or the checkpoint lacks tensors, has
        others, or has them in another shape: these are named.
      ImportError: safetensors is not installed.
    """
    found = {name: x for name, x in open_tensors(folder).items() if name not in UNUSED}
    model = SentenceEncoder(read_config(folder))
    places = traverse_util.flatten_dict(jax.eval_shape(model.init, jax.random.key(0)))
    # A kernel is the transpose of what PyTorch calls a layer's weight.
    turned = {place: place[-1] == "kernel" for place in places}
    expected = {
        tensor_name(place): x.shape[::-1] if turned[place] else x.shape
        for place, x in places.items()
    }
    check_tensors(folder, found, expected)
    arrays = {}
    for place in places:
        tensor = found[tensor_name(place)][:]
        arrays[place] = jax.numpy.asarray(tensor.T if turned[place] else tensor, "float32")
    return model, traverse_util.unflatten_dict(arrays)


@dataclasses.dataclass(frozen=True)
class TextEmbedder:
    """Texts to vectors: tokenizer, encoder and parameters in one.

    Attributes:
      max_length: the most tokens of a text, markers included, that are read.
    """

    model: SentenceEncoder
    params: Any
    tokenizer: Tokenizer
    max_length: int

    @classmethod
    def load(cls, folder: str | Path) -> "TextEmbedder":
        """Everything from one folder of a published model.

        Raises:
          FileNotFoundError, ValueError, ImportError: as `load_sentence_encoder` and
            `HFTokenizer.load`.
        """
        model, params = load_sentence_encoder(folder)
        path = Path(folder) / "sentence_bert_config.json"
        longest = read_json(path).get("max_seq_length") if path.is_file() else None
        length = min(longest or model.config.context, model.config.context)
        return cls(model, params, HFTokenizer.load(folder), length)

    @functools.cached_property
    def _embed(self):
        return jax.jit(self.model.embed)

    def __call__(
        self, texts: Sequence[str], batch_size: int = 32
    ) -> Float[np.ndarray, "texts width"]:
        """One float32 vector a text; longer texts are cut at `max_length` tokens.

        Texts of like length share a batch, whose length is a power of two: few shapes compile.
        """
        tokenizer = self.tokenizer
        rows = [
            [tokenizer.bos_id, *tokenizer.encode(text)[: self.max_length - 2], tokenizer.eos_id]
            for text in texts
        ]
        found = np.zeros((len(rows), self.model.config.width), np.float32)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            length = max(16, 1 << (len(rows[chosen[-1]]) - 1).bit_length())
            # Empty rows fill the last batch up.
            batch = [rows[index] for index in chosen] + [[]] * (batch_size - len(chosen))
            tokens, valid = pad(batch, min(length, self.max_length), tokenizer.pad_id)
            found[chosen] = self._embed(self.params, tokens, valid)[: len(chosen)]
        return found


def _read_modules(folder: Path) -> tuple[Pooling, bool]:
    path = folder / "modules.json"
    if not path.is_file():
        return "mean", True
    found = read_json(path, list)
    modules = {module["type"].rpartition(".")[2]: module["path"] for module in found}
    for kind in modules:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise ValueError(
                f"{path}: type: expected Transformer, Pooling or Normalize, found {kind!r}"
            )
    pooling: Pooling = "mean"
    if "Pooling" in modules:
        pooling = _read_pooling(folder / modules["Pooling"] / "config.json")
    return pooling, "Normalize" in modules


def _read_pooling(path: Path) -> Pooling:
    fields = read_json(path)
    named = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    modes = [
        named.get(name, name)
        for name, on in fields.items()
        if name.startswith("pooling_mode_") and on
    ]
    modes = modes or [fields.get("pooling_mode")]
    if modes == ["mean"]:
        return "mean"
    if modes == ["cls"]:
        return "first"
    raise ValueError(f"{path}: pooling_mode: expected one of mean and cls, found {modes}")
