"""iREPO: regression of implicit reward differences on empirical preferences (arXiv:2405.15230).

DPO's hard labels ask for an infinite margin wherever annotators nearly agree. iREPO asks h annotators to
compare K responses of the current policy pi_t, fits strengths s to their votes (Zermelo's model), takes the
best and the worst response and regresses the difference of implicit rewards on the logit of their preference:

    (logit p - beta * [log pi(w|x) / pi_t(w|x) - log pi(l|x) / pi_t(l|x)])^2        p = sigmoid(s_w - s_l)

then starts the next iteration from the policy it found, which is also the new reference. Miniature: noisy
annotators see the gold utility of `PreferenceWorld` through a temperature, so that the true p is known.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rewardjax import losses
from rewardjax.evaluation.curves import at_kl
from rewardjax.evaluation.rankings import bradley_terry_strengths
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.losses import Loss
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.presets import MISTRAL_7B
from rewardjax.recipes.iterated_preference import IteratedPreference, IterationConfig
from rewardjax.recipes.objectives import direct_preference
from rewardjax.recipes.preference_data import best_and_worst
from rewardjax.recipes.preference_lab import LabConfig, PreferenceLab
from rewardjax.recipes.supervised import SupervisedConfig
from rewardjax.recipes.workloads import imitation, preference_training
from rewardjax.sampling.transcripts import transcripts
from rewardjax.statistics import Mean, to_groups
from rewardjax.tasks.annotators import compare, preference_probability, vote
from rewardjax.tasks.external import require_generated
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig

Votes = Float[Array, "groups size size"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share."""

    data: str = "world"
    lab: LabConfig = LabConfig(temperature=0.2, label_noise=0.0)
    optimisation: IterationConfig = IterationConfig(
        iterations=3,
        prompts=512,
        training=SupervisedConfig(
            32,
            optimizer=OptimizerConfig(learning_rate=6e-4),
            loop=LoopConfig(steps=120, steps_per_call=20, evaluate_every=40),
        ),
    )
    beta: float = 1.0
    responses: int = 4  # K
    annotators: int = 20  # h
    evaluation_prompts: int = 512
    kl_budget: float = 2.0  # nats a response, at which the arms are compared


def zermelo(votes: Votes) -> Votes:
    """Probability that the row's response is preferred to the column's, by the strengths of all."""
    strengths = bradley_terry_strengths(votes, sweeps=30)
    return jax.nn.sigmoid(strengths[..., :, None] - strengths[..., None, :])


def win_rate(votes: Votes) -> Votes:
    """The same from each pair's own votes, with half a vote more on either side."""
    return (votes + 0.5) / (votes + jnp.swapaxes(votes, -1, -2) + 1.0)


def best_first(preferred: Votes, key: PRNGKeyArray) -> Float[Array, "groups size"]:
    """Ranks responses by how probably they are preferred to the others."""
    return jnp.mean(preferred, axis=-1)


def at_random(preferred: Votes, key: PRNGKeyArray) -> Float[Array, "groups size"]:
    """Any order: the pair is no longer chosen by the votes that are to tell its probability."""
    return jax.random.uniform(key, preferred.shape[:-1])


# What is lost by a pair, of `beta` times the difference of its log-ratios and the preference's probability.
def dpo(difference, probability, beta):
    """Whoever won is better for sure."""
    return losses.bradley_terry(difference)


def ipo(difference, probability, beta):
    """A margin of 1/(2 beta) between log-ratios."""
    return losses.ipo(difference / beta, beta)


def irepo(difference, probability, beta):
    """The paper's: the margin is the logit of the preference."""
    return losses.logit_regression(difference, probability)


def prepare(config):
    """The SFT policy.

    Raises:
      ValueError: the data are not the generated ones.
    """
    require_generated(config.data)
    lab = PreferenceLab(config.lab)
    return lambda run: lab.sft(run.stage("sft"))


def collector(config, lab, annotators, estimate, rank):
    """Labelled pairs of a policy's responses, with the true logit of their preference."""
    sampler = dataclasses.replace(lab.policy, group_size=config.responses)
    label = partial(compare, temperature=config.lab.temperature, flip_rate=config.lab.label_noise)

    def collect(params, frozen, key, prompts):
        prompt_key, sample_key, vote_key, rank_key = jax.random.split(key, 4)
        traj = sampler.rollout(params, lab.world.prompts(prompt_key, prompts), sample_key)
        gold = lab.gold(traj)
        groups = to_groups(gold, config.responses)
        preferred = estimate(vote(vote_key, groups, annotators, label))
        place = jnp.tile(jnp.arange(config.responses), prompts)
        rows = traj.with_info(
            gold=gold, place=place, preferred=preferred.reshape(-1, config.responses)
        )
        pairs = best_and_worst(rows, rank(preferred, rank_key).reshape(-1), config.responses)
        worst = pairs["place"][:, 1:]
        probability = jnp.take_along_axis(pairs["preferred"][:, 0], worst, axis=1)[:, 0]
        columns = {name: pairs[name] for name in ("tokens", "valid", "mask")}
        return columns | {"probability": probability, "truth": truth(config, pairs["gold"])}

    return collect


def truth(config, gold: Float[Array, "pairs 2"]) -> Float[Array, "pairs"]:
    """The logit of the probability with which an annotator prefers the first of two responses."""
    c = config.lab
    p = preference_probability(
        gold[:, 0], gold[:, 1], temperature=c.temperature, flip_rate=c.label_noise
    )
    return jnp.log(p) - jnp.log1p(-p)


def evaluator(config, lab):
    """Gold, KL to the SFT policy, and margins on fresh pairs of the reference's responses."""
    pairs = dataclasses.replace(lab.policy, group_size=2)

    def ratio(params, traj, before):
        own = lab.policy.score(params, traj).logprobs
        return losses.log_ratio(own, before, traj.mask)

    def evaluate(params, frozen, key):
        prompt_key, own_key, pair_key = jax.random.split(key, 3)
        prompts = lab.world.prompts(prompt_key, config.evaluation_prompts)
        own = lab.policy.rollout(params, prompts, own_key)
        first = lab.policy.score(frozen["first"], own).logprobs
        fresh = pairs.rollout(frozen["reference"], prompts, pair_key)
        ratios = to_groups(ratio(params, fresh, fresh.logprobs), 2)
        margin = config.beta * (ratios[:, 0] - ratios[:, 1])
        true = truth(config, to_groups(lab.gold(fresh), 2))
        return {
            "gold": jnp.mean(lab.gold(own)),
            "kl": jnp.mean(losses.log_ratio(own.logprobs, first, own.mask)),
            "margin_error": jnp.mean(jnp.abs(margin - true)),
            "accuracy": Mean.of(margin * true > 0, true != 0).value,
        }

    return evaluate


def written(lab, params, key) -> list[dict]:
    """Rows that a person can read, with their gold utility."""
    traj = lab.policy.rollout(params, lab.world.prompts(key, 8), key)
    return transcripts(traj.with_info(gold=lab.gold(traj)), lab.world.decode, columns=("gold",))


def train(config, *, loss, iterate=True, annotators=None, estimate=zermelo, rank=best_first):
    """One arm: the SFT policy trained on pairs with one of the losses."""
    lab = PreferenceLab(config.lab)
    budget = config.optimisation if iterate else config.optimisation.at_once

    def pair_loss(ratios, batch):
        difference = config.beta * (ratios[:, 0] - ratios[:, 1])
        return loss(difference, batch["probability"], config.beta)

    objective = direct_preference(lab.policy.model, pair_loss)

    def labelled(params, batch, frozen) -> Loss:
        found = objective(params, batch, frozen["reference"])
        p, seen = batch["probability"], found.metrics
        margin = seen["chosen_log_ratio"].value - seen["rejected_log_ratio"].value
        excess = config.beta * margin - jnp.mean(batch["truth"])
        label_error = jnp.abs(jnp.log(p) - jnp.log1p(-p) - batch["truth"])
        own = {"label_error": Mean.of(label_error), "excess": Mean.of(excess)}
        return Loss(found.terms, seen | own)

    program = IteratedPreference(
        budget,
        init=lab.policy.model.boxed_init,
        collect=collector(config, lab, annotators or config.annotators, estimate, rank),
        loss=labelled,
        evaluate=evaluator(config, lab),
    )

    def run_seed(run, reference):
        found = program.run(run, reference)
        updates = budget.iterations * budget.training.loop.steps
        run.samples(updates, written(lab, found.params[-1], run.key))
        names = ("gold", "kl", "margin_error", "accuracy")
        curves = {name: found.curve(f"eval/{name}") for name in names}
        excess = found.curve("excess")
        later = excess[len(excess) // 2 :]
        last = budget.training.loop.evaluate_every
        return {name: float(values[-1]) for name, values in curves.items()} | {
            "gold_at_kl": at_kl(curves["kl"], curves["gold"], config.kl_budget),
            "excess": float(excess[-last:].mean()),
            "excess_growth": float(later[-last:].mean() - later[:last].mean()),
            "label_error": float(found.curve("label_error").mean()),
        }

    return run_seed


MINI = Config()
SMOKE = smoke(
    MINI,
    optimisation=dataclasses.replace(
        MINI.optimisation,
        iterations=2,
        prompts=16,
        training=smoke(MINI.optimisation.training, batch_size=8),
    ),
    evaluation_prompts=16,
)
TUNED = SupervisedConfig(
    64,
    optimizer=OptimizerConfig(learning_rate=5e-7, schedule="cosine", warmup=0.1),
    loop=LoopConfig(steps=312, steps_per_call=1, evaluate_every=104),
    mesh=MeshConfig(fsdp=16),
)
PAPER = Config(
    data="openbmb/UltraFeedback",
    lab=LabConfig(model=MISTRAL_7B, sft=TUNED),
    optimisation=IterationConfig(iterations=3, prompts=20_000, training=TUNED),
    beta=0.1,
    responses=8,
    annotators=9,
)


def workloads(config):
    """The first policy's training and one iteration's, with 1024 tokens a prompt and its response."""
    model = LanguageModel(config.lab.model)
    pairs = preference_training(model, config.optimisation.training, 1024, name="irepo")
    return [imitation(model, config.lab.sft, 1024), pairs]


FURTHER = (
    "at one beta hard labels go nearly twice as far from the SFT policy; at equal KL iREPO is ahead"
)
ABSTRACT = "surpasses preference optimisation baselines"
EQUAL = "the same, at equal KL"
GAP = "the gap shrinks with more annotators"
HARD = "hard labels ask for an infinite margin"
THEORY = "the optimum is that of KL-regularised reward maximisation"
EXPERIMENT = Experiment(
    paper=Paper(
        title="iREPO: implicit Reward Pairwise Difference based Empirical Preference Optimization",
        arxiv="2405.15230",
    ),
    prepare=prepare,
    arms={
        "dpo": Arm(partial(train, loss=dpo, iterate=False), "offline: one iteration"),
        "ipo": Arm(partial(train, loss=ipo, iterate=False), "offline: one iteration"),
        "iterative_dpo": Arm(partial(train, loss=dpo)),
        "irepo": Arm(partial(train, loss=irepo), "20 annotators"),
        "irepo_h1": Arm(partial(train, loss=irepo, annotators=1), "1 annotator"),
        "irepo_h5": Arm(partial(train, loss=irepo, annotators=5), "5 annotators"),
        "irepo_h5_raw": Arm(
            partial(train, loss=irepo, annotators=5, estimate=win_rate), "each pair's own votes"
        ),
        "irepo_once": Arm(partial(train, loss=irepo, iterate=False), "offline: one iteration"),
        "irepo_random": Arm(partial(train, loss=irepo, rank=at_random), "pairs at random"),
    },
    scales={"mini": MINI, "smoke": SMOKE, "paper": PAPER},
    claims=[
        *(Claim(x, "dpo", ">", 0.0, source=HARD) for x in ("excess", "excess_growth")),
        *(
            Claim(x, arm, "<", hard, source=THEORY)
            for x in ("excess", "margin_error", "kl")
            for arm, hard in (("irepo_once", "dpo"), ("irepo", "iterative_dpo"))
        ),
        Claim("gold", "irepo", ">=", "iterative_dpo", 0.02, source=ABSTRACT, note=FURTHER),
        *(Claim("gold", "irepo", ">", x, source=ABSTRACT) for x in ("dpo", "ipo")),
        *(Claim("gold_at_kl", "irepo", ">", x, source=EQUAL) for x in ("dpo", "iterative_dpo")),
        Claim("gold", "irepo", ">", "irepo_once", source="responses of the current policy"),
        Claim("gold", "irepo", ">", "irepo_h1", source=GAP),
        Claim("gold", "irepo", ">=", "irepo_h5", 0.02, source=GAP),
        Claim("label_error", "irepo_h5", "<", "irepo_h1", source=GAP),
        Claim("label_error", "irepo", "<", "irepo_h5", source=GAP),
        Claim("label_error", "irepo_h5", "<", "irepo_h5_raw", source="Zermelo's model"),
        Claim("label_error", "irepo_random", "<", "irepo", source="the best of K are lucky too"),
    ],
    first_arms=("dpo", "iterative_dpo", "irepo"),
    first_seeds=3,
    curves=("gold", "kl", "margin_error"),
    workloads=workloads,
)
