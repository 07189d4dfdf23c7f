"""BRAIn: amortised inference of the reward-conditioned posterior (arXiv:2402.02479).

Bayes' rule on "y is good" makes the posterior p(y|x) exp(r / beta) / Z, the optimum of KL-regularised
reinforcement learning, with p the SFT policy. A policy q is distilled towards it from n responses a prompt
of a proposal (here p), with importance weights normalised over the n,

    a = softmax(r / beta)       b = softmax(log q - log p)       gradient  sum_i (a_i - b_i) grad log q(y_i)

which is that of KL(a || b): subtracting b leaves no noise where q is the posterior already. DPG subtracts
nothing, GDC++ the weights q / (n p), which are not normalised; n = 2 with a one-hot a is DPO.

Miniature: responses of up to 3 tokens, so few that KL divergences, gold and proxy reward are exact sums over
all of them; and the noise of the three gradients on a categorical policy over 256 outcomes.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rewardjax import losses
from rewardjax.data.sources import ArraySource
from rewardjax.evaluation.curves import at_kl
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.losses.posterior import (
    no_baseline,
    posterior_weights,
    self_normalised,
    self_normalised_kl,
    unnormalised,
    weighted_imitation,
)
from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.presets import MISTRAL_7B
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.enumerated_lab import EnumeratedLab
from rewardjax.recipes.objectives import direct_preference
from rewardjax.recipes.preference_data import language_batch
from rewardjax.recipes.preference_lab import LabConfig
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.recipes.workloads import imitation, preference_training, reward_model_training
from rewardjax.statistics import to_groups
from rewardjax.tasks.external import require_generated
from rewardjax.tasks.preference_world import PreferenceWorld
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig

WORLD = PreferenceWorld(
    themes=3,
    tokens_per_theme=2,
    gaudy_max=1,
    response_length=3,
    min_length=2,
    full_coverage=2,
)
SMALL = TransformerConfig(
    WORLD.vocab_size, layers=2, width=32, heads=2, kv_heads=2, head_dim=16, mlp_width=64, context=32
)
OUTCOMES = 256  # of the categorical policy on which gradients are compared
DRAWS = 1000
OFF = 0.3  # how far its logits are from the posterior's


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share."""

    data: str = "world"
    lab: LabConfig = LabConfig(world=WORLD, model=SMALL, comparisons=2048)
    training: SupervisedConfig = SupervisedConfig(  # batch_size counts responses
        128,
        optimizer=OptimizerConfig(learning_rate=3e-4),
        loop=LoopConfig(steps=300, steps_per_call=50, evaluate_every=50),
    )
    samples: int = 4096  # responses of the SFT policy in all
    beta: float = 0.5
    margin: float = 1.0  # of SLiC's hinge
    kl_budget: float = 0.5  # nats, at which the arms are compared
    shifts: tuple[float, float] = (0.25, 1.0)  # of the proposal's logits from the posterior's


# What a group's log-ratios to the SFT policy lose, given the responses' rewards.
def brain(ratios, rewards, beta):
    """The paper's."""
    return self_normalised_kl(ratios, posterior_weights(rewards, beta))


def imitated(ratios, rewards, beta, *, baseline):
    """DPG and GDC++."""
    return weighted_imitation(ratios, posterior_weights(rewards, beta), baseline)


def best_wins(ratios, rewards, beta):
    """DPO-sft: the target's softmax becomes an argmax."""
    best = jax.nn.one_hot(jnp.argmax(rewards, axis=-1), rewards.shape[-1])
    return self_normalised_kl(ratios, best)


# What a labelled pair loses, of `beta` times the difference of its log-ratios.
def dpo(difference, config):
    """The annotators' label, and no reward model."""
    return losses.bradley_terry(difference)


def slic(difference, config):
    """The same label, with nothing to gain beyond a margin."""
    return losses.hinge(difference, margin=config.margin)


def gradient_noise(key: PRNGKeyArray, baseline, shift: float, size: int) -> Float[Array, ""]:
    """Variance of the estimated gradient by a categorical policy's logits, summed over them.

    The reward is the same everywhere, so that the posterior is the prior; the policy is near it, the
    proposal off by `shift`.
    """
    keys = jax.random.split(key, 4)
    prior, own, other = jax.random.normal(keys[0], (3, OUTCOMES))
    policy = jax.nn.log_softmax(prior + OFF * own)
    proposal = jax.nn.log_softmax(prior + shift * other)
    drawn = jax.random.categorical(keys[1], proposal, shape=(DRAWS, size))
    target = posterior_weights(
        jnp.zeros(drawn.shape), 1.0, (jax.nn.log_softmax(prior) - proposal)[drawn]
    )

    def loss(logits, drawn, target):
        ratios = (jax.nn.log_softmax(logits) - proposal)[drawn]
        return weighted_imitation(ratios[None], target[None], baseline)[0]

    found = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(policy, drawn, target)
    return jnp.sum(jnp.var(found, axis=0))


def prepare(config):
    """A policy, labelled pairs, a reward model, and all responses with what is known of them.

    Raises:
      ValueError: the data are not the generated ones.
    """
    require_generated(config.data)
    lab = EnumeratedLab(config.lab)

    def run_seed(run):
        reference = lab.sft(run.stage("sft"))
        pairs = lab.pairs(run.stage("comparisons"), reference)
        reward_model = lab.reward_model(run.stage("reward_model"), reference, pairs)
        frozen = {"reference": reference, "reward_model": reward_model}
        return lab.survey(frozen, config.beta), pairs

    return run_seed


def training(config, lab, ratio_loss, size):
    """The program of an arm whose rows have `size` responses."""
    objective = direct_preference(lab.policy.model, ratio_loss)
    return Supervised(
        dataclasses.replace(config.training, batch_size=config.training.batch_size // size),
        init=lab.policy.model.boxed_init,
        loss=lambda params, batch, frozen: objective(params, batch, frozen["reference"]),
        evaluate=lab.exact,
    )


def trained(config, lab, program, run, frozen, rows) -> dict[str, float]:
    """One seed of an arm on its rows: the last evaluation, and gold where the KL met the budget."""
    stage = run.stage("policy")
    source = ArraySource(rows, program.config.batch_size, run.seed)
    params = program.run(stage, params=frozen["reference"], frozen=frozen, source=source).params
    stage.samples(config.training.loop.steps, lab.samples(params, frozen, stage.key))
    curve = {x: stage.history(f"eval/{x}") for x in ("gold", "proxy", "kl", "kl_posterior")}
    last = {name: float(values[-1]) for name, values in curve.items()}
    return last | {"gold_at_kl": at_kl(curve["kl"], curve["gold"], config.kl_budget)}


def train(config, *, loss, size=8, baseline=None):
    """One arm: groups of `size` responses of the SFT policy, scored by the reward model."""
    lab = EnumeratedLab(config.lab)
    sampler = dataclasses.replace(lab.policy, group_size=size)
    program = training(
        config, lab, lambda ratios, batch: loss(ratios, batch["rewards"], config.beta), size
    )

    @jax.jit
    def sampled(frozen, key):
        prompt_key, sample_key = jax.random.split(key)
        prompts = lab.world.prompts(prompt_key, config.samples // size)
        traj = sampler.rollout(frozen["reference"], prompts, sample_key)
        rewards = lab.scorer.score(frozen["reward_model"], traj.tokens, traj.valid)
        columns = language_batch(traj) | {"rewards": rewards}
        return {name: to_groups(x, size) for name, x in columns.items()}

    @jax.jit
    def noise(key):
        near, far = (gradient_noise(key, baseline, shift, size) for shift in config.shifts)
        return {"noise_near": near, "noise_far": far, "noise_growth": far - near}

    def run_seed(run, shared):
        frozen = shared[0]
        rows = sampled(frozen, run.stage("responses").key)
        found = trained(config, lab, program, run, frozen, rows)
        noises = {} if baseline is None else noise(run.stage("noise").key)
        return found | {name: float(x) for name, x in noises.items()}

    return run_seed


def train_on_labels(config, *, loss):
    """One arm: the annotators' pairs, of which the reward model was made."""
    lab = EnumeratedLab(config.lab)

    def pair_loss(ratios, batch):
        return loss(config.beta * (ratios[:, 0] - ratios[:, 1]), config)

    program = training(config, lab, pair_loss, 2)

    def run_seed(run, shared):
        frozen, pairs = shared
        rows = {name: pairs[name] for name in ("tokens", "valid", "mask")}
        return trained(config, lab, program, run, frozen, rows)

    return run_seed


MINI = Config()
ONE_EPOCH = SupervisedConfig(
    64,
    optimizer=OptimizerConfig(learning_rate=1e-5, schedule="cosine", warmup=0.1),
    loop=LoopConfig(steps=1400),
    mesh=MeshConfig(fsdp=16),
)
PAPER = Config(
    data="openai/summarize_from_feedback",
    lab=LabConfig(
        model=dataclasses.replace(MISTRAL_7B, context=2048),
        sft=ONE_EPOCH,
        reward_model=ONE_EPOCH,
        comparisons=92_000,
    ),
    training=dataclasses.replace(
        ONE_EPOCH,
        batch_size=512,
        micro_batches=4,
        optimizer=OptimizerConfig(learning_rate=1e-6, schedule="cosine", warmup=0.1),
        loop=LoopConfig(steps=1400, evaluate_every=100),
    ),
    samples=92_000 * 8,
)


def workloads(config):
    """The first policy, the reward model, and groups of 8 responses, with 640 tokens each."""
    lab, model = config.lab, LanguageModel(config.lab.model)
    groups = dataclasses.replace(config.training, batch_size=config.training.batch_size // 8)

    def matched(ratios, batch):
        return brain(ratios, jnp.zeros_like(ratios), config.beta)

    return [
        imitation(model, lab.sft, 640),
        reward_model_training(RewardModel(lab.model), lab.reward_model, 640),
        preference_training(model, groups, 640, name="brain", ratio_loss=matched, responses=8),
    ]


FEW = "the posterior is the optimum for every n; at equal samples pairs come as near in so small a world"
FURTHER = (
    "the better of two wins for sure: twice as far from the SFT policy; at equal KL BRAIn is ahead"
)
NOISE = "toy experiments: variance of the gradient"
SUMMARIES = "win rates on TL;DR and Anthropic-HH"
BASELINES = {
    "dpg": (no_baseline, "no baseline"),
    "gdc++": (unnormalised, "a baseline that is not normalised"),
}
EXPERIMENT = Experiment(
    paper=Paper(
        title="BRAIn: Bayesian Reward-conditioned Amortized Inference for natural language generation"
        " from feedback",
        arxiv="2402.02479",
    ),
    prepare=prepare,
    arms={
        name: Arm(partial(train, loss=partial(imitated, baseline=b), baseline=b), note)
        for name, (b, note) in BASELINES.items()
    }
    | {
        "brain": Arm(partial(train, loss=brain, baseline=self_normalised), "n = 8"),
        "brain_n2": Arm(partial(train, loss=brain, size=2)),
        "brain_n32": Arm(partial(train, loss=brain, size=32)),
        "dpo_sft": Arm(partial(train, loss=best_wins, size=2), "n = 2, the better one wins"),
        "dpo": Arm(partial(train_on_labels, loss=dpo), "the annotators' labels"),
        "slic": Arm(partial(train_on_labels, loss=slic), "the annotators' labels"),
    },
    scales={
        "mini": MINI,
        "smoke": smoke(MINI, lab=smoke(MINI.lab, comparisons=128), samples=256),
        "paper": PAPER,
    },
    claims=[
        *(Claim(f"noise_{at}", "brain", "<", "gdc++", source=NOISE) for at in ("near", "far")),
        *(Claim(f"noise_{at}", "gdc++", "<", "dpg", source=NOISE) for at in ("near", "far")),
        Claim("noise_growth", "brain", "<", "gdc++", source=NOISE),
        Claim("kl_posterior", "brain", "<", "gdc++", source="self-normalised baseline"),
        Claim("kl_posterior", "brain", "<", "dpg", source="self-normalised baseline"),
        Claim("kl_posterior", "brain", "<", "dpo_sft", source="more than two, and their rewards"),
        Claim("kl_posterior", "brain", "<", "brain_n2", source="number of outputs", note=FEW),
        Claim("kl_posterior", "brain_n32", "<=", "brain", 0.01, source="number of outputs"),
        Claim("gold", "brain", ">", "dpo_sft", source=SUMMARIES, note=FURTHER),
        *(Claim("gold", "brain", ">", x, source=SUMMARIES) for x in ("dpo", "slic")),
        *(
            Claim("gold_at_kl", "brain", ">", x, source=SUMMARIES)
            for x in ("dpo_sft", "dpo", "slic")
        ),
        Claim("gold", "brain", ">", "dpg", source="removing the baseline collapses performance"),
        Claim("gold", "dpo_sft", ">", "dpg", source="removing the baseline collapses performance"),
    ],
    first_arms=("dpg", "brain", "dpo"),
    first_seeds=3,
    curves=("gold", "kl", "kl_posterior"),
    workloads=workloads,
)
