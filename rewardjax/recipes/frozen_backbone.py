"""A reward model's backbone that was trained on many people's preferences, then frozen.

Writers answer, and annotators who want different aspects of a response compare. A transformer with a
head for each annotator learns all their choices by Bradley-Terry; the heads are thrown away. What small
heads make of its features is then a matter of milliseconds.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rewardjax import losses
from rewardjax.losses import Loss
from rewardjax.models.features import Features, last_token_features
from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.preference_data import language_batch
from rewardjax.recipes.preference_lab import TINY
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.statistics import Mean
from rewardjax.tasks.annotators import compare
from rewardjax.tasks.preference_world import PreferenceWorld
from rewardjax.training.loop import LoopConfig
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.run import Run
from rewardjax.trajectory import Prompts, Trajectory, respond

# What can be wanted of responses: (world, traj) -> [batch, aspects].
Aspects = Callable[[PreferenceWorld, Trajectory], Float[Array, "batch aspects"]]


def attributes(world: PreferenceWorld, traj: Trajectory) -> Float[Array, "batch aspects"]:
    """The world's attributes."""
    return world.attributes(traj.tokens, traj.mask, traj.info)


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """The world, the transformer and whose preferences it has seen.

    Attributes:
      world: prompts, writers, attributes of responses.
      instructions: tokens beyond the world's vocabulary that can stand before a prompt.
      model: sizes; its vocabulary holds the instructions as well.
      annotators: how many taught it; each wants a random direction of the standardised aspects.
      temperature: of their choices, in standard deviations of an aspect.
      fit: batch_size pairs a step, each compared by all annotators.
    """

    world: PreferenceWorld = PreferenceWorld(gaudy_correlation=0.0)
    instructions: int = 4
    model: TransformerConfig = dataclasses.replace(TINY, vocab=28)
    annotators: int = 16
    temperature: float = 0.3
    fit: SupervisedConfig = SupervisedConfig(
        64,
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule="cosine", warmup=0.05),
        loop=LoopConfig(steps=600, steps_per_call=50),
    )


class FrozenBackbone:
    """The backbone's programs, compiled once; seeds share them.

    Args:
      config: the world, the transformer, its training.
      aspects: `(world, traj) -> [batch, aspects]`, what there is to want; the world's attributes without.

    Raises:
      ValueError: the model's vocabulary is too small for the world's and the instructions.
    """

    def __init__(self, config: BackboneConfig, aspects: Aspects | None = None):
        needed = config.world.vocab_size + config.instructions
        if config.model.vocab < needed:
            raise ValueError(f"model.vocab: expected at least {needed}, found {config.model.vocab}")
        self.config, self.world = config, config.world
        self.model = LanguageModel(config.model)
        self._scorer = RewardModel(config.model, config.annotators)
        self._fit = Supervised(
            config.fit, init=self._scorer.boxed_init, loss=self._loss, batches=self._comparisons
        )
        self._aspects = aspects or attributes
        written = jax.jit(self.write, static_argnums=1)(jax.random.key(0), 1024)
        typical = np.asarray(self._aspects(self.world, written))
        self._mean, self._spread = typical.mean(axis=0), typical.std(axis=0)

    def train(self, run: Run) -> Any:
        """The backbone's parameters."""
        return self._fit.run(run).params["backbone"]

    def write(self, key: PRNGKeyArray, n: int, each: int = 2) -> Trajectory:
        """`each` writers' responses to each of `n` prompts, in adjacent rows."""
        prompt_key, write_key = jax.random.split(key)
        prompts = self.world.prompts(prompt_key, n)
        prompts = jax.tree.map(lambda x: jnp.repeat(x, each, axis=0), prompts)
        tokens, valid, _ = self.world.writers(write_key, prompts)
        return respond(prompts, tokens, valid)

    def standardised(self, traj: Trajectory) -> Float[Array, "batch aspects"]:
        """Aspects of responses: 0 for what writers write on average, 1 a standard deviation more."""
        return (self._aspects(self.world, traj) - self._mean) / self._spread

    def features(self, params: Any, traj: Trajectory) -> Features:
        """Features `[batch, width]` of prompts and responses."""
        return last_token_features(self.model, params, traj.tokens, traj.valid, traj.mask)

    def instructed(
        self, params: Any, prompts: Prompts, instruction: Int[Array, "batch"]
    ) -> Float[Array, "batch width"]:
        """Features of prompts that an instruction, a number from 0, stands before."""
        first = self.world.vocab_size + instruction[:, None]
        tokens = jnp.concatenate([first, prompts.tokens], axis=1)
        valid = jnp.concatenate([jnp.ones_like(first, bool), prompts.valid], axis=1)
        none = jnp.zeros_like(valid)
        return last_token_features(self.model, params, tokens, valid, none).prompt

    def _comparisons(self, key: PRNGKeyArray, n: int) -> dict[str, Array]:
        c = self.config
        write_key, label_key = jax.random.split(key)
        traj = self.write(write_key, n)
        # Who annotates is a property of the world, not of the batch.
        tastes = jax.random.normal(jax.random.key(1), (len(self._spread), c.annotators))
        utility = (self.standardised(traj) @ tastes).reshape(n, 2, c.annotators)
        first = compare(label_key, utility[:, 0], utility[:, 1], temperature=c.temperature)
        batch = language_batch(traj)
        return jax.tree.map(lambda x: x.reshape(n, 2, -1), batch) | {"first": first}

    def _loss(self, params, batch, frozen=None) -> Loss:
        scores = self._scorer.scores(params, batch["tokens"], batch["valid"])
        sign = jnp.where(batch["first"], 1.0, -1.0)
        lead = (sign * (scores[:, 0] - scores[:, 1])).ravel()
        metrics = {"accuracy": Mean.of(lead > 0)}
        return Loss({"preference": Mean.of(losses.bradley_terry(lead))}, metrics)
