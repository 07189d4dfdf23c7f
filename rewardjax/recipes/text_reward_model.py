"""Reward models of real text: preference files to a tokenizer, batches, scores, held-out accuracy.

The vocabulary and the backbone (a language model) are learned from the training split alone; the
test split is only scored. `text_study` is all of it together.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from rewardjax.data.batching import (
    OnLong,
    bucket_of,
    drop_long,
    encode_preference,
    stack_preferences,
)
from rewardjax.data.formats import open_preferences
from rewardjax.data.jsonl import OnBad
from rewardjax.data.records import Preference
from rewardjax.data.sources import GrainSource, bucketed_preferences, evaluation_batches
from rewardjax.data.tokenizers import SentencePieceTokenizer, Tokenizer, has_doubled_bos
from rewardjax.evaluation.accuracy import win_rate
from rewardjax.evaluation.bootstrap import bootstrap_interval
from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.objectives import language_modelling
from rewardjax.recipes.preference_data import PairStudy
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.training.loop import LoopConfig
from rewardjax.training.run import Run

ON_LONG: OnLong = (
    "truncate_left"  # the end of a dialogue says more of its last answer than the beginning
)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """How text becomes batches, and a reward model of them.

    Attributes:
      vocab: size of the SentencePiece vocabulary that is learned from the training texts.
      buckets: lengths in tokens that batches are padded to; the largest is the model's context.
      on_bad_record: "raise" or "skip" (and count); None is as `open_preferences` says of the source.
      validation: one training record in this many is kept for tuning; at least 2.
      model: of the backbone; its vocabulary and context are set to those above.
      pretraining: of the backbone, as a language model of the training texts.
      fit: of the reward model on the pairs, at each of its stages.
    """

    vocab: int = 1500
    buckets: tuple[int, ...] = (64, 128, 256)
    on_bad_record: OnBad | None = None
    validation: int = 10
    model: TransformerConfig = TransformerConfig(mlp_width=128)
    pretraining: SupervisedConfig = SupervisedConfig(8, loop=LoopConfig(steps=150))
    fit: SupervisedConfig = SupervisedConfig(32, loop=LoopConfig(steps=84))

    def __post_init__(self):
        if self.validation < 2:
            raise ValueError(f"TextConfig.validation: expected 2 or more, found {self.validation}")


@dataclasses.dataclass(frozen=True)
class TextPreferences:
    """Preferences over text, and the tokenizer learned from those to train on.

    Attributes:
      tokenizer: learned from the training and validation texts.
      train, validation, test: records that fit the context; those of the last two have a
        preferred response (no probability of exactly 1/2).
    """

    tokenizer: Tokenizer
    train: list[Preference]
    validation: list[Preference]
    test: list[Preference]


def read_text(spec: str, config: TextConfig, warn: Callable[[str], None]) -> TextPreferences:
    """Opens preference data and learns a vocabulary.

    Bad rows that are to be skipped, pairs whose responses do not fit the context (prompts are cut
    from the left), and held-out pairs without a preferred response are left out; `warn` is told how
    many and why.

    Args:
      spec: `hh:DIR`, `tfds:NAME@DIR`, ... as for `open_preferences`.
      config: vocabulary and lengths.
      warn: takes a message.

    Raises:
      BadRecord: a bad row that is not to be skipped.
      ValueError: an unknown spec, a split in which nothing is left, a vocabulary too large or too
        small for the texts.
      FileNotFoundError: there is no such file.
    """
    splits = {}
    for split in ("train", "test"):
        loaded = open_preferences(spec, split, config.on_bad_record)
        tell_skipped(warn, f"{spec}: {split}", loaded.skipped)
        splits[split] = loaded.records
    texts = [r.prompt + text for r in splits["train"] for text in r.responses]
    tokenizer = SentencePieceTokenizer.train(texts, config.vocab)
    for split, records in splits.items():
        fitting = drop_long(records, tokenizer, max(config.buckets), ON_LONG)
        tell_skipped(warn, f"{spec}: {split}", fitting.skipped)
        splits[split] = fitting.records
        some = [
            encode_preference(record, tokenizer, max(config.buckets), ON_LONG)
            for record in fitting.records[:100]
        ]
        rows = [row for item in some for row in item["tokens"]]
        warn_doubled_bos(rows, tokenizer, f"{spec}: {split}", warn)
    train, test = splits["train"], splits["test"]
    kept = [r for i, r in enumerate(train) if i % config.validation != config.validation - 1]
    held = [r for i, r in enumerate(train) if i % config.validation == config.validation - 1]
    found = TextPreferences(tokenizer, kept, _decided(held), _decided(test))
    for name in ("train", "validation", "test"):
        if not getattr(found, name):
            raise ValueError(f"{spec}: {name}: expected pairs to use, found none")
    return found


def warn_doubled_bos(
    rows: Iterable[Sequence[int]], tokenizer: Tokenizer, where: str, warn: Callable[[str], None]
) -> None:
    """Warns where encoded texts begin with two begin markers: the tokenizer adds one of its own.

    Args:
      rows: token ids as a model will read them; a few suffice, as a tokenizer treats all alike.
      tokenizer: encoded them.
      where: named in the message.
      warn: takes the message.
    """
    seen = [has_doubled_bos(row, tokenizer.bos_id) for row in rows]
    if any(seen):
        warn(
            f"{where}: {sum(seen)} of {len(seen)} encoded texts begin with two begin markers"
            f" (id {tokenizer.bos_id}): expected a tokenizer that adds none"
        )


def text_scorer(config: TextConfig) -> RewardModel:
    """The reward model with the vocabulary and context of the text."""
    return RewardModel(
        dataclasses.replace(config.model, vocab=config.vocab, context=max(config.buckets))
    )


def ragged(config: SupervisedConfig) -> SupervisedConfig:
    """The same training with one batch a program call: batches of different lengths do not stack."""
    return dataclasses.replace(config, loop=dataclasses.replace(config.loop, steps_per_call=1))


def text_source(
    records: Sequence[Preference],
    tokenizer: Tokenizer,
    config: TextConfig,
    batch_size: int,
    seed: int,
    attributes: Sequence[str] = (),
) -> GrainSource:
    """Shuffled batches of pairs of similar length, as `bucketed_preferences` makes them."""
    return bucketed_preferences(
        records, tokenizer, batch_size, seed, config.buckets, ON_LONG, attributes
    )


def pretraining(config: TextConfig) -> Supervised:
    """Language modelling of whole dialogues, of both responses: run it on a `text_source`.

    Its parameters are a backbone for `text_scorer(config)`.
    """
    model = LanguageModel(text_scorer(config).config)
    loss = language_modelling(model)

    def both(params, batch, frozen=None):
        rows = {
            name: batch[name].reshape(-1, batch[name].shape[-1]) for name in ("tokens", "valid")
        }
        return loss(params, {**rows, "mask": rows["valid"]}, frozen)

    return Supervised(ragged(config.pretraining), init=model.boxed_init, loss=both)


def pair_scorer(config: TextConfig):
    """A function that scores records: `(params, records, tokenizer) -> float32 [records, responses]`.

    It pads to buckets and goes through each with batches of one shape, so that it compiles once a
    bucket. Scores come in the order of the records, which all have as many responses.
    """
    scored = jax.jit(text_scorer(config).score)

    def score(params, records: Sequence[Preference], tokenizer: Tokenizer) -> np.ndarray:
        context = max(config.buckets)
        encoded = [encode_preference(record, tokenizer, context, ON_LONG) for record in records]
        return score_in_buckets(
            partial(scored, params),
            encoded,
            [max(map(len, item["tokens"])) for item in encoded],
            partial(stack_preferences, pad_id=tokenizer.pad_id),
            config.buckets,
            config.fit.batch_size,
        )

    return score


def score_in_buckets(
    scored: Callable[[Any, Any], Any],
    rows: Sequence[Any],
    lengths: Sequence[int],
    stack: Callable[[Sequence[Any], int], dict[str, np.ndarray]],
    buckets: Sequence[int],
    batch_size: int,
) -> Float[np.ndarray, "rows *scores"]:
    """Scores of rows in their order, with batches of one shape for each bucket.

    Args:
      scored: `(tokens, valid) -> scores`, compiled.
      rows: at least one.
      lengths: of each row, in tokens.
      stack: `(rows, length) -> arrays`, `tokens` and `valid` among them.
      buckets: lengths that rows are padded to.
      batch_size: rows a call.
    """
    found, order = [], []
    of_row = np.array([bucket_of(length, buckets) for length in lengths])
    for bucket in np.unique(of_row):
        places = np.flatnonzero(of_row == bucket)
        arrays = stack([rows[int(place)] for place in places], int(bucket))
        found += [
            np.asarray(scored(batch["tokens"], batch["valid"]))[batch["weight"] > 0]
            for batch in evaluation_batches(arrays, batch_size)
        ]
        order.append(places)
    scores = np.concatenate(found)
    restored = np.empty_like(scores)
    restored[np.concatenate(order)] = scores
    return restored


def preferred_first(
    scores: Float[np.ndarray, "pairs 2"], records: Sequence[Preference]
) -> Float[np.ndarray, "pairs 2"]:
    """The scores of each pair with those of the preferred response in the first column."""
    second = np.array([record.probability < 0.5 for record in records])
    return np.where(second[:, None], scores[:, ::-1], scores)


def held_out(
    scores: Float[np.ndarray, "pairs 2"], records: Sequence[Preference], seed: int = 0
) -> dict[str, float]:
    """How often the preferred response scores higher, beside what no model is needed for.

    Args:
      scores: of each record's two responses.
      records: each with a preferred response.
      seed: of the coin.

    Returns:
      `accuracy` with its 95% bootstrap interval over pairs, `accuracy_low` to `accuracy_high`;
      `length_baseline` and `shorter_baseline`, where the longer and the shorter response in
      characters wins; `random_baseline`, where a fair coin decides. All in [0, 1]; ties count 0.5.
    """
    lengths = np.array([[float(len(text)) for text in record.responses] for record in records])
    coin = np.random.default_rng(seed).random((len(records), 2))
    ours, longer, random = (preferred_first(x, records).T for x in (scores, lengths, coin))
    wins = np.where(ours[0] == ours[1], 0.5, ours[0] > ours[1])
    accuracy, low, high = bootstrap_interval(wins)
    return {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "length_baseline": win_rate(*longer),
        "shorter_baseline": win_rate(*-longer),
        "random_baseline": win_rate(*random),
    }


def text_study(spec: str, config: TextConfig):
    """`run -> PairStudy` of preferences over text, as `read_text` reads them."""
    program, score = pretraining(config), pair_scorer(config)

    def study(run: Run) -> PairStudy:
        data = read_text(spec, config, run.warn)

        def source(batch_size, columns, seed):
            return text_source(data.train, data.tokenizer, config, batch_size, seed, columns)

        def evaluate(params, name):
            records = getattr(data, name)
            return held_out(score(params, records, data.tokenizer), records, run.seed)

        def show(params):
            records = data.test[:8]
            scores = score(params, records, data.tokenizer)
            return [
                {"prompt": r.prompt[-300:], "responses": r.responses, "scores": found.tolist()}
                for r, found in zip(records, scores)
            ]

        batches = source(config.pretraining.batch_size, (), run.seed)
        backbone = program.run(run.stage("pretraining"), source=batches).params
        return PairStudy(backbone, source, evaluate, show)

    return study


def _decided(records: Sequence[Preference]) -> list[Preference]:
    return [record for record in records if record.probability != 0.5]


def tell_skipped(warn: Callable[[str], None], where: str, skipped: dict[str, int]) -> None:
    """Warns of what was left out, one message a reason."""
    for reason, count in skipped.items():
        warn(f"{where}: left out {count}: {reason}")
