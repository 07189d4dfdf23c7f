"""iREPO: its estimates by hand, one loss against the other, and arms for a few steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.preferences import irepo
from rewardjax.training.run import Run

SMOKE = irepo.EXPERIMENT.scales["smoke"]
VOTES = jnp.array([[[0.0, 3.0, 2.0], [1.0, 0.0, 4.0], [2.0, 0.0, 0.0]]])


def test_a_pairs_own_votes_with_half_a_vote_more_on_either_side():
    found = irepo.win_rate(VOTES)
    np.testing.assert_allclose(found[0, 0], [0.5, 3.5 / 5, 2.5 / 5], rtol=1e-6)
    np.testing.assert_allclose(found[0, 2], [0.5, 0.5 / 5, 0.5], rtol=1e-6)


def test_zermelo_shares_votes_between_pairs_and_is_antisymmetric():
    found = np.asarray(irepo.zermelo(VOTES))
    np.testing.assert_allclose(found + found.transpose(0, 2, 1), np.ones((1, 3, 3)), atol=1e-6)
    # The first never lost more than it won, and who beat the last so clearly gains on it by that.
    assert found[0, 0, 2] > irepo.win_rate(VOTES)[0, 0, 2]
    np.testing.assert_array_equal(
        np.argsort(irepo.best_first(jnp.asarray(found), None)[0]), [2, 1, 0]
    )


def test_irepo_pulls_to_the_logit_and_dpo_for_ever():
    logit = jnp.array([np.log(3.0)])
    p = jnp.array([0.75])
    by_margin = jax.grad(lambda d, loss: loss(d, p, 0.5)[0])
    np.testing.assert_allclose(by_margin(logit, irepo.irepo), [0.0], atol=1e-6)
    np.testing.assert_allclose(by_margin(logit, irepo.dpo), [-0.25], atol=1e-6)
    np.testing.assert_allclose(by_margin(jnp.array([0.5]), irepo.ipo), [0.0], atol=1e-6)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return irepo.EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


def test_iterations_move_the_reference(reference, tmp_path):
    with Run(tmp_path, 0, "irepo") as run:
        metrics = irepo.EXPERIMENT.arms["irepo"].build(SMOKE)(run, reference)
        ratios = [run.stage(f"iteration_{i}").history("chosen_log_ratio") for i in (1, 2)]
        assert len(run.stage("iteration_2").history("eval/gold")) == 2
    assert all(np.isfinite(x) for x in metrics.values())
    assert {claim.metric for claim in irepo.EXPERIMENT.claims} <= metrics.keys()
    for ratio in ratios:
        np.testing.assert_allclose(ratio[0], 0.0, atol=1e-5)  # the policy is its own reference
        assert abs(ratio[-1]) > 1e-4
