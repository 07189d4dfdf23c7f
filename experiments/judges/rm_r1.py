"""RM-R1: a reward model that reasons before it judges (arXiv:2505.02387).

A judge that first writes its own solution, or the criteria, and then compares, is trained on the
traces of a stronger teacher, then by GRPO: 1 for the right verdict, -1 for any other.

Miniature: the better of two answers has the right sum, or more of the requested words, and in 85% of
the training pairs it is also the longer one. The hard split turns that round. All arms start from one
model that knows the forms of a judgement and of a bare verdict, and fills them in carelessly.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rewardjax.data.sources import ArraySource
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.presets import QWEN25_7B
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.judging import Judge, scalar_judge
from rewardjax.recipes.objectives import language_modelling
from rewardjax.recipes.policy_gradient import PolicyGradientConfig
from rewardjax.recipes.preference_data import demonstrations
from rewardjax.recipes.rollout_workloads import reinforcement
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.recipes.verified_task import policy_on
from rewardjax.recipes.workloads import imitation
from rewardjax.tasks.external import require_generated
from rewardjax.tasks.pair_judgement import PairJudgement
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig

WORLD = PairJudgement(modulus=5)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share."""

    data: str = "pair_judgement"
    world: PairJudgement = WORLD
    model: TransformerConfig = TransformerConfig(
        vocab=WORLD.vocab_size, width=64, mlp_width=128, context=64, qk_norm=True
    )
    base: SupervisedConfig = SupervisedConfig(
        64, optimizer=OptimizerConfig(learning_rate=3e-3), loop=LoopConfig(400, steps_per_call=50)
    )
    distil: SupervisedConfig = SupervisedConfig(
        64, optimizer=OptimizerConfig(learning_rate=3e-3), loop=LoopConfig(150, steps_per_call=50)
    )
    base_errors: float = 0.35  # of what the common start fills in
    traces: int = 500
    rl: PolicyGradientConfig = PolicyGradientConfig(
        prompts=16,
        minibatches=2,
        optimizer=OptimizerConfig(learning_rate=1e-4),
        loop=LoopConfig(steps=200, steps_per_call=10, evaluate_every=20),
    )
    scalar: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)
    group_size: int = 8
    kl: float = 1e-3
    max_response: int = WORLD.max_response
    tail: int = 3  # tokens that are read for the verdict
    evaluation_prompts: int = 256


def judge(config, *, think=True):
    """The judge that all arms but `scalar_bt` train."""
    policy = policy_on(config.world, config.model, config.max_response)
    return Judge(config.world, policy, think, config.tail, config.evaluation_prompts)


def prepare(config):
    """The common start, and what distillation makes of it; ValueError where data are not generated."""
    require_generated(config.data, "pair_judgement")
    world, model = config.world, judge(config).policy.model
    objective = language_modelling(model)

    def both(key, n):
        return world.prompts(key, n, think=jnp.arange(n) % 4 < 2)

    careless = demonstrations(both, partial(world.traces, error_rate=config.base_errors))
    base = Supervised(config.base, init=model.boxed_init, loss=objective, batches=careless)
    distil = Supervised(config.distil, init=model.boxed_init, loss=objective)
    teach = jax.jit(demonstrations(world.prompts, world.traces), static_argnums=1)

    def run_seed(run):
        start = base.run(run.stage("base")).params
        stage = run.stage("distil")
        source = ArraySource(teach(stage.key, config.traces), config.distil.batch_size, run.seed)
        return {"base": start, "distilled": distil.run(stage, params=start, source=source).params}

    return run_seed


def reinforce(config, *, start, think=True):
    """GRPO on the verdict from the parameters `start` of `prepare`, which are also the reference."""
    judged = judge(config, think=think)
    program = judged.grpo(config.rl, config.group_size, config.kl)

    def run_seed(run, shared):
        stage = run.stage("rl")
        params = program.run(stage, params=shared[start], frozen=shared[start]).params
        stage.samples(config.rl.loop.steps, judged.samples(params, stage.key))
        names = ("easy", "hard", "consistency", "parsed", *["wrong_solution"] * think)
        curves = {name: stage.history(f"eval/{name}") for name in names}
        found = {name: float(curve[-1]) for name, curve in curves.items()}
        return found | {"mean_hard": float(np.mean(curves["hard"]))}

    return run_seed


def imitate(config):
    """The first stage alone: the judge that has seen the traces."""
    judged = judge(config)
    examine = jax.jit(judged.examine)

    def run_seed(run, shared):
        stage, params = run.stage("examination"), shared["distilled"]
        stage.samples(config.distil.loop.steps, judged.samples(params, stage.key))
        return {name: float(x) for name, x in examine(params, None, stage.key).items()}

    return run_seed


def scalar(config):
    """A Bradley-Terry head on the same trunk, on as many pairs as GRPO sees."""
    scorer, rl = RewardModel(config.model), config.rl
    budget = SupervisedConfig(rl.prompts, optimizer=config.scalar, loop=rl.loop)
    program = scalar_judge(config.world, scorer, budget, config.evaluation_prompts)

    def run_seed(run, shared):
        stage = run.stage("scalar")
        program.run(stage, params=scorer.init(stage.key, shared["base"]))
        return {name: float(stage.history(f"eval/{name}")[-1]) for name in ("easy", "hard")}

    return run_seed


MINI = Config()
MESH = MeshConfig(fsdp=16, tensor=4)
# Of the 7B judge: 8.7 thousand traces once in batches of 128; then 73 thousand pairs once, 1024 a step.
PAPER = Config(
    data="Skywork-Reward-Preference-80K-v0.2",
    model=QWEN25_7B,
    distil=SupervisedConfig(
        128,
        micro_batches=8,
        optimizer=OptimizerConfig(learning_rate=5e-6),
        loop=LoopConfig(steps=68),
        mesh=MESH,
    ),
    traces=8_700,
    rl=PolicyGradientConfig(
        prompts=1024,
        minibatches=8,
        micro_batches=56,
        rollout_cuts=32,
        batch_cuts=448,
        optimizer=OptimizerConfig(learning_rate=1e-6),
        loop=LoopConfig(steps=71, steps_per_call=1, evaluate_every=1),
        mesh=MESH,
    ),
    group_size=7,
    max_response=8192,
    tail=80,  # characters, there
)


def workloads(config):
    """Distillation on traces, and reinforcement, with 4096 tokens of a question and two answers."""
    length = 4096 + config.max_response
    traces = imitation(LanguageModel(config.model), config.distil, length, "distil")
    return [traces, *reinforcement(config, prompt=4096)]


TINY = dataclasses.replace(MINI.model, layers=1, width=16, mlp_width=16)
SMOKE = smoke(MINI, model=TINY, traces=64, evaluation_prompts=8)
ABLATION = "Ablation: RewardBench with a 32B judge"
SHORT = "200 updates on 3200 pairs, from 500 traces that are right"
WHY = "Sec. 1: scalar rewards follow what is easy in their training pairs"

EXPERIMENT = Experiment(
    paper=Paper(
        title="RM-R1: Reward Modeling as Reasoning",
        arxiv="2505.02387",
        code="github.com/RM-R1-UIUC/RM-R1",
    ),
    prepare=prepare,
    arms={
        "scalar_bt": Arm(scalar, "a scalar head, Bradley-Terry"),
        "direct_verdict_rl": Arm(partial(reinforce, start="base", think=False), "no judgement"),
        "cold_rl": Arm(partial(reinforce, start="base"), "no traces"),
        "distill_sft": Arm(imitate, "traces alone"),
        "rm_r1": Arm(partial(reinforce, start="distilled")),
    },
    scales={"mini": MINI, "smoke": SMOKE, "paper": PAPER},
    claims=[
        Claim("hard", "rm_r1", ">", "distill_sft", source=ABLATION, note=SHORT),
        Claim("hard", "rm_r1", ">", "cold_rl", source=ABLATION),
        Claim("mean_hard", "rm_r1", ">", "cold_rl", source=ABLATION),
        Claim("hard", "rm_r1", ">", "scalar_bt", source="Table 1: RM-Bench"),
        Claim("hard", "distill_sft", ">", "direct_verdict_rl", source=WHY),
        Claim("hard", "direct_verdict_rl", ">=", "scalar_bt", margin=0.05, source=WHY),
        Claim("hard", "scalar_bt", "<", 0.5, source=WHY),
    ],
    reported={"cold_rl": {"rewardbench": 89.5}, "rm_r1": {"rewardbench": 91.4}},
    first_arms=("scalar_bt", "distill_sft", "rm_r1"),
    first_seeds=1,
    curves=("eval/hard", "eval/easy", "eval/wrong_solution"),
    topology="v5e:8x8",
    workloads=workloads,
)
