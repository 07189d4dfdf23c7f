"""Transforming and combining rewards (arXiv:2402.00742).

A Bradley-Terry reward r says how probably a response beats another, and any rising function of it ranks
responses alike; which one is optimised decides what comes out. If a good response is one that beats a
reference of the prompt, r_ref, then a policy aimed at good responses has the utility

    u = log p(good) = log sigmoid(r - r_ref)                 for one property, LSC
    u = sum_k log sigmoid(r_k - r_k,ref)                     good in all of them

which pays little for what is good already, and does not let one property buy off another. r_ref(x) is the
85th percentile of the first policy's rewards on the prompt.

Miniature: a response should cover the requested theme and be cheerful (share of positive tokens). Two
reward models learn the two from comparisons whose annotators are also pleased by each gaudy token. The
utilities are compared at one KL divergence: by their exact optima, pi_0 exp(u / gamma), on weighted samples
of the first policy ("optimum", and "far" at a larger divergence), and by reinforcement with that gamma.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rewardjax import credit, losses
from rewardjax.data.sources import ArraySource
from rewardjax.evaluation.tilting import optimum_at_kl
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.presets import GEMMA2_2B
from rewardjax.recipes.policy_gradient import PolicyGradientConfig
from rewardjax.recipes.preference_lab import LabConfig, PreferenceLab
from rewardjax.recipes.rollout_workloads import Rollouts
from rewardjax.recipes.supervised import SupervisedConfig
from rewardjax.recipes.workloads import imitation, reward_model_training
from rewardjax.rewards import shaping
from rewardjax.statistics import Mean, to_groups
from rewardjax.tasks.external import require_generated
from rewardjax.tasks.preference_world import ATTRIBUTES, PreferenceWorld
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig

MEASURED = ("kl", "helpful", "cheerful", "both", "gaudy", "proxy", "cheerful_proxy")
GOOD = 0.5  # of either property, what is above it


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share."""

    lab: LabConfig = LabConfig(
        world=PreferenceWorld(sentiment_rate=0.2, full_coverage=2),
        comparisons=8000,
        temperature=0.1,
        label_noise=0.0,
        annotator_bias=0.1,
        reward_model=SupervisedConfig(64, loop=LoopConfig(steps=400, steps_per_call=50)),
    )
    rl: PolicyGradientConfig = PolicyGradientConfig(
        prompts=64,  # responses
        optimizer=OptimizerConfig(learning_rate=5e-4),
        loop=LoopConfig(steps=240, steps_per_call=20, evaluate_every=20),
    )
    group_size: int = 4
    training_prompts: int = 16
    references: int = 1024  # responses of the first policy to each of them
    quantile: float = 0.85
    evaluation_prompts: int = 256
    averaged: int = 4  # evaluations at the end
    kl_budget: float = 1.0  # nats a response, at which the arms are compared
    far_budget: float = 2.0  # the same, of the optima only
    data: str = "world"


# What is optimised, of a response's rewards and the prompt's references, `[batch, 2]`: helpful, cheerful.
UTILITIES = {
    "raw": lambda r, ref: r[:, 0],
    "raw_centred": lambda r, ref: (r - ref)[:, 0],
    "lsc": lambda r, ref: shaping.log_conjunction((r - ref)[:, :1]),
    "sum_raw": lambda r, ref: r[:, 0] + r[:, 1],
    "weighted_sum_raw": lambda r, ref: 2 * r[:, 0] + r[:, 1],
    "sum_lsc": lambda r, ref: shaping.log_conjunction(r - ref),
    "either": lambda r, ref: shaping.log_disjunction(r - ref),
}


def properties(world, traj):
    """Gold `[batch, 2]`, 0 to 1 (coverage without repetition, and mood), and how many tokens are gaudy."""
    found = dict(zip(ATTRIBUTES, world.attributes(traj.tokens, traj.mask, traj.info).T))
    helpful = jnp.clip(found["coverage"] - found["repetition"], 0.0, 1.0)
    return jnp.stack([helpful, (1.0 + found["sentiment"]) / 2], axis=1), found["gaudy"]


def seen(bias):
    """What annotators see in each attribute when they judge one property and the other, by reward model."""
    weights = {
        "reward_model": {"coverage": 1.0, "repetition": -1.0, "gaudy": bias},
        "cheerful_model": {"sentiment": 2.0, "gaudy": bias},
    }
    return {
        name: jnp.asarray([w.get(attribute, 0.0) for attribute in ATTRIBUTES])
        for name, w in weights.items()
    }


def two_property_lab(config):
    """The lab with a second reward model: `info["rewards"]` `[batch, 2]`, and metrics of both properties."""
    scorer, world = RewardModel(config.lab.model), config.lab.world

    def annotate(frozen, traj):
        second = scorer.score(frozen["cheerful_model"], traj.tokens, traj.valid)
        return traj.with_info(rewards=jnp.stack([traj.info["proxy"], second], axis=1))

    def measure(traj):
        gold, _ = properties(world, traj)
        return {
            "helpful": Mean.of(gold[:, 0]),
            "cheerful": Mean.of(gold[:, 1]),
            "both": Mean.of(jnp.all(gold > GOOD, axis=1)),
            "cheerful_proxy": Mean.of(traj.info["rewards"][:, 1]),
        }

    return PreferenceLab(config.lab, annotate=annotate, measure=measure)


def described(rewards, gold, gaudy):
    """What is measured of the samples under an optimum, each `[prompts, samples]`.

    "low" and "top" are a sample's rewards among those of its prompt: below the median, in the highest 1%.
    """
    low = rewards < jnp.median(rewards, axis=1, keepdims=True)
    return {
        "helpful": gold[..., 0],
        "cheerful": gold[..., 1],
        "both": jnp.all(gold > GOOD, axis=2),
        "gaudy": gaudy,
        "poor": gold[..., 0] < jnp.median(gold[..., 0]),
        "low": low[..., 0],
        "low_either": jnp.any(low, axis=2),
        "top": rewards[..., 0] > jnp.quantile(rewards[..., 0], 0.99, axis=1, keepdims=True),
    }


def prepare(config):
    """A first policy, two reward models; prompts with both references, and the first policy's samples."""
    require_generated(config.data)
    lab = two_property_lab(config)
    several = dataclasses.replace(lab.policy, group_size=config.references)

    @jax.jit
    def sampled(frozen, key):
        prompt_key, sample_key = jax.random.split(key)
        prompts = lab.world.prompts(prompt_key, config.training_prompts)
        traj = lab.annotate(frozen, several.rollout(frozen["reference"], prompts, sample_key))
        found = (traj.info["rewards"], *properties(lab.world, traj))
        rewards, *gold = jax.tree.map(lambda x: to_groups(x, config.references), found)
        quantile = partial(shaping.sample_quantile, quantile=config.quantile)
        references = jax.vmap(quantile, 2, 1)(rewards)
        prompts = dataclasses.replace(prompts, info=prompts.info | {"references": references})
        return prompts, rewards, described(rewards, *gold)

    def run_seed(run):
        reference = lab.sft(run.stage("sft"))
        frozen = {"reference": reference}
        for name, weights in seen(config.lab.annotator_bias).items():
            stage = run.stage(name)
            pairs = lab.pairs(stage.stage("comparisons"), reference, weights)
            frozen[name] = lab.reward_model(stage, reference, pairs)
        return frozen, *sampled(frozen, run.stage("base").key)

    return run_seed


def optima(config, utility, rewards, references, columns):
    """Gamma whose optimum is `kl_budget` nats from the first policy, and what both optima are like."""
    of_samples = jax.vmap(utility, (1, None), 1)(rewards, references)
    columns = jax.tree.map(np.asarray, columns)
    gamma, near = optimum_at_kl(of_samples, columns, config.kl_budget)
    _, far = optimum_at_kl(of_samples, columns, config.far_budget)
    named = {"optimum": near, "far": far}
    return gamma, {f"{k}_{end}": x for end, found in named.items() for k, x in found.items()}


def train(config, *, utility):
    """One arm: a utility of the rewards, its exact optima and the policy that reinforcement finds."""
    lab = two_property_lab(config)

    def per_nat(traj):
        return utility(traj.info["rewards"], traj.info["references"]) / traj.info["gamma"]

    program = lab.policy_gradient(
        config.rl,
        shape=per_nat,
        kl=1.0,
        credit=partial(credit.leave_one_out, group_size=config.group_size),
        loss=losses.policy_loss(surrogate=losses.clipped(0.2)),
        group_size=config.group_size,
        evaluation_prompts=config.evaluation_prompts,
    )

    def run_seed(run, shared):
        frozen, prompts, rewards, columns = shared
        gamma, found = optima(config, utility, rewards, prompts.info["references"], columns)
        column = np.full(config.training_prompts, gamma, np.float32)
        prompts = dataclasses.replace(prompts, info=prompts.info | {"gamma": column})
        stage = run.stage("rl")
        source = ArraySource(prompts, program.config.prompts, run.seed)
        params = program.run(stage, params=frozen["reference"], frozen=frozen, source=source).params
        stage.samples(config.rl.loop.steps, lab.samples(params, frozen, stage.key))
        # The last evaluations are of policies that hardly differ: their mean is less noisy.
        return found | {
            name: float(np.mean(stage.history(f"eval/{name}")[-config.averaged :]))
            for name in MEASURED
        }

    return run_seed


MINI = Config()
TINY_LAB = dataclasses.replace(MINI.lab, model=dataclasses.replace(MINI.lab.model, layers=1))
# The paper's policy and reward models are of the sizes of PaLM 2 XXS and T5 base; this is a public decoder.
FIT = SupervisedConfig(
    64,
    optimizer=OptimizerConfig(learning_rate=5e-6),
    loop=LoopConfig(steps=1000),
    mesh=MeshConfig(fsdp=8),
)
PAPER = Config(
    data="Anthropic/hh-rlhf",
    lab=LabConfig(model=GEMMA2_2B, sft=FIT, reward_model=FIT),
    rl=PolicyGradientConfig(
        prompts=256,
        minibatches=4,
        rollout_cuts=2,
        batch_cuts=4,
        optimizer=OptimizerConfig(learning_rate=5e-7),
        loop=LoopConfig(steps=400, steps_per_call=1, evaluate_every=20),
        mesh=MeshConfig(fsdp=8),
    ),
    references=64,
)


def workloads(config):
    """The first policy, a reward model, and reinforcement with prompts and responses of 256 tokens."""
    lab, rl, size = config.lab, config.rl, config.group_size
    model = LanguageModel(lab.model)
    asked = dataclasses.replace(rl, prompts=rl.prompts // size)
    rollouts = Rollouts(model, asked, size, 256, 256, reward_model=True)
    return [
        imitation(model, lab.sft, 512),
        reward_model_training(rollouts.scorer, lab.reward_model, 512),
        *rollouts.workloads(),
    ]


DISTRIBUTION = "distribution of rewards: mass leaves the low tail rather than gathers at the top"
LEVELS = "better at all KL levels"
BALANCE = "several rewards: no property buys off another"
SHORTCUTS = "less of what only the reward model likes"
SMALL = "the optima differ by less than sampled policies can show"
FARTHER = "the optima differ the claimed way; the policy of lsc went 10% farther from the first one"
SHORT = "so in the mean; both policies fall short of their optima, which differ by more"

EXPERIMENT = Experiment(
    paper=Paper(
        title="Transforming and Combining Rewards for Aligning Large Language Models",
        arxiv="2402.00742",
    ),
    prepare=prepare,
    arms={name: Arm(partial(train, utility=utility)) for name, utility in UTILITIES.items()},
    scales={
        "mini": MINI,
        "smoke": smoke(
            MINI, lab=smoke(TINY_LAB, comparisons=128), references=64, evaluation_prompts=16
        ),
        "paper": PAPER,
    },
    claims=[
        Claim("low_optimum", "raw_centred", "~", "raw", 0.001, source="what a prompt adds is void"),
        Claim("low_optimum", "lsc", "<", "raw", source=DISTRIBUTION),
        Claim("top_optimum", "lsc", "<", "raw", source=DISTRIBUTION),
        Claim("poor_optimum", "lsc", "<", "raw", source=DISTRIBUTION),
        Claim("helpful_optimum", "lsc", ">", "raw", source=LEVELS),
        Claim("helpful_far", "lsc", ">", "raw", source=LEVELS),
        Claim("gaudy_optimum", "lsc", "<", "raw", source=SHORTCUTS),
        Claim("both_optimum", "sum_lsc", ">", "sum_raw", source=BALANCE),
        Claim("both_far", "sum_lsc", ">", "sum_raw", source=LEVELS),
        Claim("both_optimum", "sum_lsc", ">", "weighted_sum_raw", source=BALANCE),
        Claim("both_optimum", "sum_lsc", ">", "either", source="and is not or"),
        Claim("low_either_optimum", "sum_lsc", "<", "sum_raw", source=BALANCE),
        Claim("helpful", "lsc", ">", "raw", source="RLHF: " + LEVELS, note=SMALL),
        Claim("gaudy", "lsc", "<", "raw", source="RLHF: " + SHORTCUTS, note=FARTHER),
        Claim("both", "sum_lsc", ">", "sum_raw", source="RLHF: " + BALANCE, note=SHORT),
        Claim("helpful", "sum_lsc", ">", "sum_raw", source="RLHF: " + BALANCE),
    ],
    first_arms=("raw", "lsc", "sum_raw", "sum_lsc"),
    first_seeds=3,
    curves=("helpful", "both", "gaudy", "kl"),
    topology="v5e:2x4",
    workloads=workloads,
)
