"""Vectors of texts: computed once, kept in a file, of one model only."""

import numpy as np
import pytest

from rewardjax.recipes.kept_vectors import KeptVectors, digest


class Lengths:
    """Counts what it is asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked.append(texts)
        return np.array([[len(text), 1.0] for text in texts], np.float32)


@pytest.mark.parametrize("kept", [True, False])
def test_each_text_is_computed_once(kept, tmp_path):
    path = tmp_path / "folder" / "lengths.npz" if kept else None
    compute = Lengths()
    vectors = KeptVectors(compute, path)
    found = vectors(["bb", "a", "bb"])
    np.testing.assert_array_equal(found["bb"], [2, 1])
    assert vectors(["a", "ccc"]).keys() == {"a", "ccc"}
    assert compute.asked == [["a", "bb"], ["ccc"]]
    again = KeptVectors(compute, path)(["ccc", "a"])
    np.testing.assert_array_equal(again["ccc"], [3, 1])
    assert compute.asked[2:] == ([] if kept else [["a", "ccc"]])
    assert [x.name for x in tmp_path.rglob("*.npz")] == (["lengths.npz"] if kept else [])


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, values=np.zeros(3))
    with pytest.raises(ValueError, match=r"other\.npz: expected names and vectors"):
        KeptVectors(Lengths(), path)


def test_a_digest_is_of_names_and_contents(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "x").write_text("1")
    assert digest(first) == digest(second)
    (second / "inner" / "x").write_text("2")
    assert digest(first) != digest(second)
