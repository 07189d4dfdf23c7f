"""Compared pairs whose responses also have a level of quality, such as bad, normal or good."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key

from rewardjax.losses.ordinal import UNKNOWN
from rewardjax.recipes.preference_data import comparisons
from rewardjax.recipes.preference_lab import PreferenceLab
from rewardjax.trajectory import Prompts, Trajectory, respond

SCALE = 4096  # responses whose gold utilities say what a quality is


def levelled_pairs(
    lab: PreferenceLab,
    key: Key[Array, ""],
    n: int,
    *,
    regions: int,
    noise: tuple[float, float],
) -> dict[str, Array]:
    """Comparisons of `n` pairs whose annotator is sure of some themes and not of others.

    A response's quality is the rank of its gold utility among those that the world writes, so that it is
    uniform on [0, 1]; levels are equal shares of it.

    Args:
      lab: its world and its writers.
      key: consumed.
      n: pairs.
      regions: levels.
      noise: standard deviation of what is seen of a quality, in clear themes (the first half) and in
        ambiguous ones.

    Returns:
      As `comparisons`, chosen first, with quality as `utility`; `level` `[n, 2]`, 0 the worst;
      `ambiguous` `[n, 2]`; and `lot` `[n]`, uniform on [0, 1), by which some pairs can be chosen.
    """
    world = lab.world

    def written(key: Key[Array, ""], n: int) -> Trajectory:
        prompt_key, write_key = jax.random.split(key)
        prompts: Prompts = jax.tree.map(
            lambda x: jnp.repeat(x, 2, axis=0), world.prompts(prompt_key, n)
        )
        tokens, valid, _ = world.writers(write_key, prompts)
        return respond(prompts, tokens, valid)

    scale_key, write_key, label_key, lot_key = jax.random.split(key, 4)
    ranked = jnp.sort(lab.gold(written(scale_key, SCALE)))
    traj = written(write_key, n)
    gold = lab.gold(traj)
    places = [jnp.searchsorted(ranked, gold, side=side) for side in ("left", "right")]
    quality = (places[0] + places[1]) / (2 * ranked.size)
    ambiguous = traj.info["theme"][:, 0] >= world.themes // 2
    spread = 2**0.5 * jnp.where(ambiguous[0::2], noise[1], noise[0])

    def label(key: Key[Array, ""], a: Array, b: Array) -> Array:
        return a - b + spread * jax.random.normal(key, a.shape) > 0

    found = comparisons(traj.with_info(ambiguous=ambiguous), quality, label, label_key)
    level = jnp.minimum(jnp.floor(found["utility"] * regions), regions - 1).astype(jnp.int32)
    return found | {"level": level, "lot": jax.random.uniform(lot_key, (n,))}


def told_levels(
    pairs: dict[str, np.ndarray], known: Bool[np.ndarray, "pairs"]
) -> dict[str, np.ndarray]:
    """What a model is trained on: `tokens`, `valid` and `region`, the levels of the `known` pairs.

    Pairs whose known levels contradict the label are dropped.
    """
    region = np.where(known[:, None], pairs["level"], UNKNOWN)
    kept = region[:, 0] >= region[:, 1]
    columns = {"tokens": pairs["tokens"], "valid": pairs["valid"], "region": region}
    return {name: x[kept] for name, x in columns.items()}
