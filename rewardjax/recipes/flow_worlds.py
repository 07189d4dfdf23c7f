"""Pretrained flow models of data in which what is wanted is rare, and the reward that asks for it.

A world has `event`, the shape of a sample, and

    pretrain(run) -> params              the model's parameters
    velocity(params) -> Velocity         the model
    reward(x) -> [batch]                 the black box
    wanted(x) -> [batch]                 whether a sample truly is what the reward asks for
    target(key, n, strength) -> [n, *event]   samples of what is to be approached
    picture(x) -> uint8 [height, width, 3]    samples, to look at
"""

import dataclasses
import functools
from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from rewardjax.models.flow import DiTConfig, FlowModel, Velocity
from rewardjax.pictures import grid
from rewardjax.recipes.flow_matching import flow_matching, noised
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.tasks.digits import CLASSES, Digits, load_digits
from rewardjax.tasks.mixture import Mixture, ring, scatter
from rewardjax.training.loop import LoopConfig
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.run import Run


@dataclasses.dataclass(frozen=True)
class RareMode:
    """A mixture with a rare component; the reward is minus half the squared distance from it."""

    mixture: Mixture = ring((0.02, *(0.14,) * 7))

    @property
    def event(self) -> tuple[int, ...]:
        """A point."""
        return (self.mixture.size,)

    def pretrain(self, run: Run):
        """Nothing: the velocity is known."""
        return {}

    def velocity(self, params) -> Velocity:
        """The exact one."""
        return lambda x, time, condition: self.mixture.velocity(x, time)

    def reward(self, x: Float[Array, "batch *event"]) -> Float[Array, "batch"]:
        """0 at the rare mean, and falling."""
        return -0.5 * jnp.sum((x - self.mixture.centres[0]) ** 2, axis=-1)

    def wanted(self, x: Float[Array, "batch *event"]) -> Bool[Array, "batch"]:
        """Nearest to the rare mean."""
        return self.mixture.nearest(x) == 0

    def target(self, key: PRNGKeyArray, n: int, strength: float) -> Float[Array, "n *event"]:
        """The exactly tilted mixture."""
        return self.mixture.tilted(self.mixture.means[0], strength).sample(key, n)[0]

    def picture(self, x: Float[np.ndarray, "batch *event"]) -> np.ndarray:
        """A scatter plot."""
        return grid([scatter(x)], 1, scale=4)


@functools.cache
def digits() -> tuple[Digits, Digits]:
    """The digits, read once: pictures for training and for testing."""
    return load_digits()


@dataclasses.dataclass(frozen=True)
class RareDigit:
    """Handwritten digits of which one is rare."""

    digit: int = 3
    rarity: float = 0.02
    model: DiTConfig = DiTConfig(layers=3)
    training: SupervisedConfig = SupervisedConfig(
        128,
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup=0.05),
        loop=LoopConfig(1500, steps_per_call=50),
    )

    @property
    def event(self) -> tuple[int, ...]:
        """A picture."""
        return self.model.event

    def pretrain(self, run: Run):
        """A transformer trained on digits, among which the wanted one is rare."""
        others = (1 - self.rarity) / (CLASSES - 1)
        often = jnp.full(CLASSES, others).at[self.digit].set(self.rarity)
        train, model = digits()[0], FlowModel(self.model)

        def draw(key, n):
            return train.draw(key, n, jnp.log(often)), jnp.zeros(n, jnp.int32)

        program = Supervised(
            self.training,
            init=model.boxed_init,
            loss=flow_matching(model),
            batches=noised(draw),
        )
        return program.run(run.stage("pretrain")).params

    def velocity(self, params) -> Velocity:
        """The trained one."""
        return partial(FlowModel(self.model).velocity, params)

    def reward(self, x: Float[Array, "batch *event"]) -> Float[Array, "batch"]:
        """Log-probability that the training pictures give to the digit."""
        return digits()[0].log_posterior(x)[:, self.digit]

    def wanted(self, x: Float[Array, "batch *event"]) -> Bool[Array, "batch"]:
        """Whether the nearest of the test pictures shows the digit."""
        return digits()[1].nearest(x)[0] == self.digit

    def target(self, key: PRNGKeyArray, n: int, strength: float) -> Float[Array, "n *event"]:
        """Test pictures of the digit."""
        only = jnp.where(jnp.arange(CLASSES) == self.digit, 0.0, -jnp.inf)
        return digits()[1].draw(key, n, only)

    def picture(self, x: Float[np.ndarray, "batch *event"]) -> np.ndarray:
        """The first of them beside each other."""
        return grid((x[:64] + 1) / 2, 16, scale=3)
