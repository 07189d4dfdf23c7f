"""Pairwise preferences over real text, learned by any head on one of two backbones.

The backbone is a small transformer that is pretrained on the training texts and trained on, or the
frozen embeddings of a published sentence encoder. Heads say what their outputs mean by two functions,
a loss and the log-odds that the first response is preferred; splits, budgets and figures are shared.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rewardjax import losses
from rewardjax.data.batching import drop_long, encode_preference, stack_preferences
from rewardjax.data.formats import names_preferences, open_preferences
from rewardjax.data.records import Preference
from rewardjax.data.sources import ArraySource, Source
from rewardjax.data.tokenizers import SentencePieceTokenizer
from rewardjax.evaluation.stated_preferences import judged, labels_of, readable
from rewardjax.evaluation.text_baselines import counted_words, longer_wins, usual_answer
from rewardjax.losses import Loss
from rewardjax.models.heads import Head, RewardModel
from rewardjax.models.sentence_encoder import TextEmbedder, read_config
from rewardjax.recipes.kept_vectors import KeptVectors, digest
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.recipes.text_reward_model import (
    ON_LONG,
    TextConfig,
    pretraining,
    ragged,
    score_in_buckets,
    tell_skipped,
    text_scorer,
    text_source,
)
from rewardjax.statistics import Mean
from rewardjax.training.loop import LoopConfig
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.run import Run

Outputs = Float[Array, "batch 2 outputs"]
TAIL = 1000  # characters from a prompt's end that a sentence encoder is given


@dataclasses.dataclass(frozen=True)
class TextPairsConfig:
    """Budgets on real text.

    Attributes:
      text: vocabulary, lengths, the backbone that is trained here, and its budgets.
      encoder: folder of a published sentence encoder whose frozen embeddings replace that backbone.
      encoder_length: tokens of a text that the encoder reads, at most.
      embeddings: folder in which embeddings are kept for the next run; "" keeps none.
      response_length: characters of a response that the transformer trained here reads, at most.
      hidden: units of the head's layer on frozen embeddings.
      head: budget of the heads on frozen embeddings.
      unseen: of records that name annotators (in `alpaca:` the systems that are compared with one
        reference), how many are kept for the test; other two for each seed. With 0, or where there
        are no names, the data's own splits.
    """

    text: TextConfig = TextConfig()
    encoder: str = ""
    encoder_length: int = 128
    embeddings: str = ""
    response_length: int = 400
    hidden: int = 64
    head: SupervisedConfig = SupervisedConfig(
        64,
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.01),
        loop=LoopConfig(steps=400, steps_per_call=50),
    )
    unseen: int = 2


class PairHead(NamedTuple):
    """What the outputs of a head mean.

    Attributes:
      outputs: numbers for each response.
      loss: `(outputs [batch, 2, n], batch) -> [batch]`; the batch has `probability` `[batch]`, that
        of the first response.
      logit: `outputs [batch, 2, n] -> [batch]`, log-odds that the first response is preferred.
      spread: standard deviation of the head's first weights, where 0 would not do.
    """

    outputs: int
    loss: Callable[[Outputs, dict[str, Array]], Float[Array, "batch"]]
    logit: Callable[[Outputs], Float[Array, "batch"]]
    spread: float = 0.0


def lead(outputs: Outputs) -> Float[Array, "batch"]:
    """How far the first response's scalar is ahead."""
    return outputs[:, 0, 0] - outputs[:, 1, 0]


def head_of(
    loss: Callable[[Outputs], Float[Array, "batch"]],
    outputs: int = 1,
    logit: Callable[[Outputs], Float[Array, "batch"]] = lead,
    spread: float = 0.0,
) -> PairHead:
    """A head by the loss of pairs whose first response is preferred.

    A label of probability p is p of that loss and 1 - p of the loss in the other order; the rest is
    `PairHead`'s.
    """

    def graded(found: Outputs, batch: dict[str, Array]) -> Float[Array, "batch"]:
        p = batch["probability"]
        return p * loss(found) + (1 - p) * loss(found[:, ::-1])

    return PairHead(outputs, graded, logit, spread)


SCALAR = head_of(lambda outputs: losses.bradley_terry(lead(outputs)))  # Bradley-Terry's


def inapplicable_to_text(
    data: str, arms: Iterable[str], suited: Collection[str], need: str
) -> dict[str, str]:
    """Why arms cannot be run where `data` names preferences over text: an experiment's `inapplicable`.

    Args:
      data: of the configuration.
      arms: all of the experiment's.
      suited: those that pairs of text are enough for.
      need: what the others want, of which pairs of text have none.
    """
    if not names_preferences(data):
        return {}
    return {
        arm: f"arm {arm!r} needs {need}, which pairs of text do not have: data={data}"
        for arm in arms
        if arm not in suited
    }


class Shared(NamedTuple):
    """What the arms of a seed share.

    Attributes:
      train, test: records; those of `test` prefer one of their responses.
      baselines: the probability that the first response is preferred, of each judge without a model.
      tokenizer, backbone: of the transformer that is trained here; None with an encoder.
      features: embeddings `[records, 2, width]` of "train" and of "test"; None without an encoder.
    """

    train: list[Preference]
    test: list[Preference]
    baselines: dict[str, np.ndarray]
    tokenizer: Any = None
    backbone: Any = None
    features: Mapping[str, np.ndarray] | None = None


class TextPairs:
    """Splits, backbones and heads for one data set; `prepare` and `arm` are an experiment's."""

    def __init__(self, spec: str, config: TextPairsConfig):
        self.spec, self.config = spec, config

    def prepare(self) -> Callable[[Run], Shared]:
        """`run -> Shared`."""
        config, program = self.config, pretraining(self.config.text)
        embed = _embedding(config) if config.encoder else None

        def run_seed(run: Run) -> Shared:
            train, test = split(self.spec, config, run.seed, run.warn)
            if embed is not None:
                features = {"train": embed(train), "test": embed(test)}
                return Shared(train, test, _baselines(train, test), features=features)
            whole = {record.source: record for record in (*train, *test)}
            train, test = (_cut(records, config.response_length) for records in (train, test))
            texts = [r.prompt + text for r in train for text in r.responses]
            tokenizer = SentencePieceTokenizer.train(texts, config.text.vocab)
            train, test = (self._short(r, tokenizer, run.warn) for r in (train, test))
            rows = config.text.pretraining.batch_size
            source = text_source(train, tokenizer, config.text, rows, run.seed)
            backbone = program.run(run.stage("pretraining"), source=source).params
            baselines = _baselines(*([whole[r.source] for r in side] for side in (train, test)))
            return Shared(train, test, baselines, tokenizer, backbone)

        return run_seed

    def arm(
        self, head: PairHead, relabel: Callable[[Any], Shared] | None = None
    ) -> Callable[[Run, Any], dict[str, float]]:
        """`(run, shared) -> metrics` of one head.

        Args:
          head: what is trained.
          relabel: makes a `Shared`, of other training labels, of what the arm is given.
        """
        fit = self.fitting(head)

        def run_seed(run: Run, given: Any) -> dict[str, float]:
            shared = given if relabel is None else relabel(given)
            logits = fit(run, shared)("test")
            stated = np.asarray(jax.nn.sigmoid(logits), np.float64)
            run.samples(0, readable(shared.test[:8], stated))
            return judged(stated, shared.test, shared.baselines)

        return run_seed

    def fitting(self, head: PairHead) -> Callable[[Run, Shared], Callable[[str], np.ndarray]]:
        """`(run, shared) -> logits`, and `logits("train" or "test") -> [records]` of a trained head."""
        return self._on_embeddings(head) if self.config.encoder else self._on_tokens(head)

    def _short(self, records, tokenizer, warn) -> list[Preference]:
        found = drop_long(records, tokenizer, max(self.config.text.buckets), ON_LONG)
        tell_skipped(warn, self.spec, found.skipped)
        return found.records

    def _on_tokens(self, head: PairHead):
        text = self.config.text
        model = RewardModel(text_scorer(text).config, head.outputs, spread=head.spread)

        def read(params, batch):
            return model.scores(params, batch["tokens"], batch["valid"])

        program = Supervised(ragged(text.fit), init=model.boxed_init, loss=_objective(read, head))
        score = jax.jit(model.scores)

        def fit(run: Run, shared: Shared) -> Callable[[str], np.ndarray]:
            source = text_source(
                shared.train, shared.tokenizer, text, text.fit.batch_size, run.seed
            )
            start = model.init(run.key, shared.backbone)
            params = program.run(run.stage("fit"), params=start, source=source).params
            context = max(text.buckets)

            def logits(side: str) -> np.ndarray:
                encoded = [
                    encode_preference(record, shared.tokenizer, context, ON_LONG)
                    for record in getattr(shared, side)
                ]
                outputs = score_in_buckets(
                    partial(score, params),
                    encoded,
                    [max(map(len, item["tokens"])) for item in encoded],
                    partial(stack_preferences, pad_id=shared.tokenizer.pad_id),
                    text.buckets,
                    text.fit.batch_size,
                )
                return np.asarray(head.logit(jnp.asarray(outputs)))

            return logits

        return fit

    def _on_embeddings(self, head: PairHead):
        config = self.config
        module = Head(head.outputs, spread=head.spread or 0.01, hidden=config.hidden)
        width = 2 * read_config(config.encoder).width

        def init(key):
            return module.init(key, jnp.zeros((1, width)))["params"]

        def read(params, batch):
            return module.apply({"params": params}, batch["features"])

        program = Supervised(config.head, init=init, loss=_objective(read, head))
        apply = jax.jit(read)

        def fit(run: Run, shared: Shared) -> Callable[[str], np.ndarray]:
            sides = shared.features or {}
            columns = {"features": sides["train"], "probability": labels_of(shared.train)}
            source: Source = ArraySource(columns, config.head.batch_size, run.seed)
            params = program.run(run.stage("fit"), source=source).params
            return lambda side: np.asarray(head.logit(apply(params, {"features": sides[side]})))

        return fit


def split(
    spec: str, config: TextPairsConfig, seed: int, warn: Callable[[str], None]
) -> tuple[list[Preference], list[Preference]]:
    """Records to learn from and records to test on.

    Where annotators are kept for the test, they are `config.unseen` of them, in their names' order
    from number `unseen * seed` on, and instructions may be the same on both sides. Where the first response
    is preferred throughout and nobody is named, its place would tell the label: then every other pair is
    turned round.

    Raises:
      ValueError: no annotator would be left, or nothing to test on. Else as `open_preferences`.
    """
    sides = {}
    for name in ("train", "test"):
        loaded = open_preferences(spec, name, config.text.on_bad_record)
        tell_skipped(warn, f"{spec}: {name}", loaded.skipped)
        sides[name] = loaded.records
    everything = sides["train"] + sides["test"]
    if all(record.probability > 0.5 and not record.annotator for record in everything):
        sides = {name: _alternating(records) for name, records in sides.items()}
        everything = sides["train"] + sides["test"]
    names = sorted({record.annotator for record in everything if record.annotator})
    if config.unseen and names:
        if config.unseen >= len(names):
            raise ValueError(
                f"unseen: expected fewer than the {len(names)} annotators, found {config.unseen}"
            )
        first = config.unseen * seed
        kept = {names[(first + i) % len(names)] for i in range(config.unseen)}
        sides = {
            "train": [record for record in everything if record.annotator not in kept],
            "test": [record for record in everything if record.annotator in kept],
        }
    test = [record for record in sides["test"] if record.probability != 0.5]
    if not sides["train"] or not test:
        raise ValueError(f"{spec}: expected pairs to learn from and to test on, found none")
    return sides["train"], test


def _objective(outputs: Callable[[Any, dict[str, Array]], Outputs], head: PairHead):
    def loss(params, batch, frozen):
        found = outputs(params, batch)
        right = (head.logit(found) > 0) == (batch["probability"] > 0.5)
        return Loss({"preference": Mean.of(head.loss(found, batch))}, {"accuracy": Mean.of(right)})

    return loss


def _embedding(config: TextPairsConfig):
    """`records -> [records, 2, 2 * width]`: of each response, and its product with the prompt's."""
    embedder = dataclasses.replace(
        TextEmbedder.load(config.encoder), max_length=config.encoder_length
    )
    path = None
    if config.embeddings:
        name = f"{digest(config.encoder)[:16]}-{config.encoder_length}.npz"
        path = Path(config.embeddings) / name
    # Seeds divide the same texts differently: each is embedded once.
    vectors = KeptVectors(embedder, path)

    def embed(records: Sequence[Preference]) -> np.ndarray:
        known = vectors(text for r in records for text in (r.prompt[-TAIL:], *r.responses))
        prompts = np.stack([known[r.prompt[-TAIL:]] for r in records])[:, None]
        responses = np.stack([[known[text] for text in r.responses] for r in records])
        return np.concatenate([responses, responses * prompts], axis=-1)

    return embed


def _baselines(train: Sequence[Preference], test: Sequence[Preference]) -> dict[str, np.ndarray]:
    return {
        "longer": longer_wins(test),
        "usual": usual_answer(train, test),
        "tfidf": counted_words(train, test),
    }


def _alternating(records: Sequence[Preference]) -> list[Preference]:
    """Every other pair turned round, with its label."""
    return [
        Preference(r.prompt, r.responses[::-1], 1 - r.probability, source=r.source) if i % 2 else r
        for i, r in enumerate(records)
    ]


def _cut(records: Sequence[Preference], longest: int) -> list[Preference]:
    return [
        dataclasses.replace(r, responses=tuple(text[:longest] for text in r.responses))
        for r in records
    ]
