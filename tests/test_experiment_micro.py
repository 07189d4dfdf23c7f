"""MiCRo: its losses and the router by hand, heads matched to groups, and arms for a few steps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.reward_models.micro import EXPERIMENT
from rewardjax import losses
from rewardjax.evaluation.matching import matched_scorers
from rewardjax.models.features import Features, last_token_features
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.routed_scorer import RoutedScorer
from rewardjax.recipes.hedge_routing import HedgeConfig, fit_router
from rewardjax.recipes.hidden_groups import GroupsConfig, group_accuracy, likelihood_gap
from rewardjax.recipes.preference_lab import TINY
from rewardjax.training.run import Run

SMOKE = EXPERIMENT.scales["smoke"]


def test_probabilities_are_mixed_not_scores():
    differences, weights = jnp.log(jnp.array([3.0, 1 / 3])), jnp.array([0.75, 0.25])
    found = losses.mixture_bradley_terry(differences, jnp.log(weights))
    # s(log 3) = 3/4 and s(-log 3) = 1/4: 3/4 * 3/4 + 1/4 * 1/4
    np.testing.assert_allclose(found, -np.log(0.625), rtol=1e-6)
    far = losses.mixture_bradley_terry(jnp.array([-1e4, -2e4]), jnp.log(weights))
    np.testing.assert_allclose(far, 1e4, rtol=1e-4)


def test_a_mixture_with_all_weight_on_one_scorer_is_bradley_terry():
    differences = jnp.array([[0.3, -2.0], [-1.5, 4.0]])
    found = losses.mixture_bradley_terry(differences, jnp.array([[0.0, -jnp.inf]] * 2))
    np.testing.assert_allclose(found, losses.bradley_terry(differences[:, 0]), rtol=1e-6)


def test_hedge_targets_by_hand_are_the_least_of_their_objective():
    f, lost = jnp.array([0.5, 0.3, 0.2]), jnp.array([1.0, 0.2, 2.0])
    weights = losses.hedge_targets(jnp.log(f), lost, temperature=0.5)
    by_hand = np.array([0.5, 0.3, 0.2]) * np.exp([-2.0, -0.4, -4.0])
    np.testing.assert_allclose(weights, by_hand / by_hand.sum(), rtol=1e-5)

    def objective(w):
        return float(jnp.sum(w * lost) + 0.5 * jnp.sum(w * jnp.log(w / f)))

    for other in np.random.default_rng(0).dirichlet(np.ones(3), 20):
        assert objective(weights) <= objective(jnp.asarray(other, jnp.float32)) + 1e-6


def test_soft_cross_entropy_of_a_sure_target_is_the_usual_one():
    logits = jnp.array([1.0, 2.0, 0.0])
    hard = losses.soft_cross_entropy(logits, jnp.array([0.0, 1.0, 0.0]))
    np.testing.assert_allclose(hard, -jax.nn.log_softmax(logits)[1], rtol=1e-6)


def test_heads_are_matched_to_groups_for_the_largest_total():
    table = [[0.9, 0.8], [0.85, 0.2], [0.1, 0.3]]  # 0.85 + 0.8 is more than 0.9 + 0.3
    assert matched_scorers(np.array(table)).tolist() == [1, 0]
    with pytest.raises(ValueError, match="at least 2 scorers, found 1"):
        matched_scorers(np.array([[0.5, 0.5]]))


def test_prompt_features_do_not_see_the_response():
    model = LanguageModel(TINY)
    params = model.init(jax.random.key(0))
    # The first row is padded on the left; both have a prompt of two tokens.
    tokens = jnp.array([[0, 1, 5, 7, 8], [1, 5, 9, 4, 0]])
    valid = jnp.array([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]], bool)
    mask = jnp.array([[0, 0, 0, 1, 1], [0, 0, 1, 1, 0]], bool)
    found = last_token_features(model, params, tokens, valid, mask)
    np.testing.assert_allclose(found.prompt[0], found.prompt[1], atol=1e-5)
    alone, _ = model.hidden(params, jnp.array([[1, 5, 9, 4]]), jnp.ones((1, 4), jnp.int32))
    np.testing.assert_allclose(found.response[1], alone[0, 3], atol=1e-5)
    np.testing.assert_allclose(found.prompt[1], alone[0, 1], atol=1e-5)


def test_a_score_is_the_weighted_sum_and_a_fixed_router_ignores_the_prompt():
    scorer = RoutedScorer(2, 2, router=None)
    params = {
        "heads": {"kernel": jnp.array([[1.0, 0.0], [0.0, 2.0]])},
        "router": {"logits": jnp.log(jnp.array([0.25, 0.75]))},
    }
    features = Features(prompt=jnp.array([[9.0, -9.0]]), response=jnp.array([[4.0, 1.0]]))
    np.testing.assert_allclose(scorer.score(params, features), 0.25 * 4 + 0.75 * 2, rtol=1e-6)


def test_the_router_learns_which_head_a_context_wants():
    scorer = RoutedScorer(2, 3, router=(8,))
    params = nn.meta.unbox(scorer.boxed_init(jax.random.key(0)))
    prompts = jnp.repeat(jnp.eye(2), 4, axis=0)
    lost = jnp.where(jnp.repeat(jnp.eye(3)[:2], 4, axis=0) > 0, 0.1, 2.0)
    fit = jax.jit(lambda counted: fit_router(HedgeConfig(), scorer, params, prompts, lost, counted))
    weights = jnp.exp(scorer.route(fit(jnp.ones(8, bool)), jnp.eye(2)))
    assert (np.asarray(weights.argmax(axis=1)) == [0, 1]).all()
    assert float(weights.max(axis=1).min()) > 0.95
    jax.tree.map(np.testing.assert_array_equal, fit(jnp.zeros(8, bool)), params)


def test_what_groups_want_and_how_often_they_ask():
    config = GroupsConfig(("coverage", "-length"), own_share=0.7)
    np.testing.assert_array_equal(config.tastes.T, [[1, 0, 0, 0, 0], [0, 0, 0, 0, -1]])
    shares = config.shares(jnp.array([0, 3]))
    np.testing.assert_allclose(shares, [[0.7, 0.3], [0.3, 0.7]], rtol=1e-6)


def test_accuracy_leaves_ties_out_and_the_truth_loses_nothing():
    config = GroupsConfig(("coverage", "-length"), temperature=1.0)
    utility = jnp.array([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 2.0], [1.0, 0.0]]])
    scores = jnp.array([[1.0], [1.0]])
    np.testing.assert_allclose(group_accuracy(scores, utility), [0.5, 1.0])
    share, p = jnp.array([[0.5, 0.5], [1.0, 0.0]]), 1 / (1 + np.exp(-1))
    truth = jnp.array([(p + 0.5) / 2, 1 - p])
    gap = likelihood_gap(config, truth, utility, share)
    np.testing.assert_allclose(gap, 0.0, atol=1e-6)
    assert float(likelihood_gap(config, jnp.array([0.5, 0.5]), utility, share)) > 0.01


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


@pytest.mark.parametrize("arm", ["single", "micro"])
def test_arms_run(arm, shared, tmp_path):
    with Run(tmp_path, 0, arm) as run:
        metrics = EXPERIMENT.arms[arm].build(SMOKE)(run, shared)
        assert run.history("routed").shape == (3 if arm == "micro" else 1,)
    assert all(np.isfinite(x) for x in metrics.values())
    assert {"routed", "best_head", "nll_gap"} <= set(metrics)
    assert (tmp_path / "samples.jsonl").read_text().count("\n") == 4
