"""Pairs of a good and a bad answer whose style goes with their class, and the same with other styles."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from rewardjax.recipes.preference_data import comparisons
from rewardjax.tasks.annotators import compare
from rewardjax.tasks.styled_answers import StyledAnswers
from rewardjax.trajectory import Prompts, Trajectory, respond

Pairs = dict[str, Array]


def answered(
    world: StyledAnswers, key: Key[Array, ""], prompts: Prompts, good: Bool[Array, "n"]
) -> Trajectory:
    """Answers of these classes; `info` has what they say and how, `contents` and `styles`."""
    keys = jax.random.split(key, 3)
    contents = world.contents(keys[0], prompts.info["topic"], good)
    styles = world.styles(keys[1], good)
    traj = respond(prompts, *world.written(keys[2], contents, styles))
    return traj.with_info(contents=contents, styles=styles)


def styled_pairs(
    world: StyledAnswers, key: Key[Array, ""], n: int, noise: float | Float[Array, ""]
) -> Pairs:
    """`n` pairs of a good and a bad answer, the preferred one first, as `comparisons` has them.

    Args:
      world: the task.
      key: consumed.
      n: static.
      noise: share of labels turned round.
    """
    keys = jax.random.split(key, 3)
    prompts = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), world.prompts(keys[0], n))
    good = jnp.arange(2 * n) % 2 == 0
    label = partial(compare, temperature=0.0, flip_rate=noise)
    traj = answered(world, keys[1], prompts, good)
    return comparisons(traj, good.astype(jnp.float32), label, keys[2])


def restyled(
    world: StyledAnswers,
    key: Key[Array, ""],
    pairs: Pairs,
    flips: Bool[Array | np.ndarray, "#pairs #sides styles"],
) -> Pairs:
    """Both answers of each pair, with the same content and the styles `flips` turned round."""
    n, start, shape = pairs["topic"].size, world.prompt_length, pairs["tokens"].shape
    styles = (pairs["styles"] ^ flips).reshape(n, -1)
    tokens, valid = world.written(key, pairs["contents"].reshape(n, -1), styles)

    def behind_prompt(old, new):
        return jnp.concatenate([old[..., :start], new.reshape(*shape[:2], -1)], axis=-1)

    return {
        "tokens": behind_prompt(pairs["tokens"], tokens),
        "valid": behind_prompt(pairs["valid"], valid),
    }


def cut_short(key: Key[Array, ""], pairs: Pairs, start: int) -> Pairs:
    """Half of the pairs with both answers broken off at a random column behind `start` (static).

    A reward model that is to score unfinished text has to be trained on some.
    """
    n, _, time = pairs["tokens"].shape
    half_key, column_key = jax.random.split(key)
    column = jax.random.randint(column_key, (n, 1, 1), start + 1, time)
    column = jnp.where(jax.random.bernoulli(half_key, 0.5, (n, 1, 1)), column, time)
    return {"tokens": pairs["tokens"], "valid": pairs["valid"] & (jnp.arange(time) < column)}
