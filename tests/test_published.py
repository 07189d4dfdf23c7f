"""Published checkpoints without the library that made them: layout, round trips, shards, errors."""

import dataclasses
import json
import sys

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from rewardjax.models import presets, published
from rewardjax.models.attention import RopeScaling
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.published import export_checkpoint, import_params, load_checkpoint
from rewardjax.models.published_configs import RUNTIME, read_config, to_config_json
from rewardjax.models.transformer import TransformerConfig
from rewardjax.training.sharding import MeshConfig, make_mesh

safetensors_numpy = pytest.importorskip(
    "safetensors.numpy", reason="published checkpoints need the extra 'hf' (safetensors)"
)

QWEN2 = TransformerConfig(
    vocab=16,
    layers=2,
    width=8,
    heads=4,
    kv_heads=2,
    head_dim=2,
    mlp_width=12,
    context=16,
    qkv_bias=True,
    tied_embeddings=False,
)
# Three layers, two to a period: scanned, the last one is the cut start of a second period.
GEMMA3 = dataclasses.replace(
    QWEN2,
    layers=3,
    gate="gelu",
    qk_norm=True,
    qkv_bias=False,
    post_norm=True,
    unit_offset=True,
    embedding_scale=True,
    query_scale=0.5,
    rope_base=100.0,
    local_rope_base=10.0,
    rope_scaling=RopeScaling(2.0),
    spans=("local", "global"),
    window=3,
    tied_embeddings=True,
)
PRESETS = {
    name: value
    for name, value in vars(presets).items()
    if isinstance(value, TransformerConfig) and name[0] != "_"
}

# What the publishers' files say of the model (without token ids and settings of training).
PUBLISHED = {
    "LLAMA3_3B": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": 24,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "vocab_size": 128256,
    },
    "MISTRAL_7B": {
        "architectures": ["MistralForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "QWEN25_3B": {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "max_position_embeddings": 32768,
        "max_window_layers": 36,
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "QWEN3_1_7B": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "GEMMA2_2B": {
        "architectures": ["Gemma2ForCausalLM"],
        "attention_bias": False,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "max_position_embeddings": 8192,
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "vocab_size": 256000,
    },
    "GEMMA3_4B": {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "vision_config": {"hidden_size": 1152},
    },
}


def random_params(config, seed=0):
    params = LanguageModel(config).init(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [jax.random.normal(k, x.shape).astype(x.dtype) for x, k in zip(leaves, keys)]
    return jax.tree.unflatten(tree, noisy)


@pytest.fixture
def qwen2(tmp_path):
    """A small Qwen 2 in one file: its folder and its parameters."""
    params = random_params(QWEN2)
    export_checkpoint(tmp_path, QWEN2, params)
    return tmp_path, params


def runtime(config):
    return {field: getattr(config, field) for field in RUNTIME}


def edit_config(folder, **changes):
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: x for name, x in values.items() if x != "absent"}))


@pytest.mark.parametrize("name", PUBLISHED)
def test_publishers_config_is_the_preset(name, tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({**PUBLISHED[name], "torch_dtype": "bfloat16"})
    )
    assert read_config(tmp_path, **runtime(PRESETS[name])) == PRESETS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_written_config_reads_as_the_same_model(name, tmp_path):
    config = PRESETS[name]
    (tmp_path / "config.json").write_text(json.dumps(to_config_json(config)))
    assert read_config(tmp_path, **runtime(config)) == config


def test_rope_scaling_by_hand():
    # 0.5, 2.5 and 4 turns in 100 tokens: below 1 divided by 8, halfway to 4 half so, from 4 on kept.
    frequencies = 2 * np.pi / 100 * np.array([0.5, 2.5, 4.0], np.float32)
    scaled = RopeScaling(8.0, original_context=100).scale(jnp.asarray(frequencies))
    np.testing.assert_allclose(scaled / frequencies, [0.125, 0.5625, 1.0], rtol=1e-6)
    np.testing.assert_allclose(RopeScaling(8.0).scale(jnp.ones(2)), [0.125, 0.125])


def test_tensors_are_those_of_the_published_layout(qwen2):
    folder, params = qwen2
    tensors = safetensors_numpy.load_file(folder / "model.safetensors")
    attention, mlp = params["block_1"]["attention"], params["block_1"]["mlp"]
    layer = "model.layers.1"
    expected = {
        "model.embed_tokens.weight": params["embedding"],  # [vocab, width] in both
        "lm_head.weight": params["unembedding"].T,
        f"{layer}.self_attn.k_proj.weight": attention["key"].T,
        f"{layer}.self_attn.k_proj.bias": attention["key_bias"],
        f"{layer}.self_attn.o_proj.weight": attention["out"].T,
        f"{layer}.mlp.down_proj.weight": mlp["down"].T,
        f"{layer}.post_attention_layernorm.weight": params["block_1"]["mlp_norm"]["scale"],
    }
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)
    assert len(tensors) == 3 + 2 * (4 + 3 + 3 + 2)  # per layer: weights, biases, MLP, norms


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("max_file_bytes", [10**6, 500])
def test_round_trip(tmp_path, scan, max_file_bytes):
    config = dataclasses.replace(GEMMA3, scan=scan)
    params = random_params(config)
    export_checkpoint(tmp_path, config, params, max_file_bytes=max_file_bytes)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) == 1) == (max_file_bytes == 10**6)
    assert (tmp_path / "model.safetensors.index.json").exists() == (len(files) > 1)
    sizes = [sum(x.nbytes for x in safetensors_numpy.load_file(f).values()) for f in files]
    assert max(sizes) <= max(max_file_bytes, 16 * 8 * 4)  # the embedding alone is larger
    assert load_checkpoint(tmp_path, scan=scan)[0] == config
    chex.assert_trees_all_equal(import_params(tmp_path, config), params)


def test_scanned_layers_with_a_cut_period_equal_unrolled_ones(tmp_path):
    export_checkpoint(tmp_path, GEMMA3, random_params(GEMMA3))
    tokens = jax.random.randint(jax.random.key(2), (2, 7), 0, 16)
    found = []
    for scan in (False, True):
        config, params = load_checkpoint(tmp_path, scan=scan)
        model = LanguageModel(config)

        @jax.jit
        def whole_and_in_two_parts(params, model=model):
            ones, cache = jnp.ones_like(tokens), model.init_cache(2, 8)
            place = jnp.cumsum(ones, axis=1) - 1
            whole, _ = model.hidden(params, tokens, ones)
            parts = []
            for part in (slice(0, 4), slice(4, 7)):
                inputs = (x[:, part] for x in (tokens, ones, place))
                hidden, cache = model.hidden(params, *inputs, cache)
                parts.append(hidden)
            return whole, jnp.concatenate(parts, axis=1)

        found += whole_and_in_two_parts(params)
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-4)


def test_bfloat16_files(tmp_path):
    params = random_params(QWEN2)
    export_checkpoint(tmp_path, QWEN2, params, dtype="bfloat16", fields={"eos_token_id": 3})
    tensors = safetensors_numpy.load_file(tmp_path / "model.safetensors")
    assert {x.dtype for x in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == 3
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    config, found = load_checkpoint(tmp_path)
    assert (config.param_dtype, config.dtype) == ("bfloat16", "bfloat16")
    chex.assert_trees_all_equal(found, rounded)
    _, found = load_checkpoint(tmp_path, param_dtype="float32")
    chex.assert_trees_all_equal(found, jax.tree.map(lambda x: x.astype(jnp.float32), rounded))


class Recorded:
    """A tensor of a file that notes how much of it was read at a time."""

    def __init__(self, tensor, sizes):
        self.tensor, self.sizes = tensor, sizes

    def __getattr__(self, name):
        return getattr(self.tensor, name)

    def __getitem__(self, index):
        value = self.tensor[index]
        self.sizes.append(value.size)
        return value


def test_devices_get_their_slices_and_no_more_is_read(tmp_path, monkeypatch):
    params = random_params(GEMMA3)
    export_checkpoint(tmp_path, GEMMA3, params, max_file_bytes=1000)
    sizes: dict[str, list[int]] = {}

    def recorded(folder):
        opened = published_open(folder)
        return {name: Recorded(x, sizes.setdefault(name, [])) for name, x in opened.items()}

    published_open = published.open_tensors
    monkeypatch.setattr(published, "open_tensors", recorded)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    config = dataclasses.replace(GEMMA3, scan=True)
    sharded = import_params(tmp_path, config, mesh)
    chex.assert_trees_all_equal(
        jax.device_get(sharded), jax.device_get(import_params(tmp_path, config))
    )
    query = sharded["groups"]["block_1"]["attention"]["query"]
    assert query.sharding.spec == jax.sharding.PartitionSpec(None, ("fsdp", "sequence"), "tensor")
    assert {shard.data.shape for shard in query.addressable_shards} == {(1, 4, 4)}
    # The second, unsharded import reads whole matrices, once.
    reads = sizes["model.layers.1.self_attn.q_proj.weight"]
    assert reads == [16] * 8 + [64]
    again = tmp_path / "again"
    export_checkpoint(again, config, sharded)
    chex.assert_trees_all_equal(jax.device_get(import_params(again, GEMMA3)), params)


def test_old_and_derived_tensors_are_not_read(qwen2):
    folder, params = qwen2
    tensors = safetensors_numpy.load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(1, np.float32)
    safetensors_numpy.save_file(tensors, folder / "model.safetensors")
    edit_config(folder, tie_word_embeddings=True)
    config, found = load_checkpoint(folder)
    assert config.tied_embeddings
    chex.assert_trees_all_equal(found, {k: v for k, v in params.items() if k != "unembedding"})


def test_wrong_tensors_are_named(qwen2):
    folder, _ = qwen2
    file = folder / "model.safetensors"
    tensors = safetensors_numpy.load_file(file)
    del tensors["model.norm.weight"]
    tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((12, 8), np.float32)
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((12, 9), np.float32)
    tensors["model.layers.1.mlp.gate_proj.weight"] = np.zeros((12, 8), np.int8)
    safetensors_numpy.save_file(tensors, file)
    with pytest.raises(ValueError, match="the tensors are not those") as error:
        load_checkpoint(folder)
    message = str(error.value)
    assert str(folder) in message
    assert "1 missing: model.norm.weight" in message
    assert "1 unexpected: model.layers.2.mlp.up_proj.weight" in message
    assert (
        "1 misshapen: model.layers.1.mlp.up_proj.weight (expected (12, 8), found (12, 9))"
        in message
    )
    assert "1 not floating point: model.layers.1.mlp.gate_proj.weight" in message
    edit_config(folder, num_hidden_layers=4, layer_types="absent")
    with pytest.raises(ValueError, match=r"24 missing: .* and 16 more"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["MambaForCausalLM"]},
            "expected one of LlamaForCausalLM, .*found .'Mam",
        ),
        ({"architectures": "absent"}, "architectures: expected one of .*found None"),
        ({"hidden_size": "absent"}, r"hidden_size: expected a number \(int\), found no such field"),
        ({"hidden_size": "8"}, r"hidden_size: expected a number \(int\), found '8'"),
        ({"hidden_act": "relu"}, "hidden_act: expected .*'silu'.*, found 'relu'"),
        ({"mlp_bias": True}, "mlp_bias: expected None or False, found True"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "expected rope_type default, linear or llama3"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor: expected a number .float., found no"),
        ({"layer_types": ["full_attention"]}, "layer_types: expected 2 of full_attention"),
    ],
)
def test_wrong_config_is_named(qwen2, changes, message):
    folder, _ = qwen2
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=f"config.json: .*{message}"):
        load_checkpoint(folder)


def test_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json: expected .* found no such file"):
        load_checkpoint(tmp_path)
    export_checkpoint(tmp_path, QWEN2, random_params(QWEN2), max_file_bytes=800)
    index = tmp_path / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    file = tmp_path / whole["weight_map"]["model.norm.weight"]

    index.write_text(json.dumps({"weight_map": {**whole["weight_map"], "other": file.name}}))
    with pytest.raises(ValueError, match=f"index.json: says that {file.name} holds other"):
        load_checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": 3}}))
    with pytest.raises(ValueError, match=r"index.json: expected 'weight_map'"):
        load_checkpoint(tmp_path)
    index.write_text("{")
    with pytest.raises(ValueError, match=r"index.json: expected JSON"):
        load_checkpoint(tmp_path)
    index.write_text(json.dumps(whole))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{file.name}: not a safetensors file"):
        load_checkpoint(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"{file.name}: expected a file that model.*index"):
        load_checkpoint(tmp_path)
    index.unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors: expected a checkpoint"):
        load_checkpoint(tmp_path)


def test_a_mesh_that_does_not_divide_is_an_error(qwen2):
    folder, _ = qwen2
    mesh = make_mesh(MeshConfig(tensor=8))
    with pytest.raises(
        ValueError, match=r"mesh .*'tensor': 8.* does not divide block_0/attention/key"
    ):
        load_checkpoint(folder, mesh=mesh)


def test_export_refuses_what_it_cannot_write(tmp_path, qwen2):
    folder, params = qwen2
    with pytest.raises(FileExistsError, match=r"expected no checkpoint, found model.safetensors"):
        export_checkpoint(folder, QWEN2, params)
    odd = dataclasses.replace(QWEN2, logit_softcap=3.0)
    with pytest.raises(
        ValueError, match=r"Qwen2ForCausalLM cannot express .*logit_softcap=3.0 \(it"
    ):
        export_checkpoint(tmp_path / "odd", odd, params)
    with pytest.raises(
        ValueError, match="LlamaForCausalLM cannot express this model: qkv_bias=True"
    ):
        export_checkpoint(tmp_path / "odd", QWEN2, params, architecture="LlamaForCausalLM")
    with pytest.raises(ValueError, match="architecture: expected one of LlamaForCausalLM, "):
        export_checkpoint(tmp_path / "odd", QWEN2, params, architecture="GPT2LMHeadModel")
    rest = {name: x for name, x in params.items() if name != "unembedding"}
    with pytest.raises(ValueError, match=r"params: unembedding: .*found no such parameter"):
        export_checkpoint(tmp_path / "odd", QWEN2, rest)
    assert not (tmp_path / "odd").exists()


def test_without_the_library_the_extra_is_named(qwen2, monkeypatch):
    folder, _ = qwen2
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install 'rewardjax\[hf\]'"):
        load_checkpoint(folder)
