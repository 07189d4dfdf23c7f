"""Records to token ids, and rows of token ids to arrays of one shape."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from rewardjax.data.jsonl import Loaded
from rewardjax.data.records import Preference
from rewardjax.data.tokenizers import Tokenizer

OnLong = Literal["error", "truncate_left"]
Rows = Sequence[Sequence[int] | np.ndarray]


class LongSequence(ValueError):
    """A sequence that does not fit into the model's context."""


def encode_pair(
    prompt: str,
    response: str,
    tokenizer: Tokenizer,
    max_length: int,
    on_long: OnLong = "error",
    source: str = "",
) -> tuple[list[int], int]:
    """Token ids of a prompt with its response: begin, prompt, response, end.

    Args:
      prompt: the text before the response.
      response: the text that the policy wrote.
      tokenizer: encodes both, each on its own.
      max_length: the most ids a sequence may have: the model's context.
      on_long: "error" refuses a longer one; "truncate_left" drops the beginning of the prompt.
      source: names the record in errors.

    Returns:
      The ids, and how many of them belong to the prompt (the begin marker counted).

    Raises:
      LongSequence: the sequence is too long; with "truncate_left" only where the response alone is.
    """
    prompt_ids, response_ids = tokenizer.encode(prompt), tokenizer.encode(response)
    prompt_ids = _fit(prompt_ids, [response_ids], max_length, on_long, source)
    ids = [tokenizer.bos_id, *prompt_ids, *response_ids, tokenizer.eos_id]
    return ids, len(prompt_ids) + 1


def encode_preference(
    record: Preference, tokenizer: Tokenizer, max_length: int, on_long: OnLong = "error"
) -> dict[str, list]:
    """Token ids of each response after the prompt, as in `encode_pair`.

    A prompt that must be cut is cut alike for all responses, by what the longest of them needs: they
    stay answers to the same question.

    Returns:
      `tokens`: K lists of ids; `prompt_lengths`: K times how many ids belong to the prompt.

    Raises:
      LongSequence: as for `encode_pair`; it names the record's source.
    """
    prompt_ids = tokenizer.encode(record.prompt)
    responses = [tokenizer.encode(response) for response in record.responses]
    prompt_ids = _fit(prompt_ids, responses, max_length, on_long, record.source)
    tokens = [[tokenizer.bos_id, *prompt_ids, *ids, tokenizer.eos_id] for ids in responses]
    return {"tokens": tokens, "prompt_lengths": [len(prompt_ids) + 1] * len(tokens)}


def drop_long(
    records: Sequence[Preference],
    tokenizer: Tokenizer,
    max_length: int,
    on_long: OnLong = "error",
) -> Loaded[Preference]:
    """The records that `encode_preference` takes with the same arguments, and how many it does not.

    Returns:
      The fitting records in their order; `skipped` counts the others.
    """
    kept: list[Preference] = []
    for record in records:
        try:
            encode_preference(record, tokenizer, max_length, on_long)
        except LongSequence:
            continue
        kept.append(record)
    dropped = len(records) - len(kept)
    return Loaded(kept, {f"longer than {max_length} tokens": dropped} if dropped else {})


def pad(
    rows: Rows, length: int, pad_id: int
) -> tuple[Int[np.ndarray, "rows length"], Bool[np.ndarray, "rows length"]]:
    """Rows filled up on the right.

    Returns:
      The tokens (int32), and where they are a row's own rather than padding.

    Raises:
      ValueError: a row is longer than `length`.
    """
    tokens = np.full((len(rows), length), pad_id, np.int32)
    valid = np.zeros((len(rows), length), bool)
    for index, row in enumerate(rows):
        if len(row) > length:
            raise ValueError(f"row {index}: expected at most {length} tokens, found {len(row)}")
        tokens[index, : len(row)] = row
        valid[index, : len(row)] = True
    return tokens, valid


def response_mask(
    prompt_lengths: Sequence[int] | Int[np.ndarray, "rows"],
    valid: Bool[np.ndarray, "rows length"],
) -> Bool[np.ndarray, "rows length"]:
    """On at the tokens of the response, its end marker included; off on prompts and padding."""
    positions = np.arange(valid.shape[1])
    return valid & (positions >= np.asarray(prompt_lengths)[:, None])


def pack(
    rows: Rows, length: int, pad_id: int = 0
) -> tuple[
    Int[np.ndarray, "bins length"], Int[np.ndarray, "bins length"], Int[np.ndarray, "bins length"]
]:
    """Several documents to a row: each goes to the first row with room for it (first fit).

    Args:
      rows: the documents' token ids; empty ones take no room and get no number.
      length: tokens a packed row holds.
      pad_id: fills the rest of each row.

    Returns:
      All int32: the tokens; segments, 1, 2, ... for the documents of a row and 0 on padding;
      positions, from 0 in each document and 0 on padding.

    Raises:
      ValueError: a document is longer than `length`.
    """
    free = np.full(len(rows), length)
    placed: list[list[Sequence[int] | np.ndarray]] = [[] for _ in rows]
    for index, row in enumerate(rows):
        if len(row) > length:
            raise ValueError(f"row {index}: expected at most {length} tokens, found {len(row)}")
        if len(row):
            first = int(np.argmax(free >= len(row)))  # there is one: a row for each document
            free[first] -= len(row)
            placed[first].append(row)
    bins = [documents for documents in placed if documents]
    tokens = np.full((len(bins), length), pad_id, np.int32)
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    for index, documents in enumerate(bins):
        start = 0
        for number, document in enumerate(documents, start=1):
            place = slice(start, start + len(document))
            tokens[index, place] = document
            segments[index, place] = number
            positions[index, place] = np.arange(len(document))
            start += len(document)
    return tokens, segments, positions


def bucket_of(length: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds a row of this length.

    Raises:
      ValueError: the row is longer than every bucket.
    """
    fitting = [bucket for bucket in buckets if bucket >= length]
    if not fitting:
        raise ValueError(f"length: expected at most {max(buckets, default=0)}, found {length}")
    return min(fitting)


def preference_arrays(
    records: Sequence[Preference],
    tokenizer: Tokenizer,
    length: int,
    on_long: OnLong = "error",
) -> dict[str, np.ndarray]:
    """Preferences as arrays: what `ArraySource` and `evaluation_batches` take.

    Args:
      records: preferences that all have the same number K of responses.
      tokenizer: encodes prompts and responses.
      length: tokens to pad every sequence to.
      on_long: as for `encode_pair`, with `length` as the context.

    Returns:
      `tokens` int32, `valid` and `mask` (on at the response) bool, all `[N, K, length]`; `probability`
      float32 `[N]`, that response 0 is preferred over response 1.

    Raises:
      ValueError: no records, numbers of responses that differ, a sequence too long.
    """
    check_same_count(records)
    encoded = [encode_preference(record, tokenizer, length, on_long) for record in records]
    rows = stack_preferences(encoded, length, tokenizer.pad_id)
    return {**rows, "probability": np.array([r.probability for r in records], np.float32)}


def stack_preferences(
    encoded: Sequence[dict[str, list]], length: int, pad_id: int
) -> dict[str, np.ndarray]:
    """What `encode_preference` made of N records of K responses, padded to arrays.

    Returns:
      `tokens` int32, `valid` and `mask` bool, all `[N, K, length]`.
    """
    tokens, valid = pad([row for record in encoded for row in record["tokens"]], length, pad_id)
    mask = response_mask([p for record in encoded for p in record["prompt_lengths"]], valid)
    shape = (len(encoded), -1, length)
    return {
        "tokens": tokens.reshape(shape),
        "valid": valid.reshape(shape),
        "mask": mask.reshape(shape),
    }


def check_same_count(records: Sequence[Preference]) -> None:
    """Refuses preferences that no array holds.

    Raises:
      ValueError: there are none, or their numbers of responses differ.
    """
    if not records:
        raise ValueError("records: expected at least one preference, found none")
    count = len(records[0].responses)
    for index, record in enumerate(records):
        if len(record.responses) != count:
            raise ValueError(
                f"{record.source or f'record {index}'}: expected {count} responses as in"
                f" {records[0].source or 'record 0'}, found {len(record.responses)}"
            )


def _fit(
    prompt: list[int], responses: Rows, max_length: int, on_long: OnLong, source: str
) -> list[int]:
    """The prompt, cut from the left where that is asked for, so that the longest response fits."""
    if on_long not in ("error", "truncate_left"):
        raise ValueError(f"on_long: expected 'error' or 'truncate_left', found {on_long!r}")
    longest = max(len(response) for response in responses)
    room = max_length - longest - 2
    where = source or "record"
    if room < 0:
        raise LongSequence(
            f"{where}: expected a response of at most {max_length - 2} tokens, found {longest}"
        )
    if len(prompt) > room and on_long == "error":
        raise LongSequence(
            f"{where}: expected a sequence of at most {max_length} tokens,"
            f" found {len(prompt) + longest + 2} (on_long='truncate_left' cuts the prompt)"
        )
    return prompt[max(0, len(prompt) - room) :]
