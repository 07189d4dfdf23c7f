"""Responses rated on several objectives, and pairs between which the prompt's own objective decides.

People and judges are fond of length: it raises every rating, and every choice.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from scipy import stats

from rewardjax.evaluation.accuracy import pairwise_accuracy
from rewardjax.evaluation.best_of_n import best_of_n_curve
from rewardjax.recipes.frozen_backbone import FrozenBackbone
from rewardjax.tasks.annotators import compare, rate_some
from rewardjax.tasks.preference_world import PreferenceWorld
from rewardjax.trajectory import Trajectory

OBJECTIVES = ("correct", "safe", "polite", "varied", "ornate", "verbose")
VERBOSE = OBJECTIVES.index("verbose")


@dataclasses.dataclass(frozen=True)
class RatingsConfig:
    """Who rates and who chooses; units are standard deviations of an objective unless said.

    Attributes:
      observed: share of an item's objectives that are rated.
      rating_range: what is rated 0 and 1 lies this far from the mean, either way.
      rating_noise: of a rating, on its scale of 0 to 1.
      rating_bias: what a rating of any objective gains with verbosity.
      others: weight in gold of the objectives that are not the prompt's own, verbosity apart.
      length_bias: what a choice gains with verbosity.
      temperature: of choices.
    """

    observed: float = 0.4
    rating_range: float = 2.5
    rating_noise: float = 0.1
    rating_bias: float = 0.5
    others: float = 0.2
    length_bias: float = 0.5
    temperature: float = 0.5


def qualities(world: PreferenceWorld, traj: Trajectory) -> Float[Array, "batch objectives"]:
    """`OBJECTIVES` of responses, higher is more.

    Coverage of the theme; the share of tokens that are not negative, are positive, repeat none
    before them, are gaudy; the number of tokens.
    """
    content = traj.mask & (traj.tokens != world.eos)
    counts = jnp.sum(jax.nn.one_hot(traj.tokens, world.vocab_size) * content[..., None], axis=1)
    length, distinct = jnp.sum(counts, axis=1), jnp.sum(counts > 0, axis=1)
    positive = jnp.sum(counts[:, world.first_positive : world.first_negative], axis=1)
    negative = jnp.sum(counts[:, world.first_negative : world.first_marker], axis=1)
    gaudy = jnp.sum(counts[:, world.first_gaudy : world.first_positive], axis=1)
    coverage = world.attributes(traj.tokens, traj.mask, traj.info)[:, 0]
    shares = jnp.stack([positive, distinct, gaudy], axis=1) / jnp.maximum(length, 1.0)[:, None]
    safe = 1 - negative / jnp.maximum(length, 1.0)
    return jnp.concatenate([coverage[:, None], safe[:, None], shares, length[:, None]], axis=1)


def own_objective(traj: Trajectory) -> Array:
    """The objective that each row's prompt asks for, by its theme: one of the first four."""
    return traj.info["theme"][:, 0] % (VERBOSE - 1)


def gold(
    config: RatingsConfig, quality: Float[Array, "batch objectives"], own: Array
) -> Float[Array, "batch"]:
    """What responses are worth: the prompt's own objective, a little of the others, no length."""
    weights = jnp.where(jax.nn.one_hot(own, len(OBJECTIVES)) > 0, 1.0, config.others)
    return jnp.sum(weights.at[:, VERBOSE].set(0.0) * quality, axis=1)


def responses(
    config: RatingsConfig,
    backbone: FrozenBackbone,
    params: Any,
    key: PRNGKeyArray,
    n: int,
    each: int,
) -> dict[str, Array]:
    """`each` writers' responses to `n` prompts.

    Returns:
      `response` `[n, each, width]` and `prompt` `[n, width]`, features; `quality`, of each objective
      `[n, each, objectives]`; `gold` and `length`, in tokens, `[n, each]`; `own` `[n]`, the objective
      that the prompt asks for.
    """
    traj = backbone.write(key, n, each)
    features, own = backbone.features(params, traj), own_objective(traj)
    quality = backbone.standardised(traj)
    found = {
        "response": features.response,
        "quality": quality,
        "gold": gold(config, quality, own),
        "length": jnp.sum(traj.mask, axis=1).astype(jnp.float32),
    }
    found = {name: x.reshape(n, each, *x.shape[1:]) for name, x in found.items()}
    return found | {"prompt": features.prompt[::each], "own": own[::each]}


def rated(
    config: RatingsConfig, quality: Float[Array, "items objectives"], key: PRNGKeyArray
) -> tuple[Float[Array, "items objectives"], Bool[Array, "items objectives"]]:
    """Ratings in [0, 1], biased by verbosity, and where there is one."""
    bias = config.rating_bias * (jnp.arange(len(OBJECTIVES)) != VERBOSE)
    seen = quality + bias * quality[:, VERBOSE:]
    scale = 0.5 + seen / (2 * config.rating_range)
    return rate_some(key, scale, share=config.observed, noise=config.rating_noise)


def chosen_first(
    config: RatingsConfig, pairs: dict[str, Array], key: PRNGKeyArray
) -> dict[str, Array]:
    """`responses`, two of each prompt, with the one first that an annotator prefers."""
    seen = pairs["gold"] + config.length_bias * pairs["quality"][:, :, VERBOSE]
    first = compare(key, seen[:, 0], seen[:, 1], temperature=config.temperature)
    order = jnp.where(first[:, None], jnp.array([0, 1]), jnp.array([1, 0]))

    def arrange(x):
        return jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), axis=1)

    sided = ("response", "quality", "gold", "length")
    return {name: arrange(x) if name in sided else x for name, x in pairs.items()}


def accuracy(pairs: dict[str, Array], scores: Float[np.ndarray, "pairs 2"]) -> dict[str, float]:
    """`accuracy`: how often the better response by gold scores higher, the mean over prompts' kinds.

    Pairs that gold does not tell apart are left out.
    """
    gold, own = np.asarray(pairs["gold"]), np.asarray(pairs["own"])
    told_apart = gold[:, 0] != gold[:, 1]
    sides = np.where(gold[:, :1] > gold[:, 1:], scores, scores[:, ::-1])[told_apart]
    return {"accuracy": pairwise_accuracy(*sides.T, subsets=own[told_apart])}


def chosen_length(
    samples: dict[str, Array], scores: Float[np.ndarray, "prompts samples"]
) -> dict[str, float]:
    """What scores have to do with length, over all samples and in the best of each prompt's.

    Returns:
      `length_correlation`, |Spearman's| of scores and tokens; `chosen_gold` of the best sample by score,
      and `chosen_longer`, how many tokens more than the mean it has.
    """
    gold, length = (np.asarray(samples[name]) for name in ("gold", "length"))
    counts = (1, scores.shape[1])
    return {
        "length_correlation": abs(stats.spearmanr(scores.ravel(), length.ravel()).statistic),
        "chosen_gold": best_of_n_curve(scores, gold, counts)[:, 1].mean(),
        "chosen_longer": np.diff(best_of_n_curve(scores, length, counts)).mean(),
    }
