"""What samplers make and what rewards, credit and losses read.

The time axis counts tokens for a language model, denoising steps for a flow model, control steps
for a robot; nothing below depends on which.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class Prompts:
    """A batch of questions for a language model.

    Attributes:
      tokens: prompt token ids, padded on either side.
      valid: where `tokens` holds a token rather than padding.
      info: the task's own columns (gold answers, requested attributes, ...), each `[batch, ...]`.
    """

    tokens: Int[Array, "batch prompt"]
    valid: Bool[Array, "batch prompt"]
    info: dict[str, Array] = struct.field(default_factory=dict)


class Trajectory(struct.PyTreeNode):
    """A batch of episodes.

    Attributes:
      actions: what was done at each step. For a language model the whole row of token ids, prompt
        first (`tokens` is the same array); for others whatever the policy acts with.
      mask: on where the policy chose the action; off on prompts, observations and padding.
      valid: on where the row has a step at all, the policy's or not. `mask` implies `valid`.
      logprobs: log-probability of `actions` under the policy that sampled them; 0 off the mask.
      observations: what the policy saw at each step, where that is not the row of actions itself.
      info: further columns, each with a leading batch axis: the task's gold data, and what annotators and
        learners add (`values`, `reference_logprobs`, ...).
    """

    actions: Array
    mask: Bool[Array, "batch time"]
    valid: Bool[Array, "batch time"]
    logprobs: Float[Array, "batch time"]
    observations: Any = None
    info: dict[str, Array] = struct.field(default_factory=dict)

    @property
    def tokens(self) -> Int[Array, "batch time"]:
        """The token ids of a language model's trajectory."""
        return self.actions

    def with_info(self, **columns: Array | np.ndarray) -> "Trajectory":
        """The same trajectory with these columns added to `info`."""
        return self.replace(info={**self.info, **columns})

    @property
    def lengths(self) -> Int[Array, "batch"]:
        """How many steps the policy took in each row."""
        return jnp.sum(self.mask, axis=-1)


def left_pad(
    tokens: Int[Array, "batch time"], valid: Bool[Array, "batch time"]
) -> tuple[Int[Array, "batch time"], Bool[Array, "batch time"]]:
    """The rows with their valid tokens moved to the right end, in order."""
    order = jnp.argsort(valid, axis=1, stable=True)
    return jnp.take_along_axis(tokens, order, 1), jnp.take_along_axis(valid, order, 1)


def right_pad(
    tokens: Int[Array, "batch time"], valid: Bool[Array, "batch time"]
) -> tuple[Int[Array, "batch time"], Bool[Array, "batch time"]]:
    """The rows with their valid tokens moved to the left end, in order."""
    order = jnp.argsort(~valid, axis=1, stable=True)
    return jnp.take_along_axis(tokens, order, 1), jnp.take_along_axis(valid, order, 1)


def respond(
    prompts: Prompts,
    tokens: Int[Array, "batch response"],
    valid: Bool[Array, "batch response"],
) -> Trajectory:
    """Given responses as the trajectory that a sampler would have made: prompt, then response.

    Log-probabilities are 0: nothing is known of who wrote them.
    """
    prompt_tokens, prompt_valid = left_pad(prompts.tokens, prompts.valid)
    tokens, valid = right_pad(tokens, valid)
    actions = jnp.concatenate([prompt_tokens, tokens], axis=1)
    return Trajectory(
        actions=actions,
        mask=jnp.concatenate([jnp.zeros_like(prompt_valid), valid], axis=1),
        valid=jnp.concatenate([prompt_valid, valid], axis=1),
        logprobs=jnp.zeros(actions.shape, jnp.float32),
        info=prompts.info,
    )


def append(
    traj: Trajectory,
    tokens: Int[Array, "batch more"],
    valid: Bool[Array, "batch more"],
) -> Trajectory:
    """Text that the policy did not write, right behind what each row holds.

    `more` columns are added and every row is closed up, so that the appended tokens follow its last
    valid one and gaps come at the end; padding before a row's first token stays where it is, and
    with it the columns of the prompt. The new tokens are off the mask, with log-probability 0, and
    `info["answer_mask"]` `[batch, time + more]` is on exactly at them (an earlier one is replaced).
    Other columns of `info` are not moved: append before annotating steps.

    Args:
      traj: a language model's trajectories.
      tokens: what to append.
      valid: where `tokens` holds a token rather than padding.

    Raises:
      ValueError: `traj` has observations, which appended tokens would lack.
    """
    if traj.observations is not None:
        raise ValueError("traj: expected a language model's trajectory, found observations")
    off = jnp.zeros_like(valid)
    held = jnp.concatenate([traj.valid, valid], axis=1)
    gaps = ~held & (jnp.cumsum(held, axis=1) > 0)
    order = jnp.argsort(gaps, axis=1, stable=True)

    def close_up(old: Array, new: Array) -> Array:
        return jnp.take_along_axis(jnp.concatenate([old, new], axis=1), order, axis=1)

    closed = traj.replace(
        actions=close_up(traj.tokens, tokens),
        mask=close_up(traj.mask, off),
        valid=jnp.take_along_axis(held, order, axis=1),
        logprobs=close_up(traj.logprobs, jnp.zeros(tokens.shape, traj.logprobs.dtype)),
    )
    return closed.with_info(answer_mask=close_up(jnp.zeros_like(traj.valid), valid))


def last_step(mask: Bool[Array, "batch time"]) -> Bool[Array, "batch time"]:
    """On at the last step of each row that the policy took; off everywhere in a row with none."""
    later = jnp.cumsum(mask[:, ::-1], axis=-1)[:, ::-1]
    return mask & (later == 1)


def first_step(mask: Bool[Array, "batch time"]) -> Bool[Array, "batch time"]:
    """On at the first step of each row that the policy took; off everywhere in a row with none."""
    return mask & (jnp.cumsum(mask, axis=-1) == 1)


def turn_ends(traj: Trajectory) -> Bool[Array, "batch time"]:
    """On at the last step that the policy took in each turn.

    Reads `info["turn"]`, `[batch, time]`: the number of the turn to which a step belongs.
    """
    turn = traj.info["turn"]
    goes_on = traj.mask[:, 1:] & (turn[:, 1:] == turn[:, :-1])
    return traj.mask & ~jnp.pad(goes_on, ((0, 0), (0, 1)))


def returns_to_go(
    rewards: Float[Array, "batch time"], mask: Bool[Array, "batch time"]
) -> Float[Array, "batch time"]:
    """Undiscounted sum of the rewards from each step on; 0 off the mask."""
    rewards = jnp.where(mask, rewards, 0.0)
    return jnp.where(mask, jnp.cumsum(rewards[:, ::-1], axis=-1)[:, ::-1], 0.0)
