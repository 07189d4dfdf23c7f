"""Preference As Reward: bounded reward shaping against reward hacking (arXiv:2502.18770).

A policy trained on a learned reward over-optimises it: the proxy keeps rising while true quality
falls. The paper compares transforms of the proxy r and keeps the reward model's own preference
probability over M reference responses of the initial policy:

    r_RL = mean_m sigmoid(r - r_ref^m)        bounded, steep near the reference, then flat

Miniature: responses of up to 12 tokens; gold utility is coverage of the requested theme minus
repetition; writers of good responses are fond of a "gaudy" token that is worth nothing, so a reward
model learned from 1500 noisy comparisons likes it and extrapolates to responses full of it.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rewardjax import credit, losses, rewards
from rewardjax.data.sources import ArraySource
from rewardjax.experiment import Arm, Experiment, Paper
from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.critic import critic
from rewardjax.recipes.moments import outcome_moments
from rewardjax.recipes.objectives import language_modelling, reward_modelling
from rewardjax.recipes.policy_gradient import PolicyGradient, PolicyGradientConfig, scored
from rewardjax.recipes.preference_data import comparisons, demonstrations
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.rewards import shaping
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.statistics import Mean
from rewardjax.tasks.annotators import compare
from rewardjax.tasks.preference_world import ATTRIBUTES, PreferenceWorld
from rewardjax.training.loop import LoopConfig
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.trajectory import Prompts

TINY = TransformerConfig(
    vocab=24, layers=2, width=64, heads=4, kv_heads=4, head_dim=16, mlp_width=128
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share."""

    world: PreferenceWorld = PreferenceWorld()
    model: TransformerConfig = TINY
    sft: SupervisedConfig = SupervisedConfig(128, loop=LoopConfig(steps=200, steps_per_call=50))
    reward_model: SupervisedConfig = SupervisedConfig(
        64, loop=LoopConfig(steps=200, steps_per_call=50)
    )
    rl: PolicyGradientConfig = PolicyGradientConfig(
        prompts=128,
        optimizer=OptimizerConfig(learning_rate=2e-4),
        loop=LoopConfig(steps=300, steps_per_call=10, evaluate_every=10),
    )
    critic: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)
    group_size: int = 4  # of the GRPO arms
    comparisons: int = 1500
    label_noise: float = 0.1
    temperature: float = 0.2  # of the annotators, in units of gold utility
    annotator_bias: float = 0.1  # what annotators see in a gaudy token, in units of gold utility
    references: int = 10
    training_prompts: int = 512
    evaluation_prompts: int = 512
    kl: float = 0.005
    length_limit: int = 300
    length_rate: float = 0.01


# A shaping maps proxy scores [batch], reference scores [batch, m] and running statistics to rewards.
def vanilla(r, refs, stats):
    """The proxy itself."""
    return r


def par(r, refs, stats, *, m=1, k=1.0):
    """The paper's: the probability that the response is preferred to a reference."""
    return shaping.sigmoid_centred(r, refs[:, :m], k=k)


SHAPINGS = {
    "vanilla": vanilla,
    "centred": lambda r, refs, stats: shaping.centred(r, refs),
    "meanstd": lambda r, refs, stats: shaping.standardised(r, stats["mean"], stats["std"]),
    "minmax": lambda r, refs, stats: shaping.min_max(r, stats["low"], stats["high"]),
    "clip": lambda r, refs, stats: shaping.clipped_to(r, stats["mean"], stats["std"]),
    "lsc": lambda r, refs, stats: shaping.log_sigmoid_centred(r, refs),
    "ceiling": lambda r, refs, stats: shaping.ceiling(r, 3.0),
    "sigmoid_uncentred": lambda r, refs, stats: shaping.sigmoid(r),
    "par": par,
    "par_m10": partial(par, m=10),
    "par_k3": partial(par, k=3.0),
    "sgfc": lambda r, refs, stats: shaping.sigmoid_centred(r, refs[:, :1], offset=3.0),
}


def models(config):
    """The policy (also the reference) and the reward model (also the critic's architecture)."""
    world = config.world
    policy = LanguagePolicy(
        LanguageModel(config.model),
        max_new=world.response_length,
        stop=(world.eos,),
        prompt_columns=world.prompt_length,
    )
    return policy, RewardModel(config.model)


def prepare(config):
    """SFT on writers, comparisons of the SFT policy's responses, a reward model, references."""
    world, (policy, scorer) = config.world, models(config)
    sft = Supervised(
        config.sft,
        init=policy.model.boxed_init,
        loss=language_modelling(policy.model),
        batches=demonstrations(world.prompts, world.writers),
    )
    fit = Supervised(
        config.reward_model, init=scorer.boxed_init, loss=reward_modelling(scorer, bradley_terry)
    )
    biased = world.gold_weights.at[ATTRIBUTES.index("gaudy")].add(config.annotator_bias)
    label = partial(compare, temperature=config.temperature, flip_rate=config.label_noise)

    def sample(params, key, n, group_size):
        prompt_key, sample_key = jax.random.split(key)
        several = dataclasses.replace(policy, group_size=group_size)
        return several.rollout(params, world.prompts(prompt_key, n), sample_key)

    @jax.jit
    def compared(params, key):
        sample_key, label_key = jax.random.split(key)
        traj = sample(params, sample_key, config.comparisons, 2)
        utility = world.gold(traj.tokens, traj.mask, traj.info, biased)
        return comparisons(traj, utility, label, label_key)

    @jax.jit
    def referenced(params, reward_params, key):
        prompt_key, sample_key = jax.random.split(key)
        prompts = world.prompts(prompt_key, config.training_prompts)
        several = dataclasses.replace(policy, group_size=config.references)
        traj = several.rollout(params, prompts, sample_key)
        scores = scorer.score(reward_params, traj.tokens, traj.valid)
        return {
            "tokens": prompts.tokens,
            "valid": prompts.valid,
            "theme": prompts.info["theme"],
            "references": scores.reshape(-1, config.references),
        }

    def run_seed(run):
        reference = sft.run(run.stage("sft")).params
        pairs = jax.tree.map(np.asarray, compared(reference, run.stage("comparisons").key))
        source = ArraySource(pairs, config.reward_model.batch_size, run.seed)
        reward_params = fit.run(
            run.stage("reward_model"), params=scorer.init(run.key, reference), source=source
        ).params
        prompts = referenced(reference, reward_params, run.stage("references").key)
        frozen = {"reference": reference, "reward_model": reward_params}
        return frozen, jax.tree.map(np.asarray, prompts)

    return run_seed


def bradley_terry(scores, batch):
    """The reward model's loss: the preferred response comes first."""
    return losses.bradley_terry(scores[:, 0] - scores[:, 1])


def train(config, *, shape, kl=None, grpo=False):
    """One arm: PPO (or GRPO) on the shaped proxy."""
    world, (policy, scorer) = config.world, models(config)
    kl = config.kl if kl is None else kl
    group_size = config.group_size if grpo else 1
    policy = dataclasses.replace(policy, group_size=group_size)

    def rollout(params, batch, key):
        info = {name: batch[name] for name in ("theme", "references")}
        return policy.rollout(params, Prompts(batch["tokens"], batch["valid"], info), key)

    def annotate(frozen, traj):
        proxy = scorer.score(frozen["reward_model"], traj.tokens, traj.valid)
        proxy = shaping.length_guard(
            proxy, traj.lengths, limit=config.length_limit, rate=config.length_rate
        )
        reference = policy.score(frozen["reference"], traj).logprobs
        return traj.with_info(proxy=proxy, reference_logprobs=reference)

    def reward(traj):
        stats = {name: traj.info[f"proxy_{name}"] for name in ("mean", "std", "low", "high")}
        shaped = shape(traj.info["proxy"], traj.info["references"], stats)
        parts = {
            "shaped": rewards.outcome(shaped, traj.mask, name="shaped"),
            "kl": rewards.kl_penalty(traj, coefficient=kl),
        }
        return rewards.weighted_sum(parts, {"shaped": 1.0, "kl": 1.0})

    def measure(traj):
        gaudy = world.attributes(traj.tokens, traj.mask, traj.info)[:, 2]
        divergence = jnp.where(traj.mask, traj.logprobs - traj.info["reference_logprobs"], 0.0)
        return {
            "gold": Mean.of(world.gold(traj.tokens, traj.mask, traj.info)),
            "proxy": Mean.of(traj.info["proxy"]),
            "gaudy": Mean.of(gaudy),
            "kl": Mean.of(jnp.sum(divergence, axis=1)),
        }

    def evaluate(params, frozen, key):
        prompt_key, own_key, other_key = jax.random.split(key, 3)
        prompts = world.prompts(prompt_key, config.evaluation_prompts)
        single = dataclasses.replace(policy, group_size=1)
        own = annotate(frozen, single.rollout(params, prompts, own_key))
        other = single.rollout(frozen["reference"], prompts, other_key)
        gold, before = (world.gold(t.tokens, t.mask, t.info) for t in (own, other))
        wins = jnp.mean((gold > before) + 0.5 * (gold == before))
        return {name: mean.value for name, mean in measure(own).items()} | {"win_rate": wins}

    learners = {"moments": outcome_moments("proxy")}
    if not grpo:
        learners["critic"] = critic(scorer, config.critic, config.rl.loop.steps)
    program = PolicyGradient(
        dataclasses.replace(config.rl, prompts=config.rl.prompts // group_size),
        init=policy.model.boxed_init,
        rollout=rollout,
        annotate=annotate,
        learners=learners,
        reward=reward,
        credit=partial(credit.group_relative, group_size=group_size)
        if grpo
        else credit.whitened(credit.gae),
        loss=scored(policy.score, losses.policy_loss(surrogate=losses.clipped(0.2))),
        measure=measure,
        evaluate=evaluate,
    )

    def run_seed(run, shared):
        frozen, prompts = shared
        stage = run.stage("rl")
        source = ArraySource(prompts, program.config.prompts, run.seed)
        program.run(stage, params=frozen["reference"], frozen=frozen, source=source)
        curve = {
            name: stage.history(f"eval/{name}") for name in ("gold", "proxy", "gaudy", "win_rate")
        }
        peak = int(np.argmax(curve["gold"]))
        last = {name: float(values[-1]) for name, values in curve.items()}
        return last | {
            "peak_gold": float(curve["gold"][peak]),
            "gold_drop": float(curve["gold"][peak] - curve["gold"][-1]),
            "proxy_after_peak": float(curve["proxy"][-1] - curve["proxy"][peak]),
            "mean_gold": float(np.mean(curve["gold"])),
        }

    return run_seed


EXPERIMENT = Experiment(
    paper=Paper(
        title="Reward Shaping to Mitigate Reward Hacking in RLHF",
        arxiv="2502.18770",
        code="github.com/PorUna-byte/PAR",
    ),
    prepare=prepare,
    arms={name: Arm(partial(train, shape=shape)) for name, shape in SHAPINGS.items()}
    | {
        "kl_0.1": Arm(
            partial(train, shape=vanilla, kl=0.1), "a stronger KL penalty instead of shaping"
        ),
        "grpo_vanilla": Arm(partial(train, shape=vanilla, grpo=True)),
        "grpo_centred": Arm(partial(train, shape=SHAPINGS["centred"], grpo=True)),
        "grpo_par": Arm(partial(train, shape=par, grpo=True)),
    },
    scales={"mini": Config()},
    claims=[],
    first_arms=("vanilla", "centred", "par"),
    first_seeds=3,
    curves=("gold", "proxy", "gaudy"),
)
