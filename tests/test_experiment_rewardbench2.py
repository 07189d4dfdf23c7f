"""RewardBench 2: pairs and items by kind, the scores of known scorers, arms for a few steps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.reward_models.rewardbench2 import EXPERIMENT, MODELS
from rewardjax.recipes import question_benchmark as study
from rewardjax.recipes.question_benchmark import PER_ITEM, WORLD
from rewardjax.statistics import pearson
from rewardjax.tasks.question_kinds import CONTENTS, DIGITS, KINDS, REFERENCE, SPECIAL, TIED
from rewardjax.training.run import Run

ITEMS, PAIRS = 4, 6000  # the sizes of the arms, so that programs are compiled once
SMOKE = EXPERIMENT.scales["smoke"]


def gold(tokens, valid):
    """Whether completions are correct, from their tokens alone."""
    flat = tokens.reshape(-1, tokens.shape[-1])
    contents = flat[:, 1:3] - len(SPECIAL)
    info = {"kind": flat[:, 0] - 3, "a": contents[:, 0], "b": contents[:, 1]}
    mask = valid.reshape(flat.shape) & (jnp.arange(flat.shape[1]) >= WORLD.prompt_length)
    return np.asarray(WORLD.gold(flat, mask, info)).reshape(tokens.shape[:-1])


@pytest.fixture(scope="module")
def items():
    return jax.jit(partial(study.benchmark, count=ITEMS))(jax.random.key(0))


def test_items_have_correct_completions_first(items):
    right = gold(items["tokens"], items["valid"])
    assert right.shape == (len(KINDS), ITEMS, 2 * PER_ITEM)
    np.testing.assert_array_equal(right[..., :PER_ITEM], 1.0)
    np.testing.assert_array_equal(right[..., PER_ITEM:], 0.0)


def test_a_tied_question_has_all_words_of_its_sibling_s_theme(items):
    tied, reference = items["tokens"][TIED], items["tokens"][REFERENCE]
    np.testing.assert_array_equal(tied[:, 0, 1], reference[:, 0, 1])
    said = np.sort((tied[:, :PER_ITEM, 4] - len(SPECIAL)) % CONTENTS - DIGITS, axis=1)
    np.testing.assert_array_equal(said % 4, np.tile(np.arange(4), (ITEMS, 1)))
    np.testing.assert_array_equal(said // 4, said[:, :1] // 4 * np.ones((1, 4)))


def test_known_scorers_get_the_scores_that_the_rules_give(items):
    right = gold(items["tokens"], items["valid"])
    found = study.judged(right)
    domains = {name: found[name] for name in KINDS if name != "Ties"}
    assert set(domains.values()) == {1.0}
    # Equally good answers score alike: every term but the last is full, and that is tanh(1/0 - 1).
    np.testing.assert_allclose(found["Ties"], 1.01)
    np.testing.assert_allclose(found["tied_spread"], 0.0)
    constant = study.judged(np.zeros_like(right))
    np.testing.assert_allclose(constant["without_ties"], 0.25)
    np.testing.assert_allclose(constant["Ties"], 0.0)
    # A strict order of the correct answers, twice as wide as what separates them from wrong ones.
    ordered = right * 2.0 + np.arange(8) * -2 / 3 * right
    ordered[:, :, :PER_ITEM] += 1.0
    strict = study.judged(ordered)
    assert strict["without_ties"] == 1.0
    assert strict["tied_accuracy"] == 1.0
    np.testing.assert_allclose(strict["Ties"], 0.6 + 0.01 * np.tanh(-0.5), rtol=1e-6)


def test_pairs_follow_their_recipe():
    everything = np.ones(len(KINDS))
    make = jax.jit(study.compared, static_argnums=0)
    clean = make(PAIRS, jax.random.key(1), 0.0, everything, 0.0)
    right = gold(clean["tokens"], clean["valid"])
    assert np.mean(right == [1.0, 0.0]) > 0.999
    noisy = make(PAIRS, jax.random.key(1), 0.4, everything, 0.0)
    turned = gold(noisy["tokens"], noisy["valid"])[:, 0] == 0
    assert 0.3 < turned.mean() < 0.5
    tied = np.eye(len(KINDS))[TIED]
    strict = make(PAIRS, jax.random.key(1), 0.0, tied, 1.0)
    np.testing.assert_array_equal(gold(strict["tokens"], strict["valid"]), 1.0)
    said = (np.asarray(strict["tokens"])[:, :, 4] - len(SPECIAL)) % CONTENTS
    assert (said[:, 0] < said[:, 1]).all()
    assert (strict["tokens"][:, 0, 0] == 3 + TIED).all()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


def test_arms_run(shared, tmp_path):
    assert set(shared[1]) == set(MODELS)
    for arm in ("benchmark", "other_lineage"):
        with Run(tmp_path / arm, 0, arm) as run:
            metrics = EXPERIMENT.arms[arm].build(SMOKE)(run, shared)
        assert all(np.isfinite(value) for value in metrics.values())
        assert ("correlation_total" if arm == "benchmark" else "rl_gold") in metrics


def test_only_the_lineage_differs_where_it_is_named():
    full, other = MODELS["full"], MODELS["other_lineage"]
    assert other == type(full)(base=1)


def test_correlations_are_pearson_s():
    a, b = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9)) + np.array([[5.0], [0.0]]))
    np.testing.assert_allclose(pearson(a, b), np.corrcoef(a, b)[0, 1], rtol=1e-5)
    assert float(pearson(jnp.ones(4), jnp.arange(4.0))) == 0
