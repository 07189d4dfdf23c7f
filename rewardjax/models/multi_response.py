"""Several responses to one prompt, scored in one forward pass that reads the prompt once.

Jointly (You Only Judge Once, arXiv:2604.10966), in one row with separators between them

    prompt, response 1, <sep>, response 2, <sep>, ..., response N

each response sees those before it, and its score can say how it compares. Independently, each sees
the prompt and itself: the scores are those of N rows, for the price of one prompt.

Everything here takes `prompt` `[batch, prompt]` and responses `[batch, responses, time]` with their
validity. A response without any token is absent; its scores mean nothing.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Shaped

from rewardjax.models.heads import RewardModel, last_valid
from rewardjax.models.transformer import init_cache
from rewardjax.trajectory import Prompts, left_pad, respond, right_pad

# A response's state from those of its own tokens: (states, where they are) -> [batch, width].
Pool = Callable[
    [Float[Array, "batch time width"], Bool[Array, "batch time"]], Float[Array, "batch width"]
]


@struct.dataclass
class Packed:
    """A prompt and its responses as one row without gaps.

    Attributes:
      tokens, valid: the row.
      owner: which response a token belongs to, from 0; -1 for the prompt, separators and padding.
    """

    tokens: Int[Array, "batch row"]
    valid: Bool[Array, "batch row"]
    owner: Int[Array, "batch row"]


def pack(
    prompt: Int[Array, "batch prompt"],
    prompt_valid: Bool[Array, "batch prompt"],
    responses: Int[Array, "batch responses time"],
    valid: Bool[Array, "batch responses time"],
    separator: int,
) -> Packed:
    """Rows of the prompt, then the responses that are present, with a separator between any two."""
    batch, count, time = responses.shape
    present = jnp.any(valid, axis=2)
    not_first = present & (jnp.cumsum(present, axis=1) > 1)
    number = jnp.broadcast_to(jnp.arange(count)[:, None], (batch, count, time))

    def row(before, separators, each):
        each = jnp.concatenate([separators[..., None], each], axis=2)
        return jnp.concatenate([before, each.reshape(batch, -1)], axis=1)

    tokens = row(prompt, jnp.full((batch, count), separator), responses)
    filled = row(prompt_valid, not_first, valid)
    owner = row(jnp.full_like(prompt, -1), jnp.full((batch, count), -1), number)
    owner, closed = right_pad(jnp.where(filled, owner, -1), filled)
    tokens, _ = right_pad(tokens, filled)
    # The first response present has no separator, so that the last column is always empty.
    return Packed(tokens[:, :-1], closed[:, :-1], owner[:, :-1])


def in_rows(
    prompt: Int[Array, "batch prompt"],
    prompt_valid: Bool[Array, "batch prompt"],
    responses: Int[Array, "batch responses time"],
    valid: Bool[Array, "batch responses time"],
) -> tuple[
    Int[Array, "batch responses row"],
    Bool[Array, "batch responses row"],
    Bool[Array, "batch responses row"],
]:
    """Each response in a row of its own behind the prompt: tokens, where there are any, and its own."""
    batch, count, time = responses.shape

    def flat(x):
        return jnp.repeat(x, count, axis=0)

    asked = Prompts(flat(prompt), flat(prompt_valid))
    traj = respond(asked, responses.reshape(-1, time), valid.reshape(-1, time))
    tokens, held, own = (x.reshape(batch, count, -1) for x in (traj.tokens, traj.valid, traj.mask))
    return tokens, held, own


def last_state(
    states: Float[Array, "batch time width"], own: Bool[Array, "batch time"]
) -> Float[Array, "batch width"]:
    """The state of a response's last token."""
    return last_valid(states, own)


def mean_state(
    states: Float[Array, "batch time width"], own: Bool[Array, "batch time"]
) -> Float[Array, "batch width"]:
    """The mean state of a response's tokens; 0 where it has none."""
    weight = own.astype(states.dtype)
    return jnp.einsum("bt,btw->bw", weight, states) / jnp.maximum(
        jnp.sum(weight, axis=1, keepdims=True), 1
    )


@dataclasses.dataclass(frozen=True)
class MultiResponse:
    """How a reward model reads several responses; the parameters are the reward model's own.

    Attributes:
      model: the backbone and the head.
      separator: token between two responses of a row.
      pool: what of a response's states the head reads.
    """

    model: RewardModel
    separator: int
    pool: Pool = last_state

    def joint(
        self,
        params,
        prompt: Int[Array, "batch prompt"],
        prompt_valid: Bool[Array, "batch prompt"],
        responses: Int[Array, "batch responses time"],
        valid: Bool[Array, "batch responses time"],
    ) -> Float[Array, "batch responses outputs"]:
        """Outputs for each response, which sees the prompt and the responses before it."""
        packed = pack(prompt, prompt_valid, responses, valid, self.separator)
        states, _ = self.model.states(params, packed.tokens, packed.valid.astype(jnp.int32))
        own = packed.owner[:, None] == jnp.arange(responses.shape[1])[:, None]
        pooled = jax.vmap(self.pool, in_axes=(None, 1), out_axes=1)(states, own)
        return self.model.read(params, pooled)

    def independent(
        self,
        params,
        prompt: Int[Array, "batch prompt"],
        prompt_valid: Bool[Array, "batch prompt"],
        responses: Int[Array, "batch responses time"],
        valid: Bool[Array, "batch responses time"],
    ) -> Float[Array, "batch responses outputs"]:
        """Outputs for each response, which sees the prompt and itself alone.

        As `RewardModel.scores` of the N rows prompt and response, if the last state is pooled; the
        prompt's keys and values are computed once. With gradients.
        """
        batch, count, time = responses.shape
        prompt, prompt_valid = left_pad(prompt, prompt_valid)
        rows, held = right_pad(responses.reshape(-1, time), valid.reshape(-1, time))
        cache = init_cache(self.model.config, batch, prompt.shape[1])
        _, cache = self.model.states(params, prompt, prompt_valid.astype(jnp.int32), None, cache)

        def spread(x, batch_axis, slots_axis):
            x = jnp.repeat(x, count, axis=batch_axis % x.ndim)
            room = [(0, time if axis == slots_axis % x.ndim else 0) for axis in range(x.ndim)]
            return jnp.pad(x, room)

        cache = cache.replace(
            layers=jax.tree.map(lambda x: spread(x, -4, -2), cache.layers),
            segments=spread(cache.segments, 0, 1),
        )
        start = jnp.repeat(jnp.sum(prompt_valid, axis=1), count)
        positions = start[:, None] + jnp.arange(time)
        states, _ = self.model.states(params, rows, held.astype(jnp.int32), positions, cache)
        return self.model.read(params, self.pool(states, held)).reshape(batch, count, -1)


def reorder(
    columns: Shaped[Array, "batch responses ..."], order: Int[Array, "batch responses"]
) -> Shaped[Array, "batch responses ..."]:
    """The responses in another order: number `order[b, i]` comes to place i."""
    return jnp.take_along_axis(
        columns, order.reshape(*order.shape, *(1,) * (columns.ndim - 2)), axis=1
    )


def average_over_orders(
    score: Callable[[Array, Array], Float[Array, "batch responses"]],
    responses: Int[Array, "batch responses time"],
    valid: Bool[Array, "batch responses time"],
    orders: Int[Array, "orders batch responses"],
) -> Float[Array, "batch responses"]:
    """Each response's mean score over several orders of them, in the order they were given in.

    Args:
      score: `(responses, valid) -> scores`, which may depend on the order.
      responses, valid: as given.
      orders: permutations of 0 .. responses - 1, each as `reorder` takes it.
    """

    def one(order):
        scores = score(reorder(responses, order), reorder(valid, order))
        return reorder(scores, jnp.argsort(order, axis=1))

    return jnp.mean(jax.vmap(one)(orders), axis=0)
