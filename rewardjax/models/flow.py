"""Velocity networks of flow matching: a multilayer perceptron on vectors, a transformer on pictures.

Both map a point `x_t`, the time `t` in [0, 1] (1 is noise) and a condition, a class id, to a velocity
of the shape of `x_t`. Time and condition enter every layer by adaptive normalisation.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rewardjax.models.attention import Visibility, attend
from rewardjax.models.fused_attention import attend_fused
from rewardjax.models.projection import project
from rewardjax.models.transformer import weight
from rewardjax.partitioning import constrain

# (x_t, t, condition) -> velocity, of the shape of x_t.
Velocity = Callable[
    [Float[Array, "batch *event"], Float[Array, "batch"], Int[Array, "batch"]],
    Float[Array, "batch *event"],
]


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """A residual multilayer perceptron on vectors of `size` numbers, for `conditions` classes."""

    size: int = 2
    conditions: int = 1
    width: int = 128
    layers: int = 3

    @property
    def event(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return (self.size,)

    def module(self) -> nn.Module:
        """The network."""
        return VelocityMLP(self)


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """A diffusion transformer (arXiv:2212.09748) on pictures.

    Attributes:
      height, width_pixels, channels: of a picture; `channels=0` is a picture `[height, width]`.
      patch: side of the square patches that are its tokens, in pixels.
      conditions: number of classes.
      layers, width, heads, mlp_width: of the transformer.
      remat: recompute blocks in the backward pass.
      scan: one compiled block scanned over the layers (large models) instead of an unrolled stack.
      attention: by plain products ("xla") or, where there is one, by the platform's kernel ("fused").
      dtype: of activations and matrix products; parameters, normalisation, time and velocity are float32.
    """

    height: int = 8
    width_pixels: int = 8
    channels: int = 0
    patch: int = 2
    conditions: int = 1
    layers: int = 2
    width: int = 64
    heads: int = 4
    mlp_width: int = 128
    remat: bool = False
    scan: bool = False
    attention: Literal["xla", "fused"] = "xla"
    dtype: str = "float32"

    def __post_init__(self):
        for name, value, factor in [
            ("height", self.height, self.patch),
            ("width_pixels", self.width_pixels, self.patch),
            ("width", self.width, self.heads),
        ]:
            if value % factor:
                raise ValueError(f"DiTConfig.{name}={value} is not a multiple of {factor}")

    @property
    def event(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return (self.height, self.width_pixels, *((self.channels,) if self.channels else ()))

    def module(self) -> nn.Module:
        """The network."""
        return DiT(self)


FlowConfig = MLPConfig | DiTConfig


@dataclasses.dataclass(frozen=True)
class FlowModel:
    """Pure functions of `params` for one velocity network."""

    config: FlowConfig

    def boxed_init(self, key: PRNGKeyArray):
        """Fresh parameters with their logical axis names."""
        x = jnp.zeros((1, *self.config.event))
        return self.config.module().init(key, x, jnp.zeros(1), jnp.zeros(1, jnp.int32))["params"]

    def init(self, key: PRNGKeyArray):
        """Fresh parameters: a pytree of arrays."""
        return nn.meta.unbox(self.boxed_init(key))

    def velocity(
        self,
        params,
        x: Float[Array, "batch *event"],
        time: Float[Array, "batch"],
        condition: Int[Array, "batch"],
    ) -> Float[Array, "batch *event"]:
        """The velocity, noise less data, that is expected at `x` at `time`."""
        found: Any = self.config.module().apply({"params": params}, x, time, condition)
        return found


def time_features(time: Float[Array, "batch"], size: int) -> Float[Array, "batch size"]:
    """Cosines and sines of `1000 t` at frequencies from 1 down to 1e-4 (arXiv:2006.11239)."""
    frequencies = jnp.exp(-math.log(1e4) * jnp.arange(size // 2) / (size // 2))
    angles = 1000.0 * time[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def modulated(x, shift, scale):
    """Layer-normalised over the last axis without weights of its own, then scaled and shifted; float32."""
    x, shift, scale = (jnp.asarray(part, jnp.float32) for part in (x, shift, scale))
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-6)
    return normed * (1.0 + scale) + shift


class Linear(nn.Module):
    """A linear map with bias, in `dtype`; the axes are logical names. It starts at 0 if `zero`."""

    outputs: int
    axes: tuple[str | None, str | None]
    zero: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch into"]) -> Float[Array, "*batch out"]:
        """`x @ kernel + bias`."""
        zeros = nn.initializers.zeros
        init: Any = zeros if self.zero else None
        kernel = weight(self, "kernel", (x.shape[-1], self.outputs), self.axes, init=init)
        bias = weight(self, "bias", (self.outputs,), self.axes[1:], init=zeros)
        return project(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


class Conditioning(nn.Module):
    """Time and condition as one vector."""

    conditions: int
    width: int

    @nn.compact
    def __call__(
        self, time: Float[Array, "batch"], condition: Int[Array, "batch"]
    ) -> Float[Array, "batch width"]:
        """The sum of both embeddings, activated."""
        y = Linear(self.width, (None, "mlp"), name="time_in")(time_features(time, self.width))
        y = Linear(self.width, ("mlp", "embed"), name="time_out")(jax.nn.silu(y))
        init = nn.initializers.normal(0.5)
        classes = weight(
            self, "condition", (self.conditions, self.width), (None, "embed"), init=init
        )
        return jax.nn.silu(y + classes[condition])


class VelocityMLP(nn.Module):
    """Residual layers on a vector, each modulated by time and condition."""

    config: MLPConfig

    @nn.compact
    def __call__(self, x, time, condition):
        """`[batch, size]`, `[batch]` and `[batch]` -> the velocity `[batch, size]`."""
        c = self.config
        mixed = Conditioning(c.conditions, c.width, name="conditioning")(time, condition)
        y = Linear(c.width, (None, "embed"), name="read")(x)
        for i in range(c.layers):
            shift, scale, gate = jnp.split(
                Linear(3 * c.width, ("embed", "mlp"), name=f"modulation_{i}")(mixed), 3, axis=-1
            )
            z = Linear(c.width, ("embed", "mlp"), name=f"layer_{i}")(modulated(y, shift, scale))
            y = y + gate * jax.nn.silu(z)
        return Linear(c.size, ("embed", None), zero=True, name="velocity")(y)


class DiTBlock(nn.Module):
    """Attention and MLP with adaLN-Zero: both add nothing at the start of training."""

    config: DiTConfig

    @nn.compact
    def __call__(self, x, mixed):
        """Tokens `[batch, time, width]` and the conditioning `[batch, width]` -> tokens."""
        c = self.config
        batch, time, _ = x.shape
        linear = partial(Linear, dtype=c.dtype)
        modulation = linear(6 * c.width, ("embed", "mlp"), zero=True, name="modulation")(mixed)
        shift, scale, gate, shift_2, scale_2, gate_2 = jnp.split(modulation[:, None], 6, axis=-1)
        y = linear(3 * c.width, ("embed", "heads"), name="query_key_value")(
            modulated(x, shift, scale)
        )
        q, k, v = y.reshape(batch, time, 3, c.heads, -1).transpose(2, 0, 3, 1, 4)
        one = jnp.ones((batch, time), jnp.int32)
        kernel = attend_fused if c.attention == "fused" else attend
        y = kernel(q, k, v, Visibility(one, one, causal=False), scale=(c.width // c.heads) ** -0.5)
        y = y.swapaxes(1, 2).reshape(batch, time, -1)
        x = x + gate * linear(c.width, ("heads", "embed"), name="out")(y)
        y = linear(c.mlp_width, ("embed", "mlp"), name="up")(modulated(x, shift_2, scale_2))
        y = linear(c.width, ("mlp", "embed"), name="down")(jax.nn.gelu(y))
        return constrain(x + gate_2 * y, "batch", None, "width")


def _scanned(layers: int) -> Callable[..., Any]:
    """`(block, x, mixed) -> (x, None)`: the block, so many times over with weights of each its own."""
    return nn.scan(
        lambda block, x, mixed: (block(x, mixed), None),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


class DiT(nn.Module):
    """A transformer over a picture's patches."""

    config: DiTConfig

    @nn.compact
    def __call__(self, x, time, condition):
        """`[batch, *event]`, `[batch]` and `[batch]` -> the velocity `[batch, *event]`."""
        c = self.config
        rows, columns = c.height // c.patch, c.width_pixels // c.patch
        channels = max(c.channels, 1)
        mixed = Conditioning(c.conditions, c.width, name="conditioning")(time, condition)
        y = x.reshape(-1, rows, c.patch, columns, c.patch, channels).swapaxes(2, 3)
        y = y.reshape(-1, rows * columns, c.patch**2 * channels)
        y = Linear(c.width, (None, "embed"), name="read")(y)
        places = (rows * columns, c.width)
        init = nn.initializers.normal(0.02)
        y = y + weight(self, "positions", places, (None, "embed"), init=init)
        y = y.astype(c.dtype)
        block = nn.remat(DiTBlock, prevent_cse=not c.scan) if c.remat else DiTBlock
        if c.scan:
            y, _ = _scanned(c.layers)(block(c, name="blocks"), y, mixed)
        else:
            for i in range(c.layers):
                y = block(c, name=f"block_{i}")(y, mixed)
        shift, scale = jnp.split(
            Linear(2 * c.width, ("embed", "mlp"), zero=True, name="modulation")(mixed), 2, axis=-1
        )
        y = modulated(y, shift[:, None], scale[:, None])
        y = Linear(c.patch**2 * channels, ("embed", None), zero=True, name="velocity")(y)
        y = y.reshape(-1, rows, columns, c.patch, c.patch, channels).swapaxes(2, 3)
        return y.reshape(x.shape)
