"""Environments written in Python (a database, a browser, a program that is run) inside a jitted rollout."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from rewardjax.envs.environment import Message


@runtime_checkable
class PythonEpisode(Protocol):
    """One episode as a Python object, which may keep any state."""

    prompt: Sequence[int]

    def step(self, action: Sequence[int]) -> tuple[Sequence[int], float, bool]:
        """Observation, reward and whether this ends the episode, after an action's token ids."""


class HostState(struct.PyTreeNode):
    """An episode as its seed and its past: what is needed to play it again."""

    seed: UInt32[Array, ""]
    actions: Int[Array, "turns action"]
    lengths: Int[Array, "turns"]
    turn: Int[Array, ""]


@dataclass(frozen=True)
class HostEnvironment:
    """An `Environment` whose episodes are Python objects, called through `jax.pure_callback`.

    The device keeps an episode's seed and actions, the host nothing: each step makes the episode
    anew and plays its past again, so that the callback is pure, however often and in whatever order
    XLA calls it. An episode of n turns therefore costs n (n + 1) / 2 steps.

    Attributes:
      start: `seed -> PythonEpisode`; the same seed and actions must give the same episode.
      max_prompt: longest prompt in tokens.
      max_observation: longest observation in tokens.
      max_action: longest action in tokens.
      max_turns: longest episode in turns.

    In a step, these stop the program with a ValueError that names seed and turn: a reward that is
    not finite, an observation that is too long.
    """

    start: Callable[[int], PythonEpisode]
    max_prompt: int
    max_observation: int
    max_action: int
    max_turns: int

    def reset(self, key: Key[Array, ""]) -> tuple[HostState, Message]:
        """As `Environment.reset`; the episode's seed is drawn from the key, below 2**32."""
        seed = jax.random.bits(key, dtype=jnp.uint32)
        shapes = _message_shapes(self.max_prompt)
        prompt = jax.pure_callback(self._prompt, shapes, seed, vmap_method="sequential")
        past = jnp.zeros((self.max_turns, self.max_action), jnp.int32)
        return HostState(seed, past, past[:, 0], jnp.int32(0)), Message(*prompt)

    def step(
        self, state: HostState, tokens: Int[Array, "action"], mask: Bool[Array, "action"]
    ) -> tuple[HostState, Message, Float[Array, ""], Bool[Array, ""]]:
        """As `Environment.step`."""
        state = state.replace(
            actions=state.actions.at[state.turn].set(tokens),
            lengths=state.lengths.at[state.turn].set(jnp.sum(mask)),
            turn=state.turn + 1,
        )
        scalars = (jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), bool))
        shapes = (*_message_shapes(self.max_observation), *scalars)
        *seen, reward, done = jax.pure_callback(
            self._replay, shapes, state, vmap_method="sequential"
        )
        return state, Message(*seen), reward, done

    def columns(self, state: HostState) -> dict[str, Array]:
        """The episode's `seed`."""
        return {"seed": state.seed}

    def _prompt(self, seed):
        found = self.start(int(seed)).prompt
        return _padded(found, self.max_prompt, f"seed {int(seed)}: prompt")

    def _replay(self, state):
        seed, turns = int(state.seed), int(state.turn)
        episode, done = self.start(seed), False
        seen: Sequence[int] = ()
        reward = 0.0
        for turn in range(turns):
            if done:  # the rollout throws away what a step after the end gives
                break
            action = np.asarray(state.actions[turn])[: int(state.lengths[turn])]
            seen, reward, done = episode.step(action.tolist())
            if not math.isfinite(reward):
                raise ValueError(
                    f"seed {seed}, turn {turn}: reward: expected a finite number, found {reward}"
                )
        message = _padded(seen, self.max_observation, f"seed {seed}, turn {turns - 1}: observation")
        return *message, np.float32(reward), np.bool_(done)


def _message_shapes(length: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    return jax.ShapeDtypeStruct((length,), jnp.int32), jax.ShapeDtypeStruct((length,), bool)


def _padded(tokens: Sequence[int], length: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    if len(tokens) > length:
        raise ValueError(f"{what}: expected at most {length} tokens, found {len(tokens)}")
    row = np.zeros(length, np.int32)
    row[: len(tokens)] = tokens
    return row, np.arange(length) < len(tokens)
