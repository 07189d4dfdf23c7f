"""MAH-DPO: its loss and targets by hand, one head as mixed DPO, and arms for a few steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.preferences import mah_dpo
from rewardjax import losses
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.multi_head import MultiHead
from rewardjax.recipes.several_objectives import disagreeing, dpo_by_objective, responses_of
from rewardjax.training.run import Run
from rewardjax.trajectory import Trajectory

SMOKE = mah_dpo.EXPERIMENT.scales["smoke"]


def response(*tokens):
    """A response to a request for the first theme."""
    world = mah_dpo.WORLD
    row = jnp.array([[world.bos, world.first_theme_token, world.sep, *tokens]])
    valid = row != world.pad
    mask = valid & (jnp.arange(row.shape[1]) >= 3)
    return Trajectory(
        row, mask, valid, jnp.zeros(row.shape), info={"theme": jnp.zeros((1, 1), int)}
    )


def test_objectives_read_their_own_attributes_and_targets_are_discounted():
    world = mah_dpo.WORLD
    own, good, bad = world.first_theme_token, world.first_positive, world.first_negative
    traj = response(own, own + 1, good, good, bad, world.eos, world.pad)
    # Two of four tokens of the theme, one repetition in twelve; one more good than bad of five.
    a = 2 / 4 - 1 / 12
    np.testing.assert_allclose(mah_dpo.utilities(world, traj), [[a, 1 / 5]], rtol=1e-5)
    steps_left = np.array([5, 4, 3, 2, 1, 0])
    expected = np.concatenate([np.zeros(3), a * 0.9**steps_left, [0]])
    np.testing.assert_allclose(mah_dpo.hindsight(SMOKE, traj)[0], expected, rtol=1e-5)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return mah_dpo.EXPERIMENT.prepare(SMOKE)(Run(tmp_path_factory.mktemp("prepare")))


def test_each_objective_is_dpo_on_its_own_head_and_its_own_pairs(shared):
    lm = LanguageModel(SMOKE.lab.model)
    model = MultiHead(lm, 2, spread=0.1)
    reference = shared["frozen"]["reference"]
    before, after = (model.start(reference, jax.random.key(seed)) for seed in (0, 1))
    batch = {name: jnp.asarray(x[:3]) for name, x in mah_dpo.mixed(shared).items()}
    frozen = {"heads": before, "alpha": jnp.array([0.25, 0.75])}

    def by_hand(heads):
        found = []
        for i, head in enumerate(heads):
            sums = []
            for params in (after, before):
                rows = {name: x[:, i].reshape(6, -1) for name, x in batch.items()}
                scored = lm.score(
                    model.head(params, head), rows["tokens"], rows["valid"].astype(jnp.int32)
                )[0]
                sums.append(jnp.sum(scored * rows["mask"], axis=1).reshape(3, 2))
            (new, old) = sums
            each = losses.dpo(new[:, 0], new[:, 1], old[:, 0], old[:, 1], beta=SMOKE.beta)
            found.append(jnp.mean(each))
        return 0.25 * found[0] + 0.75 * found[1]

    # Two heads; and one head for both objectives, which is DPO on the mixed pairs.
    for route in ((0, 1), (0, 0)):
        loss = dpo_by_objective(model, SMOKE.beta, route)(after, batch, frozen)
        total = sum(term.value for term in loss.terms.values())
        np.testing.assert_allclose(total, by_hand(route), rtol=1e-4)


def test_conflicting_pairs_are_those_that_b_would_turn_round(shared):
    pairs, world = shared["pairs"][0], mah_dpo.WORLD
    found = disagreeing(pairs, lambda traj: mah_dpo.utilities(world, traj))["tokens"]
    np.testing.assert_array_equal(found[:, 0], found[:, 1, ::-1])
    utilities = np.asarray(mah_dpo.utilities(world, responses_of(pairs)))
    (a1, b1), (a2, b2) = utilities[0::2].T, utilities[1::2].T
    kept = (a1 > a2) & (b1 < b2)
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_array_equal(found[:, 0], pairs["tokens"][kept])


def test_one_head_learns_nothing_from_pairs_that_both_objectives_turn_round(shared):
    model = MultiHead(LanguageModel(SMOKE.lab.model), 2)
    heads = model.start(shared["frozen"]["reference"], jax.random.key(0))
    batch = {name: jnp.asarray(x[:4]) for name, x in mah_dpo.conflicting(shared).items()}
    frozen = {"heads": heads, "alpha": jnp.array([0.5, 0.5])}

    def size(route):
        loss = dpo_by_objective(model, SMOKE.beta, route)

        def total(params):
            return sum(term.value for term in loss(params, batch, frozen).terms.values())

        return float(jnp.max(jnp.abs(jax.grad(total)(heads)["heads"])))

    assert size((0, 0)) < 1e-6 < 1e-4 < size((0, 1))


@pytest.mark.parametrize("arm", ["mah_dpo", "dpo_soup", "sft_guided"])
def test_arms_run(arm, shared, tmp_path):
    with Run(tmp_path, 0, arm) as run:
        metrics = mah_dpo.EXPERIMENT.arms[arm].build(SMOKE)(run, shared)
    assert all(np.isfinite(x) for x in metrics.values())
    assert {"a", "b", "kl"} <= metrics.keys()
    if arm != "sft_guided":
        claimed = {claim.metric for claim in mah_dpo.EXPERIMENT.claims}
        assert claimed <= metrics.keys()
        assert -1.0 <= metrics["monotone"] <= 1.0


def test_data_that_cannot_be_generated_are_refused():
    with pytest.raises(ValueError, match="data: expected 'world'"):
        mah_dpo.prepare(mah_dpo.EXPERIMENT.scales["paper"])
