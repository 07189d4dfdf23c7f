"""Steering a flow model by a reward without training: sequential Monte Carlo (arXiv:2501.06848).

`particles` denoising trajectories run together. At some steps each is weighted by a potential, made
from the reward of the data predicted so far, and they are resampled by their weights. Over a whole
trajectory the potentials multiply to `exp(strength * reward)`, whatever they were on the way: the
weighted particles are samples of the model's distribution tilted by that factor.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rewardjax.models.flow import Velocity
from rewardjax.sampling.flow import Step, ddim_step, predicted_data, time_grid

# (reward now, what the particle remembers) -> (log-potential, what it remembers next), all in units
# of reward: `strength` multiplies later.
Potential = Callable[
    [Float[Array, "particles"], Float[Array, "particles"]],
    tuple[Float[Array, "particles"], Float[Array, "particles"]],
]
# (key, log-weights) -> the index of each new particle's parent.
Resample = Callable[[PRNGKeyArray, Float[Array, "particles"]], Int[Array, "particles"]]

ALWAYS = float("inf")
"""`Steering.ess_below` that resamples at every scheduled step."""


def difference(reward, memory):
    """`diff`: what the reward has grown by since the last weighting, which is remembered."""
    return reward - memory, reward


def maximum(reward, memory):
    """`max`: the largest reward so far, which is remembered."""
    best = jnp.maximum(reward, memory)
    return best, best


def addition(reward, memory):
    """`add`: the sum of the rewards so far, which is remembered."""
    return reward + memory, reward + memory


def nothing(reward, memory):
    """`is`: no weight until the end, which makes it importance sampling."""
    return jnp.zeros_like(reward), memory


def effective_sample_size(log_weights: Float[Array, "particles"]) -> Float[Array, ""]:
    """`1 / sum(w^2)` of the normalised weights, from 1 to the number of particles."""
    return jnp.exp(-jax.nn.logsumexp(2.0 * jax.nn.log_softmax(log_weights)))


def multinomial(
    key: PRNGKeyArray, log_weights: Float[Array, "particles"]
) -> Int[Array, "particles"]:
    """Parents drawn independently."""
    return jax.random.categorical(key, log_weights, shape=log_weights.shape)


def systematic(
    key: PRNGKeyArray, log_weights: Float[Array, "particles"]
) -> Int[Array, "particles"]:
    """Parents at even distances on the cumulative weights, from one uniform offset.

    A particle of weight w has floor(K w) or ceil(K w) children; equal weights keep everyone.
    """
    count = log_weights.shape[0]
    places = (jnp.arange(count) + jax.random.uniform(key)) / count
    found = jnp.searchsorted(jnp.cumsum(jax.nn.softmax(log_weights)), places, side="right")
    # Rounding may leave the last sum below the last place.
    return jnp.minimum(found, count - 1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Steering:
    """How particles are weighted and resampled.

    Attributes:
      potential: of an intermediate reward.
      strength: lambda, by which the reward is multiplied; 0 is the unsteered sampler.
      particles: trajectories that interact.
      start, every: the first step (from 0) at which particles are weighted, and the distance of the next
        ones; the last step always is.
      ess_below: resample where the effective sample size is below this share of the particles, in
        (0, 1]; `ALWAYS` for at every weighting.
      resample: how.
      worst: what a particle remembers at first, the lowest reward.
    """

    potential: Potential
    strength: float = 10.0
    particles: int = 4
    start: int = 0
    every: int = 1
    ess_below: float = 0.5
    resample: Resample = systematic
    worst: float = 0.0


class Particles(NamedTuple):
    """Samples of the tilted distribution, once weighted.

    Attributes:
      x: the samples.
      log_weights: since they were last resampled; they need not be normalised.
      rewards: of the samples.
      resampled: at which steps they were resampled.
    """

    x: Float[Array, "particles *event"]
    log_weights: Float[Array, "particles"]
    rewards: Float[Array, "particles"]
    resampled: Bool[Array, "steps"]


class _State(NamedTuple):
    x: Float[Array, "particles *event"]
    memory: Float[Array, "particles"]
    spent: Float[Array, "particles"]
    log_weights: Float[Array, "particles"]


def steer(
    velocity: Velocity,
    reward: Callable[[Float[Array, "particles *event"]], Float[Array, "particles"]],
    steering: Steering,
    key: PRNGKeyArray,
    *,
    event: tuple[int, ...],
    steps: int,
    step: Step = ddim_step,
    condition: Int[Array, ""] | int = 0,
) -> Particles:
    """Sample one set of interacting particles; `vmap` over keys for independent sets.

    The log-potential of the last step is `strength` times the sample's reward less what the particle
    and its parents were given before, so that the product is exact for every potential; the authors'
    code takes the largest (or summed) reward instead of the sample's for `max` (and `add`).
    Intermediate rewards are those of the predicted data before each step.

    Args:
      velocity: of the model.
      reward: a black box; larger is better. What is not finite counts as `steering.worst`.
      steering: potentials and resampling.
      key: consumed.
      event: shape of a sample.
      steps: denoising steps.
      step: must be stochastic: copies of a particle would otherwise never part.
      condition: the model's, one for all particles.
    """
    count = steering.particles
    start_key, loop_key = jax.random.split(key)
    conditions = jnp.full(count, condition)

    def advance(state: _State, now):
        index, time, next_time, last, weighted = now
        step_key, resample_key = jax.random.split(jax.random.fold_in(loop_key, index))
        time, next_time = jnp.full(count, time), jnp.full(count, next_time)
        found = velocity(state.x, time, conditions)
        mean, std = step(state.x, found, time, next_time)
        fresh = jax.random.normal(step_key, mean.shape)
        moved = mean + jnp.expand_dims(std, tuple(range(1, mean.ndim))) * fresh
        rewards = reward(jnp.where(last, moved, predicted_data(state.x, found, time)))
        rewards = jnp.where(jnp.isfinite(rewards), rewards, steering.worst)
        potential, memory = steering.potential(rewards, state.memory)
        potential = jnp.where(last, rewards - steering.worst - state.spent, potential)
        after = _State(
            moved,
            memory,
            state.spent + potential,
            state.log_weights + steering.strength * potential,
        )
        after = jax.tree.map(
            lambda new, old: jnp.where(weighted, new, old), after, state._replace(x=moved)
        )
        enough = effective_sample_size(after.log_weights) >= steering.ess_below * count
        due = weighted & ~enough
        parents = steering.resample(resample_key, after.log_weights)
        parents = jnp.where(due, parents, jnp.arange(count))
        gathered = jax.tree.map(lambda x: x[parents], after)
        weights = jnp.where(due, 0.0, after.log_weights)
        return gathered._replace(log_weights=weights), (rewards[parents], due)

    nothing_yet = jnp.zeros(count)
    first = _State(
        jax.random.normal(start_key, (count, *event)),
        jnp.full(count, steering.worst),
        nothing_yet,
        nothing_yet,
    )
    index, times = jnp.arange(steps), time_grid(steps)
    last = index == steps - 1
    weighted = last | ((index >= steering.start) & ((index - steering.start) % steering.every == 0))
    state, (rewards, resampled) = jax.lax.scan(
        advance, first, (index, times[:-1], times[1:], last, weighted)
    )
    return Particles(state.x, state.log_weights, rewards[-1], resampled)
