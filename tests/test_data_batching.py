import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardjax.data.batching import (
    LongSequence,
    bucket_of,
    drop_long,
    encode_pair,
    encode_preference,
    pack,
    pad,
    preference_arrays,
    response_mask,
)
from rewardjax.data.records import Preference
from rewardjax.data.tokenizers import CharTokenizer

LETTERS = CharTokenizer("abcdefgh")  # a is 3, b is 4, ...


def test_encode_pair_by_hand():
    assert encode_pair("ab", "c", LETTERS, 5) == ([1, 3, 4, 5, 2], 3)
    assert encode_pair("", "c", LETTERS, 5) == ([1, 5, 2], 1)


def test_a_long_sequence_is_an_error_or_loses_the_beginning_of_its_prompt():
    with pytest.raises(LongSequence, match="f:3: expected a sequence of at most 5 tokens, found 7"):
        encode_pair("abcd", "e", LETTERS, 5, source="f:3")
    assert encode_pair("abcd", "e", LETTERS, 5, "truncate_left") == ([1, 5, 6, 7, 2], 3)
    assert encode_pair("abcd", "efg", LETTERS, 5, "truncate_left") == ([1, 7, 8, 9, 2], 1)
    with pytest.raises(LongSequence, match="f:3: expected a response of at most 3 tokens, found 4"):
        encode_pair("a", "efgh", LETTERS, 5, "truncate_left", source="f:3")


def test_all_responses_of_a_preference_keep_the_same_prompt():
    record = Preference("abcd", ("e", "efg"), source="f:9")
    encoded = encode_preference(record, LETTERS, 7, "truncate_left")
    assert encoded == {
        "tokens": [[1, 5, 6, 7, 2], [1, 5, 6, 7, 8, 9, 2]],
        "prompt_lengths": [3, 3],
    }
    with pytest.raises(LongSequence, match="f:9: expected a sequence of at most 7 tokens, found 9"):
        encode_preference(record, LETTERS, 7)


def test_drop_long_counts_what_does_not_fit():
    records = [Preference("a" * n, ("b", "c")) for n in (1, 5, 2)]
    dropped = drop_long(records, LETTERS, 5)
    assert dropped.records == [records[0], records[2]]
    assert dropped.skipped == {"longer than 5 tokens": 1}
    assert drop_long(records, LETTERS, 5, "truncate_left").records == records
    assert drop_long(records, LETTERS, 8).skipped == {}


def test_pad_and_response_mask_by_hand():
    tokens, valid = pad([[1, 2, 3], [], [4]], 4, 9)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, [[1, 2, 3, 9], [9, 9, 9, 9], [4, 9, 9, 9]])
    np.testing.assert_array_equal(valid, [[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
    mask = response_mask([1, 0, 1], valid)
    np.testing.assert_array_equal(mask, [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    with pytest.raises(ValueError, match="row 1: expected at most 2 tokens, found 3"):
        pad([[1], [1, 2, 3]], 2, 0)


def test_pack_by_hand():
    tokens, segments, positions = pack([[1, 2, 3], [4, 5, 6], [7], [8]], 5, pad_id=0)
    np.testing.assert_array_equal(tokens, [[1, 2, 3, 7, 8], [4, 5, 6, 0, 0]])
    np.testing.assert_array_equal(segments, [[1, 1, 1, 2, 3], [1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(positions, [[0, 1, 2, 0, 0], [0, 1, 2, 0, 0]])
    assert {array.dtype for array in (tokens, segments, positions)} == {np.dtype(np.int32)}
    assert pack([], 5)[0].shape == (0, 5)
    with pytest.raises(ValueError, match="row 0: expected at most 5 tokens, found 6"):
        pack([[1] * 6], 5)


@given(lengths=st.lists(st.integers(0, 7), max_size=30), room=st.integers(7, 12))
def test_pack_keeps_every_token_once(lengths, room):
    bounds = np.cumsum([0, *lengths])
    rows = [list(range(a + 1, b + 1)) for a, b in itertools.pairwise(bounds.tolist())]
    tokens, segments, positions = pack(rows, room)
    assert sorted(tokens[segments > 0].tolist()) == list(range(1, bounds[-1] + 1))
    assert not tokens[segments == 0].any()
    assert not positions[segments == 0].any()
    unpacked = []
    for row in range(len(tokens)):
        for segment in range(1, segments[row].max() + 1):
            place = segments[row] == segment
            unpacked.append(tokens[row][place].tolist())
            assert positions[row][place].tolist() == list(range(place.sum()))
    assert sorted(unpacked) == [row for row in rows if row]
    # First fit never leaves two rows that would both fit into one.
    used = (segments > 0).sum(axis=1)
    assert all(a + b > room for i, a in enumerate(used) for b in used[:i])


def test_bucket_of():
    assert [bucket_of(n, (64, 16, 32)) for n in (1, 16, 17, 64)] == [16, 16, 32, 64]
    with pytest.raises(ValueError, match="expected at most 64, found 65"):
        bucket_of(65, (64, 16, 32))


def test_preference_arrays_by_hand():
    records = [Preference("a", ("b", "cd"), 0.75), Preference("", ("e", "f"))]
    arrays = preference_arrays(records, LETTERS, 6)
    np.testing.assert_array_equal(
        arrays["tokens"],
        [[[1, 3, 4, 2, 0, 0], [1, 3, 5, 6, 2, 0]], [[1, 7, 2, 0, 0, 0], [1, 8, 2, 0, 0, 0]]],
    )
    np.testing.assert_array_equal(arrays["valid"].sum(axis=-1), [[4, 5], [3, 3]])
    np.testing.assert_array_equal(arrays["mask"][0], [[0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]])
    np.testing.assert_array_equal(arrays["mask"].sum(axis=-1), [[2, 3], [2, 2]])
    np.testing.assert_array_equal(arrays["probability"], np.float32([0.75, 1.0]))


def test_preference_arrays_refuses_what_no_array_holds():
    with pytest.raises(ValueError, match="at least one preference"):
        preference_arrays([], LETTERS, 6)
    mixed = [Preference("a", ("b", "c")), Preference("a", ("b", "c", "d"), source="f:2")]
    with pytest.raises(ValueError, match="f:2: expected 2 responses as in record 0, found 3"):
        preference_arrays(mixed, LETTERS, 6)
