"""Attention by the platform's kernel, which keeps scores on the chip instead of in its memory.

On TPUs splash attention (Pallas; flash attention, arXiv:2205.14135, that skips blocks which the mask
hides), on NVIDIA GPUs cuDNN's flash attention. `rewardjax.models.attention.attend` is the reference
for both, and what runs elsewhere.
"""

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from rewardjax.models.attention import Visibility, attend
from rewardjax.partitioning import spec, time_shards

LANES = 128  # of a TPU's vector registers: what splash attention's blocks are multiples of
BLOCK = 512  # queries, and keys, of the largest block

QUERIES = ("batch", "heads", None, None)
KEYS = ("batch", "kv_heads", None, None)


def attend_fused(
    queries: Float[Array, "batch heads queries head_dim"],
    keys: Float[Array, "batch kv_heads keys head_dim"],
    values: Float[Array, "batch kv_heads keys head_dim"],
    visible: Visibility,
    *,
    scale: float,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Float[Array, "batch heads queries head_dim"]:
    """`attend` by the kernel of the platform that the program is lowered for.

    Where queries meet a cache, where no kernel takes the shapes and on other platforms it is `attend`.
    """
    plain = partial(attend, scale=scale, softcap=softcap, chunk=chunk)
    kernels = {}
    if visible.query_slots is None:
        if _divided(queries, QUERIES) and _divided(keys, KEYS):
            kernels["tpu"] = partial(attend_splash, scale=scale, softcap=softcap)
        # Tracing cuDNN's asks for its library.
        whole = time_shards(queries.shape[2]) == 1
        if jax.default_backend() == "gpu" and whole and cudnn_takes(queries, softcap):
            kernels["cuda"] = partial(attend_cudnn, scale=scale)
    if not kernels:
        return plain(queries, keys, values, visible)
    # Every branch returns what any of them keeps for the backward pass: this one keeps no scores.
    default = jax.checkpoint(plain)
    return jax.lax.platform_dependent(queries, keys, values, visible, default=default, **kernels)


def attend_splash(
    queries: Float[Array, "batch heads time head_dim"],
    keys: Float[Array, "batch kv_heads time head_dim"],
    values: Float[Array, "batch kv_heads time head_dim"],
    visible: Visibility,
    *,
    scale: float,
    softcap: float | None = None,
    interpret: bool = False,
) -> Float[Array, "batch heads time head_dim"]:
    """Self-attention of whole rows by splash attention, each device on its own rows and heads.

    On a mesh with `sequence` a device has one part of the queries, and the keys and values of all.

    Args:
      queries, keys, values: of the same tokens; on a mesh, their batch and heads are divided by it.
      visible: without `query_slots`.
      scale: factor on the scores.
      softcap: `softcap * tanh(score / softcap)` takes the scores' place.
      interpret: emulate the kernel, slowly, on any platform.
    """
    # Imported by the programs that have it: all others do without Pallas.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    mesh = jax.sharding.get_abstract_mesh()
    shards = mesh.shape.get("sequence", 1)
    heads, time = queries.shape[1:3]
    blocks = math.ceil(time / shards / BLOCK)  # of one shard's queries
    block = math.ceil(time / shards / blocks / LANES) * LANES
    length = shards * blocks * block

    def pad(x, axis):
        return jnp.pad(x, [(0, length - time if i == axis else 0) for i in range(x.ndim)])

    kernel = _splash(
        heads // mesh.shape.get("tensor", 1),
        length,
        block,
        shards,
        causal=visible.causal,
        window=visible.window,
        attn_logits_soft_cap=softcap,
        interpret=interpret,
    )

    def local(kernel, queries, keys, values, *segments):
        return jax.vmap(kernel)(queries, keys, values, splash.SegmentIds(*segments))

    if not mesh.empty:
        # The part of the mask that a shard's queries see is its part of the kernel.
        parts = kernel.manual_sharding_spec(NamedSharding(mesh, spec((None, "time"))))
        q, k, rows = spec(("batch", "heads", "time")), spec(KEYS), ("batch", "time")
        inputs = parts, q, k, k, spec(rows), spec(rows[:1])
        local = jax.shard_map(local, in_specs=inputs, out_specs=q, check_vma=False)
    segments = pad(visible.key_segments, 1)
    mixed = local(
        kernel, pad(queries * scale, 2), pad(keys, 2), pad(values, 2), segments, segments
    )[:, :, :time]
    # To the kernel padding is one more document.
    return jnp.where(visible.key_segments[:, None, :, None] != 0, mixed, 0)


def _splash(heads, length, block, shards, *, causal, window, **options):
    """The kernel for `shards` parts of a row's queries, each a multiple of `block`."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    square = (length, length)
    mask: splash.Mask = splash.CausalMask(square) if causal else splash.FullMask(square)
    if window is not None:
        mask = splash.LocalMask(square, (window - 1, 0 if causal else window - 1), offset=0)
    sizes = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(**dict.fromkeys(sizes, block)),
        head_shards=1,
        q_seq_shards=shards,
        **options,
    )


def cudnn_takes(queries: Float[Array, "..."], softcap: float | None) -> bool:
    """Whether cuDNN's flash attention has the precision, the head size and no softcap to compute."""
    half = queries.dtype in (jnp.bfloat16, jnp.float16)
    size = queries.shape[-1]
    return half and size <= 128 and size % 8 == 0 and queries.shape[2] % 2 == 0 and softcap is None


def attend_cudnn(
    queries: Float[Array, "batch heads time head_dim"],
    keys: Float[Array, "batch kv_heads time head_dim"],
    values: Float[Array, "batch kv_heads time head_dim"],
    visible: Visibility,
    *,
    scale: float,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "batch heads time head_dim"]:
    """Self-attention of whole rows by `jax.nn.dot_product_attention`.

    Scores stay on the chip; the mask, which all heads share, does not.

    Args:
      queries, keys, values: of the same tokens, such that `cudnn_takes` them.
      visible: without `query_slots`.
      scale: factor on the scores.
      implementation: `"xla"` for the same call without cuDNN.
    """
    q, k, v = (x.swapaxes(1, 2) for x in (queries, keys, values))
    mixed = jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=visible.dense()[:, None],
        scale=scale,
        is_causal=visible.causal,
        implementation=implementation,
    )
    return jnp.where(visible.query_segments[:, None, :, None] != 0, mixed.swapaxes(1, 2), 0)


def _divided(array: Array, names: tuple[str | None, ...]) -> bool:
    """Whether the ambient mesh divides an array with these logical axes into equal parts.

    Not inside a `jax.shard_map`, where some of its axes have been divided by already.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.manual_axes:
        return False
    for size, axes in zip(array.shape, spec(names) if not mesh.empty else ()):
        axes = (axes,) if isinstance(axes, str) else axes or ()
        if size % math.prod(mesh.shape[axis] for axis in axes):
            return False
    return True
