"""Multi-layer perceptrons for control: policies over vectors, and scores of vectors."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rewardjax.models.heads import Head
from rewardjax.models.transformer import weight


@struct.dataclass
class Gaussian:
    """Independent normal distributions of the numbers of an action."""

    mean: Float[Array, "*batch action"]
    log_std: Float[Array, "*batch action"]

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*batch action"]:
        """One action each."""
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape)

    @property
    def mode(self) -> Float[Array, "*batch action"]:
        """The likeliest action."""
        return self.mean

    def logprob(self, action: Float[Array, "*batch action"]) -> Float[Array, "*batch"]:
        """Log-density in nats."""
        deviations = (action - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * (deviations**2 + math.log(2 * math.pi)) - self.log_std, axis=-1)

    @property
    def entropy(self) -> Float[Array, "*batch"]:
        """Differential entropy in nats."""
        return jnp.sum(self.log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)


@struct.dataclass
class Categorical:
    """A distribution over actions that are integers."""

    logits: Float[Array, "*batch action"]

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch"]:
        """One action each."""
        return jax.random.categorical(key, self.logits)

    @property
    def mode(self) -> Int[Array, "*batch"]:
        """The likeliest action."""
        return jnp.argmax(self.logits, axis=-1)

    def logprob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Log-probability in nats."""
        found = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(found, action[..., None], axis=-1)[..., 0]

    @property
    def entropy(self) -> Float[Array, "*batch"]:
        """Entropy in nats."""
        found = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(found) * found, axis=-1)


class MLP(nn.Module):
    """Hyperbolic-tangent layers and a float32 read-out; `spread` is its first weights' deviation."""

    widths: tuple[int, ...]
    outputs: int = 1
    spread: float = 0.01

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """`outputs` numbers from each vector."""
        for i, width in enumerate(self.widths):
            kernel = weight(self, f"kernel_{i}", (x.shape[-1], width), (None, "mlp"))
            bias = weight(self, f"bias_{i}", (width,), ("mlp",), init=nn.initializers.zeros)
            x = jnp.tanh(x @ kernel + bias)
        return Head(self.outputs, spread=self.spread)(x)


class GaussianActor(nn.Module):
    """A policy whose mean depends on the observation, its deviation on nothing."""

    actions: int
    widths: tuple[int, ...] = (64, 64)
    log_std: float = 0.0

    @nn.compact
    def __call__(self, observation: Float[Array, "*batch observation"]) -> Gaussian:
        """How actions are drawn in each state; `log_std` is where the deviations start."""
        mean = MLP(self.widths, self.actions, name="mean")(observation)
        init = nn.initializers.constant(self.log_std)
        log_std = weight(self, "log_std", (self.actions,), (None,), init=init)
        return Gaussian(mean, jnp.broadcast_to(log_std, mean.shape))


class CategoricalActor(nn.Module):
    """A policy over a finite set of actions."""

    actions: int
    widths: tuple[int, ...] = (64, 64)

    @nn.compact
    def __call__(self, observation: Float[Array, "*batch observation"]) -> Categorical:
        """How actions are drawn in each state."""
        return Categorical(MLP(self.widths, self.actions, name="logits")(observation))


@dataclasses.dataclass(frozen=True)
class VectorScorer:
    """Pure functions of `params` from a vector to a number: a value function, a reward model.

    Attributes:
      inputs: numbers in a vector.
      widths: of the hidden layers.
    """

    inputs: int
    widths: tuple[int, ...] = (64, 64)

    def boxed_init(self, key: PRNGKeyArray):
        """Fresh parameters with logical axis names."""
        return MLP(self.widths).init(key, jnp.zeros((1, self.inputs)))["params"]

    def score(self, params, vectors: Float[Array, "*batch inputs"]) -> Float[Array, "*batch"]:
        """The score of each vector."""
        found: Any = MLP(self.widths).apply({"params": params}, vectors)
        return found[..., 0]
