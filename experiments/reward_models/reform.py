"""REFORM: a reward model finds its own failures and learns from them (arXiv:2507.06419).

Two language models are fitted to preferred and to non-preferred responses. The reward model r steers
both, token by token, to where it is wrong: to a response that is still preferred with a low reward, and to
one that is still non-preferred with a high reward,

    y+'_i = argmin_{v in TopK(pi+)} r(x, [y, v]) - alpha log pi+(v | x, y)
    y-'_i = argmax_{v in TopK(pi-)} r(x, [y, v]) + alpha log pi-(v | x, y)

The 5% of pairs with the lowest loss are attacked; (x, y+', y-) and (x, y+, y-') join the data, and r is
trained anew.

Miniature: preferred answers keep to the topic, and nine of ten are long, in capitals, with one ending; of
the others one of ten is. What the reward model learns of that is tested by giving answers other styles.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rewardjax import losses
from rewardjax.data.sources import ArraySource
from rewardjax.evaluation.best_of_n import best_of_n_curve
from rewardjax.evaluation.curves import overoptimisation
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.presets import MISTRAL_7B
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.class_attack import ClassAttack
from rewardjax.recipes.objectives import language_modelling, reward_modelling
from rewardjax.recipes.policy_gradient import PolicyGradientConfig
from rewardjax.recipes.preference_data import language_batch
from rewardjax.recipes.preference_lab import TINY, pairwise
from rewardjax.recipes.rollout_workloads import guided_decoding
from rewardjax.recipes.styled_pairs import answered, cut_short, restyled, styled_pairs
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.recipes.workloads import imitation, reward_model_training
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.tasks.external import require_generated
from rewardjax.tasks.styled_answers import STYLES, StyledAnswers
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig

WORLD = StyledAnswers(topics=4, association=0.9)
COLUMNS = ("tokens", "valid")
ONE = np.eye(len(STYLES), dtype=bool)[:, None, None].repeat(2, axis=2)
SIDES = np.eye(2, dtype=bool)[:, None, :, None].repeat(len(STYLES), axis=-1)
# Which styles of which answer are turned: one of both answers', or all of one answer's.
FLIPPED = dict(zip((*STYLES, "preferred_restyled", "other_restyled"), (*ONE, *SIDES), strict=True))


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share.

    Attributes:
      data: "world", or what the paper's scale would need.
      world: topics, words, and how often style goes with the class.
      model: of language models and reward models.
      pairs, test: compared answers.
      noise: share of labels turned round.
      attacked: share of the training pairs that variants are made of.
      top_k, alpha: candidates a token, and the weight of their log-probability.
      skill: share of good answers of the policy for best-of-n, whose style has no association.
      asked, samples: its prompts, and its samples of each.
      language: fit of each language model.
      fit: of a reward model.
    """

    data: str = "world"
    world: StyledAnswers = WORLD
    model: TransformerConfig = dataclasses.replace(TINY, vocab=WORLD.vocab_size)
    pairs: int = 2000
    test: int = 300
    noise: float = 0.05
    attacked: float = 0.05
    top_k: int = 8
    alpha: float = 0.5
    skill: float = 0.3
    asked: int = 128
    samples: int = 64
    language: SupervisedConfig = SupervisedConfig(
        64,
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine"),
        loop=LoopConfig(steps=250, steps_per_call=50),
    )
    fit: SupervisedConfig = SupervisedConfig(
        32,
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine"),
        loop=LoopConfig(steps=500, steps_per_call=100),
    )


class Shared(NamedTuple):
    """What the arms of a seed share.

    Attributes:
      pairs, test: compared answers.
      both: a language model of each class.
      start: where a reward model starts.
      reward_model: the one that is attacked.
      samples: of a policy, to choose the best of.
    """

    pairs: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    both: tuple[Any, Any]
    start: Any
    reward_model: Any
    samples: dict[str, jax.Array]


def attack_of(config):
    """The language models of the classes as policies, the scorer, and how they are combined."""
    world, model = config.world, LanguageModel(config.model)
    policy = LanguagePolicy(
        model, world.response_length, (world.eos,), prompt_columns=world.prompt_length
    )
    return ClassAttack(policy, RewardModel(config.model), config.top_k, config.alpha)


# What is added: (config, reward model, language models, pairs to attack, key) -> variants of both answers.
def random_samples(config, reward_model, both, pairs, key):
    """Samples of each class."""
    return attack_of(config).sampled(both, pairs, key)


def reform(config, reward_model, both, pairs, key):
    """The reward model's own failures."""
    return attack_of(config).guided(reward_model, both, pairs)


def known_attributes(config, reward_model, both, pairs, key):
    """The same content in the other style, as only who knows of the styles can write it."""
    return restyled(config.world, key, pairs, np.ones((1, 1, len(STYLES)), bool))


def augmented(pairs, chosen, variants):
    """Training pairs with those of each variant and the pair's other answer; labels keep their direction."""
    parts = [{name: pairs[name] for name in COLUMNS}]
    for side in (0, 1):
        mixed = {
            name: np.stack(
                [(variants if i == side else chosen)[name][:, i] for i in (0, 1)],
                axis=1,
            )
            for name in COLUMNS
        }
        parts.append(mixed)
    return {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}


def fitting(config):
    """`(run, start, pairs) -> params` of a reward model; half of the pairs are cut short."""
    scorer, start = RewardModel(config.model), config.world.prompt_length
    loss = reward_modelling(scorer, pairwise)
    program = Supervised(config.fit, init=scorer.boxed_init, loss=loss)
    shorten = jax.jit(cut_short, static_argnums=2)

    def fit(run, params, pairs):
        data = shorten(run.key, {name: pairs[name] for name in COLUMNS}, start)
        source = ArraySource(jax.tree.map(np.asarray, data), config.fit.batch_size, run.seed)
        return program.run(run, params=params, source=source).params

    return fit


def prepare(config):
    """Pairs, a language model of each class, a reward model to attack, samples to choose among."""
    require_generated(config.data)
    attack, world = attack_of(config), config.world
    model, scorer, fit = attack.model, attack.scorer, fitting(config)
    language = Supervised(config.language, init=model.boxed_init, loss=language_modelling(model))
    draw = jax.jit(partial(styled_pairs, world), static_argnums=1)
    loose = dataclasses.replace(world, association=0.5)
    several = dataclasses.replace(attack.policy, group_size=config.samples)

    @jax.jit
    def demonstrations(key):
        keys = jax.random.split(key, 3)
        prompts = world.prompts(keys[0], config.pairs)
        good = jax.random.bernoulli(keys[1], config.skill, (config.pairs,))
        return language_batch(answered(loose, keys[2], prompts, good))

    @jax.jit
    def sampled(params, key):
        traj = several.rollout(params, world.prompts(key, config.asked), key)
        gold = world.gold(traj.tokens, traj.mask, traj.info)
        return {"tokens": traj.tokens, "valid": traj.valid, "gold": gold}

    def fitted(run, data, params=None):
        data = {name: np.asarray(data[name]) for name in ("tokens", "valid", "mask")}
        source = ArraySource(data, config.language.batch_size, run.seed)
        return language.run(run, params=params, source=source).params

    def run_seed(run):
        pairs = draw(run.stage("pairs").key, config.pairs, config.noise)
        test = draw(run.stage("test").key, config.test, 0.0)
        pairs, test = jax.tree.map(np.asarray, (pairs, test))
        policy = fitted(run.stage("policy"), demonstrations(run.stage("demonstrations").key))
        sides = [{name: x[:, side] for name, x in pairs.items()} for side in (0, 1)]
        preferred, other = (
            fitted(run.stage(name), side, policy)
            for name, side in zip(("preferred", "other"), sides, strict=True)
        )
        start = scorer.init(run.key, policy)
        reward_model = fit(run.stage("reward_model"), start, pairs)
        samples = sampled(policy, run.stage("samples").key)
        return Shared(pairs, test, (preferred, other), start, reward_model, samples)

    return run_seed


def easiest(scores, count):
    """The pairs that the reward model has learned best: those of lowest loss."""
    lost = losses.bradley_terry(jnp.asarray(scores[:, 0] - scores[:, 1]))
    return np.argsort(np.asarray(lost), kind="stable")[:count]


def measure(config):
    """`(params, shared, key) -> metrics, gold of the best of n` for a reward model."""
    world, counts = config.world, [2**i for i in range(config.samples.bit_length())]
    restyle = jax.jit(partial(restyled, world))
    score, attacks = jax.jit(RewardModel(config.model).score), jax.jit(attack_of(config).guided)

    def right(scores):
        return float(np.mean(scores[:, 0] > scores[:, 1]))

    def measured(params, shared, key):
        test, samples = shared.test, shared.samples

        def rate(rows):
            return np.asarray(score(params, rows["tokens"], rows["valid"]))

        plain = rate(test)
        turned = {name: right(rate(restyle(key, test, flips))) for name, flips in FLIPPED.items()}
        found = {"clean": right(plain), "perturbed": float(np.mean(list(turned.values())))}
        variants = attacks(params, shared.both, test)
        kept = in_class(world, variants, test)
        attacked = rate(variants)
        wrong = np.stack([attacked[:, 0] < plain[:, 1], plain[:, 0] < attacked[:, 1]], axis=1)
        found |= {"attack_success": np.mean(wrong & kept), "purity": np.mean(kept)}
        proxy, gold = (x.reshape(-1, config.samples) for x in (rate(samples), samples["gold"]))
        curves = [best_of_n_curve(proxy, x, counts).mean(axis=0) for x in (gold, proxy)]
        drop = overoptimisation(*curves)["gold_drop"]
        best = {"best_of_n": curves[0][-1], "gold_drop": drop}
        return turned | found | best, dict(zip(counts, curves[0], strict=True))

    return measured


def in_class(world, variants, pairs):
    """By the gold rule, `[pairs, 2]`: whether the first answers are good and the second ones bad."""
    rows = (jnp.asarray(variants[name]) for name in COLUMNS)
    tokens, valid = (x.reshape(-1, x.shape[-1]) for x in rows)
    mask = valid & (jnp.arange(tokens.shape[1]) >= world.prompt_length)
    gold = np.asarray(world.gold(tokens, mask, {"topic": jnp.asarray(pairs["topic"]).reshape(-1)}))
    return np.sign(gold).reshape(-1, 2) == np.array([1, -1])


def train(config, *, augment, share=None):
    """One arm: a reward model trained anew on the pairs and on what is made of some of them."""
    fit, measured = fitting(config), measure(config)
    score = jax.jit(RewardModel(config.model).score)
    variants_of = None if augment is None else jax.jit(partial(augment, config))
    count = round((config.attacked if share is None else share) * config.pairs)

    def run_seed(run, shared):
        pairs, params, found = shared.pairs, shared.reward_model, {}
        if augment is not None:
            chosen = easiest(score(params, pairs["tokens"], pairs["valid"]), count)
            chosen = jax.tree.map(lambda x: x[chosen], pairs)
            key = run.stage("variants").key
            variants = jax.tree.map(np.asarray, variants_of(params, shared.both, chosen, key))
            show(config, run, chosen, variants)
            found["added_purity"] = np.mean(in_class(config.world, variants, chosen))
            data = augmented(pairs, chosen, variants)
            params = fit(run.stage("reward_model"), shared.start, data)
        metrics, curve = measured(params, shared, run.stage("test").key)
        for n, gold in curve.items():
            run.log(n, {"best_of_n_gold": gold})
        return {name: float(value) for name, value in (metrics | found).items()}

    return run_seed


def show(config, run, chosen, variants, count=4):
    """Some answers beside the variants made of them."""
    parts, decode = {"answer": chosen, "variant": variants}, config.world.decode
    places = [(i, side) for side in (0, 1) for i in range(count)]
    rows = [{k: decode(part["tokens"][at]) for k, part in parts.items()} for at in places]
    run.samples(0, rows)


MINI = Config()
SMOKE = smoke(
    MINI,
    model=dataclasses.replace(MINI.model, layers=1),
    pairs=128,
    test=16,
    asked=4,
    samples=4,
)
SHARDED = MeshConfig(fsdp=4, tensor=4)
PAPER = Config(
    data="Anthropic/hh-rlhf",
    model=MISTRAL_7B,
    pairs=160_000,
    test=8000,
    language=SupervisedConfig(
        128,
        micro_batches=4,
        optimizer=OptimizerConfig(learning_rate=1e-5, schedule="cosine", warmup=0.03),
        loop=LoopConfig(steps=1250),
        mesh=SHARDED,
    ),
    fit=SupervisedConfig(
        128,
        micro_batches=4,
        optimizer=OptimizerConfig(learning_rate=5e-6, schedule="cosine", warmup=0.03),
        loop=LoopConfig(steps=1250),
        mesh=SHARDED,
    ),
)


def workloads(config):
    """The three fits on texts of 1024 tokens, and decoding that a reward model guides, token by token."""
    model, scorer = LanguageModel(config.model), RewardModel(config.model)
    rl = PolicyGradientConfig(prompts=128, mesh=SHARDED)
    return [
        imitation(model, config.language, 1024),
        reward_model_training(scorer, config.fit, 1024),
        *guided_decoding(model, rl, 1, prompt=512, response=512),
    ]


ROBUST, SAME, USE = "robustness under perturbations", "in-distribution accuracy", "best-of-n"
AGAIN, CLASS = "failures found again", "variants stay in their class"

NOTES = {
    "oracle": "0.02 better on average; seeds differ by as much",
    "attack": "each model is attacked anew, and the attack adapts to it: 0.19 against 0.18",
    "purity": "0.88 of what is added, but 0.77 of an attack on the retrained model, stays in its class",
    "drop": "0.04, but its interval begins at 0.006",
}

EXPERIMENT = Experiment(
    paper=Paper(
        title="Reward Models Can Improve Themselves: Reward-Guided Adversarial Failure Mode"
        " Discovery for Robust Reward Modeling",
        arxiv="2507.06419",
        code="github.com/pankayaraj/REFORM",
    ),
    prepare=prepare,
    arms={
        "vanilla": Arm(partial(train, augment=None)),
        "random_aug": Arm(partial(train, augment=random_samples), "5% of the pairs, no guidance"),
        "reform": Arm(partial(train, augment=reform), "5% of the pairs"),
        "reform_all": Arm(partial(train, augment=reform, share=1.0), "every pair is attacked"),
        "oracle_attr": Arm(partial(train, augment=known_attributes), "5% of the pairs"),
    },
    scales={"mini": MINI, "smoke": SMOKE, "paper": PAPER},
    claims=[
        Claim("perturbed", "vanilla", "<", 0.9, source=ROBUST),
        Claim("perturbed", "reform", ">", "vanilla", source=ROBUST),
        Claim("perturbed", "reform", ">", "random_aug", source=ROBUST),
        Claim("perturbed", "oracle_attr", ">=", "reform", source=ROBUST, note=NOTES["oracle"]),
        Claim("clean", "reform", "~", "vanilla", margin=0.02, source=SAME),
        Claim("attack_success", "reform", "<", "vanilla", source=AGAIN, note=NOTES["attack"]),
        Claim("purity", "reform", ">", 0.8, source=CLASS, note=NOTES["purity"]),
        Claim("gold_drop", "vanilla", ">", 0.0, margin=0.01, source=USE, note=NOTES["drop"]),
        Claim("gold_drop", "reform", "<", "vanilla", source=USE),
        Claim("best_of_n", "reform", ">=", "vanilla", margin=0.02, source=USE),
    ],
    first_arms=("vanilla", "random_aug", "reform"),
    first_seeds=3,
    curves=("best_of_n_gold",),
    workloads=workloads,
)
