"""FK steering: inference-time scaling of diffusion models by particles (arXiv:2501.06848).

Best-of-n looks at finished samples only. Feynman-Kac steering weighs unfinished ones by the reward of
what they will become, as far as the denoiser can tell, and resamples; potentials G_t with

    prod_t G_t = exp(lambda r(x_0))

make the particles samples of the model tilted by that factor, without training and without gradients.

Miniature: eight Gaussians, of which the wanted one holds 2% of the mass; the model's velocity and the
tilted mixture are exact. `digits` (a scale) trains a transformer on handwritten digits with one digit
rare, and pays for the log-probability that a picture shows it.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rewardjax.evaluation.transport import wasserstein2
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.flow import FlowModel
from rewardjax.models.presets import SD21
from rewardjax.recipes.flow_workloads import velocities
from rewardjax.recipes.flow_worlds import RareDigit, RareMode
from rewardjax.sampling import particles as fk
from rewardjax.tasks.external import require_generated
from rewardjax.training.loop import smoke


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share.

    Attributes:
      particles: three numbers of particles to try, ascending; the metrics are those of the second.
      sets: independent sets of particles, as many as there would be prompts.
      matched: samples compared with the target by distance.
    """

    data: str = "generated"
    world: RareMode | RareDigit = RareMode()
    particles: tuple[int, ...] = (4, 8, 16)
    sets: int = 256
    steps: int = 50
    strength: float = 2.0
    start: int = 10
    every: int = 5
    ess_below: float = 0.5
    worst: float = -20.0
    matched: int = 512


def prepare(config):
    """The pretrained model."""
    require_generated(config.data, "generated")
    return lambda run: config.world.pretrain(run)


def sample(config, *, potential=fk.nothing, strength=None, best=True):
    """One arm: `strength` 0 leaves particles alone; with `best` the best of a set is returned."""
    world = config.world
    strength = config.strength if strength is None else strength

    @partial(jax.jit, static_argnums=2)
    def study(params, key, count):
        """The returned sample of each set; all particles, their target and a second one; numbers."""
        sample_key, pick_key, *target_keys = jax.random.split(key, 4)
        steering = fk.Steering(
            potential,
            strength,
            count,
            config.start,
            config.every,
            config.ess_below,
            worst=config.worst,
        )
        steer = partial(
            fk.steer,
            world.velocity(params),
            world.reward,
            steering,
            event=world.event,
            steps=config.steps,
        )
        found = jax.vmap(steer)(jax.random.split(sample_key, config.sets))
        flat = found.x.reshape(-1, *world.event)
        share = jax.nn.softmax(found.log_weights, axis=1)
        chosen = jnp.argmax(found.rewards, axis=1) if best else jnp.zeros(config.sets, int)
        rows = jnp.arange(config.sets) * count + chosen
        picks = jax.random.choice(pick_key, len(flat), (config.matched,), p=share.ravel())
        clouds = [
            flat[picks],
            *(world.target(each, config.matched, config.strength) for each in target_keys),
        ]
        return (
            flat[rows],
            [cloud.reshape(config.matched, -1) for cloud in clouds],
            {
                "reward": jnp.mean(found.rewards.ravel()[rows]),
                "wanted": jnp.mean(world.wanted(flat[rows])),
                "mean_reward": jnp.mean(jnp.sum(share * found.rewards, axis=1)),
                "mean_wanted": jnp.sum(share.ravel() * world.wanted(flat)) / config.sets,
                "resampled": jnp.mean(jnp.sum(found.resampled, axis=1)),
            },
        )

    def run_seed(run, shared):
        stage, rows = run.stage("particles"), {}
        for count in config.particles:
            returned, clouds, numbers = study(shared, jax.random.fold_in(run.key, count), count)
            cloud, target, floor = (np.asarray(points) for points in clouds)
            distances = {"w2": wasserstein2(cloud, target), "w2_floor": wasserstein2(floor, target)}
            rows[count] = {k: float(value) for k, value in (numbers | distances).items()}
            stage.log(count, rows[count])
            stage.picture(f"returned_{count}", world.picture(np.asarray(returned)))
        fewest, middle, most = (rows[count] for count in config.particles)
        w2_gain = fewest["w2"] - most["w2"]
        return middle | {"reward_most": most["reward"], "w2_most": most["w2"], "w2_gain": w2_gain}

    return run_seed


MINI = Config()
DIGITS = Config(
    world=RareDigit(), sets=64, strength=1.0, particles=(4, 8, 16), worst=-50.0, matched=256
)
# Steps, particles, strength and schedule are those of the authors' launch script for Stable Diffusion
# (resampling every 20 of 100 steps, from 20), 2.1.
PAPER = Config(
    data="GenEval prompts, stable-diffusion-2-1",
    world=RareDigit(model=SD21),
    particles=(2, 4, 8),
    sets=553,
    steps=100,
    strength=10.0,
    start=20,
    every=20,
)
SMOKE = smoke(MINI, particles=(2, 3, 4), sets=4, steps=6, start=1, every=2, matched=8)


def workloads(config):
    """A step of the network, on the particles of 16 samples."""
    return [velocities(FlowModel(config.world.model), 16 * max(config.particles), config.steps)]


METHODS = {"fk_diff": fk.difference, "fk_max": fk.maximum, "fk_add": fk.addition}
TABLE = "README: FK steering beats best-of-n with as many particles"
SCALING = "method: particles converge to the tilted distribution"

EXPERIMENT = Experiment(
    paper=Paper(
        title="A General Framework for Inference-time Scaling and Steering of Diffusion Models",
        arxiv="2501.06848",
        code="github.com/zacharyhorvitz/Fk-Diffusion-Steering",
    ),
    prepare=prepare,
    arms={
        "base": Arm(partial(sample, strength=0.0, best=False), "one sample"),
        "bon": Arm(partial(sample, strength=0.0), "best of n"),
        "is": Arm(sample, "importance resampling at the end"),
        **{name: Arm(partial(sample, potential=way)) for name, way in METHODS.items()},
    },
    scales={"mini": MINI, "smoke": SMOKE, "digits": DIGITS, "paper": PAPER},
    claims=[
        Claim("reward", "bon", ">", "base", source="best-of-n is the baseline"),
        *(Claim("reward", name, ">", "bon", source=TABLE) for name in METHODS),
        *(Claim("wanted", name, ">", "bon", source=TABLE) for name in METHODS),
        Claim("mean_reward", "fk_diff", ">", "is", source=TABLE),
        Claim("w2", "fk_diff", "<", "is", source=SCALING),
        Claim("w2_gain", "fk_diff", ">", 0.0, source=SCALING),
    ],
    curves=("reward", "wanted", "w2"),
    workloads=workloads,
)
