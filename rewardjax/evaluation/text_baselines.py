"""What judges of text reach without a model: the longer response, the usual answer, counted words."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from rewardjax.data.records import Preference

Probabilities = Float[np.ndarray, "pairs"]


def longer_wins(test: Sequence[Preference]) -> Probabilities:
    """1 where the first response has more characters than the second, 0 where fewer, 1/2 if equal."""
    lengths = np.array([[len(text) for text in record.responses] for record in test])
    return np.where(lengths[:, 0] == lengths[:, 1], 0.5, lengths[:, 0] > lengths[:, 1])


def usual_answer(train: Sequence[Preference], test: Sequence[Preference]) -> Probabilities:
    """The mean training label for every pair: how often the response in the first place is preferred."""
    return np.full(len(test), np.mean([record.probability for record in train]))


def counted_words(
    train: Sequence[Preference],
    test: Sequence[Preference],
    *,
    features: int = 20_000,
    c: float = 1.0,
) -> Probabilities:
    """Logistic regression on the difference of the two responses' TF-IDF vectors (words and pairs of them).

    A soft label counts as two examples, weighted by how probable each is; each pair is also seen in
    the other order, so that the place of a response plays no part.

    Args:
      train, test: pairs.
      features: most frequent terms of the training responses that are kept.
      c: inverse strength of the L2 penalty.

    Raises:
      ImportError: scikit-learn is not installed (`pip install -e '.[baselines]'`).
    """
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    terms = TfidfVectorizer(ngram_range=(1, 2), min_df=2, max_features=features, sublinear_tf=True)
    terms.fit([text for record in train for text in record.responses])

    def differences(records: Sequence[Preference]):
        first, second = (
            terms.transform([record.responses[side] for record in records]) for side in (0, 1)
        )
        return first - second

    rows, label = differences(train), np.array([record.probability for record in train])
    # In the other order the difference changes its sign and the label its side.
    examples = sparse.vstack([rows, rows, -rows, -rows])
    model = LogisticRegression(C=c, max_iter=1000, fit_intercept=False)
    model.fit(
        examples,
        np.repeat([1, 0, 1, 0], len(train)),
        sample_weight=np.concatenate([label, 1 - label, 1 - label, label]),
    )
    return model.predict_proba(differences(test))[:, 1]
