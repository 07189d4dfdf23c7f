"""Policy losses: aggregation, ratios, surrogates, KL estimators, the critic, imitation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rewardjax import losses
from rewardjax.losses import Scores
from rewardjax.statistics import Mean
from rewardjax.trajectory import Trajectory

FEW = settings(max_examples=15, deadline=None)
MASK = np.array([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)


def trajectory(logprobs, mask=MASK, **info):
    mask = jnp.asarray(mask)
    return Trajectory(
        actions=jnp.zeros(mask.shape, jnp.int32),
        mask=mask,
        valid=jnp.ones_like(mask),
        logprobs=jnp.asarray(logprobs, jnp.float32),
        info={name: jnp.asarray(column, jnp.float32) for name, column in info.items()},
    )


def scores(logprobs, entropy=0.5):
    logprobs = jnp.asarray(logprobs, jnp.float32)
    return Scores(logprobs, jnp.full_like(logprobs, entropy))


def floats(shape, low=-3.0, high=3.0):
    return arrays(np.float32, shape, elements=st.floats(low, high, width=16))


# --- aggregation ---

VALUES = jnp.array([[9.0, 1.0, 3.0, 9.0], [4.0, 6.0, 8.0, 2.0], [7.0, 7.0, 7.0, jnp.nan]])


def test_per_token_weighs_tokens():
    mean = losses.per_token(VALUES, jnp.asarray(MASK))
    assert (mean.total, mean.weight) == (24.0, 6.0)


def test_per_sequence_weighs_rows_that_acted():
    mean = losses.per_sequence(VALUES, jnp.asarray(MASK))
    assert (mean.total, mean.weight) == (2.0 + 5.0, 2.0)


def test_by_constant_divides_sums_by_the_constant():
    mean = losses.by_constant(10.0)(VALUES, jnp.asarray(MASK))
    np.testing.assert_allclose((mean.total, mean.weight), (0.4 + 2.0, 2.0), rtol=1e-6)


def test_by_constant_rejects_a_length_that_is_not_positive():
    with pytest.raises(ValueError, match="length: expected a positive number of tokens, found 0"):
        losses.by_constant(0.0)


@pytest.mark.parametrize(
    "aggregate", [losses.per_token, losses.per_sequence, losses.by_constant(7.0)]
)
@FEW
@given(values=floats((6, 5)), mask=arrays(bool, (6, 5)), cut=st.integers(1, 5))
def test_parts_of_a_batch_add_up_to_the_whole(aggregate, values, mask, cut):
    values, mask = jnp.asarray(values), jnp.asarray(mask)
    whole = aggregate(values, mask)
    parts = aggregate(values[:cut], mask[:cut]) + aggregate(values[cut:], mask[cut:])
    np.testing.assert_allclose(parts.value, whole.value, rtol=1e-5, atol=1e-5)


# --- ratios and surrogates ---


def test_token_ratio_by_hand_and_one_off_the_mask():
    new = jnp.log(jnp.array([[0.9, 0.5, 0.2]]))
    old = jnp.log(jnp.array([[0.1, 0.25, 0.4]]))
    ratio = losses.token_ratio(new, old, jnp.array([[False, True, True]]))
    np.testing.assert_allclose(ratio, [[1.0, 2.0, 0.5]], rtol=1e-6)


def test_token_ratio_stays_finite_where_exp_would_overflow():
    ratio = losses.token_ratio(jnp.array([[0.0]]), jnp.array([[-500.0]]), jnp.array([[True]]))
    np.testing.assert_allclose(ratio, [[np.exp(20.0)]], rtol=1e-5)


def test_sequence_ratio_is_the_geometric_mean_and_its_gradient_reaches_every_token():
    old = jnp.zeros((1, 3))
    mask = jnp.array([[True, False, True]])
    new = jnp.log(jnp.array([[4.0, 77.0, 9.0]]))
    np.testing.assert_allclose(losses.sequence_ratio(new, old, mask), [[6.0, 1.0, 6.0]], rtol=1e-5)
    gradient = jax.grad(lambda x: losses.sequence_ratio(x, old, mask)[0, 0])(new)
    np.testing.assert_allclose(gradient, [[3.0, 0.0, 3.0]], rtol=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (1.1, 2.0, -2.2, -2.0),  # inside the range
        (1.5, 2.0, -2.56, 0.0),  # above 1 + high, good: held at 1.28
        (0.5, 2.0, -1.0, -2.0),  # below, good: not held
        (0.5, -2.0, 1.6, 0.0),  # below 1 - low, bad: held at 0.8
        (1.5, -2.0, 3.0, 2.0),  # above, bad: not held
    ],
)
def test_clipped_surrogate_is_asymmetric_and_pessimistic(ratio, advantage, expected, slope):
    surrogate = losses.clipped(0.2, 0.28)
    one = lambda r: surrogate(r.reshape(1, 1), jnp.array([[advantage]]))[0, 0]  # noqa: E731
    value, gradient = jax.value_and_grad(one)(jnp.float32(ratio))
    np.testing.assert_allclose((value, gradient), (expected, slope), rtol=1e-6)


def test_clipped_rejects_negative_widths():
    with pytest.raises(ValueError, match=r"clip widths of at least 0, found -0.1 and 0.2"):
        losses.clipped(-0.1)


@FEW
@given(ratio=floats((2, 3), 0.0, 4.0), advantages=floats((2, 3)))
def test_clipping_never_lowers_the_loss(ratio, advantages):
    ratio, advantages = jnp.asarray(ratio), jnp.asarray(advantages)
    bounded, free = losses.clipped()(ratio, advantages), losses.unclipped(ratio, advantages)
    assert np.all(bounded >= free)


# --- the composed loss ---


def test_policy_loss_terms_and_metrics_by_hand():
    old = np.log(np.array([[0.5, 0.5, 0.5]]))
    new = np.log(np.array([[0.9, 0.75, 0.45]]))  # ratios: off the mask, 1.5, 0.9
    traj = trajectory(old, [[False, True, True]])
    loss = losses.policy_loss(surrogate=losses.clipped())(
        scores(new), traj, jnp.array([[5.0, 2.0, 1.0]])
    )
    np.testing.assert_allclose(loss.terms["policy"].value, -(1.2 * 2 + 0.9) / 2, rtol=1e-5)
    np.testing.assert_allclose(losses.total(loss), -1.65, rtol=1e-5)
    drift = np.log([1.5, 0.9])
    expected = {
        "clip_fraction": 0.5,
        "ratio_max": 1.5,
        "approx_kl_k1": -drift.mean(),
        "approx_kl_k3": (np.exp(drift) - 1 - drift).mean(),
        "logprob_difference": np.abs(drift).mean(),
        "entropy": 0.5,
    }
    assert set(loss.metrics) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(loss.metrics[name].value, value, rtol=1e-4, err_msg=name)


def test_unclipped_loss_has_no_clip_fraction():
    traj = trajectory(np.random.default_rng(0).normal(size=MASK.shape))
    loss = losses.policy_loss(surrogate=losses.unclipped)(
        scores(np.zeros(MASK.shape)), traj, jnp.ones(MASK.shape)
    )
    assert loss.metrics["clip_fraction"].value == 0.0


def test_gradients_agree_on_policy():
    """At ratio 1 the surrogate's gradient is REINFORCE's: -advantage / tokens on the mask."""
    logprobs = jnp.asarray(np.random.default_rng(0).normal(size=MASK.shape), jnp.float32)
    advantages = jnp.asarray(np.random.default_rng(1).normal(size=MASK.shape), jnp.float32)
    traj = trajectory(logprobs)

    def gradient(loss):
        return jax.grad(lambda x: losses.total(loss(scores(x), traj, advantages)))(logprobs)

    expected = np.where(MASK, -advantages / 6, 0.0)
    reinforce = gradient(losses.reinforce_loss())
    np.testing.assert_allclose(reinforce, expected, rtol=1e-5)
    surrogate = gradient(losses.policy_loss(surrogate=losses.clipped()))
    np.testing.assert_allclose(surrogate, expected, rtol=1e-5)


def test_reinforce_loss_by_hand():
    traj = trajectory(np.zeros((1, 3)), [[True, False, True]])
    loss = losses.reinforce_loss(aggregate=losses.by_constant(4.0))(
        scores([[-1.0, -9.0, -2.0]]), traj, jnp.array([[3.0, 9.0, -1.0]])
    )
    np.testing.assert_allclose(losses.total(loss), (3.0 - 2.0) / 4, rtol=1e-6)
    assert "clip_fraction" not in loss.metrics


def test_sequence_ratio_with_per_sequence_is_gspo():
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(2, *MASK.shape)).astype(np.float32)
    row_advantages = np.array([1.5, -0.5, 3.0], np.float32)
    loss = losses.policy_loss(
        surrogate=losses.clipped(0.1, 0.3),
        ratio=losses.sequence_ratio,
        aggregate=losses.per_sequence,
    )
    actual = losses.total(
        loss(scores(new), trajectory(old), jnp.asarray(row_advantages)[:, None].repeat(4, 1))
    )
    rows = []
    for row in range(2):  # the third row acted nowhere
        s = np.exp((new - old)[row][MASK[row]].mean())
        rows.append(min(s * row_advantages[row], np.clip(s, 0.9, 1.3) * row_advantages[row]))
    np.testing.assert_allclose(actual, -np.mean(rows), rtol=1e-5)


def test_regularisers_add_scaled_terms():
    traj = trajectory(np.zeros((1, 2)), [[True, True]], reference_logprobs=[[-1.0, -2.0]])
    loss = losses.policy_loss(
        surrogate=losses.unclipped,
        regularisers=(
            losses.kl_to_reference(0.1, estimator=losses.k2),
            losses.entropy_bonus(0.01),
        ),
    )(scores([[0.0, 0.0]], entropy=3.0), traj, jnp.zeros((1, 2)))
    np.testing.assert_allclose(loss.terms["kl_to_reference"].value, 0.1 * 1.25, rtol=1e-6)
    np.testing.assert_allclose(loss.terms["entropy_bonus"].value, -0.03, rtol=1e-6)
    np.testing.assert_allclose(losses.total(loss), 0.095, rtol=1e-5)


def test_regularisers_need_their_column_and_their_own_name():
    traj = trajectory(np.zeros((1, 1)), [[True]], values=[[0.0]])
    args = (scores([[0.0]]), traj, jnp.zeros((1, 1)))
    with pytest.raises(KeyError, match=r"lacks 'reference_logprobs'.*found \['values'\]"):
        losses.reinforce_loss(regularisers=(losses.kl_to_reference(0.1),))(*args)
    twice = (losses.entropy_bonus(0.1), losses.entropy_bonus(0.2))
    with pytest.raises(ValueError, match="two terms are named 'entropy_bonus'"):
        losses.reinforce_loss(regularisers=twice)(*args)


def test_what_lies_off_the_mask_touches_neither_loss_nor_gradient():
    """A prompt's impossible token (-200 nats) would overflow exp if it were not masked first."""
    loss = losses.policy_loss(
        surrogate=losses.clipped(), regularisers=(losses.kl_to_reference(0.1),)
    )
    mask = [[False, True]]
    traj = trajectory([[0.0, -1.0]], mask, reference_logprobs=[[0.0, -1.5]])

    def objective(prompt, x):
        logprobs = jnp.stack([prompt, x]).reshape(1, 2)
        return losses.total(loss(scores(logprobs), traj, jnp.array([[jnp.nan, 1.0]])))

    at = jax.value_and_grad(objective, argnums=(0, 1))
    (value, gradients), (other, others) = at(-200.0, -1.0), at(-1.0, -1.0)
    assert value == other
    assert gradients[0] == others[0] == 0.0
    assert gradients[1] == others[1]
    assert np.isfinite(gradients[1])


def test_a_batch_in_which_nothing_acted_costs_nothing():
    traj = trajectory(np.zeros((2, 3)), np.zeros((2, 3), bool))
    loss = losses.policy_loss(surrogate=losses.clipped())

    def objective(x):
        return losses.total(loss(scores(x), traj, jnp.ones((2, 3))))

    value, gradient = jax.value_and_grad(objective)(jnp.ones((2, 3)))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


def test_micro_batches_add_up_under_jit():
    rng = np.random.default_rng(0)
    mask = rng.random((6, 5)) < 0.5
    old, new, advantages, reference = rng.normal(size=(4, 6, 5)).astype(np.float32)
    loss = jax.jit(
        losses.policy_loss(surrogate=losses.clipped(), regularisers=(losses.kl_to_reference(0.1),))
    )

    def part(rows):
        traj = trajectory(old[rows], mask[rows], reference_logprobs=reference[rows])
        return loss(scores(new[rows]), traj, jnp.asarray(advantages[rows]))

    whole = part(slice(0, 6))
    added = jax.tree.map(
        lambda a, b: a + b,
        part(slice(0, 2)),
        part(slice(2, 6)),
        is_leaf=lambda node: isinstance(node, Mean),
    )
    np.testing.assert_allclose(losses.total(added), losses.total(whole), rtol=1e-5)
    for name in set(whole.metrics) - {"ratio_max"}:
        np.testing.assert_allclose(
            added.metrics[name].value, whole.metrics[name].value, rtol=1e-5, err_msg=name
        )


# --- KL ---


def test_kl_estimators_by_hand():
    p, q = jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25]))
    np.testing.assert_allclose(losses.k1(p, q), [np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(losses.k2(p, q), [np.log(2) ** 2 / 2], rtol=1e-6)
    np.testing.assert_allclose(losses.k3(p, q), [0.5 - 1 + np.log(2)], rtol=1e-5)


def test_expectations_of_the_unbiased_estimators_are_the_full_kl():
    logits_p, logits_q = jnp.array([0.3, -1.0, 2.0, 0.0]), jnp.array([1.0, 0.5, 0.0, -2.0])
    log_p, log_q = jax.nn.log_softmax(logits_p), jax.nn.log_softmax(logits_q)
    exact = losses.full_kl(logits_p, logits_q)
    p, q = (np.exp(np.asarray(x, np.float64)) for x in (log_p, log_q))
    np.testing.assert_allclose(exact, np.sum(p * np.log(p / q)), rtol=1e-5)
    for estimator in (losses.k1, losses.k3):
        np.testing.assert_allclose(np.sum(p * estimator(log_p, log_q)), exact, rtol=1e-5)


def test_gradient_of_k2_on_policy_is_that_of_the_kl():
    logits_q = jnp.array([1.0, 0.5, 0.0, -2.0])
    at = jnp.array([0.3, -1.0, 2.0, 0.0])
    weights = jax.nn.softmax(at)

    def sampled(logits):
        return jnp.sum(
            weights * losses.k2(jax.nn.log_softmax(logits), jax.nn.log_softmax(logits_q))
        )

    exact = jax.grad(lambda x: losses.full_kl(x, logits_q))(at)
    np.testing.assert_allclose(jax.grad(sampled)(at), exact, atol=1e-6)


def test_full_kl_with_tokens_ruled_out():
    p, q = jnp.array([0.0, 0.0, -jnp.inf]), jnp.array([0.0, 0.0, -jnp.inf])
    value, gradient = jax.value_and_grad(losses.full_kl)(p, q)
    assert value == 0.0
    np.testing.assert_allclose(gradient, 0.0, atol=1e-7)
    np.testing.assert_allclose(losses.full_kl(p, jnp.zeros(3)), np.log(1.5), rtol=1e-6)
    assert losses.full_kl(jnp.zeros(3), q) == jnp.inf


def test_full_kl_does_not_underflow_where_softmax_does():
    p, q = jnp.array([0.0, 0.0]), jnp.array([0.0, -200.0])
    np.testing.assert_allclose(losses.full_kl(p, q), 0.5 * 200 - np.log(2), rtol=1e-6)


# --- critic, regression, imitation, classification ---


def test_value_loss_by_hand():
    values, old = jnp.array([[1.0, 2.0, 9.0]]), jnp.array([[1.0, 1.0, 9.0]])
    targets, mask = jnp.array([[3.0, 2.0, 0.0]]), jnp.array([[True, True, False]])
    plain = losses.value_loss(values, old, targets, mask)
    assert (plain.total, plain.weight) == (2.0, 2.0)
    # Held at 1.2, the second step's error is 0.8, larger than its own 0.
    held = losses.value_loss(values, old, targets, mask, clip=0.2)
    np.testing.assert_allclose(held.total, 2.0 + 0.5 * 0.64, rtol=1e-6)


def test_squared_error_by_hand():
    prediction, target = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.0, 4.0, jnp.nan])
    mask = jnp.array([True, True, False])
    assert losses.squared_error(prediction, target, mask).value == 2.5
    assert losses.squared_error(prediction[:2], target[:2]).value == 2.5
    gradient = jax.grad(lambda x: losses.squared_error(x, target, mask).value)(prediction)
    np.testing.assert_allclose(gradient, [1.0, -2.0, 0.0])


def test_cross_entropy_by_hand():
    logprobs = jnp.array([[-1.0, -2.0, -3.0], [-5.0, -9.0, -9.0]])
    mask = jnp.array([[True, True, True], [True, False, False]])
    assert losses.cross_entropy(logprobs, mask).value == 11.0 / 4
    assert losses.cross_entropy(logprobs, mask, losses.per_sequence).value == 3.5


def test_binary_cross_entropy_by_hand_and_without_overflow():
    logits, labels = jnp.array([0.0, np.log(3.0), 1000.0, 0.0]), jnp.array([1.0, 0.0, 1.0, 0.3])
    expected = [np.log(2), np.log(4), 0.0, np.log(2)]
    np.testing.assert_allclose(
        losses.binary_cross_entropy(logits, labels), expected, rtol=1e-5, atol=1e-7
    )
