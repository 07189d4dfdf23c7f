"""GUI-G2: the arms' rewards by hand, the starts, and an arm for a few steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.grounding.gui_g2 import DIAGONAL, EXPERIMENT, JUDGES
from rewardjax.training.run import Run

SMOKE = EXPERIMENT.scales["smoke"]


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
def starts(tmp_path_factory):
    """Of seeds 0, 1 and 0 again, from one program."""
    prepare, folder = EXPERIMENT.prepare(SMOKE), tmp_path_factory.mktemp("prepare")
    return [prepare(Run(folder / str(i), seed)) for i, seed in enumerate((0, 1, 0))]


def test_each_seed_makes_its_own_start(starts):
    first, second, again = (jax.tree.leaves(start) for start in starts)
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    assert not any(np.array_equal(x, y) for x, y in zip(first, second, strict=True) if x.ndim > 1)


def test_an_arm_runs(starts, tmp_path):
    with Run(tmp_path, 0, "gui_g2") as run:
        metrics = EXPERIMENT.arms["gui_g2"].build(SMOKE)(run, starts[0])
    assert all(np.isfinite(x) for x in metrics.values())
    assert {claim.metric for claim in EXPERIMENT.claims} <= set(metrics)
    assert (tmp_path / "rl" / "pictures" / "boxes.png").stat().st_size > 0


def test_data_that_are_not_generated_are_refused():
    with pytest.raises(ValueError, match="expected 'screens'"):
        EXPERIMENT.prepare(EXPERIMENT.scales["paper"])
