"""A language model as a judge of pairs: what it is rewarded for, and how it is examined."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from rewardjax import losses, rewards
from rewardjax.models.heads import RewardModel
from rewardjax.recipes.grpo import grpo
from rewardjax.recipes.objectives import reward_modelling
from rewardjax.recipes.policy_gradient import PolicyGradient, PolicyGradientConfig
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.rewards.verdict import parse_verdict, verdict_reward
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.sampling.transcripts import transcripts
from rewardjax.statistics import Mean
from rewardjax.tasks.pair_judgement import PairJudgement
from rewardjax.trajectory import Prompts, Trajectory

BARE = 2  # tokens of a verdict without a judgement: the tag and `eos`


@dataclasses.dataclass(frozen=True)
class Judge:
    """Pure functions of a policy's `params`; only `samples` runs on the host.

    Attributes:
      world: the pairs.
      policy: samples judgements.
      think: whether the judge writes a judgement; else the bare verdict.
      tail: tokens at a judgement's end in which the verdict is looked for.
      pairs: of each split in an examination.
    """

    world: PairJudgement
    policy: LanguagePolicy
    think: bool = True
    tail: int = 3
    pairs: int = 256

    def __post_init__(self):
        if not self.think:
            object.__setattr__(self, "policy", dataclasses.replace(self.policy, max_new=BARE))

    def prompts(self, key: PRNGKeyArray, n: int) -> Prompts:
        """Pairs of the easy split, as they are trained on."""
        return self.world.prompts(key, n, think=self.think)

    def decided(self, traj: Trajectory) -> Int[Array, "batch"]:
        """0 where A is called better, 1 where B is, -1 where there is no verdict."""
        return parse_verdict(traj.tokens, traj.mask, self.world.tags, tail=self.tail)

    def reward(self, traj: Trajectory) -> rewards.Reward:
        """1 for the right verdict and -1 for anything else."""
        values = verdict_reward(self.decided(traj), traj.info["label"])
        return rewards.outcome(values, traj.mask, name="verdict")

    def grpo(self, config: PolicyGradientConfig, group_size: int, kl: float) -> PolicyGradient:
        """GRPO on the verdicts, with a penalty on the distance from the frozen parameters."""
        return grpo(
            config,
            self.policy,
            group_size,
            kl,
            prompts=self.prompts,
            reward=self.reward,
            evaluate=self.examine,
        )

    def examine(self, params, frozen, key: PRNGKeyArray) -> dict[str, Array]:
        """Greedy verdicts on both splits, each pair in both orders.

        Returns:
          `easy`, `hard`: share of right verdicts. `consistency`: share of pairs for which the same
          answer wins in both orders. `parsed`: share with a verdict. `wrong_solution`: share of
          reasoning judgements whose own solution is wrong (0 without judgements).
        """
        parts = []
        for i, world in enumerate((self.world, self.world.hard)):
            prompts = world.prompts(jax.random.fold_in(key, i), self.pairs, think=self.think)
            parts += [prompts, world.swapped(prompts)]
        prompts = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
        greedy = dataclasses.replace(self.policy, temperature=0.0)
        traj = greedy.rollout(params, prompts, key)
        decided = self.decided(traj)
        right = jnp.mean((decided == traj.info["label"]).reshape(2, -1), axis=1)
        first, second = decided.reshape(2, 2, -1).swapaxes(0, 1)
        solved, called = self.world.solved(traj)
        return {
            "easy": right[0],
            "hard": right[1],
            "consistency": jnp.mean((first >= 0) & (first == 1 - second)),
            "parsed": jnp.mean(decided >= 0),
            "wrong_solution": Mean.of(~solved, called).value,
        }

    def samples(self, params, key: PRNGKeyArray, count: int = 8) -> list[dict]:
        """Judgements of the hard split that a person can read, with verdict, label and reward."""
        prompts = self.world.hard.prompts(key, count, think=self.think)
        traj = jax.jit(self.policy.rollout)(params, prompts, key)
        decided = self.decided(traj)
        reward = verdict_reward(decided, traj.info["label"])
        traj = traj.with_info(verdict=decided, reward=reward)
        return transcripts(traj, self.world.decode, columns=("verdict", "label", "reward"))


def scalar_judge(
    world: PairJudgement, scorer: RewardModel, config: SupervisedConfig, pairs: int
) -> Supervised:
    """A Bradley-Terry head trained on the easy split, each answer by itself: what judges compete with.

    It logs the accuracies `easy` and `hard`, each on this number of fresh pairs.
    """

    def batches(world, key, n):
        tokens, valid = world.single_answers(world.prompts(key, n))
        return {"tokens": tokens, "valid": valid}

    def accuracy(params, world, key):
        batch = batches(world, key, pairs)
        scores = scorer.score(params, batch["tokens"], batch["valid"])
        return jnp.mean(scores[:, 0] > scores[:, 1])

    def evaluate(params: Any, frozen, key: PRNGKeyArray) -> dict[str, Array]:
        worlds = {"easy": world, "hard": world.hard}
        return {name: accuracy(params, split, key) for name, split in worlds.items()}

    return Supervised(
        config,
        init=scorer.boxed_init,
        loss=reward_modelling(
            scorer, lambda scores, batch: losses.bradley_terry(scores[:, 0] - scores[:, 1])
        ),
        batches=partial(batches, world),
        evaluate=evaluate,
    )
