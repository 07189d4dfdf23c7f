"""Decoding that a value model steers: at every boundary the best of several continuations is kept.

Each row is decoded as several clones that share its past. At a boundary the clone whose text so far has the
largest value goes on and its key-value cache is cloned again, so that no text is encoded twice by the policy
(arXiv:2510.01167).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import Cache
from rewardjax.sampling.generate import decode, prefill, sample_token
from rewardjax.statistics import to_groups
from rewardjax.trajectory import Prompts, Trajectory, left_pad

# Of texts so far, prompt included, and where they hold a token: how good they are.
Value = Callable[[Int[Array, "rows time"], Bool[Array, "rows time"]], Float[Array, "rows"]]


@struct.dataclass
class _Clones:
    logits: Float[Array, "rows vocab"]
    cache: Cache
    alive: Bool[Array, "rows"]
    tokens: Int[Array, "rows time"]
    mask: Bool[Array, "rows time"]
    logprobs: Float[Array, "rows time"]


def generate_guided(
    model: LanguageModel,
    params,
    prompts: Prompts,
    key: PRNGKeyArray,
    value: Value,
    *,
    candidates: int,
    chunk: int,
    max_new: int,
    stop: tuple[int, ...],
    pad_id: int = 0,
) -> Trajectory:
    """One response a prompt, of at most `max_new` tokens, chosen among `candidates` every `chunk` tokens.

    With one candidate it is sampling. Log-probabilities are those of the policy, not of the choice.

    Args:
      model: the model to decode.
      params: its parameters.
      prompts: `batch` prompts of equal or mixed length.
      key: consumed.
      value: judges what is written so far; a finished response is judged again at each boundary.
      candidates: clones of each row.
      chunk: tokens between boundaries.
      max_new: longest response, its stop token included; a multiple of `chunk`.
      stop: token ids that end a response (and belong to it).
      pad_id: the id that fills a row after its response.

    Raises:
      ValueError: `max_new` is not a multiple of `chunk`, or longer than the context allows.
    """
    if max_new % chunk:
        raise ValueError(f"max_new: expected a multiple of chunk={chunk}, found {max_new}")
    columns = prompts.tokens.shape[1]
    tokens, valid = left_pad(prompts.tokens, prompts.valid)
    lengths = jnp.repeat(jnp.sum(valid, axis=1), candidates)
    params = model.for_sampling(params)
    logits, cache = prefill(model, params, tokens, valid, columns + max_new)
    room = ((0, 0), (0, max_new))
    prompt_valid = jnp.repeat(jnp.pad(valid, room), candidates, axis=0)
    alone = _Clones(
        logits,
        cache,
        jnp.ones(len(tokens), bool),
        jnp.pad(jnp.where(valid, tokens, pad_id), room, constant_values=pad_id),
        jnp.zeros((len(tokens), columns + max_new), bool),
        jnp.zeros((len(tokens), columns + max_new)),
    )

    def step(clones, x):
        key, index = x
        token, logprob = sample_token(key, clones.logits)
        token = jnp.where(clones.alive, token, pad_id)
        logits, cache = decode(model, params, token, lengths + index, clones.cache)
        at = columns + index
        return dataclasses.replace(
            clones,
            logits=logits,
            cache=cache,
            alive=clones.alive & ~jnp.isin(token, jnp.asarray(stop)),
            tokens=clones.tokens.at[:, at].set(token),
            mask=clones.mask.at[:, at].set(clones.alive),
            logprobs=clones.logprobs.at[:, at].set(jnp.where(clones.alive, logprob, 0.0)),
        ), None

    def to_boundary(clones, x):
        clones, _ = jax.lax.scan(step, clones, x)
        judged = to_groups(value(clones.tokens, prompt_valid | clones.mask), candidates)
        best = jnp.arange(judged.shape[0]) * candidates + jnp.argmax(judged, axis=1)
        return rows_of_clones(clones, jnp.repeat(best, candidates), model.config.scan), None

    first = jnp.repeat(jnp.arange(len(tokens)), candidates)
    steps = jax.random.split(key, max_new), jnp.arange(max_new)
    steps = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), steps)
    clones, _ = jax.lax.scan(to_boundary, rows_of_clones(alone, first, model.config.scan), steps)
    chosen = slice(None, None, candidates)
    return Trajectory(
        actions=clones.tokens[chosen],
        mask=clones.mask[chosen],
        valid=(prompt_valid | clones.mask)[chosen],
        logprobs=clones.logprobs[chosen],
        info=prompts.info,
    )


def rows_of_clones(clones: _Clones, rows: Int[Array, "rows"], scanned: bool) -> _Clones:
    """These rows, in this order, of everything that decoding keeps of a row."""
    axis = 1 if scanned else 0
    cache = clones.cache
    layers = jax.tree.map(lambda x: jnp.take(x, rows, axis=axis), cache.layers)
    kept = dataclasses.replace(cache, layers=layers, segments=cache.segments[rows])
    names = ("logits", "alive", "tokens", "mask", "logprobs")
    others = {name: getattr(clones, name)[rows] for name in names}
    return dataclasses.replace(clones, cache=kept, **others)
