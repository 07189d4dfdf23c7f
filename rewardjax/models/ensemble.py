"""Several reward models of one architecture, trained and asked at once: parameters with a leading axis."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rewardjax.models.heads import RewardModel


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Pure functions of parameters that are those of all members, stacked.

    Attributes:
      model: of each member.
      members: how many there are.
    """

    model: RewardModel
    members: int

    def boxed_init(self, key: PRNGKeyArray, backbone: Any = None) -> Any:
        """Fresh parameters with logical axis names, of each member its own, on one backbone if given."""
        keys = jax.random.split(key, self.members)
        params = jax.vmap(lambda key: self.model.boxed_init(key, backbone))(keys)
        return jax.tree.map(
            lambda box: box.add_axis(0, {nn.meta.PARTITION_NAME: None}),
            params,
            is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned),
        )

    def init(self, key: PRNGKeyArray, backbone: Any = None) -> Any:
        """`boxed_init` without the names."""
        return nn.meta.unbox(self.boxed_init(key, backbone))

    def score(
        self, params: Any, tokens: Int[Array, "*batch time"], valid: Bool[Array, "*batch time"]
    ) -> Float[Array, "members *batch"]:
        """Every member's score of every sequence."""
        return jax.vmap(self.model.score, in_axes=(0, None, None))(params, tokens, valid)

    def score_own(
        self,
        params: Any,
        tokens: Int[Array, "members *batch time"],
        valid: Bool[Array, "members *batch time"],
    ) -> Float[Array, "members *batch"]:
        """Each member's scores of its own sequences."""
        return jax.vmap(self.model.score)(params, tokens, valid)
