"""Training verifiers to solve math word problems (arXiv:2110.14168).

A generator is fine-tuned on worked solutions; its samples to the training questions are labelled by
their final answer alone; a verifier, which starts as the generator, learns to predict the label. Of N
samples to a new question the one that it likes most is the answer. The paper trains a prediction v_t
after every token of the solution y ("token level") or after the last one alone ("solution level"),
beside language modelling of the generator's training data:

    mean_t (v_t - correct)^2  -  mean_t log p(y'_t | x', y'_<t)

Miniature: two steps of arithmetic modulo 7, written out; every fourth step of a demonstration is wrong
and its error is carried on. Verifiers see 80 samples to each of 500 questions once.
`--set data=gsm8k:DIR` trains on the solutions that the paper's authors published, four models' to each
of 900 questions (`DIR/model_solutions.jsonl.gz`; language modelling on `DIR/train.jsonl.gz`).
"""

import dataclasses
from functools import partial
from pathlib import Path

from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.heads import RewardModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.sampled_solutions import SampledConfig, sampled_study
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.recipes.text_reward_model import TextConfig, ragged, text_scorer
from rewardjax.recipes.text_verifier import text_study
from rewardjax.recipes.verifier import choice, solution_level, token_level, verification_loss
from rewardjax.recipes.workloads import verifier_training
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share.

    Attributes:
      data: "arithmetic", or "gsm8k:DIR" with the files of GSM8K in DIR.
      sampled: the questions, the generator and its solutions, where the data are generated.
      fit: of a verifier on these.
      text: model, vocabulary and budgets where the data are text.
      held_out: share of the text's questions that verifiers are tested on.
    """

    data: str = "arithmetic"
    sampled: SampledConfig = SampledConfig()
    fit: SupervisedConfig = SupervisedConfig(
        64,
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule="linear", warmup=0.05),
        loop=LoopConfig(steps=625, steps_per_call=25, evaluate_every=125),  # one epoch
    )
    text: TextConfig = TextConfig(
        buckets=(160, 256, 384),
        pretraining=SupervisedConfig(
            8, optimizer=OptimizerConfig(learning_rate=3e-3), loop=LoopConfig(steps=100)
        ),
        fit=SupervisedConfig(  # one epoch; 8 packed rows hold about 16 demonstrations
            16,
            optimizer=OptimizerConfig(learning_rate=1e-3, schedule="linear", warmup=0.05),
            loop=LoopConfig(steps=180, steps_per_call=1),
        ),
    )
    held_out: float = 0.2


def prepare(config):
    """A generator, its judged solutions, and how to measure a verifier.

    Raises:
      ValueError: the data are neither generated nor in a folder that is named.
    """
    scheme, _, folder = config.data.partition(":")
    if scheme == "gsm8k" and folder:
        return text_study(Path(folder), config.text, config.held_out)
    if config.data != "arithmetic":
        raise ValueError(
            f"data: expected 'arithmetic', which is generated, or gsm8k:DIR with the files"
            f" model_solutions.jsonl.gz and train.jsonl.gz in DIR, found {config.data!r}:"
            " third_party/manifest.yaml says how to obtain them"
        )
    return sampled_study(config.sampled, config.fit.batch_size)


def train(config, *, judged, language_weight=1.0):
    """One verifier."""
    text = config.data != "arithmetic"
    model = text_scorer(config.text) if text else RewardModel(config.sampled.model)
    program = Supervised(
        ragged(config.text.fit) if text else config.fit,
        init=model.boxed_init,
        loss=verification_loss(model, judged, language_weight),
        evaluate=None if text else choice(model),
    )

    def run_seed(run, shared):
        start = model.init(run.key, shared.backbone)
        stage = run.stage("verifier")
        source = shared.source(run.seed)
        params = program.run(stage, params=start, source=source, frozen=shared.frozen).params
        run.samples(program.config.loop.steps, shared.show(params))
        return shared.evaluate(params)

    return run_seed


MINI = Config()
FEW = smoke(
    MINI.sampled, demonstrations=64, questions=16, samples=4, evaluation_questions=16, candidates=4
)
# GPT-3 "6B" was never published: these sizes are those of GPT-3 6.7B (arXiv:2005.14165, Table 2.1)
# with this library's gated MLP and rotary positions. Batches are the paper's 32,000 tokens as 80
# rows of its longest sample; 2 epochs for the generator, 1 for the verifier (Table 1).
GPT3_6B = TransformerConfig(
    vocab=50_257,
    layers=32,
    width=4096,
    heads=32,
    kv_heads=32,
    head_dim=128,
    mlp_width=16_384,
    context=400,
    gate="gelu",
    scan=True,
    remat="full",
    dtype="bfloat16",
)
PUBLISHED = SupervisedConfig(
    80,
    optimizer=OptimizerConfig(learning_rate=1e-5, schedule="linear", b2=0.95),
    loop=LoopConfig(steps=747_300 // 80, steps_per_call=1),
    mesh=MeshConfig(fsdp=16),
)
GENERATOR = dataclasses.replace(
    PUBLISHED,
    optimizer=dataclasses.replace(PUBLISHED.optimizer, learning_rate=1.2e-6),
    loop=LoopConfig(steps=2 * 7473 // 80, steps_per_call=1),
)
PAPER = Config(
    data="gsm8k",
    sampled=SampledConfig(
        model=GPT3_6B,
        demonstrations=7473,
        questions=7473,
        samples=100,
        temperature=0.7,
        evaluation_questions=1319,
        candidates=100,
        sft=GENERATOR,
    ),
    fit=PUBLISHED,
    text=TextConfig(
        vocab=50_257, buckets=(400,), model=GPT3_6B, pretraining=GENERATOR, fit=PUBLISHED
    ),
)

BASELINE = "Figure 5, whose baseline is a sample at temperature 0"
NOISE = "the demonstrations' mistakes are noise, of which the likeliest answer is nearly free"
JOINT, LEVEL = "Figure 6b: the joint objective", "Figure 6a: token against solution level"
LEVELS = {"token_level": token_level, "solution_level": solution_level}

EXPERIMENT = Experiment(
    paper=Paper(
        title="Training Verifiers to Solve Math Word Problems",
        arxiv="2110.14168",
        code="github.com/openai/grade-school-math",
    ),
    prepare=prepare,
    arms={
        **{name: Arm(partial(train, judged=judged)) for name, judged in LEVELS.items()},
        **{
            f"{name}_no_lm": Arm(
                partial(train, judged=judged, language_weight=0.0), "the verification loss alone"
            )
            for name, judged in LEVELS.items()
        },
    },
    scales={
        "mini": MINI,
        "smoke": smoke(MINI, sampled=FEW),
        "paper": PAPER,
    },
    claims=[
        Claim("gain", "token_level", ">", 0.0, source="Figure 5"),
        Claim("best_of_n", "token_level", ">=", "solution_level", 0.02, source=LEVEL),
        Claim("best_of_n", "token_level", ">", "solution_level", source=LEVEL),
        *(Claim("best_of_n", arm, ">", f"{arm}_no_lm", source=JOINT) for arm in LEVELS),
        Claim("lift", "token_level", ">", 0.0, source="Sec. 4.2"),
        Claim("gain_over_greedy", "token_level", ">", 0.0, source=BASELINE, note=NOISE),
    ],
    # Of the 6B generator after 20 epochs, one sample at temperature 0 (Sec. 4.1).
    reported={"token_level": {"greedy": 0.206}},
    first_arms=("token_level", "solution_level"),
    curves=("eval/best_of_n", "loss_verifier"),
    workloads=lambda config: verifier_training(config.text),
)
