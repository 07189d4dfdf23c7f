"""Screens: where their elements lie, that an instruction means exactly one, and what answers say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewardjax.tasks.screens import BACKGROUND, COLOURS, NAMES, SIDE, SIZES, TYPES, Screens, picture
from rewardjax.trajectory import respond

TASK = Screens(patches=4)
N = 300
draw = jax.jit(TASK.prompts, static_argnums=1)
PROMPTS = draw(jax.random.key(0), N)
INFO = jax.tree.map(np.asarray, PROMPTS.info)


def elements(row):
    """(box, type, colour) of each element of a screen."""
    for box, there, code in zip(INFO["boxes"][row], INFO["present"][row], INFO["codes"][row]):
        if there:
            yield box, *NAMES[code].split(":")


def test_elements_lie_on_the_screen_and_apart():
    for row in range(N):
        cover = np.zeros((SIDE, SIDE), int)
        found = list(elements(row))
        assert 5 <= len(found) <= 8
        for (x1, y1, x2, y2), _, _ in found:
            assert 0 <= x1 < x2 <= SIDE - 1
            assert 0 <= y1 < y2 <= SIDE - 1
            cover[y1:y2, x1:x2] += 1
        assert cover.max() == 1


def test_an_instruction_selects_exactly_one():
    for row in range(N):
        words = TASK.decode(PROMPTS.tokens[row]).split()
        assert words[0] == "<bos>"
        meant = [box for box, kind, colour in elements(row) if [f"{kind}:{colour}"] == words[1:]]
        assert len(meant) == 1
        np.testing.assert_array_equal(meant[0], INFO["box"][row])


def test_sizes_differ_very_much_and_all_are_asked_for():
    area = (INFO["box"][:, 2] - INFO["box"][:, 0]) * (INFO["box"][:, 3] - INFO["box"][:, 1])
    ranges = {"large": (70, 140), "middle": (20, 35), "tiny": (4, 9)}
    for i, name in enumerate(SIZES):
        found = area[INFO["size"] == i]
        assert len(found) > 20
        assert ranges[name][0] <= found.min() <= found.max() <= ranges[name][1]


def test_pixels_show_the_boxes():
    for row in range(20):
        expected = np.full((SIDE, SIDE, 3), BACKGROUND)
        for (x1, y1, x2, y2), kind, colour in elements(row):
            white = TYPES[kind]
            expected[y1:y2, x1:x2] = white + (1 - white) * np.array(COLOURS[colour])
        np.testing.assert_allclose(INFO["image"][row], expected, atol=1e-6)
    assert INFO["image"].min() >= 0
    assert INFO["image"].max() <= 1


def test_without_a_crowd_only_the_named_element_stays():
    prompts = draw(jax.random.key(0), N, crowd=0.0)
    assert jnp.sum(prompts.info["present"], axis=1).tolist() == [1] * N
    np.testing.assert_array_equal(prompts.tokens, PROMPTS.tokens)
    here = jnp.argmax(prompts.info["present"], axis=1)
    boxes = jnp.take_along_axis(prompts.info["boxes"], here[:, None, None], axis=1)[:, 0]
    np.testing.assert_array_equal(boxes, prompts.info["box"])


def test_demonstrations_answer_with_the_box():
    write = jax.jit(TASK.demonstrations, static_argnames="noise")
    boxes, proper = TASK.answered(respond(PROMPTS, *write(jax.random.key(1), PROMPTS)))
    assert jnp.all(proper)
    np.testing.assert_array_equal(boxes, INFO["box"])
    boxes, proper = TASK.answered(respond(PROMPTS, *write(jax.random.key(1), PROMPTS, noise=3)))
    assert jnp.all(proper & jnp.all(boxes[:, 2:] >= boxes[:, :2], axis=1))
    assert float(jnp.mean(jnp.abs(boxes - INFO["box"]))) == pytest.approx(12 / 7, abs=0.25)


def test_surveys_name_and_locate_every_element_once():
    traj = jax.jit(TASK.surveys, static_argnums=1)(jax.random.key(0), N)
    info = jax.tree.map(np.asarray, traj.info)
    np.testing.assert_array_equal(jnp.sum(traj.mask, axis=1), 5 * info["present"].sum(axis=1))
    for row in range(30):
        text = (
            TASK.decode(traj.tokens[row][traj.valid[row]]).removeprefix("<bos>").split("<eos>")[:-1]
        )
        there = info["present"][row]
        expected = {
            " ".join([NAMES[code], *map(str, box)])
            for code, box in zip(info["codes"][row][there], info["boxes"][row][there])
        }
        assert {line.strip() for line in text} == expected
        assert len(text) == len(expected)
        names = np.asarray(traj.tokens[row])[~np.asarray(traj.mask[row])]
        assert np.all((names < TASK.first_coordinate) | (names >= TASK.first_name))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([3, 4, 9, 8, "eos"], [3, 4, 9, 8]),
        ([9, 4, 3, 8, "eos"], [9, 4, 3, 8]),  # inverted: the form is kept
        ([3, 4, 9, "eos"], None),  # too few
        ([3, 4, 9, 8, 5], None),  # no end
        ([3, 4, "eos", 9, 8], None),
        ([3, 4, "icon", 8, "eos"], None),  # not a coordinate
        ([], None),
    ],
)
def test_answers_are_read_strictly(row, expected):
    ids = {"eos": TASK.eos, "icon": TASK.first_name}
    row = [ids[x] if isinstance(x, str) else TASK.first_coordinate + x for x in row]
    tokens = jnp.array([row + [0] * (5 - len(row))])
    prompts = jax.tree.map(lambda x: x[:1], PROMPTS)
    box, proper = TASK.answered(respond(prompts, tokens, jnp.arange(5)[None] < len(row)))
    assert proper.tolist() == [expected is not None]
    assert box.tolist() == [expected or [0, 0, 0, 0]]


def test_outlines_are_drawn_at_the_edges():
    shown = picture(np.zeros((8, 8, 3)), [(np.array([2, 1, 5, 4]), (1.0, 0.0, 0.0))], scale=2)
    assert shown.shape == (16, 16, 3)
    lit = np.argwhere(shown[..., 0] == 1)
    assert lit.min(axis=0).tolist() == [2, 4]
    assert lit.max(axis=0).tolist() == [8, 10]
    assert len(lit) == 2 * 7 + 2 * 7 - 4
