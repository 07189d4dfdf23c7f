"""Secrets of RLHF II: reward modelling on noisy preferences (arXiv:2401.06080; MetaRM: arXiv:2405.00438).

Many labels are wrong. M reward models that learned the same pairs in other orders vote on each; the
mean of their differences, the preference strength mu, finds wrong labels (lowest), ambiguous and clear
ones. A new reward model then learns, by Bradley-Terry with label p and margin m for every pair,

    flip      p = 0 where mu is lowest        smooth    p = 0.9 where mu < 0        margin    m = mu

and combinations; or with a contrastive loss on `state(chosen) - state(rejected)` besides (SimCSE, SwAV).
And a policy that learns from the reward leaves the data's distribution. MetaRM first steps to where the
reward tells k responses of the current policy apart, and takes Bradley-Terry's gradient there:

    psi <- psi - alpha grad L(psi'),    psi' = psi + eta grad J(psi),    J = 2/k^2 sum_{i<j} s(|r_i - r_j|)

Miniature: pairs of an imitation policy's responses, a fifth of their labels turned round.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rewardjax.data.formats import names_preferences
from rewardjax.data.sources import ArraySource
from rewardjax.evaluation.best_of_n import best_of_n_curve
from rewardjax.evaluation.verification import roc_auc
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.losses.contrastive import separation
from rewardjax.losses.denoising import preference_strength, weakest
from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.presets import LLAMA2_7B
from rewardjax.recipes.denoising import (
    ContrastConfig,
    Panel,
    contrastive_modelling,
    meta_modelling,
    relabelled,
    simcse,
    swav,
    with_prototypes,
)
from rewardjax.recipes.objective_workloads import objective_training
from rewardjax.recipes.objectives import reward_modelling
from rewardjax.recipes.policy_gradient import PolicyGradientConfig
from rewardjax.recipes.preference_lab import LabConfig, PreferenceLab, pairwise
from rewardjax.recipes.response_lists import list_metrics
from rewardjax.recipes.rollout_workloads import Rollouts
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.recipes.text_pairs import TextPairs, TextPairsConfig, inapplicable_to_text
from rewardjax.recipes.text_votes import TextVotes
from rewardjax.recipes.workloads import imitation, reward_model_training, sequences_of
from rewardjax.tasks.external import require_generated
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig

CHOICES = 16  # responses of which the best is taken


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share.

    Attributes:
      data: "world", preferences over text as `open_preferences` takes them, or what the paper's scale
        would need.
      lab: world, models, pairs; its `reward_model` is the budget of every arm's.
      votes, members: of the ensemble; a step shows `batch_size` pairs to every member.
      bins: equal parts of the pairs by their strength, each of which a model learns alone.
      flipped: share of the pairs that are turned round.
      smoothing: of the labels that the ensemble votes against.
      contrast: of the contrastive losses.
      group, rate: responses that MetaRM's J compares, and eta.
      rl: of the policy before the first of MetaRM's rounds, and in each; `prompts` counts responses.
      refit, rounds: of the reward model in each of so many rounds, after which the policy goes on.
      kl: weight of the KL penalty; the reward has deviation 1 on the first policy's responses.
      held_out: prompts whose responses the reward models choose among.
      text: budgets where the data are text.
    """

    data: str = "world"
    lab: LabConfig = LabConfig(
        comparisons=2000,
        temperature=0.1,
        label_noise=0.2,
        reward_model=SupervisedConfig(64, loop=LoopConfig(steps=160, steps_per_call=40)),
    )
    votes: SupervisedConfig = SupervisedConfig(
        40,
        optimizer=OptimizerConfig(clip=None),
        loop=LoopConfig(steps=50, steps_per_call=50),
    )
    members: int = 6
    bins: int = 10
    flipped: float = 0.15
    smoothing: float = 0.1
    contrast: ContrastConfig = ContrastConfig()
    group: int = 4
    rate: float = 0.3
    rl: PolicyGradientConfig = PolicyGradientConfig(
        prompts=64,
        optimizer=OptimizerConfig(learning_rate=5e-4),
        loop=LoopConfig(steps=40, steps_per_call=20),
    )
    refit: SupervisedConfig = SupervisedConfig(64, loop=LoopConfig(steps=40, steps_per_call=20))
    rounds: int = 2
    kl: float = 0.05
    held_out: int = 256
    text: TextPairsConfig = TextPairsConfig()


# What a pair's label becomes, given the ensemble's strength: (probability, margin) for Bradley-Terry.
def vanilla(config, strength):
    """As it is."""
    return jnp.ones_like(strength), jnp.zeros_like(strength)


def flip(config, strength):
    """The weakest pairs are turned round."""
    return 1.0 - weakest(strength, config.flipped), jnp.zeros_like(strength)


def smooth(config, strength):
    """Softened where the ensemble votes against it."""
    return jnp.where(strength < 0, 1 - config.smoothing, 1.0), jnp.zeros_like(strength)


def margin(config, strength, label=vanilla):
    """The difference has to be the strength; with the label of another function, if any."""
    return label(config, strength)[0], strength


def prepare(config):
    """A policy, labelled pairs and the votes on them; a reward model, and what the policy learned from it."""
    if names_preferences(config.data):
        return on_text(config).prepare()
    require_generated(config.data)
    lab = PreferenceLab(config.lab)
    panel = Panel(config.votes, lab.scorer, config.members)
    rl = reinforcement(config, lab)
    candidates, score = lab.sampler(CHOICES, config.held_out), jax.jit(lab.scorer.score)

    def run_seed(run):
        reference = lab.sft(run.stage("sft"))
        pairs, test = (lab.pairs(run.stage(x), reference) for x in ("comparisons", "test"))
        rows = np.tile(np.arange(config.lab.comparisons), (config.members, 1))
        rows = np.random.default_rng(run.seed).permuted(rows, axis=1)
        members = panel.run(run.stage("votes"), pairs, rows.T, reference)
        strength = preference_strength(panel.differences(members, pairs))
        reward_model = lab.reward_model(run.stage("reward_model"), reference, pairs)
        samples = candidates(reference, run.stage("candidates").key)
        spread = jnp.std(score(reward_model, samples["tokens"], samples["valid"]))
        frozen = {"reference": reference, "reward_model": scaled(reward_model, spread)}
        policy = rl.run(run.stage("rl"), params=reference, frozen=frozen).params
        models = {"reference": reference, "reward_model": reward_model, "policy": policy}
        data = {"pairs": pairs, "test": test, "candidates": samples, "strength": strength.mean}
        return models | data

    return run_seed


def on_text(config):
    """Heads on text whose training pairs an ensemble of them has voted on."""
    return TextVotes(TextPairs(config.data, config.text), config.members)


def scaled(params, spread):
    """A reward model with its scores divided."""
    return {**params, "head": jax.tree.map(lambda x: x / spread, params["head"])}


def reinforcement(config, lab):
    """GRPO on a reward model."""
    return lab.grpo(config.rl, group_size=config.group, kl=config.kl)


def accuracy(scores, gold):
    """How often the better of two responses scores higher."""
    return float(list_metrics(scores, jnp.asarray(gold))["pair_accuracy"])


def train(config, *, label=vanilla, contrast=None):
    """One reward model on relabelled pairs, with a contrastive loss besides or without."""
    if names_preferences(config.data):
        return on_text(config).arm(lambda strength: label(config, strength)[0])
    lab, fit = PreferenceLab(config.lab), config.lab.reward_model
    loss, init = reward_modelling(lab.scorer, relabelled), lab.scorer.boxed_init
    if contrast is not None:
        loss = contrastive_modelling(lab.scorer, relabelled, contrast, config.contrast)
        init = with_prototypes(lab.scorer, config.contrast.prototypes)
    program, score = Supervised(fit, init=init, loss=loss), jax.jit(lab.scorer.score)

    def run_seed(run, shared):
        pairs, samples, test = (shared[x] for x in ("pairs", "candidates", "test"))
        probability, margin = label(config, shared["strength"])
        columns = {name: pairs[name] for name in ("tokens", "valid")}
        columns |= {"probability": probability, "margin": margin, "pair": np.arange(len(margin))}
        source = ArraySource(columns, fit.batch_size, run.seed)
        params = nn.meta.unbox(init(run.key, shared["reference"]))
        params = program.run(run.stage("fit"), params=params, source=source).params
        params = params if contrast is None else params["scorer"]
        chosen_by = score(params, samples["tokens"], samples["valid"])
        return {
            "accuracy": accuracy(score(params, test["tokens"], test["valid"]), test["utility"]),
            "best_of_n": best_of_n_curve(chosen_by, samples["gold"], (CHOICES,)).mean(),
        }

    return run_seed


def deciles(config):
    """A model on each tenth of the pairs by their strength, weakest first."""
    panel = Panel(config.votes, RewardModel(config.lab.model), config.bins)

    def run_seed(run, shared):
        strength, test = np.asarray(shared["strength"]), shared["test"]
        rows = np.argsort(strength).reshape(config.bins, -1)
        rows = np.random.default_rng(run.seed).permuted(rows, axis=1)
        members = panel.run(run.stage("fit"), shared["pairs"], rows.T, shared["reference"])
        better = np.sign(test["utility"][:, 0] - test["utility"][:, 1])
        agrees = np.asarray(panel.differences(members, test)) * better > 0
        found = np.mean(agrees[:, better != 0], axis=1)
        for place, each in enumerate(found):
            run.log(place + 1, {"accuracy": each})
        gold = shared["pairs"]["utility"]
        wrong, differ = gold[:, 0] < gold[:, 1], gold[:, 0] != gold[:, 1]
        return {
            "weakest": found[0],
            "ambiguous": np.mean(found[2:4]),
            "clear": np.mean(found[4:]),
            "rise": np.mean(found[4:]) - np.mean(found[2:4]),
            "strongest_lag": np.mean(found[-4:-1]) - found[-1],
            "against": np.mean(strength < 0),
            "wrong_auc": roc_auc(-strength[differ], wrong[differ]),
        }

    return run_seed


def rounds(config, *, meta):
    """The reward model is fitted anew and the policy goes on, in turn; the pairs stay the same."""
    lab = PreferenceLab(config.lab)
    loss = meta_modelling(lab.scorer, pairwise)
    fit = Supervised(config.refit, init=lab.scorer.boxed_init, loss=loss)
    rl, score = reinforcement(config, lab), jax.jit(lab.scorer.score)
    sample = lab.sampler(config.group, config.held_out)

    def run_seed(run, shared):
        policy, model, found = shared["policy"], shared["reward_model"], []
        samples, test = shared["candidates"], shared["test"]
        pairs = {name: shared["pairs"][name] for name in ("tokens", "valid")}
        rate = {"rate": jnp.float32(config.rate if meta else 0.0)}
        for number in range(config.rounds):
            stage = run.stage(f"round_{number + 1}")
            own, fresh = (sample(policy, stage.stage(x).key) for x in ("own", "fresh"))
            turns = np.arange(config.lab.comparisons) % config.held_out
            groups = {f"group_{x}": np.asarray(own[x])[turns] for x in ("tokens", "valid")}
            source = ArraySource(pairs | groups, config.refit.batch_size, run.seed)
            model = fit.run(stage.stage("fit"), params=model, frozen=rate, source=source).params
            spread = jnp.std(score(model, samples["tokens"], samples["valid"]))
            scores = score(model, fresh["tokens"], fresh["valid"]) / spread
            found.append((accuracy(scores, fresh["gold"]), float(jnp.mean(separation(scores)))))
            frozen = {"reference": shared["reference"], "reward_model": scaled(model, spread)}
            policy = rl.run(stage.stage("rl"), params=policy, frozen=frozen).params
        after = sample(policy, run.stage("after").key)["gold"]
        return {
            "shifted_accuracy": found[0][0],
            "last_accuracy": found[-1][0],
            "separation": np.mean([apart for _, apart in found]),
            "accuracy": accuracy(score(model, test["tokens"], test["valid"]), test["utility"]),
            "gold": float(np.mean(after)),
        }

    return run_seed


MINI = Config()
THIN = dataclasses.replace(MINI.lab.model, layers=1)
SMOKE = smoke(
    MINI,
    lab=smoke(MINI.lab, comparisons=120, model=THIN),
    votes=smoke(MINI.votes, batch_size=10),
    members=2,
    held_out=16,
)
FIT = SupervisedConfig(
    32,
    micro_batches=4,
    optimizer=OptimizerConfig(learning_rate=5e-6, b2=0.95, epsilon=1e-6, warmup=0.1),
    loop=LoopConfig(steps=1000),
    mesh=MeshConfig(fsdp=4, tensor=4),
)
PAPER = Config(
    data="Anthropic/hh-rlhf",
    lab=LabConfig(model=LLAMA2_7B, sft=FIT, reward_model=FIT, comparisons=170_000),
    votes=FIT,
    members=10,
    rl=PolicyGradientConfig(
        prompts=128,
        minibatches=4,
        micro_batches=4,
        rollout_cuts=8,
        batch_cuts=16,
        optimizer=OptimizerConfig(learning_rate=5e-7),
        loop=LoopConfig(steps=400, steps_per_call=1),
        mesh=MeshConfig(fsdp=4, tensor=4),
    ),
    refit=FIT,
    rounds=4,
)


def workloads(config):
    """The first policy, a reward model of the ensemble, MetaRM's step and the policy's: 2048 tokens."""
    lab, scorer = config.lab, RewardModel(config.lab.model)
    model, meta = LanguageModel(lab.model), meta_modelling(scorer, pairwise)

    def batch(mesh):
        groups = sequences_of(mesh, config.refit.batch_size, config.group, 2048)
        named = {f"group_{name}": groups[name] for name in ("tokens", "valid")}
        return sequences_of(mesh, config.refit.batch_size, 2, 2048) | named

    stepped = partial(meta, frozen={"rate": config.rate})
    rl = dataclasses.replace(config.rl, prompts=config.rl.prompts // config.group)
    return [
        imitation(model, lab.sft, 2048),
        reward_model_training(scorer, lab.reward_model, 2048),
        objective_training(scorer, config.refit, stepped, batch, "metarm"),
        *Rollouts(model, rl, config.group, 1024, 1024, reward_model=True).workloads(),
    ]


def inapplicable(config):
    """Arms that need more than the data have."""
    return inapplicable_to_text(config.data, EXPERIMENT.arms, ON_TEXT, "the generated world")


ON_TEXT = ("vanilla", "flip", "smooth")
DECILES, DENOISED = "section 2.2: each tenth alone", "section 2.4: reward models denoised"
CONTRAST, META = "section 3: contrastive learning", "section 4: MetaRM by rounds"
WRONG = "votes are against a third of the labels here: these tenths are mostly wrong as well"
CLEAR = "as good as the tenths before it: nothing is learned by heart here"
COSTS = "some of the pairs turned round were right; a margin alone does not lose them"
SAME = "in trials 0.1 as a rate made no difference either, and 1 was worse"
SCALED = "in units of the scores' deviation on the first policy's responses"
EXPERIMENT = Experiment(
    paper=Paper(
        title="Secrets of RLHF in Large Language Models Part II: Reward Modeling",
        arxiv="2401.06080",
        code="github.com/OpenLMLab/MOSS-RLHF",
    ),
    prepare=prepare,
    arms={
        "vanilla": Arm(train, "labels as they are"),
        "flip": Arm(partial(train, label=flip)),
        "smooth": Arm(partial(train, label=smooth)),
        "margin": Arm(partial(train, label=margin)),
        "flip_margin": Arm(partial(train, label=partial(margin, label=flip))),
        "soft_margin": Arm(partial(train, label=partial(margin, label=smooth))),
        "simcse": Arm(partial(train, contrast=simcse)),
        "swav": Arm(partial(train, contrast=swav)),
        "deciles": Arm(deciles, "a model on each tenth of the pairs by strength"),
        "rounds": Arm(partial(rounds, meta=False), "fitted on without the meta step"),
        "metarm": Arm(partial(rounds, meta=True)),
    },
    scales={"mini": MINI, "smoke": SMOKE, "paper": PAPER},
    claims=[
        Claim("weakest", "deciles", "<", 0.5, source=DECILES),
        Claim("ambiguous", "deciles", "~", 0.5, 0.1, DECILES, WRONG),
        Claim("rise", "deciles", ">", 0.0, source=DECILES),
        Claim("strongest_lag", "deciles", ">", 0.0, 0.0, DECILES, CLEAR),
        Claim("wrong_auc", "deciles", ">", 0.7, source="wrong labels are found by strength"),
        Claim("accuracy", "flip", ">", "vanilla", 0.0, DENOISED, COSTS),
        Claim("accuracy", "margin", ">", "vanilla", source=DENOISED),
        Claim("accuracy", "flip_margin", ">", "vanilla", 0.0, DENOISED, COSTS),
        Claim("accuracy", "soft_margin", ">", "vanilla", source=DENOISED),
        Claim("accuracy", "smooth", ">=", "vanilla", 0.01, DENOISED),
        Claim("best_of_n", "flip_margin", ">", "vanilla", 0.0, DENOISED, COSTS),
        Claim("accuracy", "simcse", ">=", "vanilla", 0.01, CONTRAST),
        Claim("accuracy", "swav", ">=", "vanilla", 0.01, CONTRAST),
        Claim("shifted_accuracy", "metarm", ">", "rounds", 0.0, META, SAME),
        Claim("last_accuracy", "metarm", ">", "rounds", 0.0, META, SAME),
        Claim("separation", "metarm", ">", "rounds", 0.0, META, SCALED),
        Claim("accuracy", "metarm", "~", "rounds", 0.01, META),
    ],
    first_arms=("vanilla", "flip_margin", "deciles"),
    curves=("accuracy",),
    inapplicable=inapplicable,
    workloads=workloads,
)
