"""Small modules that turn a backbone's hidden states into scores."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rewardjax.models.language_model import state_before
from rewardjax.models.transformer import Transformer, TransformerConfig, weight


class Head(nn.Module):
    """A float32 linear read-out of `outputs` numbers; starts at 0 unless `spread` is given.

    A scalar head (`outputs=1`) serves reward models and critics, several outputs serve attribute
    regression.
    """

    outputs: int = 1
    bias: bool = True
    spread: float = 0.0

    @nn.compact
    def __call__(self, hidden: Float[Array, "*batch width"]) -> Float[Array, "*batch outputs"]:
        """Read `outputs` numbers from each hidden state."""
        init = nn.initializers.normal(self.spread) if self.spread else nn.initializers.zeros
        kernel = weight(
            self, "kernel", (hidden.shape[-1], self.outputs), ("width", None), init=init
        )
        y = hidden.astype(jnp.float32) @ kernel
        if self.bias:
            zeros = nn.initializers.zeros
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

    def setup(self):
        """Backbone and head."""
        self.backbone = Transformer(self.config)
        self.head = Head(self.outputs)

    def __call__(
        self, tokens: Int[Array, "batch time"], valid: Bool[Array, "batch time"]
    ) -> Float[Array, "batch outputs"]:
        """Scores of whole sequences, read at the last valid token."""
        return last_valid(self.steps(tokens, valid), valid)

    def steps(
        self, tokens: Int[Array, "batch time"], valid: Bool[Array, "batch time"]
    ) -> Float[Array, "batch time outputs"]:
        """The head's outputs at every step."""
        hidden, _ = self.backbone(tokens, valid.astype(jnp.int32))
        return self.head(hidden)

    def before_steps(
        self, tokens: Int[Array, "batch time"], valid: Bool[Array, "batch time"]
    ) -> Float[Array, "batch time outputs"]:
        """The head's outputs in the state in which each token is chosen (a critic's values)."""
        return state_before(self.steps(tokens, valid))


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """Pure functions of `params` for a scorer: sequences to scores."""

    config: TransformerConfig
    outputs: int = 1

    @property
    def module(self) -> Scorer:
        """The Flax module behind the functions."""
        return Scorer(self.config, self.outputs)

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
