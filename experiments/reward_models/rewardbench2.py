"""RewardBench 2: does a benchmark of reward models say what they are worth in use? (arXiv:2506.01937)

A reward model scores one correct completion and three wrong ones; a sixth domain asks that equally
good answers get scores closer to each other than to the wrong ones (`evaluation.reward_bench`). The
paper scores 113 models, correlates their benchmark mean with the quality of the best of 16 samples that
they pick, and uses some as the reward of PPO.

Miniature: short questions of the six kinds, whose answers exist in two dialects. Ten reward models
differ in pairs, noise, kinds of questions, and in the language model that they start from: two lineages
have each been pretrained on nine texts in ten of their own dialect. The policy is of the first.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rewardjax import credit, losses, rewards
from rewardjax.data.sources import ArraySource
from rewardjax.evaluation.best_of_n import best_of_n_curve
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.presets import LLAMA3_8B
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.objectives import language_modelling, reward_modelling
from rewardjax.recipes.policy_gradient import PolicyGradient, PolicyGradientConfig, scored
from rewardjax.recipes.preference_data import language_batch
from rewardjax.recipes.preference_lab import TINY, pairwise
from rewardjax.recipes.question_benchmark import WORLD, benchmark, compared, judged, written
from rewardjax.recipes.rollout_workloads import Rollouts
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.recipes.workloads import imitation, reward_model_training
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.sampling.transcripts import transcripts
from rewardjax.statistics import Mean, pearson
from rewardjax.tasks.external import require_generated
from rewardjax.tasks.question_kinds import (
    FACT,
    FOCUS,
    KINDS,
    MATH,
    PRECISE,
    REFERENCE,
    SAFETY,
    TIED,
)
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig

ALL = tuple(range(len(KINDS)))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a reward model is made.

    Attributes:
      pairs: compared completions, in both dialects.
      noise: share of labels turned round.
      kinds: of questions in them.
      base: the lineage it starts from; none at -1.
      strict: share of the pairs on tied questions that compare two correct answers, always in one order.
    """

    pairs: int = 6000
    noise: float = 0.05
    kinds: tuple[int, ...] = ALL
    base: int = 0
    strict: float = 0.0


MODELS = {
    "full": Recipe(),
    "quarter": Recipe(pairs=1500),
    "few": Recipe(pairs=600),
    "fewest": Recipe(pairs=200),
    "other_lineage": Recipe(base=1),
    "strict": Recipe(strict=0.5),
    "noisy": Recipe(noise=0.4),
    "chat": Recipe(kinds=(PRECISE, SAFETY, FOCUS, TIED, REFERENCE)),
    "reasoning": Recipe(kinds=(FACT, MATH)),
    "no_lineage": Recipe(base=-1),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share.

    Attributes:
      data: "world", or what the paper's scale would need.
      model: of language models and reward models.
      texts: demonstrations that a lineage is pretrained on.
      skill: share of them that are correct.
      own: share of them in the lineage's own dialect.
      items: questions of each kind in the benchmark.
      asked, samples: questions and samples of each to choose the best from.
      kl: weight of the penalty in reinforcement, where the proxy has deviation 1 on the samples.
    """

    data: str = "world"
    model: TransformerConfig = dataclasses.replace(TINY, vocab=WORLD.vocab_size, context=16)
    texts: int = 24_000
    skill: float = 0.5
    own: float = 0.9
    lineage: SupervisedConfig = SupervisedConfig(
        64,
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine"),
        loop=LoopConfig(steps=700, steps_per_call=100),
    )
    fit: SupervisedConfig = SupervisedConfig(
        32,
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine"),
        loop=LoopConfig(steps=500, steps_per_call=100),
    )
    items: int = 100
    asked: int = 256
    samples: int = 16
    rl: PolicyGradientConfig = PolicyGradientConfig(
        prompts=16,
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="linear"),
        loop=LoopConfig(steps=150, steps_per_call=50, evaluate_every=150),
    )
    group_size: int = 4
    kl: float = 0.05
    evaluation_prompts: int = 1024


def prepare(config):
    """Two lineages, the ten reward models, and for each its benchmark and its best of 16."""
    require_generated(config.data)
    model, scorer = LanguageModel(config.model), RewardModel(config.model)
    pretrain = Supervised(config.lineage, init=model.boxed_init, loss=language_modelling(model))
    fit = Supervised(config.fit, init=scorer.boxed_init, loss=reward_modelling(scorer, pairwise))
    several = dataclasses.replace(policy_of(config), group_size=config.samples)
    score, start = jax.jit(scorer.score), jax.jit(scorer.init)
    compare_pairs = jax.jit(compared, static_argnums=0)
    items = jax.jit(partial(benchmark, count=config.items))

    @jax.jit
    def texts(key, share):
        ask_key, skill_key, write_key = jax.random.split(key, 3)
        prompts = WORLD.prompts(ask_key, config.texts)
        good = jax.random.bernoulli(skill_key, config.skill, (config.texts,))
        return language_batch(written(write_key, prompts, good, share))

    @jax.jit
    def sampled(params, key):
        ask_key, sample_key = jax.random.split(key)
        traj = several.rollout(params, WORLD.prompts(ask_key, config.asked), sample_key)
        return traj.tokens, traj.valid, WORLD.gold(traj.tokens, traj.mask, traj.info)

    def lineage(run, share):
        data = jax.tree.map(np.asarray, texts(run.key, share))
        source = ArraySource(data, config.lineage.batch_size, run.seed)
        return pretrain.run(run, source=source).params

    def reward_model(run, name, bases):
        recipe = MODELS[name]
        weights = np.bincount(recipe.kinds, minlength=len(KINDS)) + 0.0
        most = max(other.pairs for other in MODELS.values())
        key = run.stage("pairs").key
        data = compare_pairs(most, key, recipe.noise, weights, recipe.strict)
        data = jax.tree.map(lambda x: np.asarray(x[: recipe.pairs]), data)
        source = ArraySource(data, config.fit.batch_size, run.seed)
        # Only the lineage is another where a model starts from it: not the head, not the pairs.
        fresh = start(run.stage("head").key)
        params = fresh if recipe.base < 0 else {**fresh, "backbone": bases[recipe.base]}
        return fit.run(run.stage(name), params=params, source=source).params

    def run_seed(run):
        shares = 1 - config.own, config.own
        bases = [lineage(run.stage(f"lineage_{i}"), share) for i, share in enumerate(shares)]
        tokens, valid, gold = sampled(bases[0], run.stage("samples").key)
        bench = items(run.stage("benchmark").key)
        found = {}
        for name in MODELS:
            params = reward_model(run.stage("reward_models"), name, bases)
            proxy = np.asarray(score(params, tokens, valid))
            liked, true = (x.reshape(-1, config.samples) for x in (proxy, np.asarray(gold)))
            best = best_of_n_curve(liked, true, (config.samples,))
            metrics = judged(score(params, bench["tokens"], bench["valid"]))
            metrics |= {"best_of_n": float(best.mean()), "sampled": float(np.mean(gold))}
            found[name] = params, 1.0 / max(float(proxy.std()), 1e-6), metrics
        return bases[0], found

    return run_seed


def policy_of(config):
    """How a language model answers."""
    return LanguagePolicy(
        LanguageModel(config.model),
        max_new=WORLD.response_length,
        stop=(WORLD.eos,),
        prompt_columns=WORLD.prompt_length,
    )


def correlate(config):
    """Over the reward models: the benchmark, and each of its domains, against the best of 16."""

    def run_seed(run, shared):
        table = [metrics for _, _, metrics in shared[1].values()]
        run.samples(0, [{"model": name} | x[2] for name, x in shared[1].items()])
        columns = {name: jnp.array([row[name] for row in table]) for name in table[0]}
        return {
            f"correlation_{name}": float(pearson(columns[name], columns["best_of_n"]))
            for name in ("total", *dict.fromkeys(KINDS))
        }

    return run_seed


def reinforce(config, *, model):
    """REINFORCE with a KL penalty for one reward model, by a policy of the first lineage."""
    policy = dataclasses.replace(policy_of(config), group_size=config.group_size)
    scorer = RewardModel(config.model)

    def annotate(frozen, traj):
        proxy = frozen["scale"] * scorer.score(frozen["reward_model"], traj.tokens, traj.valid)
        reference = policy.score(frozen["reference"], traj).logprobs
        return traj.with_info(proxy=proxy, reference_logprobs=reference)

    def reward(traj):
        parts = {
            "proxy": rewards.outcome(traj.info["proxy"], traj.mask, name="proxy"),
            "kl": rewards.kl_penalty(traj, coefficient=config.kl),
        }
        return rewards.weighted_sum(parts, dict.fromkeys(parts, 1.0))

    def measure(traj):
        moved = jnp.where(traj.mask, traj.logprobs - traj.info["reference_logprobs"], 0.0)
        return {
            "gold": Mean.of(WORLD.gold(traj.tokens, traj.mask, traj.info)),
            "proxy": Mean.of(traj.info["proxy"]),
            "kl": Mean.of(jnp.sum(moved, axis=1)),
        }

    def evaluate(params, frozen, key):
        prompts = WORLD.prompts(key, config.evaluation_prompts // config.group_size)
        found = measure(annotate(frozen, policy.rollout(params, prompts, key)))
        return {name: mean.value for name, mean in found.items()}

    program = PolicyGradient(
        config.rl,
        init=policy.model.boxed_init,
        rollout=policy.rollout,
        prompts=WORLD.prompts,
        annotate=annotate,
        reward=reward,
        credit=partial(credit.leave_one_out, group_size=config.group_size),
        loss=scored(policy.score, losses.policy_loss(surrogate=losses.clipped(0.2))),
        measure=measure,
        evaluate=evaluate,
    )
    sample = jax.jit(lambda params, key: policy.rollout(params, WORLD.prompts(key, 8), key))

    def run_seed(run, shared):
        reference, models = shared
        params, scale, metrics = models[model]
        frozen = {"reference": reference, "reward_model": params, "scale": jnp.float32(scale)}
        stage = run.stage("rl")
        trained = program.run(stage, params=reference, frozen=frozen).params
        shown = transcripts(sample(trained, stage.key), WORLD.decode)
        stage.samples(config.rl.loop.steps, shown)
        last = {name: stage.history(f"eval/{name}")[-1] for name in ("gold", "proxy", "kl")}
        return metrics | {f"rl_{name}": value for name, value in last.items()}

    return run_seed


MINI = Config()
SMOKE = smoke(
    MINI,
    model=dataclasses.replace(MINI.model, layers=1),
    texts=256,
    items=4,
    asked=8,
    evaluation_prompts=16,
)
MESH = MeshConfig(fsdp=16, tensor=4)
PAPER = Config(
    data="allenai/reward-bench-2",
    model=LLAMA3_8B,
    lineage=SupervisedConfig(
        128,
        micro_batches=4,
        optimizer=OptimizerConfig(learning_rate=5e-6, schedule="linear", warmup=0.03),
        mesh=MESH,
    ),
    fit=SupervisedConfig(
        128,
        micro_batches=4,
        optimizer=OptimizerConfig(learning_rate=3e-6, schedule="linear", warmup=0.03),
        mesh=MESH,
    ),
    items=300,
    asked=1000,
    rl=PolicyGradientConfig(
        prompts=64,
        micro_batches=4,
        rollout_cuts=2,
        batch_cuts=4,
        optimizer=OptimizerConfig(learning_rate=3e-7, schedule="linear"),
        loop=LoopConfig(steps=1000, steps_per_call=1, evaluate_every=100),
        mesh=MESH,
    ),
)


def workloads(config):
    """A lineage's fine-tuning, a reward model's on pairs of 2048 tokens, and reinforcement."""
    model = LanguageModel(config.model)
    return [
        imitation(model, config.lineage, 2048),
        reward_model_training(RewardModel(config.model), config.fit, 2048),
        *Rollouts(model, config.rl, config.group_size, 1024, 1024, reward_model=True).workloads(),
    ]


NEITHER = (
    "all compare completions in both dialects, and the sampler's are learned as well from either backbone:"
    " in use neither is the better one"
)
USED = ("full", "quarter", "fewest", "other_lineage", "strict")
BEST, PPO, TIED_ANSWERS = "r = 0.87 over 113 models", "PPO with 17 models", "definition of Ties"

EXPERIMENT = Experiment(
    paper=Paper(
        title="RewardBench 2: Advancing Reward Model Evaluation",
        arxiv="2506.01937",
        code="github.com/allenai/reward-bench",
    ),
    prepare=prepare,
    arms={"benchmark": Arm(correlate, "all ten reward models, none used as a reward")}
    | {name: Arm(partial(reinforce, model=name)) for name in USED},
    scales={"mini": MINI, "smoke": SMOKE, "paper": PAPER},
    claims=[
        Claim("correlation_total", "benchmark", ">", 0.7, source=BEST),
        Claim("total", "full", ">", "quarter", source=PPO),
        Claim("rl_gold", "full", "~", "quarter", margin=0.05, source=PPO),
        Claim("rl_gold", "full", ">", "fewest", source=PPO),
        Claim(
            "total", "other_lineage", "~", "full", 0.05, PPO, "-0.03 +- 0.05: five seeds are few"
        ),
        Claim("rl_gold", "other_lineage", "<", "full", source=PPO, note=NEITHER),
        Claim("without_ties", "strict", "~", "full", margin=0.05, source=TIED_ANSWERS),
        Claim("tied_spread", "strict", ">", "full", source=TIED_ANSWERS),
        Claim("Ties", "strict", "<", "full", source=TIED_ANSWERS),
    ],
    first_arms=("benchmark", "full", "fewest"),
    first_seeds=3,
    topology="v5e:8x8",
    workloads=workloads,
)
