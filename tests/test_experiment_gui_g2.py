"""GUI-G2: the arms' rewards by hand, and every kind of arm for a few steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.grounding.gui_g2 import DIAGONAL, EXPERIMENT, JUDGES
from rewardjax.training.run import Run

SMOKE = EXPERIMENT.scales["smoke"]


@pytest.fixture(autouse=True, scope="module")
def compiled_fast():
    """Programs that run for four steps are not worth optimising."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def test_rewards_of_a_box_moved_by_one_deviation():
    # 8 x 4 pixels at (8, 8); moved by (4, 2), to its own corner: a hit, with an IoU of 8 / 56.
    gold, box = jnp.array([[4.0, 6, 12, 10]]), jnp.array([[8.0, 8, 16, 12]])
    near, alike = np.exp(-1.0), np.exp(-0.25)
    expected = {
        "point01": 1.0,
        "iou05": 0.0,
        "point01_iou05": 1.0,
        "distance": 1 - np.sqrt(20) / DIAGONAL,
        "inside_gauss": near,
        "gauss_pt": near,
        "gauss_cov": alike,
        "gui_g2": near + alike,
        "sigma_2": np.exp(-20 / 8) + np.exp(-20 / 32),
        "sigma_8": np.exp(-20 / 128) + np.exp(-20 / 512),
        "alpha_0.1": np.exp(-25.0) + np.exp(-6.25),
        "alpha_3": np.exp(-1 / 36) + np.exp(-1 / 144),
    }
    assert set(expected) == set(JUDGES)
    for name, judge in JUDGES.items():
        np.testing.assert_allclose(judge(box, gold), [expected[name]], rtol=1e-5)


def test_a_near_miss_is_rewarded_by_the_dense_arms_alone():
    gold, miss = jnp.array([[10.0, 10, 12, 12]]), jnp.array([[12.0, 12, 14, 14]])
    for name, judge in JUDGES.items():
        sparse = name in ("point01", "iou05", "point01_iou05", "inside_gauss")
        assert (float(judge(miss, gold)[0]) == 0) == sparse, name
        assert judge(miss[:, ::-1], gold).tolist() == [0.0]  # inverted


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


def test_all_seeds_start_from_one_checkpoint(tmp_path):
    prepare = EXPERIMENT.prepare(SMOKE)
    first, second = (prepare(Run(tmp_path / str(seed), seed)) for seed in (0, 1))
    assert first is second
    assert not (tmp_path / "1" / "checkpoint").exists()


@pytest.mark.parametrize("arm", ["point01", "gui_g2"])
def test_arms_run(arm, shared, tmp_path):
    with Run(tmp_path, 0, arm) as run:
        metrics = EXPERIMENT.arms[arm].build(SMOKE)(run, shared)
    assert all(np.isfinite(x) for x in metrics.values())
    assert {claim.metric for claim in EXPERIMENT.claims} <= set(metrics)
    assert (tmp_path / "rl" / "pictures" / "boxes.png").stat().st_size > 0


def test_data_that_are_not_generated_are_refused():
    with pytest.raises(ValueError, match="expected 'screens'"):
        EXPERIMENT.prepare(EXPERIMENT.scales["paper"])
