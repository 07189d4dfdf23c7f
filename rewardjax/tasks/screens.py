"""Screens with elements of very different sizes, and instructions that name one of them.

A screen has 5 to 8 rectangles that do not overlap: one large, two or three of middle size, two to
four tiny. Each differs from all others in its type (a bright button or a pale icon) or its colour, and
an instruction names both: `<bos> <image> ... <image> icon:red`. The answer is the element's box,
`x1 y1 x2 y2 <eos>`, one token a coordinate. All methods but `decode` and `picture` are pure functions
of keys and arrays and can be jitted (`n` is static).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from rewardjax.tasks.spelling import spell
from rewardjax.trajectory import Prompts, Trajectory

SPECIAL = ("<pad>", "<bos>", "<eos>", "<image>")
SIDE = 32  # pixels; edges lie at 0 .. SIDE - 1
TYPES = {"button": 0.0, "icon": 0.5}  # and the share of white in their colour
COLOURS = {"red": (1.0, 0.1, 0.1), "green": (0.1, 0.8, 0.1), "blue": (0.1, 0.2, 1.0)} | {
    "yellow": (1.0, 0.9, 0.1)
}
NAMES = tuple(f"{kind}:{colour}" for kind in TYPES for colour in COLOURS)
BACKGROUND = 0.1
SIZES = ("large", "middle", "tiny")
# Fewest and most pixels of width and height. Placed from large to tiny there is always room: each
# placed box of w x h forbids at most (w + W - 1)(h + H - 1) places to a next one of W x H, of which
# there are (32 - W)(32 - H). Tightest is it for the third of middle size: 20 * 14 + 2 * 13 * 9 < 25 * 27.
EXTENTS = (((10, 14), (7, 10)), ((5, 7), (4, 5)), ((2, 3), (2, 3)))
SIZE_OF = np.array([0, 1, 1, 1, 2, 2, 2, 2])
OPTIONAL = np.array([0, 0, 0, 1, 0, 0, 1, 1], bool)


@dataclass(frozen=True)
class Screens:
    """The task and its vocabulary.

    Attributes:
      patches: placeholder tokens in a prompt, one for each embedding that the model makes of an image.
    """

    patches: int = 16

    pad, bos, eos, image_token = 0, 1, 2, 3
    first_coordinate = len(SPECIAL)
    first_name = first_coordinate + SIDE
    vocabulary = (*SPECIAL, *map(str, range(SIDE)), *NAMES)
    vocab_size = len(vocabulary)
    max_response = 5

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt."""
        return self.patches + 2

    def decode(self, ids: Int[Array, "time"] | np.ndarray | list[int]) -> str:
        """The tokens as text, without padding and placeholders; ValueError for an unknown id."""
        row = np.asarray(ids)
        return spell(row[row != self.image_token], self.vocabulary, self.pad)

    def prompts(
        self, key: Key[Array, ""], n: int, *, crowd: float | Float[Array, "..."] = 1.0
    ) -> Prompts:
        """Draw `n` screens with an instruction each.

        `info` holds `image` [n, 32, 32, 3] in [0, 1]; `box` [n, 4], the named element's x1, y1, x2
        and y2 in pixels, x2 and y2 exclusive; `size` [n], its index in `SIZES`; and of all elements
        `boxes` [n, 8, 4], `present` [n, 8] and `codes` [n, 8], their type and colour as one number.

        Args:
          key: a typed key.
          n: number of screens.
          crowd: probability that an element stays which is not the one named (easier screens).
        """
        screen_key, target_key, crowd_key = jax.random.split(key, 3)
        boxes, present, codes = jax.vmap(draw_screen)(jax.random.split(screen_key, n))
        target = jax.random.categorical(target_key, jnp.where(present, 0.0, -jnp.inf))
        stays = jax.random.bernoulli(crowd_key, crowd, present.shape)
        present &= stays | (jnp.arange(present.shape[1]) == target[:, None])
        code = jnp.take_along_axis(codes, target[:, None], axis=1)
        edge = jnp.ones((n, 1), jnp.int32)
        shown = jnp.full((n, self.patches), self.image_token)
        tokens = jnp.concatenate([edge * self.bos, shown, self.first_name + code], axis=1)
        info = {
            "image": jax.vmap(render)(boxes, present, codes),
            "box": jnp.take_along_axis(boxes, target[:, None, None], axis=1)[:, 0].astype(float),
            "size": jnp.asarray(SIZE_OF)[target],
            "boxes": boxes,
            "present": present,
            "codes": codes,
        }
        return Prompts(tokens, jnp.ones_like(tokens, bool), info)

    def demonstrations(
        self, key: Key[Array, ""], prompts: Prompts, *, noise: int = 0
    ) -> tuple[Int[Array, "n response"], Bool[Array, "n response"]]:
        """Answers: boxes of the right size, moved in x and y by up to `noise` pixels each.

        All moves that keep the box on the screen are as likely.
        """
        tokens = self._written(key, prompts.info["box"].astype(jnp.int32), noise)
        return tokens, jnp.ones_like(tokens, bool)

    def surveys(
        self,
        key: Key[Array, ""],
        n: int,
        *,
        crowd: float | Float[Array, "..."] = 1.0,
        noise: int = 0,
    ) -> Trajectory:
        """Screens with all their elements named and located, one after the other in random order.

        A row is a prompt without its instruction, then `name x1 y1 x2 y2 <eos>` for each element;
        the mask is on at the answers. `crowd` and `noise` are as for `prompts` and
        `demonstrations`.
        """
        prompt_key, order_key, write_key = jax.random.split(key, 3)
        info = self.prompts(prompt_key, n, crowd=crowd).info
        # Those that are there first, in random order.
        draws = jax.random.uniform(order_key, info["present"].shape) + ~info["present"]
        order = jnp.argsort(draws, axis=1)
        boxes = jnp.take_along_axis(info["boxes"], order[..., None], axis=1)
        there = jnp.take_along_axis(info["present"], order, axis=1)
        names = self.first_name + jnp.take_along_axis(info["codes"], order, axis=1)
        lines = jnp.concatenate([names[..., None], self._written(write_key, boxes, noise)], axis=2)
        answers = there[..., None] & (jnp.arange(lines.shape[2]) > 0)
        valid = jnp.broadcast_to(there[..., None], lines.shape)
        lines = jnp.where(valid, lines, self.pad)
        start = jnp.full((n, self.patches + 1), self.image_token).at[:, 0].set(self.bos)
        tokens, answers, valid = (
            jnp.concatenate([first, rest.reshape(n, -1)], axis=1)
            for first, rest in ((start, lines), (start < 0, answers), (start >= 0, valid))
        )
        return Trajectory(tokens, answers, valid, jnp.zeros(valid.shape), info=info)

    def answered(self, traj: Trajectory) -> tuple[Float[Array, "batch 4"], Bool[Array, "batch"]]:
        """The box that a response gives, and whether it is exactly four coordinates and `eos`.

        Without the form the box is all 0. Corners in the wrong order are a matter of the reward.
        """
        order = jnp.cumsum(traj.mask, axis=1)
        place = traj.mask[:, None] & (order[:, None] == jnp.arange(1, 6)[:, None])
        acted = jnp.sum(jnp.where(place, traj.tokens[:, None], 0), axis=2)
        corners = acted[:, :4] - self.first_coordinate
        proper = jnp.all((corners >= 0) & (corners < SIDE), axis=1)
        proper &= (acted[:, 4] == self.eos) & (traj.lengths == self.max_response)
        return jnp.where(proper[:, None], corners, 0).astype(jnp.float32), proper

    def _written(
        self, key: Key[Array, ""], boxes: Int[Array, "*lead 4"], noise: int
    ) -> Int[Array, "*lead 5"]:
        first, second = jnp.split(boxes, 2, axis=-1)
        least, most = jnp.maximum(-noise, -first), jnp.minimum(noise, SIDE - 1 - second)
        shift = jax.random.randint(key, first.shape, least, most + 1)
        corners = self.first_coordinate + jnp.concatenate([first + shift, second + shift], axis=-1)
        return jnp.concatenate([corners, jnp.full_like(corners[..., :1], self.eos)], axis=-1)


def draw_screen(
    key: Key[Array, ""],
) -> tuple[Int[Array, "8 4"], Bool[Array, "8"], Int[Array, "8"]]:
    """One screen's boxes, which of them are there, and their codes, all different."""
    extent_key, there_key, place_key, code_key = jax.random.split(key, 4)
    present = jnp.logical_not(OPTIONAL) | jax.random.bernoulli(there_key, 0.5, OPTIONAL.shape)
    low, high = jnp.moveaxis(jnp.asarray(EXTENTS)[SIZE_OF], 2, 0)
    extents = jax.random.randint(extent_key, low.shape, low, high + 1)
    places = jnp.stack(jnp.meshgrid(jnp.arange(SIDE), jnp.arange(SIDE)), axis=-1).reshape(-1, 2)

    def place(boxes, i):
        ends = places + extents[i]
        beside = (ends[:, None] <= boxes[:, :2]) | (places[:, None] >= boxes[:, 2:])
        free = jnp.all(jnp.any(beside, axis=2) | ~present | (jnp.arange(len(boxes)) >= i), axis=1)
        free &= jnp.all(ends < SIDE, axis=1)
        chosen = jax.random.categorical(
            jax.random.fold_in(place_key, i), jnp.where(free, 0.0, -jnp.inf)
        )
        return boxes.at[i].set(jnp.concatenate([places[chosen], ends[chosen]])), None

    count = len(SIZE_OF)
    boxes, _ = jax.lax.scan(place, jnp.zeros((count, 4), jnp.int32), jnp.arange(count))
    codes = jax.random.permutation(code_key, len(TYPES) * len(COLOURS))
    return jnp.where(present[:, None], boxes, 0), present, codes


def render(
    boxes: Int[Array, "8 4"], present: Bool[Array, "8"], codes: Int[Array, "8"]
) -> Float[Array, "32 32 3"]:
    """The screen as pixels in [0, 1]."""
    white = jnp.asarray(list(TYPES.values()))[codes // len(COLOURS)][:, None]
    colours = white + (1 - white) * jnp.asarray(list(COLOURS.values()))[codes % len(COLOURS)]
    pixel = jnp.arange(SIDE)
    across = (pixel >= boxes[:, :1]) & (pixel < boxes[:, 2:3])
    down = (pixel >= boxes[:, 1:2]) & (pixel < boxes[:, 3:])
    covered = down[:, :, None] & across[:, None, :] & present[:, None, None]
    painted = jnp.einsum("eyx,ec->yxc", covered.astype(jnp.float32), colours)
    return jnp.where(jnp.any(covered, axis=0)[..., None], painted, BACKGROUND)


def picture(
    image: np.ndarray, outlines: list[tuple[np.ndarray, tuple[float, float, float]]], scale: int = 6
) -> np.ndarray:
    """A screen enlarged, with the edges of boxes drawn on it.

    Args:
      image: `[height, width, 3]` in [0, 1].
      outlines: boxes in pixels, with their colours.
      scale: each pixel becomes `scale x scale`.
    """
    large = np.asarray(image).repeat(scale, axis=0).repeat(scale, axis=1)
    for box, colour in outlines:
        x1, y1, x2, y2 = np.clip(np.asarray(box, int) * scale, 0, len(large) - 1)
        large[[y1, y2], min(x1, x2) : max(x1, x2) + 1] = colour
        large[min(y1, y2) : max(y1, y2) + 1, [x1, x2]] = colour
    return large
