"""Handwritten digits of 8 x 8 pixels, and who recognises them without any training.

Pictures are `[8, 8]` with values in [-1, 1], -1 being the background.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

CLASSES = 10


class Digits(NamedTuple):
    """Pictures and what they show."""

    images: Float[Array, "n 8 8"]
    labels: Int[Array, "n"]

    def draw(
        self, key: Key[Array, ""], n: int, log_weights: Float[Array, "10"]
    ) -> Float[Array, "n 8 8"]:
        """`n` pictures, with replacement; each class as often as its weight says."""
        frequency = jnp.bincount(self.labels, length=CLASSES)
        each = (log_weights - jnp.log(jnp.maximum(frequency, 1)))[self.labels]
        return self.images[jax.random.categorical(key, each, shape=(n,))]

    def log_posterior(
        self, x: Float[Array, "batch 8 8"], *, bandwidth: float = 1.0
    ) -> Float[Array, "batch 10"]:
        """Log-probability of each class under a kernel density of these pictures.

        Bayes' rule on Gaussian kernels of standard deviation `bandwidth` (in pixel values), with
        classes as frequent as in these pictures; a class without any gets -inf.
        """
        kernels = -0.5 * self._squares(x) / bandwidth**2
        member = self.labels == jnp.arange(CLASSES)[:, None]
        joint = jax.nn.logsumexp(kernels[:, None], axis=2, where=member)
        return jax.nn.log_softmax(joint, axis=1)

    def nearest(self, x: Float[Array, "batch 8 8"]) -> tuple[Int[Array, "batch"], Array]:
        """The class of the nearest of these pictures, and the root-mean-square distance to it."""
        squares = self._squares(x)
        index = jnp.argmin(squares, axis=1)
        return self.labels[index], jnp.sqrt(jnp.min(squares, axis=1) / x[0].size)

    def _squares(self, x: Float[Array, "batch 8 8"]) -> Float[Array, "batch n"]:
        ours, theirs = self.images.reshape(-1, 64), x.reshape(-1, 64)
        squares = jnp.sum(theirs**2, axis=1)[:, None] + jnp.sum(ours**2, axis=1)
        return jnp.maximum(squares - 2 * theirs @ ours.T, 0.0)


def load_digits() -> tuple[Digits, Digits]:
    """scikit-learn's digits, for training and, every other picture, for testing.

    Raises:
      ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "the digits need scikit-learn: pip install 'rewardjax[generation]'"
        ) from error
    found = datasets.load_digits()
    images = (found.images / 8.0 - 1.0).astype(np.float32)
    labels = found.target.astype(np.int32)
    first, second = (
        Digits(jnp.asarray(images[part::2]), jnp.asarray(labels[part::2])) for part in (0, 1)
    )
    return first, second
