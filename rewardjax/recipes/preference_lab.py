"""A preference world made ready for reward-model experiments: a policy, comparisons, a proxy.

Writers' demonstrations make an initial policy (SFT); annotators compare its responses, with noise and
perhaps with a bias; a reward model learns from the comparisons. Gold utility stays known throughout.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from rewardjax import credit, losses, rewards
from rewardjax.data.sources import ArraySource
from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.objectives import direct_preference, language_modelling, reward_modelling
from rewardjax.recipes.policy_gradient import (
    Annotate,
    Learner,
    PolicyGradient,
    PolicyGradientConfig,
    scored,
)
from rewardjax.recipes.preference_data import comparisons, demonstrations
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.sampling.transcripts import transcripts
from rewardjax.statistics import Mean, to_groups
from rewardjax.tasks.annotators import compare
from rewardjax.tasks.preference_world import ATTRIBUTES, PreferenceWorld
from rewardjax.training.loop import LoopConfig
from rewardjax.training.run import Run
from rewardjax.training.state import Metrics
from rewardjax.trajectory import Trajectory

TINY = TransformerConfig(
    vocab=24, layers=2, width=32, heads=2, kv_heads=2, head_dim=16, mlp_width=64, context=32
)


@dataclasses.dataclass(frozen=True)
class LabConfig:
    """The world, the models and who compares.

    Attributes:
      world: prompts, writers and gold utility.
      model: of the policy, the reward model and the critic.
      sft: of the initial policy on writers' responses.
      reward_model: of the proxy on comparisons.
      comparisons: labelled pairs of the initial policy's responses.
      temperature: of the annotators, in units of gold utility.
      label_noise: share of labels turned round.
      annotator_bias: what annotators see in each gaudy token, in units of gold utility.
    """

    world: PreferenceWorld = PreferenceWorld()
    model: TransformerConfig = TINY
    sft: SupervisedConfig = SupervisedConfig(128, loop=LoopConfig(steps=200, steps_per_call=50))
    reward_model: SupervisedConfig = SupervisedConfig(
        64, loop=LoopConfig(steps=200, steps_per_call=50)
    )
    comparisons: int = 1500
    temperature: float = 0.2
    label_noise: float = 0.1
    annotator_bias: float = 0.0


def pairwise(scores, batch):
    """Bradley-Terry on a row's two scores, the preferred response first."""
    return losses.bradley_terry(scores[:, 0] - scores[:, 1])


class PreferenceLab:
    """The lab's programs, compiled once; seeds share them.

    Args:
      config: world, models and annotators.
      annotate: writes more of what frozen parameters say, once the proxy is there.
      measure: more metrics of annotated rows.
      proxy: `(frozen, traj) -> scores` in place of the lab's own reward model.
      together: adjacent responses to a prompt that the proxy reads at once, in evaluations too.
    """

    def __init__(
        self,
        config: LabConfig,
        *,
        annotate: Annotate | None = None,
        measure: Callable[[Trajectory], Metrics] | None = None,
        proxy: Callable[[Any, Trajectory], Float[Array, "batch"]] | None = None,
        together: int = 1,
    ):
        self.config, self.world = config, config.world
        self._proxy, self._together = proxy or self._own_proxy, together
        self._annotate_more, self._measure_more = annotate, measure
        self.scorer = RewardModel(config.model)
        self.policy = LanguagePolicy(
            LanguageModel(config.model),
            max_new=self.world.response_length,
            stop=(self.world.eos,),
            prompt_columns=self.world.prompt_length,
        )
        model = self.policy.model
        self._sft = Supervised(
            config.sft,
            init=model.boxed_init,
            loss=language_modelling(model),
            batches=demonstrations(self.world.prompts, self.world.writers),
        )
        self._fit = Supervised(
            config.reward_model,
            init=self.scorer.boxed_init,
            loss=reward_modelling(self.scorer, pairwise),
        )
        self._compare = jax.jit(self._comparisons)
        self._sample = jax.jit(self._sampled, static_argnums=3)

    def sft(self, run: Run):
        """Parameters of the initial policy."""
        return self._sft.run(run).params

    def pairs(self, run: Run, reference, weights=None) -> dict[str, np.ndarray]:
        """Compared responses of the initial policy, the preferred one first, as `comparisons` has them.

        Args:
          run: gives the key.
          reference: the initial policy.
          weights: what annotators see in each attribute, `[attributes]`: `seen` without them.
        """
        weights = self.seen if weights is None else weights
        return jax.tree.map(np.asarray, self._compare(reference, run.key, weights))

    @property
    def seen(self) -> Float[Array, "attributes"]:
        """What annotators see in each attribute: gold's weights and their bias."""
        weights = self.world.gold_weights
        return weights.at[ATTRIBUTES.index("gaudy")].add(self.config.annotator_bias)

    def reward_model(self, run: Run, reference, pairs=None):
        """Parameters of the proxy: compare the initial policy's responses, then fit.

        Args:
          run: its folder and key.
          reference: the initial policy.
          pairs: comparisons to fit, if there are some already.
        """
        pairs = self.pairs(run.stage("comparisons"), reference) if pairs is None else pairs
        source = ArraySource(pairs, self.config.reward_model.batch_size, run.seed)
        return self._fit.run(run, params=self.scorer.init(run.key, reference), source=source).params

    def direct_preference(
        self, config: SupervisedConfig, *, beta: float, evaluation_prompts: int = 256
    ) -> Supervised:
        """DPO (arXiv:2305.18290) on pairs: run it from the reference, with `frozen` as `annotate` reads it.

        It is evaluated as reinforcement is. `beta` is the weight of the KL divergence in its objective.
        """
        ratios = direct_preference(
            self.policy.model, lambda found, batch: pairwise(beta * found, batch)
        )
        return Supervised(
            config,
            init=self.policy.model.boxed_init,
            loss=lambda params, batch, frozen: ratios(params, batch, frozen["reference"]),
            evaluate=partial(self.evaluate, prompts=evaluation_prompts),
        )

    def _comparisons(self, params, key, weights) -> dict[str, Array]:
        c, world = self.config, self.world
        prompt_key, sample_key, label_key = jax.random.split(key, 3)
        prompts = world.prompts(prompt_key, c.comparisons)
        traj = dataclasses.replace(self.policy, group_size=2).rollout(params, prompts, sample_key)
        label = partial(compare, temperature=c.temperature, flip_rate=c.label_noise)
        utility = world.gold(traj.tokens, traj.mask, traj.info, weights)
        return comparisons(traj, utility, label, label_key)

    def sampler(self, size: int, prompts: int) -> Callable[..., dict[str, Array]]:
        """`(policy, key) -> ` a group of `size` responses to each of some prompts, with gold utility.

        Columns are `tokens`, `valid` `[prompts, size, time]` and `gold` `[prompts, size]`.
        """
        policy = dataclasses.replace(self.policy, group_size=size)

        @jax.jit
        def sample(params, key):
            prompt_key, own_key = jax.random.split(key)
            traj = policy.rollout(params, self.world.prompts(prompt_key, prompts), own_key)
            found = {"tokens": traj.tokens, "valid": traj.valid, "gold": self.gold(traj)}
            return {name: to_groups(x, size) for name, x in found.items()}

        return sample

    def gold(self, traj: Trajectory) -> Float[Array, "batch"]:
        """Gold utility of each row."""
        return self.world.gold(traj.tokens, traj.mask, traj.info)

    def annotate(self, frozen, traj: Trajectory) -> Trajectory:
        """Writes `proxy` and `reference_logprobs`: `frozen` has `reward_model` and `reference`."""
        traj = traj.with_info(
            proxy=self._proxy(frozen, traj),
            reference_logprobs=self.policy.score(frozen["reference"], traj).logprobs,
        )
        return traj if self._annotate_more is None else self._annotate_more(frozen, traj)

    def _own_proxy(self, frozen, traj: Trajectory) -> Float[Array, "batch"]:
        return self.scorer.score(frozen["reward_model"], traj.tokens, traj.valid)

    def policy_gradient(
        self,
        config: PolicyGradientConfig,
        *,
        shape: Callable[[Trajectory], Float[Array, "batch"]],
        token_reward: Callable[[Trajectory], Float[Array, "batch time"]] | None = None,
        kl: float,
        credit: Callable[..., Array],
        loss: Callable[..., losses.Loss],
        group_size: int = 1,
        learners: Mapping[str, Learner] | None = None,
        select: Callable[[Trajectory, PRNGKeyArray], Trajectory] | None = None,
        adjacent: int = 1,
        prompts=None,
        evaluation_prompts: int = 256,
    ) -> PolicyGradient:
        """Optimisation of the policy for the proxy; run it with `frozen` as `annotate` reads it.

        Args:
          config: budget; of its `prompts` samples, `group_size` share a prompt.
          shape: of an annotated trajectory, the outcome that is rewarded.
          token_reward: of an annotated trajectory, what each step earns besides.
          kl: weight of the per-token KL penalty to the reference.
          credit: `(rewards, traj) -> advantages`.
          loss: `(scores, traj, advantages) -> Loss`.
          group_size: samples a prompt.
          learners: a critic, running statistics.
          select: the rows to learn from, as `PolicyGradient` takes it.
          adjacent: rows that stay side by side, as `PolicyGradient` takes it.
          prompts: `(key, n) -> Prompts`; without it they come from the run's source.
          evaluation_prompts: at each evaluation.
        """
        policy = dataclasses.replace(self.policy, group_size=group_size)

        def reward(traj):
            parts = {
                "shaped": rewards.outcome(shape(traj), traj.mask, name="shaped"),
                "kl": rewards.kl_penalty(traj, coefficient=kl),
            }
            if token_reward is not None:
                parts["token"] = rewards.dense(token_reward(traj), traj.mask, "token")
            return rewards.weighted_sum(parts, dict.fromkeys(parts, 1.0))

        return PolicyGradient(
            dataclasses.replace(config, prompts=config.prompts // group_size),
            init=policy.model.boxed_init,
            rollout=policy.rollout,
            prompts=prompts,
            annotate=self.annotate,
            learners=learners,
            reward=reward,
            credit=credit,
            loss=scored(policy.score, loss),
            measure=self.measure,
            select=select,
            adjacent=adjacent,
            evaluate=partial(self.evaluate, prompts=evaluation_prompts),
        )

    def grpo(
        self,
        config: PolicyGradientConfig,
        *,
        group_size: int,
        kl: float,
        evaluation_prompts: int = 256,
    ) -> PolicyGradient:
        """`policy_gradient` on the proxy as it is: GRPO with prompts of the world.

        Args:
          config: budget; of its `prompts` samples, `group_size` share a prompt.
          group_size: samples that are compared.
          kl: weight of the per-token KL penalty to the reference.
          evaluation_prompts: at each evaluation.
        """
        return self.policy_gradient(
            config,
            shape=lambda traj: traj.info["proxy"],
            kl=kl,
            credit=partial(credit.group_relative, group_size=group_size),
            loss=losses.policy_loss(surrogate=losses.clipped(0.2)),
            group_size=group_size,
            prompts=self.world.prompts,
            evaluation_prompts=evaluation_prompts,
        )

    def measure(self, traj: Trajectory) -> Metrics:
        """Gold, proxy, attributes and the sampled KL to the reference, of annotated rows."""
        attributes = self.world.attributes(traj.tokens, traj.mask, traj.info)
        divergence = jnp.where(traj.mask, traj.logprobs - traj.info["reference_logprobs"], 0.0)
        more = {} if self._measure_more is None else self._measure_more(traj)
        return {
            "gold": Mean.of(self.gold(traj)),
            "proxy": Mean.of(traj.info["proxy"]),
            "kl": Mean.of(jnp.sum(divergence, axis=1)),
            **{name: Mean.of(attributes[:, i]) for i, name in enumerate(ATTRIBUTES)},
            **more,
        }

    def evaluate(self, params, frozen, key, *, prompts: int) -> dict[str, Array]:
        """`measure` on fresh prompts, and the gold win rate against the reference policy.

        Args:
          params: the policy.
          frozen: as `annotate` reads it.
          key: consumed.
          prompts: how many responses, of which `together` share a prompt.
        """
        prompt_key, own_key, other_key = jax.random.split(key, 3)
        asked = self.world.prompts(prompt_key, prompts // self._together)
        policy = dataclasses.replace(self.policy, group_size=self._together)
        own = self.annotate(frozen, policy.rollout(params, asked, own_key))
        other = policy.rollout(frozen["reference"], asked, other_key)
        gold, before = self.gold(own), self.gold(other)
        wins = jnp.mean((gold > before) + 0.5 * (gold == before))
        return {name: mean.value for name, mean in self.measure(own).items()} | {"win_rate": wins}

    def samples(self, params, frozen, key, count: int = 8) -> list[dict]:
        """Rows that a person can read, with proxy and gold."""
        traj = self._sample(params, frozen, key, count)
        return transcripts(traj, self.world.decode, columns=("proxy", "gold"), count=count)

    def _sampled(self, params, frozen, key, count):
        traj = self.policy.rollout(params, self.world.prompts(key, count), key)
        return self.annotate(frozen, traj).with_info(gold=self.gold(traj))
