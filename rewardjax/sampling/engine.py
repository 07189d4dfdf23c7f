"""Continuous batching: a fixed number of slots, and a queue of samples that takes them in turn.

The slots' cache is a ring: every step writes all slots at one common column, in place, wherever in
its response each of them is; only the mask knows. A sample that starts gets its prompt's keys and
values copied to the columns before the current one, and the hidden state that its first token is
drawn from, so that a response of n tokens takes a slot for exactly n steps. Prompts are prefilled
before the first step, since a prefill in between would stall all slots; their keys and values are
kept once a prompt, not once a sample.

On a mesh each shard of the rows (over `data` and `fsdp`) has its own slots and its own part of the
queue, and ends by itself: while decoding, shards have nothing to say to each other.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rewardjax.models.attention import LayerCache
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import Cache, check_length
from rewardjax.partitioning import spec
from rewardjax.sampling.generate import sample_token
from rewardjax.trajectory import Prompts, Trajectory, left_pad, respond

(ROWS,) = spec(("batch",))  # the mesh axes that rows lie on


class _Prefix(NamedTuple):
    """What the samples of a prompt share: keys and values, and the state after its last token."""

    layers: tuple[LayerCache, ...]
    hidden: Float[Array, "prompts width"]
    valid: Bool[Array, "prompts columns"]


class _Queue(NamedTuple):
    """In which order the rows start; and of each row its prompt in the prefix and longest length."""

    order: Int[Array, "rows"]
    prompt: Int[Array, "rows"]
    limits: Int[Array, "rows"]


class _Written(NamedTuple):
    """Responses so far."""

    tokens: Int[Array, "rows max_new"]
    logprobs: Float[Array, "rows max_new"]
    lengths: Int[Array, "rows"]


class _State(NamedTuple):
    """Between two steps: what each slot writes next.

    `row` is the number of rows where a slot is free; `place` is that of a token in its response.
    """

    cache: Cache
    hidden: Float[Array, "slots width"]
    row: Int[Array, "slots"]
    place: Int[Array, "slots"]
    started: Int[Array, ""]
    written: _Written


def generate_continuous(
    model: LanguageModel,
    params,
    prompts: Prompts,
    key: PRNGKeyArray,
    *,
    slots: int,
    max_new: int,
    stop: tuple[int, ...],
    group_size: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    pad_id: int = 0,
    limits: Int[Array, "rows"] | None = None,
    order: Int[Array, "rows"] | None = None,
    prefill_rows: int | None = None,
    buckets: tuple[int, ...] = (),
) -> Trajectory:
    """`generate` with at most `slots` samples at a time, each giving its slot to the next.

    Decoding ends with the last response. The draw of a token depends on the key, its row and its
    place in the response alone: `slots`, `order`, `prefill_rows`, `buckets` and the mesh change
    nothing but rounding. The greedy responses are those of `generate`; sampled ones have its
    distribution. On a mesh the rows' shards share out `slots` and `prefill_rows`; prompts that do
    not divide among them are decoded by all together, which is slower.

    Args:
      model, params, prompts, key: as in `generate`.
      slots: samples decoded at a time; more than there are rows are not made.
      max_new: longest response, its stop token included; at least 1.
      stop, group_size, temperature, top_k, top_p, pad_id: as in `generate`.
      limits: longest response of each row, in `[1, max_new]`; `max_new` if None.
      order: a permutation of the rows: who starts first (best, those expected to be long).
      prefill_rows: prompts read at a time; all if None.
      buckets: widths in columns. A chunk of `prefill_rows` prompts, which are sorted by length, is
        read in the narrowest bucket that holds it rather than in all columns.

    Returns:
      A trajectory of `batch * group_size` rows and `prompt + max_new` columns, as `generate`'s.

    Raises:
      ValueError: `prompt + max_new` is more than the model's context; a size is below 1; a bucket
        is wider than the prompts; `limits` or `order` has another length than there are rows.
    """
    batch, columns = prompts.tokens.shape
    rows = batch * group_size
    prefill_rows = batch if prefill_rows is None else prefill_rows
    _check_sizes(slots=slots, max_new=max_new, group_size=group_size, prefill_rows=prefill_rows)
    _check_rows(rows, limits=limits, order=order)
    if not all(1 <= width <= columns for width in buckets):
        raise ValueError(f"buckets: expected widths from 1 to {columns}, found {buckets}")
    check_length(model.config, columns + max_new)
    tokens, valid = left_pad(prompts.tokens, prompts.valid)
    prompts = Prompts(jnp.where(valid, tokens, 0), valid, prompts.info)
    order = jnp.arange(rows) if order is None else order
    limits = jnp.full(rows, max_new) if limits is None else limits
    shards = _shards(batch)

    def write(params, prompts, key, order, limits, first=0):
        """The responses to a shard's prompts; its first row is `first` among all."""
        batch, rows = len(prompts.tokens), len(order)
        read = min(-(-prefill_rows // shards), batch)
        prefix, place = _prefill(model, params, prompts, read, buckets)
        queue = _Queue(order, jnp.repeat(place, group_size), limits)
        cache = model.init_cache(min(-(-slots // shards), rows), columns + max_new)
        ring = dataclasses.replace(cache, ring=True)
        choose = partial(_choose, key, first, temperature=temperature, top_k=top_k, top_p=top_p)
        blank = jnp.full((rows, max_new), pad_id)
        written = _Written(blank, jnp.zeros(blank.shape), jnp.zeros(rows, jnp.int32))
        return _decode(model, params, prefix, queue, choose, stop, ring, written)

    if shards > 1:
        write = _on_shards(write)
    written = write(model.for_sampling(params), prompts, key, order, limits)
    samples = jax.tree.map(lambda x: jnp.repeat(x, group_size, axis=0), prompts)
    traj = respond(samples, written.tokens, jnp.arange(max_new) < written.lengths[:, None])
    return traj.replace(logprobs=jnp.pad(written.logprobs, ((0, 0), (columns, 0))))


def _shards(batch: int) -> int:
    """Into how many parts the ambient mesh cuts the rows; 1 where they do not divide."""
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else math.prod(mesh.shape[name] for name in ROWS)
    return shards if batch % shards == 0 else 1


def _on_shards(write: Callable) -> Callable:
    """`write` for each shard of the rows by itself."""

    def one(params, prompts, key, order, limits):
        index, rows = jax.lax.axis_index(ROWS), limits.shape[0]
        # Those of the queue that are here, in the order that they have there.
        here = order[jnp.argsort(order // rows != index)][:rows]
        first = index * rows
        return write(params, prompts, key, here - first, limits, first)

    mesh = jax.sharding.get_abstract_mesh()
    whole, cut = PartitionSpec(), PartitionSpec(ROWS)
    # The compiler goes on to partition over the other axes, where there is something to partition.
    mapped = {name for name in mesh.axis_names if name in ROWS or mesh.shape[name] == 1}
    specs = (whole, cut, whole, whole, cut)
    return jax.shard_map(one, in_specs=specs, out_specs=cut, axis_names=mapped, check_vma=False)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, found {size}")


def _check_rows(rows: int, **arrays: Array | None) -> None:
    for name, array in arrays.items():
        if array is not None and array.shape != (rows,):
            raise ValueError(f"{name}: expected one entry a row, ({rows},), found {array.shape}")


def _prefill(model, params, prompts: Prompts, rows: int, buckets: tuple[int, ...]):
    """Read all prompts, `rows` at a time, those of similar length together.

    Returns them in order of length, and the place of each there.
    """
    batch, columns = prompts.tokens.shape
    widths = sorted({*buckets, columns})
    lengths = jnp.sum(prompts.valid, axis=1)
    order = jnp.argsort(lengths)
    chunks = -(-batch // rows)

    def read(width, which):
        tokens, valid = (x[which, columns - width :] for x in (prompts.tokens, prompts.valid))
        image = prompts.info.get("image")
        image = None if image is None else image[which]
        cache = model.init_cache(rows, width)
        hidden, cache = model.hidden(
            params, tokens, valid.astype(jnp.int32), None, cache, image=image
        )
        layers = jax.tree.map(lambda x: _pad_columns(x, columns - width, 0), cache.layers)
        return layers, hidden[:, -1]

    def read_chunk(which):
        bucket = jnp.searchsorted(jnp.asarray(widths), jnp.max(lengths[which]))
        return jax.lax.switch(bucket, [partial(read, width) for width in widths], which)

    def merge(x):
        axis = x.ndim - 5  # the chunks of a scanned cache go behind its layers
        x = jnp.moveaxis(x, 0, axis)
        return x.reshape(*x.shape[:axis], chunks * rows, *x.shape[axis + 2 :])

    padded = jnp.pad(order, (0, chunks * rows - batch), mode="edge").reshape(chunks, rows)
    layers, hidden = jax.lax.map(read_chunk, padded)
    hidden = hidden.reshape(chunks * rows, -1)
    return _Prefix(jax.tree.map(merge, layers), hidden, prompts.valid[order]), jnp.argsort(order)


def _pad_columns(x: Float[Array, "..."], left: int, right: int) -> Float[Array, "..."]:
    return jnp.pad(x, (*((0, 0),) * (x.ndim - 2), (left, right), (0, 0)))


def _decode(
    model, params, prefix: _Prefix, queue: _Queue, choose: Callable, stop, cache, written
) -> _Written:
    """Step until every row of the queue has been written."""
    rows = queue.order.shape[0]

    def running(state: _State):
        return jnp.any(state.row < rows) | (state.started < rows)

    def step(state: _State):
        state = _fill(prefix, queue, state)
        row, place = state.row, state.place
        token, logprob = choose(row, place, model.unembed(params, state.hidden))
        written = _write(state, token, logprob)
        ends = jnp.isin(token, jnp.asarray(stop)) | (place + 1 >= queue.limits[row])
        row = jnp.where(ends, rows, row)
        positions = lengths[queue.prompt[state.row]] + place
        hidden, cache = model.hidden(
            params,
            token[:, None],
            (row < rows)[:, None].astype(jnp.int32),
            positions[:, None],
            state.cache,
        )
        return _State(cache, hidden[:, 0], row, place + 1, state.started, written)

    lengths = jnp.sum(prefix.valid, axis=1)
    slots = cache.segments.shape[0]
    state = _State(
        cache,
        jnp.zeros((slots, prefix.hidden.shape[1]), prefix.hidden.dtype),
        jnp.full(slots, rows),
        jnp.zeros(slots, jnp.int32),
        jnp.zeros((), jnp.int32),
        written,
    )
    return jax.lax.while_loop(running, step, state).written


def _fill(prefix: _Prefix, queue: _Queue, state: _State) -> _State:
    """Start the next rows of the queue in the slots that are free.

    One at a time: what is copied is then the cache of the rows that start and not that of others.
    """
    rows = queue.order.shape[0]

    def waiting(state: _State):
        return jnp.any(state.row == rows) & (state.started < rows)

    def start(state: _State):
        slot, row = jnp.argmax(state.row == rows), queue.order[state.started]
        prompt = queue.prompt[row]
        return state._replace(
            cache=_copy_prompt(prefix, prompt, state.cache, slot),
            row=state.row.at[slot].set(row),
            place=state.place.at[slot].set(0),
            hidden=state.hidden.at[slot].set(prefix.hidden[prompt]),
            started=state.started + 1,
        )

    return jax.lax.while_loop(waiting, start, state)


def _copy_prompt(prefix: _Prefix, prompt, cache: Cache, slot) -> Cache:
    """Place a prompt's keys and values in the columns of a slot's ring before the current one."""
    ring, columns = cache.segments.shape[1], prefix.valid.shape[1]
    shift = cache.length - columns

    def copy(into, source):
        axis = into.ndim - 4
        row = jax.lax.dynamic_slice_in_dim(source, prompt, 1, axis)
        row = jnp.roll(_pad_columns(row, 0, ring - columns), shift, axis=-2)
        return jax.lax.dynamic_update_slice_in_dim(into, row, slot, axis)

    held = jnp.pad(prefix.valid[prompt], (0, ring - columns)).astype(cache.segments.dtype)
    return dataclasses.replace(
        cache,
        layers=jax.tree.map(copy, cache.layers, prefix.layers),
        segments=cache.segments.at[slot].set(jnp.roll(held, shift)),
    )


def _choose(key: PRNGKeyArray, first, row, place, logits, **options):
    """A token and its log-probability for each slot, drawn with the key of its row and place.

    The row is counted from `first`.
    """

    def choose(row, place, logits):
        own = jax.random.fold_in(jax.random.fold_in(key, first + row), place)
        return sample_token(own, logits[None], **options)

    token, logprob = jax.vmap(choose)(row, place, logits)
    return token[:, 0], logprob[:, 0]


def _write(state: _State, token, logprob) -> _Written:
    """The responses with one more token in each row that has a slot."""
    row, place, written = state.row, state.place, state.written
    return _Written(
        written.tokens.at[row, place].set(token, mode="drop"),
        written.logprobs.at[row, place].set(logprob, mode="drop"),
        written.lengths.at[row].set(place + 1, mode="drop"),
    )
