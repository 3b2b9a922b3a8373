"""Bytes that compiled programs move in memory."""

import jax
import jax.numpy as jnp

from camelid.launch.plans import hlo
from camelid.launch.plans.memory_traffic import memory_bytes

PROGRAM = """HloModule m

%slice (s: f32[100,8], i: s32[]) -> f32[1,8] {
  %s = f32[100,8]{1,0:T(8,128)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  ROOT %one = f32[1,8]{1,0:T(8,128)} dynamic-slice(%s, %i, %i), dynamic_slice_sizes={1,8}
}

%update (t: f32[100,8], u: f32[1,8], j: s32[]) -> f32[100,8] {
  %t = f32[100,8]{1,0:T(8,128)} parameter(0)
  %u = f32[1,8]{1,0:T(8,128)} parameter(1)
  %j = s32[]{:T(128)} parameter(2)
  %inner = f32[1,8]{1,0:T(8,128)} fusion(%t, %j), kind=kLoop, calls=%slice
  %sum = f32[1,8]{1,0:T(8,128)} add(%inner, %u)
  ROOT %new = f32[100,8]{1,0:T(8,128)} dynamic-update-slice(%t, %sum, %j, %j)
}

%body (c: (s32[], f32[100,8])) -> (s32[], f32[100,8]) {
  %c = (s32[]{:T(128)}, f32[100,8]{1,0:T(8,128)}) parameter(0)
  %k = s32[]{:T(128)} get-tuple-element(%c), index=0
  %stack = f32[100,8]{1,0:T(8,128)} get-tuple-element(%c), index=1
  %row = f32[1,8]{1,0:T(8,128)} fusion(%stack, %k), kind=kLoop, calls=%slice
  %kept = f32[1,8]{1,0:T(8,128)S(1)} copy(%row)
  %next = f32[100,8]{1,0:T(8,128)} fusion(%stack, %kept, %k), kind=kLoop, calls=%update
  ROOT %r = (s32[]{:T(128)}, f32[100,8]{1,0:T(8,128)}) tuple(%k, %next)
}

ENTRY %main (p: (s32[], f32[100,8])) -> (s32[], f32[100,8]) {
  %p = (s32[]{:T(128)}, f32[100,8]{1,0:T(8,128)}) parameter(0)
  ROOT %w = (s32[], f32[100,8]) while(%p), condition=%x, body=%body, backend_config={"known_trip_count":{"n":"10"}}
}
"""
ROW, INDEX = 8 * 4, 4


def test_slices_read_what_they_return_and_updates_write_what_they_change():
    taken = ROW + INDEX + ROW  # a row of the stack, and its copy
    copied = ROW  # into vector memory, which does not count
    updated = ROW + INDEX + ROW  # the row that a nested fusion reads, and the row that is written
    assert memory_bytes(hlo.parse(PROGRAM)) == 10 * (taken + copied + updated)


def test_a_compiled_product_moves_its_operands_and_its_result():
    a, b = jax.ShapeDtypeStruct((64, 32), jnp.float32), jax.ShapeDtypeStruct((32, 16), jnp.float32)
    module = hlo.parse(jax.jit(lambda a, b: a @ b).lower(a, b).compile().as_text())
    assert memory_bytes(module) == 4 * (64 * 32 + 32 * 16 + 64 * 16)
