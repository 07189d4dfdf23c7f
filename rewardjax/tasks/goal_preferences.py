"""A grid on which people want to be near different places, and say of two cells which they prefer.

All methods are pure functions of keys and arrays and can be jitted.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rewardjax.envs.mdp import MDP, without_rewards
from rewardjax.tasks.annotators import compare


@struct.dataclass
class Users:
    """People, each with a set of comparisons.

    Attributes:
      kind: which goal each wants.
      preferred, other: cells of each comparison.
    """

    kind: Int[Array, "users"]
    preferred: Int[Array, "users set"]
    other: Int[Array, "users set"]


@dataclasses.dataclass(frozen=True)
class GoalPreferences:
    """The grid and the people.

    Attributes:
      size: cells of a side; cell `size * row + column`.
      goals: row and column of what each kind of people wants; each is as frequent.
      flip_rates: of each kind, how often they answer the wrong way round.
      temperature: of their choices, in units of utility.

    Raises:
      ValueError: not one flip rate for each goal.
    """

    size: int = 9
    goals: tuple[tuple[int, int], ...] = ((0, 0), (0, 8), (8, 0), (8, 8))
    flip_rates: tuple[float, ...] = (0.0, 0.0, 0.2, 0.2)
    temperature: float = 0.02

    def __post_init__(self) -> None:
        if len(self.goals) != len(self.flip_rates):
            raise ValueError(
                f"flip_rates: expected one for each of {len(self.goals)} goals,"
                f" found {len(self.flip_rates)}"
            )

    @property
    def cells(self) -> int:
        """How many there are."""
        return self.size**2

    @property
    def goal_cells(self) -> Int[np.ndarray, "goals"]:
        """The cell of each goal."""
        return np.array([self.size * row + column for row, column in self.goals])

    @property
    def places(self) -> Float[np.ndarray, "cells 2"]:
        """Row and column of each cell, from -1 to 1."""
        rows = np.stack(np.divmod(np.arange(self.cells), self.size), axis=1)
        return (2 * rows / (self.size - 1) - 1).astype(np.float32)

    @property
    def utilities(self) -> Float[np.ndarray, "goals cells"]:
        """What each cell is worth to each kind: 0 at the goal, -1 as many steps away as can be."""
        steps = np.abs(self.places[self.goal_cells][:, None] - self.places).sum(axis=-1)
        return (-steps / 4).astype(np.float32)

    def comparisons(
        self, key: PRNGKeyArray, kind: Int[Array, "users"], pairs: Int[Array, "users set 2"]
    ) -> Users:
        """The answers of users of these kinds about pairs of cells."""
        utility = jnp.asarray(self.utilities)[kind[:, None, None], pairs]
        flip_rate = jnp.asarray(self.flip_rates)[kind][:, None]
        first = compare(
            key,
            utility[..., 0],
            utility[..., 1],
            temperature=self.temperature,
            flip_rate=jnp.broadcast_to(flip_rate, utility.shape[:2]),
        )
        sides = jnp.where(first[..., None], pairs, pairs[..., ::-1])
        return Users(kind, sides[..., 0], sides[..., 1])

    def users(self, key: PRNGKeyArray, n: int, comparisons: int) -> Users:
        """`n` users, with answers about uniformly drawn pairs of cells."""
        kind_key, pair_key, label_key = jax.random.split(key, 3)
        kind = jax.random.randint(kind_key, (n,), 0, len(self.goals))
        return self.comparisons(label_key, kind, self.pairs(pair_key, n, comparisons))

    def pairs(self, key: PRNGKeyArray, *shape: int) -> Int[Array, "*shape 2"]:
        """Uniformly drawn pairs of different cells."""
        first_key, gap_key = jax.random.split(key)
        first = jax.random.randint(first_key, shape, 0, self.cells)
        gap = jax.random.randint(gap_key, shape, 1, self.cells)
        return jnp.stack([first, (first + gap) % self.cells], axis=-1)

    def process(self, discount: float) -> MDP:
        """Walking: north, south, west, east or staying; walls hold. It starts anywhere."""
        row, column = np.divmod(np.arange(self.cells), self.size)
        moves = [(-1, 0), (1, 0), (0, -1), (0, 1), (0, 0)]
        reached = [
            self.size * np.clip(row + down, 0, self.size - 1)
            + np.clip(column + right, 0, self.size - 1)
            for down, right in moves
        ]
        transition = jax.nn.one_hot(np.stack(reached, axis=1), self.cells)
        return without_rewards(transition, discount)

    def correct(
        self,
        kind: Int[Array, "users"],
        pairs: Int[Array, "users set 2"],
        lead: Float[Array, "users set"],
    ) -> tuple[Bool[Array, "users set"], Bool[Array, "users set"]]:
        """(where a lead of the first cell has the sign of the utilities', where these differ)."""
        utility = jnp.asarray(self.utilities)[kind[:, None, None], pairs]
        gap = utility[..., 0] - utility[..., 1]
        return gap * lead > 0, gap != 0
