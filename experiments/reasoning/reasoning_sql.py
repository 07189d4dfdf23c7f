"""Reasoning-SQL: partial rewards for text-to-SQL (arXiv:2503.23157).

Whether a query's rows are right is a sparse reward. These are added, in [0, 1] each:

    R = 3 execution + 2 judge (where execution is 0) + syntax + schema + ngram + format

Miniature: questions in everyday words on small SQLite databases; queries really run. A quarter of
the compositions of known words is held out. The judge is a model fitted to graded responses.
"""

import dataclasses
from functools import partial

import jax
import numpy as np

from rewardjax import credit, losses, rewards
from rewardjax.data.sources import ArraySource
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.presets import QWEN25_7B
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.objectives import language_modelling
from rewardjax.recipes.policy_gradient import PolicyGradient, PolicyGradientConfig, scored
from rewardjax.recipes.preference_data import language_batch
from rewardjax.recipes.rollout_workloads import reinforcement
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.recipes.text_to_sql import QueryTask, grading
from rewardjax.recipes.verified_task import policy_on
from rewardjax.rewards.sql import PARTS
from rewardjax.tasks.external import require_generated
from rewardjax.tasks.sql import SQLWorld
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig
from rewardjax.trajectory import respond

WORLD = SQLWorld()
FAST = OptimizerConfig(learning_rate=3e-3)
WEIGHTS = dict.fromkeys(PARTS, 1.0) | {"execution": 3.0, "judge": 2.0}


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share.

    Attributes:
      demonstrations: pairs of the light warm start `sft`, and those of `full`.
      judge: budget of the judge; half of the responses that it learns from answer another question.
    """

    data: str = "sql"
    world: SQLWorld = WORLD
    model: TransformerConfig = TransformerConfig(
        vocab=WORLD.vocab_size, layers=2, width=64, mlp_width=128, context=64
    )
    demonstrations: tuple[int, int] = (200, 4000)
    sft: SupervisedConfig = SupervisedConfig(64, optimizer=FAST, loop=LoopConfig(30, 15))
    full: SupervisedConfig = SupervisedConfig(64, optimizer=FAST, loop=LoopConfig(300, 50))
    judge: SupervisedConfig = SupervisedConfig(64, optimizer=FAST, loop=LoopConfig(200, 50))
    rl: PolicyGradientConfig = PolicyGradientConfig(
        16, optimizer=OptimizerConfig(learning_rate=5e-4), loop=LoopConfig(120, 10, 0, 20)
    )
    group_size: int = 8
    kl: float = 0.04
    max_response: int = WORLD.max_response
    evaluation_prompts: int = 256


def task_of(config):
    """The policy that writes a thought and a query, and the databases."""
    policy = policy_on(config.world, config.model, config.max_response)
    return QueryTask(config.world, policy, config.evaluation_prompts)


def prepare(config):
    """The policies that demonstrations make, and the judge."""
    require_generated(config.data, "sql")
    world, model = config.world, LanguageModel(config.model)
    write = partial(Supervised, init=model.boxed_init, loss=language_modelling(model))
    light, full = write(config.sft), write(config.full)
    grade = grading(config.judge, RewardModel(config.model), world)

    def run_seed(run):
        prompts = world.prompts(run.stage("demonstrations").key, max(config.demonstrations))
        shown = language_batch(respond(prompts, *world.demonstrations(run.key, prompts)))

        def learn(program, stage, count):
            rows = jax.tree.map(lambda x: np.asarray(x[:count]), shown)
            source = ArraySource(rows, program.config.batch_size, run.seed)
            return program.run(run.stage(stage), source=source).params

        return {
            "sft": learn(light, "sft", config.demonstrations[0]),
            "sft_full": learn(full, "sft_full", config.demonstrations[1]),
            "judge": grade.run(run.stage("judge")).params,
        }

    return run_seed


def imitate(config, *, start):
    """Demonstrations alone."""
    task = task_of(config)
    return lambda run, shared: task.results(run.stage("rl"), shared[start])


def train(config, *, reward):
    """The light warm start, then GRPO on the parts of the reward that are named."""
    task, judge = task_of(config), RewardModel(config.model)
    policy = dataclasses.replace(task.policy, group_size=config.group_size)

    def annotate(frozen, traj):
        score = judge.score(frozen["judge"], traj.tokens, traj.valid)
        logprobs = policy.score(frozen["sft"], traj).logprobs
        return traj.with_info(judge=jax.nn.sigmoid(score), reference_logprobs=logprobs)

    def combined(traj):
        values = traj.info | {"judge": traj.info["judge"] * (traj.info["execution"] == 0)}
        parts = {name: rewards.outcome(values[name], traj.mask, name=name) for name in reward}
        return rewards.weighted_sum(parts, {name: WEIGHTS[name] for name in reward})

    close = losses.kl_to_reference(config.kl)
    loss = losses.policy_loss(surrogate=losses.clipped(0.2), regularisers=(close,))
    program = PolicyGradient(
        config.rl,
        init=policy.model.boxed_init,
        rollout=policy.rollout,
        prompts=config.world.prompts,
        annotate=annotate,
        on_host=task.parts,
        reward=combined,
        credit=partial(credit.group_relative, group_size=config.group_size),
        loss=scored(policy.score, loss),
        evaluate=lambda params, frozen, key: task.measure(params, key),
    )

    def run_seed(run, shared):
        stage = run.stage("rl")
        params = program.run(stage, params=shared["sft"], frozen=shared).params
        found = task.results(stage, params)
        found["area"] = np.mean(stage.history("eval/execution"))
        found["silent"] = np.mean(stage.history("zero_advantage"))
        return found

    return run_seed


MINI = Config()
# Group, learning rate, epochs and KL coefficient are not in what is public of the paper: ours.
PAPER = Config(
    data="BIRD",
    model=QWEN25_7B,
    rl=PolicyGradientConfig(
        prompts=128,
        micro_batches=32,
        rollout_cuts=4,
        batch_cuts=32,
        optimizer=OptimizerConfig(learning_rate=1e-6),
        loop=LoopConfig(steps=221, steps_per_call=1, evaluate_every=13),
        mesh=MeshConfig(fsdp=16, tensor=4),
    ),
    max_response=2048,
)
SMOKE = smoke(
    MINI,
    model=dataclasses.replace(MINI.model, layers=1),
    demonstrations=(64, 64),
    evaluation_prompts=16,
)
SPARSE, ABLATION = "motivation: execution alone is sparse", "reward ablation"

EXPERIMENT = Experiment(
    paper=Paper(
        title="Reasoning-SQL: Reinforcement Learning with SQL Tailored Partial Rewards for "
        "Reasoning-Enhanced Text-to-SQL",
        arxiv="2503.23157",
    ),
    prepare=prepare,
    arms={
        "sft": Arm(partial(imitate, start="sft"), "the warm start of the others"),
        "sft_full": Arm(partial(imitate, start="sft_full"), "twenty times the demonstrations"),
        "exec_only": Arm(partial(train, reward=("execution",))),
        "exec_syntax": Arm(partial(train, reward=("execution", "syntax"))),
        "no_judge": Arm(partial(train, reward=PARTS)),
        "all": Arm(partial(train, reward=(*PARTS, "judge"))),
        "ngram_only": Arm(partial(train, reward=("ngram",)), "similarity to the reference"),
    },
    scales={"mini": MINI, "smoke": SMOKE, "paper": PAPER},
    claims=[
        Claim("execution", "all", ">", "exec_only", source=ABLATION),
        Claim("area", "all", ">", "exec_only", source=SPARSE),
        Claim("silent", "exec_only", ">", "all", source=SPARSE),
        Claim("execution", "exec_syntax", ">=", "exec_only", margin=0.02, source=ABLATION),
        Claim("execution", "all", ">=", "no_judge", margin=0.02, source=ABLATION),
        Claim("execution", "all", ">", "sft", source="abstract"),
        Claim("held_out", "all", ">", "sft_full", source="RL generalises further than SFT"),
        Claim("ngram", "ngram_only", ">", "sft", source="similarity can be raised"),
        Claim("execution", "ngram_only", "<", "all", source="similarity is not execution"),
    ],
    first_arms=("sft", "exec_only", "all"),
    first_seeds=2,
    curves=("eval/execution", "reward/execution", "zero_advantage"),
    topology="v5e:8x8",
    workloads=partial(reinforcement, prompt=4096, reward_model=True),
)
