"""Zero-sum games of two players who take turns, described in words; pure functions of one game.

Kuhn poker and tic-tac-toe are pgx's (`pip install rewardjax[games]`). `Table` puts several games on
one vocabulary, for one policy that plays them all.
"""

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from rewardjax.envs.environment import Message
from rewardjax.tasks.spelling import spell


@runtime_checkable
class Game(Protocol):
    """A game as pure functions; role 0 moves first.

    Attributes:
      name: a word.
      words: what a player sees and says, as text; the first `actions` of them are moves.
      actions: number of different moves.
      max_turns: moves in the longest game.
    """

    name: ClassVar[str]
    words: ClassVar[tuple[str, ...]]
    actions: ClassVar[int]
    max_turns: ClassVar[int]

    def init(self, key: Key[Array, ""]) -> Any:
        """A new game: a pytree of arrays; all chance comes from the key."""

    def role(self, state: Any) -> Int[Array, ""]:
        """Whose move it is, 0 or 1."""

    def observe(self, state: Any) -> Message:
        """What the player to move knows, as numbers of words."""

    def legal(self, state: Any) -> Bool[Array, "actions"]:
        """The moves that the rules allow."""

    def step(self, state: Any, action: Int[Array, ""]) -> Any:
        """The game after a legal move."""

    def done(self, state: Any) -> Bool[Array, ""]:
        """Whether the game is over."""

    def returns(self, state: Any) -> Float[Array, "2"]:
        """What each role has won; 0 before the end."""


def _pgx(name: str):
    # pgx makes arrays when it is imported: they must not belong to a trace.
    with jax.ensure_compile_time_eval():
        try:
            import pgx
        except ImportError as error:
            raise ImportError(
                f"the game {name!r} needs pgx, which is not installed: pip install 'rewardjax[games]'"
            ) from error
        return pgx.make(name)


class PgxState(struct.PyTreeNode):
    """A game of pgx, which of its players is role 0, and the moves so far (-1: none)."""

    inner: Any
    first: Int[Array, ""]
    moves: Int[Array, "turns"]
    turn: Int[Array, ""]


@dataclass(frozen=True)
class _PgxGame:
    """What games of pgx have in common; each says how it is seen and how its moves are named."""

    name: ClassVar[str]
    max_turns: ClassVar[int]
    rules: ClassVar[tuple[int, ...]]  # pgx's number of each move

    @cached_property
    def env(self):
        """The game's rules; raises ImportError where pgx is not installed."""
        return _pgx(self.name)

    def init(self, key: Key[Array, ""]) -> PgxState:
        """As `Game.init`."""
        inner = self.env.init(key)
        moves = jnp.full(self.max_turns, -1)
        return PgxState(inner, inner.current_player, moves, jnp.int32(0))

    def role(self, state: PgxState) -> Int[Array, ""]:
        """As `Game.role`."""
        return (state.inner.current_player != state.first).astype(jnp.int32)

    def step(self, state: PgxState, action: Int[Array, ""]) -> PgxState:
        """As `Game.step`."""
        inner = self.env.step(state.inner, jnp.asarray(self.rules)[action])
        moves = state.moves.at[state.turn].set(action)
        return state.replace(inner=inner, moves=moves, turn=state.turn + 1)

    def done(self, state: PgxState) -> Bool[Array, ""]:
        """As `Game.done`."""
        return state.inner.terminated

    def returns(self, state: PgxState) -> Float[Array, "2"]:
        """As `Game.returns`."""
        rewards = state.inner.rewards
        return jnp.where(state.first == 0, rewards, rewards[::-1])


@dataclass(frozen=True)
class KuhnPoker(_PgxGame):
    """Three cards, one each, an ante of 1, one bet of 1: returns are +-1 or +-2.

    Value -1/18 for role 0 (Kuhn, 1950). A player sees the own card and the moves so far.
    """

    name: ClassVar[str] = "kuhn_poker"
    words: ClassVar[tuple[str, ...]] = ("check", "bet", "call", "fold", "J", "Q", "K")
    actions: ClassVar[int] = 4
    max_turns: ClassVar[int] = 3
    rules: ClassVar[tuple[int, ...]] = (1, 0, 0, 1)  # 0 puts a chip in

    # What was said before each decision: first that of role 0, twice that of role 1, role 0 again.
    histories = ((), (0,), (1,), (0, 1))
    roles = (0, 1, 1, 0)

    def legal(self, state: PgxState) -> Bool[Array, "4"]:
        """As `Game.legal`: call or fold after a bet, check or bet otherwise."""
        last = state.moves[jnp.maximum(state.turn - 1, 0)]
        facing = (state.turn > 0) & (last == 1)
        return jnp.array([~facing, ~facing, facing, facing])

    def observe(self, state: PgxState) -> Message:
        """As `Game.observe`."""
        card = state.inner._cards[state.inner.current_player]
        tokens = jnp.concatenate([(self.actions + card)[None], state.moves[:2]])
        return Message(jnp.maximum(tokens, 0), tokens >= 0)

    def information_sets(self) -> Message:
        """What a player may see, `[histories, cards, columns]` in the order of `histories`."""
        rows = np.full((len(self.histories), 3, 3), -1)
        for (i, history), card in itertools.product(enumerate(self.histories), range(3)):
            rows[i, card, : 1 + len(history)] = (self.actions + card, *history)
        return Message(jnp.asarray(np.maximum(rows, 0)), jnp.asarray(rows >= 0))

    def chip_probability(
        self, moves: Float[Array, "histories cards actions"]
    ) -> tuple[Float[Array, "histories cards"], Float[Array, "histories cards"]]:
        """Of the probability of legal moves, the share of bet or call; and that probability itself."""
        facing = jnp.array([len(h) > 0 and h[-1] == 1 for h in self.histories])[:, None]
        chip = jnp.where(facing, moves[..., 2], moves[..., 1])
        legal = chip + jnp.where(facing, moves[..., 3], moves[..., 0])
        return jnp.where(legal > 0, chip / jnp.maximum(legal, 1e-30), 0.5), legal


@dataclass(frozen=True)
class TicTacToe(_PgxGame):
    """Three in a row wins 1. A player sees the moves so far; role 0 has made every other one."""

    name: ClassVar[str] = "tic_tac_toe"
    words: ClassVar[tuple[str, ...]] = tuple(f"{column}{row}" for row in "123" for column in "abc")
    actions: ClassVar[int] = 9
    max_turns: ClassVar[int] = 9
    rules: ClassVar[tuple[int, ...]] = tuple(range(9))

    def legal(self, state: PgxState) -> Bool[Array, "9"]:
        """As `Game.legal`: free cells."""
        return state.inner.legal_action_mask

    def observe(self, state: PgxState) -> Message:
        """As `Game.observe`."""
        tokens = state.moves[:-1]
        return Message(jnp.maximum(tokens, 0), tokens >= 0)


class BidState(struct.PyTreeNode):
    """The claim and the challenge, -1 before they are made."""

    bids: Int[Array, "2"]


@dataclass(frozen=True)
class Bidding:
    """Role 0 owns a pot of 0.8 and claims more; role 1, who does not see the claim, challenges one.

    Claim b is worth `pot + step b` to role 0. A challenge that meets it costs role 0 `fine + 2 step b`.
    Role 1 wins what role 0 loses: whoever moves first is far ahead, whatever both do.
    """

    pot: float = 0.8
    increment: float = 0.2
    fine: float = 0.6

    name: ClassVar[str] = "bidding"
    words: ClassVar[tuple[str, ...]] = ("low", "middle", "high")
    actions: ClassVar[int] = 3
    max_turns: ClassVar[int] = 2

    @property
    def payoffs(self) -> Float[Array, "claims challenges"]:
        """What role 0 wins."""
        claim = jnp.arange(self.actions, dtype=jnp.float32)
        gain = self.pot + self.increment * claim
        return gain[:, None] - jnp.diag(self.fine + 2 * self.increment * claim)

    def init(self, key: Key[Array, ""]) -> BidState:
        """As `Game.init`."""
        return BidState(jnp.array([-1, -1]))

    def role(self, state: BidState) -> Int[Array, ""]:
        """As `Game.role`."""
        return (state.bids[0] >= 0).astype(jnp.int32)

    def observe(self, state: BidState) -> Message:
        """As `Game.observe`: nothing."""
        return Message(jnp.zeros(0, jnp.int32), jnp.zeros(0, bool))

    def legal(self, state: BidState) -> Bool[Array, "3"]:
        """As `Game.legal`: all."""
        return jnp.ones(self.actions, bool)

    def step(self, state: BidState, action: Int[Array, ""]) -> BidState:
        """As `Game.step`."""
        return BidState(state.bids.at[self.role(state)].set(action))

    def done(self, state: BidState) -> Bool[Array, ""]:
        """As `Game.done`."""
        return state.bids[1] >= 0

    def returns(self, state: BidState) -> Float[Array, "2"]:
        """As `Game.returns`."""
        won = jnp.where(self.done(state), self.payoffs[state.bids[0], state.bids[1]], 0.0)
        return jnp.stack([won, -won])


@dataclass(frozen=True)
class Table:
    """Games on one vocabulary: `<pad> first second`, thoughts without meaning, each game's name and words.

    A prompt is the game's name, the role of the player to move, and what this player sees. A response
    is any number of thoughts and then a move.

    Attributes:
      games: with different names.
      thoughts: number of different thoughts.
    """

    games: tuple[Game, ...]
    thoughts: int = 4

    pad = 0
    first_thought = 3

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token as text, in the order of its id."""
        words = [("<pad>", "first", "second"), tuple(f"t{i}" for i in range(self.thoughts))]
        words += [(game.name, *game.words) for game in self.games]
        return tuple(itertools.chain(*words))

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return len(self.vocabulary)

    def decode(self, ids: Int[Array, "time"] | np.ndarray | list[int]) -> str:
        """The tokens as text, padding left out; raises ValueError for an id that does not exist."""
        return spell(ids, self.vocabulary, self.pad)

    def name_id(self, game: int) -> int:
        """Id of a game's name; its words follow, moves first."""
        before = sum(1 + len(other.words) for other in self.games[:game])
        return self.first_thought + self.thoughts + before

    @property
    def stop(self) -> tuple[int, ...]:
        """Ids of all moves: they end a response."""
        moves = (
            range(self.name_id(i) + 1, self.name_id(i) + 1 + game.actions)
            for i, game in enumerate(self.games)
        )
        return tuple(itertools.chain(*moves))

    @property
    def columns(self) -> int:
        """Columns of a prompt."""
        seen = [jax.eval_shape(_first_sight(game)).tokens.shape[0] for game in self.games]
        return 2 + max(seen)

    def prompt(self, game: int, role: Int[Array, ""], seen: Message) -> Message:
        """A player's view as token ids, padded on the right to `columns`."""
        words = jnp.where(seen.valid, self.name_id(game) + 1 + seen.tokens, self.pad)
        head = jnp.stack([jnp.int32(self.name_id(game)), 1 + role])
        tokens = jnp.concatenate([head, words])
        tokens = jnp.pad(tokens, (0, self.columns - tokens.shape[0]))
        return Message(tokens, tokens != self.pad)

    def action(self, game: int, token: Int[Array, "*batch"]) -> Int[Array, "*batch"]:
        """The game's move that a token stands for; -1 if it is none."""
        number = token - self.name_id(game) - 1
        return jnp.where((number >= 0) & (number < self.games[game].actions), number, -1)


def _first_sight(game: Game):
    return lambda: game.observe(game.init(jax.random.key(0)))
