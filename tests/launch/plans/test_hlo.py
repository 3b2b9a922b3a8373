"""Compiled programs are read: loops, cycles, collectives with their mesh axes, and what they overlap with."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from camelid.launch.plans import hlo
from camelid.launch.plans.collectives import collectives_of, groups_of
from camelid.model.sharding import make_mesh

HEADER = """HloModule jit_step, is_scheduled=true, num_partitions=8

FileNames
1 "/home/me/camelid/model/llama.py"

FunctionNames
1 "Block.__call__"
2 "linear"

FileLocations
1 {file_name_id=1 function_name_id=1 line=10 end_line=10 column=1 end_column=2}
2 {file_name_id=1 function_name_id=2 line=20 end_line=20 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

"""

PAIRS = "source_target_pairs={{0,3},{1,0},{2,1},{3,2},{4,7},{5,4},{6,5},{7,6}}"
NAME = 'metadata={op_name="jit(step)/while/body/dot_general" stack_frame_id=2}'
CYCLES = r'backend_config={"window_config":{"estimated_cycles":"\1"}}'
PROGRAM = """%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%placed (own: bf16[8,4], zeros: bf16[64,4], at: s32[]) -> bf16[64,4] {
  %own = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  %zeros = bf16[64,4]{1,0:T(8,128)(2,1)} parameter(1)
  %at = s32[]{:T(128)} parameter(2)
  ROOT %dus = bf16[64,4]{1,0:T(8,128)(2,1)} dynamic-update-slice(%zeros, %own, %at, %at)
}

%body (carried: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %carried = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carried), index=0
  %x = bf16[8,4]{1,0:T(8,128)(2,1)} get-tuple-element(%carried), index=1
  %two = s32[]{:T(128)} constant(2)
  %zero = bf16[]{:T(256)} constant(0)
  %zeros.1 = bf16[64,4]{1,0:T(8,128)(2,1)} broadcast(%zero), dimensions={}
  %place = bf16[64,4]{1,0} fusion(%x, %zeros.1, %i), calls=%placed, cycles=100
  %all-reduce.1 = bf16[64,4]{1,0:T(8,128)(2,1)} all-reduce(%place), replica_groups=[2,4]<=[8], to_apply=%add
  %permute-start = (bf16[8,4]{1,0}, bf16[8,4]{1,0}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=2, PAIRS
  %kernel = bf16[8,4]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"size": 512
}}, metadata={op_name="jit(step)/splash"}
  %product = bf16[8,4] fusion(%all-reduce.1, %x), calls=%placed, NAME, cycles=1000
  %odd = bf16[8,4] fusion(%product), calls=%placed, cycles=-5
  %permute-done = bf16[8,4]{1,0:T(8,128)(2,1)} collective-permute-done(%permute-start)
  %next = s32[]{:T(128)} add(%i, %two)
  ROOT %out = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)(2,1)}) tuple(%next, %permute-done)
}

%condition (carried.1: (s32[], bf16[8,4])) -> pred[] {
  %carried.1 = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)(2,1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%carried.1), index=0
  %limit = s32[]{:T(128)} constant(11)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

%rare (y: bf16[8,4]) -> bf16[8,4] {
  ROOT %y = bf16[8,4]{1,0} parameter(0)
}

%common (z: bf16[8,4]) -> bf16[8,4] {
  %z = bf16[8,4]{1,0} parameter(0)
  ROOT %work = bf16[8,4]{1,0} fusion(%z), calls=%placed, cycles=70
}

ENTRY %main (p: bf16[8,4], q: pred[]) -> bf16[8,4] {
  %p = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  %q = pred[] parameter(1)
  %one = s32[]{:T(128)} constant(1)
  %first = s32[]{:T(128)} copy(%one)
  %init = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)(2,1)}) tuple(%first, %p)
  %loop = (s32[], bf16[8,4]) while(%init), condition=%condition, body=%body, metadata={op_name="jit(step)/while"}
  %result = bf16[8,4]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
  ROOT %choice = bf16[8,4]{1,0} conditional(%q, %result, %result), branch_computations={%rare, %common}
}
"""


@pytest.fixture(scope="module")
def module():
    text = PROGRAM.replace("PAIRS", PAIRS).replace("NAME", NAME)
    return hlo.parse(HEADER + re.sub(r"cycles=(-?\d+)", CYCLES, text))


def test_loops_turn_from_their_first_value_by_their_step_to_their_limit(module):
    (loop, branch) = hlo.schedule(module)
    assert (loop.turns, loop.known, loop.name) == (5, True, "jit(step)/while")
    assert branch.body == (hlo.Compute(70),)


def test_cycles_leave_out_negative_estimates_and_count_the_dearer_branch(module):
    assert hlo.total_cycles(hlo.schedule(module)) == 5 * (100 + 1000) + 70


def test_a_schedule_keeps_the_order_of_starts_and_ends(module):
    body = hlo.schedule(module, "body")
    kinds = [type(event).__name__ for event in body]
    assert kinds == ["Compute", "Transfer", "Start", "Kernel", "Compute", "Done"]
    assert body[2].key == body[5].key == "permute-start"


def test_collectives_are_counted_with_their_axes_and_what_they_serve(module):
    found = collectives_of(module, {"data": 2, "fsdp": 4}, hlo.schedule(module))
    gather, permute = (each.collective for each in found)
    assert [each.times for each in found] == [5, 5]
    assert (gather.kind, gather.axes, gather.group, gather.dtype) == ("all-reduce", ("fsdp",), 4, "bf16")
    assert gather.bytes == 64 * 4 * 2 and gather.moved == 2 * gather.bytes * 3 / 4
    assert gather.gathers and not gather.asynchronous
    assert gather.what == "jit(step)/while/body/dot_general"
    assert gather.source == "Block.__call__ (model/llama.py:10) > linear (model/llama.py:20)"
    assert (permute.axes, permute.group, permute.shift, permute.bytes) == (("fsdp",), 4, -1, 8 * 4 * 2)
    assert permute.asynchronous


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[8]", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ],
)
def test_groups_are_read_in_every_form(text, groups):
    one = hlo.Instruction("x", "f32[4]", "all-gather", ("y",), f", {text}, use_global_device_ids=true")
    assert groups_of(one, 8).tolist() == groups


def test_groups_in_an_unknown_form_are_an_error():
    one = hlo.Instruction("x", "f32[4]", "all-gather", ("y",), ", replica_groups=@cube")
    with pytest.raises(ValueError, match="@cube"):
        groups_of(one, 8)


def asynchronous(kind: str, shape: str) -> hlo.Module:
    """A program that starts a collective by the general operation, and awaits it."""
    return hlo.parse(f"""HloModule m

%wrapped (w: f32[64]) -> {shape} {{
  %w = f32[64]{{0}} parameter(0)
  ROOT %inner = {shape}{{0}} {kind}(%w), replica_groups=[1,8]<=[8], dimensions={{0}}, to_apply=%add
}}

ENTRY %main (p: f32[64]) -> {shape} {{
  %p = f32[64]{{0}} parameter(0)
  %start = ((f32[64]{{0}}), {shape}{{0}}, s32[]) async-start(%p), calls=%wrapped
  %update = ((f32[64]{{0}}), {shape}{{0}}, s32[]) async-update(%start)
  %busy = f32[64]{{0}} add(%p, %p), backend_config={{"estimated_cycles":"9"}}
  ROOT %done = {shape}{{0}} async-done(%update)
}}
""")


def test_a_collective_in_an_asynchronous_computation_is_found():
    module = asynchronous("reduce-scatter", "f32[8]")
    events = hlo.schedule(module)
    assert [type(event).__name__ for event in events] == ["Start", "Compute", "Done"]
    assert events[0].key == events[2].key
    (found,) = collectives_of(module, {"fsdp": 8}, events)
    assert found.collective.asynchronous and found.collective.bytes == 64 * 4 and found.collective.moved == 56 * 4


FUSED = """HloModule m

%begin (x: bf16[8]) -> (bf16[8], bf16[64], u32[]) {
  %x = bf16[8]{0} parameter(0)
  %all-gather.1 = bf16[64]{0} all-gather(%x), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}, NAME
  ROOT %sent = (bf16[8], bf16[64], u32[]) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (x.2: bf16[8], flag.2: u32[], y.2: bf16[4]) -> (bf16[4], bf16[64], u32[]) {
  %x.2 = bf16[8]{0} parameter(0)
  %flag.2 = u32[] parameter(1)
  %y.2 = bf16[4]{0} parameter(2)
  %all-gather.2 = bf16[64]{0} all-gather(%x.2), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
  %product = bf16[4]{0} multiply(%y.2, %y.2)
  ROOT %both = (bf16[4], bf16[64], u32[]) tuple(%product, %all-gather.2, %flag.2)
}

%end (x.3: bf16[8], flag.3: u32[]) -> bf16[64] {
  %x.3 = bf16[8]{0} parameter(0)
  %flag.3 = u32[] parameter(1)
  %all-gather.3 = bf16[64]{0} all-gather(%x.3), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %got = bf16[64]{0} custom-call(%x.3, %all-gather.3, %flag.3), custom_call_target="AsyncCollectiveDone"
}

%alone (x.4: bf16[8]) -> bf16[64] {
  %x.4 = bf16[8]{0} parameter(0)
  ROOT %all-gather.4 = bf16[64]{0} all-gather(%x.4), channel_id=8, replica_groups=[1,8]<=[8], dimensions={0}
}

ENTRY %main (p: bf16[8], y: bf16[4]) -> bf16[64] {
  %p = bf16[8]{0} parameter(0)
  %y = bf16[4]{0} parameter(1)
  %start = (bf16[8], bf16[64], u32[]) fusion(%p), kind=kCustom, calls=%begin
  %own = bf16[8]{0} get-tuple-element(%start), index=0
  %flag = u32[] get-tuple-element(%start), index=2
  %work = (bf16[4], bf16[64], u32[]) fusion(%own, %flag, %y), kind=kOutput, calls=%async_collective_fusion.1, CYCLES
  %after = u32[] get-tuple-element(%work), index=2
  %done = bf16[64]{0} fusion(%own, %after), kind=kCustom, calls=%end
  ROOT %waits = bf16[64]{0} fusion(%p), kind=kCustom, calls=%alone
}
"""


def test_fusions_that_start_carry_and_end_a_collective_are_one_asynchronous_collective():
    text = FUSED.replace("CYCLES", 'backend_config={"estimated_cycles":"70"}')
    module = hlo.parse(text.replace("NAME", 'metadata={op_name="product"}'))
    events = hlo.schedule(module)
    assert [type(event).__name__ for event in events] == ["Start", "Compute", "Done", "Transfer"]
    assert events[0].key == events[2].key == "start" and events[1].cycles == 70
    hidden, waited = (each.collective for each in collectives_of(module, {"fsdp": 8}, events))
    assert (hidden.kind, hidden.asynchronous, hidden.bytes, hidden.what) == ("all-gather", True, 128, "product")
    assert not waited.asynchronous


def test_an_all_reduce_of_which_a_fusion_keeps_a_part_is_a_reduce_scatter():
    module = hlo.parse("""HloModule m

%all-reduce-scatter (i: f32[64]) -> f32[8] {
  %i = f32[64]{0:T(128)} parameter(0)
  %whole = f32[64]{0:T(128)} all-reduce(%i), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %at = s32[] constant(0)
  ROOT %part = f32[8]{0:T(128)} dynamic-slice(%whole, %at), dynamic_slice_sizes={8}
}

ENTRY %main (p: f32[64]) -> f32[8] {
  %p = f32[64]{0:T(128)} parameter(0)
  ROOT %f = f32[8]{0:T(128)} fusion(%p), kind=kCustom, calls=%all-reduce-scatter, metadata={op_name="gradient"}
}
""")
    (found,) = (each.collective for each in collectives_of(module, {"fsdp": 8}, hlo.schedule(module)))
    assert (found.kind, found.bytes, found.moved, found.what) == ("reduce-scatter", 256, 224, "gradient")


def test_a_start_with_several_arrays_counts_its_results():
    line = (
        "  %s = ((f32[2]{0}, bf16[4]{0}), (f32[16]{0}, bf16[32]{0})) all-gather-start(%x, %y), "
        "replica_groups=[1,8]<=[8], dimensions={0}"
    )
    module = hlo.parse(f"HloModule m\n\nENTRY %main (x: f32[2], y: bf16[4]) -> f32[16] {{\n{line}\n}}\n")
    (found,) = collectives_of(module, {"fsdp": 8}, hlo.schedule(module))
    assert found.collective.bytes == 16 * 4 + 32 * 2 and found.collective.dtype == "f32,bf16"


def test_a_program_compiled_for_a_mesh_is_read_as_it_is_written():
    mesh = make_mesh({"data": 2, "fsdp": 4})

    def loss(weights_LDD, x_BD):
        out, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x_BD, weights_LDD)
        return jnp.sum(out**2)

    def placed(shape, *spec):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    weights, x = placed((5, 64, 64), None, "fsdp"), placed((16, 64), ("data", "fsdp"))
    compiled = jax.jit(jax.grad(loss), out_shardings=weights.sharding).lower(weights, x).compile()
    module = hlo.parse(compiled.as_text())
    found = collectives_of(module, mesh.shape, hlo.schedule(module))
    gathers = [each for each in found if each.collective.kind == "all-gather"]
    assert {each.collective.axes for each in gathers} == {("fsdp",)}
    assert all(each.times == 5 and each.collective.bytes == 64 * 64 * 4 for each in gathers)
    reduced = {axis for each in found for axis in each.collective.axes if each.collective.kind != "all-gather"}
    assert reduced == {"data", "fsdp"}
    assert np.all([each.collective.group in (2, 4, 8) for each in found])
