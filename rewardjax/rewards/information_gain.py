"""How much a turn told the policy about the right answer (IGPO, arXiv:2510.14967).

The policy's own belief in the answer, the likelihood of the answer if it had to be given now, is
read before the first turn and after each one; a turn earns the difference.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rewardjax.models.heads import last_valid
from rewardjax.models.language_model import LanguageModel, check_gaps, gather_logprobs
from rewardjax.rewards.reward import Reward, dense
from rewardjax.statistics import masked_mean
from rewardjax.trajectory import Trajectory, last_step, turn_ends


def answer_beliefs(
    model: LanguageModel,
    params,
    traj: Trajectory,
    answer: Int[Array, "batch answer"],
    valid: Bool[Array, "batch answer"],
    scored: Bool[Array, "batch answer"],
    *,
    turns: int,
) -> Float[Array, "batch turns_and_one"]:
    """The mean log-probability (nats) of the answer's scored tokens, put behind every prefix.

    Entry 0 is that of the prompt alone, entry t + 1 that of all up to turn t and its observation;
    behind a row's last turn the value stays. The transcript is read once, into a cache; answers are
    then put behind prefixes of it by hiding the rest.

    Args:
      model: the policy's.
      params: its parameters.
      traj: transcripts, with `info["turn"]`.
      answer: the right answer, formatted as the policy would have to write it.
      valid: where `answer` holds a token; no gaps, padding on the right.
      scored: on at the tokens that are the answer, and not its format; implies `valid`.
      turns: how many there may be.

    Raises:
      ValueError: transcript and answer are longer than the model's context, or the model has layers
        with local attention.
    """
    check_gaps(model.config)
    extra = answer.shape[1]
    cache = model.init_cache(traj.tokens.shape[0], traj.tokens.shape[1] + extra)
    hidden, cache = model.hidden(params, traj.tokens, traj.valid.astype(jnp.int32), None, cache)

    def belief(turn):
        seen = traj.valid & (traj.info["turn"] <= turn)
        prefix = cache.replace(segments=jnp.pad(seen, ((0, 0), (0, extra))).astype(jnp.int32))
        positions = jnp.sum(seen, axis=1)[:, None] + jnp.arange(extra)
        after, _ = model.hidden(params, answer, valid.astype(jnp.int32), positions, prefix)
        before = last_valid(hidden, seen)[:, None]
        states = jnp.concatenate([before, after[:, :-1]], axis=1)
        logprobs = gather_logprobs(model.unembed(params, states), answer)
        return masked_mean(logprobs, scored, axis=1)

    return jax.lax.map(belief, jnp.arange(-1, turns)).T


def information_gain(
    beliefs: Float[Array, "batch turns_and_one"], *, floor: float = -jnp.inf
) -> Float[Array, "batch turns"]:
    """What each turn added to the belief: s_t - s_{t-1}.

    Args:
      beliefs: log-probabilities (unbounded differences) or, as in the authors' code, probabilities
        (differences in [-1, 1]).
      floor: beliefs below it count as this much.
    """
    return jnp.diff(jnp.maximum(beliefs, floor), axis=1)


def turn_gain(gain: Float[Array, "batch turns"], traj: Trajectory) -> Reward:
    """The gains as rewards at the last step of their turns, as `information_gain`.

    A row's last turn gets none: there the outcome speaks.
    """
    earning = turn_ends(traj) & ~last_step(traj.mask)
    turn = jnp.maximum(traj.info["turn"], 0)
    steps = jnp.where(earning, jnp.take_along_axis(gain, turn, axis=1), 0.0)
    return dense(steps, traj.mask, "information_gain")
