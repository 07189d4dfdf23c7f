"""Mixtures of Gaussians, for which everything that a flow model learns is known exactly.

Samples are `(x, y)` points (or vectors of any size). On the path `x_t = (1 - t) x_0 + t noise` the
marginals are mixtures too, so velocity, score and density are closed formulas, and so is the mixture
tilted by a quadratic reward.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key


@dataclass(frozen=True)
class Mixture:
    """Isotropic Gaussians of equal spread.

    Attributes:
      means: of each component, `[components, size]`.
      weights: of each component; positive, scaled to sum to 1.
      spread: standard deviation of every component in every direction.

    Raises:
      ValueError: means of different sizes, a weight or spread that is not positive, or not as many
        weights as means.
    """

    means: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    spread: float = 0.3

    def __post_init__(self):
        if len({len(mean) for mean in self.means}) != 1:
            raise ValueError(f"means: expected points of one size, found {self.means}")
        if len(self.weights) != len(self.means) or min(self.weights) <= 0:
            raise ValueError(
                f"weights: expected {len(self.means)} positive numbers, found {self.weights}"
            )
        if self.spread <= 0:
            raise ValueError(f"spread: expected a positive number, found {self.spread}")

    @property
    def size(self) -> int:
        """Numbers in a sample."""
        return len(self.means[0])

    @property
    def centres(self) -> Float[np.ndarray, "components size"]:
        """The means as an array."""
        return np.asarray(self.means, np.float32)

    @property
    def log_weights(self) -> Float[np.ndarray, "components"]:
        """Logarithms of the normalised weights."""
        weights = np.asarray(self.weights, np.float64)
        return np.log(weights / weights.sum()).astype(np.float32)

    def sample(self, key: Key[Array, ""], n: int) -> tuple[Float[Array, "n size"], Int[Array, "n"]]:
        """`n` samples, and the component that each came from."""
        component_key, noise_key = jax.random.split(key)
        component = jax.random.categorical(component_key, jnp.asarray(self.log_weights), shape=(n,))
        noise = jax.random.normal(noise_key, (n, self.size))
        return jnp.asarray(self.centres)[component] + self.spread * noise, component

    def log_density(
        self, x: Float[Array, "batch size"], time: Float[Array, "batch"] | float = 0.0
    ) -> Float[Array, "batch"]:
        """Log-density at `time` on the path to noise, in nats; at 0 that of the mixture itself."""
        return jax.nn.logsumexp(self._joint(x, time)[0], axis=1)

    def score(
        self, x: Float[Array, "batch size"], time: Float[Array, "batch"] | float
    ) -> Float[Array, "batch size"]:
        """The gradient of `log_density` at `x`."""
        joint, offset, variance = self._joint(x, time)
        share = jax.nn.softmax(joint, axis=1)
        return -jnp.einsum("bc,bcd->bd", share, offset) / variance[:, None]

    def velocity(
        self, x: Float[Array, "batch size"], time: Float[Array, "batch"] | float
    ) -> Float[Array, "batch size"]:
        """E[noise - x_0 | x_t = x], which a flow model learns."""
        time = jnp.broadcast_to(time, x.shape[:1])
        joint, offset, variance = self._joint(x, time)
        share = jax.nn.softmax(joint, axis=1)
        # In each component noise and data are linear in x_t.
        slope = (time - (1.0 - time) * self.spread**2) / variance
        inside = slope[:, None, None] * offset - self.centres
        return jnp.einsum("bc,bcd->bd", share, inside)

    def nearest(self, x: Float[Array, "batch size"]) -> Int[Array, "batch"]:
        """The component whose mean is nearest."""
        return jnp.argmin(jnp.sum((x[:, None] - self.centres) ** 2, axis=-1), axis=1)

    def tilted(self, target: tuple[float, ...], strength: float) -> "Mixture":
        """The mixture times `exp(-strength |x - target|^2 / 2)`, normalised: a mixture again.

        Each component shrinks and moves towards `target`, and weighs by its mean factor.
        """
        gap = np.asarray(target) - self.centres
        variance = 1.0 / (self.spread**-2 + strength)
        moved = self.centres + variance * strength * gap
        factor = -0.5 * np.sum(gap**2, axis=1) * strength / (1.0 + strength * self.spread**2)
        logits = self.log_weights + factor
        # Kept above zero: a weight that underflows is still a component.
        weights = np.maximum(np.exp(logits - logits.max()), 1e-30)
        return replace(
            self,
            means=tuple(tuple(float(x) for x in mean) for mean in moved),
            weights=tuple(float(w) for w in weights),
            spread=float(np.sqrt(variance)),
        )

    def _joint(self, x, time):
        """Log of weight times density of each component; `x` less its mean; its variance."""
        time = jnp.broadcast_to(time, x.shape[:1])
        kept = 1.0 - time
        variance = (kept * self.spread) ** 2 + time**2
        offset = x[:, None] - kept[:, None, None] * self.centres
        squares = jnp.sum(offset**2, axis=-1) / variance[:, None]
        normaliser = 0.5 * self.size * jnp.log(2 * jnp.pi * variance)
        return self.log_weights - 0.5 * squares - normaliser[:, None], offset, variance


def ring(weights: tuple[float, ...], *, radius: float = 3.0, spread: float = 0.3) -> Mixture:
    """One component for each weight, evenly on a circle, the first one on the right."""
    angles = 2 * np.pi * np.arange(len(weights)) / len(weights)
    points = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return Mixture(tuple((float(x), float(y)) for x, y in points), weights, spread)


@dataclass(frozen=True)
class AskedMode:
    """A condition asks for one component of a mixture, and a decoy pays a little everywhere.

    Attributes:
      mixture: of points around the origin.
      fidelity: share of the pretraining data that shows the component asked for; the rest show any.
      width: standard deviation of the reward's peak and of its ridge.
      decoy: height of the ridge, a circle of radius `ridge`.
    """

    mixture: Mixture = ring((1.0,) * 8)
    fidelity: float = 0.2
    width: float = 0.4
    decoy: float = 0.2
    ridge: float = 2.0

    def conditions(self, key: Key[Array, ""], n: int) -> Int[Array, "n"]:
        """Components to ask for, all equally often."""
        return jax.random.randint(key, (n,), 0, len(self.mixture.means))

    def draw(self, key: Key[Array, ""], n: int) -> tuple[Float[Array, "n size"], Int[Array, "n"]]:
        """Data for pretraining, and the condition of each."""
        data_key, loyal_key, other_key = jax.random.split(key, 3)
        x, component = self.mixture.sample(data_key, n)
        loyal = jax.random.bernoulli(loyal_key, self.fidelity, (n,))
        return x, jnp.where(loyal, component, self.conditions(other_key, n))

    def reward(
        self, x: Float[Array, "batch size"], condition: Int[Array, "batch"]
    ) -> Float[Array, "batch"]:
        """1 at the mean asked for; `decoy` on the ridge, whatever was asked for."""
        target = jnp.asarray(self.mixture.centres)[condition]
        peak = jnp.exp(-0.5 * jnp.sum((x - target) ** 2, axis=-1) / self.width**2)
        off = jnp.linalg.norm(x, axis=-1) - self.ridge
        return jnp.maximum(peak, self.decoy * jnp.exp(-0.5 * off**2 / self.width**2))


def scatter(
    points: Float[Array, "n 2"] | Float[np.ndarray, "n 2"], *, extent: float = 4.0, size: int = 48
) -> Float[np.ndarray, "size size"]:
    """Points as a picture: counts on a grid over `[-extent, extent]^2`, the fullest cell being 1.

    The y axis points up. Points outside are not drawn; without any the picture is black.
    """
    x, y = np.asarray(points, np.float64).T
    edges = np.linspace(-extent, extent, size + 1)
    counts = np.histogram2d(-y, x, bins=[edges, edges])[0]
    # The square root keeps single points visible beside full cells.
    return np.sqrt(counts / max(counts.max(), 1.0)).astype(np.float32)
