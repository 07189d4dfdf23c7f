"""A policy over a few responses, a table of logits, improved in rounds by how its samples compare."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

# (log-ratios to the policy that sampled [batch, group], scores of each over each [batch, group, group])
# -> values to be averaged.
GroupLoss = Callable[[Float[Array, "batch group"], Float[Array, "batch group group"]], Array]


@dataclasses.dataclass(frozen=True)
class TableConfig:
    """Budget of a policy.

    Attributes:
      rounds: each starts from, and is relative to, the policy before it.
      updates: gradient steps a round, on fresh samples of the policy that it began with.
      batch: groups an update.
      group: samples a group.
      learning_rate: of Adam, which starts anew every round.
      start_spread: standard deviation of the first policy's logits.
    """

    rounds: int = 60
    updates: int = 20
    batch: int = 64
    group: int = 5
    learning_rate: float = 0.05
    start_spread: float = 0.5


def table_policies(
    config: TableConfig,
    loss: GroupLoss,
    scores: Float[Array, "responses responses"],
    key: PRNGKeyArray,
) -> Float[Array, "rounds responses"]:
    """The policy after each round, as probabilities.

    Args:
      config: the budget.
      loss: of groups of samples.
      scores: of each response (row) over each (column).
      key: draws the first policy, and samples.
    """
    tx = optax.adam(config.learning_rate)
    start_key, key = jax.random.split(key)

    def objective(policy, before, key):
        sampled = jax.random.categorical(key, before, shape=(config.batch, config.group))
        log_ratio = (jax.nn.log_softmax(policy) - jax.nn.log_softmax(before))[sampled]
        return jnp.mean(loss(log_ratio, scores[sampled[:, :, None], sampled[:, None, :]]))

    def improve(before, key):
        def step(carry: tuple[Array, Any], key):
            policy, state = carry
            change, state = tx.update(jax.grad(objective)(policy, before, key), state)
            return (policy + change, state), None

        keys = jax.random.split(key, config.updates)
        (policy, _), _ = jax.lax.scan(step, (before, tx.init(before)), keys)
        return policy, jax.nn.softmax(policy)

    start = config.start_spread * jax.random.normal(start_key, scores.shape[:1])
    return jax.lax.scan(improve, start, jax.random.split(key, config.rounds))[1]
