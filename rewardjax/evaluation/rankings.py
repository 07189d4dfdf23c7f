"""Strengths of players from the games between them: Bradley-Terry's model, Elo's scale, intervals.

A player is whatever is compared: a response, a system, a reward model. A tie is half a win for each,
a soft preference that share of one.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

ELO_PER_NAT = 400 / math.log(10)
RESAMPLES_AT_ONCE = 1000


@partial(jax.jit, static_argnames="sweeps")
def bradley_terry_strengths(
    wins: Float[Array, "*batch players players"],
    *,
    prior: float | Float[Array, ""] = 0.5,
    sweeps: int = 100,
) -> Float[Array, "*batch players"]:
    """Log strengths s, in nats, of mean 0: player i beats j with probability `sigmoid(s_i - s_j)`.

    Zermelo's model by Newman's iteration (arXiv:2207.00076), one player after another,

        p_i <- sum_j w_ij p_j / (p_i + p_j)  /  sum_j w_ji / (p_i + p_j)        s = log p

    where the sums also run over an imagined player of strength 1.

    Args:
      wins: how often i beat j (row i, column j), 0 or more; the diagonal is not read.
      prior: games that each player won, and as many lost, against the imagined player. More than 0
        keeps those finite who never lost or never played.
      sweeps: how often each player is updated.
    """
    players = wins.shape[-1]

    def fit(wins):
        wins = jnp.where(jnp.eye(players, dtype=bool), 0.0, wins.astype(jnp.float32))

        def update(step, strength):
            own = strength[step % players]
            pairs = 1.0 / (own + strength)
            imagined = prior / (own + 1.0)
            won = jnp.sum(wins[step % players] * strength * pairs) + imagined
            lost = jnp.sum(wins[:, step % players] * pairs) + imagined
            return strength.at[step % players].set(won / lost)

        return jnp.log(jax.lax.fori_loop(0, sweeps * players, update, jnp.ones(players)))

    found = jax.vmap(fit)(wins.reshape(-1, players, players)).reshape(wins.shape[:-1])
    return found - jnp.mean(found, axis=-1, keepdims=True)


def elo(
    strengths: Float[Array | np.ndarray, "*batch players"], *, mean: float = 1000.0
) -> Float[np.ndarray, "*batch players"]:
    """Log strengths on Elo's scale: 400 points are odds of 10 to 1; the players' mean is `mean`."""
    numbers = np.asarray(strengths, np.float64)
    return mean + ELO_PER_NAT * (numbers - np.mean(numbers, axis=-1, keepdims=True))


class Ratings(NamedTuple):
    """Players' ratings on Elo's scale, and the ends of their intervals."""

    rating: Float[np.ndarray, "players"]
    low: Float[np.ndarray, "players"]
    high: Float[np.ndarray, "players"]


def count_wins(
    first: Int[np.ndarray, "games"],
    second: Int[np.ndarray, "games"],
    score: Shaped[np.ndarray, "games"],
    players: int,
) -> Float[np.ndarray, "players players"]:
    """How often the row's player beat the column's.

    Args:
      first, second: who played, from 0.
      score: the first player's: 1 for a win, 1/2 for a tie, 0 for a loss, or a probability.
      players: how many there are.

    Raises:
      ValueError: no games, columns of different lengths, a player that does not exist or plays against
        itself, a score outside [0, 1].
    """
    first, second, score = np.asarray(first), np.asarray(second), np.asarray(score, np.float64)
    sizes = [len(first), len(second), len(score)]
    if len(set(sizes)) != 1 or not sizes[0]:
        raise ValueError(f"first, second, score: expected equally many games, found {sizes}")
    named = np.concatenate([first, second])
    if named.min() < 0 or named.max() >= players:
        raise ValueError(
            f"first, second: expected players 0 to {players - 1}, found {named.min()} to {named.max()}"
        )
    if np.any(first == second):
        game = int(np.argmax(first == second))
        raise ValueError(f"second: game {game} has player {first[game]} on both sides")
    if not np.all((score >= 0) & (score <= 1)):
        raise ValueError(f"score: expected numbers in [0, 1], found {score.min()} to {score.max()}")
    return _count(first, second, score, players)


def _count(first, second, score, players):
    wins = np.zeros((players, players))
    np.add.at(wins, (first, second), score)
    np.add.at(wins, (second, first), 1.0 - score)
    return wins


def elo_ratings(
    first: Int[np.ndarray, "games"],
    second: Int[np.ndarray, "games"],
    score: Shaped[np.ndarray, "games"],
    players: int,
    *,
    prior: float = 0.5,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Ratings:
    """Elo ratings from games, with percentile bootstrap intervals over the games (mean 1000).

    Args:
      first, second, score, players: the games, as for `count_wins`.
      prior: as for `bradley_terry_strengths`.
      level: the intervals' coverage, between 0 and 1, both excluded.
      resamples: how often as many games are drawn with replacement.
      seed: of the resampling.

    Raises:
      ValueError: as for `count_wins`, or a bad `level`.
    """
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, found {level}")
    wins = count_wins(first, second, score, players)
    columns = [np.asarray(column) for column in (first, second, score)]
    rng = np.random.default_rng(seed)
    drawn = np.empty((resamples, players, players))
    for table in drawn:
        chosen = rng.integers(len(first), size=len(first))
        games = [column[chosen] for column in columns]
        table[...] = _count(games[0], games[1], games[2], players)
    fitted = [
        np.asarray(bradley_terry_strengths(jnp.asarray(cut, jnp.float32), prior=prior))
        for cut in np.split(drawn, range(RESAMPLES_AT_ONCE, resamples, RESAMPLES_AT_ONCE))
    ]
    tail = (1 - level) / 2
    low, high = np.quantile(elo(np.concatenate(fitted)), [tail, 1 - tail], axis=0)
    own = bradley_terry_strengths(jnp.asarray(wins, jnp.float32), prior=prior)
    return Ratings(elo(own), low, high)
