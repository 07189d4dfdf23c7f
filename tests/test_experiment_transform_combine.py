"""Transformed rewards: utilities by hand, what changes no optimum, an arm for a few steps."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.preferences.transform_combine import (
    EXPERIMENT,
    UTILITIES,
    described,
    optima,
    properties,
    seen,
)
from rewardjax.tasks.preference_world import ATTRIBUTES, PreferenceWorld
from rewardjax.training.run import Run
from rewardjax.trajectory import Trajectory

SMOKE = EXPERIMENT.scales["smoke"]
# Odds of being helpful 3 : 1, and 1 : 1; of being cheerful 1 : 1, and 1 : 4.
R = jnp.array([[np.log(3.0) + 2, 5.0], [2.0, 5.0 - np.log(4.0)]])
REF = jnp.array([[2.0, 5.0]] * 2)


def test_utilities_by_hand():
    expected = {
        "raw": [np.log(3) + 2, 2],
        "raw_centred": [np.log(3), 0],
        "lsc": [np.log(3 / 4), np.log(1 / 2)],
        "sum_raw": [np.log(3) + 7, 7 - np.log(4)],
        "weighted_sum_raw": [2 * np.log(3) + 9, 9 - np.log(4)],
        "sum_lsc": [np.log(3 / 8), np.log(1 / 10)],
        "either": [np.log(7 / 8), np.log(3 / 5)],
    }
    assert set(expected) == set(UTILITIES)
    for name, values in expected.items():
        np.testing.assert_allclose(UTILITIES[name](R, REF), values, rtol=1e-5, atol=1e-6)


def test_far_below_the_reference_the_log_probability_is_the_raw_reward():
    far = REF + 40.0
    np.testing.assert_allclose(UTILITIES["lsc"](R, far), UTILITIES["raw_centred"](R, far))
    both = UTILITIES["sum_raw"](R - far, None)
    np.testing.assert_allclose(UTILITIES["sum_lsc"](R, far), both, rtol=1e-6)


def test_what_annotators_see_of_both_properties():
    """Two requested tokens, one of them twice, a positive and two gaudy ones; eos does not count."""
    world = PreferenceWorld(full_coverage=2)
    first, glad, gaudy = world.first_theme_token, world.first_positive, world.first_gaudy
    tokens = jnp.array([[first, first + 1, first, glad, gaudy, gaudy, world.eos, world.pad]])
    mask = tokens != world.pad
    traj = Trajectory(tokens, mask, mask, jnp.zeros(tokens.shape), info={"theme": jnp.array([[0]])})
    gold, count = properties(world, traj)
    np.testing.assert_allclose(gold, [[1 - 2 / 12, (1 + 1 / 6) / 2]], rtol=1e-6)
    np.testing.assert_array_equal(count, [2])
    assert ATTRIBUTES == ("coverage", "repetition", "gaudy", "sentiment", "length")
    helpful, cheerful = seen(0.25).values()
    np.testing.assert_array_equal(helpful, [1, -1, 0.25, 0, 0])
    np.testing.assert_array_equal(cheerful, [0, 0, 0.25, 2, 0])


def test_samples_described():
    """Four samples of a prompt: medians 1.5 of the rewards and 0.5 of gold."""
    rewards = jnp.array([[[0.0, 3.0], [1, 2], [2, 1], [3, 0]]])
    gold = jnp.array([[[0.2, 0.9], [0.4, 0.6], [0.6, 0.6], [0.8, 0.1]]])
    found = described(rewards, gold, jnp.array([[0.0, 1, 2, 3]]))
    np.testing.assert_array_equal(found["both"], [[0, 0, 1, 0]])
    np.testing.assert_array_equal(found["poor"], [[1, 1, 0, 0]])
    np.testing.assert_array_equal(found["low"], [[1, 1, 0, 0]])
    np.testing.assert_array_equal(found["low_either"], [[1, 1, 1, 1]])
    np.testing.assert_array_equal(found["top"], [[0, 0, 0, 1]])


def test_a_constant_of_the_prompt_changes_no_optimum():
    rng = np.random.default_rng(0)
    rewards = jnp.asarray(rng.normal(size=(3, 64, 2)), jnp.float32)
    references = jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)
    columns = {"helpful": rng.uniform(size=(3, 64))}
    raw, centred, lsc = (
        optima(SMOKE, UTILITIES[name], rewards, references, columns)
        for name in ("raw", "raw_centred", "lsc")
    )
    assert centred[0] == pytest.approx(raw[0], rel=1e-4)
    assert centred[1] == pytest.approx(raw[1], rel=1e-4)
    assert set(raw[1]) == {"helpful_optimum", "helpful_far"}
    assert abs(lsc[1]["helpful_optimum"] - raw[1]["helpful_optimum"]) > 1e-3


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


def test_an_arm_runs(shared, tmp_path):
    run_seed = EXPERIMENT.arms["sum_lsc"].build(SMOKE)
    with Run(tmp_path, 0, "sum_lsc") as run:
        metrics = run_seed(run, shared)
    assert all(np.isfinite(x) for x in metrics.values())
    assert {claim.metric for claim in EXPERIMENT.claims} <= set(metrics)
    assert (tmp_path / "rl" / "samples.jsonl").read_text().count("\n") == 8
