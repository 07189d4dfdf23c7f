"""A decoder-only (or bidirectional) transformer that one configuration makes Llama, Qwen or Gemma.

The module is stateless: the key-value cache goes in and comes out. Parameters and activations carry
logical axis names, which `rewardjax.partitioning` maps to the mesh.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from rewardjax.models.attention import (
    LayerCache,
    RopeScaling,
    Visibility,
    attend,
    positions_of,
    rotate,
)
from rewardjax.models.fused_attention import attend_fused
from rewardjax.models.projection import project
from rewardjax.partitioning import constrain

# "global" sees the whole past, "local" the last `window` tokens; a pattern repeats, cut at the end.
Span = Literal["global", "local"]


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and variants. Defaults make a small Llama-like model.

    Attributes:
      vocab: number of token ids.
      context: longest sequence accepted, in tokens.
      gate: activation of the gated MLP: SwiGLU (`"silu"`) or GeGLU (`"gelu"`).
      qk_norm: RMS-normalise queries and keys per head (Qwen3, Gemma 3).
      post_norm: normalise also what a block adds to the stream (Gemma 2 and 3).
      unit_offset: norms multiply by `1 + scale` rather than `scale` (Gemma).
      attention_softcap, logit_softcap: `cap * tanh(x / cap)` on attention scores and logits (Gemma 2).
      query_scale: factor on the scores; `head_dim ** -0.5` if None.
      embedding_scale: multiply embeddings by `sqrt(width)` (Gemma).
      rope_scaling: applies to the layers that rotate by `rope_base`.
      spans: attention span of each layer, repeated; `window` and `local_rope_base` are of local layers.
      scan: one compiled block scanned over the layers (large models) instead of an unrolled stack.
      remat: recompute blocks in the backward pass: nothing, everything, or all but matrix products.
      attention: by plain products ("xla") or, where there is one, by the platform's kernel ("fused").
      attention_chunk: queries whose scores exist at one time, outside of kernels; all if None.
      logit_chunk: positions of a row whose logits exist at one time in scoring; all if None.
    """

    vocab: int = 32
    layers: int = 2
    width: int = 64
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 16
    mlp_width: int = 256
    context: int = 512
    gate: Literal["silu", "gelu"] = "silu"
    norm_epsilon: float = 1e-6
    qk_norm: bool = False
    qkv_bias: bool = False
    post_norm: bool = False
    unit_offset: bool = False
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    query_scale: float | None = None
    rope_base: float = 10_000.0
    local_rope_base: float | None = None
    rope_scaling: RopeScaling = RopeScaling()
    spans: tuple[Span, ...] = ("global",)
    window: int = 4096
    causal: bool = True
    tied_embeddings: bool = True
    embedding_scale: bool = False
    scan: bool = False
    remat: Literal["none", "full", "dots"] = "none"
    attention: Literal["xla", "fused"] = "xla"
    attention_chunk: int | None = None
    logit_chunk: int | None = None
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ValueError(f"model: heads={self.heads} is not a multiple of {self.kv_heads}")
        if not 0 < len(self.spans) <= max(self.layers, 1):
            raise ValueError(f"model: expected 1 to {self.layers} spans, found {self.spans}")


@struct.dataclass
class Cache:
    """What decoding keeps: keys and values, which slots hold tokens, and the next free slot.

    In a `ring` writing goes on at the front, over the oldest tokens: one token at a time.
    """

    layers: tuple[LayerCache, ...]
    segments: Int[Array, "batch slots"]
    length: Int[Array, ""]
    ring: bool = struct.field(pytree_node=False, default=False)


def init_cache(config: TransformerConfig, batch: int, slots: int) -> Cache:
    """An empty cache for `batch` rows of at most `slots` tokens.

    Raises:
      ValueError: `slots` is more than the model's context.
    """
    check_length(config, slots)
    shape = (batch, config.kv_heads, slots, config.head_dim)
    stacks: list[tuple[int, ...]] = [()] * config.layers
    if config.scan:
        repeats, rest = divmod(config.layers, len(config.spans))
        stacks = [*[(repeats,)] * len(config.spans), *[(1,)] * rest]
    empty = (jnp.zeros((*stack, *shape), config.dtype) for stack in stacks)
    layers = tuple(LayerCache(x, x) for x in empty)
    return Cache(layers, jnp.zeros((batch, slots), jnp.int32), jnp.zeros((), jnp.int32))


def check_length(config: TransformerConfig, length: int) -> None:
    """Raises ValueError where a sequence of `length` tokens does not fit the model's context."""
    if length > config.context:
        raise ValueError(
            f"sequence of {length} tokens is longer than the model's context={config.context}"
        )


def weight(
    module: nn.Module,
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    dtype: str = "float32",
    init: Callable[..., Any] | None = None,
) -> Array:
    """A named parameter with logical axes; by default normal with deviation `shape[0] ** -0.5`."""
    init = nn.initializers.normal(shape[0] ** -0.5) if init is None else init
    value: Any = module.param(
        name, nn.with_logical_partitioning(init, axes), shape, jnp.dtype(dtype)
    )
    return value


class RMSNorm(nn.Module):
    """Root-mean-square normalisation in float32 (arXiv:1910.07467)."""

    config: TransformerConfig
    axis: str = "width"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Normalise the last axis."""
        c = self.config
        start = nn.initializers.zeros if c.unit_offset else nn.initializers.ones
        scale = weight(self, "scale", x.shape[-1:], (self.axis,), c.param_dtype, start)
        scale = scale.astype(jnp.float32)
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + c.norm_epsilon)
        return (y * (scale + 1 if c.unit_offset else scale)).astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query self-attention of one layer."""

    config: TransformerConfig
    span: Span

    @nn.compact
    def __call__(self, x, positions, visible, cache, slot, layer=None):
        """`x: [batch, time, width]` -> the same shape, and the cache with `x` written in.

        Where layers are scanned the cache is that of all, and `layer` the number of this one.
        """
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        q, k, v = (self._project(name, x, n) for name, n in _projections(c))
        if c.qk_norm:
            q = RMSNorm(c, "head_dim", name="query_norm")(q)
            k = RMSNorm(c, "head_dim", name="key_norm")(k)
        base, scaling = c.rope_base, c.rope_scaling
        if self.span == "local" and c.local_rope_base is not None:
            base, scaling = c.local_rope_base, RopeScaling()
        q, k = rotate(q, positions, base, scaling), rotate(k, positions, base, scaling)
        if cache is not None:
            cache = cache.write(k, v, slot, layer)
            own = cache.of(layer)
            k, v = own.keys.astype(dtype), own.values.astype(dtype)
        scale = c.head_dim**-0.5 if c.query_scale is None else c.query_scale
        kernel = attend_fused if c.attention == "fused" else attend
        cap, chunk = c.attention_softcap, c.attention_chunk
        y = kernel(q, k, v, visible, scale=scale, softcap=cap, chunk=chunk)
        y = y.swapaxes(1, 2).reshape(*x.shape[:2], -1)
        out = weight(
            self, "out", (c.heads * c.head_dim, c.width), ("heads", "embed"), c.param_dtype
        )
        return project(y, out.astype(dtype)), cache

    def _project(self, name: str, x: Array, heads: int) -> Array:
        c = self.config
        size = heads * c.head_dim
        axis = "heads" if name == "query" else "kv_heads"
        matrix = weight(self, name, (c.width, size), ("embed", axis), c.param_dtype)
        y = project(x, matrix.astype(x.dtype))
        if c.qkv_bias:
            zeros = nn.initializers.zeros
            bias = weight(self, f"{name}_bias", (size,), (axis,), c.param_dtype, zeros)
            y = y + bias.astype(x.dtype)
        y = y.reshape(*y.shape[:2], heads, c.head_dim).swapaxes(1, 2)
        return constrain(y, "batch", axis, "time", None)


def _projections(c: TransformerConfig):
    return ("query", c.heads), ("key", c.kv_heads), ("value", c.kv_heads)


class MLP(nn.Module):
    """Gated feed-forward layer (arXiv:2002.05202)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x):
        """`[batch, time, width]` -> the same shape."""
        c = self.config
        into, out = ("embed", "mlp"), ("mlp", "embed")
        gate = weight(self, "gate", (c.width, c.mlp_width), into, c.param_dtype).astype(x.dtype)
        up = weight(self, "up", (c.width, c.mlp_width), into, c.param_dtype).astype(x.dtype)
        down = weight(self, "down", (c.mlp_width, c.width), out, c.param_dtype).astype(x.dtype)
        act = jax.nn.silu if c.gate == "silu" else jax.nn.gelu
        y = act(project(x, gate)) * project(x, up)
        return project(constrain(y, "batch", "time", "mlp"), down)


class Block(nn.Module):
    """Attention and MLP, each added to the stream after a norm (and normed again if `post_norm`)."""

    config: TransformerConfig
    span: Span

    @nn.compact
    def __call__(self, x, positions, visible, cache, slot, layer=None):
        """`x: [batch, time, width]` -> the same shape, and the cache."""
        c = self.config

        def post(name, y):
            return RMSNorm(c, name=name)(y) if c.post_norm else y

        y = RMSNorm(c, name="attention_norm")(x)
        y, cache = Attention(c, self.span, name="attention")(
            y, positions, visible[self.span], cache, slot, layer
        )
        x = x + post("attention_post_norm", y)
        y = MLP(c, name="mlp")(RMSNorm(c, name="mlp_norm")(x))
        return constrain(x + post("mlp_post_norm", y), "batch", "time", "width"), cache


class Group(nn.Module):
    """One period of `spans`: what a scan over the layers repeats."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, carry, turn, positions, visible, slot):
        """Carry `x` through the period's blocks, with one cache a block (of all turns), or None.

        The caches are carried, not scanned over: they are then written in place.
        """
        (x, caches), out = carry, []
        for i, span in enumerate(self.config.spans):
            cache = None if caches is None else caches[i]
            x, cache = block_of(self.config)(self.config, span, name=f"block_{i}")(
                x, positions, visible, cache, slot, turn
            )
            out.append(cache)
        return (x, None if caches is None else tuple(out)), None


def block_of(c: TransformerConfig):
    """`Block`, recomputed in the backward pass as far as `remat` says."""
    if c.remat == "none":
        return Block
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if c.remat == "dots" else None
    return nn.remat(Block, policy=policy, prevent_cse=not c.scan)


def scanned(c: TransformerConfig, length: int, name: str | None = None) -> nn.Module:
    """The `Group` of `c.spans`, `length` times over."""
    scan: Any = nn.scan(
        Group,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=length,
        in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scan(c, name=name)


class Transformer(nn.Module):
    """Token ids to hidden states, and hidden states to logits."""

    config: TransformerConfig

    def setup(self):
        """Embedding, blocks, final norm, and an output matrix where embeddings are not tied."""
        c = self.config
        spread = nn.initializers.normal(c.width**-0.5)
        axes, dtype = ("vocab", "embed"), c.param_dtype
        self.embedding = weight(self, "embedding", (c.vocab, c.width), axes, dtype, spread)
        if not c.tied_embeddings:
            axes = ("embed", "vocab")
            self.unembedding = weight(self, "unembedding", (c.width, c.vocab), axes, dtype)
        self.final_norm = RMSNorm(c)
        if c.scan:
            repeats, rest = divmod(c.layers, len(c.spans))
            self.groups = scanned(c, repeats)
            if rest:  # the start of one more period
                self.tail = scanned(dataclasses.replace(c, layers=rest, spans=c.spans[:rest]), 1)
        else:
            block = block_of(c)
            self.blocks = [
                block(c, c.spans[i % len(c.spans)], name=f"block_{i}") for i in range(c.layers)
            ]

    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        segments: Int[Array, "batch time"],
        positions: Int[Array, "batch time"] | None = None,
        cache: Cache | None = None,
        given: tuple[Float[Array, "batch time width"], Bool[Array, "batch time"]] | None = None,
    ) -> tuple[Float[Array, "batch time width"], Cache | None]:
        """Hidden states after the final norm.

        Args:
          tokens: token ids in `[0, vocab)`.
          segments: 0 on padding, and a number from 1 for each document packed into the row; a token
            sees only its own segment.
          positions: position of each token; counted per segment if None.
          cache: keys and values of what came before; `tokens` are then appended to it.
          given: embeddings that stand in for those of the tokens, and where they do (an image's).
        """
        c = self.config
        check_length(c, tokens.shape[1])
        positions = positions_of(segments) if positions is None else positions
        slots, key_segments, ring = None, segments, False
        slot = jnp.zeros((), jnp.int32)
        if cache is not None:
            ring = cache.ring
            slot = cache.length % cache.segments.shape[1] if ring else cache.length
            slots = jnp.arange(tokens.shape[1]) + slot
            key_segments = jax.lax.dynamic_update_slice_in_dim(cache.segments, segments, slot, 1)
        windows = {"global": None, "local": c.window}
        visible = {
            span: Visibility(segments, key_segments, slots, c.causal, windows[span], ring)
            for span in dict.fromkeys(c.spans)
        }
        x = self.embedding.astype(c.dtype)[tokens]
        if c.embedding_scale:
            x = x * jnp.asarray(c.width**0.5, x.dtype)
        if given is not None:
            x = jnp.where(given[1][..., None], given[0].astype(x.dtype), x)
        x = constrain(x, "batch", "time", "width")
        layers = None if cache is None else cache.layers
        x, layers = self._stack(x, layers, positions, visible, slot)
        if cache is not None:
            cache = Cache(layers, key_segments, cache.length + tokens.shape[1], cache.ring)
        return self.final_norm(x), cache

    def _stack(self, x, caches, positions, visible, slot):
        c, period = self.config, len(self.config.spans)
        if c.scan:
            turns = jnp.arange(c.layers // period)
            carry = (x, caches and caches[:period])
            (x, out), _ = self.groups(carry, turns, positions, visible, slot)
            if c.layers % period:
                carry = (x, caches and caches[period:])
                (x, rest), _ = self.tail(carry, jnp.arange(1), positions, visible, slot)
                out = out and out + rest
            return x, out
        out = []
        for i, block in enumerate(self.blocks):
            x, cache = block(x, positions, visible, None if caches is None else caches[i], slot)
            out.append(cache)
        return x, None if caches is None else tuple(out)

    def logits(self, hidden: Float[Array, "*batch width"]) -> Float[Array, "*batch vocab"]:
        """Float32 logits of the next token."""
        c = self.config
        matrix = self.embedding.T if c.tied_embeddings else self.unembedding
        logits = jnp.matmul(hidden, matrix.astype(hidden.dtype), preferred_element_type=jnp.float32)
        logits = constrain(logits, "batch", *("time",) * (logits.ndim - 2), "vocab")
        if c.logit_softcap is not None:
            logits = c.logit_softcap * jnp.tanh(logits / c.logit_softcap)
        return logits
