"""Reward models of text: splits, held-out figures by hand, scores that do not depend on buckets."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from rewardjax.data.records import BadRecord, Preference
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.text_reward_model import (
    TextConfig,
    held_out,
    pair_scorer,
    preferred_first,
    read_text,
    text_scorer,
)

MODEL = TransformerConfig(layers=1, width=16, heads=2, kv_heads=1, head_dim=8, mlp_width=32)
CONFIG = TextConfig(vocab=320, buckets=(16, 32, 64), validation=5, model=MODEL)


def rows(count: int, offset: int = 0) -> list[dict]:
    return [
        {
            "prompt": "Human: " + "and ".join(f"number {i + k} " for k in range(i % 4 + 1)),
            "responses": [f" the answer is {i}, friend", f" no {i}"],
            "probability": [1.0, 0.0, 0.5, 0.8][i % 4],
        }
        for i in range(offset, offset + count)
    ]


@pytest.fixture
def spec(tmp_path):
    for split, content in {"train": rows(40), "test": rows(12, offset=100)}.items():
        text = "".join(json.dumps(row) + "\n" for row in content)
        (tmp_path / f"{split}.jsonl").write_text(text)
    return f"jsonl:{tmp_path}/{{split}}.jsonl"


def test_splits_are_apart_and_held_out_pairs_are_decided(spec):
    data = read_text(spec, CONFIG, warn=lambda message: None)
    assert len(data.train) == 32
    # Every fifth record is for tuning (4, 9, ...); of those, two in eight have no preference.
    assert {record.source.split(":")[1] for record in data.validation} == {
        str(line) for line in (5, 10, 20, 25, 30, 40)
    }
    assert len(data.test) == 9
    assert all(record.probability != 0.5 for record in data.validation + data.test)


def test_bad_records_stop_or_are_counted(spec, tmp_path):
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"prompt": "Human: hm", "responses": ["a"]}\n')
    with pytest.raises(BadRecord, match=r"train\.jsonl:41: responses: expected two or more"):
        read_text(spec, CONFIG, warn=lambda message: None)
    warnings = []
    read_text(spec, dataclasses.replace(CONFIG, on_bad_record="skip"), warnings.append)
    assert any("train: left out 1: responses: expected two or more" in w for w in warnings)


def test_scores_do_not_depend_on_the_other_records(spec):
    data = read_text(spec, CONFIG, warn=lambda message: None)
    params = text_scorer(CONFIG).init(jax.random.key(0))
    score = pair_scorer(CONFIG)
    together = score(params, data.train, data.tokenizer)
    assert together.shape == (32, 2)
    backwards = score(params, data.train[::-1], data.tokenizer)[::-1]
    alone = np.concatenate([score(params, [r], data.tokenizer) for r in data.train[:4]])
    np.testing.assert_allclose(together, backwards, atol=1e-5)
    np.testing.assert_allclose(together[:4], alone, atol=1e-5)


def test_held_out_by_hand():
    pairs = [
        Preference("q", ("long enough", "short"), 1.0),
        Preference("q", ("brief", "a longer one"), 0.2),
        Preference("q", ("tiny", "very very long"), 0.9),
        Preference("q", ("same", "size"), 0.7),
    ]
    scores = np.array([[2.0, 1.0], [0.0, 0.0], [1.0, 3.0], [0.5, 0.1]])
    np.testing.assert_array_equal(preferred_first(scores, pairs)[1:3], [[0.0, 0.0], [1.0, 3.0]])
    found = held_out(scores, pairs)
    assert found["accuracy"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]
    # The longer response is preferred in the first two, the shorter in the third, the last ties.
    assert found["length_baseline"] == pytest.approx(2.5 / 4)
    assert found["shorter_baseline"] == pytest.approx(1.5 / 4)
