"""TurningPoint-GRPO: credit for each denoising step of a flow model (arXiv:2602.06422).

Flow-GRPO gives the reward of the finished picture to all denoising steps. Here a step is paid for what
it changed: finishing deterministically after k stochastic steps earns R_k, and step k gets
d_k = R_k - R_{k-1}. A step at which a trajectory turns towards its end also owns what follows:

    r_k = R_end - R_{k-1} at turning points, else d_k,      A_k = (r_k - mean) / std, for each k

Miniature: eight Gaussians on a ring; the condition asks for one of them. The mode is decided by the
early steps, a decoy ridge at the wrong radius pays a little everywhere, and late steps refine.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rewardjax import credit, losses
from rewardjax.credit.turning_point import stepwise_group_relative, turning_point, turning_points
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.flow import FlowConfig, FlowModel, MLPConfig
from rewardjax.models.presets import SD35_MEDIUM
from rewardjax.recipes.flow_matching import flow_matching, noised
from rewardjax.recipes.flow_study import FlowSettings, FlowStudy
from rewardjax.recipes.flow_workloads import denoising
from rewardjax.recipes.policy_gradient import (
    PolicyGradient,
    PolicyGradientConfig,
    scored,
    with_reference,
)
from rewardjax.recipes.step_effects import (
    agreement_study,
    increments,
    paid_at_the_end,
    staged_rollout,
)
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.sampling import flow
from rewardjax.statistics import Mean
from rewardjax.tasks.external import require_generated
from rewardjax.tasks.mixture import AskedMode
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share."""

    data: str = "mixture"
    world: AskedMode = AskedMode()
    model: FlowConfig = MLPConfig(conditions=8, width=48)
    pretrain: SupervisedConfig = SupervisedConfig(
        512, optimizer=OptimizerConfig("adamw", 2e-3, "cosine"), loop=LoopConfig(2000, 100)
    )
    rl: PolicyGradientConfig = PolicyGradientConfig(
        prompts=8,
        minibatches=2,
        optimizer=OptimizerConfig(learning_rate=3e-4),
        loop=LoopConfig(steps=150, steps_per_call=10, evaluate_every=10),
    )
    group_size: int = 24
    sampling: FlowSettings = FlowSettings()
    clip: float = 0.2
    kl: float = 1e-4
    evaluation_steps: int = 40
    evaluation_samples: int = 512
    continuations: int = 32
    studied: int = 4  # conditions whose steps' effects are measured
    early: int = 3  # steps that count as early there


def prepare(config):
    """A flow model that knows the modes, and little of the condition."""
    require_generated(config.data, "mixture")
    model = FlowModel(config.model)
    program = Supervised(
        config.pretrain,
        init=model.boxed_init,
        loss=flow_matching(model),
        batches=noised(config.world.draw),
    )
    return lambda run: program.run(run.stage("pretrain")).params


def train(config, *, credit, reward=increments):
    """One arm: the clipped surrogate on the advantages of `credit` from the rewards of `reward`."""
    world, policy = config.world, config.sampling.policy(config.model, config.group_size)
    credit, completed = partial(credit, group_size=config.group_size), reward is increments

    def measure(traj):
        found = {"final_reward": Mean.of(traj.info["stages"][:, -1])}
        if completed:
            turns = turning_points(reward(traj).steps, traj.mask)
            found["turning_points"] = Mean.of(turns, traj.mask)
        return found

    surrogate = losses.clipped(config.clip, config.clip)
    close = losses.kl_to_reference(config.kl)
    sampler = config.sampling.policy(config.model)
    study = FlowStudy(world, sampler, config.evaluation_steps, config.evaluation_samples)
    program = PolicyGradient(
        config.rl,
        init=FlowModel(config.model).boxed_init,
        rollout=staged_rollout(policy, world.reward, completed=completed),
        prompts=world.conditions,
        annotate=with_reference(policy.score),
        reward=reward,
        credit=credit,
        loss=scored(policy.score, losses.policy_loss(surrogate=surrogate, regularisers=(close,))),
        measure=measure,
        evaluate=study.evaluate,
    )
    settings = {"continuations": config.continuations, "early": config.early}
    agreement = jax.jit(agreement_study(policy, world.reward, reward, credit, **settings))

    def run_seed(run, shared):
        stage, loop = run.stage("rl"), config.rl.loop
        study.show(stage, program.run(stage, params=shared, frozen=shared).params, loop.steps)
        found = study.results(stage, loop, completed=completed)
        found["turning_points"] = np.mean(stage.history("turning_points")) if completed else 0.0
        return found | agreement(shared, jnp.arange(config.studied), run.key)

    return run_seed


MINI = Config()
# Steps, window, noise, group, prompts, clip and KL are those of the released runs on SD3.5-medium. The
# learning rate is Flow-GRPO's for LoRA; the number of updates is not given: that one is ours.
PAPER = Config(
    data="PickScore prompts, SD3.5-medium",
    model=SD35_MEDIUM,
    rl=PolicyGradientConfig(
        prompts=48,
        minibatches=2,
        micro_batches=36,
        rollout_cuts=3,
        batch_cuts=72,
        optimizer=OptimizerConfig(learning_rate=3e-4, weight_decay=1e-4),
        loop=LoopConfig(steps=1000, steps_per_call=1, evaluate_every=20),
    ),
    sampling=FlowSettings(step=flow.cps_step, log_density=flow.cps_log_density, shift=3.0),
    clip=1e-5,
)
SMOKE = smoke(
    MINI,
    model=MLPConfig(conditions=8, width=8, layers=1),
    group_size=4,
    sampling=FlowSettings(steps=4, window=3),
    evaluation_steps=4,
    evaluation_samples=16,
    continuations=2,
    studied=2,
)
GAIN = "abstract: consistently better than Flow-GRPO"
WHY = "motivation: a terminal reward does not say which step helped"
DELAY = "method: turning points own their delayed effect"
EQUAL = "not the paper's: its gain at equal cost"
COST = "completions make an update 2.5 times as dear"

EXPERIMENT = Experiment(
    paper=Paper(
        title="Alleviating Sparse Rewards by Modeling Step-Wise and Long-Term Sampling Effects in"
        " Flow-Based GRPO",
        arxiv="2602.06422",
        code="github.com/YunzeTong/TurningPoint-GRPO",
    ),
    prepare=prepare,
    arms={
        "flow_grpo": Arm(
            partial(train, credit=credit.group_relative, reward=paid_at_the_end),
            "one advantage a sample",
        ),
        "incremental": Arm(partial(train, credit=stepwise_group_relative), "r_k = d_k"),
        "tp_grpo": Arm(partial(train, credit=turning_point)),
        "inconsistent": Arm(partial(train, credit=partial(turning_point, consistent=False))),
        "unbalanced": Arm(partial(train, credit=partial(turning_point, balance=False))),
        "additive": Arm(partial(train, credit=partial(turning_point, additive=True))),
        "trendless": Arm(partial(train, credit=partial(turning_point, trend=False))),
    },
    scales={"mini": MINI, "smoke": SMOKE, "paper": PAPER},
    claims=[
        Claim("agreement", "incremental", ">", "flow_grpo", source=WHY),
        Claim("weighted_agreement", "incremental", ">", "flow_grpo", source=WHY),
        Claim("weighted_agreement", "tp_grpo", ">", "flow_grpo", source=WHY),
        Claim("early_weighted_agreement", "tp_grpo", ">", "incremental", source=DELAY),
        Claim("auc", "tp_grpo", ">", "flow_grpo", source=GAIN),
        Claim("reward", "tp_grpo", ">", "flow_grpo", source=GAIN),
        Claim("auc", "tp_grpo", ">", "incremental", source=DELAY),
        Claim("reward_at_equal_evaluations", "tp_grpo", ">", "flow_grpo", source=EQUAL, note=COST),
    ],
    first_arms=("flow_grpo", "incremental", "tp_grpo"),
    curves=("eval/reward", "eval/hits", "turning_points"),
    workloads=lambda c: denoising(
        c.sampling.policy(c.model), FlowModel(c.model), c.rl, c.group_size
    ),
)
