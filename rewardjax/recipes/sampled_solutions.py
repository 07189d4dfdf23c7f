"""Judged solutions of generated questions: a generator learns from demonstrations and is sampled."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from rewardjax.data.solutions import JoinedSource
from rewardjax.data.sources import ArraySource
from rewardjax.evaluation.verification import verification
from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.objectives import language_modelling
from rewardjax.recipes.preference_data import language_batch
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.recipes.verifier import VerifierStudy
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.sampling.transcripts import transcripts
from rewardjax.tasks.arithmetic import Arithmetic
from rewardjax.training.loop import LoopConfig
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.run import Run
from rewardjax.trajectory import Prompts, respond

WORLD = Arithmetic(modulus=7, min_steps=2, max_steps=2)


@dataclasses.dataclass(frozen=True)
class SampledConfig:
    """The task, the generator and its samples.

    Attributes:
      error_rate: of each step of a demonstration.
      paraphrase: whether demonstrations have connectives between their steps.
      demonstrations: that the generator learns from, one a question.
      questions: of these, those that verifiers learn from.
      samples: of the generator to each of them.
      temperature: of these samples and of those to choose from.
      evaluation_questions: ones without a demonstration.
      candidates: samples to choose from.
      sft: of the generator, on the demonstrations.
    """

    world: Arithmetic = WORLD
    model: TransformerConfig = TransformerConfig(vocab=WORLD.vocab_size, layers=4, mlp_width=128)
    error_rate: float = 0.25
    paraphrase: bool = False
    demonstrations: int = 4000
    questions: int = 500
    samples: int = 80
    temperature: float = 1.0
    evaluation_questions: int = 512
    candidates: int = 8
    sft: SupervisedConfig = SupervisedConfig(
        64,
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule="linear"),
        loop=LoopConfig(steps=400, steps_per_call=50),
    )

    @property
    def longest(self) -> int:
        """Tokens of the longest demonstration: without connectives a step has two, the answer two."""
        return self.world.max_response if self.paraphrase else 2 * self.world.max_steps + 2


def unseen(world: Arithmetic, key: PRNGKeyArray, count: int, seen: Prompts) -> Prompts:
    """Prompts that are not among those seen.

    Raises:
      ValueError: too few were left of 16 times as many drawn.
    """
    known = {row.tobytes() for row in np.asarray(seen.tokens)}
    drawn = world.prompts(key, 16 * count)
    new = [i for i, row in enumerate(np.asarray(drawn.tokens)) if row.tobytes() not in known]
    if len(new) < count:
        raise ValueError(
            f"evaluation_questions: expected {count} without a demonstration, found {len(new)}"
            f" among {16 * count} drawn: lower demonstrations, or make questions longer"
        )
    return jax.tree.map(lambda x: x[jnp.array(new[:count])], drawn)


def sampled_study(config: SampledConfig, batch_size: int):
    """`run -> VerifierStudy` of a generator's solutions to expressions.

    Batches have `batch_size` judged solutions and as many demonstrations. `evaluate` also finds
    `greedy`, how often the generator's own solution at temperature 0 is correct, and
    `gain_over_greedy`, what `best_of_n` has above it.
    """
    world = config.world
    policy = LanguagePolicy(
        LanguageModel(config.model),
        max_new=config.longest,
        stop=(world.eos,),
        temperature=config.temperature,
        prompt_columns=world.prompt_length,
    )
    generator = Supervised(
        config.sft, init=policy.model.boxed_init, loss=language_modelling(policy.model)
    )
    score = jax.jit(RewardModel(config.model).score)

    @partial(jax.jit, static_argnames=("count", "temperature"))
    def solve(params, prompts, key, count, temperature):
        sampler = dataclasses.replace(policy, group_size=count, temperature=temperature)
        traj = sampler.rollout(params, prompts, key)
        return traj.with_info(correct=world.verify(traj))

    def study(run: Run) -> VerifierStudy:
        ask, write, sample, test, choose = jax.random.split(run.stage("questions").key, 5)
        prompts = world.prompts(ask, config.demonstrations)
        written = world.demonstrations(
            write, prompts, error_rate=config.error_rate, paraphrase=config.paraphrase
        )
        written = jax.tree.map(lambda x: x[:, : config.longest], written)
        language = language_batch(respond(prompts, *written))

        def demonstrations(batch_size, seed):
            return ArraySource(language, batch_size, seed)

        shown = demonstrations(config.sft.batch_size, run.seed)
        params = generator.run(run.stage("generator"), source=shown).params
        some = jax.tree.map(lambda x: x[: config.questions], prompts)
        judged = solve(params, some, sample, config.samples, config.temperature)
        labelled = language_batch(judged) | {"correct": judged.info["correct"]}
        fresh = unseen(world, test, config.evaluation_questions, prompts)
        held_out = solve(params, fresh, choose, config.candidates, config.temperature)
        correct = held_out.info["correct"].reshape(-1, config.candidates)
        greedy = jnp.mean(solve(params, fresh, choose, 1, 0.0).info["correct"])
        share = float(jnp.mean(judged.info["correct"]))

        def source(seed):
            beside = {"language": demonstrations(batch_size, seed)}
            return JoinedSource(ArraySource(labelled, batch_size, seed), beside)

        def evaluate(params):
            scores = score(params, held_out.tokens, held_out.valid).reshape(correct.shape)
            found = verification(scores, correct > 0, share) | {"greedy": float(greedy)}
            return found | {"gain_over_greedy": found["best_of_n"] - found["greedy"]}

        def show(params):
            some = jax.tree.map(lambda x: x[:8], held_out)
            rated = some.with_info(score=score(params, some.tokens, some.valid))
            return transcripts(rated, world.decode, columns=("correct", "score"))

        frozen = {"tokens": held_out.tokens, "valid": held_out.valid, "correct": correct}
        return VerifierStudy(params, source, evaluate, show, frozen)

    return study
