"""YOJO: criteria by hand, single scores do not depend on the list, arms for a few steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.reward_models import yojo as study
from experiments.reward_models.yojo import EXPERIMENT
from rewardjax.recipes.response_lists import COLUMNS
from rewardjax.training.run import Run

SMOKE = EXPERIMENT.scales["smoke"]


def test_the_relative_criterion_looks_at_the_shortest():
    gold = jnp.array([[0.1, 0.9, 0.5, 0.2]])
    valid = jnp.arange(8) < jnp.array([[4, 7, 6, 5]])[..., None]
    np.testing.assert_allclose(study.absolute(SMOKE, gold, valid), gold)
    # 1.5 * 4 = 6 tokens are allowed.
    np.testing.assert_allclose(study.relative(SMOKE, gold, valid), [[0.1, -9.1, 0.5, 0.2]])


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


def test_single_scores_do_not_depend_on_the_list(shared):
    test = shared["relative"]["test"]
    lists = [jnp.asarray(test[name]) for name in COLUMNS]
    model, score = study.scorer(SMOKE, joint=False)
    params = jax.jit(model.init)(jax.random.key(0))
    score = jax.jit(score)
    once = score(params, *lists)
    turned = score(params, *lists[:2], *(x[:, ::-1] for x in lists[2:]))
    np.testing.assert_allclose(once, turned[:, ::-1], atol=1e-5)


@pytest.mark.parametrize("arm", ["multi_mean", "multi_last_absolute"])
def test_arms_run(arm, shared, tmp_path):
    with Run(tmp_path, 0, arm) as run:
        metrics = EXPERIMENT.arms[arm].build(SMOKE)(run, shared)
    assert all(np.isfinite(x) for x in metrics.values())
    assert 0 <= metrics["best_of_n"] <= 1
    assert ("gold" in metrics) == (arm == "multi_last_absolute")
