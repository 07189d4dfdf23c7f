"""Direct Nash Optimization: self-improvement with general preferences (arXiv:2404.03715).

Preferences may run in circles; then no score explains them, and the answer is not a best response but the
equilibrium of the game max_pi min_pi' P(y > y'). DNO plays it against itself in rounds. With

    r_t(y) = E_{y' ~ pi_t} P(y > y')                 L(y) = log pi(y) / pi_t(y)

soft policy iteration, pi_{t+1} ~ pi_t exp(r_t / eta), is a regression (Algorithm 1): Bradley-Terry on
eta * (L(y1) - L(y2)) with the soft label sigmoid(r_t(y1) - r_t(y2)). In practice (Algorithm 2) r_t is the
share of wins among K samples and a teacher's answer, and the label is hard for pairs with a large margin.

Miniature: 9 responses to each of 20 prompts, in blocks of rock-paper-scissors with utilities besides; a
policy is a table, so that exploitability, max_y P(y > pi) - 1/2, is known exactly. Win rates of a few samples
are close to one another, so labels are sharpened, and eta with them: the update is the same.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from rewardjax import losses
from rewardjax.evaluation.exploitability import matrix_exploitability, symmetric_equilibrium
from rewardjax.evaluation.rankings import bradley_terry_strengths
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.losses import Loss
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.presets import MISTRAL_7B
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.iterated_preference import IteratedPreference, IterationConfig
from rewardjax.recipes.supervised import SupervisedConfig
from rewardjax.recipes.workloads import preference_training
from rewardjax.statistics import Mean
from rewardjax.tasks.external import require_generated
from rewardjax.tasks.general_preference import GeneralPreference, expected_win_rate, judge_all
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig

Pairs = Float[Array, "groups size size"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share."""

    data: str = "general_preference"
    world: GeneralPreference = GeneralPreference()
    model: TransformerConfig | None = None  # None: a table
    optimisation: IterationConfig = IterationConfig(
        iterations=20,
        prompts=2048,
        training=SupervisedConfig(
            256,
            optimizer=OptimizerConfig(learning_rate=0.1, schedule="cosine"),
            loop=LoopConfig(steps=40, steps_per_call=40),
        ),
    )
    eta: float = 0.25
    sharpness: float = 8.0  # of labels: multiplies win rates and eta, which leaves the update
    samples: int = 5  # K
    margin: float = 0.5  # of win rates, from which a pair is kept
    first_spread: float = 0.5  # of the first policy's logits
    teacher_step: float = 4.0  # how far the teacher is ahead of the first policy
    bt_beta: float = 0.05  # of the policy that is optimal for Bradley-Terry strengths


class Labels(NamedTuple):
    """What is learned from a group: pairs (i, j), how much each counts, how probably i is preferred."""

    weight: Pairs
    probability: Pairs


def soft_labels(wins: Bool[Array, "groups size size"], config) -> Labels:
    """Algorithm 1: all pairs of the policy's own samples, by their win rates among each other."""
    own = wins[:, :-1, :-1]
    rate = jnp.sum(own, axis=2) / (own.shape[1] - 1)
    probability = jax.nn.sigmoid(config.sharpness * (rate[:, :, None] - rate[:, None, :]))
    kept = jnp.triu(jnp.ones(own.shape[1:]), 1)
    return Labels(*(_with_teacher(x) for x in (jnp.broadcast_to(kept, own.shape), probability)))


def wide_margins(wins: Bool[Array, "groups size size"], config) -> Labels:
    """Algorithm 2: the pairs whose win rates differ by the margin, the teacher's answer among them."""
    rate = jnp.sum(wins, axis=2) / (wins.shape[1] - 1)
    kept = rate[:, :, None] - rate[:, None, :] >= config.margin
    return Labels(kept.astype(jnp.float32), jnp.ones(wins.shape))


def teacher_wins(wins: Bool[Array, "groups size size"], config) -> Labels:
    """DNO-Restrictive: of those, the pairs in which the teacher is preferred."""
    found = wide_margins(wins, config)
    return found._replace(weight=found.weight.at[:, :-1].set(0.0))


def teacher_always(wins: Bool[Array, "groups size size"], config) -> Labels:
    """SPIN: the teacher is preferred to every sample, whoever is better."""
    ones = jnp.ones(wins.shape)
    return Labels(ones.at[:, :-1].set(0.0).at[:, -1, -1].set(0.0), ones)


def _with_teacher(pairs: Pairs) -> Pairs:
    return jnp.pad(pairs, ((0, 0), (0, 1), (0, 1)))


def prepare(config):
    """The game, the first policy and the teacher.

    Raises:
      ValueError: the data are not the generated ones.
    """
    require_generated(config.data, "general_preference")

    @jax.jit
    def drawn(key):
        table_key, policy_key = jax.random.split(key)
        table = config.world.table(table_key)
        first = config.first_spread * jax.random.normal(policy_key, table.shape[:2])
        rate = jnp.einsum("pij,pj->pi", table, jax.nn.softmax(first))
        return {"table": table, "teacher": first + config.teacher_step * rate}, first

    return lambda run: drawn(run.key)


def collector(config, labels):
    """Samples of the policy and one of the teacher for random prompts, all pairs judged once."""
    world = config.world

    def collect(params, frozen, key, prompts):
        prompt_key, own_key, teacher_key, judge_key = jax.random.split(key, 4)
        prompt = jax.random.randint(prompt_key, (prompts,), 0, world.prompts)
        shape = (config.samples, prompts)
        own = jax.random.categorical(own_key, params["logits"][prompt], shape=shape)
        teacher = jax.random.categorical(teacher_key, frozen["teacher"][prompt])
        response = jnp.concatenate([own, teacher[None]]).T
        wins = judge_all(judge_key, frozen["table"], prompt, response)
        return {"prompt": prompt, "response": response, **labels(wins, config)._asdict()}

    return collect


def pair_loss(beta: float):
    """Bradley-Terry on `beta` times differences of log-ratios to the reference."""

    def loss(params, batch, frozen) -> Loss:
        after, before = (
            jax.nn.log_softmax(p["logits"])[batch["prompt"][:, None], batch["response"]]
            for p in (params, frozen["reference"])
        )
        gain = after - before
        difference = beta * (gain[:, :, None] - gain[:, None, :])
        values = losses.bradley_terry(
            difference.reshape(-1), probability=batch["probability"].reshape(-1)
        )
        return Loss({"preference": Mean.of(values, batch["weight"].reshape(-1))}, {})

    return loss


@jax.jit
def curves(policies: Float[Array, "iterates prompts responses"], frozen) -> dict[str, Array]:
    """Exact numbers of each policy after the first, averaged over prompts.

    `average_exploitability` is that of the mean of the policies so far, `improvement` the win rate against
    the policy before.
    """
    table, count = frozen["table"], jnp.arange(1, len(policies))
    policies, before = policies[1:], policies[:-1]
    average = jnp.cumsum(policies, axis=0) / count[:, None, None]
    teacher = jax.nn.softmax(frozen["teacher"])
    exploit = jax.vmap(matrix_exploitability)
    found = {
        "exploitability": jax.vmap(lambda p: exploit(table, p, p))(policies),
        "average_exploitability": jax.vmap(lambda p: exploit(table, p, p))(average),
        "versus_teacher": jax.vmap(lambda p: expected_win_rate(table, p, teacher))(policies),
        "improvement": jax.vmap(partial(expected_win_rate, table))(policies, before),
    }
    return {name: jnp.mean(x, axis=1) for name, x in found.items()}


def report(run, policies, frozen) -> dict[str, float]:
    """The last policy's numbers, and the least improvement of all; those of each are logged."""
    found = {name: np.asarray(x) for name, x in curves(jnp.stack(policies), frozen).items()}
    for t in range(1, len(policies)):
        run.log(t, {name: x[t - 1] for name, x in found.items()})
    last = {name: float(x[-1]) for name, x in found.items()}
    return last | {"least_improvement": float(np.min(found["improvement"]))}


def train(config, *, labels, fixed_reference=False, at_once=False):
    """One arm: the first policy improved by pairs of its own samples and the teacher's."""
    budget = dataclasses.replace(config.optimisation, fixed_reference=fixed_reference)

    def init(key: PRNGKeyArray):
        logits = jnp.zeros((config.world.prompts, config.world.responses))
        return {"logits": nn.LogicallyPartitioned(logits, (None, None))}

    program = IteratedPreference(
        budget.at_once if at_once else budget,
        init=init,
        collect=collector(config, labels),
        loss=pair_loss(config.eta * config.sharpness),
    )

    def run_seed(run, shared):
        frozen, first = shared
        found = program.run(run, {"logits": first}, frozen)
        return report(run, [jax.nn.softmax(p["logits"]) for p in found.params], frozen)

    return run_seed


def bradley_terry(config):
    """One arm: strengths fitted to as many judgements, then the policy that is optimal for them."""
    budget, world = config.optimisation, config.world
    judged = budget.iterations * budget.prompts * config.samples * (config.samples + 1) // 2

    @jax.jit
    def optimal(frozen, first, key):
        keys = jax.random.split(key, 3)
        prompt = jax.random.randint(keys[0], (judged,), 0, world.prompts)
        response = jax.random.categorical(keys[1], first[prompt], shape=(2, judged)).T
        wins = judge_all(keys[2], frozen["table"], prompt, response)[:, 0, 1]
        winner, loser = (jnp.where(wins == side, *response.T) for side in (True, False))
        count = jnp.zeros_like(frozen["table"]).at[prompt, winner, loser].add(1.0)
        return jax.nn.softmax(first + bradley_terry_strengths(count) / config.bt_beta)

    def run_seed(run, shared):
        frozen, first = shared
        return report(run, [jax.nn.softmax(first), optimal(frozen, first, run.key)], frozen)

    return run_seed


def nash(config):
    """One arm: the equilibrium itself."""

    def run_seed(run, shared):
        frozen, first = shared
        return report(run, [jax.nn.softmax(first), symmetric_equilibrium(frozen["table"])], frozen)

    return run_seed


MINI = Config()
PAPER = Config(
    data="openbmb/UltraFeedback",
    model=MISTRAL_7B,
    optimisation=IterationConfig(
        iterations=3,
        prompts=20_000,
        training=SupervisedConfig(
            64,
            optimizer=OptimizerConfig(learning_rate=5e-5, warmup=0.1),
            loop=LoopConfig(steps=312, steps_per_call=1),
            mesh=MeshConfig(fsdp=16),
        ),
    ),
    eta=0.1,
    sharpness=1.0,
)


def workloads(config):
    """One iteration's training on pairs, with 1024 tokens a prompt and its response."""
    return [preference_training(LanguageModel(config.model), config.optimisation.training, 1024)]


THEORY = "the average iterate approaches the Nash equilibrium"
TABLE = "Table 1: win rates"
ONE_TEACHER = "pairs that the teacher wins aim at the teacher: against it they serve as well"
NOTES = {"dno_restrictive": ONE_TEACHER}
EXPERIMENT = Experiment(
    paper=Paper(
        title="Direct Nash Optimization: Teaching Language Models to Self-Improve with General"
        " Preferences",
        arxiv="2404.03715",
    ),
    prepare=prepare,
    arms={
        "bt_rlhf": Arm(bradley_terry, "the optimum of Bradley-Terry strengths"),
        "dpo_offline": Arm(partial(train, labels=wide_margins, at_once=True)),
        "iter_dpo_fixed_ref": Arm(partial(train, labels=wide_margins, fixed_reference=True)),
        "spin": Arm(partial(train, labels=teacher_always)),
        "dno_restrictive": Arm(partial(train, labels=teacher_wins)),
        "dno_soft": Arm(partial(train, labels=soft_labels), "Algorithm 1"),
        "dno_prct": Arm(partial(train, labels=wide_margins), "Algorithm 2"),
        "nash_exact": Arm(nash, "multiplicative weights on the true table"),
    },
    scales={"mini": MINI, "smoke": smoke(MINI), "paper": PAPER},
    claims=[
        Claim("exploitability", "bt_rlhf", ">", 0.2, source="no score explains a circle"),
        Claim("average_exploitability", "dno_soft", "<", "bt_rlhf", source=THEORY),
        Claim("average_exploitability", "dno_prct", "<", "bt_rlhf", source=THEORY),
        Claim("average_exploitability", "dno_soft", "<", "dpo_offline", source=THEORY),
        Claim("average_exploitability", "dno_soft", "<", 0.1, source=THEORY),
        Claim(
            "average_exploitability", "dno_soft", "<", "dno_prct", source="hard pairs approximate"
        ),
        Claim("exploitability", "nash_exact", "~", 0.0, 0.01, "the reference"),
        Claim("least_improvement", "dno_soft", ">", 0.5, source="monotone improvement"),
        Claim("least_improvement", "dno_prct", ">", 0.5, source="monotone improvement"),
        Claim("versus_teacher", "spin", "~", 0.5, 0.02, "Table 1: the teacher always wins"),
        *(
            Claim("versus_teacher", "dno_prct", ">", x, source=TABLE, note=NOTES.get(x, ""))
            for x in ("spin", "dno_restrictive", "iter_dpo_fixed_ref", "dpo_offline")
        ),
    ],
    first_arms=("bt_rlhf", "spin", "dno_prct", "dno_soft"),
    curves=("average_exploitability", "exploitability", "improvement", "versus_teacher"),
    workloads=workloads,
)
