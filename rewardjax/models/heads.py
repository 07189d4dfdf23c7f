"""Scorers: one backbone, and a small head that reads numbers from its states.

What the numbers mean is said by the pure functions that read them: one is a scalar reward (`losses.
bradley_terry`) or a value, nine are the logits of a rating (`losses.ordinal`), 2k an embedding of
preference (`losses.preference_score`), several a regression on attributes.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rewardjax.models.language_model import state_before
from rewardjax.models.transformer import Transformer, TransformerConfig, weight


class Head(nn.Module):
    """A float32 read-out of `outputs` numbers, linear or through a layer of `hidden` SiLU units.

    It starts at 0 unless the weights of its last layer get a `spread` (a standard deviation).
    """

    outputs: int = 1
    bias: bool = True
    spread: float = 0.0
    hidden: int = 0

    @nn.compact
    def __call__(self, states: Float[Array, "*batch width"]) -> Float[Array, "*batch outputs"]:
        """Read `outputs` numbers from each hidden state."""
        zeros = nn.initializers.zeros
        axis: str | None = "width"
        x = states.astype(jnp.float32)
        if self.hidden:
            x = x @ weight(self, "hidden_kernel", (x.shape[-1], self.hidden), ("width", None))
            x = nn.silu(x + weight(self, "hidden_bias", (self.hidden,), (None,), init=zeros))
            axis = None
        init = nn.initializers.normal(self.spread) if self.spread else zeros
        y = x @ weight(self, "kernel", (x.shape[-1], self.outputs), (axis, None), init=init)
        if self.bias:
            y = y + weight(self, "bias", (self.outputs,), (None,), init=zeros)
        return y


def last_valid(
    values: Float[Array, "batch time ..."], valid: Bool[Array, "batch time"]
) -> Float[Array, "batch ..."]:
    """The value at each row's last valid step, found from the mask; that of step 0 in an empty row."""
    steps = jnp.arange(valid.shape[1])
    last = jnp.max(jnp.where(valid, steps, 0), axis=1)
    return jnp.take_along_axis(values, last.reshape(-1, *(1,) * (values.ndim - 1)), axis=1).squeeze(
        1
    )


class Scorer(nn.Module):
    """A transformer with a head on every step: a reward model or a critic."""

    config: TransformerConfig
    outputs: int = 1
    bias: bool = True
    spread: float = 0.0
    hidden: int = 0

    def setup(self):
        """Backbone and head."""
        self.backbone = Transformer(self.config)
        self.head = Head(self.outputs, self.bias, self.spread, self.hidden)

    def __call__(
        self, tokens: Int[Array, "batch time"], valid: Bool[Array, "batch time"]
    ) -> Float[Array, "batch outputs"]:
        """Scores of whole sequences, read at the last valid token."""
        return last_valid(self.steps(tokens, valid), valid)

    def steps(
        self, tokens: Int[Array, "batch time"], valid: Bool[Array, "batch time"]
    ) -> Float[Array, "batch time outputs"]:
        """The head's outputs at every step."""
        states, _ = self.states(tokens, valid.astype(jnp.int32))
        return self.read(states)

    def states(self, tokens, segments, positions=None, cache=None):
        """What `Transformer.__call__` gives: the states that the head reads, and the cache."""
        return self.backbone(tokens, segments, positions, cache)

    def read(self, states: Float[Array, "*batch width"]) -> Float[Array, "*batch outputs"]:
        """The head's outputs on states of the backbone."""
        return self.head(states)

    def before_steps(
        self, tokens: Int[Array, "batch time"], valid: Bool[Array, "batch time"]
    ) -> Float[Array, "batch time outputs"]:
        """The head's outputs in the state in which each token is chosen (a critic's values)."""
        return state_before(self.steps(tokens, valid))


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """Pure functions of `params` for a scorer: sequences to scores.

    Attributes:
      config: of the backbone.
      outputs: numbers that the head reads at each step.
      bias, spread, hidden: of the `Head`.
    """

    config: TransformerConfig
    outputs: int = 1
    bias: bool = True
    spread: float = 0.0
    hidden: int = 0

    @property
    def module(self) -> Scorer:
        """The Flax module behind the functions."""
        return Scorer(self.config, self.outputs, self.bias, self.spread, self.hidden)

    def boxed_init(self, key: PRNGKeyArray, backbone=None):
        """Fresh parameters with logical axis names; those of the backbone are `backbone` if given."""
        tokens = jnp.zeros((1, 2), jnp.int32)
        params = self.module.init(key, tokens, tokens == 0)["params"]
        return (
            params
            if backbone is None
            else {**params, "backbone": like(params["backbone"], backbone)}
        )

    def init(self, key: PRNGKeyArray, backbone=None):
        """Fresh parameters: a pytree of arrays, on a (language model's) backbone if one is given."""
        return nn.meta.unbox(self.boxed_init(key, backbone))

    def scores(
        self, params, tokens: Int[Array, "*batch time"], valid: Bool[Array, "*batch time"]
    ) -> Float[Array, "*batch outputs"]:
        """Float32 scores of whole sequences, with any leading axes."""
        lead, time = tokens.shape[:-1], tokens.shape[-1]
        flat = tokens.reshape(-1, time), valid.reshape(-1, time)
        found: Any = self.module.apply({"params": params}, *flat)
        return found.reshape(*lead, self.outputs)

    def steps(
        self, params, tokens: Int[Array, "*batch time"], valid: Bool[Array, "*batch time"]
    ) -> Float[Array, "*batch time outputs"]:
        """The head's outputs at every step, with any leading axes."""
        flat = (x.reshape(-1, x.shape[-1]) for x in (tokens, valid))
        found: Any = self.module.apply({"params": params}, *flat, method="steps")
        return found.reshape(*tokens.shape, self.outputs)

    def states(self, params, tokens, segments, positions=None, cache=None):
        """Hidden states `[batch, time, width]`, and the cache if there is one."""
        arguments = tokens, segments, positions, cache
        return self.module.apply({"params": params}, *arguments, method="states")

    def read(self, params, states: Float[Array, "*batch width"]) -> Float[Array, "*batch outputs"]:
        """The head's outputs on hidden states."""
        found: Any = self.module.apply({"params": params}, states, method="read")
        return found

    def score(
        self, params, tokens: Int[Array, "*batch time"], valid: Bool[Array, "*batch time"]
    ) -> Float[Array, "*batch"]:
        """The first (for a reward model: the only) score of each sequence."""
        return self.scores(params, tokens, valid)[..., 0]

    def values(
        self, params, tokens: Int[Array, "batch time"], valid: Bool[Array, "batch time"]
    ) -> Float[Array, "batch time"]:
        """The value of the state in which each token is chosen."""
        found: Any = self.module.apply({"params": params}, tokens, valid, method="before_steps")
        return found[..., 0]


def like(boxed, params):
    """`params` with the logical axis names of `boxed`, a pytree of the same structure."""
    return jax.tree.map(
        lambda box, x: box.replace_boxed(x),
        boxed,
        params,
        is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned),
    )
