"""Completions of questions of six kinds: demonstrations, compared pairs, and a benchmark of them.

The benchmark has the form of RewardBench 2 (arXiv:2506.01937): one correct completion and three wrong ones,
and tied questions with four equally correct ones.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from rewardjax.evaluation.reward_bench import TIES, Item, reward_bench_2
from rewardjax.recipes.preference_data import comparisons
from rewardjax.tasks.annotators import compare
from rewardjax.tasks.question_kinds import (
    DIGITS,
    KINDS,
    REFERENCE,
    TIED,
    WORDS,
    Answer,
    QuestionKinds,
)
from rewardjax.trajectory import Prompts, Trajectory, respond

WORLD = QuestionKinds()
PER_ITEM = 4  # correct completions of a tied question, and wrong ones of any


def written(
    key: Key[Array, ""],
    prompts: Prompts,
    good: Bool[Array, "n"],
    share: float | Float[Array, ""],
    word: Int[Array, "n"] | None = None,
) -> Trajectory:
    """A completion of each prompt.

    Args:
      key: consumed.
      prompts: the questions.
      good: where the completion is correct.
      share: of completions in the second dialect.
      word: 0 to 3 where the completion is that word of the theme alone, else -1.
    """
    right_key, wrong_key, dialect_key = jax.random.split(key, 3)
    sides = WORLD.right(right_key, prompts.info), WORLD.wrong(wrong_key, prompts.info)
    contents = jnp.where(good[:, None], sides[0].contents, sides[1].contents)
    length = jnp.where(good, sides[0].length, sides[1].length)
    if word is not None:
        theme = (prompts.info["a"] - DIGITS) // WORDS
        named = DIGITS + theme * WORDS + word
        contents = contents.at[:, 0].set(jnp.where(word >= 0, named, contents[:, 0]))
        length = jnp.where(word >= 0, 1, length)
    dialect = jax.random.bernoulli(dialect_key, share, good.shape).astype(jnp.int32)
    return respond(prompts, *WORLD.say(Answer(contents, length), dialect))


def compared(
    n: int,
    key: Key[Array, ""],
    noise: float | Float[Array, ""],
    kinds: Float[Array | np.ndarray, "kinds"],
    strict: float | Float[Array, ""],
) -> dict[str, Array]:
    """`n` pairs of completions in both dialects, the preferred one first: `tokens` and `valid`.

    Args:
      n: static.
      key: consumed.
      noise: share of labels turned round.
      kinds: weights of the kinds of questions.
      strict: share of the pairs on tied questions that compare two correct answers; the same one of
        any two is preferred each time.
    """
    keys = jax.random.split(key, 6)
    kind = jax.random.categorical(keys[0], jnp.log(kinds), shape=(n,))
    prompts = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), WORLD.asking(keys[1], kind))
    draws = jax.random.randint(keys[2], (2, n), 0, WORDS - 1)
    two = jnp.stack([draws[0], (draws[0] + 1 + draws[1]) % WORDS], axis=1)
    ordered = (kind == TIED) & jax.random.bernoulli(keys[3], strict, (n,))
    word = jnp.where(ordered[:, None], jnp.sort(two, axis=1), -1).reshape(-1)
    first = jnp.arange(2 * n) % 2 == 0
    traj = written(keys[4], prompts, first, 0.5, word)
    label = partial(compare, temperature=0.0, flip_rate=noise)
    found = comparisons(traj, first.astype(jnp.float32), label, keys[5])
    return {name: found[name] for name in ("tokens", "valid")}


def benchmark(key: Key[Array, ""], count: int) -> dict[str, Array]:
    """`count` questions of each kind: `tokens` and `valid` of completions `[kinds, count, 8, time]`.

    Four correct completions of each, then four wrong ones.

    Questions of all kinds are drawn alike, so that a tied question and its sibling are about one word.
    Only tied questions have several different correct answers.
    """
    ask_key, write_key = jax.random.split(key)

    def of_kind(kind, key):
        asked = WORLD.asking(ask_key, jnp.full(count, kind))
        prompts = jax.tree.map(lambda x: jnp.repeat(x, 2 * PER_ITEM, axis=0), asked)
        place = jnp.tile(jnp.arange(2 * PER_ITEM), count)
        good = place < PER_ITEM
        traj = written(key, prompts, good, 0.5, jnp.where(good & (kind == TIED), place, -1))
        shape = (count, 2 * PER_ITEM, -1)
        return {"tokens": traj.tokens.reshape(shape), "valid": traj.valid.reshape(shape)}

    return jax.vmap(of_kind)(jnp.arange(len(KINDS)), jax.random.split(write_key, len(KINDS)))


def items_of(scores: Float[Array | np.ndarray, "kinds count completions"]) -> list[Item]:
    """The benchmark's items from the scores of its completions: one correct completion of four, or ties."""
    found = []
    for kind, of_kind in enumerate(np.asarray(scores)):
        correct = PER_ITEM if kind == TIED else 1
        kept = of_kind if kind == TIED else of_kind[:, [0, *range(PER_ITEM, 2 * PER_ITEM - 1)]]
        variant = {TIED: "tied:", REFERENCE: "ref:"}.get(kind, f"{KINDS[kind]}:")
        found += [
            Item(f"{variant}{i}", KINDS[kind], row, correct) for i, row in enumerate(kept.tolist())
        ]
    return found


def judged(scores: Float[Array | np.ndarray, "kinds count completions"]) -> dict[str, float]:
    """The benchmark's figures, and what the score of ties is made of.

    Returns:
      Those of `reward_bench_2`; `without_ties`, the mean of the other subsets; of the tied questions
      `tied_accuracy`, the share in which every correct answer is above every wrong one, and
      `tied_spread`, the range of the correct answers' scores over the deviation of all scores.
    """
    found = reward_bench_2(items_of(scores))
    tied = np.asarray(scores)[TIED]
    right, wrong = tied[:, :PER_ITEM], tied[:, PER_ITEM:]
    gap = right.min(axis=1) - wrong.max(axis=1)
    apart = np.mean([value for name, value in found.items() if name not in (TIES, "total")])
    return found | {
        "without_ties": float(apart),
        "tied_accuracy": float(np.mean(gap > 0)),
        "tied_spread": float(np.mean(np.ptp(right, axis=1)) / max(np.std(tied), 1e-9)),
    }
