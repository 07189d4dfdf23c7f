import dataclasses
import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from scipy.special import erf

from rewardjax.data.batching import pad
from rewardjax.data.tokenizers import CharTokenizer
from rewardjax.models.encoder import EncoderConfig, SentenceEncoder
from rewardjax.models.sentence_encoder import TextEmbedder, load_sentence_encoder, read_config
from rewardjax.partitioning import RULES
from rewardjax.training.sharding import MeshConfig, make_mesh, state_shardings

CONFIG = EncoderConfig(vocab=14, layers=2, width=8, heads=2, mlp_width=12, context=6)
MODEL = SentenceEncoder(CONFIG)
HIDDEN, EMBED = jax.jit(MODEL.hidden), jax.jit(MODEL.embed)
ROWS = [[1, 5, 7, 12, 2], [3, 4, 9]]


@pytest.fixture(scope="module")
def params():
    """Parameters without a zero or a one among them, so that each of them counts."""
    fresh = MODEL.init(jax.random.key(0))
    leaves, structure = jax.tree.flatten(fresh)
    draws = np.random.default_rng(0)
    return structure.unflatten(
        [jnp.asarray(leaf + draws.normal(0, 0.3, leaf.shape), jnp.float32) for leaf in leaves]
    )


def bert(params, ids, types):
    """BERT in float64 for one text without padding, written from the paper's equations."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(x, p):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * p[
            "scale"
        ] + p["bias"]

    def affine(x, p):
        return x @ p["kernel"] + p["bias"]

    x = p["tokens"][ids] + p["positions"][: len(ids)] + p["types"][types]
    x = norm(x, p["norm"])
    for layer in range(CONFIG.layers):
        b = p[f"block_{layer}"]
        q, k, v = (affine(x, b[name]) for name in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for head in (slice(0, 4), slice(4, 8)):
            scores = np.exp(q[:, head] @ k[:, head].T / 2.0)
            mixed[:, head] = scores / scores.sum(-1, keepdims=True) @ v[:, head]
        x = norm(x + affine(mixed, b["out"]), b["attention_norm"])
        y = affine(x, b["up"])
        x = norm(x + affine(y * (1 + erf(y / np.sqrt(2))) / 2, b["down"]), b["mlp_norm"])
    return x


def test_hidden_states_are_those_of_the_paper(params):
    tokens, valid = pad(ROWS, 6, 0)
    types = np.array([[0, 0, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0]], np.int32)
    found = HIDDEN(params, tokens, valid, types)
    plain = HIDDEN(params, tokens, valid)
    for index, row in enumerate(ROWS):
        kinds = types[index, : len(row)]
        np.testing.assert_allclose(found[index, : len(row)], bert(params, row, kinds), atol=2e-5)
        expected = bert(params, row, np.zeros(len(row), int))
        np.testing.assert_allclose(plain[index, : len(row)], expected, atol=2e-5)
    assert found.dtype == jnp.float32


@pytest.mark.parametrize("unit_length", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_a_text_is_the_mean_or_the_first_of_its_states(params, pooling, unit_length):
    config = dataclasses.replace(CONFIG, pooling=pooling, unit_length=unit_length)
    tokens, valid = pad([*ROWS, []], 6, 0)
    found = jax.jit(SentenceEncoder(config).embed)(params, tokens, valid)
    for vector, row in zip(found, ROWS):
        states = bert(params, row, np.zeros(len(row), int))
        expected = states.mean(0) if pooling == "mean" else states[0]
        expected = expected / np.linalg.norm(expected) if unit_length else expected
        np.testing.assert_allclose(vector, expected, atol=2e-5)
    np.testing.assert_array_equal(found[2], np.zeros(8))


def test_padding_changes_nothing(params):
    tokens, valid = pad(ROWS, 6, 0)
    expected = EMBED(params, tokens, valid)
    other = np.where(valid, tokens, 11)
    np.testing.assert_array_equal(EMBED(params, other, valid), expected)
    left = np.roll(tokens, 3, 1), np.roll(valid, 3, 1)
    np.testing.assert_allclose(EMBED(params, *left)[1], expected[1], atol=1e-6)


def test_gradients_are_finite_where_a_row_is_empty(params):
    tokens, valid = pad([ROWS[0], []], 6, 0)

    def loss(params, tokens, valid):
        return jnp.sum(MODEL.embed(params, tokens, valid)[:, 0])

    gradients = jax.jit(jax.grad(loss))(params, tokens, valid)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert float(jnp.abs(gradients["block_0"]["query"]["kernel"]).max()) > 0


def test_parameters_name_their_axes():
    specs = nn.get_partition_spec(jax.eval_shape(MODEL.boxed_init, jax.random.key(0)))
    block = specs["block_1"]
    assert specs["tokens"] == P("vocab", "embed")
    assert specs["positions"] == specs["types"] == P(None, "embed")
    assert block["query"] == {"kernel": P("embed", "heads"), "bias": P("heads")}
    assert block["out"]["kernel"] == P("heads", "embed")
    assert block["up"]["kernel"] == P("embed", "mlp")
    assert block["down"]["kernel"] == P("mlp", "embed")
    names = {name for spec in jax.tree.leaves(specs) for name in spec if name is not None}
    assert names <= set(RULES)


def test_eight_devices_give_what_one_gives(params):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    tokens, valid = pad([*ROWS, *ROWS], 6, 0)
    with jax.set_mesh(mesh):
        shardings = state_shardings(mesh, jax.eval_shape(MODEL.boxed_init, jax.random.key(0)))
        placed = jax.device_put(params, shardings)
        found = jax.jit(MODEL.embed)(placed, tokens, valid)
    assert placed["tokens"].addressable_shards[0].data.shape == (7, 4)
    np.testing.assert_allclose(found[:2], EMBED(params, *pad(ROWS, 6, 0)), atol=1e-5)
    np.testing.assert_allclose(found[2:], found[:2], atol=1e-6)


def test_refusals(params):
    with pytest.raises(ValueError, match=r"EncoderConfig.width=8 is not a multiple of heads=3"):
        EncoderConfig(width=8, heads=3)
    with pytest.raises(ValueError, match=r"sequence of 7 tokens is longer than .*context=6"):
        EMBED(params, np.zeros((1, 7), np.int32), np.ones((1, 7), bool))


# --- Published folders ---

FIELDS = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "vocab_size": 14,
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 6,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
BLOCK = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}


def checkpoint(params):
    """The tensors as BERT checkpoints name and lay them out: matrices `[out, in]`."""

    def module(name, p):
        if "scale" in p:
            return {f"{name}.weight": p["scale"], f"{name}.bias": p["bias"]}
        return {f"{name}.weight": p["kernel"].T, f"{name}.bias": p["bias"]}

    tensors = {
        "embeddings.word_embeddings.weight": params["tokens"],
        "embeddings.position_embeddings.weight": params["positions"],
        "embeddings.token_type_embeddings.weight": params["types"],
        **module("embeddings.LayerNorm", params["norm"]),
        "embeddings.position_ids": np.arange(6)[None],
        "pooler.dense.weight": np.eye(8),
        "pooler.dense.bias": np.zeros(8),
    }
    for layer in range(2):
        for name, p in params[f"block_{layer}"].items():
            tensors |= module(f"encoder.layer.{layer}.{BLOCK[name]}", p)
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def write(folder, tensors, fields=FIELDS):
    numpy = pytest.importorskip("safetensors.numpy", reason="needs rewardjax[hf]")
    (folder / "config.json").write_text(json.dumps(fields))
    numpy.save_file(tensors, folder / "model.safetensors")


def test_a_checkpoint_is_read_as_it_was_written(tmp_path, params):
    write(tmp_path, checkpoint(params))
    model, found = load_sentence_encoder(tmp_path)
    assert model.config == CONFIG
    assert jax.tree.structure(found) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_a_half_precision_checkpoint_becomes_float32(tmp_path, params):
    tensors = checkpoint(params)
    write(tmp_path, {name: tensor.astype(np.float16) for name, tensor in tensors.items()})
    found = load_sentence_encoder(tmp_path)[1]["block_1"]["up"]["kernel"]
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, params["block_1"]["up"]["kernel"].astype(jnp.float16))


def test_all_that_is_wrong_with_a_checkpoint_is_named(tmp_path, params):
    tensors = checkpoint(params)
    tensors["classifier.weight"] = np.zeros((2, 8))
    tensors["encoder.layer.1.output.dense.weight"] = np.zeros((8, 5))
    del tensors["embeddings.LayerNorm.bias"], tensors["encoder.layer.0.output.dense.bias"]
    write(tmp_path, tensors)
    with pytest.raises(ValueError, match="the tensors are not those of its model") as error:
        load_sentence_encoder(tmp_path)
    missing, unexpected, misshapen = str(error.value).split("\n  ")[1:]
    assert missing.startswith("2 missing: ")
    assert set(missing.removeprefix("2 missing: ").split(", ")) == {
        "embeddings.LayerNorm.bias",
        "encoder.layer.0.output.dense.bias",
    }
    assert unexpected == "1 unexpected: classifier.weight"
    expected = "encoder.layer.1.output.dense.weight (expected (8, 12), found (8, 5))"
    assert misshapen == f"1 misshapen: {expected}"
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match=r"model.safetensors: not a safetensors file"):
        load_sentence_encoder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors: expected a checkpoint"):
        load_sentence_encoder(tmp_path)


def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"safetensors library: pip install 'rewardjax\[hf\]'"):
        load_sentence_encoder(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "roberta"}, "model_type: expected 'bert', found 'roberta'"),
        ({"hidden_act": "relu"}, "hidden_act: expected 'gelu', found 'relu'"),
        ({"position_embedding_type": "relative_key"}, "expected 'absolute', found 'relative_key'"),
    ],
)
def test_another_architecture_is_refused(tmp_path, change, said):
    (tmp_path / "config.json").write_text(json.dumps({**FIELDS, **change}))
    with pytest.raises(ValueError, match=rf"config.json: .*{said}"):
        read_config(tmp_path)


def test_a_config_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"config.json: expected config.json, found no such file"
    ):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: expected JSON"):
        read_config(tmp_path)
    fields = {name: value for name, value in FIELDS.items() if name != "hidden_size"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"expected the fields \['hidden_size'\], found none"):
        read_config(tmp_path)


MODES = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": False}


@pytest.mark.parametrize(
    ("pooling", "kinds", "expected"),
    [
        ({**MODES, "pooling_mode_mean_tokens": True}, ("Pooling", "Normalize"), ("mean", True)),
        ({**MODES, "pooling_mode_cls_token": True}, ("Pooling",), ("first", False)),
        ({"pooling_mode": "cls"}, ("Pooling", "Normalize"), ("first", True)),
        ({}, ("Normalize",), ("mean", True)),
    ],
)
def test_modules_say_how_a_text_becomes_a_vector(tmp_path, pooling, kinds, expected):
    write_modules(tmp_path, pooling, ("Transformer", *kinds))
    found = read_config(tmp_path)
    assert (found.pooling, found.unit_length) == expected


def write_modules(folder, pooling, kinds):
    (folder / "config.json").write_text(json.dumps(FIELDS))
    (folder / "Pooling").mkdir()
    (folder / "Pooling" / "config.json").write_text(json.dumps(pooling))
    modules = [{"path": kind, "type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize(
    ("pooling", "kinds", "said"),
    [
        ({"pooling_mode_max_tokens": True}, ("Pooling",), "found .'pooling_mode_max_tokens'"),
        ({**MODES, "pooling_mode_mean_tokens": True}, ("Pooling", "Dense"), "found 'Dense'"),
    ],
)
def test_another_pooling_is_refused(tmp_path, pooling, kinds, said):
    write_modules(tmp_path, pooling, ("Transformer", *kinds))
    with pytest.raises(ValueError, match=rf"json: (pooling_mode|type): expected .*{said}"):
        read_config(tmp_path)


def test_texts_of_any_length_become_vectors(params):

    tokenizer = CharTokenizer("abcdefghij")
    embed = TextEmbedder(MODEL, params, tokenizer, max_length=6)
    texts = ["abcdef", "", "ba", "abcdeff", "j"]
    found = embed(texts, batch_size=2)
    rows = [[1, *tokenizer.encode(text[:4]), 2] for text in texts]
    np.testing.assert_allclose(found, EMBED(params, *pad(rows, 6, 0)), atol=1e-6)
    np.testing.assert_allclose(found[0], found[3], atol=1e-6)
    assert embed([]).shape == (0, 8)
