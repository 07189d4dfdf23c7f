"""What frozen representations tell: a linear probe for each dimension (a quality, an attribute)."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Shaped

Features = Float[Array | np.ndarray, "items width"]
Labels = Mapping[str, Shaped[Array | np.ndarray, "items"]]


class Probed(NamedTuple):
    """A dimension's held-out accuracy beside what no representation is needed for, in [0, 1]."""

    accuracy: float
    majority: float


def probe(
    train: Features, train_labels: Labels, test: Features, test_labels: Labels, *, c: float = 1.0
) -> dict[str, Probed]:
    """Logistic regression on standardised features, one dimension at a time.

    Args:
      train, test: representations.
      train_labels, test_labels: for each dimension a class of each item.
      c: inverse strength of the L2 penalty.

    Returns:
      By dimension: accuracy on `test`, and that of the most frequent class of `train`.

    Raises:
      ImportError: scikit-learn is not installed (`pip install -e '.[baselines]'`).
      ValueError: the two splits' dimensions differ, or `train` has one class only in one of them.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if set(train_labels) != set(test_labels):
        raise ValueError(
            f"labels: expected the same dimensions, found {sorted(train_labels)} in train and"
            f" {sorted(test_labels)} in test"
        )
    found = {}
    for name, classes in train_labels.items():
        seen, counts = np.unique(np.asarray(classes), return_counts=True)
        if seen.size < 2:
            raise ValueError(f"labels.{name}: expected two classes in train, found {seen.tolist()}")
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
        model.fit(np.asarray(train), np.asarray(classes))
        truth = np.asarray(test_labels[name])
        accuracy = float(np.mean(model.predict(np.asarray(test)) == truth))
        found[name] = Probed(accuracy, float(np.mean(truth == seen[np.argmax(counts)])))
    return found
