"""HelpSteer2-Preference: complementing ratings with preferences (arXiv:2410.01257).

The same pairs of responses carry Likert ratings and a forced choice with a strength m (slightly
better 1, better 2, much better 3), so that regression and Bradley-Terry reward models can be
compared on matched data. The paper's own loss weights each pair by its strength,

    scaled Bradley-Terry   -m log sigmoid(r_chosen - r_rejected)

and its best model is trained as a regression first, as scaled Bradley-Terry then, and extrapolated
along that second way (ExPO). REINFORCE with a leave-one-out baseline makes most of that model.

Miniature: 1000 pairs of writers' responses; helpfulness is gold utility on a scale of 0 to 4; the
choice between close responses is wrong in 30% of pairs, between far ones in 2%.
`--set data=hh:DIR` (or `jsonl:FILE`, `tfds:NAME@DIR`) trains the reward models on text instead.
Text may carry ratings as its records' attribute `helpfulness`, and strengths as `strength`: by how
much each response is preferred to the other, 2 and -2.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rewardjax import credit, losses
from rewardjax.data.formats import open_preferences
from rewardjax.data.sources import ArraySource
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.presets import LLAMA3_70B
from rewardjax.recipes.critic import critic
from rewardjax.recipes.objectives import direct_preference, reward_modelling
from rewardjax.recipes.policy_gradient import PolicyGradientConfig
from rewardjax.recipes.preference_data import comparisons
from rewardjax.recipes.preference_lab import LabConfig, PreferenceLab
from rewardjax.recipes.rated_pairs import RatedPairsConfig, helpfulness, rated_study
from rewardjax.recipes.rollout_workloads import Rollouts
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.recipes.text_reward_model import TextConfig, ragged, text_scorer, text_study
from rewardjax.recipes.workloads import preference_training, reward_model_training
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig
from rewardjax.training.weights import expo_extrapolate

Pair = Float[Array, "batch 2"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share.

    Attributes:
      data: "world", or preferences over text as `open_preferences` takes them.
      lab: the world, the policy and its SFT; the reward model's size.
      pairs: how writers' responses are rated and chosen between.
      text: how text becomes batches, where the data are text.
      fit: of a reward model on choices.
      rating_fit: of a reward model on ratings: further to go from a score of 0, and slower to overfit.
      expo: the largest extrapolation tried, and the number of steps up to it.
    """

    data: str = "world"
    lab: LabConfig = LabConfig()
    pairs: RatedPairsConfig = RatedPairsConfig()
    text: TextConfig = TextConfig()
    fit: SupervisedConfig = SupervisedConfig(
        64,
        optimizer=OptimizerConfig(learning_rate=1e-3),
        loop=LoopConfig(steps=64, steps_per_call=16),
    )
    rating_fit: SupervisedConfig = SupervisedConfig(
        64,
        optimizer=OptimizerConfig(learning_rate=1e-3),
        loop=LoopConfig(steps=160, steps_per_call=16),
    )
    expo: tuple[float, int] = (1.5, 15)
    rl: PolicyGradientConfig = PolicyGradientConfig(
        prompts=64,
        optimizer=OptimizerConfig(learning_rate=5e-4),
        loop=LoopConfig(steps=200, steps_per_call=20, evaluate_every=20),
    )
    group_size: int = 4  # of RLOO, which takes rl.prompts / group_size prompts
    kl: float = 0.1  # best for RLOO and PPO of 0.01, 0.1; DPO's beta of 0.03, 0.1, 0.3; other seeds
    critic: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)
    dpo: SupervisedConfig = SupervisedConfig(
        32,
        optimizer=OptimizerConfig(learning_rate=2e-4),
        loop=LoopConfig(steps=200, evaluate_every=20),
    )
    dpo_beta: float = 0.3
    evaluation_prompts: int = 512


# A reward model's losses on a pair's scores; the preferred response is the first, or as probable as
# `probability` says. `strength` is (m, -m).
def regression(scores: Pair, batch) -> Float[Array, "batch"]:
    """The squared error to the ratings, SteerLM's loss on one attribute."""
    return jnp.mean((scores - batch["helpfulness"]) ** 2, axis=1)


def bt(scores: Pair, batch, margin: Float[Array, "batch"] | float = 0.0) -> Float[Array, "batch"]:
    """`-log sigmoid(r_chosen - r_rejected - margin)`."""
    probability = batch.get("probability", 1.0)
    return losses.bradley_terry(scores[:, 0] - scores[:, 1], margin=margin, probability=probability)


def margin_bt(scores: Pair, batch) -> Float[Array, "batch"]:
    """The strength is asked of the difference of the scores (Llama 2)."""
    return bt(scores, batch, batch["strength"][:, 0])


def scaled_bt(scores: Pair, batch) -> Float[Array, "batch"]:
    """The paper's: `-m log sigmoid(r_chosen - r_rejected)`, as if a pair came m times."""
    return jnp.abs(batch["strength"][:, 0]) * bt(scores, batch)


def scaled_bt_unit(scores: Pair, batch) -> Float[Array, "batch"]:
    """The same with weights of mean 1 in each batch."""
    return scaled_bt(scores, batch) / jnp.mean(jnp.abs(batch["strength"][:, 0]))


COLUMNS = {
    regression: ("helpfulness",),
    bt: (),
    margin_bt: ("strength",),
    scaled_bt: ("strength",),
    scaled_bt_unit: ("strength",),
}
STAGES = {
    "reg": (regression,),
    "bt": (bt,),
    "margin_bt": (margin_bt,),
    "scaled_bt": (scaled_bt,),
    "scaled_bt_unit": (scaled_bt_unit,),
    "reg_bt": (regression, bt),
    "reg_margin": (regression, margin_bt),
    "reg_scaled": (regression, scaled_bt),
    "reg_scaled_expo": (regression, scaled_bt),
}
ALIGNED = ("rloo", "ppo", "dpo")


def inapplicable(config) -> dict[str, str]:
    """Why arms cannot be run on the configuration's data."""
    if config.data == "world":
        return {}
    records = open_preferences(config.data, "train", config.text.on_bad_record).records
    found = (records[0].attributes or {}) if records else {}
    reasons = {arm: "gold helpfulness, which only data=world has" for arm in ALIGNED}
    for arm, stages in STAGES.items():
        needed = [name for stage in stages for name in COLUMNS[stage] if name not in found]
        if needed:
            columns = " and ".join(dict.fromkeys(needed))
            reasons[arm] = f"the attribute {columns} of each response, which the records lack"
    return {arm: f"arm {arm!r} needs {why}: data={config.data}" for arm, why in reasons.items()}


def require(config, arm):
    """Raises ValueError where an arm cannot be run on the configuration's data."""
    reason = inapplicable(config).get(arm)
    if reason:
        raise ValueError(reason)


def prepare(config):
    """A backbone, matched training pairs, and how to measure a reward model."""
    if config.data == "world":
        return rated_study(config.pairs, PreferenceLab(config.lab))
    return text_study(config.data, config.text)


def reward_model(config, arm):
    """How an arm's reward model is made: `(run, shared) -> (params, metrics)`."""
    require(config, arm)
    world = config.data == "world"
    scorer = PreferenceLab(config.lab).scorer if world else text_scorer(config.text)
    programs = {}
    for loss in STAGES[arm]:
        budget = config.rating_fit if loss is regression else config.fit
        budget = budget if world else ragged(config.text.fit)
        objective = reward_modelling(scorer, loss)
        programs[loss] = Supervised(budget, init=scorer.boxed_init, loss=objective)

    def fit(run, shared):
        params = start = scorer.init(run.key, shared.backbone)
        for loss, program in programs.items():
            source = shared.source(program.config.batch_size, COLUMNS[loss], run.seed)
            stage = run.stage(loss.__name__)
            start, params = params, program.run(stage, params=params, source=source).params
        if arm != "reg_scaled_expo":
            return params, {}
        return extrapolate(config, run.stage("expo"), start, params, shared.evaluate)

    return fit


def extrapolate(config, run, start, end, evaluate):
    """The extrapolation that does best on the validation pairs; of equals, the shortest."""
    tried = np.linspace(0.0, config.expo[0], config.expo[1] + 1)
    accuracies = []
    for step, a in enumerate(tried):
        params = expo_extrapolate(start, end, float(a))
        found = {name: evaluate(params, name)["accuracy"] for name in ("validation", "test")}
        run.log(step, {"a": a} | {f"{name}_accuracy": x for name, x in found.items()})
        accuracies.append(found["validation"])
    best = float(tried[int(np.argmax(accuracies))])
    return expo_extrapolate(start, end, best), {"best_a": best, "validation": max(accuracies)}


def train(config, *, arm):
    """One reward model."""
    fit = reward_model(config, arm)

    def run_seed(run, shared):
        params, metrics = fit(run, shared)
        run.samples(0, shared.show(params))
        return shared.evaluate(params, "test") | metrics

    return run_seed


def align(config, *, arm):
    """A policy trained for the final reward model's scores; gold helpfulness is what it is worth."""
    require(config, arm)
    lab, fit = PreferenceLab(config.lab), reward_model(config, "reg_scaled_expo")
    optimise = (offline if arm == "dpo" else partial(online, rloo=arm == "rloo"))(config, lab)

    def run_seed(run, shared):
        model, _ = fit(run, shared)
        frozen = {"reference": shared.backbone, "reward_model": model}
        stage = run.stage("policy")
        params = optimise(stage, frozen)
        stage.samples(0, lab.samples(params, frozen, stage.key))
        names = ("gold", "proxy", "gaudy", "kl", "win_rate")
        last = {name: float(stage.history(f"eval/{name}")[-1]) for name in names}
        return {
            "helpfulness": float(helpfulness(config.pairs, jnp.float32(last.pop("gold"))))
        } | last

    return run_seed


def online(config, lab, *, rloo):
    """REINFORCE with a leave-one-out baseline, or PPO: the same samples, the KL in the reward."""
    size, rl = config.group_size if rloo else 1, config.rl
    value = critic(lab.scorer, config.critic, rl.loop.steps, micro_batches=rl.batch_cuts)
    program = lab.policy_gradient(
        rl,
        shape=lambda traj: traj.info["proxy"],
        kl=config.kl,
        credit=partial(credit.leave_one_out, group_size=size)
        if rloo
        else credit.whitened(credit.gae),
        loss=losses.reinforce_loss() if rloo else losses.policy_loss(surrogate=losses.clipped(0.2)),
        group_size=size,
        learners={} if rloo else {"critic": value},
        prompts=lab.world.prompts,
        evaluation_prompts=config.evaluation_prompts,
    )
    return lambda run, frozen: program.run(run, params=frozen["reference"], frozen=frozen).params


def offline(config, lab):
    """DPO on the initial policy's responses, as many as the others sample, by the scores' order."""
    twice = dataclasses.replace(lab.policy, group_size=2)
    preference = direct_preference(
        lab.policy.model,
        lambda ratios, batch: losses.bradley_terry(config.dpo_beta * (ratios[:, 0] - ratios[:, 1])),
    )
    program = Supervised(
        config.dpo,
        init=lab.policy.model.boxed_init,
        loss=lambda params, batch, frozen: preference(params, batch, frozen["reference"]),
        evaluate=partial(lab.evaluate, prompts=config.evaluation_prompts),
    )

    @jax.jit
    def labelled(frozen, key):
        prompt_key, sample_key, label_key = jax.random.split(key, 3)
        prompts = lab.world.prompts(prompt_key, config.dpo.loop.steps * config.dpo.batch_size)
        traj = twice.rollout(frozen["reference"], prompts, sample_key)
        scores = lab.scorer.score(frozen["reward_model"], traj.tokens, traj.valid)
        return comparisons(traj, scores, lambda key, a, b: a > b, label_key)

    def run_seed(run, frozen):
        pairs = labelled(frozen, run.stage("pairs").key)
        source = ArraySource(pairs, config.dpo.batch_size, run.seed)
        return program.run(run, params=frozen["reference"], frozen=frozen, source=source).params

    return run_seed


MINI = Config()
MESH = MeshConfig(fsdp=16, tensor=8)
PUBLISHED = SupervisedConfig(
    64,
    micro_batches=4,
    optimizer=OptimizerConfig(learning_rate=1e-6),
    loop=LoopConfig(steps=160),
    mesh=MESH,
)
PAPER = Config(
    data="nvidia/HelpSteer2",
    lab=LabConfig(model=LLAMA3_70B),
    text=TextConfig(vocab=LLAMA3_70B.vocab, buckets=(4096,), model=LLAMA3_70B, fit=PUBLISHED),
    fit=PUBLISHED,
    rating_fit=dataclasses.replace(
        PUBLISHED, optimizer=OptimizerConfig(learning_rate=2e-6), loop=LoopConfig(320)
    ),
    pairs=RatedPairsConfig(train=10_000),
    rl=PolicyGradientConfig(
        prompts=256,
        micro_batches=16,
        batch_cuts=16,
        optimizer=OptimizerConfig(learning_rate=5e-7),
        loop=LoopConfig(steps=160, steps_per_call=1, evaluate_every=20),
        mesh=MESH,
    ),
    kl=0.01,
    dpo=PUBLISHED,
)


def workloads(config):
    """The reward model on comparisons, DPO, and PPO with all its models, on conversations of 4096 tokens.

    RLOO's programs are PPO's without the critic.
    """
    model, length = LanguageModel(config.lab.model), config.text.buckets[-1]
    half = length // 2
    rollouts = Rollouts(model, config.rl, 1, half, half, critic=config.critic, reward_model=True)
    return [
        reward_model_training(rollouts.scorer, config.fit, length),
        preference_training(model, config.dpo, length),
        *rollouts.workloads(),
    ]


NOTES = {
    "reg": "ratings alone",
    "scaled_bt_unit": "weights of mean 1: what a sum of weights as the denominator would do",
    "reg_scaled_expo": "the paper's reward model",
    "dpo": "on pairs of the initial policy, labelled by the paper's reward model",
}
MODELS, POLICIES = "reward model table", "alignment table"
SMOKE = smoke(
    MINI,
    lab=smoke(dataclasses.replace(MINI.lab, model=dataclasses.replace(MINI.lab.model, layers=1))),
    pairs=RatedPairsConfig(train=128, validation=64, test=64),
    evaluation_prompts=16,
)

EXPERIMENT = Experiment(
    paper=Paper(
        title="HelpSteer2-Preference: Complementing Ratings with Preferences", arxiv="2410.01257"
    ),
    prepare=prepare,
    arms={
        **{arm: Arm(partial(train, arm=arm), NOTES.get(arm, "")) for arm in STAGES},
        **{arm: Arm(partial(align, arm=arm), NOTES.get(arm, "")) for arm in ALIGNED},
    },
    inapplicable=inapplicable,
    scales={
        "mini": MINI,
        "smoke": SMOKE,
        "paper": PAPER,
    },
    claims=[
        Claim("accuracy", "scaled_bt", ">", "bt", source=MODELS),
        Claim("accuracy", "scaled_bt", ">", "margin_bt", source=MODELS),
        Claim("accuracy", "reg_bt", ">", "bt", source=MODELS),
        Claim("accuracy", "reg_margin", ">", "margin_bt", source=MODELS),
        Claim("accuracy", "reg_scaled", ">", "scaled_bt", source=MODELS),
        Claim("accuracy", "reg_scaled", ">", "reg", source=MODELS),
        Claim("accuracy", "reg_scaled_expo", ">", "reg_scaled", source=MODELS),
        Claim("best_a", "reg_scaled_expo", ">", 0.0, source="extrapolation helps"),
        Claim("helpfulness", "rloo", ">", "dpo", source=POLICIES),
        Claim("helpfulness", "rloo", ">", "ppo", source=POLICIES),
    ],
    reported={
        "reg": {"rewardbench": 0.930},
        "bt": {"rewardbench": 0.915},
        "margin_bt": {"rewardbench": 0.915},
        "scaled_bt": {"rewardbench": 0.927},
        "reg_bt": {"rewardbench": 0.927},
        "reg_margin": {"rewardbench": 0.930},
        "reg_scaled": {"rewardbench": 0.937},
        "reg_scaled_expo": {"rewardbench": 0.941},
        "dpo": {"mt_bench": 8.66, "alpaca_eval_lc": 40.4, "arena_hard": 52.8},
        "ppo": {"mt_bench": 8.74, "alpaca_eval_lc": 43.8, "arena_hard": 58.6},
        "rloo": {"mt_bench": 8.98, "alpaca_eval_lc": 57.6, "arena_hard": 85.0},
    },
    first_arms=("bt", "margin_bt", "scaled_bt", "reg", "reg_scaled", "reg_scaled_expo"),
    curves=("eval/gold", "eval/proxy", "test_accuracy"),
    workloads=workloads,
    topology="v5p:4x4x8",
)
