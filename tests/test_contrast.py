"""Spoilt responses, corners of a hull, rewards of neighbours: by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import ConvexHull

from rewardjax.data.selection import hull_vertices, principal_plane
from rewardjax.rewards.retrieval import cosines, fused_rewards
from rewardjax.tasks.contrast import noised, similar_requests, spoilt
from rewardjax.tasks.preference_world import PreferenceWorld

WORLD = PreferenceWorld(themes=5, requested=2, full_coverage=6, gaudy_max=0, min_length=8)
THEME = WORLD.prompts(jax.random.key(0), 64).info["theme"]
TOKENS, VALID, _ = WORLD.writers(jax.random.key(1), WORLD.asking(THEME))
CONTENT = np.asarray(VALID & (WORLD.eos != TOKENS))


def test_a_similar_request_has_another_last_theme():
    other = np.asarray(similar_requests(WORLD, jax.random.key(2), THEME))
    np.testing.assert_array_equal(other[:, :-1], THEME[:, :-1])
    assert not (other[:, -1:] == np.asarray(THEME)).any()
    assert len(np.unique(other[:, -1])) == WORLD.themes


def test_a_clumsy_response_has_poor_tokens():
    found = np.asarray(
        spoilt(WORLD, jax.random.key(3), TOKENS, VALID, THEME, share=0.3, clumsy=1.0)
    )
    changed = found != np.asarray(TOKENS)
    assert not changed[~CONTENT].any()
    assert 0.1 < changed[CONTENT].mean() < 0.4
    poor = (found == WORLD.first_neutral) | (found == WORLD.first_negative)
    repeats = (found[:, :, None] == np.asarray(TOKENS)[:, None, :]).any(-1)
    assert (poor | repeats)[changed].all()
    assert poor[changed].any()
    gold = [WORLD.gold(x, VALID, {"theme": THEME}) for x in (TOKENS, jnp.asarray(found))]
    assert gold[0].mean() > gold[1].mean() + 0.1


def test_other_spoilt_responses_name_one_theme_that_was_not_requested():
    found = np.asarray(
        spoilt(WORLD, jax.random.key(3), TOKENS, VALID, THEME, share=0.0, clumsy=0.0)
    )
    changed = found != np.asarray(TOKENS)
    assert (changed.sum(1) <= 1).all()
    assert changed.sum() > 40  # one each, but where it is drawn again
    new = (found[changed] - WORLD.first_theme_token) // WORLD.tokens_per_theme
    rows = np.nonzero(changed)[0]
    assert (new < WORLD.themes).all()
    assert not (new[:, None] == np.asarray(THEME)[rows]).any()


def test_noise_replaces_so_many_words():
    found = np.asarray(noised(WORLD, jax.random.key(4), TOKENS, VALID, count=2))
    changed = found != np.asarray(TOKENS)
    assert not changed[~CONTENT].any()
    assert (changed.sum(1) <= 2).all()
    assert changed.sum() > 100
    assert (found[CONTENT] >= WORLD.first_theme_token).all()
    np.testing.assert_array_equal(noised(WORLD, jax.random.key(4), TOKENS, VALID, count=0), TOKENS)


def test_corners_of_a_hull():
    square = [[0, 0], [2, 0], [2, 2], [0, 2]]
    inside, edge, twin = [1.0, 1.0], [1.0, 0.0], [2.0, 2.0]
    points = jnp.array([[*square, inside], [*square, edge], [*square, twin]], jnp.float32)
    expected = [[1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    np.testing.assert_array_equal(hull_vertices(points), expected)


def test_corners_are_those_of_qhull():
    points = np.random.default_rng(0).normal(size=(20, 6, 2))
    expected = np.zeros((20, 6), bool)
    for row, kept in zip(points, expected, strict=True):
        kept[ConvexHull(row).vertices] = True
    np.testing.assert_array_equal(hull_vertices(jnp.asarray(points, jnp.float32)), expected)


def test_points_on_a_line_are_all_kept():
    line = jnp.array([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0]])
    assert hull_vertices(line).all()
    assert hull_vertices(jnp.ones((4, 2))).all()
    assert hull_vertices(line[:2]).all()


def test_the_principal_plane_keeps_what_is_in_it():
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(6, 2)).astype(np.float32)
    basis = np.linalg.qr(rng.normal(size=(5, 2)))[0].astype(np.float32)
    found = principal_plane(jnp.asarray(flat @ basis.T + 3.0))

    def distances(x):
        return np.linalg.norm(np.asarray(x)[:, None] - np.asarray(x)[None], axis=-1)

    np.testing.assert_allclose(distances(found), distances(flat), atol=1e-5)
    np.testing.assert_array_equal(hull_vertices(found), hull_vertices(jnp.asarray(flat)))


def test_cosines():
    a, b = jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.array([[1.0, 0.0], [-6.0, -8.0]])
    np.testing.assert_allclose(cosines(a, b), [[0.6, -1.0], [0.0, 0.0]], atol=1e-6)


def test_a_reward_is_fused_with_its_nearest_neighbours():
    similarity = jnp.array([[0.95, 0.5, 0.92, 0.99], [0.1, 0.2, 0.3, 0.4]])
    remembered, rewards = jnp.array([1.0, 10.0, -1.0, 2.0]), jnp.array([0.5, 0.7])
    found = fused_rewards(rewards, similarity, remembered, count=2)
    np.testing.assert_allclose(found, [(0.5 + 0.99 * 2 + 0.95) / (1 + 0.99 + 0.95), 0.7], rtol=1e-6)
    three = fused_rewards(rewards, similarity, remembered, count=5)
    expected = (0.5 + 0.99 * 2 + 0.95 - 0.92) / (1 + 0.99 + 0.95 + 0.92)
    np.testing.assert_allclose(three, [expected, 0.7], rtol=1e-6)
    allowed = jnp.array([[True, True, True, False]] * 2)
    without = fused_rewards(rewards, similarity, remembered, count=1, allowed=allowed)
    np.testing.assert_allclose(without[0], (0.5 + 0.95) / 1.95, rtol=1e-6)
