"""Flow models as samplers and as policies: an episode's time axis counts denoising steps.

Paths are straight, `x_t = (1 - t) x_0 + t noise`, and a velocity is `noise - x_0`. Sampling starts at
t = 1 with noise and ends at t = 0. The Euler step of the probability-flow ODE is deterministic;
stochastic steps are Gaussian, `(mean, std)`, so that each has a log-density that a policy gradient
can move: Flow-GRPO's SDE (arXiv:2505.05470), CPS (arXiv:2509.05952), and DDIM with noise
(arXiv:2010.02502).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rewardjax.losses import Scores
from rewardjax.models.flow import Velocity
from rewardjax.trajectory import Trajectory

# (x_t, velocity, t, next t) -> mean and standard deviation of the next point.
Step = Callable[
    [
        Float[Array, "batch *event"],
        Float[Array, "batch *event"],
        Float[Array, "batch"],
        Float[Array, "batch"],
    ],
    tuple[Float[Array, "batch *event"], Float[Array, "batch"]],
]

# (x, mean, std) -> log-density of each row.
LogDensity = Callable[
    [Float[Array, "batch *event"], Float[Array, "batch *event"], Float[Array, "batch"]],
    Float[Array, "batch"],
]


def time_grid(steps: int, *, shift: float = 1.0) -> Float[Array, "steps_and_one"]:
    """Falling times from 1 to 0; `shift > 1` spends more of the steps near noise.

    `shift t / (1 + (shift - 1) t)` of even times (arXiv:2403.03206, Eq. 23).
    """
    even = jnp.linspace(1.0, 0.0, steps + 1)
    return shift * even / (1.0 + (shift - 1.0) * even)


def _over_event(time: Float[Array, "batch"], x: Float[Array, "batch *event"]) -> Array:
    return jnp.expand_dims(time, tuple(range(1, x.ndim)))


def euler_step(
    x: Float[Array, "batch *event"],
    velocity: Float[Array, "batch *event"],
    time: Float[Array, "batch"],
    next_time: Float[Array, "batch"],
) -> Float[Array, "batch *event"]:
    """One Euler step of the ODE `dx/dt = velocity`."""
    return x + _over_event(next_time - time, x) * velocity


def predicted_data(
    x: Float[Array, "batch *event"],
    velocity: Float[Array, "batch *event"],
    time: Float[Array, "batch"],
) -> Float[Array, "batch *event"]:
    """The denoiser's one-step prediction of the data, E[x_0 | x_t]."""
    return x - _over_event(time, x) * velocity


def sde_step(
    x: Float[Array, "batch *event"],
    velocity: Float[Array, "batch *event"],
    time: Float[Array, "batch"],
    next_time: Float[Array, "batch"],
    *,
    noise: float = 0.7,
) -> tuple[Float[Array, "batch *event"], Float[Array, "batch"]]:
    """Euler-Maruyama step of the SDE that has the ODE's marginals (Flow-GRPO).

    Its diffusion coefficient is `noise sqrt(t / (1 - t))`, where `1 - t` is `1 - next_time` at t = 1.
    """
    change = next_time - time
    safe = jnp.where(time < 1.0, time, next_time)
    variance = noise**2 * time / (1.0 - safe)
    # variance / t, finite at t = 0.
    drift = noise**2 / (1.0 - safe) / 2.0
    mean = x * _over_event(1.0 + drift * change, x)
    mean = mean + velocity * _over_event((1.0 + drift * (1.0 - time)) * change, x)
    return mean, jnp.sqrt(-variance * change)


def cps_step(
    x: Float[Array, "batch *event"],
    velocity: Float[Array, "batch *event"],
    time: Float[Array, "batch"],
    next_time: Float[Array, "batch"],
    *,
    noise: float = 0.7,
) -> tuple[Float[Array, "batch *event"], Float[Array, "batch"]]:
    """Coefficients-preserving step: the share `sin(noise pi / 2)` of the next noise is fresh.

    For `noise` in [0, 1]. Data and noise keep the weights that the path gives them (arXiv:2509.05952).
    """
    return _renoised(x, velocity, time, next_time, next_time * math.sin(noise * math.pi / 2))


def ddim_step(
    x: Float[Array, "batch *event"],
    velocity: Float[Array, "batch *event"],
    time: Float[Array, "batch"],
    next_time: Float[Array, "batch"],
    *,
    eta: float = 1.0,
) -> tuple[Float[Array, "batch *event"], Float[Array, "batch"]]:
    """DDIM's step on this path (arXiv:2010.02502, Eq. 16); `eta=1` is the ancestral sampler.

    With `eta=1` the deviation is that of x_{next} given x_t and x_0.
    """
    shrink = (1.0 - time) / (1.0 - next_time)
    fresh = jnp.maximum(time**2 - (shrink * next_time) ** 2, 0.0)
    return _renoised(x, velocity, time, next_time, eta * next_time / time * jnp.sqrt(fresh))


def _renoised(x, velocity, time, next_time, std):
    """Predicted data and predicted noise, mixed for `next_time` with `std` of the noise left out."""
    data = predicted_data(x, velocity, time)
    noise = x + _over_event(1.0 - time, x) * velocity
    kept = jnp.sqrt(jnp.maximum(next_time**2 - std**2, 0.0))
    return _over_event(1.0 - next_time, x) * data + _over_event(kept, x) * noise, std


def gaussian_log_density(
    x: Float[Array, "batch *event"],
    mean: Float[Array, "batch *event"],
    std: Float[Array, "batch"],
) -> Float[Array, "batch"]:
    """Log-density in nats of an isotropic Gaussian; `std` must be positive."""
    size = math.prod(x.shape[1:])
    squares = jnp.sum((x - mean).reshape(x.shape[0], -1) ** 2, axis=1)
    return -0.5 * squares / std**2 - size * (jnp.log(std) + 0.5 * math.log(2 * math.pi))


def mean_log_density(
    x: Float[Array, "batch *event"],
    mean: Float[Array, "batch *event"],
    std: Float[Array, "batch"],
) -> Float[Array, "batch"]:
    """The Gaussian log-density over the number of dimensions, as Flow-GRPO's ratios have it."""
    return gaussian_log_density(x, mean, std) / math.prod(x.shape[1:])


def cps_log_density(
    x: Float[Array, "batch *event"],
    mean: Float[Array, "batch *event"],
    std: Float[Array, "batch"],
) -> Float[Array, "batch"]:
    """Minus the mean squared distance from the mean: CPS drops the deviation and all constants."""
    return -jnp.mean((x - mean).reshape(x.shape[0], -1) ** 2, axis=1)


def ode_sample(
    velocity: Velocity,
    x: Float[Array, "batch *event"],
    condition: Int[Array, "batch"],
    times: Float[Array, "points"],
) -> Float[Array, "batch *event"]:
    """Integrate the ODE along falling `times` from `x` at the first of them."""

    def step(x, ends):
        time, next_time = (jnp.full(x.shape[:1], end) for end in ends)
        return euler_step(x, velocity(x, time, condition), time, next_time), None

    return jax.lax.scan(step, x, (times[:-1], times[1:]))[0]


@struct.dataclass
class FlowStates:
    """What a flow policy sees at each step.

    Attributes:
      points: x_t, before the step.
      times: its t.
      next_times: the t that the step leads to.
      condition: of the whole row.
    """

    points: Float[Array, "batch time *event"]
    times: Float[Array, "batch time"]
    next_times: Float[Array, "batch time"]
    condition: Int[Array, "batch"]


@dataclasses.dataclass(frozen=True)
class FlowPolicy:
    """Pure functions of `params` that a policy-gradient recipe needs.

    The first `window` steps are stochastic and the policy's own; the others follow the ODE and are off
    the mask, and so is a step without noise (CPS and DDIM end with one).

    Attributes:
      velocity: `(params, x, time, condition) -> velocity`, such as `FlowModel.velocity`.
      event: shape of a sample.
      steps: denoising steps.
      window: how many of them, from the first, are stochastic.
      step: the stochastic step.
      log_density: what `logprobs` are; `gaussian_log_density` is the exact one.
      group_size: samples a condition, adjacent in the batch.
      shift: of the times towards noise.

    Raises:
      ValueError: `window` is not in 0..steps.
    """

    velocity: Callable[..., Array]
    event: tuple[int, ...]
    steps: int = 10
    window: int = 9
    step: Step = sde_step
    log_density: LogDensity = mean_log_density
    group_size: int = 1
    shift: float = 1.0

    def __post_init__(self):
        if not 0 <= self.window <= self.steps:
            raise ValueError(f"window: expected 0 to steps={self.steps}, found {self.window}")

    def rollout(self, params, condition: Int[Array, "prompts"], key: PRNGKeyArray) -> Trajectory:
        """Sample `group_size` episodes for each condition; `actions` are the points stepped to."""
        condition = jnp.repeat(condition, self.group_size)
        rows = condition.shape[0]
        start_key, *step_keys = jax.random.split(key, self.steps + 1)
        start = jax.random.normal(start_key, (rows, *self.event))
        times = time_grid(self.steps, shift=self.shift)

        def step(x, now):
            stochastic, ends, step_key = now
            time, next_time = (jnp.full(rows, end) for end in ends)
            velocity = self.velocity(params, x, time, condition)
            mean, std = self.step(x, velocity, time, next_time)
            drawn = mean + _over_event(std, x) * jax.random.normal(step_key, x.shape)
            after = jnp.where(stochastic, drawn, euler_step(x, velocity, time, next_time))
            mask = stochastic & (std > 0)
            logprobs = self._logprobs(after, mean, std, mask)
            return after, (x, after, mask, logprobs, time, next_time)

        stochastic = jnp.arange(self.steps) < self.window
        ends = (times[:-1], times[1:])
        _, columns = jax.lax.scan(step, start, (stochastic, ends, jnp.stack(step_keys)))
        points, actions, mask, logprobs, now, after = (jnp.moveaxis(x, 0, 1) for x in columns)
        return Trajectory(
            actions=actions.reshape(rows, self.steps, -1),
            mask=mask,
            valid=jnp.ones_like(mask),
            logprobs=logprobs,
            observations=FlowStates(points, now, after, condition),
        )

    def score(self, params, traj: Trajectory) -> Scores:
        """Log-densities of a trajectory's stochastic steps under `params`, and their entropies."""
        rows, width = traj.mask.shape[0], self.window
        states: FlowStates = traj.observations
        x, after, time, next_time, mask = (
            column[:, :width].reshape(rows * width, *shape)
            for column, shape in [
                (states.points, self.event),
                (traj.actions, self.event),
                (states.times, ()),
                (states.next_times, ()),
                (traj.mask, ()),
            ]
        )
        velocity = self.velocity(params, x, time, jnp.repeat(states.condition, width))
        mean, std = self.step(x, velocity, time, next_time)
        log_std = jnp.log(jnp.where(mask, std, 1.0))
        entropy = math.prod(self.event) * (log_std + 0.5 * math.log(2 * math.pi * math.e))
        columns = (self._logprobs(after, mean, std, mask), jnp.where(mask, entropy, 0.0))
        fill = ((0, 0), (0, self.steps - width))
        return Scores(*(jnp.pad(column.reshape(rows, width), fill) for column in columns))

    def completions(
        self, params, traj: Trajectory, key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch window *event"]:
        """Where the state before each stochastic step ends up.

        Entry k has taken k of the trajectory's stochastic steps, then follows the ODE; with a `key` it
        goes on as the policy does, with fresh noise. All states advance together: `steps` calls of
        the network on at most `window` times the rows.
        """
        states: FlowStates = traj.observations
        times, points = time_grid(self.steps, shift=self.shift), states.points
        flying = points[:, :0]
        for k in range(self.steps):
            if k < self.window:
                flying = jnp.concatenate([flying, points[:, k : k + 1]], axis=1)
            x = flying.reshape(-1, *self.event)
            condition = jnp.repeat(states.condition, flying.shape[1])
            time, next_time = (jnp.full(x.shape[:1], end) for end in times[k : k + 2])
            velocity = self.velocity(params, x, time, condition)
            if key is not None and k < self.window:
                mean, std = self.step(x, velocity, time, next_time)
                noise = jax.random.normal(jax.random.fold_in(key, k), x.shape)
                x = mean + _over_event(std, x) * noise
            else:
                x = euler_step(x, velocity, time, next_time)
            flying = x.reshape(flying.shape)
        return flying

    def samples(self, traj: Trajectory) -> Float[Array, "batch *event"]:
        """The points at t = 0."""
        return traj.actions[:, -1].reshape(-1, *self.event)

    def evaluations(self, *, completed: bool) -> int:
        """Calls of the network for one episode: sampling, and `completions` where `completed`."""
        extra = sum(self.steps - k for k in range(self.window))
        return self.steps + (extra if completed else 0)

    def _logprobs(self, x, mean, std, mask) -> Any:
        # A step without noise has no density; off the mask it must not make a NaN either.
        return jnp.where(mask, self.log_density(x, mean, jnp.where(mask, std, 1.0)), 0.0)
