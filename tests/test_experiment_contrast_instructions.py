"""Contrast Instructions: the contrast set, what is learned besides, arms for a few steps."""

import numpy as np
import pytest

from experiments.reward_models import contrast_instructions as study
from experiments.reward_models.contrast_instructions import EXPERIMENT
from rewardjax.training.run import Run

SMOKE = EXPERIMENT.scales["smoke"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


def test_items_of_the_contrast_set_share_an_answer_or_an_instruction(shared):
    own, answer, instruction = (np.asarray(shared["asked"][name][0]) for name in study.ITEM)
    prompt = SMOKE.lab.world.prompt_length
    np.testing.assert_array_equal(own[:, :prompt], answer[:, :prompt])
    np.testing.assert_array_equal(own[:, prompt:], instruction[:, prompt:])
    assert ((own != instruction).sum(1) == 1).all()
    assert (own != answer).any(1).all()
    assert shared["preferred"].mean() > 0.5


def test_a_score_by_request_alone_is_consistent_and_ties_count_half(shared):
    size = SMOKE.test
    scores = dict.fromkeys(study.ITEM, np.zeros(size))
    scores |= {"better": np.ones(size), "worse": np.zeros(size)}
    kept = np.ones(size, bool)
    assert study.measured(scores, kept) == {"accuracy": 1, "response": 0.5, "instruction": 0.5}
    scores[study.ITEM[0]] = np.ones(size)
    assert study.measured(scores, kept) == {"accuracy": 1, "response": 1, "instruction": 1}


def test_what_is_learned_besides(shared):
    data, corners = shared["data"], shared["corners"]
    assert corners.shape == (SMOKE.train, SMOKE.variants)
    assert (corners.sum(1) >= 3).all()
    sizes = {
        more: len(more(SMOKE, data, corners)["tokens"])
        for more in (study.none, study.every_variant, study.convex_hull, study.contrasted)
    }
    assert list(sizes.values()) == [0, SMOKE.train * 5, corners.sum(), SMOKE.train]
    every = study.every_variant(SMOKE, data, corners)["tokens"].reshape(SMOKE.train, 5, 2, -1)
    better = data["plain"]["tokens"][:, :1]
    np.testing.assert_array_equal(every[:, :, 0], np.repeat(better, 5, axis=1))
    assert ((every[:, :, 1] != data["plain"]["tokens"][:, 1:]).sum(-1) <= SMOKE.noise).all()


@pytest.mark.parametrize("arm", ["convex_da", "reward_fusion"])
def test_arms_run(arm, shared, tmp_path):
    with Run(tmp_path, 0, arm) as run:
        metrics = EXPERIMENT.arms[arm].build(SMOKE)(run, shared)
    assert all(np.isfinite(x) for x in metrics.values())
    assert ("gold" in metrics) == (arm == "convex_da")
