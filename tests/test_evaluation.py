"""Evaluation protocols against numbers worked out by hand and against brute force."""

from itertools import combinations
from math import comb

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardjax.evaluation.accuracy import (
    best_of_n_accuracy,
    best_of_n_accuracy_shared,
    pairwise_accuracy,
    subset_accuracy,
    win_rate,
)
from rewardjax.evaluation.bootstrap import bootstrap_interval, paired_bootstrap
from rewardjax.evaluation.calibration import brier, expected_calibration_error
from rewardjax.evaluation.curves import best_of_n_kl, gold_proxy_curve, overoptimisation
from rewardjax.evaluation.passk import majority_at_k, pass_at_k


def test_pairwise_accuracy_counts_a_tie_as_one_half():
    chosen, rejected = jnp.array([1.0, 0.0, 2.0, 3.0]), jnp.array([0.0, 1.0, 2.0, 1.0])
    assert pairwise_accuracy(chosen, rejected) == (1 + 0 + 0.5 + 1) / 4


def test_subsets_weigh_the_same_whatever_their_size():
    chosen, rejected = np.array([1.0, 1.0, 1.0, 0.0]), np.array([0.0, 0.0, 0.0, 1.0])
    subsets = ["chat", "chat", "chat", "safety"]
    assert subset_accuracy(chosen, rejected, subsets) == {"chat": 1.0, "safety": 0.0}
    assert pairwise_accuracy(chosen, rejected, subsets) == 0.5
    assert pairwise_accuracy(chosen, rejected) == 0.75


def test_subsets_must_match_the_pairs():
    with pytest.raises(ValueError, match=r"subsets: expected one label for each of 2 pairs.*3"):
        pairwise_accuracy(np.ones(2), np.zeros(2), ["a", "b", "c"])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
def test_win_rates_of_two_sides_sum_to_one(pairs):
    a, b = np.array(pairs).T
    assert win_rate(a, b) + win_rate(b, a) == pytest.approx(1.0)


def test_scores_that_are_nan_or_absent_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        win_rate(np.array([np.nan]), np.array([0.0]))
    with pytest.raises(ValueError, match="at least one pair"):
        win_rate(np.array([]), np.array([]))
    with pytest.raises(ValueError, match="NaN"):
        best_of_n_accuracy(np.array([[np.nan, 1.0]]))


def test_best_of_n_ties_earn_nothing_or_a_share():
    scores = np.array(
        [
            [3.0, 1.0, 2.0],  # alone at the top
            [2.0, 2.0, 1.0],  # one of two at the top
            [1.0, 1.0, 1.0],  # one of three
            [0.0, 5.0, 5.0],  # below
        ]
    )
    assert best_of_n_accuracy(scores) == 1 / 4
    assert best_of_n_accuracy_shared(scores) == pytest.approx((1 + 1 / 2 + 1 / 3 + 0) / 4)
    assert best_of_n_accuracy_shared(jnp.asarray(scores), correct=1) == pytest.approx(
        (0 + 1 / 2 + 1 / 3 + 1 / 2) / 4
    )


def test_best_of_n_names_a_bad_column():
    with pytest.raises(ValueError, match="correct: expected a column from 0 to 1, found 2"):
        best_of_n_accuracy(np.zeros((3, 2)), correct=2)


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(*[st.integers(0, n)] * 2, st.just(n))))
def test_pass_at_k_is_the_ratio_of_binomials(case):
    c, k, n = case[0], max(case[1], 1), case[2]
    expected = 1 - comb(n - c, k) / comb(n, k)
    assert float(pass_at_k(n, c, k)) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_keeps_the_digits_of_a_small_chance():
    assert float(pass_at_k(10**15, 1, 1)) == pytest.approx(1e-15, rel=1e-9)
    np.testing.assert_allclose(pass_at_k(4, jnp.array([0, 2, 4]), 2), [0.0, 1 - 1 / 6, 1.0])


def test_pass_at_k_refuses_impossible_counts():
    with pytest.raises(ValueError, match="k: expected 1 to 3"):
        pass_at_k(np.array([3, 5]), np.array([1, 1]), 4)
    with pytest.raises(ValueError, match="c: expected between 0 and n"):
        pass_at_k(3, 4, 1)


def majority_by_enumeration(answers, gold, k, valid):
    credits = []
    for subset in combinations(range(len(answers)), k):
        votes = [answers[index] for index in subset if valid[index]]
        names, counts = np.unique(votes, return_counts=True)
        top = names[counts == counts.max()] if votes else np.array([])
        credits.append((gold in top) / max(len(top), 1))
    return np.mean(credits)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=8),
    st.integers(1, 8),
)
def test_majority_at_k_equals_the_average_over_all_subsets(samples, k):
    answers, valid = np.array([a for a, _ in samples]), np.array([v for _, v in samples])
    k = min(k, len(samples))
    found = majority_at_k(answers[None], np.array([0]), k, valid=valid[None])
    assert found[0] == pytest.approx(majority_by_enumeration(answers, 0, k, valid), abs=1e-12)


def test_majority_at_k_by_hand():
    answers = jnp.array([[7, 7, 1, 2], [7, 7, 1, 1]])
    gold = jnp.array([7, 1])
    np.testing.assert_allclose(majority_at_k(answers, gold, 4), [1.0, 0.5])
    np.testing.assert_allclose(majority_at_k(answers, gold, 1), [0.5, 0.5])
    with pytest.raises(ValueError, match="k: expected 1 to 4"):
        majority_at_k(answers, gold, 5)


def test_calibration_error_by_hand():
    probabilities = np.array([0.1, 0.2, 0.9, 1.0])
    outcomes = np.array([0, 1, 1, 1])
    # Two bins: |0.15 - 0.5| for half the events, |0.95 - 1| for the other half.
    assert expected_calibration_error(probabilities, outcomes, 2) == pytest.approx(0.2)
    assert brier(probabilities, outcomes) == pytest.approx((0.01 + 0.64 + 0.01 + 0) / 4)


def test_calibration_bins_open_at_their_lower_edge():
    # 0.5 shares the upper bin with 1.0 (gap |0.75 - 0.5|), not the lower one.
    found = expected_calibration_error(np.array([0.5, 1.0]), np.array([True, False]), 2)
    assert found == pytest.approx(0.25)


def test_calibration_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match=r"probabilities: expected values in \[0, 1\], found 1.5"):
        brier(np.array([1.5]), np.array([1]))
    with pytest.raises(ValueError, match="outcomes"):
        brier(np.array([0.5]), np.array([-1]))


def test_gold_proxy_curve_bins_the_root_of_kl():
    # Distances 0, 1, 3 and 4 in two bins of width 2; the estimate below 0 counts as 0.
    kl = np.array([-0.1, 1.0, 9.0, 16.0])
    curve = gold_proxy_curve(kl, np.array([0.0, 1.0, 3.0, 1.0]), np.arange(4.0), bins=2)
    np.testing.assert_allclose(curve.distance, [0.5, 3.5])
    np.testing.assert_allclose(curve.gold, [0.5, 2.0])
    np.testing.assert_allclose(curve.proxy, [0.5, 2.5])
    np.testing.assert_array_equal(curve.points, [2, 2])


def test_gold_proxy_curve_leaves_out_empty_bins_and_survives_zero_kl():
    curve = gold_proxy_curve(np.array([0.0, 100.0]), np.ones(2), np.ones(2), bins=10)
    np.testing.assert_array_equal(curve.points, [1, 1])
    still = gold_proxy_curve(np.zeros(3), np.arange(3.0), np.ones(3))
    np.testing.assert_allclose([still.distance[0], still.gold[0]], [0.0, 1.0])
    with pytest.raises(ValueError, match="gold: expected finite"):
        gold_proxy_curve(np.zeros(1), np.array([np.inf]), np.zeros(1))


def test_best_of_n_kl_is_the_divergence_of_a_maximum():
    # The maximum of n uniforms has density n u^(n-1): integrate its log against it.
    u = (np.arange(1_000_000) + 0.5) / 1_000_000
    for n in (1, 2, 16):
        density = n * u ** (n - 1)
        assert float(best_of_n_kl(n)) == pytest.approx(np.mean(density * np.log(density)), abs=1e-4)
    with pytest.raises(ValueError, match="n: expected at least 1"):
        best_of_n_kl(0)


def test_bootstrap_of_two_values_can_be_enumerated():
    # Resamples of (0, 1) have means 0, 1/2 and 1 with chances 1/4, 1/2, 1/4.
    assert bootstrap_interval([0, 1]) == (0.5, 0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], level=0.4) == (0.5, 0.5, 0.5)


def test_bootstrap_approaches_the_normal_interval():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    mean, low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    assert mean == pytest.approx(values.mean())
    np.testing.assert_allclose([low, high], [mean - half, mean + half], atol=0.03)


@given(st.floats(-1e6, 1e6), st.integers(1, 6))
def test_bootstrap_without_spread_is_a_point(value, count):
    assert bootstrap_interval([value] * count) == (value, value, value)


def test_bootstrap_is_the_same_every_time_and_narrows_with_the_level():
    values = np.arange(7.0) ** 2
    assert bootstrap_interval(values) == bootstrap_interval(values)
    wide, narrow = bootstrap_interval(values, 0.99), bootstrap_interval(values, 0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_pairing_takes_out_what_both_share():
    shared = np.array([0.0, 100.0, -50.0, 7.0, 30.0])
    assert paired_bootstrap(shared + 1, shared) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="equal shapes"):
        paired_bootstrap([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("values", "level", "message"),
    [
        ([], 0.95, "at least one value"),
        ([1.0, float("nan")], 0.95, "1 of 2"),
        ([1.0], 1.0, "level"),
    ],
)
def test_bootstrap_refuses_what_has_no_interval(values, level, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, level)


def test_overoptimisation_by_hand():
    found = overoptimisation(np.array([0.2, 0.6, 0.1]), np.array([1.0, 2.0, 3.5]))
    assert found == pytest.approx(
        {"peak_gold": 0.6, "gold_drop": 0.5, "proxy_after_peak": 1.5, "mean_gold": 0.3}
    )
