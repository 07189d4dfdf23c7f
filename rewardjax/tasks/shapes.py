"""Small pictures of one coloured shape each, and a detector that reads them back exactly.

A picture is `[size, size, 3]` in [0, 1] on black. What it shows is its label: shape, colour and
quadrant, together one class id, `(shape * colours + colour) * quadrants + quadrant`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

SHAPES = ("square", "disc", "cross", "triangle")
COLOURS = {"red": (1.0, 0.1, 0.1), "green": (0.1, 0.9, 0.1), "blue": (0.2, 0.3, 1.0)}
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")


class Detection(NamedTuple):
    """What a picture shows, as indices into the module's names.

    Attributes:
      shape, colour, quadrant: of the template that fits best.
      fit: 1 less the share of that template's energy that is missing or wrong, in [0, 1]; 1 only for
        a rendered picture.
    """

    shape: Int[Array, "batch"]
    colour: Int[Array, "batch"]
    quadrant: Int[Array, "batch"]
    fit: Float[Array, "batch"]


@dataclass(frozen=True)
class Shapes:
    """The world of pictures with sides of `size` pixels.

    Raises:
      ValueError: `size` is odd, or below 10, where a disc would be a square.
    """

    size: int = 12

    def __post_init__(self):
        if self.size < 10 or self.size % 2:
            raise ValueError(f"size: expected an even number from 10 on, found {self.size}")

    @property
    def classes(self) -> int:
        """Number of different pictures."""
        return len(SHAPES) * len(COLOURS) * len(QUADRANTS)

    @property
    def templates(self) -> Float[np.ndarray, "classes size size 3"]:
        """Every picture, in the order of the class ids."""
        half = self.size // 2
        side = half - 1
        y, x = np.mgrid[:side, :side] - (side - 1) / 2
        reach = (side - 1) / 2
        masks = (
            np.ones((side, side), bool),
            np.hypot(x, y) <= reach + 0.4,
            np.minimum(np.abs(x), np.abs(y)) <= 0.5,
            np.abs(x) <= (y + reach) / 2 + 0.25,
        )
        pictures = np.zeros((self.classes, self.size, self.size, 3), np.float32)
        for label in range(self.classes):
            shape, colour, quadrant = self.split(label)
            top, left = (half * place for place in divmod(quadrant, 2))
            place = pictures[label, top : top + side, left : left + side]
            place[masks[shape]] = list(COLOURS.values())[colour]
        return pictures

    def split(self, label):
        """Shape, colour and quadrant of a class id (a number or an array)."""
        rest, quadrant = label // len(QUADRANTS), label % len(QUADRANTS)
        return rest // len(COLOURS), rest % len(COLOURS), quadrant

    def describe(self, label: int) -> str:
        """A class id in words: "red disc, top left"."""
        shape, colour, quadrant = self.split(label)
        return f"{list(COLOURS)[colour]} {SHAPES[shape]}, {QUADRANTS[quadrant]}"

    def draw(
        self, key: Key[Array, ""], n: int
    ) -> tuple[Float[Array, "n size size 3"], Int[Array, "n"]]:
        """`n` pictures and their class ids, all classes equally often."""
        labels = jax.random.randint(key, (n,), 0, self.classes)
        return jnp.asarray(self.templates)[labels], labels

    def detect(self, images: Float[Array, "batch height width channels"]) -> Detection:
        """What each picture shows; a pixel that is not finite counts as black.

        Raises:
          ValueError: the pictures are not `[size, size, 3]`.
        """
        expected = (self.size, self.size, 3)
        if images.shape[1:] != expected:
            raise ValueError(
                f"images: expected pictures of {expected} (height, width, channels), "
                f"found {tuple(images.shape[1:])}"
            )
        flat = jnp.where(jnp.isfinite(images), images, 0.0).reshape(images.shape[0], -1)
        templates = jnp.asarray(self.templates).reshape(self.classes, -1)
        energy = jnp.sum(templates**2, axis=1)
        errors = jnp.sum((flat[:, None] - templates) ** 2, axis=-1) / energy
        best = jnp.argmin(errors, axis=1)
        fit = jnp.clip(1.0 - jnp.min(errors, axis=1), 0.0, 1.0)
        shape, colour, quadrant = self.split(best)
        return Detection(shape, colour, quadrant, fit)
