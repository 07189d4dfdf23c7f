"""Demonstrations and labelled comparisons, made on the device from a world and a policy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rewardjax.data.sources import Source
from rewardjax.sampling.best_of_n import best_of_n
from rewardjax.trajectory import Prompts, Trajectory, respond

# Draws labels, true where the first of two utilities is preferred: (key, a, b) -> Bool[batch].
Label = Callable[[PRNGKeyArray, Float[Array, "batch"], Float[Array, "batch"]], Array]


class PairStudy(NamedTuple):
    """What reward models that are compared on the same pairs share.

    Attributes:
      backbone: a language model's parameters, from which they start.
      source: `(batch_size, columns, seed) -> Source` of training pairs with those further columns.
      evaluate: `(params, split) -> metrics` of a reward model on "validation" or "test".
      show: `params -> rows` that a person can read.
    """

    backbone: Any
    source: Callable[..., Source]
    evaluate: Callable[[Any, str], dict[str, float]]
    show: Callable[[Any], list[dict]]


def language_batch(traj: Trajectory) -> dict[str, Array]:
    """A trajectory as a batch of demonstrations for language modelling."""
    return {"tokens": traj.tokens, "valid": traj.valid, "mask": traj.mask}


def demonstrations(task_prompts, write) -> Callable[[PRNGKeyArray, int], dict[str, Array]]:
    """Fresh demonstrations for each step: `(key, n) -> batch`.

    Args:
      task_prompts: `(key, n) -> Prompts`.
      write: `(key, prompts) -> (tokens, valid, ...)`, the responses.
    """

    def batches(key: PRNGKeyArray, n: int) -> dict[str, Array]:
        prompt_key, write_key = jax.random.split(key)
        prompts: Prompts = task_prompts(prompt_key, n)
        tokens, valid, *_ = write(write_key, prompts)
        return language_batch(respond(prompts, tokens, valid))

    return batches


def comparisons(
    traj: Trajectory, utility: Float[Array, "batch"], label: Label, key: PRNGKeyArray
) -> dict[str, Array]:
    """Adjacent rows (2i, 2i + 1) of a trajectory as labelled pairs, the preferred response first.

    Args:
      traj: two responses for each prompt.
      utility: of each row, by which `label` prefers.
      label: the annotator.
      key: consumed by the annotator.

    Returns:
      `tokens`, `valid`, `mask` `[pairs, 2, time]`, `utility` `[pairs, 2]`, and the trajectory's
      `info` columns, `[pairs, 2, ...]`, in the same order.
    """
    first = label(key, utility[0::2], utility[1::2])
    order = jnp.where(first[:, None], jnp.array([0, 1]), jnp.array([1, 0]))

    def arrange(x):
        pairs = x.reshape(-1, 2, *x.shape[1:])
        return jnp.take_along_axis(pairs, order.reshape(-1, 2, *(1,) * (x.ndim - 1)), axis=1)

    columns = language_batch(traj) | {"utility": utility} | traj.info
    return jax.tree.map(arrange, columns)


def best_and_worst(
    traj: Trajectory, utility: Float[Array, "batch"], group_size: int
) -> dict[str, Array]:
    """Of each group of adjacent rows the best and the worst response, in this order.

    Returns:
      The columns of `comparisons`, `[groups, 2, ...]`. Where a whole group ties, both responses
      have the same utility: such a pair says nothing and should be left out.
    """
    rated = traj.with_info(utility=utility)
    ends = [best_of_n(rated, sign * utility, group_size) for sign in (1.0, -1.0)]
    columns = [language_batch(end) | end.info for end in ends]
    return jax.tree.map(lambda *sides: jnp.stack(sides, axis=1), *columns)
