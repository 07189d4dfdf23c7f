"""REFORM: pairs and their styles, the attack, what joins the data, arms for a few steps."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.reward_models import reform as study
from experiments.reward_models.reform import EXPERIMENT
from rewardjax.recipes.styled_pairs import cut_short, restyled, styled_pairs
from rewardjax.training.run import Run

SMOKE = EXPERIMENT.scales["smoke"]
WORLD = SMOKE.world
START = WORLD.prompt_length


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


def classes(rows, pairs):
    """True where the gold rule has an answer in its class, the good one first."""
    return study.in_class(WORLD, rows, pairs)


def test_test_pairs_are_labelled_right_and_training_pairs_nearly(shared):
    assert classes(shared.test, shared.test).all()
    right = classes(shared.pairs, shared.pairs)
    assert 0.85 < right.mean() < 1.0


def test_other_styles_leave_the_class_and_no_flip_leaves_the_style(shared):
    test, key = shared.test, jax.random.key(3)
    restyle = jax.jit(partial(restyled, WORLD))
    flips = np.array([[[True, False, True]]])
    turned, same = restyle(key, test, flips), restyle(key, test, ~flips & flips)
    assert classes(turned, test).all()
    longer = turned["valid"].sum(-1) > test["valid"].sum(-1)
    np.testing.assert_array_equal(longer, ~test["styles"][:, :, 0])
    words = slice(START, START + 3)
    np.testing.assert_array_equal(turned["tokens"][..., words], test["tokens"][..., words])
    kept = abs(same["valid"].sum(-1) - test["valid"].sum(-1))
    assert kept.max() <= 1  # one plain word more or less is no style


def test_half_of_the_pairs_are_cut_at_one_column_for_both_answers():
    pairs = styled_pairs(WORLD, jax.random.key(0), 200, 0.0)
    full = {"tokens": pairs["tokens"], "valid": jnp.ones_like(pairs["valid"])}
    lengths = np.asarray(cut_short(jax.random.key(1), full, START)["valid"].sum(-1))
    np.testing.assert_array_equal(lengths[:, 0], lengths[:, 1])
    assert 0.35 < np.mean(lengths[:, 0] < full["tokens"].shape[-1]) < 0.65
    assert lengths.min() == START + 1


def test_the_pairs_of_lowest_loss_are_attacked():
    scores = np.array([[0.0, 1.0], [3.0, 1.0], [5.0, 4.5], [2.0, -4.0]])
    np.testing.assert_array_equal(study.easiest(scores, 2), [3, 1])


def test_variants_join_with_the_pair_s_other_answer():
    def rows(*values):
        tokens = np.array(values, int).reshape(-1, 2, 1)
        return {"tokens": tokens, "valid": tokens > 0}

    pairs, chosen = rows([1, 2], [3, 4], [5, 6]), rows([1, 2], [5, 6])
    found = study.augmented(pairs, chosen, rows([10, 20], [50, 60]))["tokens"][..., 0]
    expected = [[1, 2], [3, 4], [5, 6], [10, 2], [50, 6], [1, 20], [5, 60]]
    np.testing.assert_array_equal(found, expected)
    nothing = study.augmented(pairs, rows(), rows())
    np.testing.assert_array_equal(nothing["tokens"], pairs["tokens"])


def test_the_attack_keeps_prompts_and_moves_rewards_as_it_should(shared):
    test = jax.tree.map(lambda x: x[:8], shared.test)
    attack = dataclasses.replace(study.attack_of(SMOKE), alpha=0.0)
    language = shared.both[0], shared.both[0]
    guided = jax.jit(attack.guided)(shared.reward_model, language, test)
    sampled = jax.jit(attack.sampled)(shared.both, test, jax.random.key(0))
    for found in (guided, sampled):
        np.testing.assert_array_equal(found["tokens"][..., :START], test["tokens"][..., :START])
        assert found["valid"][..., START].all()
    score = jax.jit(attack.scorer.score)
    scores = score(shared.reward_model, guided["tokens"], guided["valid"])
    assert jnp.mean(scores[:, 0]) < jnp.mean(scores[:, 1])


@pytest.mark.parametrize("arm", ["vanilla", "reform"])
def test_arms_run(arm, shared, tmp_path):
    with Run(tmp_path, 0, arm) as run:
        metrics = EXPERIMENT.arms[arm].build(SMOKE)(run, shared)
    assert all(np.isfinite(x) for x in metrics.values())
    assert ("added_purity" in metrics) == (arm == "reform")
