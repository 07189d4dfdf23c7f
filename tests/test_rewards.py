"""Rewards: their parts, their combinations, their shaping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rewardjax import rewards
from rewardjax.trajectory import Trajectory

FEW = settings(max_examples=15, deadline=None)
small = st.floats(-3, 3, width=16)
potential_shaping = jax.jit(rewards.potential_shaping)
MASK = jnp.array([[0, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]], bool)
FULL = jnp.ones((4, 2), bool)


def f(*values):
    return jnp.array(values, jnp.float32)


def column(*values, applicable=None):
    """An outcome reward of four rows of two steps."""
    applicable = None if applicable is None else jnp.array(applicable, bool)
    return rewards.outcome(f(*values), FULL, applicable=applicable)


# --- one reward ---


def test_outcome_sits_on_the_last_acted_step():
    reward = rewards.outcome(f(1, 2, 3), MASK, name="correct")
    np.testing.assert_array_equal(reward.steps, [[0, 0, 1, 0], [0, 0, 0, 2], [0, 0, 0, 0]])
    np.testing.assert_array_equal(reward.applicable, [True, True, False])
    np.testing.assert_array_equal(reward.parts["correct"], [1, 2, 0])


def test_outcome_ignores_rows_that_do_not_apply_even_nan():
    reward = rewards.outcome(f(jnp.nan, 2, 3), MASK, applicable=jnp.array([False, True, True]))
    np.testing.assert_array_equal(reward.outcome, [0, 2, 0])
    np.testing.assert_array_equal(reward.applicable, [False, True, False])


def test_dense_is_masked_and_its_part_is_the_sum():
    reward = rewards.dense(jnp.arange(12.0).reshape(3, 4), MASK, "progress")
    np.testing.assert_array_equal(reward.steps, [[0, 1, 2, 0], [0, 5, 6, 7], [0, 0, 0, 0]])
    np.testing.assert_array_equal(reward.parts["progress"], [3, 18, 0])


def test_kl_penalty_by_hand():
    traj = Trajectory(
        actions=jnp.zeros(MASK.shape, jnp.int32),
        mask=MASK,
        valid=jnp.ones_like(MASK),
        logprobs=jnp.where(MASK, -1.0, 0.0),
        info={"reference_logprobs": jnp.full(MASK.shape, -3.0)},
    )
    reward = jax.jit(lambda t: rewards.kl_penalty(t, coefficient=0.5))(traj)
    np.testing.assert_array_equal(reward.steps, np.where(MASK, -1.0, 0.0))
    np.testing.assert_array_equal(reward.parts["kl_penalty"], [-2, -3, 0])
    with pytest.raises(KeyError, match=r"lacks 'reference_logprobs'.*found \[\]"):
        rewards.kl_penalty(traj.replace(info={}), coefficient=0.5)


# --- combinations ---


def test_weighted_sum_by_hand():
    parts = {
        "correct": rewards.outcome(f(1, 0, 1), MASK),
        "progress": rewards.dense(jnp.ones((3, 4)), MASK, "progress"),
    }
    reward = rewards.weighted_sum(parts, {"correct": 2.0, "progress": 0.5})
    expected = [[0, 0.5, 2.5, 0], [0, 0.5, 0.5, 0.5], [0, 0, 0, 0]]
    np.testing.assert_array_equal(reward.steps, expected)
    assert set(reward.parts) == {
        "correct",
        "correct_weighted",
        "progress",
        "progress_weighted",
    }
    np.testing.assert_array_equal(reward.parts["progress"], [2, 3, 0])
    np.testing.assert_array_equal(reward.parts["progress_weighted"], [1, 1.5, 0])
    np.testing.assert_array_equal(reward.parts["correct_weighted"], [2, 0, 0])


def test_a_component_that_does_not_apply_adds_nothing():
    parts = {
        "a": column(1, 1, 1, 1, applicable=[1, 0, 1, 0]),
        "b": column(10, 10, 10, 10, applicable=[1, 1, 0, 0]),
    }
    reward = rewards.weighted_sum(parts, {"a": 1.0, "b": 1.0})
    np.testing.assert_array_equal(reward.outcome, [11, 10, 1, 0])
    np.testing.assert_array_equal(reward.applicable, [True, True, True, False])


def test_a_combination_of_combinations_keeps_its_parts():
    inner = rewards.weighted_sum(
        {"a": column(1, 2, 3, 4), "b": column(1, 1, 1, 1)}, {"a": 1.0, "b": 2.0}
    )
    reward = rewards.weighted_sum({"style": inner}, {"style": 10.0})
    np.testing.assert_array_equal(reward.parts["style"], [3, 4, 5, 6])
    np.testing.assert_array_equal(reward.parts["style_weighted"], [30, 40, 50, 60])
    np.testing.assert_array_equal(reward.parts["style/b_weighted"], [2, 2, 2, 2])


def test_names_must_match():
    message = r"rewards have \['a', 'b'\], weights have \['a', 'c'\]"
    components = {"a": column(1, 1, 1, 1), "b": column(1, 1, 1, 1)}
    with pytest.raises(ValueError, match=message):
        rewards.weighted_sum(components, {"a": 1.0, "c": 1.0})
    with pytest.raises(ValueError, match=message):
        rewards.normalised_sum(components, {"a": 1.0, "c": 1.0}, FULL, group_size=2)
    with pytest.raises(ValueError, match="at least one component, found none"):
        rewards.weighted_sum({}, {})


def test_normalised_sum_by_hand():
    components = {"a": column(0, 2, 5, 5), "b": column(300, 100, 100, 500)}
    reward = rewards.normalised_sum(
        components, {"a": 1.0, "b": 3.0}, FULL, group_size=2, epsilon=0.0
    )
    half = 1 / np.sqrt(2)  # two values lie half their sample deviation times sqrt(2) off the mean
    np.testing.assert_allclose(
        reward.outcome, [-half + 3 * half, half - 3 * half, -3 * half, 3 * half], rtol=1e-6
    )
    np.testing.assert_array_equal(reward.steps[:, 0], 0.0)
    np.testing.assert_array_equal(reward.parts["b"], [300, 100, 100, 500])
    np.testing.assert_allclose(reward.parts["a_weighted"], [-half, half, 0, 0], rtol=1e-6)


def test_normalised_sum_counts_applicable_rows_only():
    components = {"a": column(0, 1, 2, 500, applicable=[1, 1, 1, 0]), "b": column(0, 0, 0, 0)}
    reward = rewards.normalised_sum(
        components, {"a": 1.0, "b": 1.0}, FULL, group_size=4, epsilon=0.0
    )
    np.testing.assert_allclose(reward.outcome, [-1, 0, 1, 0], atol=1e-6)


def test_normalised_sum_of_equal_outcomes_is_exactly_zero():
    reward = rewards.normalised_sum(
        {"a": rewards.outcome(jnp.full(3, 0.1), jnp.ones((3, 2), bool))},
        {"a": 1.0},
        jnp.ones((3, 2), bool),
        group_size=3,
        epsilon=0.0,
    )
    np.testing.assert_array_equal(reward.outcome, 0.0)


@jax.jit
def with_bonus(values):
    components = {"a": rewards.outcome(values, FULL), "b": column(1, 0, 0, 1)}
    weights = {"a": 1.0, "b": 1.0}
    return rewards.normalised_sum(components, weights, FULL, group_size=2, epsilon=0.0).outcome


@FEW
@given(arrays(np.int32, 4, elements=st.integers(-20, 20)), st.sampled_from([0.25, 2.0, 64.0]))
def test_normalised_sum_does_not_see_a_component_s_scale(values, scale):
    values = jnp.asarray(values, jnp.float32)
    np.testing.assert_allclose(with_bonus(scale * values), with_bonus(values), atol=1e-5)


def test_product_is_a_conjunction_of_what_applies():
    components = {
        "format": column(1, 1, 0, 0, applicable=[1, 1, 1, 0]),
        "correct": column(1, 0, 1, 1, applicable=[1, 1, 1, 0]),
        "bonus": column(3, 3, 3, 3, applicable=[1, 0, 0, 0]),
    }
    reward = rewards.product(components, FULL)
    np.testing.assert_array_equal(reward.outcome, [3, 0, 0, 0])
    np.testing.assert_array_equal(reward.applicable, [True, True, True, False])
    np.testing.assert_array_equal(reward.parts["correct"], [1, 0, 1, 0])
    alone = rewards.product({"a": column(1, 1, 0, 0), "b": components["bonus"]}, FULL)
    np.testing.assert_array_equal(alone.outcome, [3, 1, 0, 0])


# --- shaping ---


def test_linear_transforms_by_hand():
    reward = f(-1, 2, 5)
    references = jnp.array([[0.0, 2.0], [1.0, 3.0], [5.0, 5.0]])
    np.testing.assert_allclose(rewards.centred(reward, references), [-2, 0, 0])
    np.testing.assert_allclose(rewards.standardised(reward, 2.0, 3.0), [-1, 0, 1])
    np.testing.assert_allclose(rewards.standardised(reward, 2.0, 0.0), [-3, 0, 3])
    np.testing.assert_allclose(rewards.min_max(reward, -1.0, 3.0), [0, 0.75, 1.5])
    np.testing.assert_allclose(rewards.clipped_to(reward, 2.0, 1.0), [1, 2, 3])
    each = f(1, 2, 0)  # a statistic of each row's own
    np.testing.assert_allclose(rewards.standardised(reward, each, each), [-2, 0, 5])
    np.testing.assert_allclose(rewards.min_max(reward, 0.0, each), [-1, 1, 0])
    np.testing.assert_allclose(rewards.clipped_to(reward, each, f(1, 1, 1)), [0, 2, 1])
    np.testing.assert_allclose(rewards.ceiling(reward, 2.5), [-1, 2, 2.5])


def test_min_max_of_no_range_is_zero():
    np.testing.assert_array_equal(rewards.min_max(f(1, 2), 2.0, 2.0), 0.0)
    nothing = rewards.RunningMoments.init()
    np.testing.assert_array_equal(rewards.min_max(f(1, 2), nothing.low, nothing.high), 0.0)


def logistic(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def test_sigmoid_transforms_by_hand():
    reward, references = f(1, 4), jnp.array([[1.0, -1.0], [0.0, 2.0]])
    np.testing.assert_allclose(rewards.sigmoid(reward), logistic([1, 4]), rtol=1e-6)
    np.testing.assert_allclose(
        rewards.sigmoid_centred(reward, references),
        [(0.5 + logistic(2)) / 2, (logistic(4) + logistic(2)) / 2],
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        rewards.sigmoid_centred(reward, references, k=2.0, offset=3.0),
        [(logistic(-6) + logistic(-2)) / 2, (logistic(2) + logistic(-2)) / 2],
        rtol=1e-6,
    )


def test_log_sigmoid_centred_by_hand():
    # Mean 1 and deviation 2; the normal quantile of 0.85 is 1.0364334.
    reward, references = f(3, 0), jnp.array([[-1.0, 3.0], [-1.0, 3.0]])
    q = 1 + (2 + 1e-5) * 1.0364334
    expected = np.log(logistic(np.array([3, 0]) - q))
    np.testing.assert_allclose(rewards.log_sigmoid_centred(reward, references), expected, rtol=1e-5)
    np.testing.assert_allclose(
        rewards.log_sigmoid_centred(reward, references, 0.5),
        np.log(logistic(np.array([2, -1]))),
        rtol=1e-5,
    )
    with pytest.raises(ValueError, match=r"inside \(0, 1\), found 1.0"):
        rewards.log_sigmoid_centred(reward, references, 1.0)


def test_a_quantile_of_the_references_themselves():
    references = jnp.array([[4.0, 0.0, 1.0, 3.0, 2.0], [0.0, 0.0, 10.0, 10.0, 10.0]])
    np.testing.assert_allclose(rewards.sample_quantile(references, 0.85), [3.4, 10.0], rtol=1e-6)
    np.testing.assert_allclose(
        rewards.log_sigmoid_centred(f(3.4, 9), references, estimate=rewards.sample_quantile),
        np.log(logistic(np.array([0, -1]))),
        rtol=1e-5,
    )
    with pytest.raises(ValueError, match=r"inside \(0, 1\), found 0.0"):
        rewards.sample_quantile(references, 0.0)


def test_being_good_in_all_ways_and_in_any_by_hand():
    """Probabilities 1/2 and 3/4: both 3/8, either 7/8; far out, sums and the larger margin."""
    margins = jnp.array([[0.0, np.log(3.0)], [-200.0, -100.0], [50.0, 60.0]])
    both = [np.log(3 / 8), -300.0, 0.0]
    np.testing.assert_allclose(rewards.log_conjunction(margins), both, rtol=1e-6, atol=1e-6)
    either = [np.log(7 / 8), -100.0, 0.0]
    np.testing.assert_allclose(rewards.log_disjunction(margins), either, rtol=1e-6, atol=1e-6)


def test_one_way_of_being_good_is_the_log_sigmoid():
    margins = jnp.array([[-3.0], [0.0], [2.0]])
    expected = np.log(logistic(np.array([-3, 0, 2])))
    np.testing.assert_allclose(rewards.log_conjunction(margins), expected, rtol=1e-6)
    np.testing.assert_allclose(rewards.log_disjunction(margins), expected, rtol=1e-6)


def test_length_guard_by_hand():
    lengths = jnp.array([5, 10, 14])
    guarded = rewards.length_guard(f(1, 1, 1), lengths, limit=10.0, rate=0.25)
    np.testing.assert_allclose(guarded, [1, 1, 0])


def test_potential_shaping_by_hand_across_a_hole():
    mask = jnp.array([[True, False, True], [False, False, False]])
    potentials = jnp.array([[2.0, 50.0, 4.0], [1.0, 1.0, 1.0]])
    shaped = rewards.potential_shaping(jnp.ones((2, 3)), potentials, mask, 0.5)
    np.testing.assert_allclose(shaped, [[1 + 2 - 2, 0, 1 - 4], [0, 0, 0]])


@FEW
@given(
    arrays(np.float32, (3, 5), elements=small),
    arrays(np.float32, (3, 5), elements=small),
    arrays(bool, (3, 5)),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_potential_shaping_telescopes(values, potentials, mask, discount):
    """The discounted return changes by minus the potential of the first state, and no more."""
    shaped = np.asarray(
        potential_shaping(jnp.asarray(values), jnp.asarray(potentials), jnp.asarray(mask), discount)
    )
    for row, acted in enumerate(mask):
        if acted.any():
            powers = discount ** np.arange(acted.sum())
            change = powers @ (shaped - values)[row][acted]
            np.testing.assert_allclose(change, -potentials[row][acted][0], atol=1e-4)


# --- running moments ---


def test_moments_before_two_values():
    moments = rewards.RunningMoments.init()
    assert (moments.count, moments.mean, moments.std) == (0.0, 0.0, 1.0)
    moments = moments.update(f(3.0, 100.0), jnp.array([True, False]))
    assert (moments.count, moments.mean, moments.std) == (1.0, 3.0, 1.0)
    assert (moments.low, moments.high) == (3.0, 3.0)


@FEW
@given(arrays(np.float32, (3, 4), elements=st.floats(99, 101, width=32)), arrays(bool, (3, 4)))
def test_moments_of_a_stream_are_those_of_the_whole(values, mask):
    moments = rewards.RunningMoments.init()
    for batch, counted in zip(values, mask):
        moments = moments.update(jnp.asarray(batch), jnp.asarray(counted))
    seen = values[mask].astype(np.float64)
    assert moments.count == len(seen)
    if len(seen):
        np.testing.assert_allclose(moments.mean, seen.mean(), rtol=1e-6)
        assert (moments.low, moments.high) == (seen.min(), seen.max())
    expected = seen.std(ddof=1) if len(seen) > 1 else 1.0
    np.testing.assert_allclose(moments.std, expected, rtol=1e-3, atol=1e-4)


def test_moments_update_in_a_scan():
    batches = jnp.arange(12.0).reshape(3, 4)
    moments, _ = jax.lax.scan(
        lambda state, batch: (state.update(batch), None), rewards.RunningMoments.init(), batches
    )
    np.testing.assert_allclose((moments.mean, moments.std), (5.5, np.sqrt(13.0)), rtol=1e-6)
