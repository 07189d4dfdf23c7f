"""RTO: reinforced token optimisation (arXiv:2404.18922).

RLHF gives PPO one reward, at the response's end. A policy trained by DPO on the same comparisons tells what
each token was worth; RTO adds its log-ratio to the reward vector before generalised advantage estimation:

    r_h = clip(b1 log pi_dpo/pi_ref, -c, c) - b2 log pi/pi_ref  (+ r_BT(x, y) at the end)

Ablations tell the same reward later (by chunks, at the end), or take its sum back at the end (pure shaping).
Miniature: gold utility is local to tokens: coverage of the theme, and a mood to which each token adds.
"""

import dataclasses
from functools import partial

import numpy as np

from rewardjax import credit, losses, rewards
from rewardjax.data.sources import ArraySource
from rewardjax.evaluation.curves import at_kl
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.presets import LLAMA3_8B
from rewardjax.recipes.critic import critic
from rewardjax.recipes.moments import outcome_moments
from rewardjax.recipes.policy_gradient import PolicyGradientConfig
from rewardjax.recipes.preference_lab import TINY, LabConfig, PreferenceLab
from rewardjax.recipes.rollout_workloads import Rollouts
from rewardjax.recipes.supervised import SupervisedConfig
from rewardjax.recipes.workloads import imitation, preference_training, reward_model_training
from rewardjax.rewards import shaping
from rewardjax.tasks.external import require_generated
from rewardjax.tasks.preference_world import PreferenceWorld
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig

MEASURED = ("gold", "proxy", "kl")
WORLD = PreferenceWorld(
    response_length=24,
    min_length=16,
    neutral=4,
    positive=4,
    negative=4,
    sentiment_rate=0.4,
    repetition_penalty=0.0,
    sentiment_effect=2.0,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share."""

    lab: LabConfig = LabConfig(
        world=WORLD,
        model=dataclasses.replace(TINY, vocab=WORLD.vocab_size),
        comparisons=4000,
        label_noise=0.05,
        reward_model=SupervisedConfig(
            64,
            optimizer=OptimizerConfig(learning_rate=5e-4),
            loop=LoopConfig(steps=300, steps_per_call=50),
        ),
    )
    rl: PolicyGradientConfig = PolicyGradientConfig(
        prompts=32,
        minibatches=2,
        optimizer=OptimizerConfig(learning_rate=2e-4),
        loop=LoopConfig(steps=80, steps_per_call=20, evaluate_every=10),
    )
    critic: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)
    dpo: SupervisedConfig = SupervisedConfig(
        64,
        optimizer=OptimizerConfig(learning_rate=3e-4),
        loop=LoopConfig(steps=100, steps_per_call=20, evaluate_every=20),
    )
    dpo_beta: float = 0.1
    token_scale: float = 0.1  # b1
    token_clip: float = 0.1  # c
    kl: float = 0.05  # b2
    evaluation_prompts: int = 256
    kl_budget: float = 2.0  # nats a response, at which the arms are compared
    data: str = "world"


def token_rewards(config, traj):
    """What the DPO policy says of each token."""
    return rewards.clipped_log_ratio(
        traj.info["direct_logprobs"],
        traj.info["reference_logprobs"],
        traj.mask,
        scale=config.token_scale,
        clip=config.token_clip,
    )


def make_lab(config):
    """The lab with a DPO policy among the frozen parameters."""
    policy = PreferenceLab(config.lab).policy

    def annotate(frozen, traj):
        return traj.with_info(direct_logprobs=policy.score(frozen["direct"], traj).logprobs)

    return PreferenceLab(config.lab, annotate=annotate)


def prepare(config):
    """A reference, a reward model and a DPO policy from the same comparisons, and DPO's curve."""
    require_generated(config.data)
    lab = PreferenceLab(config.lab)
    dpo = lab.direct_preference(
        config.dpo, beta=config.dpo_beta, evaluation_prompts=config.evaluation_prompts
    )

    def run_seed(run):
        reference = lab.sft(run.stage("sft"))
        pairs = lab.pairs(run.stage("comparisons"), reference)
        frozen = {"reference": reference}
        frozen["reward_model"] = lab.reward_model(run.stage("reward_model"), reference, pairs)
        stage = run.stage("dpo")
        source = ArraySource(pairs, config.dpo.batch_size, run.seed)
        direct = dpo.run(stage, params=reference, frozen=frozen, source=source).params
        curve = {name: stage.history(f"eval/{name}") for name in MEASURED}
        return frozen | {"direct": direct}, curve

    return run_seed


def summary(config, curve):
    """The last evaluation, the mean over the run, and gold where the KL divergence met the budget."""
    found = {name: float(values[-1]) for name, values in curve.items()}
    found["mean_gold"] = float(np.mean(curve["gold"]))
    found["gold_at_kl"] = at_kl(curve["kl"], curve["gold"], config.kl_budget)
    return found


def train(config, *, told=None):
    """One arm: PPO, with token rewards as `told(values, mask)` says."""
    lab = make_lab(config)

    def sentence(traj):
        return shaping.standardised(
            traj.info["proxy"], traj.info["proxy_mean"], traj.info["proxy_std"]
        )

    program = lab.policy_gradient(
        config.rl,
        shape=sentence,
        token_reward=None
        if told is None
        else lambda traj: told(token_rewards(config, traj), traj.mask),
        kl=config.kl,
        credit=credit.whitened(credit.gae),
        loss=losses.policy_loss(surrogate=losses.clipped(0.2)),
        learners={
            "moments": outcome_moments("proxy"),
            "critic": critic(
                lab.scorer,
                config.critic,
                config.rl.loop.steps,
                micro_batches=config.rl.batch_cuts,
            ),
        },
        prompts=lab.world.prompts,
        evaluation_prompts=config.evaluation_prompts,
    )

    def run_seed(run, shared):
        frozen, _ = shared
        stage = run.stage("rl")
        params = program.run(stage, params=frozen["reference"], frozen=frozen).params
        stage.samples(config.rl.loop.steps, lab.samples(params, frozen, stage.key))
        return summary(config, {name: stage.history(f"eval/{name}") for name in MEASURED})

    return run_seed


def direct(config):
    """The arm that is the DPO policy itself."""
    return lambda run, shared: summary(config, shared[1])


MINI = Config()
TINY_LAB = dataclasses.replace(MINI.lab, model=dataclasses.replace(MINI.lab.model, layers=1))
MESH = MeshConfig(fsdp=16, tensor=4)
FIT = SupervisedConfig(
    128,
    micro_batches=8,
    optimizer=OptimizerConfig(learning_rate=5e-6, schedule="cosine", warmup=0.03),
    loop=LoopConfig(steps=480),
    mesh=MESH,
)
PAPER = Config(
    data="openbmb/UltraFeedback",
    lab=LabConfig(model=LLAMA3_8B, sft=FIT, reward_model=FIT),
    rl=PolicyGradientConfig(
        prompts=1024,
        minibatches=8,
        micro_batches=4,
        rollout_cuts=4,
        batch_cuts=32,
        optimizer=OptimizerConfig(learning_rate=5e-7),
        loop=LoopConfig(steps=60, steps_per_call=1, evaluate_every=10),
        mesh=MESH,
    ),
    critic=OptimizerConfig(learning_rate=9e-6),
    dpo=dataclasses.replace(FIT, optimizer=OptimizerConfig(learning_rate=5e-7)),
    token_scale=0.05,
    token_clip=0.05,
    kl=0.01,
    kl_budget=10.0,
)


def workloads(config):
    """The first policy, the reward model, DPO, the critic and PPO; prompts and responses of 1024 tokens."""
    lab, rl = config.lab, config.rl
    model = LanguageModel(lab.model)
    rollouts = Rollouts(model, rl, 1, 1024, 1024, critic=config.critic, reward_model=True)
    return [
        imitation(model, lab.sft, 2048),
        reward_model_training(rollouts.scorer, lab.reward_model, 2048),
        preference_training(model, config.dpo, 2048),
        *rollouts.workloads(),
    ]


FASTER = "PPO's level with 1/8 of the prompts"
FRONTIER = "nearly one frontier: token rewards move faster along it, to twice the KL divergence"
ABLATION = "granularity: Semi-RTO and DDPO on AlpacaEval 2"

EXPERIMENT = Experiment(
    paper=Paper(
        title="DPO Meets PPO: Reinforced Token Optimization for RLHF",
        arxiv="2404.18922",
        code="github.com/zkshan2002/RTO",
    ),
    prepare=prepare,
    arms={
        "ppo": Arm(train, "one reward, at the end"),
        "rto": Arm(partial(train, told=lambda values, mask: values)),
        "semi_rto": Arm(partial(train, told=partial(rewards.in_chunks, size=4)), "every 4 tokens"),
        "ddpo": Arm(partial(train, told=rewards.at_end), "the same sum at the end"),
        "rs_ppo": Arm(partial(train, told=rewards.taken_back), "pure shaping"),
        "dpo": Arm(direct),
    },
    scales={
        "mini": MINI,
        "smoke": smoke(MINI, lab=smoke(TINY_LAB, comparisons=128), evaluation_prompts=16),
        "paper": PAPER,
    },
    claims=[
        Claim("mean_gold", "rto", ">", "ppo", source=FASTER),
        Claim("gold", "rto", ">", "ppo", source="AlpacaEval 2 and Arena-Hard"),
        Claim("gold_at_kl", "rto", ">", "ppo", source="the same, at equal KL", note=FRONTIER),
        Claim("mean_gold", "rto", ">", "semi_rto", source=ABLATION),
        Claim("mean_gold", "semi_rto", ">", "ddpo", source=ABLATION),
        Claim("mean_gold", "rs_ppo", ">", "ppo", source="reward shaping"),
        Claim("gold", "rto", ">", "dpo", source="AlpacaEval 2 and Arena-Hard"),
    ],
    reported={
        "rto": {"alpaca_eval_lc": 27.0},
        "ppo": {"alpaca_eval_lc": 19.47},
        "dpo": {"alpaca_eval_lc": 17.4},
        "semi_rto": {"alpaca_eval_lc": 23.77},
        "ddpo": {"alpaca_eval_lc": 21.09},
        "rs_ppo": {"alpaca_eval_lc": 27.52},
    },
    first_arms=("ppo", "rto", "ddpo"),
    first_seeds=3,
    curves=("gold", "proxy", "kl"),
    topology="v5e:8x8",
    workloads=workloads,
)
