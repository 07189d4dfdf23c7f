"""One policy in both seats of two-player games, and exactly how it plays.

Every move is a row of its own: what the player sees is the prompt, thoughts and move are the
response. Only the move enters the game: the opponent never sees the thoughts.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from rewardjax.envs.environment import Message
from rewardjax.envs.games import Game, Table
from rewardjax.losses import Scores
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.trajectory import Prompts, Trajectory, last_step, respond

# Picks a legal move: (game, state, key) -> its number.
Opponent = Callable[[Game, Any, PRNGKeyArray], Int[Array, ""]]

# Writes the responses to one move: (number of the game, states, prompts, key) -> trajectory.
Act = Callable[[int, Any, Prompts, PRNGKeyArray], Trajectory]

OFFENDER, OTHER = -1.5, 0.5
"""What an invalid move gives to the one who made it, and to the other (SPIRAL's code)."""


def uniform_opponent(game: Game, state: Any, key: PRNGKeyArray) -> Int[Array, ""]:
    """A legal move at random."""
    return jax.random.categorical(key, jnp.where(game.legal(state), 0.0, -jnp.inf))


@dataclasses.dataclass(frozen=True)
class SelfPlay:
    """A policy that plays against itself: the functions that a recipe needs.

    Attributes:
      policy: how a response is written; `stop` is `table.stop`, `prompt_columns` `table.columns`.
      table: the games.
      opponent: sits in one of the seats instead, in turn the second and the first; its moves are
        off the mask.
    """

    policy: LanguagePolicy
    table: Table
    opponent: Opponent | None = None

    def starts(self, key: PRNGKeyArray, n: int) -> Key[Array, "n"]:
        """Keys from which `rollout` starts `n` games of each kind."""
        return jax.random.split(key, n)

    def rollout(self, params, starts: Key[Array, "n"], key: PRNGKeyArray) -> Trajectory:
        """Play all games from each start; see `play`."""

        def act(game, state, prompts, key):
            return self.policy.rollout(params, prompts, key)

        return play(self.table, act, starts, key, self.opponent)

    def score(self, params, traj: Trajectory) -> Scores:
        """Log-probabilities and entropies of all tokens."""
        return self.policy.score(params, traj)


def play(
    table: Table,
    act: Act,
    starts: Key[Array, "n"],
    key: PRNGKeyArray,
    opponent: Opponent | None = None,
) -> Trajectory:
    """Play a game of each kind from each start; an invalid move ends it.

    Returns:
      A row for each move, those of a game adjacent, in order, and empty after its end. `info` has,
      `[batch]` each: `game`; `role` of the player; `opening`, on at a role's first move in its game;
      `invalid`, on where the move was; `outcome`, what the role won in the end.
    """
    kinds = [
        _play(table, i, act, starts, jax.random.fold_in(key, i), opponent)
        for i in range(len(table.games))
    ]
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *kinds)


def demonstrate(
    table: Table, script: Opponent, starts: Key[Array, "n"], key: PRNGKeyArray, *, max_new: int
) -> Trajectory:
    """The trajectories of `play` by a script that thinks at random, up to `max_new - 1` thoughts."""

    def act(game, state, prompts, key):
        move_key, length_key, thought_key = jax.random.split(key, 3)
        shape = (starts.shape[0], max_new)
        keys = jax.random.split(move_key, shape[0])
        move = jax.vmap(lambda state, key: script(table.games[game], state, key))(state, keys)
        length = jax.random.randint(length_key, (shape[0], 1), 0, max_new)
        thoughts = table.first_thought + jax.random.randint(thought_key, shape, 0, table.thoughts)
        place = jnp.arange(max_new)
        spoken = table.name_id(game) + 1 + move[:, None]
        return respond(prompts, jnp.where(place == length, spoken, thoughts), place <= length)

    return play(table, act, starts, key)


def _play(
    table: Table, number: int, act: Act, starts, key: PRNGKeyArray, opponent: Opponent | None
) -> Trajectory:
    game, count = table.games[number], starts.shape[0]
    # The player's only seat, where it does not have both.
    seat, each = jnp.arange(count) % 2, jnp.arange(count)

    def view(state):
        role = game.role(state)
        return role, table.prompt(number, role, game.observe(state))

    def turn(carry, key):
        state, done, returns, moved = carry
        act_key, *_ = keys = jax.random.split(key, count + 1)
        role, seen = jax.vmap(view)(state)
        traj = act(number, state, Prompts(*seen), act_key)
        said = jnp.sum(jnp.where(last_step(traj.mask), traj.tokens, 0), axis=1)
        action = table.action(number, said)
        own = ~done
        if opponent is not None:
            chosen = jax.vmap(lambda state, key: opponent(game, state, key))(state, keys[1:])
            own &= role == seat
            action = jnp.where(role == seat, action, chosen)
        state, ended, won, invalid = jax.vmap(lambda *x: _move(game, *x))(
            state, done, action, returns
        )
        info = {
            "game": jnp.full_like(role, number),
            "role": role,
            "opening": own & ~moved[each, role],
            "invalid": own & invalid,
        }
        mask = traj.mask & own[:, None]
        row = traj.replace(mask=mask, logprobs=jnp.where(mask, traj.logprobs, 0.0), info=info)
        return (state, ended, won, moved.at[each, role].set(True)), row

    state, none = jax.vmap(game.init)(starts), jnp.zeros((count, 2))
    carry = (state, none[:, 0] > 0, none, none > 0)
    (_, _, returns, _), rows = jax.lax.scan(turn, carry, jax.random.split(key, game.max_turns))
    rows = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), rows)
    final = jnp.repeat(returns, game.max_turns, axis=0)
    outcome = jnp.take_along_axis(final, rows.info["role"][:, None], axis=1)[:, 0]
    return rows.with_info(outcome=outcome)


def _move(
    game: Game,
    state: Any,
    done: Bool[Array, ""],
    action: Int[Array, ""],
    returns: Float[Array, "2"],
) -> tuple[Any, Bool[Array, ""], Float[Array, "2"], Bool[Array, ""]]:
    """State, whether the game is over, returns so far, and whether the move was invalid."""
    legal = (action >= 0) & game.legal(state)[jnp.maximum(action, 0)]
    stepped = game.step(state, jnp.maximum(action, 0))
    state = jax.tree.map(lambda old, new: jnp.where(done | ~legal, old, new), state, stepped)
    fine = jnp.where(jnp.arange(2) == game.role(state), OFFENDER, OTHER)
    won = jnp.where(legal, game.returns(state), fine)
    over = done | ~legal | game.done(state)
    return state, over, jnp.where(done, returns, won), ~done & ~legal


def action_probabilities(
    player: SelfPlay, params, game: int, role: Int[Array, "views"], seen: Message
) -> Float[Array, "views actions"]:
    """The probability of each move of a game, exactly: summed over all thoughts that lead to it.

    Thoughts are enumerated: there must be few of them, and few allowed. Rows sum to less than 1 where
    the policy may say something that is no move of this game.

    Args:
      player: the policy.
      params: its parameters.
      game: number of the game at the table.
      role: of the player.
      seen: what the player sees, as from `Game.observe`, `[views, columns]`.
    """
    table, moves = player.table, player.table.games[game].actions
    thoughts = range(table.first_thought, table.first_thought + table.thoughts)
    first = table.name_id(game) + 1
    responses = [
        (*thought, move)
        for length in range(player.policy.max_new)
        for thought in itertools.product(thoughts, repeat=length)
        for move in range(first, first + moves)
    ]
    rows = np.zeros((len(responses), player.policy.max_new), np.int32)
    for i, response in enumerate(responses):
        rows[i, : len(response)] = response
    views = jax.vmap(lambda role, tokens, valid: table.prompt(game, role, Message(tokens, valid)))(
        role, *seen
    )
    count = role.shape[0]
    prompts = Prompts(*jax.tree.map(lambda x: jnp.repeat(x, len(responses), axis=0), views))
    tokens = jnp.tile(jnp.asarray(rows), (count, 1))
    traj = respond(prompts, tokens, tokens != table.pad)
    logprobs = jnp.where(traj.mask, player.score(params, traj).logprobs, 0.0)
    likely = jnp.exp(jnp.sum(logprobs, axis=1)).reshape(count, -1, moves)
    return jnp.sum(likely, axis=1)
