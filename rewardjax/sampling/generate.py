"""Jitted generation: one prefill, then a scan over the key-value cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rewardjax.models.language_model import LanguageModel, gather_logprobs
from rewardjax.models.transformer import Cache
from rewardjax.trajectory import Prompts, Trajectory, left_pad


def keep_top_k(logits: Float[Array, "*batch vocab"], k: int) -> Float[Array, "*batch vocab"]:
    """Logits with all but the `k` largest of each row at -inf (ties with the k-th are kept)."""
    threshold = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits < threshold, -jnp.inf, logits)


def keep_top_p(logits: Float[Array, "*batch vocab"], p: float) -> Float[Array, "*batch vocab"]:
    """Nucleus sampling (arXiv:1904.09751): keep the smallest set of tokens whose mass reaches `p`."""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    mass = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
    kept = jnp.pad(
        mass[..., :-1] < p, [(0, 0)] * (logits.ndim - 1) + [(1, 0)], constant_values=True
    )
    threshold = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < threshold, -jnp.inf, logits)


def sample_token(
    key: PRNGKeyArray,
    logits: Float[Array, "batch vocab"],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> tuple[Int[Array, "batch"], Float[Array, "batch"]]:
    """One token a row, and its log-probability.

    The log-probability is that of the tempered distribution before top-k and top-p cut it: the one
    that `LanguageModel.score` gives for the same temperature. Temperature 0 is greedy, and its
    log-probabilities are those of temperature 1.
    """
    if temperature == 0:
        token = jnp.argmax(logits, axis=-1)
        return token, gather_logprobs(logits, token)
    logits = logits / temperature
    cut = logits
    if top_k:
        cut = keep_top_k(cut, min(top_k, logits.shape[-1]))
    if top_p < 1:
        cut = keep_top_p(cut, top_p)
    token = jax.random.categorical(key, cut)
    return token, gather_logprobs(logits, token)


class _Step(NamedTuple):
    token: Int[Array, "batch"]
    logprob: Float[Array, "batch"]
    alive: Bool[Array, "batch"]


def generate(
    model: LanguageModel,
    params,
    prompts: Prompts,
    key: PRNGKeyArray,
    *,
    max_new: int,
    stop: tuple[int, ...],
    group_size: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    pad_id: int = 0,
) -> Trajectory:
    """Sample `group_size` responses of at most `max_new` tokens for each prompt.

    A prompt is prefilled once for all its samples, which come out as adjacent rows. Prompts are
    moved to the right end of their columns, so that a response follows its prompt without a gap
    whatever side the padding was on.

    Args:
      model: the model to decode.
      params: its parameters.
      prompts: `batch` prompts of equal or mixed length; an empty prompt is an error of the caller.
        `info["image"]` is what each shows, for a model that reads images.
      key: consumed.
      max_new: longest response, its stop token included.
      stop: token ids that end a response (and belong to it).
      group_size: samples a prompt.
      temperature: 0 is greedy.
      top_k: sample among the k most likely tokens; 0 for all.
      top_p: sample from the smallest set of tokens with this mass.
      pad_id: the id that fills a row after its response.

    Returns:
      A trajectory of `batch * group_size` rows and `prompt + max_new` columns: `info` is the
      prompts' own, repeated.

    Raises:
      ValueError: `prompt + max_new` is more than the model's context.
    """
    columns = prompts.tokens.shape[1]
    tokens, valid = left_pad(prompts.tokens, prompts.valid)
    lengths = jnp.repeat(jnp.sum(valid, axis=1), group_size, axis=0)

    def choose(key, logits):
        return sample_token(key, logits, temperature=temperature, top_k=top_k, top_p=top_p)

    def ends(token):
        return jnp.isin(token, jnp.asarray(stop))

    def step(carry, x):
        cache, previous, alive = carry
        key, index = x
        logits, cache = decode(model, params, previous, lengths + index - 1, cache)
        token, logprob = choose(key, logits)
        token = jnp.where(alive, token, pad_id)
        return (cache, token, alive & ~ends(token)), _Step(token, logprob, alive)

    params = model.for_sampling(params)
    image = prompts.info.get("image")
    logits, cache = prefill(model, params, tokens, valid, columns + max_new, image)
    logits = jnp.repeat(logits, group_size, axis=0)
    cache = _repeat_rows(cache, group_size, model.config.scan)
    keys = jax.random.split(key, max_new)
    token, logprob = choose(keys[0], logits)
    first = _Step(token, logprob, jnp.ones_like(token, bool))
    carry = (cache, token, ~ends(token))
    _, rest = jax.lax.scan(step, carry, (keys[1:], jnp.arange(1, max_new)))
    steps = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]).swapaxes(0, 1), first, rest)
    return _assemble(prompts, tokens, valid, steps, group_size)


def prefill(
    model: LanguageModel,
    params,
    tokens: Int[Array, "batch prompt"],
    valid: Bool[Array, "batch prompt"],
    slots: int,
    image: Array | None = None,
) -> tuple[Float[Array, "batch vocab"], Cache]:
    """Logits of the token after each left-padded prompt, and a cache of `slots` that holds them."""
    cache = model.init_cache(tokens.shape[0], slots)
    segments = valid.astype(jnp.int32)
    hidden, cache = model.hidden(params, tokens, segments, None, cache, image=image)
    return model.unembed(params, hidden[:, -1]), cache


def decode(
    model: LanguageModel,
    params,
    tokens: Int[Array, "batch"],
    positions: Int[Array, "batch"],
    cache: Cache,
) -> tuple[Float[Array, "batch vocab"], Cache]:
    """Logits of the token after each of `tokens`, which go to `positions`, and the longer cache."""
    ones = jnp.ones_like(tokens)[:, None]
    hidden, cache = model.hidden(params, tokens[:, None], ones, positions[:, None], cache)
    return model.unembed(params, hidden[:, 0]), cache


def _repeat_rows(cache, group_size: int, scanned: bool):
    """Give each of a prompt's samples the prompt's keys and values."""
    axis = 1 if scanned else 0
    layers = jax.tree.map(lambda x: jnp.repeat(x, group_size, axis=axis), cache.layers)
    return cache.replace(layers=layers, segments=jnp.repeat(cache.segments, group_size, axis=0))


def _assemble(prompts: Prompts, tokens, valid, steps: _Step, group_size: int) -> Trajectory:
    def rows(x):
        return jnp.repeat(x, group_size, axis=0)

    tokens, valid = rows(tokens), rows(valid)
    blank = jnp.zeros(tokens.shape)
    return Trajectory(
        actions=jnp.concatenate([jnp.where(valid, tokens, 0), steps.token], axis=1),
        mask=jnp.concatenate([blank > 0, steps.alive], axis=1),
        valid=jnp.concatenate([valid, steps.alive], axis=1),
        logprobs=jnp.concatenate([blank, jnp.where(steps.alive, steps.logprob, 0.0)], axis=1),
        info=jax.tree.map(rows, prompts.info),
    )
