"""Text to SQL: responses whose queries are run, and a judge of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from rewardjax.losses import Loss, binary_cross_entropy
from rewardjax.models.heads import RewardModel
from rewardjax.recipes.preference_data import language_batch
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.rewards.sql import PARTS, query_rewards
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.sampling.transcripts import transcripts
from rewardjax.statistics import Mean
from rewardjax.tasks.sql import SQLWorld
from rewardjax.training.run import Run
from rewardjax.trajectory import Trajectory, respond


class QueryTask:
    """A policy that writes queries, and the databases that answer them.

    Args:
      world: of the questions and databases.
      policy: writes one response a prompt.
      evaluation_prompts: fresh ones at each measurement.
    """

    def __init__(self, world: SQLWorld, policy: LanguagePolicy, evaluation_prompts: int):
        self.world, self.policy, self.count = world, policy, evaluation_prompts
        self.databases = world.open_databases()

        @partial(jax.jit, static_argnums=(2, 3))
        def sample(params, key, count: int, held_out: bool):
            ask, act = jax.random.split(key)
            return policy.rollout(params, world.prompts(ask, count, held_out=held_out), act)

        self.sample = sample

    def parts(self, traj: Trajectory) -> dict[str, np.ndarray]:
        """Each of `PARTS`, `[batch]`, of a trajectory on the host."""
        asked = zip(
            self.world.responses(traj),
            self.world.references(traj),
            np.asarray(traj.info["database"]),
            strict=True,
        )
        found = [query_rewards(text, query, self.databases[at]) for text, query, at in asked]
        return {name: np.array([row[name] for row in found], np.float32) for name in PARTS}

    def measure(self, params, key: PRNGKeyArray, *, held_out: bool = False) -> dict[str, float]:
        """The mean of each part on fresh questions."""
        traj = jax.device_get(self.sample(params, key, self.count, held_out))
        return {name: float(np.mean(values)) for name, values in self.parts(traj).items()}

    def results(self, stage: Run, params) -> dict[str, float]:
        """`execution`, `syntax`, `ngram`, and `held_out`, execution on compositions never trained on.

        Samples are written to the stage.
        """
        traj = jax.device_get(self.sample(params, stage.key, 8, True))
        shown = traj.with_info(**self.parts(traj))
        stage.samples(0, transcripts(shown, self.world.decode, columns=PARTS))
        seen = self.measure(params, stage.key)
        unseen = self.measure(params, stage.key, held_out=True)
        found = {name: seen[name] for name in ("execution", "syntax", "ngram")}
        return found | {"held_out": unseen["execution"]}


def graded_answers(world: SQLWorld, key: PRNGKeyArray, count: int) -> dict[str, Array]:
    """Answers, half of them to another question, and as `grade` the share of its parts that is right."""
    ask, slip, draw = jax.random.split(key, 3)
    prompts = world.prompts(ask, count)
    asked, other = prompts.info["question"], world.prompts(draw, count).info["question"]
    answered = jnp.where(jax.random.bernoulli(slip, 0.5, asked.shape), other, asked)
    traj = respond(prompts, *world.answers(prompts, answered))
    return language_batch(traj) | {"grade": world.agreement(asked, answered)}


def grading(config: SupervisedConfig, model: RewardModel, world: SQLWorld) -> Supervised:
    """Training of a judge whose `sigmoid(score)` is a response's grade."""

    def loss(params, batch, frozen=None):
        scores = model.score(params, batch["tokens"], batch["valid"])
        error = jnp.abs(jax.nn.sigmoid(scores) - batch["grade"])
        values = binary_cross_entropy(scores, batch["grade"])
        return Loss({"grade": Mean.of(values)}, {"error": Mean.of(error)})

    batches = partial(graded_answers, world)
    return Supervised(config, init=model.boxed_init, loss=loss, batches=batches)
