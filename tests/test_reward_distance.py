"""Distances of rewards: by hand, against NumPy, and the theorems on thousands of small MDPs."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.envs.mdp import MDP, deterministic_transitions, softmax_transitions, without_rewards
from rewardjax.evaluation import reward_distance as rd

# Two states; action 0 stays, action 1 moves to the other.
STAY_OR_MOVE = MDP(
    transition=jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]]),
    reward=jnp.zeros((2, 2, 2)),
    initial=jnp.array([0.5, 0.5]),
    discount=0.5,
)
STAY_IN_1 = jnp.zeros((2, 2, 2)).at[1, 0, 1].set(1.0)
DISTANCES = {
    "val_w2": (rd.val, rd.WEIGHTED_L2),
    "val_l2": (rd.val, rd.L2),
    "val_l1": (rd.val, rd.L1),
    "val_linf": (rd.val, rd.LINF),
    "minimal_l2": (rd.minimal, rd.L2),
    "epic": (rd.epic, rd.L2),
    "dard": (rd.dard, rd.L2),
    "val_potential": (rd.val_potential, rd.WEIGHTED_L1),
    "none": (rd.identity, rd.L2),
}


def draw(key, *, states=5, actions=3, discount=0.9, make=softmax_transitions):
    """An MDP and three rewards."""
    first, second = jax.random.split(key)
    mdp = without_rewards(make(first, states, actions), discount)
    return mdp, jax.random.normal(second, (3, states, actions, states))


@cache
def batch(seed, count=200, **settings):
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.jit(jax.vmap(partial(draw, **settings)))(keys)


@cache
def distances(name):
    """`(r1, r2, mdp) -> distance` over a batch."""
    canonicalise, norm = DISTANCES[name]
    distance = partial(rd.starc_distance, canonicalise=canonicalise, norm=norm)
    return jax.jit(jax.vmap(lambda r1, r2, mdp: distance(r1, r2, mdp)))


@jax.jit
def equivalents(mdps, rewards):
    """The rewards scaled, shaped and redistributed."""

    def one(mdp, reward, key):
        change, potential, scale = jax.random.split(key, 3)
        other = rd.redistributed(reward, jax.random.normal(change, reward.shape), mdp)
        shift = 5 * jax.random.normal(potential, mdp.initial.shape)
        size = jax.random.uniform(scale, minval=0.1, maxval=10)
        return size * rd.potential_shaped(other, shift, mdp.discount)

    return jax.vmap(one)(mdps, rewards, jax.random.split(jax.random.key(9), len(rewards)))


def test_val_by_hand():
    # The uniform policy's values are V0 = 1/4 and V1 = 3/4 (V0 = mean(V) / 2, V1 = V0 + 1/2).
    canonical = rd.val(STAY_IN_1, STAY_OR_MOVE)
    advantages = np.array([[-0.125, 0.125], [0.625, -0.625]])
    np.testing.assert_allclose(canonical, np.stack([advantages] * 2, axis=2), atol=1e-6)
    # R + V(s') / 2 - V(s), less what centring takes: nothing here.
    shaped = rd.val_potential(STAY_IN_1, STAY_OR_MOVE)
    np.testing.assert_allclose(shaped[1, 0], [0.125 - 0.75, 1 + 0.375 - 0.75], atol=1e-6)
    np.testing.assert_allclose(shaped[0, 1], [0.125 - 0.25, 0.375 - 0.25], atol=1e-6)


def test_epic_by_hand():
    # Mean rewards of the states: 0 and 1/4; over all, 1/8.
    canonical = rd.epic(STAY_IN_1, STAY_OR_MOVE)
    np.testing.assert_allclose(canonical[1, 0], [-0.25 - 1 / 16, 1 + 0.125 - 0.25 - 1 / 16])
    np.testing.assert_allclose(canonical[0, 1], [-1 / 16, 0.125 - 1 / 16])


def test_dard_by_hand():
    # E_A,S' R(s, A, S') is 0 and 1/2. R(S', A, S'') is 1 only for S' = 1, A = 0, S'' = 1:
    # staying leads from s = 1 to 1, and from s' = 1 to 1; so only s = s' = 1 has it, in half.
    canonical = rd.dard(STAY_IN_1, STAY_OR_MOVE)
    np.testing.assert_allclose(canonical[1, 0], [-0.5, 1 + 0.25 - 0.5 - 0.25], atol=1e-7)
    np.testing.assert_allclose(canonical[0, 1], [0, 0.25], atol=1e-7)


def test_norms_by_hand():
    reward = jnp.array([[[3.0, -8.0]], [[0.0, 4.0]]])
    mdp = without_rewards(jnp.array([[[1.0, 0.0]], [[0.5, 0.5]]]), 0.9)
    sizes = {rd.L1: 15, rd.L2: np.sqrt(89), rd.LINF: 8, rd.WEIGHTED_L1: 5}
    sizes |= {rd.WEIGHTED_L2: np.sqrt(17), rd.lp_norm(np.inf, weighted=True): 4}
    for norm, size in sizes.items():
        np.testing.assert_allclose(norm(reward, mdp), size, rtol=1e-6)
    with pytest.raises(ValueError, match="order: expected a number of at least 1, found 0"):
        rd.lp_norm(0)


def test_the_distance_by_hand():
    # Moving to state 1 pays: the advantages are those of staying in it, mirrored by state.
    other = jnp.zeros((2, 2, 2)).at[0, 1, 1].set(1.0)
    a1 = np.array([[-0.125, 0.125], [0.625, -0.625]])
    # V0 = V1 + 1/2, V1 = (V0 + V1) / 4: V1 = 1/4, V0 = 3/4.
    a2 = np.array([[0.375 - 0.75, 1.125 - 0.75], [0.125 - 0.25, 0.375 - 0.25]])
    expected = np.linalg.norm(a1 / np.linalg.norm(a1) - a2 / np.linalg.norm(a2)) / 2
    distance = rd.starc_distance(STAY_IN_1, other, STAY_OR_MOVE)
    np.testing.assert_allclose(distance, expected, rtol=1e-5)
    mixed = rd.starc_distance(STAY_IN_1, other, STAY_OR_MOVE, distance=rd.lp_norm(np.inf))
    unit1, unit2 = a1 / np.linalg.norm(a1), a2 / np.linalg.norm(a2)
    np.testing.assert_allclose(mixed, np.abs(unit1 - unit2).max() / 2, rtol=1e-5)


def test_minimal_is_the_least_norm_of_its_class():
    for make, discount in [(softmax_transitions, 0.9), (deterministic_transitions, 0.99)]:
        mdps, several = batch(1, make=make, discount=discount)
        mdp, rewards = jax.tree.map(lambda leaf: leaf[0], mdps), several[0]
        tau, reward = np.float64(mdp.transition), np.float64(rewards[0])
        states, actions, _ = tau.shape
        # Every direction that the class allows: potentials, and changes that average to 0.
        shaping = [
            np.asarray(rd.potential_shaped(jnp.zeros_like(rewards[0]), row, mdp.discount))
            for row in jnp.eye(states)
        ]
        spread = []
        for s, a in itertools.product(range(states), range(actions)):
            for direction in np.linalg.svd(tau[s, a][None])[2][1:]:
                spread.append(np.zeros_like(reward))
                spread[-1][s, a] = direction
        basis = np.stack([row.ravel() for row in shaping + spread], axis=1)
        best, *_ = np.linalg.lstsq(basis, reward.ravel(), rcond=None)
        expected = reward.ravel() - basis @ best
        np.testing.assert_allclose(rd.minimal(rewards[0], mdp).ravel(), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("make", "discount"), [(softmax_transitions, 0.9), (deterministic_transitions, 0.99)]
)
def test_starc_ignores_what_policies_ignore(make, discount):
    mdps, rewards = batch(1, make=make, discount=discount)
    same = equivalents(mdps, rewards[:, 0])
    for name in ("val_w2", "val_l1", "val_linf", "minimal_l2"):
        assert distances(name)(rewards[:, 0], same, mdps).max() < 1e-4, name
    for name in ("epic", "dard", "none"):
        assert distances(name)(rewards[:, 0], same, mdps).min() > 0.02, name


def test_epic_and_dard_ignore_potentials():
    mdps, rewards = batch(2)
    potentials = jax.random.normal(jax.random.key(3), (200, 5))
    shape = jax.vmap(partial(rd.potential_shaped, discount=0.9))
    for name in ("epic", "dard", "val_potential", "minimal_l2"):
        moved = distances(name)(rewards[:, 0], 3 * shape(rewards[:, 0], potentials), mdps)
        assert moved.max() < 1e-5, name
    assert distances("none")(rewards[:, 0], shape(rewards[:, 0], potentials), mdps).min() > 0.05


@pytest.mark.parametrize("name", DISTANCES)
def test_metric_axioms(name):
    mdps, rewards = batch(4)
    measure, (r1, r2, r3) = distances(name), jnp.moveaxis(rewards, 1, 0)
    np.testing.assert_allclose(measure(r1, r2, mdps), measure(r2, r1, mdps), atol=1e-6)
    assert (measure(r1, r3, mdps) <= measure(r1, r2, mdps) + measure(r2, r3, mdps) + 1e-6).all()
    np.testing.assert_allclose(measure(r1, -r1, mdps), 1, atol=1e-5)
    np.testing.assert_allclose(measure(r1, 2 * r1, mdps), 0, atol=1e-6)
    assert (measure(r1, r2, mdps) <= 1 + 1e-6).all()
    assert (measure(r1, r2, mdps) > 0.01).all()


def test_val_is_the_same_weighted_or_not():
    mdps, rewards = batch(4)
    plain, weighted = (
        distances(name)(rewards[:, 0], rewards[:, 1], mdps) for name in ("val_l2", "val_w2")
    )
    np.testing.assert_allclose(plain, weighted, atol=1e-6)


def test_trivial_rewards_are_zero():
    mdps, rewards = batch(1, make=deterministic_transitions, discount=0.99)
    zeros = jnp.zeros_like(rewards[:, 0])
    trivial = {"zero": zeros, "constant": zeros + 7.0, "shaped": equivalents(mdps, zeros)}
    lost = jax.jit(jax.vmap(rd.regrets))
    for kind, reward in trivial.items():
        for name in ("val_w2", "val_l1", "minimal_l2"):
            np.testing.assert_allclose(distances(name)(reward, reward, mdps), 0, atol=0)
            far = distances(name)(reward, rewards[:, 0], mdps)
            np.testing.assert_allclose(far, 0.5, atol=1e-5, err_msg=f"{name} {kind}")
        np.testing.assert_array_equal(lost(reward, rewards[:, 0], mdps).first, 0)


def test_regrets_by_hand():
    # Opposite wishes: to stay in state 1 for ever, or to leave it and keep out of it.
    lost = rd.regrets(STAY_IN_1, -STAY_IN_1, STAY_OR_MOVE)
    np.testing.assert_allclose(lost, [1, 1], rtol=1e-5)
    np.testing.assert_array_equal(rd.regrets(STAY_IN_1, 3 * STAY_IN_1, STAY_OR_MOVE), [0, 0])
    # Under `other` the best policy moves in both states. J1 of it is 0, the lowest; of the best 1.5.
    # Under `other`, moving from 0 pays 1 every second step: V0 = 4/3, V1 = 2/3, J2 = 1; staying in
    # 1 earns 1 once from state 0: J2 = 1/2.
    other = jnp.zeros((2, 2, 2)).at[0, 1, 1].set(1.0)
    np.testing.assert_allclose(rd.regrets(STAY_IN_1, other, STAY_OR_MOVE), [1, 0.5], rtol=1e-5)


def test_epic_is_blind_to_what_is_possible():
    mdp = without_rewards(deterministic_transitions(jax.random.key(7), 6, 2), 0.9)
    keys = jax.random.split(jax.random.key(8))
    wish, noise = (jax.random.normal(key, mdp.transition.shape) for key in keys)
    common = jnp.where(mdp.transition > 0, 0.0, 1000 * noise)
    r1, r2 = common + wish, common - wish * (mdp.transition > 0)
    assert rd.starc_distance(r1, r2, mdp, canonicalise=rd.epic, norm=rd.L2) < 0.01
    np.testing.assert_allclose(rd.starc_distance(r1, r2, mdp), 1, atol=1e-3)
    np.testing.assert_allclose(rd.regrets(r1, r2, mdp), [1, 1], atol=1e-3)


def occupancies(mdp, policies):
    """Discounted visits of (s, a), float64, [policy, state * action], by NumPy."""
    tau, initial = np.float64(mdp.transition), np.float64(mdp.initial)
    flow = np.einsum("psa,sat->pst", policies, tau)
    system = np.eye(len(initial)) - mdp.discount * flow.transpose(0, 2, 1)
    visits = np.linalg.solve(system, np.broadcast_to(initial, flow.shape[:2])[..., None])
    return (visits * policies).reshape(len(policies), -1)


STATES, ACTIONS, DISCOUNT = 3, 2, 0.9
POLICIES = np.eye(ACTIONS)[np.array(list(itertools.product(range(ACTIONS), repeat=STATES)))]


@pytest.fixture(scope="module")
def small():
    """2000 MDPs with pairs of rewards, near and far, their distances and advantages."""
    mdps, rewards = batch(10, 2000, states=STATES, actions=ACTIONS, discount=DISCOUNT)
    mix = jnp.linspace(0.02, 1, 2000)[:, None, None, None]
    r1, r2 = rewards[:, 0], (1 - mix) * rewards[:, 0] + mix * rewards[:, 1]
    canonical = jax.jit(jax.vmap(rd.val))
    levels = [np.float64(canonical(r, mdps)[..., 0]).reshape(2000, -1) for r in (r1, r2)]
    far = np.float64(distances("val_w2")(r1, r2, mdps))
    lost = jax.jit(jax.vmap(rd.regrets))(r1, r2, mdps)
    each = [jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], mdps) for i in range(2000)]
    return each, levels, far, np.float64(lost)


def test_regrets_over_every_deterministic_policy(small):
    mdps, levels, _, lost = small
    for i, mdp in enumerate(mdps):
        # Returns, up to a constant, are advantages weighted by visits.
        first, second = (occupancies(mdp, POLICIES) @ level[i] for level in levels)
        expected = [
            (mine.max() - mine[other.argmax()]) / np.ptp(mine)
            for mine, other in ((first, second), (second, first))
        ]
        np.testing.assert_allclose(lost[:, i], expected, atol=1e-3)


def test_a_small_distance_bounds_the_regret(small):
    """Soundness. For unit vectors s of advantages A, and visits x of policies, J2(x2) >= J2(x1):

        J1(x1) - J1(x2) = |A1| <x1 - x2, s1> <= |A1| <x1 - x2, s1 - s2> <= |A1| |x1 - x2| 2 d

    and the range of J1 is at least that of changing the uniform policy in one state, |A1| times
    `min initial / sqrt(states actions)`, while `|x1 - x2| <= 2 / (1 - discount)`.
    """
    mdps, levels, far, _ = small
    bound = 4 * np.sqrt(STATES * ACTIONS) * STATES / (1 - DISCOUNT)
    ratios = []
    for i, mdp in enumerate(mdps):
        visits = occupancies(mdp, POLICIES)
        first, second = (visits @ level[i] for level in levels)
        apart = np.linalg.norm(visits[:, None] - visits[None], axis=-1)
        allowed = second[None, :] >= second[:, None]
        lost = np.where(allowed, first[:, None] - first[None, :], 0)
        tight = np.linalg.norm(levels[0][i]) * apart * 2 * far[i]
        assert (lost <= tight * 1.001 + 1e-4).all()
        ratios.append(lost.max() / np.ptp(first) / far[i])
    assert max(ratios) <= bound
    # The bound is not met by distances that are large whatever the rewards.
    assert max(ratios) > 0.5


def test_a_small_regret_bounds_the_distance(small):
    """Completeness: two policies exist on which the rewards disagree in proportion to the distance.

    Visits move within the orthogonal complement of shaping; there lie projections p of the unit
    advantages. From the uniform policy, a step along `p1 / |p1| - p2 / |p2|` raises J1 and lowers J2.
    """
    mdps, levels, far, _ = small
    for i, mdp in enumerate(mdps):
        tau = np.float64(mdp.transition).reshape(-1, STATES)
        gradients = DISCOUNT * tau - np.repeat(np.eye(STATES), ACTIONS, axis=0)
        basis = np.linalg.qr(gradients)[0]
        project = np.eye(len(tau)) - basis @ basis.T
        # Advantages of the uniform policy: their actions sum to 0 in every state.
        zero_sum = np.kron(np.eye(STATES), np.array([[1], [-1]]) / np.sqrt(2))
        smallest = np.linalg.svd(project @ zero_sum)[1].min()
        size = np.linalg.norm(levels[0][i])
        units = [level[i] / np.linalg.norm(level[i]) for level in levels]
        directions = [project @ unit / np.linalg.norm(project @ unit) for unit in units]
        step = directions[0] - directions[1]
        uniform = occupancies(mdp, np.full((1, STATES, ACTIONS), 1 / ACTIONS))[0]
        along = step / np.linalg.norm(step)
        length = uniform.min() / np.abs(along).max()
        policy = (uniform + length * along).reshape(STATES, ACTIONS)
        assert policy.min() > -1e-9
        moved = occupancies(mdp, (policy / policy.sum(axis=1, keepdims=True))[None])[0]
        gained, lost = ((moved - uniform) @ level[i] for level in levels)
        assert lost < 0 < gained
        assert gained >= 0.999 * length * smallest**2 / 2 * size * far[i] - 1e-6


def test_distances_batch():
    mdps, rewards = batch(4)
    together = distances("val_w2")(rewards[:, 0], rewards[:, 1], mdps)
    first = jax.tree.map(lambda leaf: leaf[0], mdps)
    alone = jax.jit(rd.starc_distance)(rewards[0, 0], rewards[0, 1], first)
    np.testing.assert_allclose(together[0], alone, rtol=1e-5)
    assert together.dtype == jnp.float32
