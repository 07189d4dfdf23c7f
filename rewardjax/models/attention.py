"""Attention with rotary positions, and the cache that decoding writes."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from rewardjax.partitioning import spec, time_shards


@struct.dataclass
class LayerCache:
    """Keys and values of one layer (with a leading `layers` axis where layers are scanned).

    Heads come before slots: a decoding step then reads the cache as it lies, without a transpose.
    """

    keys: Float[Array, "*layers batch kv_heads slots head_dim"]
    values: Float[Array, "*layers batch kv_heads slots head_dim"]

    def write(
        self, keys: Array, values: Array, slot: Int[Array, ""] | int, layer=None
    ) -> "LayerCache":
        """The cache with new keys and values `[batch, kv_heads, time, head_dim]` from `slot` on.

        `layer` is the number of the layer where the cache has a leading axis for them.
        """
        start = (0, 0, slot, 0) if layer is None else (layer, 0, 0, slot, 0)

        def put(into, new):
            new = new.astype(into.dtype)
            return jax.lax.dynamic_update_slice(into, new if layer is None else new[None], start)

        return LayerCache(put(self.keys, keys), put(self.values, values))

    def of(self, layer=None) -> "LayerCache":
        """The cache of one layer, without a leading axis."""
        if layer is None:
            return self
        return jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, layer, 0, keepdims=False), self
        )


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Slower rotations, for contexts longer than those of pretraining.

    Attributes:
      factor: rotary frequencies are divided by it; 1 leaves them as they are.
      original_context: None divides all (position interpolation, arXiv:2306.15595). The length of
        pretraining, in tokens, divides as Llama 3.1 does: in full where a token sequence of that
        length holds fewer than `low_frequency` turns, not at all from `high_frequency` turns on,
        and by a linear mixture between.
      low_frequency, high_frequency: turns, see above.
    """

    factor: float = 1.0
    original_context: int | None = None
    low_frequency: float = 1.0
    high_frequency: float = 4.0

    def scale(self, frequencies: Float[Array, "half"]) -> Float[Array, "half"]:
        """The frequencies (radians a token) to rotate by."""
        if self.original_context is None:
            return frequencies / self.factor
        turns = self.original_context * frequencies / (2 * math.pi)
        kept = (turns - self.low_frequency) / (self.high_frequency - self.low_frequency)
        kept = jnp.clip(kept, 0.0, 1.0)
        return kept * frequencies + (1 - kept) * frequencies / self.factor


def rotate(
    x: Float[Array, "batch heads time head_dim"],
    positions: Int[Array, "batch time"],
    base: float,
    scaling: RopeScaling = RopeScaling(),
) -> Float[Array, "batch heads time head_dim"]:
    """Rotary position embedding (arXiv:2104.09864), halves convention of Llama, Qwen and Gemma."""
    half = x.shape[-1] // 2
    frequencies = scaling.scale(base ** (-jnp.arange(half, dtype=jnp.float32) / half))
    angles = positions[:, None, :, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def positions_of(segments: Int[Array, "batch time"]) -> Int[Array, "batch time"]:
    """Position of each token in its own segment, from 0; padding (segment 0) gets 0."""
    time = segments.shape[1]
    previous = jnp.pad(segments, ((0, 0), (1, 0)))[:, :time]
    start = jnp.where(segments != previous, jnp.arange(time), 0)
    start = jax.lax.cummax(start, axis=1)
    return jnp.where(segments == 0, 0, jnp.arange(time) - start)


@struct.dataclass
class Visibility:
    """Who sees whom: the same non-zero segment, not later, at most `window - 1` slots back.

    Attributes:
      query_segments, key_segments: 0 on padding, which sees nothing and is not seen, and a number
        from 1 for each document of a row.
      query_slots: the slot of each query; None where the queries' tokens are the keys' own.
      causal: off, later slots are seen too.
      window: slots seen to each side, the query's own among them; all if None.
      ring: slots go on at the front: those behind a query's own are its oldest.
    """

    query_segments: Int[Array, "batch queries"]
    key_segments: Int[Array, "batch keys"]
    query_slots: Int[Array, "queries"] | None = None
    causal: bool = struct.field(pytree_node=False, default=True)
    window: int | None = struct.field(pytree_node=False, default=None)
    ring: bool = struct.field(pytree_node=False, default=False)

    @property
    def slots(self) -> Int[Array, "queries"]:
        """The slot of each query."""
        own = jnp.arange(self.query_segments.shape[1])
        return own if self.query_slots is None else self.query_slots

    def dense(self) -> Bool[Array, "batch queries keys"]:
        """The mask: on where a query sees a key."""
        keys = self.key_segments[:, None, :]
        mask = (self.query_segments[:, :, None] == keys) & (keys != 0)
        distance = self.slots[:, None] - jnp.arange(keys.shape[2])
        if self.ring:
            distance %= keys.shape[2]
        if self.causal:
            mask &= distance >= 0
        if self.window is not None:
            mask &= jnp.abs(distance) < self.window
        return mask


def attend(
    queries: Float[Array, "batch heads queries head_dim"],
    keys: Float[Array, "batch kv_heads keys head_dim"],
    values: Float[Array, "batch kv_heads keys head_dim"],
    visible: Visibility,
    *,
    scale: float,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Float[Array, "batch heads queries head_dim"]:
    """Grouped-query attention with a float32 softmax; a query that sees nothing gives 0.

    With `chunk`, so many queries at a time, forwards and backwards: neither the matrix of scores,
    queries by keys, nor their mask ever exists whole.

    On a mesh with `sequence`, which cuts whole rows' time axis, each of its devices has its own part of
    the queries (and of a chunk), and the keys and values of all.
    """
    shards = 1 if visible.query_slots is not None else time_shards(queries.shape[2])
    local = partial(
        _in_chunks, scale=scale, softcap=softcap, chunk=chunk and math.ceil(chunk / shards)
    )
    if shards == 1:
        return local(queries, keys, values, visible)
    # Left to the compiler, the keys' gradients may be summed over the devices chunk by chunk.
    cut, whole = spec((None, None, "time")), spec(())
    seen: dict[str, Any] = {"query_segments": spec((None, "time")), "key_segments": whole}
    seen["query_slots"] = spec(("time",))
    visible = dataclasses.replace(visible, query_slots=visible.slots)
    return jax.shard_map(
        local,
        in_specs=(cut, whole, whole, dataclasses.replace(visible, **seen)),
        out_specs=cut,
        axis_names={"sequence"},
        check_vma=False,
    )(queries, keys, values, visible)


def _in_chunks(queries, keys, values, visible, *, scale, softcap, chunk):
    some = partial(_attend, scale=scale, softcap=softcap)
    time = queries.shape[2]
    if chunk is None or time <= chunk:
        return some(queries, keys, values, visible.dense())
    rest = -time % chunk

    def cut(x, axis):
        x = jnp.pad(x, [(0, rest if i == axis else 0) for i in range(x.ndim)])
        x = x.reshape(*x.shape[:axis], -1, chunk, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    @jax.checkpoint
    def one(x):
        part, segments, slots = x
        seen = dataclasses.replace(visible, query_segments=segments, query_slots=slots)
        return some(part, keys, values, seen.dense())

    cuts = cut(queries, 2), cut(visible.query_segments, 1), cut(visible.slots, 0)
    parts = jax.lax.map(one, cuts)
    return jnp.moveaxis(parts, 0, 2).reshape(*queries.shape[:2], -1, queries.shape[3])[:, :, :time]


def _attend(queries, keys, values, mask, *, scale, softcap):
    batch, heads, time, head_dim = queries.shape
    kv_heads = keys.shape[1]
    grouped = queries.reshape(batch, kv_heads, heads // kv_heads, time, head_dim) * scale
    scores = jnp.einsum("bkgqd,bksd->bkgqs", grouped, keys, preferred_element_type=jnp.float32)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    visible = mask[:, None, None]
    scores = jnp.where(visible, scores, -1e30)
    weights = jnp.where(visible, jax.nn.softmax(scores, axis=-1), 0.0)
    mixed = jnp.einsum("bkgqs,bksd->bkgqd", weights.astype(values.dtype), values)
    return mixed.reshape(batch, heads, time, head_dim)
