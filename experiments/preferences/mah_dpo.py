"""MAH-DPO: one output head for each objective, mixed when decoding (arXiv:2510.01167).

DPO on the mixed comparisons of several objectives settles their trade-off in training, and where they
conflict their gradients cancel. MAH-DPO gives each objective i a head W_i on a shared backbone h, trains
it by DPO on its own comparisons, and mixes logits at inference, with weights that may be chosen then:

    L = sum_i alpha_i E_{D_i}[ DPO of softmax(W_i^T h) ]          pi(y_t) = softmax(sum_i w_i W_i^T h)

The reference of head i is the SFT model's head i. A value model of prefixes, fitted to hindsight targets
gamma^(n - t) z, may guide decoding besides: at each boundary the best of K clones goes on.
Miniature: objective A can be verified (coverage of the theme, no repetition), B is a style (the share of
cheerful tokens); a response has room for both, but most of its tokens serve one of them at most.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rewardjax import credit, losses
from rewardjax.data.sources import ArraySource
from rewardjax.evaluation.fronts import hypervolume
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.multi_head import MultiHead
from rewardjax.models.presets import QWEN25_7B
from rewardjax.recipes.objectives import value_modelling
from rewardjax.recipes.policy_gradient import PolicyGradientConfig
from rewardjax.recipes.preference_data import language_batch
from rewardjax.recipes.preference_lab import TINY, LabConfig, PreferenceLab
from rewardjax.recipes.rollout_workloads import guided_decoding
from rewardjax.recipes.several_objectives import (
    disagreeing,
    dpo_by_objective,
    heads_training,
    responses_of,
    side_by_side,
)
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.recipes.workloads import imitation, value_training
from rewardjax.sampling.guided import generate_guided
from rewardjax.sampling.transcripts import transcripts
from rewardjax.statistics import spearman
from rewardjax.tasks.external import require_generated
from rewardjax.tasks.preference_world import ATTRIBUTES, PreferenceWorld
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig
from rewardjax.trajectory import last_step

WORLD = PreferenceWorld(neutral=2, positive=2, negative=2, sentiment_rate=0.3)
OBJECTIVES = ({"coverage": 1.0, "repetition": -1.0}, {"sentiment": 1.0})  # A, B
FRONT = np.array([[1.0, 0.0], [0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0.0, 1.0]], np.float32)
EVEN = 2  # row of FRONT
WORST = np.array([-1.0, -1.0])  # of A and B


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share."""

    data: str = "world"
    lab: LabConfig = LabConfig(
        world=WORLD,
        model=dataclasses.replace(TINY, vocab=WORLD.vocab_size, tied_embeddings=False),
        comparisons=1024,
        label_noise=0.0,
    )
    policy: SupervisedConfig = SupervisedConfig(
        32,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup=0.1),
        loop=LoopConfig(steps=200, steps_per_call=50, evaluate_every=50),
    )
    conflict_comparisons: int = 4096  # of which those are kept on which A and B disagree
    value: SupervisedConfig = SupervisedConfig(64, loop=LoopConfig(steps=150, steps_per_call=50))
    beta: float = 0.3
    discount: float = 0.9
    candidates: int = 5  # of guided decoding
    chunk: int = 3  # tokens between its boundaries
    evaluation_prompts: int = 512


def weights_of(objective: dict[str, float]) -> Float[Array, "attributes"]:
    """What an objective gives for one unit of each attribute."""
    return jnp.asarray([objective.get(name, 0.0) for name in ATTRIBUTES], jnp.float32)


def utilities(world, traj) -> Float[Array, "batch objectives"]:
    """A and B of responses."""
    attributes = world.attributes(traj.tokens, traj.mask, traj.info)
    return jnp.stack([attributes @ weights_of(x) for x in OBJECTIVES], axis=1)


def hindsight(config, traj) -> Float[Array, "batch time"]:
    """What a response's A says of its prefixes: `discount^(steps left) A`."""
    verified = utilities(config.lab.world, traj)[:, :1]
    at_end = jnp.where(last_step(traj.mask), verified, 0.0)
    return credit.discounted_returns(at_end, traj, discount=config.discount)


def mixed(found):
    """Pairs of different responses for A and for B, as annotators of each compared them."""
    return side_by_side(found["pairs"])


def conflicting(found):
    """Pairs of A on which B disagrees: the same two responses, each once chosen and once rejected."""
    return found["conflict"]


class Decoding:
    """How policies are compared: sampled, or guided by the value model, with A and B measured.

    Args:
      config: the experiment's.
      lab: whose world and policy.
    """

    def __init__(self, config, lab):
        self.config, self.lab, self.scorer = config, lab, RewardModel(config.lab.model)
        self.measure = jax.jit(self._measure, static_argnames="guided")

    def sample(self, params, prompts, key, value=None):
        """Responses of a language model's parameters, guided where there is a value model."""
        policy, c = self.lab.policy, self.config
        if value is None:
            return policy.rollout(params, prompts, key)
        return generate_guided(
            policy.model,
            params,
            prompts,
            key,
            partial(self.scorer.score, value),
            candidates=c.candidates,
            chunk=c.chunk,
            max_new=policy.max_new,
            stop=policy.stop,
        )

    def _measure(self, params, frozen, key, guided=False):
        prompt_key, sample_key = jax.random.split(key)
        prompts = self.lab.world.prompts(prompt_key, self.config.evaluation_prompts)
        traj = self.sample(params, prompts, sample_key, frozen["value"] if guided else None)
        before = self.lab.policy.score(frozen["reference"], traj).logprobs
        a, b = jnp.mean(utilities(self.lab.world, traj), axis=0)
        kl = jnp.mean(losses.log_ratio(traj.logprobs, before, traj.mask))
        return {"a": a, "b": b, "kl": kl, "length": jnp.mean(traj.lengths)}

    def front(self, models, frozen, key):
        """Metrics of the models for the rows of FRONT: at even weights, at the ends, and of all."""
        found = [self.measure(params, frozen, key) for params in models]
        points = np.array([[float(x["a"]), float(x["b"])] for x in found])
        w, (a, b) = jnp.asarray(FRONT[:, 0]), jnp.asarray(points.T)
        first = [float(x) for x in frozen["sft"]]
        return {name: float(x) for name, x in found[EVEN].items()} | {
            "a_alone": float(points[0, 0]),
            "b_alone": float(points[-1, 1]),
            "hypervolume": hypervolume(points, np.array(first)),
            "reach": hypervolume(points, WORST),
            "monotone": float(spearman(w, a) - spearman(w, b)) / 2,
            "least_gain": float(np.min(points[EVEN] - first)),
        }


def make_program(config, lab, route, decoding):
    """The heads and their training."""
    model = MultiHead(lab.policy.model, max(route) + 1)

    def evaluate(params, frozen, key):
        even = model.mixed(params, jnp.ones(model.heads))
        found = decoding.measure(even, frozen, key)
        return {name: found[name] for name in ("a", "b", "kl")}

    loss = dpo_by_objective(model, config.beta, route)
    return model, Supervised(config.policy, init=model.boxed_init, loss=loss, evaluate=evaluate)


def prepare(config):
    """The SFT policy, each objective's comparisons, a value model for A, and where A and B start.

    Raises:
      ValueError: the data are not the generated ones.
    """
    require_generated(config.data)
    lab = PreferenceLab(config.lab)
    many = PreferenceLab(dataclasses.replace(config.lab, comparisons=config.conflict_comparisons))
    decoding = Decoding(config, lab)
    scorer = decoding.scorer
    fit = Supervised(config.value, init=scorer.boxed_init, loss=value_modelling(scorer))

    def run_seed(run):
        reference = lab.sft(run.stage("sft"))
        pairs = [
            lab.pairs(run.stage(f"comparisons_{i}"), reference, weights_of(objective))
            for i, objective in enumerate(OBJECTIVES)
        ]
        traj = responses_of(pairs[0])
        judged = language_batch(traj) | {"target": hindsight(config, traj)}
        judged = jax.tree.map(np.asarray, judged)
        source = ArraySource(judged, config.value.batch_size, run.seed)
        stage = run.stage("value")
        value = fit.run(stage, params=scorer.init(run.key, reference), source=source).params
        frozen = {"reference": reference, "value": value}
        start = decoding.measure(reference, frozen, run.key)
        frozen["sft"] = jnp.stack([start["a"], start["b"]])
        compared = many.pairs(run.stage("conflict"), reference, weights_of(OBJECTIVES[0]))
        conflict = disagreeing(compared, partial(utilities, config.lab.world))
        return {"pairs": pairs, "conflict": conflict, "frozen": frozen}

    return run_seed


def fitted(config, program, model, run, shared, data, alpha):
    """Parameters of all heads, trained from the SFT policy with these weights of the objectives."""
    frozen = shared["frozen"]
    heads = model.start(frozen["reference"], run.key)
    frozen = frozen | {"heads": heads, "alpha": jnp.asarray(alpha, jnp.float32)}
    source = ArraySource(data(shared), config.policy.batch_size, run.seed)
    return program.run(run, params=heads, frozen=frozen, source=source).params


def train(config, *, route=(0, 1), data=mixed, guided=False):
    """One training with even weights; heads, where there are several, are mixed along the front."""
    lab = PreferenceLab(config.lab)
    decoding = Decoding(config, lab)
    model, program = make_program(config, lab, route, decoding)

    def run_seed(run, shared):
        stage, frozen = run.stage("policy"), shared["frozen"]
        params = fitted(config, program, model, stage, shared, data, FRONT[EVEN])
        if model.heads == 1:
            models = [model.head(params, 0)] * len(FRONT)
        else:
            models = [model.mixed(params, jnp.asarray(w)) for w in FRONT]
        show(run, config, decoding, models[EVEN], frozen)
        if guided:
            found = decoding.measure(models[EVEN], frozen, run.key, guided=True)
            return {name: float(x) for name, x in found.items()}
        return decoding.front(models, frozen, run.key)

    return run_seed


def weighted(config, *, soup):
    """One head trained for each row of the front, or (`soup`) for its ends, whose parameters are averaged."""
    lab = PreferenceLab(config.lab)
    decoding = Decoding(config, lab)
    model, program = make_program(config, lab, (0, 0), decoding)

    def run_seed(run, shared):
        frozen = shared["frozen"]

        def trained(alpha):
            stage = run.stage(f"policy_{alpha[0]:g}")
            params = fitted(config, program, model, stage, shared, mixed, alpha)
            return model.head(params, 0)

        if soup:
            first, last = trained(FRONT[0]), trained(FRONT[-1])
            models = [
                jax.tree.map(lambda x, y, w=w: w[0] * x + w[1] * y, first, last) for w in FRONT
            ]
        else:
            models = [trained(alpha) for alpha in FRONT]
        show(run, config, decoding, models[EVEN], frozen)
        return decoding.front(models, frozen, run.key)

    return run_seed


def untrained(config, *, guided):
    """The SFT policy."""
    decoding = Decoding(config, PreferenceLab(config.lab))

    def run_seed(run, shared):
        frozen = shared["frozen"]
        found = decoding.measure(frozen["reference"], frozen, run.key, guided=guided)
        return {name: float(x) for name, x in found.items()}

    return run_seed


def show(run, config, decoding, params, frozen):
    """Responses that a person can read, with A and B."""
    world = config.lab.world
    traj = decoding.sample(params, world.prompts(run.key, 8), run.key)
    a, b = utilities(world, traj).T
    columns = transcripts(traj.with_info(a=a, b=b), world.decode, columns=("a", "b"))
    run.samples(config.policy.loop.steps, columns)


MINI = Config()
SMOKE = smoke(
    MINI,
    lab=smoke(MINI.lab, comparisons=64, model=dataclasses.replace(MINI.lab.model, layers=1)),
    conflict_comparisons=64,
    evaluation_prompts=16,
)
SMOKE = dataclasses.replace(SMOKE, policy=dataclasses.replace(SMOKE.policy, batch_size=4))
TUNED = SupervisedConfig(
    32,
    micro_batches=2,
    optimizer=OptimizerConfig(learning_rate=1e-6, schedule="cosine", warmup=0.1),
    loop=LoopConfig(steps=500, steps_per_call=1, evaluate_every=100),
    mesh=MeshConfig(fsdp=16, tensor=4),
)
PAPER = Config(
    data="pearls-lab/multiobj-align",
    lab=LabConfig(model=QWEN25_7B, sft=TUNED),
    policy=TUNED,
    value=dataclasses.replace(TUNED, optimizer=OptimizerConfig(learning_rate=5e-5)),
    beta=0.1,
    chunk=128,
)


def workloads(config):
    """The first policy's training, that of two heads and of values, and decoding that values guide.

    A prompt and its response have 1536 tokens.
    """
    model = MultiHead(LanguageModel(config.lab.model), len(OBJECTIVES))
    rl = PolicyGradientConfig(prompts=16, mesh=config.policy.mesh)
    return [
        imitation(model.model, config.lab.sft, 1536),
        heads_training(model, config.policy, 1536, "mah_dpo"),
        value_training(RewardModel(config.lab.model), config.value, 1536),
        *guided_decoding(model.model, rl, config.candidates, prompt=512, response=1024),
    ]


ENSEMBLE = "math and human values: the ensemble"
FRONTS = "Pareto fronts"
ALONE = "each head alone; the soup's ends are DPO on one objective"
CONFLICT = "subset of explicit conflict"
GUIDED = "value-guided decoding"
MEET = "gradients of both objectives meet in the backbone; the ends of the others are trained for one alone"
DISPLACED = (
    "one head stays with the SFT policy, as opposite gradients cancel; two heads come to order their pairs,"
    " but each text is one head's rejected one, and all likelihoods fall (KL near 10)"
)
ONLY_A = "the value model knows A alone; where tokens serve one objective only, its choice costs B"
EXPERIMENT = Experiment(
    paper=Paper(
        title="Simultaneous Multi-objective Alignment Across Verifiable and Non-verifiable Rewards",
        arxiv="2510.01167",
        code="github.com/pearls-lab/multiobj-align",
    ),
    prepare=prepare,
    arms={
        "sft": Arm(partial(untrained, guided=False)),
        "sft_guided": Arm(partial(untrained, guided=True), "the value model chooses"),
        "single_head": Arm(partial(train, route=(0, 0)), "one head, both objectives' pairs"),
        "modpo": Arm(partial(weighted, soup=False), "a training for each weight"),
        "dpo_soup": Arm(partial(weighted, soup=True), "two trainings, parameters averaged"),
        "mah_dpo": Arm(train, "two heads, logits mixed"),
        "mah_guided": Arm(partial(train, guided=True), "and the value model chooses"),
        "single_head_conflict": Arm(partial(train, route=(0, 0), data=conflicting)),
        "mah_conflict": Arm(partial(train, data=conflicting)),
    },
    scales={"mini": MINI, "smoke": SMOKE, "paper": PAPER},
    claims=[
        Claim("least_gain", "mah_dpo", ">", 0.0, source=ENSEMBLE),
        Claim("a", "mah_dpo", ">=", "single_head", 0.02, source=ENSEMBLE),
        Claim("b", "mah_dpo", ">", "single_head", source=ENSEMBLE),
        *(
            Claim("hypervolume", "mah_dpo", ">", x, source=FRONTS)
            for x in ("single_head", "dpo_soup", "modpo")
        ),
        Claim("reach", "mah_dpo", ">", "single_head", source=FRONTS),
        *(
            Claim("reach", "mah_dpo", ">", x, source=FRONTS, note=MEET)
            for x in ("dpo_soup", "modpo")
        ),
        Claim("monotone", "mah_dpo", ">", 0.8, source="sliding weights without retraining"),
        *(
            Claim(x, "mah_dpo", ">=", "dpo_soup", 0.05, source=ALONE)
            for x in ("a_alone", "b_alone")
        ),
        Claim("b_alone", "mah_conflict", ">", "single_head_conflict", source=CONFLICT),
        *(
            Claim(x, "mah_conflict", ">", "single_head_conflict", source=CONFLICT, note=DISPLACED)
            for x in ("a_alone", "reach", "least_gain")
        ),
        Claim("a", "sft_guided", ">", "sft", source=GUIDED),
        Claim("a", "mah_guided", ">", "mah_dpo", source=GUIDED),
        Claim("b", "mah_guided", ">=", "mah_dpo", 0.05, source=GUIDED, note=ONLY_A),
    ],
    first_arms=("single_head", "dpo_soup", "mah_dpo"),
    curves=("a", "b", "kl"),
    workloads=workloads,
    topology="v5e:8x8",
)
