"""Judged solutions and demonstrations of real text as batches."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rewardjax.data.batching import (
    LongSequence,
    OnLong,
    bucket_of,
    encode_pair,
    pack,
    pad,
    response_mask,
)
from rewardjax.data.jsonl import Loaded
from rewardjax.data.records import Demonstration, Solution
from rewardjax.data.sources import Batch, GrainSource, Source, bucketed
from rewardjax.data.tokenizers import Tokenizer


class JoinedSource:
    """Batches of one source that hold those of other sources too, each under its name.

    Args:
      main: gives batches that are dicts.
      others: sources by the name that their batches get.
    """

    def __init__(self, main: Source, others: Mapping[str, Source]):
        self._main, self._others = main, dict(others)

    @property
    def uniform(self) -> bool:
        """Whether all the sources are."""
        return all(source.uniform for source in (self._main, *self._others.values()))

    def next(self) -> Batch:
        """The next batch of each source."""
        beside = {name: source.next() for name, source in self._others.items()}
        return {**self._main.next(), **beside}

    def state(self) -> dict[str, Any]:
        """The sources' states."""
        others = {name: source.state() for name, source in self._others.items()}
        return {"main": self._main.state(), "others": others}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Sets the sources' states."""
        self._main.restore(state["main"])
        for name, source in self._others.items():
            source.restore(state["others"][name])


def encode_solution(
    record: Solution, tokenizer: Tokenizer, max_length: int, on_long: OnLong = "error"
) -> tuple[list[int], int]:
    """`encode_pair` of the question, with a line's end, and the solution."""
    prompt = record.question + "\n"
    return encode_pair(prompt, record.solution, tokenizer, max_length, on_long, record.source)


def stack_solutions(
    encoded: Sequence[tuple[list[int], int]], length: int, pad_id: int
) -> dict[str, np.ndarray]:
    """What `encode_solution` made, padded to arrays.

    Returns:
      `tokens` int32, `valid` and `mask` (on at the solution) bool, all `[N, length]`.
    """
    tokens, valid = pad([ids for ids, _ in encoded], length, pad_id)
    mask = response_mask([prompt for _, prompt in encoded], valid)
    return {"tokens": tokens, "valid": valid, "mask": mask}


def bucketed_solutions(
    records: Sequence[Solution],
    tokenizer: Tokenizer,
    batch_size: int,
    seed: int,
    buckets: Sequence[int],
    on_long: OnLong = "error",
) -> GrainSource:
    """Batches of solutions of similar length, made as those of `bucketed_preferences`.

    Returns:
      A source of `tokens`, `valid`, `mask` `[batch, length]` as in `stack_solutions`, and
      `correct` float32 `[batch]`, 1 or 0. It is uniform where one bucket is in use.

    Raises:
      ValueError: fewer records than a batch, a sequence too long for the largest bucket.
    """
    by_bucket: dict[int, list] = {bucket: [] for bucket in sorted(buckets)}
    for record in records:
        encoded = encode_solution(record, tokenizer, max(buckets, default=0), on_long)
        by_bucket[bucket_of(len(encoded[0]), buckets)].append((encoded, record.correct))

    def stack(rows, length):
        arrays = stack_solutions([encoded for encoded, _ in rows], length, tokenizer.pad_id)
        return {**arrays, "correct": np.array([correct for _, correct in rows], np.float32)}

    return bucketed(by_bucket, batch_size, seed, stack)


def packed_demonstrations(
    records: Sequence[Demonstration],
    tokenizer: Tokenizer,
    length: int,
    on_long: OnLong = "error",
) -> tuple[dict[str, np.ndarray], int]:
    """Several demonstrations to a row, as `language_modelling` takes them.

    Args:
      records: prompts with responses.
      tokenizer: encodes both.
      length: tokens a row.
      on_long: as for `encode_pair`; records that do not fit even so are left out.

    Returns:
      `tokens` and `segments` int32, `valid` and `mask` (on at the responses) bool, all
      `[rows, length]`; and how many records were left out.

    Raises:
      ValueError: nothing is left.
    """
    encoded = []
    for record in records:
        texts = (record.prompt + "\n", record.response)
        try:
            encoded.append(encode_pair(*texts, tokenizer, length, on_long, record.source))
        except LongSequence:
            continue
    if not encoded:
        raise ValueError(f"records: expected one of at most {length} tokens, found none")
    tokens, segments, _ = pack([ids for ids, _ in encoded], length, tokenizer.pad_id)
    # Packing goes by lengths alone, so that these land on their tokens.
    answered = [np.arange(len(ids)) >= prompt for ids, prompt in encoded]
    mask, *_ = pack([part.astype(np.int32) for part in answered], length)
    arrays = {"tokens": tokens, "segments": segments, "valid": segments > 0, "mask": mask > 0}
    return arrays, len(records) - len(encoded)


def fitting(
    records: Sequence[Solution], tokenizer: Tokenizer, max_length: int, on_long: OnLong = "error"
) -> Loaded[Solution]:
    """The solutions of the questions all of whose solutions `encode_solution` takes.

    Returns:
      These in their order; `skipped` counts the others.
    """
    long: set[str] = set()
    for record in records:
        try:
            encode_solution(record, tokenizer, max_length, on_long)
        except LongSequence:
            long.add(record.question)
    kept = [record for record in records if record.question not in long]
    dropped = len(records) - len(kept)
    reason = f"a solution of the question is longer than {max_length} tokens"
    return Loaded(kept, {reason: dropped} if dropped else {})
