"""Verifiers of GSM8K's model solutions: files to a tokenizer, a backbone, batches, held-out results.

Vocabulary and backbone are learned from the training questions alone. The solutions' questions are
split, so that all solutions of one question are on the same side.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np

from rewardjax.data.formats import gsm8k_demonstration, gsm8k_solutions
from rewardjax.data.jsonl import load
from rewardjax.data.records import Demonstration, Solution
from rewardjax.data.solutions import (
    JoinedSource,
    bucketed_solutions,
    encode_solution,
    fitting,
    packed_demonstrations,
    stack_solutions,
)
from rewardjax.data.sources import ArraySource
from rewardjax.data.tokenizers import SentencePieceTokenizer, Tokenizer
from rewardjax.evaluation.verification import verification
from rewardjax.models.language_model import LanguageModel
from rewardjax.recipes.objectives import language_modelling
from rewardjax.recipes.supervised import Supervised
from rewardjax.recipes.text_reward_model import (
    ON_LONG,
    TextConfig,
    score_in_buckets,
    tell_skipped,
    text_scorer,
    warn_doubled_bos,
)
from rewardjax.recipes.verifier import VerifierStudy
from rewardjax.training.run import Run


@dataclasses.dataclass(frozen=True)
class SolutionText:
    """Judged solutions, demonstrations, and the tokenizer learned from those to train on.

    Attributes:
      tokenizer: learned from the training solutions and the demonstrations.
      train, test: solutions that fit the context; no question is in both.
      demonstrations: worked answers, to other questions than those of `test`.
    """

    tokenizer: Tokenizer
    train: list[Solution]
    test: list[Solution]
    demonstrations: list[Demonstration]


def split_by_question(
    records: Sequence[Solution], held_out: float, seed: int
) -> tuple[list[Solution], list[Solution]]:
    """Training and test solutions; a share `held_out` of the questions, drawn by the seed, is tested.

    Raises:
      ValueError: `held_out` leaves one side without a question.
    """
    questions = list(dict.fromkeys(record.question for record in records))
    count = round(held_out * len(questions))
    if not 0 < count < len(questions):
        raise ValueError(
            f"held_out: expected a share that leaves questions on both sides,"
            f" found {held_out} of {len(questions)} questions"
        )
    order = np.random.default_rng(seed).permutation(len(questions))
    chosen = {questions[index] for index in order[:count]}
    train = [record for record in records if record.question not in chosen]
    return train, [record for record in records if record.question in chosen]


def read_solutions(
    folder: Path, config: TextConfig, held_out: float, seed: int, warn: Callable[[str], None]
) -> SolutionText:
    """Reads GSM8K's `model_solutions.jsonl.gz` and `train.jsonl.gz`, and learns a vocabulary.

    Reference answers without a number, questions with a solution that has no label, and questions
    with a solution that does not fit the context are left out (the first two unless
    `config.on_bad_record` is "raise"); `warn` is told how many and why.

    Raises:
      BadRecord: a row of the first two kinds that is not to be left out.
      ValueError: nothing is left on one side, a vocabulary too large or too small for the texts.
      FileNotFoundError: there is no such file.
    """
    on_bad = config.on_bad_record or "skip"
    judged = load(folder / "model_solutions.jsonl.gz", gsm8k_solutions, on_bad)
    worked = load(folder / "train.jsonl.gz", gsm8k_demonstration, on_bad)
    tell_skipped(warn, "model_solutions.jsonl.gz", judged.skipped)
    tell_skipped(warn, "train.jsonl.gz", worked.skipped)
    train, test = split_by_question(judged.records, held_out, seed)
    tested = {record.question for record in test}
    answers = [record for record in worked.records if record.prompt not in tested]
    texts = [f"{r.question}\n{r.solution}" for r in train]
    texts += [f"{r.prompt}\n{r.response}" for r in answers]
    tokenizer = SentencePieceTokenizer.train(texts, config.vocab)
    context = max(config.buckets)
    kept = {"training": train, "held-out": test}
    for name, records in kept.items():
        found = fitting(records, tokenizer, context, ON_LONG)
        tell_skipped(warn, f"{name} solutions", found.skipped)
        if not found.records:
            raise ValueError(f"{folder}: {name} solutions: expected some to use, found none")
        kept[name] = found.records
    train, test = kept.values()
    encoded = (encode_solution(r, tokenizer, context, ON_LONG) for r in train[:100])
    warn_doubled_bos((ids for ids, _ in encoded), tokenizer, str(folder), warn)
    return SolutionText(tokenizer, train, test, answers)


def solution_scorer(config: TextConfig):
    """A function that scores solutions: `(params, records, tokenizer) -> float32 [records]`."""
    scored = jax.jit(text_scorer(config).score)

    def score(params, records: Sequence[Solution], tokenizer: Tokenizer) -> np.ndarray:
        context = max(config.buckets)
        encoded = [encode_solution(record, tokenizer, context, ON_LONG) for record in records]
        return score_in_buckets(
            partial(scored, params),
            encoded,
            [len(ids) for ids, _ in encoded],
            partial(stack_solutions, pad_id=tokenizer.pad_id),
            config.buckets,
            config.fit.batch_size,
        )

    return score


def text_study(folder: Path, config: TextConfig, held_out: float):
    """`run -> VerifierStudy` of GSM8K's model solutions.

    The backbone is pretrained on all training texts. `config.fit` says how many solutions are in a
    batch, `config.pretraining` how many rows of packed demonstrations are beside them.
    """
    model, score = LanguageModel(text_scorer(config).config), solution_scorer(config)
    program = Supervised(config.pretraining, init=model.boxed_init, loss=language_modelling(model))

    def study(run: Run) -> VerifierStudy:
        data = read_solutions(folder, config, held_out, run.seed, run.warn)
        test = sorted(data.test, key=lambda record: record.question)  # candidates side by side
        correct = np.array([record.correct for record in test])
        questions = len({record.question for record in test})
        share = float(np.mean([record.correct for record in data.train]))
        rows = config.pretraining.batch_size

        def packed(records):
            arrays, long = packed_demonstrations(
                records, data.tokenizer, max(config.buckets), ON_LONG
            )
            tell_skipped(run.warn, "demonstrations", {"too long": long} if long else {})
            return arrays

        language = packed(data.demonstrations)
        solved = [Demonstration(r.question, r.solution, r.source) for r in data.train]
        texts = packed([*data.demonstrations, *solved])
        whole = ArraySource(texts | {"mask": texts["valid"]}, rows, run.seed)
        backbone = program.run(run.stage("pretraining"), source=whole).params

        def source(seed):
            judged = bucketed_solutions(
                data.train, data.tokenizer, config.fit.batch_size, seed, config.buckets, ON_LONG
            )
            return JoinedSource(judged, {"language": ArraySource(language, rows, seed)})

        def evaluate(params):
            scores = score(params, test, data.tokenizer).reshape(questions, -1)
            return verification(scores, correct.reshape(questions, -1), share)

        def show(params):
            scores = score(params, test[:8], data.tokenizer)
            return [
                {"prompt": r.question, "response": r.solution, "model": r.model}
                | {"correct": r.correct, "score": float(value)}
                for r, value in zip(test, scores)
            ]

        return VerifierStudy(backbone, source, evaluate, show)

    return study
