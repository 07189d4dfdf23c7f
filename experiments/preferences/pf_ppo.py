"""PF-PPO: policy filtration (arXiv:2409.06957).

A reward model is not equally reliable over its range. Of N responses to a prompt, ranked by reward, only
some enter PPO's buffer: the best (BoN), the best and a random other (BR), the best and the worst (BW), or N
drawn by weights of the ranks. The critic, the normalisation of advantages and the policy see nothing else.
The filter is chosen by the R^2 with which the rewards of what it keeps predict actual scores.

Miniature: gold utility is the score, the reward that of a Bradley-Terry model learned from noisy
comparisons; all arms sample as many responses, few a step.
"""

import dataclasses
from functools import partial

import jax
import numpy as np

from rewardjax import credit, losses
from rewardjax.evaluation.curves import at_kl
from rewardjax.evaluation.reliability import r_squared
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.presets import QWEN25_7B
from rewardjax.recipes.critic import critic
from rewardjax.recipes.policy_gradient import PolicyGradientConfig
from rewardjax.recipes.preference_lab import LabConfig, PreferenceLab
from rewardjax.recipes.rollout_workloads import Rollouts
from rewardjax.recipes.supervised import SupervisedConfig
from rewardjax.recipes.workloads import imitation, reward_model_training
from rewardjax.rewards import filters, kept_rows
from rewardjax.tasks.external import require_generated
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig

MEASURED = ("gold", "proxy", "kl")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share."""

    lab: LabConfig = LabConfig(
        comparisons=4000,
        label_noise=0.05,
        reward_model=SupervisedConfig(
            64,
            optimizer=OptimizerConfig(learning_rate=5e-4),
            loop=LoopConfig(steps=300, steps_per_call=50),
        ),
    )
    rl: PolicyGradientConfig = PolicyGradientConfig(
        prompts=40,  # responses
        optimizer=OptimizerConfig(learning_rate=2e-4),
        loop=LoopConfig(steps=160, steps_per_call=40, evaluate_every=20),
    )
    critic: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)
    samples: int = 5  # a prompt
    evaluation_prompts: int = 256
    held_out: int = 2048  # prompts of the responses on which R^2 is measured
    kl: float = 0.05
    kl_budget: float = 2.0  # nats a response, at which the arms are compared
    data: str = "world"


def prepare(config):
    """An initial policy, a reward model, and what both it and gold say of responses to held-out prompts."""
    require_generated(config.data)
    lab = PreferenceLab(config.lab)
    several = dataclasses.replace(lab.policy, group_size=config.samples)

    @jax.jit
    def judged(frozen, key):
        prompt_key, sample_key = jax.random.split(key)
        prompts = lab.world.prompts(prompt_key, config.held_out)
        traj = lab.annotate(frozen, several.rollout(frozen["reference"], prompts, sample_key))
        return traj.info["proxy"], lab.gold(traj)

    def run_seed(run):
        reference = lab.sft(run.stage("sft"))
        reward_model = lab.reward_model(run.stage("reward_model"), reference)
        frozen = {"reference": reference, "reward_model": reward_model}
        return frozen, judged(frozen, run.stage("held_out").key)

    return run_seed


def reliability(key, proxy, gold, size, ranks):
    """R^2 of gold on the reward among what a filter keeps: of each response, and by tenths of the range."""
    rows = kept_rows(key, proxy, size, ranks)
    edges = np.linspace(np.min(proxy), np.max(proxy), 11)
    return {
        "r_squared": r_squared(proxy[rows], gold[rows]),
        "r_squared_binned": r_squared(proxy[rows], gold[rows], edges),
    }


def train(config, *, ranks=filters.all_ranks, single=False):
    """One arm: PPO on the responses that `ranks` keeps of each prompt's, or on one response a prompt."""
    lab, size = PreferenceLab(config.lab), 1 if single else config.samples

    def select(traj, key):
        rows = kept_rows(key, traj.info["proxy"], size, ranks)
        return jax.tree.map(lambda x: x[rows], traj)

    program = lab.policy_gradient(
        config.rl,
        shape=lambda traj: traj.info["proxy"],
        kl=config.kl,
        credit=credit.whitened(credit.gae),
        loss=losses.policy_loss(surrogate=losses.clipped(0.2)),
        group_size=size,
        learners={
            "critic": critic(
                lab.scorer, config.critic, config.rl.loop.steps, micro_batches=config.rl.batch_cuts
            )
        },
        select=select,
        prompts=lab.world.prompts,
        evaluation_prompts=config.evaluation_prompts,
    )

    def run_seed(run, shared):
        frozen, (proxy, gold) = shared
        stage = run.stage("rl")
        params = program.run(stage, params=frozen["reference"], frozen=frozen).params
        stage.samples(config.rl.loop.steps, lab.samples(params, frozen, stage.key))
        curve = {name: stage.history(f"eval/{name}") for name in MEASURED}
        return {
            **{name: float(values[-1]) for name, values in curve.items()},
            "gold_at_kl": at_kl(curve["kl"], curve["gold"], config.kl_budget),
            "mean_gold": float(np.mean(curve["gold"])),
            "entropy": float(np.mean(stage.history("entropy")[-10:])),
            **reliability(run.key, proxy, gold, config.samples, ranks),
        }

    return run_seed


MINI = Config()
TINY_LAB = dataclasses.replace(MINI.lab, model=dataclasses.replace(MINI.lab.model, layers=1))
FIT = SupervisedConfig(
    64,
    optimizer=OptimizerConfig(learning_rate=5e-6),
    loop=LoopConfig(steps=1000),
    mesh=MeshConfig(fsdp=16, tensor=4),
)
PAPER = Config(
    data="code",
    lab=LabConfig(model=QWEN25_7B, sft=FIT, reward_model=FIT),
    rl=PolicyGradientConfig(
        prompts=2560,
        minibatches=4,
        micro_batches=4,
        rollout_cuts=4,
        batch_cuts=16,
        optimizer=OptimizerConfig(learning_rate=5e-7),
        loop=LoopConfig(steps=100, steps_per_call=1, evaluate_every=10),
        mesh=MeshConfig(fsdp=16, tensor=4),
    ),
    critic=OptimizerConfig(learning_rate=9e-6),
    kl=0.01,
    kl_budget=10.0,
)


def workloads(config):
    """The first policy, the reward model, the critic and PPO; prompts of 1024 tokens, responses of 2048."""
    lab, rl, size = config.lab, config.rl, config.samples
    model = LanguageModel(lab.model)
    kept = dataclasses.replace(rl, prompts=2 * rl.prompts // size)  # the best and one other of each
    rollouts = Rollouts(model, kept, 1, 1024, 2048, critic=config.critic, reward_model=True)
    return [
        imitation(model, lab.sft, 3072),
        reward_model_training(rollouts.scorer, lab.reward_model, 3072),
        *rollouts.workloads(),
    ]


TABLE = "pass@1 on HumanEval, MBPP and LeetCode"
RELIABLE = "why extremes are kept"
NARROWER = (
    "of single responses: rewards of fewer bad ones have a smaller range, and this grows with it"
)
EVEN = (
    "the reward model errs as much at the ends of its range as in the middle, and two of five responses"
    " teach less than all; the same on two seeds with 800 comparisons, a quarter of them wrong, where all"
    " arms are over-optimised"
)
SAME = "both see as many responses; as many prompts as responses do not hurt here"
SLOW = (
    "advantages among winners hardly differ: a fifth of the others' distance from the first policy"
)

EXPERIMENT = Experiment(
    paper=Paper(
        title="Policy Filtration in RLHF to Fine-Tune LLM for Code Generation",
        arxiv="2409.06957",
        code="github.com/swtheing/PF-PPO-RLHF",
    ),
    prepare=prepare,
    arms={
        "ppo_s": Arm(partial(train, single=True), "as many prompts as the others have responses"),
        "ppo_m": Arm(train, "all responses of a prompt"),
        "bon": Arm(partial(train, ranks=filters.best)),
        "br": Arm(partial(train, ranks=filters.best_and_random)),
        "bw": Arm(partial(train, ranks=filters.best_and_worst)),
        "mid": Arm(partial(train, ranks=filters.middle), "neither the best nor the worst"),
        "br_reweighted": Arm(
            partial(train, ranks=filters.drawn((0.4, *[0.1] * 4))),
            "five drawn, the best the likeliest",
        ),
    },
    scales={
        "mini": MINI,
        "smoke": smoke(MINI, lab=smoke(TINY_LAB), held_out=16, evaluation_prompts=16),
        "paper": PAPER,
    },
    claims=[
        Claim("r_squared", "br", ">", "ppo_m", source=RELIABLE, note=NARROWER),
        Claim("r_squared", "bw", ">", "ppo_m", source=RELIABLE),
        Claim("r_squared", "mid", "<", "ppo_m", source=RELIABLE),
        Claim("r_squared_binned", "br", ">", "ppo_m", source=RELIABLE),
        Claim("r_squared_binned", "bw", ">", "ppo_m", source=RELIABLE),
        Claim("gold", "br", ">", "ppo_m", source=TABLE, note=EVEN),
        Claim("gold", "bw", ">", "ppo_m", source=TABLE, note=EVEN),
        Claim("gold", "ppo_m", ">", "ppo_s", source=TABLE, note=SAME),
        Claim("gold", "bon", "<", "ppo_s", source=TABLE),
        Claim("gold", "mid", "<", "bw", source="the middle teaches least"),
        Claim("gold", "br_reweighted", "~", "br", 0.02, source="two ways to filter"),
        Claim("entropy", "bon", "<", "ppo_m", source="winners alone give no contrast", note=SLOW),
    ],
    reported={
        "ppo_s": {"human_eval": 78.1, "mbpp": 73.8, "leetcode": 25.2},
        "ppo_m": {"human_eval": 80.2, "mbpp": 75.0, "leetcode": 29.8},
        "bon": {"human_eval": 75.8, "mbpp": 71.7, "leetcode": 16.8},
        "br": {"human_eval": 82.9, "mbpp": 75.9, "leetcode": 33.0},
        "bw": {"human_eval": 82.4, "mbpp": 76.2, "leetcode": 30.4},
    },
    first_arms=("ppo_m", "br", "bw"),
    first_seeds=3,
    curves=("gold", "proxy", "kl"),
    topology="v5e:8x8",
    workloads=workloads,
)
