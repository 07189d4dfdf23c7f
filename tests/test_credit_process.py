"""PRIME's credit against numbers worked out by hand and an independent NumPy reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax import credit
from rewardjax.trajectory import Trajectory


def trajectory(mask, process):
    mask = jnp.asarray(mask, bool)
    traj = Trajectory(jnp.zeros(mask.shape, int), mask, mask, jnp.zeros(mask.shape))
    return traj.with_info(process_rewards=jnp.asarray(process, jnp.float32))


def test_largest_return_gets_magnitude_one():
    # Returns-to-go of the first row: 1 - 3 + 2 = 0, -1, 2; of the second: -4, with a step off the mask.
    traj = trajectory([[1, 1, 1], [1, 0, 0]], [[1.0, -3.0, 2.0], [-4.0, 50.0, 0.0]])
    scaled = credit.scaled_by_largest_return(traj.info["process_rewards"], traj)
    expected = np.array([[0.25, -0.75, 0.5], [-1.0, 0.0, 0.0]])
    np.testing.assert_allclose(scaled, expected, rtol=1e-5)


def test_leave_one_out_process_by_hand():
    # n = 2, means 2 and 6: row 0 centres q * 2 - 8, row 1 too.
    traj = trajectory([[1, 1], [1, 0]], [[1.0, 3.0], [6.0, 9.0]])
    found = credit.leave_one_out_process(traj.info["process_rewards"], traj, group_size=2)
    # Row 0: (-6) + (-2) = -8, then -2; row 1: 12 - 8 = 4.
    np.testing.assert_allclose(found, [[-8.0, -2.0], [4.0, 0.0]], rtol=1e-6)


def test_against_numpy_on_ragged_groups():
    rng = np.random.default_rng(0)
    group, rows, time = 4, 12, 7
    lengths = rng.integers(1, time + 1, rows)
    lengths[8:] = 0  # a group without any action
    lengths[5] = 0
    mask = np.arange(time) < lengths[:, None]
    q = rng.normal(size=(rows, time)).astype(np.float32)
    expected = np.zeros((rows, time))
    for start in range(0, rows, group):
        members = [i for i in range(start, start + group) if lengths[i]]
        for i in members:
            n = len(members)
            means = {j: q[j, : lengths[j]].mean() for j in members}
            centred = q[i] * n / (n - 1) - sum(means.values()) / (n - 1)
            for t in range(lengths[i]):
                expected[i, t] = centred[t : lengths[i]].sum()
    found = credit.leave_one_out_process(jnp.asarray(q), trajectory(mask, q), group_size=group)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_paper_and_the_code_differ_by_the_own_mean():
    """Code: q_it - b_i + (q_it - mean_i) / (n - 1) with b_i the mean of the others' means."""
    q = np.array([[1.0, 2.0], [3.0, 5.0], [-1.0, 0.0]])
    traj = trajectory(np.ones((3, 2)), q)
    found = credit.leave_one_out_process(jnp.asarray(q), traj, group_size=3)
    means = q.mean(axis=1)
    others = np.array([(means.sum() - m) / 2 for m in means])[:, None]
    centred = q - others + (q - means[:, None]) / 2
    np.testing.assert_allclose(found, centred[:, ::-1].cumsum(axis=1)[:, ::-1], rtol=1e-5)


def test_alone_in_its_group_there_is_no_process_credit():
    traj = trajectory([[1, 1], [0, 0]], [[1.0, 2.0], [0.0, 0.0]])
    found = credit.leave_one_out_process(traj.info["process_rewards"], traj, group_size=2)
    np.testing.assert_array_equal(found, np.zeros((2, 2)))


def test_without_process_rewards_it_is_the_outcome_alone():
    mask = jnp.ones((4, 3), bool)
    traj = trajectory(mask, jnp.zeros((4, 3)))
    outcome = jnp.zeros((4, 3)).at[:, -1].set(jnp.array([1.0, 0.0, 0.0, 1.0]))
    both = credit.outcome_and_process(outcome, traj, group_size=2)
    np.testing.assert_allclose(both, credit.leave_one_out(outcome, traj, group_size=2), atol=1e-6)


@pytest.mark.parametrize("scale", [True, False])
def test_the_sum_of_both(scale):
    traj = trajectory([[1, 1], [1, 0]], [[1.0, 3.0], [6.0, 9.0]])
    outcome = jnp.array([[0.0, 1.0], [0.0, 0.0]])
    both = credit.outcome_and_process(outcome, traj, group_size=2, scale=scale)
    size = 1 / 6 if scale else 1.0
    expected = np.array([[1 - 8 * size, 1 - 2 * size], [-1 + 4 * size, 0.0]])
    np.testing.assert_allclose(both, expected, rtol=1e-5)


def test_gradients_are_finite():
    traj = trajectory(jnp.ones((2, 2)), jnp.zeros((2, 2)))
    gradient = jax.grad(
        lambda q: jnp.sum(
            credit.outcome_and_process(
                jnp.zeros((2, 2)), traj.with_info(process_rewards=q), group_size=2
            )
        )
    )(jnp.zeros((2, 2)))
    assert np.all(np.isfinite(gradient))
