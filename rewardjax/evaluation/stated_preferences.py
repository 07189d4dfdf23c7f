"""How good stated probabilities are that the first of two responses is preferred, on records."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from rewardjax.data.records import Preference
from rewardjax.evaluation.bootstrap import bootstrap_interval
from rewardjax.evaluation.calibration import brier, expected_calibration_error


def judged(
    stated: Float[np.ndarray, "pairs"],
    test: Sequence[Preference],
    baselines: dict[str, np.ndarray],
) -> dict[str, float]:
    """How good the stated probabilities are that the first response is preferred.

    Returns:
      `accuracy` with its 95% bootstrap interval over pairs (`accuracy_low`, `accuracy_high`) and that
      of each baseline (`longer`, `usual`, `tfidf`), a statement of 1/2 counting one half; `ece` and
      `brier` against the labels, each pair in both orders; and where records name annotators, those of
      `by_annotator`.
    """
    labels = labels_of(test).astype(np.float64)
    accuracy, low, high = bootstrap_interval(_right(stated, labels))
    both = np.concatenate([stated, 1 - stated]), np.concatenate([labels, 1 - labels])
    found = {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "ece": expected_calibration_error(*both),
        "brier": brier(*both),
    }
    found |= {name: float(np.mean(_right(p, labels))) for name, p in baselines.items()}
    return found | by_annotator(stated, test)


def by_annotator(
    stated: Float[np.ndarray, "pairs"], test: Sequence[Preference]
) -> dict[str, float]:
    """How often each annotator's (each system's) response wins: stated and by the labels.

    Returns:
      `win_rate_error`: the mean distance of the two win rates, and `ordered`: the share of pairs of
      annotators that both put into the same order. Nothing for fewer than two annotators.
    """
    names = sorted({record.annotator for record in test if record.annotator})
    if len(names) < 2:
        return {}
    labels = labels_of(test).astype(np.float64)
    rows = [np.array([record.annotator == name for record in test]) for name in names]
    ours, true = (np.array([np.mean(p[row]) for row in rows]) for p in (stated, labels))
    return {
        "win_rate_error": float(np.mean(np.abs(ours - true))),
        "ordered": float((stats.kendalltau(ours, true).statistic + 1) / 2),
    }


def readable(test: Sequence[Preference], stated: Float[np.ndarray, "pairs"]) -> list[dict]:
    """Pairs as text, with the stated and the labelled probability that the first is preferred."""
    return [
        {
            "prompt": record.prompt[-300:],
            "responses": record.responses,
            "label": record.probability,
            "stated": float(p),
        }
        for record, p in zip(test, stated)
    ]


def labels_of(records: Sequence[Preference]) -> Float[np.ndarray, "records"]:
    """The probability that the first response is preferred, of each."""
    return np.array([record.probability for record in records], np.float32)


def _right(stated: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.where(stated == 0.5, 0.5, (stated > 0.5) == (labels > 0.5))
