"""Published decoders against the `transformers` library: tiny models with random parameters."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

WHY = "the parity tests need the extra 'parity' (transformers, torch)"
torch = pytest.importorskip("torch", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)
safetensors_numpy = pytest.importorskip("safetensors.numpy", reason=WHY)

from rewardjax.models.language_model import LanguageModel  # noqa: E402
from rewardjax.models.published import export_checkpoint, load_checkpoint  # noqa: E402
from rewardjax.models.published_configs import read_config  # noqa: E402

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
GEMMA3 = {
    "head_dim": 12,
    "query_pre_attn_scalar": 8,
    "rope_parameters": GEMMA3_ROPE,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
MODELS = {
    "llama2": ("LlamaConfig", {}),
    "llama3": (
        "LlamaConfig",
        {"head_dim": 16, "rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True},
    ),
    "mistral": ("MistralConfig", {"sliding_window": 4}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2_windows": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 12}),
    "gemma2": (
        "Gemma2Config",
        {
            "head_dim": 12,
            "query_pre_attn_scalar": 8,
            "sliding_window": 4,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": ("Gemma3TextConfig", GEMMA3),
}
# Left-padded, whole and right-padded rows; the first 5 columns are the prompt where it is cached.
VALID = np.array([[0] * 3 + [1] * 9, [1] * 12, [1] * 10 + [0] * 2])
TOKENS = np.random.default_rng(0).integers(0, 61, VALID.shape)
PROMPT = 5


@functools.cache
def published(name):
    """A model of the library; no parameter keeps its start, so that none can be mistaken."""
    kind, settings = MODELS[name]
    config = getattr(transformers, kind)(**SIZES, **settings)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(params=MODELS)
def checkpoint(request, tmp_path):
    """The library's model, and the folder of several files that it was saved in."""
    model = published(request.param)
    model.save_pretrained(tmp_path / "published", max_shard_size="20KB")
    assert (tmp_path / "published" / "model.safetensors.index.json").is_file()
    return model, tmp_path / "published"


def positions(valid):
    return np.maximum(np.cumsum(valid, axis=1) - 1, 0)


def theirs(model, tokens, valid, place, cache=None):
    with torch.no_grad():
        out = model(
            torch.tensor(tokens),
            attention_mask=torch.tensor(valid),
            position_ids=torch.tensor(place),
            past_key_values=cache,
            use_cache=cache is not None,
        )
    return out.logits.numpy()


@functools.partial(jax.jit, static_argnums=0)
def ours(model, params, tokens, valid, place, cache=None):
    hidden, cache = model.hidden(params, tokens, valid, place, cache)
    return model.unembed(params, hidden), cache


def test_prefill_of_padded_rows(checkpoint):
    reference, folder = checkpoint
    config, params = load_checkpoint(folder)
    expected = theirs(reference, TOKENS, VALID, positions(VALID))
    found, _ = ours(LanguageModel(config), params, TOKENS, VALID, positions(VALID))
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(np.asarray(found)[VALID == 1], expected[VALID == 1], atol=1e-4)


def test_cached_decoding_with_scanned_layers(checkpoint):
    reference, folder = checkpoint
    config, params = load_checkpoint(folder, scan=True)
    model, valid = LanguageModel(config), VALID[:2]
    tokens, place = TOKENS[:2], positions(valid)
    reference_cache = transformers.DynamicCache(config=reference.config)
    cache = model.init_cache(2, valid.shape[1])
    start = 0
    for end in range(PROMPT, valid.shape[1] + 1):
        new = slice(start, end)
        expected = theirs(reference, tokens[:, new], valid[:, :end], place[:, new], reference_cache)
        found, cache = ours(model, params, tokens[:, new], valid[:, new], place[:, new], cache)
        seen = valid[:, new] == 1
        np.testing.assert_allclose(np.asarray(found)[seen], expected[seen], atol=1e-4)
        start = end


def all_tensors(folder):
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= safetensors_numpy.load_file(file)
    return tensors


def test_round_trip_keeps_every_bit(checkpoint, tmp_path):
    reference, folder = checkpoint
    again = tmp_path / "again"
    config, params = load_checkpoint(folder, scan=True)
    export_checkpoint(again, config, params, max_file_bytes=20_000)
    assert read_config(again) == read_config(folder)
    before, after = all_tensors(folder), all_tensors(again)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        np.testing.assert_array_equal(tensor, after[name], err_msg=name)
    assert json.loads((again / "config.json").read_text())["architectures"] == [
        type(reference).__name__
    ]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(again, attn_implementation="eager")
    np.testing.assert_array_equal(
        theirs(loaded, TOKENS, VALID, positions(VALID)),
        theirs(reference, TOKENS, VALID, positions(VALID)),
    )


def test_language_model_inside_gemma_3_with_vision(tmp_path):
    text = {**SIZES, **GEMMA3}
    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=60
    )
    torch.manual_seed(1)
    reference = transformers.Gemma3ForConditionalGeneration._from_config(
        config, attn_implementation="eager"
    ).eval()
    reference.save_pretrained(tmp_path)
    read, params = load_checkpoint(tmp_path)
    tokens, valid = TOKENS[1:2] % 60, VALID[1:2]
    expected = theirs(reference, tokens, valid, positions(valid))
    found, _ = ours(LanguageModel(read), params, jnp.asarray(tokens), valid, positions(valid))
    np.testing.assert_allclose(found, expected, atol=1e-4)
