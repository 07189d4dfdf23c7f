"""A bidirectional encoder of the BERT kind (arXiv:1810.04805), and one vector a text from it.

Tokens, learned positions and segment types are added and normed; blocks norm after each addition
("post-norm"). Parameters carry logical axis names, which `rewardjax.partitioning` maps to the mesh.
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rewardjax.models.attention import Visibility, attend, positions_of
from rewardjax.models.projection import project
from rewardjax.models.transformer import weight
from rewardjax.partitioning import constrain

# How a text's hidden states become one vector: their mean, or the state of its first token (CLS).
Pooling = Literal["mean", "first"]


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes and variants. Defaults make a small BERT.

    Attributes:
      vocab: number of token ids.
      mlp_width: width of the feed-forward layer between its two matrices.
      context: longest sequence accepted, in tokens: the number of learned positions.
      types: number of segment types (BERT: first or second sentence).
      pooling: how `embed` makes one vector of a text.
      unit_length: `embed` divides each vector by its length.
    """

    vocab: int = 32
    layers: int = 2
    width: int = 64
    heads: int = 4
    mlp_width: int = 256
    context: int = 512
    types: int = 2
    norm_epsilon: float = 1e-12
    pooling: Pooling = "mean"
    unit_length: bool = True
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(
                f"EncoderConfig.width={self.width} is not a multiple of heads={self.heads}"
            )


class LayerNorm(nn.Module):
    """Layer normalisation in float32 (arXiv:1607.06450)."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Normalise the last axis."""
        c, ones, zeros = self.config, nn.initializers.ones, nn.initializers.zeros
        scale = weight(self, "scale", x.shape[-1:], ("width",), c.param_dtype, ones)
        bias = weight(self, "bias", x.shape[-1:], ("width",), c.param_dtype, zeros)
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + c.norm_epsilon)
        return (y * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


class Affine(nn.Module):
    """A matrix and a bias, with logical axes `(into, out)`."""

    config: EncoderConfig
    size: int
    axes: tuple[str, str]

    @nn.compact
    def __call__(self, x: Float[Array, "*batch into"]) -> Float[Array, "*batch out"]:
        """`x @ kernel + bias`."""
        c, zeros = self.config, nn.initializers.zeros
        kernel = weight(self, "kernel", (x.shape[-1], self.size), self.axes, c.param_dtype)
        bias = weight(self, "bias", (self.size,), self.axes[1:], c.param_dtype, zeros)
        return project(x, kernel.astype(x.dtype)) + bias.astype(x.dtype)


class EncoderBlock(nn.Module):
    """Self-attention and an MLP with exact GELU, each added to the stream, which is then normed."""

    config: EncoderConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time width"], visible: Visibility
    ) -> Float[Array, "batch time width"]:
        """One block; `visible` says which tokens each one sees."""
        c, head_dim = self.config, self.config.width // self.config.heads

        def heads(name):
            y = Affine(c, c.width, ("embed", "heads"), name=name)(x)
            y = y.reshape(*x.shape[:2], c.heads, head_dim).swapaxes(1, 2)
            return constrain(y, "batch", "heads", None, None)

        y = attend(heads("query"), heads("key"), heads("value"), visible, scale=head_dim**-0.5)
        y = y.swapaxes(1, 2).reshape(x.shape)
        y = Affine(c, c.width, ("heads", "embed"), name="out")(y)
        x = LayerNorm(c, name="attention_norm")(x + y)
        y = Affine(c, c.mlp_width, ("embed", "mlp"), name="up")(x)
        y = jax.nn.gelu(constrain(y, "batch", None, "mlp"), approximate=False)
        y = Affine(c, c.width, ("mlp", "embed"), name="down")(y)
        return constrain(LayerNorm(c, name="mlp_norm")(x + y), "batch", None, "width")


class Encoder(nn.Module):
    """Token ids to hidden states that each see the whole text."""

    config: EncoderConfig

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        valid: Bool[Array, "batch time"],
        types: Int[Array, "batch time"] | None = None,
    ) -> Float[Array, "batch time width"]:
        """Hidden states after the last block; those of padding mean nothing.

        Args:
          tokens: token ids in `[0, vocab)`, markers included.
          valid: off on padding. Positions count from a row's first valid token.
          types: segment type of each token in `[0, config.types)`; 0 everywhere if None.

        Raises:
          ValueError: the rows are longer than the model's context.
        """
        c = self.config
        if tokens.shape[1] > c.context:
            raise ValueError(
                f"sequence of {tokens.shape[1]} tokens is longer than the model's "
                f"context={c.context}"
            )

        def table(name, rows, axis):
            spread = nn.initializers.normal(0.02)
            found = weight(self, name, (rows, c.width), (axis, "embed"), c.param_dtype, spread)
            return found.astype(c.dtype)

        segments = valid.astype(jnp.int32)
        x = table("tokens", c.vocab, "vocab")[tokens]
        x = x + table("positions", c.context, None)[positions_of(segments)]
        kinds = table("types", c.types, None)
        x = x + (kinds[0] if types is None else kinds[types])
        x = constrain(LayerNorm(c, name="norm")(x), "batch", None, "width")
        visible = Visibility(segments, segments, causal=False)
        for layer in range(c.layers):
            x = EncoderBlock(c, name=f"block_{layer}")(x, visible)
        return x


@dataclasses.dataclass(frozen=True)
class SentenceEncoder:
    """Pure functions of `params` for one encoder configuration: texts to vectors."""

    config: EncoderConfig

    @property
    def module(self) -> Encoder:
        """The Flax module behind the functions."""
        return Encoder(self.config)

    def boxed_init(self, key: PRNGKeyArray):
        """Fresh parameters with their logical axis names."""
        tokens = jnp.zeros((1, 2), jnp.int32)
        return self.module.init(key, tokens, tokens == 0)["params"]

    def init(self, key: PRNGKeyArray):
        """Fresh parameters: a pytree of arrays."""
        return nn.meta.unbox(self.boxed_init(key))

    def hidden(
        self,
        params,
        tokens: Int[Array, "batch time"],
        valid: Bool[Array, "batch time"],
        types: Int[Array, "batch time"] | None = None,
    ) -> Float[Array, "batch time width"]:
        """Hidden states, as `Encoder` gives them."""
        found: Any = self.module.apply({"params": params}, tokens, valid, types)
        return found

    def embed(
        self, params, tokens: Int[Array, "batch time"], valid: Bool[Array, "batch time"]
    ) -> Float[Array, "batch width"]:
        """One float32 vector a text (arXiv:1908.10084); of length 1 with `config.unit_length`.

        The dot product of two vectors of length 1 is their cosine similarity, in [-1, 1]. A row
        without a valid token gives zeros.
        """
        hidden = self.hidden(params, tokens, valid).astype(jnp.float32)
        weights = valid.astype(jnp.float32)
        if self.config.pooling == "first":
            weights = jnp.where(jnp.cumsum(weights, axis=1) == 1, weights, 0.0)
        total = jnp.einsum("btw,bt->bw", hidden, weights)
        vectors = total / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1.0)
        if not self.config.unit_length:
            return vectors
        square = jnp.sum(vectors * vectors, axis=1, keepdims=True)
        return vectors * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
