"""Grounding rewards: by hand, against NumPy in matrix form, and what must hold for all boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.rewards import grounding as g

GOLD = jnp.array([[4.0, 6.0, 12.0, 10.0]])  # centre (8, 8); deviations 4 and 2 at alpha 0.5
REWARDS = {
    "point": g.gaussian_point,
    "coverage": g.gaussian_coverage,
    "hit": g.point_in_box,
    "iou": g.iou,
    "distance": lambda p, q: g.distance_reward(p, q, reach=40.0),
}


def moved(x, y, box=GOLD):
    return box + jnp.array([[x, y, x, y]], float)


def random_boxes(seed, n=200):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 20, (n, 2))
    return jnp.asarray(np.concatenate([low, low + rng.uniform(1, 12, (n, 2))], 1), jnp.float32)


def test_point_reward_by_hand():
    # (4 / 4)^2 + (2 / 2)^2 = 2, so exp(-1)
    np.testing.assert_allclose(g.gaussian_point(moved(4, 2), GOLD), [np.exp(-1)], rtol=1e-6)
    np.testing.assert_allclose(g.gaussian_point(moved(4, 2), GOLD, sigma=2.0), [np.exp(-2.5)], 1e-6)
    np.testing.assert_allclose(
        g.gaussian_point(moved(4, 0), GOLD, alpha=1.0), [np.exp(-0.125)], 1e-6
    )
    # The size of the predicted box does not matter, only its centre.
    np.testing.assert_allclose(
        g.gaussian_point(jnp.array([[8.0, 8, 8, 8]]), GOLD), [1.0], rtol=1e-6
    )


def test_coverage_by_hand():
    # Equal sizes, moved by (4, 2): D = (16 / 16 + 4 / 4) / 8.
    np.testing.assert_allclose(g.gaussian_coverage(moved(4, 2), GOLD), [np.exp(-0.25)], rtol=1e-6)
    # Same centre, twice as wide: mean variance (64 + 16) / 2 = 40 against a geometric mean of 32.
    wide = jnp.array([[0.0, 6.0, 16.0, 10.0]])
    np.testing.assert_allclose(g.gaussian_coverage(wide, GOLD), [np.sqrt(32 / 40)], rtol=1e-6)


def coverage_reference(p, q, alpha):
    def gaussian(box):
        centre = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
        return centre, np.diag([(alpha * (box[2] - box[0])) ** 2, (alpha * (box[3] - box[1])) ** 2])

    (m, s), (n, t) = gaussian(p), gaussian(q)
    mean, d = (s + t) / 2, m - n
    root = np.sqrt(np.linalg.det(s) * np.linalg.det(t))
    distance = d @ np.linalg.inv(mean) @ d / 8 + np.log(np.linalg.det(mean) / root) / 2
    return np.exp(-distance)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 3.0])
def test_coverage_equals_the_matrix_form(alpha):
    p, q = random_boxes(0), random_boxes(1)
    pairs = zip(np.asarray(p, float), np.asarray(q, float))
    expected = [coverage_reference(a, b, alpha) for a, b in pairs]
    np.testing.assert_allclose(
        g.gaussian_coverage(p, q, alpha=alpha), expected, rtol=2e-4, atol=1e-7
    )


def test_coverage_is_one_for_equal_boxes_only_and_symmetric():
    p, q = random_boxes(2), random_boxes(3)
    np.testing.assert_allclose(g.gaussian_coverage(p, p), np.ones(len(p)), atol=1e-6)
    assert float(jnp.max(g.gaussian_coverage(p, q))) < 0.999
    for change in ([1.0, 0, 1, 0], [-1.0, 0, 1, 0], [0.0, 0, 0, 1]):  # moved, widened, stretched
        assert float(jnp.max(g.gaussian_coverage(p + jnp.array(change), p))) < 0.9995
    np.testing.assert_allclose(g.gaussian_coverage(p, q), g.gaussian_coverage(q, p), rtol=1e-5)


@pytest.mark.parametrize("name", ["point", "coverage", "distance"])
def test_dense_rewards_fall_with_distance(name):
    steps = jnp.arange(9.0)[:, None]
    boxes = GOLD + steps * jnp.array([[1.0, 0.5, 1.0, 0.5]])
    values = np.asarray(REWARDS[name](boxes, jnp.repeat(GOLD, 9, axis=0)))
    assert values[0] == pytest.approx(1.0, abs=1e-6)
    assert np.all(np.diff(values) < 0)
    assert np.all(values > 0)


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_are_between_0_and_1_with_finite_gradients(name):
    p, q = random_boxes(4), random_boxes(5)
    values = REWARDS[name](p, q)
    assert jnp.all((values >= 0) & (values <= 1))
    gradient = jax.grad(lambda p: jnp.sum(REWARDS[name](p, q)))(p)
    assert jnp.all(jnp.isfinite(gradient))


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("box", [[12.0, 6, 4, 10], [4.0, 10, 12, 6], [12.0, 10, 4, 6]])
def test_inverted_boxes_earn_nothing(name, box):
    assert REWARDS[name](jnp.array([box]), GOLD).tolist() == [0.0]


def test_boxes_without_extent_are_finite():
    line, point = jnp.array([[8.0, 6, 8, 10]]), jnp.array([[8.0, 8, 8, 8]])
    for box in (line, point):
        assert g.gaussian_coverage(box, GOLD).tolist() == [0.0]
        assert g.iou(box, GOLD).tolist() == [0.0]
        assert g.point_in_box(box, GOLD).tolist() == [1.0]
        np.testing.assert_allclose(g.gaussian_point(box, GOLD), [1.0], rtol=1e-6)
    assert g.iou(point, point).tolist() == [0.0]
    assert jnp.isfinite(g.gaussian_coverage(point, point)).all()


def test_hits_iou_and_distance_by_hand():
    edge = moved(4, 0)  # its centre is on the gold box's edge
    assert g.point_in_box(edge, GOLD).tolist() == [1.0]
    assert g.point_in_box(moved(4.1, 0), GOLD).tolist() == [0.0]
    np.testing.assert_allclose(g.iou(edge, GOLD), [16 / 48], rtol=1e-6)
    assert g.iou(moved(9, 0), GOLD).tolist() == [0.0]
    np.testing.assert_allclose(g.distance(moved(3, 4), GOLD), [5.0], rtol=1e-6)
    np.testing.assert_allclose(g.distance_reward(moved(3, 4), GOLD, reach=20.0), [0.75], rtol=1e-6)
    assert g.distance_reward(moved(30, 0), GOLD, reach=20.0).tolist() == [0.0]


def test_one_sigma_for_all_ignores_sizes():
    tiny = jnp.array([[7.0, 7, 9, 9]])
    found = [g.gaussian_coverage(box, moved(2, 0), sigma=2.0) for box in (GOLD, tiny)]
    np.testing.assert_allclose(found, [[np.exp(-0.125)]] * 2, rtol=1e-6)
