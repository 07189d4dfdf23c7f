"""Votes on labels, contrastive losses, steps taken ahead: by hand, and against NumPy."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax import losses
from rewardjax.data.sources import ArraySource
from rewardjax.losses import contrastive
from rewardjax.losses.denoising import preference_strength, weakest
from rewardjax.models.ensemble import Ensemble
from rewardjax.models.heads import RewardModel
from rewardjax.recipes.denoising import (
    ContrastConfig,
    Panel,
    contrastive_modelling,
    meta_modelling,
    swav,
    with_prototypes,
)
from rewardjax.recipes.objectives import reward_modelling
from rewardjax.recipes.preference_lab import TINY, pairwise
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.training.loop import LoopConfig
from rewardjax.training.meta import ascended
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.run import Run
from rewardjax.training.state import gradients

RNG = np.random.default_rng(0)
SCORER = RewardModel(dataclasses.replace(TINY, layers=1), spread=0.5)
PAIRS = {
    "tokens": jnp.asarray(RNG.integers(1, 24, (8, 2, 6)), jnp.int32),
    "valid": jnp.asarray(np.arange(6) < RNG.integers(3, 7, (8, 2, 1))),
}


def test_the_strength_of_a_preference():
    found = preference_strength(jnp.array([[1.0, -2.0], [3.0, 0.0]]))
    np.testing.assert_allclose(found.mean, [2, -1])
    np.testing.assert_allclose(found.std, [1, 1])


def test_the_weakest_pairs():
    strength = jnp.array([0.5, -1.0, 2.0, -0.1, 0.0])
    np.testing.assert_array_equal(weakest(strength, 0.4), [0, 1, 0, 1, 0])
    assert not weakest(strength, 0.0).any()
    assert weakest(strength, 1.0).all()


def test_a_label_turned_round_with_its_strength_is_the_other_pair_with_the_vote():
    difference, strength = jnp.array([0.7, -0.3]), jnp.array([-1.5, -0.2])
    turned = losses.bradley_terry(difference, probability=0.0, margin=strength)
    other = losses.bradley_terry(-difference, margin=jnp.abs(strength))
    np.testing.assert_allclose(turned, other, rtol=1e-6)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x, axis=-1):
    return np.exp(x) / np.exp(x).sum(axis, keepdims=True)


def test_info_nce_tells_a_view_from_others():
    a, b = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    expected = -np.log(np.diagonal(softmax(unit(a) @ unit(b).T / 0.5)))
    np.testing.assert_allclose(
        contrastive.info_nce(jnp.asarray(a), 3 * jnp.asarray(b), temperature=0.5),
        expected,
        rtol=1e-5,
    )
    assert np.isfinite(
        contrastive.info_nce(jnp.asarray(a), jnp.zeros((3, 4)), temperature=0.5)
    ).all()


def test_assignments_share_the_prototypes():
    scores = RNG.normal(size=(6, 3)).astype(np.float32)
    codes = contrastive.sinkhorn(jnp.asarray(scores), epsilon=0.5, iterations=50)
    np.testing.assert_allclose(codes.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(codes.sum(0), 2, rtol=1e-4)
    once = np.exp(scores / 0.5) / np.exp(scores / 0.5).sum(0)
    expected = once / once.sum(1, keepdims=True)
    found = contrastive.sinkhorn(jnp.asarray(scores), epsilon=0.5, iterations=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_view_predicts_the_others_assignment():
    a, b = RNG.normal(size=(2, 5, 4)).astype(np.float32)
    prototypes = RNG.normal(size=(3, 4)).astype(np.float32)
    sides = [unit(x) @ unit(prototypes).T for x in (a, b)]
    codes = [np.asarray(contrastive.sinkhorn(jnp.asarray(x), epsilon=0.1)) for x in sides]
    logs = [np.log(softmax(x / 0.2)) for x in sides]
    expected = -(codes[0] * logs[1] + codes[1] * logs[0]).sum(1) / 2
    found = contrastive.swapped_prediction(
        *map(jnp.asarray, (a, b, prototypes)), temperature=0.2, epsilon=0.1
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_how_far_scores_are_apart():
    found = contrastive.separation(jnp.array([[0.0, 1.0, 3.0], [2.0, 2.0, 2.0]]))
    by_hand = [sum(1 / (1 + np.exp(-d)) for d in (1, 2, 3)), 1.5]
    np.testing.assert_allclose(found, 2 / 9 * np.array(by_hand), rtol=1e-6)


def test_a_gradient_taken_ahead():
    def up(x):
        return jnp.sum(3.0 * x)

    def loss(x, rate):
        return jnp.sum(ascended(up, x, rate) ** 3)

    x = jnp.array([1.0, -1.0])
    np.testing.assert_allclose(jax.grad(loss)(x, 0.5), 3 * (x + 1.5) ** 2)
    np.testing.assert_allclose(jax.grad(loss)(x, 0.0), 3 * x**2)


def test_a_member_scores_as_it_would_alone():
    ensemble = Ensemble(SCORER, 2)
    params = ensemble.init(jax.random.key(0))
    found = ensemble.score(params, PAIRS["tokens"], PAIRS["valid"])
    assert found.shape == (2, 8, 2)
    assert not np.allclose(found[0], found[1])
    second = jax.tree.map(lambda x: x[1], params)
    alone = SCORER.score(second, PAIRS["tokens"], PAIRS["valid"])
    np.testing.assert_allclose(found[1], alone, rtol=1e-4, atol=1e-5)
    own = ensemble.score_own(params, *(jnp.stack([x, x]) for x in PAIRS.values()))
    np.testing.assert_allclose(own, found, rtol=1e-4, atol=1e-5)


def test_a_members_names_have_an_axis_more():
    boxed = jax.eval_shape(Ensemble(SCORER, 2).boxed_init, jax.random.key(0))
    for box in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)):
        assert len(box.names) == box.value.ndim
        assert box.names[0] is None


def test_a_member_learns_as_it_would_alone(tmp_path):
    config = SupervisedConfig(
        4, optimizer=OptimizerConfig(clip=None), loop=LoopConfig(steps=2, steps_per_call=2)
    )
    panel = Panel(config, SCORER, 2)
    rows = np.stack([np.arange(8), RNG.permutation(8)], axis=1)
    params = panel.run(Run(tmp_path / "panel"), PAIRS, rows)
    alone = Supervised(config, init=SCORER.boxed_init, loss=reward_modelling(SCORER, pairwise))
    start = panel.ensemble.init(Run(tmp_path / "panel").key)
    source = ArraySource({n: x[rows[:, 1]] for n, x in PAIRS.items()}, 4, 0, shuffle=False)
    own = alone.run(
        Run(tmp_path / "alone"), params=jax.tree.map(lambda x: x[1], start), source=source
    ).params
    scores = SCORER.score(own, PAIRS["tokens"], PAIRS["valid"])
    found = panel.differences(params, PAIRS)[1]
    np.testing.assert_allclose(found, scores[:, 0] - scores[:, 1], rtol=1e-3, atol=1e-4)


def test_a_panel_does_not_clip_members_together():
    with pytest.raises(ValueError, match=r"optimizer\.clip: expected None, found 1\.0"):
        Panel(SupervisedConfig(), SCORER, 2)


def test_without_weight_or_rate_only_the_preference_counts():
    plain_params = SCORER.init(jax.random.key(1))
    plain, _ = gradients(reward_modelling(SCORER, pairwise), plain_params, PAIRS)

    batch = PAIRS | {"pair": jnp.arange(8)}
    init = with_prototypes(SCORER, 3)
    params = nn.meta.unbox(init(jax.random.key(2))) | {"scorer": plain_params}
    for weight in (0.0, 1.0):
        objective = contrastive_modelling(SCORER, pairwise, swav, ContrastConfig(weight))
        found, value = gradients(objective, params, batch)
        assert (np.abs(found["prototypes"]).max() > 0) == (weight > 0)
        if weight == 0:
            close(found["scorer"], plain)
    assert value.terms["contrast"].value > 0

    groups = {f"group_{name}": x for name, x in PAIRS.items()}
    meta = meta_modelling(SCORER, pairwise)

    def at(rate):
        loss = partial(meta, frozen={"rate": rate})
        return gradients(loss, plain_params, PAIRS | groups)[0]

    close(at(0.0), plain)
    assert not np.allclose(at(1.0)["head"]["kernel"], plain["head"]["kernel"])


def close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected
    )
