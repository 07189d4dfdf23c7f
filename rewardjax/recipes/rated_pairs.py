"""The same pairs of responses with ratings and with choices (HelpSteer2-Preference, arXiv:2410.01257).

Writers answer; several annotators rate each answer on a scale of 0 to 4, and choose between the two
of a pair with a strength of 1, 2 or 3. Gold helpfulness stays known.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from rewardjax.data.sources import ArraySource
from rewardjax.evaluation.accuracy import pairwise_accuracy, subset_accuracy
from rewardjax.recipes.preference_data import PairStudy, comparisons
from rewardjax.recipes.preference_lab import PreferenceLab
from rewardjax.tasks.annotators import compare_with_magnitude, magnitude, rate
from rewardjax.training.run import Run
from rewardjax.trajectory import respond

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class RatedPairsConfig:
    """Who rates and who chooses, and how often they are wrong.

    Attributes:
      gold_range: gold utilities that are helpfulness 0 and 4.
      train, validation, test: pairs.
      bins: differences of helpfulness above which a response is better (2) and much better (3).
      flip_rates: how often the choice is wrong at strengths 1, 2 and 3.
      annotators, rating_noise: their mean rating errs by rating_noise / sqrt(annotators), which is as
        much as the flips of the choices amount to.
    """

    gold_range: tuple[float, float] = (-0.6, 1.0)
    train: int = 1000
    validation: int = 500
    test: int = 4000
    bins: tuple[float, float] = (0.7, 1.6)
    flip_rates: tuple[float, float, float] = (0.3, 0.1, 0.02)
    annotators: int = 3
    rating_noise: float = 1.2


def helpfulness(config: RatedPairsConfig, gold: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Gold utility on the scale of the ratings."""
    low, high = config.gold_range
    return 4.0 * (gold - low) / (high - low)


def rated_pairs(
    config: RatedPairsConfig, lab: PreferenceLab, key: PRNGKeyArray, n: int
) -> dict[str, Array]:
    """`n` pairs of writers' responses, the chosen one first.

    Returns:
      The columns of `comparisons` with gold helpfulness as their `utility`, and `[n, 2]` each:
      `helpfulness`, the mean rating; `strength`, (m, -m), 0 where gold ties.
    """
    prompt_key, write_key, label_key, rate_key = jax.random.split(key, 4)
    prompts = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), lab.world.prompts(prompt_key, n))
    tokens, valid, _ = lab.world.writers(write_key, prompts)
    traj = respond(prompts, tokens, valid)
    choose = partial(compare_with_magnitude, bins=config.bins, flip_rates=config.flip_rates)
    gold = helpfulness(config, lab.gold(traj))
    pairs = comparisons(traj, gold, lambda *args: choose(*args)[0], label_key)
    utility = pairs["utility"]
    strength = magnitude(utility[:, 0], utility[:, 1], config.bins).astype(jnp.float32)
    each = jnp.broadcast_to(utility, (config.annotators, *utility.shape))
    ratings = jnp.mean(rate(rate_key, each, noise=config.rating_noise), axis=0)
    return pairs | {"helpfulness": ratings, "strength": jnp.stack([strength, -strength], axis=1)}


def rated_study(config: RatedPairsConfig, lab: PreferenceLab):
    """`run -> PairStudy` of rated pairs, none of them tied, and the lab's initial policy."""
    draw = jax.jit(partial(rated_pairs, config, lab), static_argnums=1)
    score = jax.jit(lab.scorer.score)

    def split(run: Run, name: str) -> dict[str, np.ndarray]:
        n = getattr(config, name)
        # Twice as many as asked for, since ties are dropped.
        pairs = jax.tree.map(np.asarray, draw(run.stage(name).key, 2 * n))
        kept = pairs["strength"][:, 0] > 0
        return {column: x[kept][:n] for column, x in pairs.items()}

    def study(run: Run) -> PairStudy:
        data = {name: split(run, name) for name in SPLITS}

        def source(batch_size, columns, seed):
            names = ("tokens", "valid", *columns)
            return ArraySource({name: data["train"][name] for name in names}, batch_size, seed)

        def evaluate(params, name):
            pairs = data[name]
            scores = np.asarray(score(params, pairs["tokens"], pairs["valid"]))
            return measured(pairs, scores, gold=name == "test")

        def show(params):
            pairs = {column: x[:8] for column, x in data["test"].items()}
            scores = np.asarray(score(params, pairs["tokens"], pairs["valid"]))
            return readable(pairs, scores, lab.world.decode)

        return PairStudy(lab.sft(run.stage("sft")), source, evaluate, show)

    return study


def measured(
    pairs: Mapping[str, np.ndarray], scores: Float[np.ndarray, "pairs 2"], gold: bool
) -> dict[str, float]:
    """How often the better response scores higher: by the annotators' choice, or by `gold`.

    By gold there is an accuracy for each strength too: `accuracy_1` to `accuracy_3`.
    """
    if not gold:
        return {"accuracy": pairwise_accuracy(*scores.T)}
    wrong = pairs["utility"][:, 0] < pairs["utility"][:, 1]
    sides = np.where(wrong[:, None], scores[:, ::-1], scores)
    better, worse = sides[:, 0], sides[:, 1]
    strength = pairs["strength"][:, 0].astype(int)
    by_strength = subset_accuracy(better, worse, strength)
    return {"accuracy": pairwise_accuracy(better, worse)} | {
        f"accuracy_{m}": share for m, share in by_strength.items()
    }


def readable(pairs, scores, decode) -> list[dict]:
    """Pairs as text, with gold helpfulness and scores."""
    return [
        {
            "prompt": decode(tokens[0][~mask[0]]),
            "chosen": decode(tokens[0][mask[0]]),
            "other": decode(tokens[1][mask[1]]),
            "helpfulness": utility.tolist(),
            "scores": score.tolist(),
        }
        for tokens, mask, utility, score in zip(
            pairs["tokens"], pairs["mask"], pairs["utility"], scores
        )
    ]
