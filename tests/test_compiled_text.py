"""What a program does, counted by hand: its matrix products, HBM traffic and collectives."""

import jax
import jax.numpy as jnp
import pytest

from rewardjax.compilation.flops import matmul_flops
from rewardjax.compilation.hlo import size_of, traffic

MODULE = """\
HloModule jit_run

%fused (param_0: f32[6,8], param_1: s32[]) -> f32[8] {
  %param_0 = f32[6,8]{1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,8]{1,0} dynamic-slice(%param_0, %param_1, %zero), dynamic_slice_sizes={1,8}
  ROOT %flat = f32[8]{0} bitcast(%slice)
}

%body (state: (s32[], f32[6,8], f32[8])) -> (s32[], f32[6,8], f32[8]) {
  %state = (s32[], f32[6,8]{1,0}, f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %rows = f32[6,8]{1,0} get-tuple-element(%state), index=1
  %row = f32[8]{0:T(128)S(1)} fusion(%rows, %i), kind=kLoop, calls=%fused
  %near = f32[16]{0} all-gather(%row), replica_groups={{0,1}}, dimensions={0}
  ROOT %next = (s32[], f32[6,8]{1,0}, f32[8]{0}) tuple(%i, %rows, %row)
}

%condition (state.1: (s32[], f32[6,8], f32[8])) -> pred[] {
  %state.1 = (s32[], f32[6,8]{1,0}, f32[8]{0}) parameter(0)
  %limit = s32[] constant(6)
  %j = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (a: f32[6,8], start: (s32[], f32[6,8], f32[8])) -> f32[6,8] {
  %a = f32[6,8]{1,0} parameter(0)
  %start = (s32[], f32[6,8]{1,0}, f32[8]{0}) parameter(1)
  %loop = (s32[], f32[6,8]{1,0}, f32[8]{0}) while(%start), condition=%condition, body=%body
  ROOT %twice = f32[6,8]{1,0} add(%a, %a), metadata={op_name="x"}
}
"""

CARRIED = """\
HloModule jit_run

%start (own: bf16[2,8]) -> (bf16[2,8], bf16[8,8]) {
  %own = bf16[2,8] parameter(0)
  %all = bf16[8,8] all-gather(%own), channel_id=7
  ROOT %begun = (bf16[2,8], bf16[8,8]) custom-call(%all), custom_call_target="AsyncCollectiveStart"
}

%part (own: bf16[2,8], other: bf16[8,8], x: f32[4]) -> (f32[4], bf16[2,8], bf16[8,8], bf16[8,8]) {
  %own = bf16[2,8] parameter(0)
  %other = bf16[8,8] parameter(1)
  %x = f32[4] parameter(2)
  %y = f32[4] negate(%x)
  %all = bf16[8,8] all-gather(%own), channel_id=7
  ROOT %out = (f32[4], bf16[2,8], bf16[8,8], bf16[8,8]) tuple(%y, %own, %other, %all)
}

%end (own: bf16[2,8], other: bf16[8,8]) -> bf16[8,8] {
  %own = bf16[2,8] parameter(0)
  %other = bf16[8,8] parameter(1)
  %all = bf16[8,8] all-gather(%own), channel_id=7
  ROOT %done = bf16[8,8] custom-call(%other, %all), custom_call_target="AsyncCollectiveDone"
}

%body (state: (s32[], bf16[2,8], bf16[8,8], f32[4])) -> (s32[], bf16[2,8], bf16[8,8], f32[4]) {
  %state = (s32[], bf16[2,8], bf16[8,8], f32[4]) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %a = bf16[2,8] get-tuple-element(%state), index=1
  %b = bf16[8,8] get-tuple-element(%state), index=2
  %z = f32[4] get-tuple-element(%state), index=3
  %piece = (f32[4], bf16[2,8], bf16[8,8], bf16[8,8]) fusion(%a, %b, %z), calls=%part
  %w = f32[4] get-tuple-element(%piece), index=0
  ROOT %next = (s32[], bf16[2,8], bf16[8,8], f32[4]) tuple(%i, %a, %b, %w)
}

%condition (state.1: (s32[], bf16[2,8], bf16[8,8], f32[4])) -> pred[] {
  %state.1 = (s32[], bf16[2,8], bf16[8,8], f32[4]) parameter(0)
  %limit = s32[] constant(6)
  %j = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (shard: bf16[2,8], x.1: f32[4]) -> bf16[8,8] {
  %shard = bf16[2,8] parameter(0)
  %x.1 = f32[4] parameter(1)
  %zero = s32[] constant(0)
  %started = (bf16[2,8], bf16[8,8]) fusion(%shard), calls=%start
  %a = bf16[2,8] get-tuple-element(%started), index=0
  %b = bf16[8,8] get-tuple-element(%started), index=1
  %first = (s32[], bf16[2,8], bf16[8,8], f32[4]) tuple(%zero, %a, %b, %x.1)
  %loop = (s32[], bf16[2,8], bf16[8,8], f32[4]) while(%first), condition=%condition, body=%body
  %c = bf16[2,8] get-tuple-element(%loop), index=1
  %d = bf16[8,8] get-tuple-element(%loop), index=2
  ROOT %gathered = bf16[8,8] fusion(%c, %d), calls=%end
}
"""


def test_matrix_products_are_counted_as_often_as_they_run():
    def run(a, b):
        def step(carry, _):
            return jax.checkpoint(jnp.tanh)(carry @ b), None

        looped = jax.lax.scan(step, a, length=5)[0]
        return jax.lax.cond(jnp.sum(a) > 0, lambda x: x @ b @ b, lambda x: x @ b, looped)

    a, b = jnp.ones((3, 4)), jnp.ones((4, 4))
    assert matmul_flops(run, a, b) == (5 + 2) * 2 * 3 * 4 * 4
    assert matmul_flops(jax.grad(lambda b: jnp.sum(a @ b)), b) == 2 * 2 * 3 * 4 * 4


def test_traffic_by_hand():
    assert size_of("(bf16[2,3]{1,0}, pred[5]{0:S(1)}, s32[])") == 12 + 4
    moved = traffic(MODULE)
    # In each of six turns a row of 32 bytes is read into faster memory, together with the loop's
    # counter, and 64 bytes are written by the gather; at the end 192 bytes twice in and once out.
    assert moved.memory == 6 * (32 + 4 + 64) + 3 * 192
    assert moved.collectives == {"all-gather": 6 * 64}
    with pytest.raises(ValueError, match="expected an ENTRY computation"):
        traffic("HloModule empty")


def test_a_collective_that_several_fusions_carry_counts_once():
    """It starts before a loop of six turns, each does a part of it, and it ends behind the loop."""
    moved = traffic(CARRIED)
    shard, whole = 2 * 8 * 2, 8 * 8 * 2
    assert moved.collectives == {"all-gather": whole}
    # Read the shard; write it and the whole; and in each turn four numbers in and out.
    assert moved.memory == shard + (shard + whole) + 6 * (4 * 4 + 4 * 4)
