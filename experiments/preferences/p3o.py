"""P3O: pairwise proximal policy optimisation (arXiv:2310.00212).

A reward model is fitted to comparisons, so that r(x, y) and r(x, y) + delta(x) say the same; PPO's updates
differ between them. P3O's read only what the rewards of two responses to one prompt differ by:

    g = E[(r_1 - r_2) grad(log pi(y_1|x) - log pi(y_2|x)) / 2]

with ratios of whole responses off policy, clipped each by itself (V1) or together (V2), and no critic
(`losses.pairwise_policy_loss`). Miniature: the reward is that of a Bradley-Terry model learned from noisy
comparisons, plus an offset of each prompt's own, N(0, s^2).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax

from rewardjax import credit, losses
from rewardjax.data.sources import ArraySource
from rewardjax.evaluation.curves import at_kl
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.presets import MISTRAL_7B
from rewardjax.recipes.critic import critic
from rewardjax.recipes.policy_gradient import PolicyGradientConfig
from rewardjax.recipes.preference_lab import LabConfig, PreferenceLab
from rewardjax.recipes.rollout_workloads import Rollouts
from rewardjax.recipes.supervised import SupervisedConfig
from rewardjax.recipes.workloads import imitation, preference_training, reward_model_training
from rewardjax.tasks.external import require_generated
from rewardjax.tasks.preference_world import PreferenceWorld
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig

WORLD = PreferenceWorld(themes=5, tokens_per_theme=3, neutral=2, requested=2)  # 20 prompts
MEASURED = ("gold", "proxy", "kl")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share."""

    lab: LabConfig = LabConfig(
        world=WORLD,
        comparisons=4000,
        label_noise=0.05,
        reward_model=SupervisedConfig(
            64,
            optimizer=OptimizerConfig(learning_rate=5e-4),
            loop=LoopConfig(steps=300, steps_per_call=50),
        ),
    )
    rl: PolicyGradientConfig = PolicyGradientConfig(
        prompts=64,  # responses
        epochs=2,
        minibatches=2,
        optimizer=OptimizerConfig(learning_rate=1e-4),
        loop=LoopConfig(steps=80, steps_per_call=20, evaluate_every=10),
    )
    critic: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)
    dpo: SupervisedConfig = SupervisedConfig(
        64,
        optimizer=OptimizerConfig(learning_rate=3e-4),
        loop=LoopConfig(steps=120, steps_per_call=20, evaluate_every=10),
    )
    group_size: int = 2
    training_prompts: int = 512
    evaluation_prompts: int = 256
    kl: float = 0.1
    beta: float = 0.1  # of DPO
    kl_budget: float = 1.5  # nats a response, at which the arms are compared
    data: str = "world"


class Method(NamedTuple):
    """What differs between the arms that sample: the credit, the loss, and whether there is a critic."""

    credit: Callable
    loss: losses.PolicyLoss
    valued: bool = False


CLIPPED = losses.policy_loss(surrogate=losses.clipped(0.2))
PAIRED = partial(credit.leave_one_out, group_size=2)
PPO = Method(credit.gae, CLIPPED, valued=True)
WHITENED = Method(credit.whitened(credit.gae), CLIPPED, valued=True)
P3O_V1 = Method(PAIRED, losses.pairwise_policy_loss(surrogate=losses.separately_clipped(0.2)))
P3O_V2 = Method(PAIRED, losses.pairwise_policy_loss(surrogate=losses.jointly_clipped(0.2)))
RLOO = Method(PAIRED, losses.reinforce_loss(aggregate=losses.by_constant(1.0)))


def prepare(config):
    """A policy, comparisons of its responses, a reward model, and prompts with offsets of deviation 1."""
    require_generated(config.data)
    lab = PreferenceLab(config.lab)

    @jax.jit
    def prompts_with_offsets(key):
        prompt_key, offset_key = jax.random.split(key)
        prompts = lab.world.prompts(prompt_key, config.training_prompts)
        table = jax.random.normal(offset_key, (lab.world.themes,) * lab.world.requested)
        offset = table[tuple(prompts.info["theme"].T)]
        return dataclasses.replace(prompts, info=prompts.info | {"offset": offset})

    def run_seed(run):
        reference = lab.sft(run.stage("sft"))
        pairs = lab.pairs(run.stage("comparisons"), reference)
        reward_model = lab.reward_model(run.stage("reward_model"), reference, pairs)
        frozen = {"reference": reference, "reward_model": reward_model}
        return frozen, prompts_with_offsets(run.stage("prompts").key), pairs

    return run_seed


def measured(stage, config):
    """The last evaluation, and what it was on the way where the KL divergence met the budget."""
    curve = {name: stage.history(f"eval/{name}") for name in MEASURED}
    matched = {
        f"{name}_at_kl": at_kl(curve["kl"], curve[name], config.kl_budget)
        for name in ("gold", "proxy")
    }
    return {name: float(values[-1]) for name, values in curve.items()} | matched


def train(config, *, method, shift=0.0, kl=None):
    """One arm: `method` on the proxy with offsets of deviation `shift`."""
    lab = PreferenceLab(config.lab)
    learners = {}
    if method.valued:
        learners["critic"] = critic(
            lab.scorer, config.critic, config.rl.loop.steps, micro_batches=config.rl.batch_cuts
        )
    program = lab.policy_gradient(
        config.rl,
        shape=lambda traj: traj.info["proxy"] + traj.info["offset"],
        kl=config.kl if kl is None else kl,
        credit=method.credit,
        loss=method.loss,
        group_size=config.group_size,
        adjacent=2,
        learners=learners,
        evaluation_prompts=config.evaluation_prompts,
    )

    def run_seed(run, shared):
        frozen, prompts, _ = shared
        offset = shift * prompts.info["offset"]
        prompts = dataclasses.replace(prompts, info=prompts.info | {"offset": offset})
        stage = run.stage("rl")
        source = ArraySource(prompts, program.config.prompts, run.seed)
        params = program.run(stage, params=frozen["reference"], frozen=frozen, source=source).params
        stage.samples(config.rl.loop.steps, lab.samples(params, frozen, stage.key))
        return measured(stage, config)

    return run_seed


def train_dpo(config, *, beta=None):
    """The arm that never samples: DPO on the comparisons of which the reward model was made."""
    lab = PreferenceLab(config.lab)
    program = lab.direct_preference(
        config.dpo,
        beta=config.beta if beta is None else beta,
        evaluation_prompts=config.evaluation_prompts,
    )

    def run_seed(run, shared):
        frozen, _, pairs = shared
        stage = run.stage("dpo")
        source = ArraySource(pairs, config.dpo.batch_size, run.seed)
        program.run(stage, params=frozen["reference"], frozen=frozen, source=source)
        return measured(stage, config)

    return run_seed


MINI = Config()
TINY_LAB = dataclasses.replace(MINI.lab, model=dataclasses.replace(MINI.lab.model, layers=1))
# Anthropic HH with a policy of 7B; the paper's batch and rates are not known.
FIT = SupervisedConfig(
    64,
    optimizer=OptimizerConfig(learning_rate=5e-6, schedule="cosine", warmup=0.03),
    loop=LoopConfig(steps=2500),
    mesh=MeshConfig(fsdp=16, tensor=4),
)
PAPER = Config(
    data="Anthropic/hh-rlhf",
    lab=LabConfig(model=MISTRAL_7B, sft=FIT, reward_model=FIT),
    rl=PolicyGradientConfig(
        prompts=512,
        epochs=2,
        minibatches=4,
        batch_cuts=4,
        optimizer=OptimizerConfig(learning_rate=5e-7),
        loop=LoopConfig(steps=300, steps_per_call=1, evaluate_every=20),
        mesh=MeshConfig(fsdp=16, tensor=4),
    ),
    critic=OptimizerConfig(learning_rate=5e-6),
    dpo=dataclasses.replace(FIT, optimizer=OptimizerConfig(learning_rate=5e-7)),
    kl_budget=10.0,
)


def workloads(config):
    """The first policy, the reward model, DPO, PPO's critic, and P3O; prompts and responses of 256 tokens."""
    lab, rl, size = config.lab, config.rl, config.group_size
    model = LanguageModel(lab.model)
    asked = dataclasses.replace(rl, prompts=rl.prompts // size)
    rollouts = Rollouts(
        model, asked, size, 256, 256, P3O_V2.loss, critic=config.critic, reward_model=True
    )
    return [
        imitation(model, lab.sft, 512),
        reward_model_training(rollouts.scorer, lab.reward_model, 512),
        preference_training(model, config.dpo, 512),
        *rollouts.workloads(),
    ]


THEORY = "rewards that differ by a function of the prompt are the same reward"
FRONTIER = "KL-reward frontier, TL;DR and HH"
EQUAL = "as good as PPO here, within the noise of reading two curves at one KL divergence"
FARTHER = "DPO gets to its proxy reward at a larger divergence only; on gold it then goes farther"

EXPERIMENT = Experiment(
    paper=Paper(
        title="Pairwise Proximal Policy Optimization: Harnessing Relative Feedback for LLM Alignment",
        arxiv="2310.00212",
    ),
    prepare=prepare,
    arms={
        "ppo": Arm(partial(train, method=PPO)),
        "ppo_s1": Arm(partial(train, method=PPO, shift=1.0), "offsets of deviation 1"),
        "ppo_s5": Arm(partial(train, method=PPO, shift=5.0), "offsets of deviation 5"),
        "ppo_whitened": Arm(partial(train, method=WHITENED)),
        "ppo_whitened_s5": Arm(partial(train, method=WHITENED, shift=5.0)),
        "p3o_v1": Arm(partial(train, method=P3O_V1)),
        "p3o_v2": Arm(partial(train, method=P3O_V2)),
        "p3o_v1_s5": Arm(partial(train, method=P3O_V1, shift=5.0)),
        "p3o_v2_s5": Arm(partial(train, method=P3O_V2, shift=5.0)),
        "rloo": Arm(partial(train, method=RLOO), "no ratios"),
        "dpo": Arm(train_dpo),
        "ppo_b0.05": Arm(partial(train, method=PPO, kl=0.05), "for the frontier"),
        "p3o_v2_b0.05": Arm(partial(train, method=P3O_V2, kl=0.05), "for the frontier"),
    },
    scales={
        "mini": MINI,
        "smoke": smoke(MINI, lab=smoke(TINY_LAB), training_prompts=64, evaluation_prompts=16),
        "paper": PAPER,
    },
    claims=[
        Claim("proxy", "p3o_v1_s5", "~", "p3o_v1", 0.01, source=THEORY),
        Claim("proxy", "p3o_v2_s5", "~", "p3o_v2", 0.01, source=THEORY),
        Claim("proxy", "ppo_s1", "<", "ppo", source="PPO is not invariant"),
        Claim("proxy", "ppo_s5", "<", "ppo", source="PPO is not invariant"),
        Claim("gold", "ppo_s5", "<", "ppo", source="PPO is not invariant"),
        Claim("proxy", "ppo_whitened_s5", "<", "ppo_whitened", source="whitening does not mend it"),
        Claim("proxy_at_kl", "p3o_v2", ">=", "ppo", 0.02, source=FRONTIER, note=EQUAL),
        Claim("gold_at_kl", "p3o_v2", ">=", "ppo", 0.02, source=FRONTIER),
        Claim("gold_at_kl", "p3o_v1", ">=", "ppo", 0.02, source=FRONTIER, note=EQUAL),
        Claim("gold_at_kl", "p3o_v2_b0.05", ">=", "ppo_b0.05", 0.02, source=FRONTIER),
        Claim("gold", "p3o_v2", ">", "ppo_s5", source="HH: P3O above PPO"),
        Claim("proxy_at_kl", "p3o_v2", ">", "dpo", source=FRONTIER),
        Claim("gold_at_kl", "p3o_v2", ">", "dpo", source="HH: win rate 54.6%", note=FARTHER),
    ],
    reported={"p3o_v2": {"kl": 9.83}, "dpo": {"kl": 12.01}, "ppo": {"kl": 7.02}},
    first_arms=("ppo", "ppo_s5", "p3o_v2", "p3o_v2_s5"),
    first_seeds=3,
    curves=("gold", "proxy", "kl"),
    topology="v5e:8x8",
    workloads=workloads,
)
