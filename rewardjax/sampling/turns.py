"""Episodes of several turns as one token sequence: the policy writes, the environment answers.

Each turn has its own columns while it is played: the action's, then the observation's. Rows write
into them as many tokens as they have; the key-value cache ignores the others, and positions count
tokens, not columns. At the end every row is closed up, so that scoring is one ordinary forward pass.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from rewardjax.envs.environment import Environment, Message, advance
from rewardjax.losses import Scores
from rewardjax.models.heads import last_valid
from rewardjax.models.language_model import check_gaps
from rewardjax.models.transformer import Cache
from rewardjax.sampling.generate import sample_token
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.trajectory import Trajectory, left_pad, right_pad

# Writes an action for one episode: (state, key) -> tokens and mask, `[action]`.
Script = Callable[[Any, PRNGKeyArray], Message]


@dataclasses.dataclass(frozen=True)
class TurnPolicy:
    """A language policy that acts in an environment: the functions that a recipe needs.

    Attributes:
      policy: how an action is written: `max_new` is the longest action, `stop` ends it (and belongs
        to it), `group_size` is the number of episodes that share a key, and so a question;
        `prompt_columns`, if given, is the length of the environment's prompts.
      env: the environment.
      max_turns: an episode that has not ended by then is cut off.
    """

    policy: LanguagePolicy
    env: Environment
    max_turns: int

    def starts(self, key: PRNGKeyArray, n: int) -> Key[Array, "n"]:
        """Keys of `n` episodes, from which `rollout` resets the environment."""
        return jax.random.split(key, n)

    def rollout(self, params, starts: Key[Array, "n"], key: PRNGKeyArray) -> Trajectory:
        """Play `group_size` episodes from each start; see `play`."""
        starts = jnp.repeat(starts, self.policy.group_size)
        return play(self.policy, params, self.env, starts, key, max_turns=self.max_turns)

    def score(self, params, traj: Trajectory) -> Scores:
        """Log-probabilities and entropies of all tokens: one forward pass over the transcripts."""
        return self.policy.score(params, traj)


class _Turn(NamedTuple):
    """What a turn added to the rows, `[batch, columns]`, and its reward, `[batch]`."""

    tokens: Int[Array, "batch columns"]
    mask: Bool[Array, "batch columns"]
    valid: Bool[Array, "batch columns"]
    logprobs: Float[Array, "batch columns"]
    reward: Float[Array, "batch"]


class _Reader(NamedTuple):
    """The model's place in the transcripts."""

    cache: Cache
    logits: Float[Array, "batch vocab"]
    lengths: Int[Array, "batch"]


def play(
    policy: LanguagePolicy,
    params,
    env: Environment,
    starts: Key[Array, "batch"],
    key: PRNGKeyArray,
    *,
    max_turns: int,
) -> Trajectory:
    """Play one episode from each start.

    Returns:
      Prompts, padded on the left, and behind each all actions and observations without a gap.
      `mask` is on at the policy's tokens only. `info` has `turn` `[batch, time]`, counted from 0, of
      an action and the observation that answers it (-1 on prompt and padding); `turn_rewards`
      `[batch, turns]`; `turns` `[batch]`, how many were played; `done` `[batch]`, off where the
      episode was cut off; and the environment's own columns.

    Raises:
      ValueError: the model's context is shorter than the longest transcript, or the model has
        layers with local attention, for which columns without a token would count.
    """
    model = policy.model
    check_gaps(model.config)
    state, prompt = jax.vmap(env.reset)(starts)
    tokens, valid = left_pad(*prompt)
    batch, columns = tokens.shape
    done = jnp.zeros(batch, bool)

    def turn(carry, key):
        reader, state, done = carry
        reader, (action, mask, logprobs) = _write(policy, params, reader, ~done, key)
        state, seen, reward, ended = _step(env, state, done, Message(action, mask))
        reader = _read(model, params, reader, seen)
        blank = jnp.zeros(seen.tokens.shape)
        added = _Turn(
            jnp.concatenate([action, seen.tokens], 1),
            jnp.concatenate([mask, blank > 0], 1),
            jnp.concatenate([mask, seen.valid], 1),
            jnp.concatenate([logprobs, blank], 1),
            reward,
        )
        return (reader, state, ended), added

    action = jnp.zeros((batch, policy.max_new), jnp.int32)
    _, seen, *_ = jax.eval_shape(lambda: _step(env, state, done, Message(action, action > 0)))
    cache = model.init_cache(batch, columns + max_turns * (policy.max_new + seen.tokens.shape[1]))
    hidden, cache = model.hidden(params, tokens, valid.astype(jnp.int32), None, cache)
    reader = _Reader(cache, model.unembed(params, hidden[:, -1]), jnp.sum(valid, axis=1))
    carry = (reader, state, done)
    (_, state, done), turns = jax.lax.scan(turn, carry, jax.random.split(key, max_turns))
    return _assemble(Message(tokens, valid), turns, done, jax.vmap(env.columns)(state))


def demonstrate(
    env: Environment,
    script: Script,
    starts: Key[Array, "batch"],
    key: PRNGKeyArray,
    *,
    max_turns: int,
) -> Trajectory:
    """The trajectories of `play` if `script` had written the actions; log-probabilities are 0."""
    state, prompt = jax.vmap(env.reset)(starts)

    def turn(carry, key):
        state, done = carry
        tokens, mask = jax.vmap(script)(state, jax.random.split(key, starts.shape[0]))
        mask &= ~done[:, None]
        state, seen, reward, ended = _step(env, state, done, Message(tokens, mask))
        tokens = jnp.concatenate([tokens, seen.tokens], 1)
        valid = jnp.concatenate([mask, seen.valid], 1)
        mask = jnp.concatenate([mask, jnp.zeros_like(seen.valid)], 1)
        return (state, ended), _Turn(tokens, mask, valid, jnp.zeros(tokens.shape), reward)

    carry = (state, jnp.zeros(starts.shape, bool))
    (state, done), turns = jax.lax.scan(turn, carry, jax.random.split(key, max_turns))
    return _assemble(Message(*left_pad(*prompt)), turns, done, jax.vmap(env.columns)(state))


def _step(env: Environment, state, done, action: Message):
    """`advance` for a batch, with observations closed up to the left."""
    state, seen, reward, done = jax.vmap(
        lambda state, done, tokens, mask: advance(env, state, done, tokens, mask)
    )(state, done, *action)
    return state, Message(*right_pad(*seen)), reward, done


def _write(policy: LanguagePolicy, params, reader: _Reader, alive, key: PRNGKeyArray):
    """Decode one action in the rows that are alive: tokens, mask, log-probabilities."""
    model = policy.model

    def decode(carry, key):
        (cache, logits, lengths), writing = carry
        token, logprob = sample_token(
            key, logits, temperature=policy.temperature, top_k=policy.top_k, top_p=policy.top_p
        )
        token = jnp.where(writing, token, 0)
        segments, positions = writing[:, None].astype(jnp.int32), lengths[:, None]
        hidden, cache = model.hidden(params, token[:, None], segments, positions, cache)
        logits = jnp.where(writing[:, None], model.unembed(params, hidden[:, 0]), logits)
        step = token, writing, jnp.where(writing, logprob, 0.0)
        stays = writing & ~jnp.isin(token, jnp.asarray(policy.stop))
        return (_Reader(cache, logits, lengths + writing), stays), step

    keys = jax.random.split(key, policy.max_new)
    (reader, _), steps = jax.lax.scan(decode, (reader, alive), keys)
    return reader, jax.tree.map(lambda x: x.swapaxes(0, 1), steps)


def _read(model, params, reader: _Reader, seen: Message) -> _Reader:
    """Append observations to the cache, all tokens at once."""
    if not seen.tokens.shape[1]:
        return reader
    positions = reader.lengths[:, None] + jnp.arange(seen.tokens.shape[1])
    segments = seen.valid.astype(jnp.int32)
    hidden, cache = model.hidden(params, seen.tokens, segments, positions, reader.cache)
    logits = model.unembed(params, last_valid(hidden, seen.valid))
    some = jnp.any(seen.valid, axis=1, keepdims=True)
    lengths = reader.lengths + jnp.sum(seen.valid, axis=1)
    return _Reader(cache, jnp.where(some, logits, reader.logits), lengths)


def _assemble(prompt: Message, turns: _Turn, done, columns: dict[str, Array]) -> Trajectory:
    """Turns `[turn, batch, columns]` as rows behind their prompts, gaps moved to the end."""
    count, batch, _ = turns.tokens.shape
    number = jnp.broadcast_to(jnp.arange(count)[:, None, None], turns.tokens.shape)

    def flat(x):
        return x.swapaxes(0, 1).reshape(batch, -1)

    order = jnp.argsort(~flat(turns.valid), axis=1, stable=True)

    def rows(before, x):
        return jnp.concatenate([before, jnp.take_along_axis(flat(x), order, axis=1)], axis=1)

    def close_up(before, x, empty):
        return rows(before, jnp.where(turns.valid, x, empty))

    blank = jnp.zeros_like(prompt.tokens)
    info = {
        "turn": close_up(blank - 1, number, -1),
        "turn_rewards": turns.reward.T,
        "turns": jnp.sum(jnp.any(turns.mask, axis=2), axis=0),
        "done": done,
    }
    return Trajectory(
        actions=close_up(jnp.where(prompt.valid, prompt.tokens, 0), turns.tokens, 0),
        mask=rows(blank > 0, turns.mask),
        valid=rows(prompt.valid, turns.valid),
        logprobs=rows(blank * 0.0, turns.logprobs),
        info=info | columns,
    )


def dialogues(
    traj: Trajectory, decode: Callable[[np.ndarray], str], *, count: int = 8
) -> list[dict]:
    """The first `count` rows as a person reads them: prompt, and each turn's text and reward.

    Args:
      traj: what `play` returned.
      decode: token ids to text.
      count: rows.
    """
    tokens, mask, valid = (np.asarray(x[:count]) for x in (traj.tokens, traj.mask, traj.valid))
    turn, rewards = (np.asarray(traj.info[name][:count]) for name in ("turn", "turn_rewards"))
    played = np.asarray(traj.info["turns"][:count])

    def show(row: int, number: int) -> dict:
        own = valid[row] & (turn[row] == number)
        return {
            "action": decode(tokens[row][own & mask[row]]),
            "observation": decode(tokens[row][own & ~mask[row]]),
            "reward": round(float(rewards[row, number]), 4),
        }

    return [
        {
            "prompt": decode(tokens[row][valid[row] & (turn[row] < 0)]),
            "turns": [show(row, number) for number in range(played[row])],
        }
        for row in range(len(tokens))
    ]
