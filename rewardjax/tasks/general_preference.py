"""Preferences that no score explains: a table of who beats whom, partly rock-paper-scissors.

The responses of a prompt stand in blocks of three in which each beats the next; besides, each has a
utility. With `c[i, j]` 1, -1 or 0 where i beats j in a block, loses to it, or is of another block,

    P(i beats j) = sigmoid(cyclic * c[i, j] + u_i - u_j)

so that P(i beats j) + P(j beats i) = 1. All functions jit.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


@dataclass(frozen=True)
class GeneralPreference:
    """The world.

    Attributes:
      prompts: how many.
      blocks: of three responses each.
      cyclic: log odds with which a response beats the next of its block, utilities aside.
      transitive: standard deviation of the responses' utilities, in log odds.

    Raises:
      ValueError: there is no prompt or no block.
    """

    prompts: int = 20
    blocks: int = 3
    cyclic: float = 3.0
    transitive: float = 0.5

    def __post_init__(self) -> None:
        for name in ("prompts", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, found {getattr(self, name)}")

    @property
    def responses(self) -> int:
        """How many a prompt has."""
        return 3 * self.blocks

    def table(self, key: Key[Array, ""]) -> Float[Array, "prompts responses responses"]:
        """Draws utilities; returns the probability that the row's response beats the column's."""
        utility = self.transitive * jax.random.normal(key, (self.prompts, self.responses))
        wheel = jnp.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]], jnp.float32)
        cycles = jnp.kron(jnp.eye(self.blocks), wheel)
        return jax.nn.sigmoid(self.cyclic * cycles + utility[:, :, None] - utility[:, None, :])


def expected_win_rate(
    table: Float[Array, "prompts responses responses"],
    policy: Float[Array, "prompts responses"],
    opponent: Float[Array, "prompts responses"],
) -> Float[Array, "prompts"]:
    """How probably a response of `policy` beats one of `opponent`, exactly, by prompt."""
    return jnp.einsum("pi,pij,pj->p", policy, table, opponent)


def judge_all(
    key: Key[Array, ""],
    table: Float[Array, "prompts responses responses"],
    prompt: Int[Array, "batch"],
    response: Int[Array, "batch size"],
) -> Bool[Array, "batch size size"]:
    """One judgement of each pair of a prompt's responses: where the row's beats the column's.

    Of two equal responses either may win. A response is not judged against itself: the diagonal is off.
    """
    size = response.shape[1]
    probability = table[prompt[:, None, None], response[:, :, None], response[:, None, :]]
    drawn = jnp.triu(jax.random.bernoulli(key, probability), 1)
    lower = jnp.tril(jnp.ones((size, size), bool), -1)
    return drawn | (lower & ~jnp.swapaxes(drawn, 1, 2))
