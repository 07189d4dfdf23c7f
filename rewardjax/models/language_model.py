"""A transformer as a distribution over token sequences: the only place where predictions shift."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rewardjax.models.transformer import Cache, Transformer, TransformerConfig, init_cache
from rewardjax.partitioning import constrain, time_shards


def state_before(hidden: Float[Array, "batch time ..."]) -> Float[Array, "batch time ..."]:
    """At each step, what was known before it: the previous step's entry, zeros at the first step."""
    padding = ((0, 0), (1, 0), *((0, 0),) * (hidden.ndim - 2))
    return jnp.pad(hidden, padding)[:, : hidden.shape[1]]


def gather_logprobs(
    logits: Float[Array, "*batch vocab"], tokens: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Float32 log-probability of each token under the logits at its own place."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def entropy_of(logits: Float[Array, "*batch vocab"]) -> Float[Array, "*batch"]:
    """Float32 entropy in nats of the distributions that the logits give."""
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """Pure functions of `params` for one transformer configuration."""

    config: TransformerConfig

    @property
    def module(self) -> nn.Module:
        """The Flax module behind the functions."""
        return Transformer(self.config)

    def boxed_init(self, key: PRNGKeyArray):
        """Fresh parameters with their logical axis names."""
        tokens = jnp.zeros((1, 2), jnp.int32)
        return self.module.init(key, tokens, jnp.ones_like(tokens))["params"]

    def init(self, key: PRNGKeyArray):
        """Fresh parameters: a pytree of arrays."""
        return nn.meta.unbox(self.boxed_init(key))

    def for_sampling(self, params):
        """The parameters as decoding reads them: in the compute dtype, whole on each data shard.

        Decoding reads every weight for every token; gathering them each time would be all it does.
        """
        if jax.sharding.get_abstract_mesh().empty:
            return params

        def lay(box, x):
            return constrain(x.astype(self.config.dtype), *sampling_axes(box.names))

        boxed = jax.eval_shape(self.boxed_init, jax.random.key(0))
        return jax.tree.map(
            lay, boxed, params, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
        )

    def hidden(self, params, tokens, segments, positions=None, cache=None, *, image=None):
        """Hidden states `[batch, time, width]`, and the cache if there is one.

        Raises:
          ValueError: there is an `image`; `models.vision` has the model that reads one.
        """
        if image is not None:
            raise ValueError(f"image: expected none (a text model), found shape {image.shape}")
        return self.module.apply({"params": params}, tokens, segments, positions, cache)

    def unembed(self, params, hidden):
        """Float32 logits over the vocabulary from hidden states."""
        return self.module.apply({"params": params}, hidden, method="logits")

    def init_cache(self, batch: int, slots: int) -> Cache:
        """An empty key-value cache."""
        return init_cache(self.config, batch, slots)

    def logits(
        self,
        params,
        tokens: Int[Array, "batch time"],
        segments: Int[Array, "batch time"],
        *,
        start: int = 0,
        image: Float[Array, "batch height wide channels"] | None = None,
    ) -> Float[Array, "batch scored vocab"]:
        """Logits of the distribution that `tokens[b, t]` was drawn from, for `t >= start`.

        Entry `[b, t - start]` is computed from `tokens[b, :t]` alone. Where there is nothing before
        a token (`scored_mask` is off) its logits are those of an empty stream and mean nothing.
        """
        hidden, _ = self.hidden(params, tokens, segments, image=image)
        return self.unembed(params, state_before(hidden)[:, start:])

    def score(
        self,
        params,
        tokens: Int[Array, "batch time"],
        segments: Int[Array, "batch time"],
        *,
        temperature: float = 1.0,
        start: int = 0,
        image: Float[Array, "batch height wide channels"] | None = None,
    ) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
        """Log-probability of every token given those before it, and the entropy there (nats).

        Args:
          params: the model's parameters.
          tokens: token ids.
          segments: 0 on padding, from 1 on a number for each packed document.
          temperature: the logits are divided by it.
          start: tokens before this column are not scored (a known prompt); saves their logits.
          image: what each row shows, for a model that reads images.

        Returns:
          Two float32 arrays aligned with `tokens`; 0 on padding, on the first token of a document
          and before `start`.
        """
        hidden, _ = self.hidden(params, tokens, segments, image=image)

        def read(states, chosen):
            logits = self.unembed(params, states) / temperature
            return gather_logprobs(logits, chosen), entropy_of(logits)

        states, chosen = state_before(hidden)[:, start:], tokens[:, start:]
        found = _in_chunks(read, self.config.logit_chunk, states, chosen)
        logprobs, entropy = (jnp.pad(x, ((0, 0), (start, 0))) for x in found)
        known = scored_mask(segments)
        return jnp.where(known, logprobs, 0.0), jnp.where(known, entropy, 0.0)


def _in_chunks(read, chunk: int | None, states: Array, chosen: Array):
    """`read(states, chosen)` for `chunk` columns at a time, so that not all logits exist at once.

    Where the mesh cuts the time axis, a chunk has columns of each of its parts.
    """
    batch, time = chosen.shape
    if chunk is None or time <= chunk:
        return read(states, chosen)
    shards = time_shards(time)
    part, size = time // shards, math.ceil(chunk / shards)

    def cut(x):
        x = x.reshape(batch, shards, part, *x.shape[2:])
        x = jnp.pad(x, ((0, 0), (0, 0), (0, -part % size), *((0, 0),) * (x.ndim - 3)))
        x = jnp.moveaxis(x.reshape(batch, shards, -1, size, *x.shape[3:]), 2, 0)
        x = x.reshape(-1, batch, shards * size, *x.shape[4:])
        return constrain(x, None, "batch", "time", *(None,) * (x.ndim - 3))

    def join(x):
        x = jnp.moveaxis(x.reshape(-1, batch, shards, size), 0, 2)
        return x.reshape(batch, shards, -1)[:, :, :part].reshape(batch, time)

    one = jax.checkpoint(lambda x: read(*x))
    return jax.tree.map(join, jax.lax.map(one, (cut(states), cut(chosen))))


def sampling_axes(names: tuple[str | None, ...]) -> tuple[str | None, ...]:
    """A parameter's logical axes while decoding: those that training's shards would cut are whole."""
    return tuple(None if name == "embed" else name for name in names)


def scored_mask(segments: Int[Array, "batch time"]) -> Bool[Array, "batch time"]:
    """On where a token has a predecessor in its own segment, so that it can be predicted."""
    previous = jnp.pad(segments, ((0, 0), (1, 0)))[:, : segments.shape[1]]
    return (segments != 0) & (segments == previous)


def check_gaps(config: TransformerConfig) -> None:
    """Raises ValueError where a layer's window counts slots, so that a cache must not have gaps."""
    if "local" in config.spans:
        raise ValueError(
            f"spans: expected 'global' attention only over a cache with gaps, found {config.spans}"
        )
