"""Pairwise policy losses: by hand, against REINFORCE at the policy that sampled, and their invariance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax import credit, losses, rewards
from rewardjax.losses import Scores
from rewardjax.trajectory import Trajectory

# Two pairs, at most three tokens a response; the numbers are sums of powers of two.
MASK = jnp.array([[1, 1, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0]], bool)
OLD = jnp.full((4, 3), -1.0)
OUTCOMES = jnp.array([1.5, 0.25, -0.5, 2.0])
SURROGATES = {"v1": losses.separately_clipped(0.2), "v2": losses.jointly_clipped(0.2)}


def trajectory(mask=MASK, old=OLD):
    return Trajectory(jnp.zeros(mask.shape, jnp.int32), mask, jnp.ones_like(mask), old)


def loss_of(name, moved, outcomes=OUTCOMES, mask=MASK):
    """The loss at log-probabilities `moved` away from those that sampled, and its gradient."""
    traj = trajectory(mask)
    advantages = credit.leave_one_out(rewards.outcome(outcomes, mask).steps, traj, group_size=2)
    loss = losses.pairwise_policy_loss(surrogate=SURROGATES[name])

    def objective(moved):
        found = loss(Scores(OLD + moved, jnp.ones_like(OLD)), traj, advantages)
        return losses.total(found), found

    return jax.value_and_grad(objective, has_aux=True)(moved)


def by_row(*log_ratios):
    """Steps by which each row's summed log-ratio becomes these."""
    return jnp.where(MASK, jnp.array(log_ratios)[:, None] / jnp.sum(MASK, axis=1)[:, None], 0.0)


def test_v1_by_hand():
    """d = 1.25 and -2.5; w = e^0.1, e^-0.1; e^0.3 (beyond the clip), 1."""
    (value, found), gradient = loss_of("v1", by_row(0.1, -0.1, 0.3, 0.0))
    near = 1.25 - 1.25  # c_i w_i = d_i w_1 w_2 = +-1.25, and neither ratio is clipped
    # Row 3 falls, d = -2.5, though it rose: not clipped. Row 4 rises, and its ratio is 1.
    far = -2.5 * np.exp(0.3) + 2.5 * np.exp(0.3)
    np.testing.assert_allclose(value, -0.5 * (near + far) / 2, atol=1e-6)
    # d value / d log w_i = -c_i w_i / 2 a pair, over two pairs; the same at each token of the row
    slopes = np.array([1.25, -1.25, -2.5 * np.exp(0.3), 2.5 * np.exp(0.3)]) / 4
    np.testing.assert_allclose(gradient, np.where(MASK, -slopes[:, None], 0.0), rtol=1e-5)
    assert found.metrics["clip_fraction"].value == 0.0


def test_v1_cuts_off_each_response_that_has_moved_enough():
    """Row 1 (d > 0) is beyond 1.2 and row 2 (d < 0) is not below 0.8: only the second goes on."""
    (_, found), gradient = loss_of("v1", by_row(0.3, -0.1, 0.0, 0.0))
    np.testing.assert_array_equal(gradient[0], 0.0)
    np.testing.assert_allclose(gradient[1], 1.25 * np.exp(0.2) / 4, rtol=1e-5)
    assert found.metrics["clip_fraction"].value == 1 / 4


def test_v2_by_hand():
    """D = 0.1, inside the clip, and 0.5, beyond it on the wrong side: d_1 = 1.25 and -2.5."""
    (value, found), gradient = loss_of("v2", by_row(0.2, 0.1, 0.5, 0.0))
    pairs = np.array([1.25 * np.exp(0.3), -2.5 * np.exp(0.5)])
    np.testing.assert_allclose(value, -0.5 * np.mean(pairs * [0.1, 0.5]), rtol=1e-5)
    slopes = np.array([pairs[0], -pairs[0], pairs[1], -pairs[1]]) / 4
    np.testing.assert_allclose(gradient, np.where(MASK, -slopes[:, None], 0.0), rtol=1e-5)
    assert found.metrics["clip_fraction"].value == 0.0


def test_v2_cuts_off_a_pair_that_is_far_enough_apart():
    (value, found), gradient = loss_of("v2", by_row(0.2, -0.2, 0.0, 0.0))
    np.testing.assert_allclose(value, -0.5 * (1.25 * 0.2) / 2, rtol=1e-5)
    np.testing.assert_array_equal(gradient[:2], 0.0)
    assert found.metrics["clip_fraction"].value == 1 / 2


@pytest.mark.parametrize("name", SURROGATES)
def test_where_nothing_has_moved_the_gradient_is_that_of_leave_one_out(name):
    traj = trajectory()
    steps = rewards.outcome(OUTCOMES, MASK).steps
    advantages = credit.leave_one_out(steps, traj, group_size=2)
    reinforce = losses.reinforce_loss(aggregate=losses.by_constant(1.0))

    def objective(moved):
        scores = Scores(OLD + moved, jnp.ones_like(OLD))
        return losses.total(reinforce(scores, traj, advantages))

    expected = jax.grad(objective)(jnp.zeros_like(OLD))
    _, gradient = loss_of(name, jnp.zeros_like(OLD))
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    assert jnp.any(expected != 0)


@pytest.mark.parametrize("name", SURROGATES)
def test_what_is_added_to_both_rewards_of_a_pair_changes_nothing(name):
    moved = by_row(0.1, -0.3, 0.5, 0.2)
    (value, _), gradient = loss_of(name, moved)
    shifted = OUTCOMES + jnp.array([8.0, 8.0, -64.0, -64.0])  # exact in float32
    (other, _), others = loss_of(name, moved, shifted)
    assert value == other
    np.testing.assert_array_equal(gradient, others)


@pytest.mark.parametrize("name", SURROGATES)
def test_equal_rewards_and_a_partner_that_never_acted_give_nothing(name):
    moved = by_row(0.1, -0.3, 0.5, 0.2)
    _, gradient = loss_of(name, moved, jnp.array([1.0, 1.0, 0.0, 2.0]))
    np.testing.assert_array_equal(gradient[:2], 0.0)
    assert jnp.any(gradient[2:] != 0)
    alone = MASK.at[0].set(False)
    (_, found), gradient = loss_of(name, jnp.where(alone, moved, 0.0), mask=alone)
    assert found.terms["policy"].weight == 1.0
    np.testing.assert_array_equal(gradient[:2], 0.0)


def test_ratios_of_long_responses_are_held():
    (value, _), gradient = loss_of("v2", by_row(300.0, 200.0, -400.0, 0.0))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_what_cannot_be_paired_is_refused():
    loss, traj = losses.pairwise_policy_loss(surrogate=SURROGATES["v1"]), trajectory()
    odd = jax.tree.map(lambda x: x[:3], traj)
    with pytest.raises(ValueError, match="3 rows is not a multiple of 2"):
        loss(Scores(OLD[:3], OLD[:3]), odd, OLD[:3])
    for surrogate in (losses.separately_clipped, losses.jointly_clipped):
        with pytest.raises(ValueError, match="clip: expected a width of at least 0, found"):
            surrogate(-0.1)
