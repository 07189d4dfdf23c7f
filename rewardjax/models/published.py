"""Published decoders: Hugging Face checkpoints (Llama, Mistral, Qwen, Gemma) in and out.

A checkpoint is a folder with `config.json` and safetensors files. Both directions go tensor by
tensor: a device gets its slices straight from the files, and no host holds a copy of the model.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from rewardjax.models.language_model import LanguageModel
from rewardjax.models.published_configs import read_config, to_config_json
from rewardjax.models.safetensors_io import check_tensors, open_tensors, write_tensors
from rewardjax.models.transformer import TransformerConfig
from rewardjax.partitioning import spec

ATTENTION = {
    "query": "self_attn.q_proj.weight",
    "key": "self_attn.k_proj.weight",
    "value": "self_attn.v_proj.weight",
    "out": "self_attn.o_proj.weight",
}
BIASES = {
    "query_bias": "self_attn.q_proj.bias",
    "key_bias": "self_attn.k_proj.bias",
    "value_bias": "self_attn.v_proj.bias",
}
QK_NORMS = {"query_norm": "self_attn.q_norm.weight", "key_norm": "self_attn.k_norm.weight"}
MLP = {"gate": "mlp.gate_proj.weight", "up": "mlp.up_proj.weight", "down": "mlp.down_proj.weight"}
NORMS = {"attention_norm": "input_layernorm.weight", "mlp_norm": "post_attention_layernorm.weight"}
FOUR_NORMS = {
    "attention_norm": "input_layernorm.weight",
    "attention_post_norm": "post_attention_layernorm.weight",
    "mlp_norm": "pre_feedforward_layernorm.weight",
    "mlp_post_norm": "post_feedforward_layernorm.weight",
}
# How a model that also reads images names its language model, and its other parts.
INSIDE = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}
VISION = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)


@dataclasses.dataclass(frozen=True)
class Source:
    """The tensors that a parameter is made of.

    Attributes:
      names: one, or where layers are scanned one for each entry of the parameter's first axis.
      stacked: the parameter has that axis.
    """

    names: tuple[str, ...]
    stacked: bool = False

    @property
    def transposed(self) -> bool:
        """Matrices of linear layers are stored `[out, in]`, and used here `[in, out]`."""
        return self.names[0].endswith(("proj.weight", "lm_head.weight"))

    def tensor_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of each tensor, from the parameter's."""
        shape = shape[1:] if self.stacked else shape
        return shape[::-1] if self.transposed else shape


def parameter_sources(config: TransformerConfig) -> dict[str, Any]:
    """The `Source` of every parameter, as a tree like the model's parameters."""
    sources: dict[str, Any] = {
        "embedding": Source(("model.embed_tokens.weight",)),
        "final_norm": {"scale": Source(("model.norm.weight",))},
    }
    if not config.tied_embeddings:
        sources["unembedding"] = Source(("lm_head.weight",))
    layers, period = config.layers, len(config.spans)
    if not config.scan:
        return sources | {f"block_{i}": _block(config, [i], stacked=False) for i in range(layers)}
    scanned = layers - layers % period
    sources["groups"] = {
        f"block_{j}": _block(config, range(j, scanned, period), stacked=True) for j in range(period)
    }
    if scanned < layers:
        sources["tail"] = {
            f"block_{j}": _block(config, [i], stacked=True)
            for j, i in enumerate(range(scanned, layers))
        }
    return sources


def _block(config: TransformerConfig, layers: Iterable[int], *, stacked: bool) -> dict[str, Any]:
    def source(name):
        return Source(tuple(f"model.layers.{i}.{name}" for i in layers), stacked)

    attention = {**ATTENTION, **(BIASES if config.qkv_bias else {})}
    qk_norms = QK_NORMS if config.qk_norm else {}
    norms = FOUR_NORMS if config.post_norm else NORMS
    return {
        "attention": {ours: source(name) for ours, name in attention.items()}
        | {ours: {"scale": source(name)} for ours, name in qk_norms.items()},
        "mlp": {ours: source(name) for ours, name in MLP.items()},
        **{ours: {"scale": source(name)} for ours, name in norms.items()},
    }


def load_checkpoint(
    folder: str | Path, *, mesh: Mesh | None = None, **overrides: Any
) -> tuple[TransformerConfig, Any]:
    """The model of a checkpoint folder, and its parameters.

    Args:
      folder: holds `config.json` and safetensors files.
      mesh: the devices to lay the parameters out on; None for one.
      **overrides: fields of `TransformerConfig`, such as `scan=True` or `param_dtype="float32"`.

    Raises:
      ImportError: the `safetensors` library is not installed.
      FileNotFoundError: `config.json` or a file of tensors is absent.
      ValueError: see `read_config` and `import_params`.
    """
    config = read_config(folder, **overrides)
    return config, import_params(folder, config, mesh)


def import_params(folder: str | Path, config: TransformerConfig, mesh: Mesh | None = None) -> Any:
    """The parameters of a checkpoint folder: a tree like `LanguageModel(config).init` gives.

    Everything is checked before the first parameter is read. What is not read: `lm_head.weight` beside
    tied embeddings, rotary frequencies (old Llama files), and the vision part of Gemma 3.

    Args:
      folder: holds the safetensors files.
      config: the model; parameters are cast to its `param_dtype`.
      mesh: the devices to lay the parameters out on (by `partitioning.RULES`); None for one.

    Raises:
      ImportError: the `safetensors` library is not installed.
      FileNotFoundError: a file of tensors is absent.
      ValueError: a file is broken; tensors are missing, unexpected or misshapen; the mesh does not
        divide a parameter.
    """
    boxed = jax.eval_shape(LanguageModel(config).boxed_init, jax.random.key(0))
    sources = parameter_sources(config)
    tensors = dict(_text_tensors(folder, config))
    expected = {
        name: source.tensor_shape(box.value.shape)
        for source, box in _pairs(sources, boxed)
        for name in source.names
    }
    check_tensors(folder, tensors, expected)
    if mesh is not None:
        _check_divisible(mesh, boxed)

    def load(source, box):
        return _load(source, box, tensors, mesh)

    return jax.tree.map(load, sources, boxed, is_leaf=_is_leaf)


def _is_leaf(x: Any) -> bool:
    return isinstance(x, Source | nn.LogicallyPartitioned)


def _pairs(sources: Any, tree: Any) -> list[tuple[Source, Any]]:
    """Each source with the entry of a parameter tree that it belongs to."""
    structure: Any
    leaves, structure = jax.tree.flatten(sources, is_leaf=_is_leaf)
    return list(zip(leaves, structure.flatten_up_to(tree)))


def _text_tensors(folder: str | Path, config: TransformerConfig) -> Iterator[tuple[str, Any]]:
    """The language model's tensors, by the names that it has on its own."""
    for name, tensor in open_tensors(folder).items():
        for inside, alone in INSIDE.items():
            if name.startswith(inside):
                name = alone + name.removeprefix(inside)
        unread = name.startswith(VISION) or name.endswith("rotary_emb.inv_freq")
        if not unread and not (config.tied_embeddings and name == "lm_head.weight"):
            yield name, tensor


def _check_divisible(mesh: Mesh, boxed: Any) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=_is_leaf)
    for path, box in leaves:
        try:
            NamedSharding(mesh, spec(box.names)).shard_shape(box.value.shape)
        except ValueError as error:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"mesh {dict(mesh.shape)} does not divide {name} {box.value.shape}: {error}"
            ) from error


def _load(source: Source, box: Any, tensors: Mapping[str, Any], mesh: Mesh | None) -> jax.Array:
    shape, dtype = box.value.shape, box.value.dtype
    if mesh is None:
        return jnp.asarray(_read(source, tensors, (slice(None),) * len(shape), shape, dtype))
    sharding = NamedSharding(mesh, spec(box.names))
    part = sharding.shard_shape(shape)
    # One device at a time, so that the host holds no more than one device's part.
    parts = [
        jax.device_put(_read(source, tensors, index, part, dtype), device)
        for device, index in sharding.addressable_devices_indices_map(shape).items()
    ]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def _read(source: Source, tensors: Mapping[str, Any], index, shape, dtype) -> np.ndarray:
    """The slice `index`, of a parameter's `shape` already cut, from the tensors' own slices."""
    out = np.empty(shape, dtype)
    names = source.names[index[0]] if source.stacked else source.names
    inner = index[1:] if source.stacked else index
    for target, name in zip(out if source.stacked else [out], names):
        if source.transposed:
            target[...] = tensors[name][inner[::-1]].T
        else:
            target[...] = tensors[name][inner]
    return out


def _check_params(config: TransformerConfig, params: Any) -> None:
    def shapes(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        keystr = jax.tree_util.keystr
        return {keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}

    expected = shapes(jax.eval_shape(LanguageModel(config).init, jax.random.key(0)))
    found = shapes(params)
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"params: {name}: expected {expected.get(name, 'no such parameter')}, "
                f"found {found.get(name, 'no such parameter')}"
            )


def export_checkpoint(
    folder: str | Path,
    config: TransformerConfig,
    params: Any,
    *,
    architecture: str | None = None,
    dtype: str | None = None,
    max_file_bytes: int = 5_000_000_000,
    fields: Mapping[str, Any] | None = None,
) -> None:
    """Writes `config.json` and safetensors files that `transformers` and this module read.

    On several processes all have to call this; the first writes. Exporting what was imported gives
    the same bits, tensor by tensor.

    Args:
      folder: made if it is not there.
      config: the model.
      params: its parameters, laid out anyhow.
      architecture: as in `config.json`, such as `"LlamaForCausalLM"`; by default from the model's
        features.
      dtype: of the tensors; by default the parameters' own.
      max_file_bytes: of one file's tensors; a larger tensor gets a file of its own.
      fields: more of `config.json`, such as `eos_token_id`.

    Raises:
      ImportError: the `safetensors` library is not installed.
      ValueError: the architecture cannot express the model, or `params` is not of `config`.
      FileExistsError: the folder holds a checkpoint.
    """
    dtype = config.param_dtype if dtype is None else dtype
    values = to_config_json(config, architecture) | {"torch_dtype": dtype} | dict(fields or {})
    folder = Path(folder)
    if found := sorted(folder.glob("*.safetensors*")):
        raise FileExistsError(f"{folder}: expected no checkpoint, found {found[0].name}")
    _check_params(config, params)
    # No process writes before the last has looked.
    multihost_utils.sync_global_devices("export_checkpoint")
    pairs = _pairs(parameter_sources(config), params)
    holders = {name: (source, array) for source, array in pairs for name in source.names}
    sizes = {
        name: array.size // len(source.names) * jnp.dtype(dtype).itemsize
        for name, (source, array) in holders.items()
    }

    def read(name):
        source, array = holders[name]
        array = array[source.names.index(name)] if source.stacked else array
        if not array.is_fully_addressable:
            array = multihost_utils.process_allgather(array, tiled=True)
        array = np.asarray(array).astype(jnp.dtype(dtype))
        return array.T if source.transposed else array

    first = jax.process_index() == 0
    if first:
        folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder, sizes, read, max_file_bytes=max_file_bytes, write=first)
    if first:
        text = json.dumps(values, indent=2) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
