"""Published model sizes as configurations (from the models' own `config.json` files)."""

import dataclasses

from rewardjax.models.attention import RopeScaling
from rewardjax.models.flow import DiTConfig
from rewardjax.models.transformer import TransformerConfig

_LARGE = TransformerConfig(
    scan=True,
    remat="full",
    attention="fused",
    attention_chunk=512,
    logit_chunk=512,
    param_dtype="float32",
    dtype="bfloat16",
)

GEMMA2_2B = dataclasses.replace(
    _LARGE,
    vocab=256_000,
    layers=26,
    width=2304,
    heads=8,
    kv_heads=4,
    head_dim=256,
    mlp_width=9216,
    context=8192,
    gate="gelu",
    post_norm=True,
    unit_offset=True,
    attention_softcap=50.0,
    logit_softcap=30.0,
    embedding_scale=True,
    spans=("local", "global"),
    window=4096,
)

GEMMA3_1B = dataclasses.replace(
    GEMMA2_2B,
    vocab=262_144,
    width=1152,
    heads=4,
    kv_heads=1,
    mlp_width=6912,
    context=32_768,
    attention_softcap=None,
    logit_softcap=None,
    qk_norm=True,
    rope_base=1_000_000.0,
    local_rope_base=10_000.0,
    spans=("local", "local", "local", "local", "local", "global"),
    window=512,
)

GEMMA3_4B = dataclasses.replace(
    GEMMA3_1B,
    vocab=262_208,
    layers=34,
    width=2560,
    heads=8,
    kv_heads=4,
    mlp_width=10_240,
    context=131_072,
    rope_scaling=RopeScaling(8.0),
    window=1024,
)

LLAMA3_8B = dataclasses.replace(
    _LARGE,
    vocab=128_256,
    layers=32,
    width=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    mlp_width=14_336,
    context=8192,
    norm_epsilon=1e-5,
    rope_base=500_000.0,
    tied_embeddings=False,
)

LLAMA2_7B = dataclasses.replace(
    LLAMA3_8B, vocab=32_000, kv_heads=32, mlp_width=11_008, context=4096, rope_base=10_000.0
)

LLAMA3_70B = dataclasses.replace(LLAMA3_8B, layers=80, width=8192, heads=64, mlp_width=28_672)

LLAMA3_3B = dataclasses.replace(
    LLAMA3_8B,
    layers=28,
    width=3072,
    heads=24,
    mlp_width=8192,
    context=131_072,
    tied_embeddings=True,
    rope_scaling=RopeScaling(32.0, original_context=8192),
)

MISTRAL_7B = dataclasses.replace(
    LLAMA3_8B, vocab=32_000, context=32_768, rope_base=10_000.0, spans=("local",), window=4096
)

QWEN25_3B = dataclasses.replace(
    _LARGE,
    vocab=151_936,
    layers=36,
    width=2048,
    heads=16,
    kv_heads=2,
    head_dim=128,
    mlp_width=11_008,
    context=32_768,
    qkv_bias=True,
    rope_base=1_000_000.0,
)

QWEN25_0_5B = dataclasses.replace(
    QWEN25_3B, layers=24, width=896, heads=14, kv_heads=2, head_dim=64, mlp_width=4864
)

QWEN25_1_5B = dataclasses.replace(QWEN25_3B, layers=28, width=1536, heads=12, mlp_width=8960)

QWEN3_1_7B = dataclasses.replace(
    QWEN25_3B,
    layers=28,
    kv_heads=8,
    mlp_width=6144,
    context=40_960,
    qkv_bias=False,
    qk_norm=True,
)

QWEN25_7B = dataclasses.replace(
    QWEN25_3B,
    vocab=152_064,
    layers=28,
    width=3584,
    heads=28,
    kv_heads=4,
    mlp_width=18_944,
    tied_embeddings=False,
)

QWEN3_4B = dataclasses.replace(QWEN3_1_7B, layers=36, width=2560, heads=32, mlp_width=9728)

_PICTURES = DiTConfig(
    64, 64, remat=True, scan=True, attention="fused", dtype="bfloat16"
)  # latents of 512 x 512 pixels

# Depth and width of Stable Diffusion 3.5 medium's transformer, whose text stream is left out.
SD35_MEDIUM = dataclasses.replace(
    _PICTURES, channels=16, layers=24, width=1536, heads=24, mlp_width=6144
)

# Stable Diffusion 2.1 is a U-Net of 860 million parameters; this transformer has about as many.
SD21 = dataclasses.replace(_PICTURES, channels=4, layers=28, width=1280, heads=20, mlp_width=5120)
