"""Where a training loop gets its batches: endless, and resumable to the batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import grain
import jax
import numpy as np
from jaxtyping import Int

from rewardjax.data.batching import (
    OnLong,
    bucket_of,
    check_same_count,
    encode_preference,
    preference_arrays,
    stack_preferences,
)
from rewardjax.data.records import Preference
from rewardjax.data.tokenizers import Tokenizer

Batch = Any  # a pytree of arrays, without None, with one leading batch axis


@runtime_checkable
class Source(Protocol):
    """Batches for a training loop.

    Attributes:
      uniform: whether all batches share their shapes, so that one compiled program takes them all.
    """

    @property
    def uniform(self) -> bool:
        """Whether all batches share their shapes."""

    def next(self) -> Batch:
        """The next batch."""

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on after the last batch given; it can be written as JSON."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state: the next batch is the one that followed it."""


@runtime_checkable
class DivisibleSource(Source, Protocol):
    """A source of which each of several processes reads its own rows of every batch.

    Which batch comes next, and the state, must not depend on the rows that were asked for: the
    processes stay in step, and a run goes on in another number of them. A source that is not
    divisible is read whole by every process.

    Attributes:
      batch_size: rows of a whole batch.
    """

    @property
    def batch_size(self) -> int:
        """Rows of a whole batch."""

    def next_rows(self, rows: Int[np.ndarray, "rows"]) -> Batch:
        """These rows of the next batch, alone; the next call gives of the batch after it."""


@runtime_checkable
class Records(Protocol):
    """Random access: a list, a grain `MapDataset` with an end, a data set in ArrayRecord files."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex, /) -> Any: ...


class RecordSource:
    """Batches made of records as they are needed, in a new order each epoch.

    The order depends on the seed and the epoch alone, so that the state is one number. Each epoch
    leaves out the records of its order that would not fill a batch (others each time).

    Args:
      records: what batches are made of; only those of a batch, or of this process's rows of it, are
        looked up.
      make: some of the records to their rows of a batch, which do not depend on the other rows.
      batch_size: records a batch.
      seed: decides the orders.
      shuffle: False keeps the records in their own order in every epoch.

    Raises:
      ValueError: a batch larger than the data.
    """

    uniform = True

    def __init__(
        self,
        records: Records,
        make: Callable[[list[Any]], Batch],
        batch_size: int,
        seed: int,
        shuffle: bool = True,
    ):
        _check_batch_size(batch_size, len(records))
        self._records, self._make = records, make
        self.batch_size, self._seed, self._shuffle = batch_size, seed, shuffle
        self._step = 0
        self._epoch, self._order = -1, np.arange(len(records))

    def next(self) -> Batch:
        """The next batch: arrays `[batch_size, ...]`."""
        return self.next_rows(np.arange(self.batch_size))

    def next_rows(self, rows: Int[np.ndarray, "rows"]) -> Batch:
        """These rows of the next batch: arrays `[rows, ...]`."""
        epoch, batch = divmod(self._step, len(self._records) // self.batch_size)
        if self._shuffle and epoch != self._epoch:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self._order))
            self._epoch = epoch
        self._step += 1
        chosen = self._order[batch * self.batch_size + rows]
        return self._make([self._records[i] for i in chosen.tolist()])

    def state(self) -> dict[str, Any]:
        """How many batches were given: `{"step": n}`."""
        return {"step": self._step}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on after `state["step"]` batches.

        Raises:
          ValueError: the state is not one of this class.
        """
        step = state.get("step")
        if not isinstance(step, int) or step < 0 or len(state) != 1:
            raise ValueError(f"state: expected {{'step': 0 or more}}, found {dict(state)!r}")
        self._step = step


class ArraySource(RecordSource):
    """Batches of rows of arrays in memory: a `RecordSource` whose records are the rows' numbers.

    Args:
      arrays: a pytree of arrays with equally many rows.
      batch_size, seed, shuffle: as for `RecordSource`.

    Raises:
      ValueError: no arrays, numbers of rows that differ, a batch larger than the data.
    """

    def __init__(self, arrays: Batch, batch_size: int, seed: int, shuffle: bool = True):
        arrays = jax.tree.map(np.asarray, arrays)

        def make(rows: list[int]) -> Batch:
            return jax.tree.map(lambda array: array[rows], arrays)

        super().__init__(range(_row_count(arrays)), make, batch_size, seed, shuffle)


class GrainSource:
    """Batches of a grain data set. It is not divisible: grain makes a batch as a whole.

    Args:
      dataset: yields batches. It should be endless (`repeat()`).
      uniform: whether all its batches share their shapes.
    """

    def __init__(self, dataset: grain.MapDataset | grain.IterDataset, uniform: bool):
        if isinstance(dataset, grain.MapDataset):
            # In this thread: read-ahead threads outlive a source that is dropped.
            dataset = dataset.to_iter_dataset(
                grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            )
        self._iterator = iter(dataset)
        self.uniform = uniform

    def next(self) -> Batch:
        """The next batch.

        Raises:
          StopIteration: the data set has an end and is at it.
        """
        return next(self._iterator)

    def state(self) -> dict[str, Any]:
        """The state of the data set's iterator."""
        return self._iterator.get_state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Sets the iterator's state, which must come from an equal data set."""
        self._iterator.set_state(dict(state))


def padded_preferences(
    records: Records,
    tokenizer: Tokenizer,
    batch_size: int,
    seed: int,
    length: int,
    on_long: OnLong = "error",
) -> RecordSource:
    """The batches of an `ArraySource` of `preference_arrays`, read and tokenized as they are needed.

    Args:
      records: `Preference`s that all have the same number K of responses.
      tokenizer: encodes prompts and responses.
      batch_size: records a batch.
      seed: decides the orders.
      length: tokens to pad every sequence to.
      on_long: as for `encode_pair`, with `length` as the context.

    Raises:
      ValueError: fewer records than a batch. Numbers of responses that differ and a sequence too
        long are found when their batch is made.
    """

    def make(chosen: list[Preference]) -> Batch:
        return preference_arrays(chosen, tokenizer, length, on_long)

    return RecordSource(records, make, batch_size, seed)


def bucketed_preferences(
    records: Sequence[Preference],
    tokenizer: Tokenizer,
    batch_size: int,
    seed: int,
    buckets: Sequence[int] = (64, 128, 256, 512),
    on_long: OnLong = "error",
    attributes: Sequence[str] = (),
) -> GrainSource:
    """Batches of preferences of similar length, padded to the length of their bucket.

    A record goes to the smallest bucket that holds its longest sequence. A bucket with fewer records than
    a batch joins the next larger one in use, or the next smaller one joins it. Each bucket is shuffled
    anew every epoch; buckets take turns in proportion to their sizes, so that all records come equally
    often in the long run.

    Args:
      records: preferences that all have the same number K of responses.
      tokenizer: encodes prompts and responses.
      batch_size: records a batch.
      seed: decides the orders.
      buckets: lengths in tokens; the largest is the model's context.
      on_long: as for `encode_pair`, with the largest bucket as the context.
      attributes: names of the records' attributes that the batches hold too.

    Returns:
      A source of `tokens` int32, `valid` and `mask` (on at the response) bool, all `[batch, K, length]`,
      `probability` float32 `[batch]`, and each of the attributes, float32 `[batch, K]`. It is uniform
      where one bucket is in use.

    Raises:
      ValueError: no buckets, fewer records than a batch, numbers of responses that differ, a sequence too
        long, a record without one of the attributes.
    """
    if not buckets or min(buckets) < 1:
        raise ValueError(f"buckets: expected one or more positive lengths, found {tuple(buckets)}")
    _check_batch_size(batch_size, len(records))
    check_same_count(records)
    by_bucket: dict[int, list[dict]] = {bucket: [] for bucket in sorted(buckets)}
    for record in records:
        encoded = encode_preference(record, tokenizer, max(buckets), on_long)
        bucket = bucket_of(max(map(len, encoded["tokens"])), buckets)
        numbers = {"probability": record.probability, **_chosen(record, attributes)}
        by_bucket[bucket].append({"encoded": encoded, "numbers": numbers})
    return bucketed(by_bucket, batch_size, seed, _stack_to(tokenizer.pad_id))


def bucketed(
    by_bucket: Mapping[int, list],
    batch_size: int,
    seed: int,
    stack: Callable[[Sequence[Any], int], Batch],
) -> GrainSource:
    """Batches of rows of one bucket each, as `bucketed_preferences` describes.

    Args:
      by_bucket: rows by the length that they are to be padded to, in ascending order.
      batch_size: rows a batch.
      seed: decides the orders.
      stack: `(rows, length) -> batch`.

    Raises:
      ValueError: fewer rows than a batch.
    """
    _check_batch_size(batch_size, sum(map(len, by_bucket.values())))
    filled = _fill_buckets(by_bucket, batch_size)
    datasets = [
        grain.MapDataset.source(rows)
        .shuffle(seed=_spread(seed, bucket))
        .repeat()
        .batch(batch_size, batch_fn=_padded_to(bucket, stack))
        for bucket, rows in filled.items()
    ]
    mixed = grain.MapDataset.mix(datasets, [len(rows) for rows in filled.values()])
    return GrainSource(mixed, uniform=len(filled) == 1)


def evaluation_batches(
    arrays: Mapping[str, np.ndarray], batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of equal shape that hold every row once, in order.

    The last batch is filled up with copies of the first row, whose weight is 0.

    Args:
      arrays: arrays with equally many rows (`preference_arrays`).
      batch_size: rows a batch.

    Returns:
      Each array's rows, `[batch_size, ...]`, and `weight`, float32 `[batch_size]`: 1 for a row, 0 for a
      filler.

    Raises:
      ValueError: no arrays, numbers of rows that differ, an array that is called "weight".
    """
    rows = _row_count(arrays)
    if "weight" in arrays:
        raise ValueError("arrays: expected no array of the name 'weight', found one")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected 1 or more, found {batch_size}")
    return _batches_in_order(arrays, rows, batch_size)


def _batches_in_order(
    arrays: Mapping[str, np.ndarray], rows: int, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, rows, batch_size):
        index = np.arange(start, start + batch_size)
        weight = (index < rows).astype(np.float32)
        chosen = np.where(index < rows, index, 0)
        yield {**{name: array[chosen] for name, array in arrays.items()}, "weight": weight}


def _fill_buckets(by_bucket: Mapping[int, list], batch_size: int) -> dict[int, list]:
    """Joins buckets, given in ascending order, until each has a batch."""
    filled: dict[int, list] = {}
    waiting: list = []
    largest = 0
    for bucket, rows in by_bucket.items():
        waiting = waiting + rows
        largest = bucket if rows else largest
        if len(waiting) >= batch_size:
            filled[bucket], waiting = waiting, []
    if waiting:
        # Together the buckets hold a batch, so that one of them is filled.
        filled[largest] = filled.pop(max(filled)) + waiting
    return filled


def _spread(seed: int, bucket: int) -> int:
    """A 32-bit seed far from that of any other run: grain adds the epoch to it, so that the second epoch of
    seed 0 would be the first of seed 1."""
    return int(np.random.SeedSequence([seed, bucket]).generate_state(1)[0])


def _padded_to(length: int, stack: Callable[[Sequence[Any], int], Batch]):
    return lambda rows: stack(rows, length)


def _stack_to(pad_id: int) -> Callable[[Sequence[dict], int], dict[str, np.ndarray]]:
    def stack(rows: Sequence[dict], length: int) -> dict[str, np.ndarray]:
        numbers = {
            name: np.array([row["numbers"][name] for row in rows], np.float32)
            for name in rows[0]["numbers"]
        }
        return {**stack_preferences([row["encoded"] for row in rows], length, pad_id), **numbers}

    return stack


def _chosen(record: Preference, names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    found = record.attributes or {}
    for name in names:
        if name not in found:
            raise ValueError(
                f"{record.source or 'record'}: attributes: expected {name!r} among them,"
                f" found {', '.join(found) or 'none'}"
            )
    return {name: found[name] for name in names}


def _row_count(arrays: Batch) -> int:
    named = jax.tree_util.tree_leaves_with_path(arrays)
    counts = {jax.tree_util.keystr(path, simple=True): len(array) for path, array in named}
    if len(set(counts.values())) != 1 or not min(counts.values()):
        raise ValueError(f"arrays: expected arrays with equally many rows, found {counts}")
    return next(iter(counts.values()))


def _check_batch_size(batch_size: int, rows: int) -> None:
    if not 1 <= batch_size <= rows:
        raise ValueError(
            f"batch_size: expected 1 to {rows}, the size of the data, found {batch_size}"
        )
