import json

import grain
import jax
import numpy as np
import pytest

from rewardjax.data.batching import drop_long, preference_arrays
from rewardjax.data.formats import open_preferences
from rewardjax.data.records import Preference
from rewardjax.data.sources import (
    ArraySource,
    DivisibleSource,
    GrainSource,
    RecordSource,
    bucketed_preferences,
    evaluation_batches,
    padded_preferences,
)
from rewardjax.data.tokenizers import CharTokenizer, SentencePieceTokenizer

LETTERS = CharTokenizer("abcdefgh")


def arrays(rows):
    return {"x": np.arange(rows), "y": 10.0 * np.arange(rows)[:, None]}


def numbered(lengths):
    """Preferences with 2 + length tokens; the probability (a multiple of 1/1024) tells them apart."""
    return [
        Preference("", ("a" * length, "b"), probability=index / 1024)
        for index, length in enumerate(lengths)
    ]


def assert_resumes_exactly(make, batches):
    whole = make()
    for n in range(batches):
        state = json.loads(json.dumps(whole.state()))
        expected = whole.next()
        resumed = make()
        resumed.restore(state)
        jax.tree.map(np.testing.assert_array_equal, resumed.next(), expected)
        if n == 1:  # a source that is ahead goes back too
            resumed.next()
            resumed.restore(state)
            jax.tree.map(np.testing.assert_array_equal, resumed.next(), expected)


def test_array_source_gives_each_row_at_most_once_an_epoch():
    source = ArraySource(arrays(11), batch_size=3, seed=0)
    epochs = [[source.next() for _ in range(3)] for _ in range(50)]
    for epoch in epochs:
        rows = np.concatenate([batch["x"] for batch in epoch])
        assert len(set(rows.tolist())) == 9
        for batch in epoch:
            np.testing.assert_array_equal(batch["y"], 10.0 * batch["x"][:, None])
    orders = {tuple(np.concatenate([b["x"] for b in epoch]).tolist()) for epoch in epochs}
    assert len(orders) == 50
    assert {row for order in orders for row in order} == set(range(11))
    assert source.uniform


def test_array_source_depends_on_its_seed_alone():
    first = [ArraySource(arrays(20), 20, seed=s).next()["x"].tolist() for s in (0, 0, 1)]
    assert first[0] == first[1]
    assert first[0] != first[2]
    assert sorted(first[0]) == sorted(first[2]) == list(range(20))


def test_array_source_in_order():
    source = ArraySource(arrays(5), batch_size=2, seed=0, shuffle=False)
    assert [source.next()["x"].tolist() for _ in range(3)] == [[0, 1], [2, 3], [0, 1]]


def test_array_source_resumes_exactly():
    assert_resumes_exactly(lambda: ArraySource(arrays(11), 3, seed=4), 10)


def test_array_source_refuses():
    with pytest.raises(ValueError, match=r"batch_size: expected 1 to 5, .* found 6"):
        ArraySource(arrays(5), 6, seed=0)
    with pytest.raises(ValueError, match=r"equally many rows, found {'x': 3, 'y': 4}"):
        ArraySource({"x": np.zeros(3), "y": np.zeros(4)}, 2, seed=0)
    with pytest.raises(ValueError, match=r"equally many rows, found {}"):
        ArraySource({}, 2, seed=0)
    for state in ({"step": -1}, {"next_index": 3}, {"step": 1, "epoch": 2}):
        with pytest.raises(ValueError, match="state: expected"):
            ArraySource(arrays(5), 2, seed=0).restore(state)


def test_processes_read_their_own_rows_of_the_same_batches():
    read = {"whole": [], "even": [], "odd": []}

    def source_of(name):
        dataset = grain.MapDataset.range(11).map(lambda i: read[name].append(i) or i)
        return RecordSource(dataset, lambda chosen: {"x": np.array(chosen)}, 4, seed=2)

    sources = {name: source_of(name) for name in read}
    for _ in range(5):
        whole = sources["whole"].next()
        even = sources["even"].next_rows(np.array([0, 2]))
        odd = sources["odd"].next_rows(np.array([1, 3]))
        np.testing.assert_array_equal(whole["x"], np.stack([even["x"], odd["x"]], 1).ravel())
    # 20 records in all, of which each of the two looked up ten.
    assert {name: len(found) for name, found in read.items()} == {
        "whole": 20,
        "even": 10,
        "odd": 10,
    }
    # All are at the same place, so that any of them goes on from another's.
    assert sources["whole"].state() == sources["even"].state() == sources["odd"].state()
    np.testing.assert_array_equal(read["whole"][:4], ArraySource(arrays(11), 4, 2).next()["x"])
    assert isinstance(sources["whole"], DivisibleSource)
    assert not isinstance(GrainSource(grain.MapDataset.range(4).batch(2), True), DivisibleSource)


def test_padded_preferences_are_tokenized_as_they_are_needed():
    records = numbered([1, 3, 2, 4, 5])
    whole = ArraySource(preference_arrays(records, LETTERS, 8), 2, seed=1)
    lazy = padded_preferences(records, LETTERS, 2, seed=1, length=8)
    for _ in range(4):
        jax.tree.map(np.testing.assert_array_equal, lazy.next(), whole.next())
    short = padded_preferences(records, LETTERS, 5, seed=1, length=6)
    with pytest.raises(ValueError, match="expected a response of at most 4 tokens, found 5"):
        short.next()


@pytest.mark.parametrize("streaming", [False, True])
def test_grain_source_resumes_exactly(streaming):
    few = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)

    def make():
        dataset = grain.MapDataset.range(10).shuffle(seed=3).repeat().batch(4)
        return GrainSource(dataset.to_iter_dataset(few) if streaming else dataset, uniform=True)

    assert_resumes_exactly(make, 7)


def test_grain_source_ends_with_its_data():
    source = GrainSource(grain.MapDataset.range(4).batch(2), uniform=True)
    assert [source.next().tolist(), source.next().tolist()] == [[0, 1], [2, 3]]
    with pytest.raises(StopIteration):
        source.next()


def test_buckets_give_every_record_equally_often():
    lengths = [2] * 12 + [9] * 6 + [25] * 6  # 4, 11 and 27 tokens
    source = bucketed_preferences(numbered(lengths), LETTERS, 3, seed=0, buckets=(32, 4, 16))
    assert not source.uniform
    seen = np.zeros(24, int)
    shapes = []
    for _ in range(8 * 6):  # six epochs
        batch = source.next()
        rows = np.round(batch["probability"] * 1024).astype(int)
        seen[rows] += 1
        shapes.append(batch["tokens"].shape)
        expected = preference_arrays(
            [numbered(lengths)[row] for row in rows], LETTERS, batch["tokens"].shape[-1]
        )
        jax.tree.map(np.testing.assert_array_equal, batch, expected)
        assert len({lengths[row] for row in rows}) == 1
    assert seen.tolist() == [6] * 24
    assert [shapes.count((3, 2, t)) for t in (4, 16, 32)] == [24, 12, 12]


def test_bucket_orders_differ_between_epochs_and_seeds():
    def epochs(seed):
        source = bucketed_preferences(numbered([2] * 12), LETTERS, 12, seed, buckets=(4,))
        assert source.uniform
        return [tuple(source.next()["probability"].tolist()) for _ in range(3)]

    assert epochs(0) == epochs(0)
    assert len({*epochs(0), *epochs(1)}) == 6


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([2] * 2 + [9] * 5 + [25] * 4, {16, 32}),  # the first joins the second
        ([2] * 5 + [9] * 5 + [25] * 2, {4, 32}),  # the last takes the second
        ([2] * 6 + [9] * 2, {16}),  # ... and stays no longer than it must be
        ([2] * 3 + [9] * 3, {16}),
        ([2] * 4, {4}),
    ],
)
def test_small_buckets_join(lengths, expected):
    source = bucketed_preferences(numbered(lengths), LETTERS, 4, seed=0, buckets=(4, 16, 32))
    batches = [source.next() for _ in range(40)]
    assert {batch["tokens"].shape[-1] for batch in batches} == expected
    rows = {round(p * 1024) for batch in batches for p in batch["probability"].tolist()}
    assert rows == set(range(len(lengths)))


def test_buckets_refuse():
    records = numbered([2, 30])
    with pytest.raises(ValueError, match="expected a response of at most 14 tokens, found 30"):
        bucketed_preferences(records, LETTERS, 1, 0, buckets=(4, 16))
    with pytest.raises(ValueError, match="batch_size: expected 1 to 2"):
        bucketed_preferences(records, LETTERS, 3, 0)
    with pytest.raises(ValueError, match="buckets: expected one or more positive lengths"):
        bucketed_preferences(records, LETTERS, 1, 0, buckets=())


def test_buckets_on_real_dialogues(real_data):
    records = open_preferences(f"hh:{real_data / 'hh_harmless'}", "test", "skip").records
    tokenizer = SentencePieceTokenizer.train((r.prompt for r in records), 1000, "bpe")
    records = drop_long(records, tokenizer, 512, "truncate_left").records

    def make(buckets=(64, 128, 256, 512)):
        return bucketed_preferences(records, tokenizer, 8, 0, buckets, on_long="truncate_left")

    assert_resumes_exactly(make, 6)

    def padding(source):
        valid = [source.next()["valid"] for _ in range(37)]  # one epoch of 299 records
        return 1 - sum(v.sum() for v in valid) / sum(v.size for v in valid)

    # Each bucket holds rows of more than half its length, the first excepted.
    assert padding(make()) < 0.45 < 0.55 < padding(make((512,)))


def test_evaluation_batches_hold_every_row_once():
    batches = list(evaluation_batches(arrays(7), 3))
    assert [batch["x"].tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6, 0, 0]]
    assert [batch["weight"].tolist() for batch in batches] == [[1, 1, 1], [1, 1, 1], [1, 0, 0]]
    assert batches[0]["weight"].dtype == np.float32
    assert {batch["y"].shape for batch in batches} == {(3, 1)}
    assert len(list(evaluation_batches(arrays(6), 3))) == 2
    (only,) = evaluation_batches(arrays(2), 4)
    assert only["x"].tolist() == [0, 1, 0, 0]


def test_evaluation_batches_refuse():
    with pytest.raises(ValueError, match="no array of the name 'weight'"):
        evaluation_batches({"weight": np.ones(3)}, 2)
    with pytest.raises(ValueError, match="batch_size: expected 1 or more, found 0"):
        evaluation_batches(arrays(3), 0)
