"""PRIME: token rewards from a model that learns online from outcomes alone (arXiv:2502.01456).

An implicit process reward model psi scores a token by its log-ratio to the first policy,

    q_t = log psi(y_t | y_<t) - log ref(y_t | y_<t),

and is fitted to outcomes by cross-entropy on sigmoid(beta sum_t q_t), on the policy's own rollouts.
The advantage adds the leave-one-out credit of the outcome and of the returns of q, then is whitened.

Miniature: chains of modular arithmetic whose policy slips at each step. One wrong step spoils the
answer; the outcome blames all of them, while q can learn which token it was.
"""

import dataclasses
from functools import partial

import jax
import numpy as np

from rewardjax import credit, losses, rewards
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.presets import QWEN25_7B
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.credit_quality import slip_auc
from rewardjax.recipes.implicit_reward import fitted_to_rollouts, implicit_process_reward
from rewardjax.recipes.learning_curve import learning_curve
from rewardjax.recipes.policy_gradient import PolicyGradientConfig
from rewardjax.recipes.rollout_workloads import Rollouts, with_process_rewards
from rewardjax.recipes.supervised import SupervisedConfig
from rewardjax.recipes.verified_task import VerifiedTask
from rewardjax.tasks.arithmetic import Arithmetic
from rewardjax.tasks.external import require_generated
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig

OUTCOME = credit.whitened(credit.leave_one_out)
BOTH = credit.whitened(credit.outcome_and_process)
UNSCALED = credit.whitened(partial(credit.outcome_and_process, scale=False))
WORLD = Arithmetic(modulus=7, min_steps=6, max_steps=6, operations="+-")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share.

    Attributes:
      slips: probability that a step of a demonstration is wrong.
      filter: prompts are kept whose share of right rollouts lies in this range.
      prm: optimizer of the process reward model.
      offline: of the one that is trained on rollouts of the first policy, and kept.
    """

    data: str = "arithmetic"
    world: Arithmetic = WORLD
    model: TransformerConfig = TransformerConfig(
        vocab=WORLD.vocab_size, layers=2, width=64, mlp_width=128, context=64
    )
    sft: SupervisedConfig = SupervisedConfig(
        64, optimizer=OptimizerConfig("adamw", 3e-3, "linear"), loop=LoopConfig(1200, 100)
    )
    rl: PolicyGradientConfig = PolicyGradientConfig(
        prompts=16,
        optimizer=OptimizerConfig(learning_rate=1e-4),
        loop=LoopConfig(steps=150, steps_per_call=10, evaluate_every=10),
    )
    slips: float = 0.25
    group_size: int = 8
    filter: tuple[float, float] = (0.2, 0.8)
    beta: float = 0.05
    prm: OptimizerConfig = OptimizerConfig(learning_rate=3e-4)
    offline: SupervisedConfig = SupervisedConfig(
        128, optimizer=OptimizerConfig(learning_rate=1e-3), loop=LoopConfig(150, 50)
    )
    pool: int = 1024  # prompts of these rollouts
    max_response: int = 2 * WORLD.max_steps + 2
    evaluation_prompts: int = 512
    target: float = 0.8  # accuracy, of `updates_to_target`


def task_of(config):
    """The policy that writes a chain of steps, on its world."""
    return VerifiedTask.create(
        config.world, config.model, config.max_response, config.evaluation_prompts
    )


def prepare(config):
    """The first policy, and a process reward model fitted to its rollouts once."""
    require_generated(config.data, "arithmetic")
    world, task = config.world, task_of(config)

    def write(key, prompts):
        written = world.demonstrations(key, prompts, error_rate=config.slips, paraphrase=False)
        return jax.tree.map(lambda x: x[:, : config.max_response], written)

    sft = task.supervised(config.sft, write)
    fit = fitted_to_rollouts(config.offline, task, config.group_size, config.pool, config.beta)

    def run_seed(run):
        params = sft.run(run.stage("sft")).params
        return {"sft": params, "offline": fit(run.stage("offline_prm"), params)}

    return run_seed


def train(config, *, credit, start="sft", frozen=False, process=True):
    """One arm; with `process` its `credit` reads a model that starts as `start`, and stays if `frozen`."""
    world, task = config.world, task_of(config)

    def reward(traj):
        outcome = rewards.outcome(world.verify(traj), traj.mask, name="verified")
        return rewards.within_mean(outcome, config.group_size, *config.filter)

    learner = implicit_process_reward(
        task.policy.model,
        config.prm,
        config.rl.loop.steps,
        beta=config.beta,
        judge=lambda traj, q: {"step_auc": slip_auc(q, *world.step_correct(traj))},
        frozen=frozen,
        micro_batches=config.rl.batch_cuts,
    )
    program = task.policy_gradient(
        config.rl,
        config.group_size,
        annotate=task.reference_logprobs,
        learners={"prm": learner} if process else {},
        reward=reward,
        credit=partial(credit, group_size=config.group_size),
        loss=losses.policy_loss(surrogate=losses.clipped(0.2)),
    )

    def run_seed(run, shared):
        stage, loop, first = run.stage("rl"), config.rl.loop, shared["sft"]
        starts = {"prm": shared[start]} if process else {}
        state = program.run(stage, params=first, starts=starts, frozen=first)
        task.show(stage, state.params, loop.steps)
        found = learning_curve(stage, loop, config.target)
        if process:
            auc, fifth = stage.history("prm/auc"), max(loop.steps // 5, 1)
            found["prm_auc"] = np.mean(auc[-fifth:])
            found["prm_auc_change"] = found["prm_auc"] - np.mean(auc[:fifth])
            found["step_auc"] = np.mean(stage.history("prm/step_auc"))
        return found

    return run_seed


MINI = Config()
# The paper's run script: 256 prompts x 4 rollouts, learning rates 5e-7 and 1e-6, 3072 new tokens, and one
# epoch over 150k prompts. A frozen process reward model is fitted for as many updates as we give it.
PAPER = Config(
    data="Eurus-2-RL-Data",
    model=QWEN25_7B,
    rl=PolicyGradientConfig(
        prompts=256,
        micro_batches=16,
        rollout_cuts=4,
        batch_cuts=16,
        optimizer=OptimizerConfig(learning_rate=5e-7),
        loop=LoopConfig(steps=586, steps_per_call=1, evaluate_every=16),
        mesh=MeshConfig(fsdp=16, tensor=4),
    ),
    prm=OptimizerConfig(learning_rate=1e-6, clip=10.0),
    group_size=4,
    max_response=3072,
)


def workloads(config, prompt=1024):
    """The policy's programs and those of the process reward model, with prompts of so many tokens."""
    model = LanguageModel(config.model)
    rollouts = Rollouts(model, config.rl, config.group_size, prompt, config.max_response)
    return with_process_rewards(rollouts, config.prm, config.beta)


TINY = dataclasses.replace(MINI.model, layers=1)
SMOKE = smoke(MINI, model=TINY, pool=16, evaluation_prompts=16, filter=(0.0, 1.0))
FASTER = "Section 4.3: 2.5 times the sample efficiency of outcomes alone, 6.9% more in the end"
DECAY = "Section 5.2: an online process reward model is not overtaken by its policy"

EXPERIMENT = Experiment(
    paper=Paper(
        title="Process Reinforcement through Implicit Rewards",
        arxiv="2502.01456",
        code="github.com/PRIME-RL/PRIME",
    ),
    prepare=prepare,
    arms={
        "rloo": Arm(partial(train, credit=OUTCOME, process=False), "the outcome alone"),
        "prime": Arm(partial(train, credit=BOTH)),
        "offline": Arm(partial(train, credit=BOTH, start="offline", frozen=True), "fitted once"),
        "unscaled": Arm(partial(train, credit=UNSCALED), "returns of the process as they are"),
    },
    scales={"mini": MINI, "smoke": SMOKE, "paper": PAPER},
    claims=[
        Claim("accuracy", "prime", ">", "rloo", source=FASTER),
        Claim("auc", "prime", ">", "rloo", source=FASTER),
        Claim("updates_to_target", "prime", "<", "rloo", source=FASTER),
        Claim("prm_auc", "prime", ">", "offline", source=DECAY),
        Claim("prm_auc_change", "offline", "<", 0.0, source=DECAY),
        Claim("prm_auc_change", "prime", ">=", 0.0, margin=0.05, source=DECAY),
        Claim("step_auc", "prime", ">", 0.5, source="method: process rewards without step labels"),
        Claim("auc", "prime", ">", "unscaled", source="authors' code: returns are normalised"),
    ],
    first_arms=("rloo", "prime"),
    first_seeds=2,
    curves=("eval/accuracy", "prm/auc", "prm/step_auc"),
    topology="v5e:8x8",
    workloads=workloads,
)
