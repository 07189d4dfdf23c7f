"""What an environment for agents is: text in, text out, as pure functions of one episode.

`jax.vmap` makes a batch of episodes. Observations and actions are rows of token ids of a fixed
length, of which the valid ones count.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


class Message(NamedTuple):
    """Token ids, and where they hold a token rather than padding."""

    tokens: Int[Array, "*batch length"]
    valid: Bool[Array, "*batch length"]


@runtime_checkable
class Environment(Protocol):
    """One episode of a task with several turns.

    `step` need not look at whether the episode has ended: `advance` does. Rewards are finite: one
    that is not reaches the loss, where the training loop stops with `NonFinite`.
    """

    def reset(self, key: Key[Array, ""]) -> tuple[Any, Message]:
        """The first state, a pytree of arrays, and the prompt.

        All chance of the episode comes from the key: the same key and the same actions give the same
        episode, so that a group of episodes can be given one question.
        """

    def step(
        self, state: Any, tokens: Int[Array, "action"], mask: Bool[Array, "action"]
    ) -> tuple[Any, Message, Float[Array, ""], Bool[Array, ""]]:
        """State, observation, reward and whether this ends the episode, after an action.

        Args:
          state: what `reset` or `step` returned.
          tokens: what the policy wrote.
          mask: on at its tokens, from the first on; the rest is padding.
        """

    def columns(self, state: Any) -> dict[str, Array]:
        """What rewards and evaluation may read of an episode (gold answers, success, ...)."""


def advance(
    env: Environment,
    state: Any,
    done: Bool[Array, ""],
    tokens: Int[Array, "action"],
    mask: Bool[Array, "action"],
) -> tuple[Any, Message, Float[Array, ""], Bool[Array, ""]]:
    """`env.step` where the episode goes on.

    After its end an action changes nothing: the state stays, the observation is empty, the reward 0.
    """
    stepped, (seen, valid), reward, ended = env.step(state, tokens, mask)
    state = jax.tree.map(lambda old, new: jnp.where(done, old, new), state, stepped)
    return state, Message(seen, valid & ~done), jnp.where(done, 0.0, reward), done | ended
