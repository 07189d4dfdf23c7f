"""Preference As Reward: bounded reward shaping against reward hacking (arXiv:2502.18770).

A policy trained on a learned reward over-optimises it: the proxy keeps rising while true quality
falls. The paper compares transforms of the proxy r and keeps the reward model's own preference
probability over M reference responses of the initial policy:

    r_RL = mean_m sigmoid(r - r_ref^m)        bounded, steep near the reference, then flat

Miniature: responses of up to 12 tokens; gold utility is coverage of the requested theme minus
repetition. Good writers are fond of a "gaudy" token that is worth nothing, and annotators like to
see it: a reward model learned from 1500 noisy comparisons extrapolates to responses full of it.
"""

import dataclasses
from functools import partial

import jax

from rewardjax import credit, losses
from rewardjax.data.sources import ArraySource
from rewardjax.evaluation.curves import overoptimisation
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.presets import GEMMA2_2B
from rewardjax.recipes.critic import critic
from rewardjax.recipes.moments import outcome_moments
from rewardjax.recipes.policy_gradient import PolicyGradientConfig
from rewardjax.recipes.preference_lab import LabConfig, PreferenceLab
from rewardjax.recipes.rollout_workloads import Rollouts
from rewardjax.recipes.supervised import SupervisedConfig
from rewardjax.recipes.workloads import imitation, reward_model_training
from rewardjax.rewards import shaping
from rewardjax.tasks.external import require_generated
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share."""

    lab: LabConfig = LabConfig(annotator_bias=0.15)
    rl: PolicyGradientConfig = PolicyGradientConfig(
        prompts=64,
        optimizer=OptimizerConfig(learning_rate=5e-4),
        loop=LoopConfig(steps=300, steps_per_call=20, evaluate_every=20),
    )
    critic: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)
    group_size: int = 4  # of the GRPO arms
    references: int = 10
    training_prompts: int = 512
    evaluation_prompts: int = 256
    kl: float = 0.005
    length_limit: int = 300
    length_rate: float = 0.01
    data: str = "world"


# A shaping maps proxy scores [batch], reference scores [batch, m] and running statistics to rewards.
def vanilla(r, refs, stats):
    """The proxy itself."""
    return r


def par(r, refs, stats, *, m=1, k=1.0, offset=0.0):
    """The paper's: the probability that the response is preferred to a reference."""
    return shaping.sigmoid_centred(r, refs[:, :m], k=k, offset=offset)


SHAPINGS = {
    "vanilla": vanilla,
    "centred": lambda r, refs, stats: shaping.centred(r, refs),
    "meanstd": lambda r, refs, stats: shaping.standardised(r, stats["mean"], stats["std"]),
    "minmax": lambda r, refs, stats: shaping.min_max(r, stats["low"], stats["high"]),
    "clip": lambda r, refs, stats: shaping.clipped_to(r, stats["mean"], stats["std"]),
    "lsc": lambda r, refs, stats: shaping.log_sigmoid_centred(r, refs),
    "ceiling": lambda r, refs, stats: shaping.ceiling(r, 1.0),
    "sigmoid_uncentred": lambda r, refs, stats: shaping.sigmoid(r),
    "par": par,
    "par_m10": partial(par, m=10),
    "par_k3": partial(par, k=3.0),
    "sgfc": partial(par, offset=3.0),
}


def prepare(config):
    """An initial policy, a reward model, and prompts with the scores of reference responses."""
    require_generated(config.data)
    lab = PreferenceLab(config.lab)
    several = dataclasses.replace(lab.policy, group_size=config.references)

    @jax.jit
    def referenced(reference, reward_model, key):
        prompt_key, sample_key = jax.random.split(key)
        prompts = lab.world.prompts(prompt_key, config.training_prompts)
        traj = several.rollout(reference, prompts, sample_key)
        scores = lab.scorer.score(reward_model, traj.tokens, traj.valid)
        references = scores.reshape(-1, config.references)
        return dataclasses.replace(prompts, info=prompts.info | {"references": references})

    def run_seed(run):
        reference = lab.sft(run.stage("sft"))
        reward_model = lab.reward_model(run.stage("reward_model"), reference)
        prompts = referenced(reference, reward_model, run.stage("references").key)
        frozen = {"reference": reference, "reward_model": reward_model}
        return frozen, prompts

    return run_seed


def train(config, *, shape, kl=None, grpo=False):
    """One arm: PPO (or GRPO) on the shaped proxy."""
    lab = PreferenceLab(config.lab)

    def shaped(traj):
        stats = {name: traj.info[f"proxy_{name}"] for name in ("mean", "std", "low", "high")}
        limit, rate = config.length_limit, config.length_rate
        proxy = shaping.length_guard(traj.info["proxy"], traj.lengths, limit=limit, rate=rate)
        return shape(proxy, traj.info["references"], stats)

    learners = {"moments": outcome_moments("proxy")}
    if not grpo:
        learners["critic"] = critic(
            lab.scorer, config.critic, config.rl.loop.steps, micro_batches=config.rl.batch_cuts
        )
    program = lab.policy_gradient(
        config.rl,
        shape=shaped,
        kl=config.kl if kl is None else kl,
        credit=partial(credit.group_relative, group_size=config.group_size)
        if grpo
        else credit.whitened(credit.gae),
        loss=losses.policy_loss(surrogate=losses.clipped(0.2)),
        group_size=config.group_size if grpo else 1,
        learners=learners,
        evaluation_prompts=config.evaluation_prompts,
    )

    def run_seed(run, shared):
        frozen, prompts = shared
        stage = run.stage("rl")
        source = ArraySource(prompts, program.config.prompts, run.seed)
        params = program.run(stage, params=frozen["reference"], frozen=frozen, source=source).params
        stage.samples(program.config.loop.steps, lab.samples(params, frozen, stage.key))
        names = ("gold", "proxy", "gaudy", "kl", "win_rate")
        curve = {name: stage.history(f"eval/{name}") for name in names}
        last = {name: values[-1] for name, values in curve.items()}
        return last | overoptimisation(curve["gold"], curve["proxy"])

    return run_seed


MINI = Config()
MESH = MeshConfig(fsdp=8, tensor=2)
PUBLISHED = SupervisedConfig(
    optimizer=OptimizerConfig(learning_rate=5e-6), loop=LoopConfig(1900), mesh=MESH
)
PAPER = Config(
    lab=LabConfig(
        model=GEMMA2_2B,
        sft=dataclasses.replace(PUBLISHED, batch_size=64),
        reward_model=dataclasses.replace(PUBLISHED, batch_size=32),
    ),
    rl=PolicyGradientConfig(
        prompts=160,
        minibatches=4,
        batch_cuts=4,
        optimizer=OptimizerConfig(learning_rate=3e-7, clip=5.0),
        loop=LoopConfig(steps=380, steps_per_call=1, evaluate_every=20),
        mesh=MESH,
    ),
    critic=OptimizerConfig(learning_rate=5e-6, clip=5.0),
    group_size=5,
    data="openbmb/UltraFeedback",
)


def workloads(config):
    """The three models' training and PPO's rollouts, with 512 tokens a prompt and 512 a response."""
    lab, model = config.lab, LanguageModel(config.lab.model)
    rollouts = Rollouts(model, config.rl, 1, 512, 512, critic=config.critic, reward_model=True)
    return [
        imitation(model, lab.sft, 1024),
        reward_model_training(rollouts.scorer, lab.reward_model, 1024),
        *rollouts.workloads(),
    ]


PAPERS = "abstract"
OTHERS = ("centred", "meanstd", "minmax", "clip", "lsc", "ceiling", "sigmoid_uncentred", "kl_0.1")

ONE = "one sampled reference is noisy in so small a world: with ten, par_m10 does as well"
NOTES = {
    "ceiling": ONE,
    "sigmoid_uncentred": ONE,
    "kl_0.1": "a KL penalty this strong keeps the policy where the proxy can be trusted",
}
SMOKE = smoke(
    MINI,
    lab=smoke(dataclasses.replace(MINI.lab, model=dataclasses.replace(MINI.lab.model, layers=1))),
    training_prompts=64,
    evaluation_prompts=16,
)

EXPERIMENT = Experiment(
    paper=Paper(
        title="Reward Shaping to Mitigate Reward Hacking in RLHF",
        arxiv="2502.18770",
        code="github.com/PorUna-byte/PAR",
    ),
    prepare=prepare,
    arms={name: Arm(partial(train, shape=shape)) for name, shape in SHAPINGS.items()}
    | {
        "kl_0.1": Arm(partial(train, shape=vanilla, kl=0.1), "a strong KL penalty, no shaping"),
        "grpo_vanilla": Arm(partial(train, shape=vanilla, grpo=True)),
        "grpo_centred": Arm(partial(train, shape=SHAPINGS["centred"], grpo=True)),
        "grpo_par": Arm(partial(train, shape=par, grpo=True)),
    },
    scales={
        "mini": MINI,
        "smoke": SMOKE,
        "paper": PAPER,
    },
    claims=[
        Claim("gold_drop", "vanilla", ">", 0.0, margin=0.05, source=PAPERS),
        Claim("proxy_after_peak", "vanilla", ">", 0.0, source=PAPERS),
        Claim("gold", "par", ">", "vanilla", source=PAPERS),
        Claim("gold_drop", "par", "<", "vanilla", source=PAPERS),
        *(Claim("gold", "par", ">=", x, 0.02, PAPERS, NOTES.get(x, "")) for x in OTHERS),
        Claim(
            "gold", "par", "~", "par_m10", margin=0.05, source="one reference suffices", note=ONE
        ),
        Claim("mean_gold", "par", ">", "sgfc", source="fast growth near 0"),
        Claim("gold", "grpo_centred", "~", "grpo_vanilla", margin=0.05, source="affine invariance"),
        Claim("gold", "grpo_par", ">", "grpo_vanilla", source=PAPERS),
    ],
    first_arms=("vanilla", "centred", "par"),
    first_seeds=3,
    curves=("gold", "proxy", "gaudy"),
    topology="v5e:4x4",
    workloads=workloads,
)
