"""The `config.json` of published decoders as a `TransformerConfig`, and back.

Field names and defaults are those of the `transformers` library, in the spelling of its version 4
(which version 5 reads too); version 5's `rope_parameters` are read, not written.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewardjax.data.jsonl import read_json
from rewardjax.models.attention import RopeScaling
from rewardjax.models.transformer import Span, TransformerConfig

SPAN_OF: Mapping[str, Span] = {"full_attention": "global", "sliding_attention": "local"}
LAYER_TYPE = {span: name for name, span in SPAN_OF.items()}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What an architecture fixes, and what its `config.json` may leave out."""

    model_type: str
    fixed: Mapping[str, Any]
    defaults: Mapping[str, Any]


LLAMA = {"tie_word_embeddings": False, "hidden_act": "silu", "rope_theta": 10_000.0}
GEMMA = {
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "rope_theta": 10_000.0,
    "vocab_size": 256_000,
    "head_dim": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
# A checkpoint that also reads images leaves defaults out of its `text_config`.
GEMMA3 = {
    **GEMMA,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "sliding_window_pattern": 6,
}
GEMMA_FIXED = {"gate": "gelu", "post_norm": True, "unit_offset": True, "embedding_scale": True}

ARCHITECTURES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": Architecture("llama", {}, LLAMA),
    "MistralForCausalLM": Architecture("mistral", {}, {**LLAMA, "sliding_window": 4096}),
    "Qwen2ForCausalLM": Architecture("qwen2", {"qkv_bias": True}, LLAMA),
    "Qwen3ForCausalLM": Architecture("qwen3", {"qk_norm": True}, {**LLAMA, "head_dim": 128}),
    "Gemma2ForCausalLM": Architecture(
        "gemma2",
        GEMMA_FIXED,
        {**GEMMA, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "Gemma3ForCausalLM": Architecture("gemma3_text", {**GEMMA_FIXED, "qk_norm": True}, GEMMA3),
}
# The language model inside is imported.
MULTIMODAL = {"Gemma3ForConditionalGeneration": "Gemma3ForCausalLM"}

# Fields of `TransformerConfig` that say how a model runs, not what it computes.
RUNTIME = ("scan", "remat", "attention", "attention_chunk", "logit_chunk", "param_dtype", "dtype")

# Settings that the project's transformer has no counterpart for, and the values that need none.
INERT = {
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "use_bidirectional_attention": (None, False),
    "quantization_config": (None,),
    "partial_rotary_factor": (None, 1.0),
    "hidden_act": (None, "silu", "gelu_pytorch_tanh"),
    "hidden_activation": (None, "gelu_pytorch_tanh"),
}


SOFTCAPS = {
    "attention_softcap": "attn_logit_softcapping",
    "logit_softcap": "final_logit_softcapping",
}


class _Fields:
    """The fields of one `config.json`, with the architecture's defaults."""

    def __init__(self, path: Path, values: Mapping[str, Any], defaults: Mapping[str, Any]):
        self.path, self.values, self.defaults = path, values, defaults

    def get(self, name: str) -> Any:
        return self.values.get(name, self.defaults.get(name))

    def number(self, name: str, kind: type = float) -> Any:
        """A field that has to be there; whole if `kind` is int."""
        value = self.get(name)
        accepted = (int, float) if kind is float else int
        if isinstance(value, bool) or not isinstance(value, accepted):
            found = "no such field" if value is None else repr(value)
            raise self.error(name, f"a number ({kind.__name__})", found)
        return kind(value)

    def error(self, name: str, expected: str, found: str) -> ValueError:
        return ValueError(f"{self.path}: {name}: expected {expected}, found {found}")


def read_config(folder: str | Path, **overrides: Any) -> TransformerConfig:
    """The model that a checkpoint folder's `config.json` describes.

    Parameters and activations get the file's dtype (float32 where it is float16), layers are not
    scanned: `overrides` says otherwise.

    Args:
      folder: holds `config.json`.
      **overrides: fields of `TransformerConfig` that replace what was read.

    Raises:
      FileNotFoundError: there is no `config.json`.
      ValueError: it is not JSON, a field is missing or not of its type, or the model has something
        that the project's transformer lacks; the file, the field and what is supported are named.
    """
    path = Path(folder) / "config.json"
    values = read_json(path)
    name = architecture_name(path, values)
    architecture = ARCHITECTURES[MULTIMODAL.get(name, name)]
    if name in MULTIMODAL:
        inner = values.get("text_config")
        if not isinstance(inner, dict):
            raise ValueError(f"{path}: text_config: expected an object, found {inner!r}")
        values = {"torch_dtype": values.get("torch_dtype", values.get("dtype")), **inner}
    fields = _Fields(path, values, architecture.defaults)
    for field, inert in INERT.items():
        if fields.get(field) not in inert:
            raise fields.error(field, " or ".join(map(repr, inert)), repr(fields.get(field)))
    stored = fields.get("dtype") or fields.get("torch_dtype")
    dtype: Any = stored if stored in ("float32", "bfloat16") else "float32"
    return dataclasses.replace(
        TransformerConfig(
            **_sizes(fields),
            **_rotary(fields),
            **_attention_of(fields, architecture),
            **architecture.fixed,
            param_dtype=dtype,
            dtype=dtype,
        ),
        **overrides,
    )


def architecture_name(path: Path, values: Mapping[str, Any]) -> str:
    """The architecture that `config.json`, read from `path`, names.

    Raises:
      ValueError: it is none of those supported, which are named.
    """
    found = values.get("architectures")
    supported = [*ARCHITECTURES, *MULTIMODAL]
    if not isinstance(found, list) or len(found) != 1 or found[0] not in supported:
        raise ValueError(
            f"{path}: architectures: expected one of {', '.join(supported)}, found {found!r}"
        )
    return found[0]


def _sizes(fields: _Fields) -> dict[str, Any]:
    heads, width = fields.number("num_attention_heads", int), fields.number("hidden_size", int)
    grouped, sized = (fields.get(name) is not None for name in ("num_key_value_heads", "head_dim"))
    return {
        "vocab": fields.number("vocab_size", int),
        "layers": fields.number("num_hidden_layers", int),
        "width": width,
        "heads": heads,
        "kv_heads": fields.number("num_key_value_heads", int) if grouped else heads,
        "head_dim": fields.number("head_dim", int) if sized else width // heads,
        "mlp_width": fields.number("intermediate_size", int),
        "context": fields.number("max_position_embeddings", int),
        "norm_epsilon": fields.number("rms_norm_eps"),
        "tied_embeddings": bool(fields.get("tie_word_embeddings")),
    }


def _rotary(fields: _Fields) -> dict[str, Any]:
    """Bases and scaling, from version 5's `rope_parameters` or version 4's separate fields."""
    params = fields.get("rope_parameters")
    if params is None:
        params = {
            "full_attention": fields.get("rope_scaling") or {},
            "sliding_attention": {"rope_theta": fields.get("rope_local_base_freq")},
        }
    elif not set(SPAN_OF) & set(params):
        params = {"full_attention": params}
    local = params.get("sliding_attention") or {}
    local_base = local.get("rope_theta")
    if _rope_type(local) != "default":
        raise fields.error("rope_parameters", "unscaled local layers", repr(local))
    everywhere = {"rope_theta": fields.get("rope_theta"), **params.get("full_attention", {})}
    scope = _Fields(fields.path, everywhere, {})
    return {
        "rope_base": scope.number("rope_theta"),
        "rope_scaling": _scaling(scope),
        "local_rope_base": None if local_base is None else float(local_base),
    }


def _rope_type(params: Mapping[str, Any]) -> Any:
    return params.get("rope_type", params.get("type", "default"))


def _scaling(fields: _Fields) -> RopeScaling:
    kind = _rope_type(fields.values)
    if kind == "default":
        return RopeScaling()
    if kind == "linear":
        return RopeScaling(fields.number("factor"))
    if kind == "llama3":
        return RopeScaling(
            fields.number("factor"),
            fields.number("original_max_position_embeddings", int),
            fields.number("low_freq_factor"),
            fields.number("high_freq_factor"),
        )
    raise fields.error("rope_scaling", "rope_type default, linear or llama3", repr(kind))


def _attention_of(fields: _Fields, architecture: Architecture) -> dict[str, Any]:
    """Spans, window, score scale and soft caps."""
    spans = shortest_period(_spans(fields, architecture.model_type))
    settings: dict[str, Any] = {"spans": spans}
    if "local" in spans:
        settings["window"] = fields.number("sliding_window", int)
    if "query_pre_attn_scalar" in architecture.defaults:
        scalar = fields.number("query_pre_attn_scalar")
        same = scalar == fields.number("head_dim")
        settings["query_scale"] = None if same else scalar**-0.5
        for ours, theirs in SOFTCAPS.items():
            settings[ours] = None if fields.get(theirs) is None else fields.number(theirs)
    return settings


def _spans(fields: _Fields, model_type: str) -> list[Span]:
    layers = fields.number("num_hidden_layers", int)
    types = fields.get("layer_types")
    if model_type == "llama":
        return ["global"] * layers
    if model_type == "mistral":
        return ["global" if fields.get("sliding_window") is None else "local"] * layers
    if types is not None:
        if len(types) != layers or not set(types) <= set(SPAN_OF):
            raise fields.error("layer_types", f"{layers} of {', '.join(SPAN_OF)}", repr(types))
        return [SPAN_OF[name] for name in types]
    if model_type == "gemma2":
        return ["global" if i % 2 else "local" for i in range(layers)]
    if model_type == "gemma3_text":
        period = fields.number("sliding_window_pattern", int)
        return ["local" if (i + 1) % period else "global" for i in range(layers)]
    if not fields.get("use_sliding_window") or fields.get("sliding_window") is None:
        return ["global"] * layers
    first = fields.number("max_window_layers", int)
    return ["local" if i >= first else "global" for i in range(layers)]


def shortest_period(spans: list[Span]) -> tuple[Span, ...]:
    """The fewest spans that, repeated (and cut short at the end), give those of all layers."""
    for period in range(1, len(spans)):
        if all(spans[i] == spans[i % period] for i in range(len(spans))):
            return tuple(spans[:period])
    return tuple(spans)


def to_config_json(config: TransformerConfig, architecture: str | None = None) -> dict[str, Any]:
    """The `config.json` of a model: what `read_config` reads back as the same model.

    Args:
      config: the model.
      architecture: one of `ARCHITECTURES`; None takes the one that has the model's features.

    Raises:
      ValueError: no such architecture, or it cannot express the model (the fields that differ).
    """
    name = _architecture_for(config) if architecture is None else architecture
    if name not in ARCHITECTURES:
        raise ValueError(
            f"architecture: expected one of {', '.join(ARCHITECTURES)}, found {name!r}"
        )
    values = _to_fields(config, ARCHITECTURES[name]) | {"architectures": [name]}
    fields = _Fields(Path("config.json"), values, ARCHITECTURES[name].defaults)
    expressed = (
        _sizes(fields)
        | _rotary(fields)
        | _attention_of(fields, ARCHITECTURES[name])
        | dict(ARCHITECTURES[name].fixed)
    )
    # Without local layers the window means nothing, and is not written.
    unsaid = {*RUNTIME, *({"window"} - expressed.keys())}
    read = dataclasses.replace(TransformerConfig(), **expressed)
    wanted = dataclasses.replace(config, spans=shortest_period(spans_of(config)))
    differing = [
        f"{field.name}={getattr(wanted, field.name)!r} (it has {getattr(read, field.name)!r})"
        for field in dataclasses.fields(config)
        if field.name not in unsaid and getattr(read, field.name) != getattr(wanted, field.name)
    ]
    if differing:
        raise ValueError(f"{name} cannot express this model: {', '.join(differing)}")
    return values


def spans_of(config: TransformerConfig) -> list[Span]:
    """The span of every layer."""
    return [config.spans[i % len(config.spans)] for i in range(config.layers)]


def _architecture_for(config: TransformerConfig) -> str:
    if config.post_norm:
        return "Gemma3ForCausalLM" if config.qk_norm else "Gemma2ForCausalLM"
    if config.qk_norm or config.qkv_bias:
        return "Qwen3ForCausalLM" if config.qk_norm else "Qwen2ForCausalLM"
    return "MistralForCausalLM" if "local" in config.spans else "LlamaForCausalLM"


def _to_fields(config: TransformerConfig, architecture: Architecture) -> dict[str, Any]:
    spans, gemma = spans_of(config), "query_pre_attn_scalar" in architecture.defaults
    local = "local" in spans
    activation = "gelu_pytorch_tanh" if config.gate == "gelu" else "silu"
    values: dict[str, Any] = {
        "model_type": architecture.model_type,
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied_embeddings,
        "hidden_activation" if gemma else "hidden_act": activation,
        "rope_theta": config.rope_base,
        "rope_scaling": _scaling_fields(config.rope_scaling),
    }
    if architecture.model_type != "llama":
        values["sliding_window"] = config.window if local else None
    if architecture.model_type not in ("llama", "mistral"):
        values["layer_types"] = [LAYER_TYPE[span] for span in spans]
    if architecture.model_type in ("qwen2", "qwen3"):
        values["use_sliding_window"] = local
        values["max_window_layers"] = spans.index("local") if local else config.layers
    if gemma:
        scale = config.query_scale
        scalar = config.head_dim if scale is None else round(scale**-2, 6)
        values["query_pre_attn_scalar"] = int(scalar) if scalar == int(scalar) else scalar
        values |= {theirs: getattr(config, ours) for ours, theirs in SOFTCAPS.items()}
    if config.local_rope_base is not None:
        values["rope_local_base_freq"] = config.local_rope_base
    return values


def _scaling_fields(scaling: RopeScaling) -> dict[str, Any] | None:
    if scaling == RopeScaling():
        return None
    if scaling.original_context is None:
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_context,
        "low_freq_factor": scaling.low_frequency,
        "high_freq_factor": scaling.high_frequency,
    }
