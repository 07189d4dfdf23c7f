"""Reasoning-SQL: the host's part of a step, the gate, and arms for a few steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.reasoning.reasoning_sql import EXPERIMENT, WEIGHTS, task_of
from rewardjax.recipes.text_to_sql import graded_answers
from rewardjax.rewards.sql import PARTS
from rewardjax.training.run import Run
from rewardjax.trajectory import respond

SMOKE = EXPERIMENT.scales["smoke"]


def test_a_right_answer_outweighs_all_that_a_wrong_one_can_get():
    surface = sum(WEIGHTS[name] for name in ("syntax", "schema", "ngram", "format"))
    assert WEIGHTS["execution"] + surface > WEIGHTS["judge"] + surface


def test_the_host_scores_each_row_of_a_trajectory():
    task, world = task_of(SMOKE), SMOKE.world
    prompts = world.prompts(jax.random.key(0), 6)
    question = prompts.info["question"]
    answered = question.at[:3].set((question[:3] + 1) % 100)
    parts = task.parts(jax.device_get(respond(prompts, *world.answers(prompts, answered))))
    assert set(parts) == set(PARTS)
    for name in PARTS:
        np.testing.assert_array_equal(parts[name][3:], np.ones(3))
    np.testing.assert_array_equal(parts["format"], np.ones(6))
    assert np.all(parts["ngram"][:3] < 1)


def test_half_of_the_graded_answers_are_to_another_question():
    batch = graded_answers(SMOKE.world, jax.random.key(0), 400)
    right = float(jnp.mean(batch["grade"] == 1))
    assert 0.42 < right < 0.58
    assert set(np.unique(batch["grade"])) <= {0.0, 0.25, 0.5, 0.75, 1.0}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with Run(tmp_path_factory.mktemp("prepare"), 0, "prepare") as run:
        return EXPERIMENT.prepare(SMOKE)(run)


def test_all_parts_with_the_judge(shared, tmp_path):
    with Run(tmp_path, 0, "all") as run:
        found = EXPERIMENT.arms["all"].build(SMOKE)(run, shared)
        stage = run.stage("rl")
        execution, judged = stage.history("reward/execution"), stage.history("reward/judge")
    assert all(np.isfinite(value) for value in found.values())
    # The judge speaks where execution is 0, and its scores are in [0, 1].
    assert np.all(judged <= 1 - execution + 1e-6)
    assert np.all(judged > 0)


def test_demonstrations_alone(shared, tmp_path):
    with Run(tmp_path, 0, "sft") as run:
        found = EXPERIMENT.arms["sft"].build(SMOKE)(run, shared)
    assert set(found) == {"execution", "syntax", "ngram", "held_out"}
