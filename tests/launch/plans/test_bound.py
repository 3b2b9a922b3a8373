"""Times of collectives by their links, and bounds of a step."""

from types import SimpleNamespace

import numpy as np
import pytest

from camelid.launch.plans import bound, hlo
from camelid.launch.plans.collectives import Collective, Counted
from camelid.launch.plans.links import Links
from camelid.train.chips import CHIPS

V5P, H100 = CHIPS["v5p"], CHIPS["h100"]
LINK = V5P.link_bandwidth


def slice_of(shape, chip=V5P, **axes) -> Links:
    """A TPU slice whose devices stand in the order of their coordinates, as a mesh of `axes`."""
    devices = np.empty(int(np.prod(shape)), object)
    for i, coords in enumerate(np.ndindex(*shape)):
        devices[i] = SimpleNamespace(coords=coords, process_index=i // 4, slice_index=0)
    return Links(chip, mesh_of(devices, axes))


def hosts_of(n: int, per_host: int, **axes) -> Links:
    devices = np.empty(n * per_host, object)
    for i in range(n * per_host):
        devices[i] = SimpleNamespace(process_index=i // per_host)
    return Links(H100, mesh_of(devices, axes))


def mesh_of(devices, axes):
    return SimpleNamespace(
        devices=devices.reshape(tuple(axes.values())), axis_names=tuple(axes), shape=axes, size=devices.size
    )


def one(kind="all-gather", axes=("fsdp",), group=8, size=8e9, shift=None) -> Collective:
    return Collective(kind, axes, group, "bf16", int(size), False, "", "", shift=shift)


def test_an_axis_has_the_links_of_the_dimensions_of_the_torus_that_it_takes():
    whole = slice_of((8, 8, 8), fsdp=512)
    assert whole.bandwidth(("fsdp",)) == 6 * LINK
    split = slice_of((8, 8, 8), data=8, fsdp=64)
    assert split.bandwidth(("data",)) == 2 * LINK
    assert split.bandwidth(("fsdp",)) == 4 * LINK
    assert split.bandwidth(("data", "fsdp")) == 6 * LINK


def test_a_dimension_whose_ends_are_not_joined_gives_one_link():
    assert slice_of((2, 2, 2), fsdp=8).bandwidth(("fsdp",)) == 3 * LINK
    part = slice_of((8, 8, 8), fsdp=128, tensor=4)
    assert part.bandwidth(("tensor",)) == LINK  # half of a row
    plane = slice_of((8, 8, 1), CHIPS["v5e"], fsdp=64)
    assert plane.bandwidth(("fsdp",)) == 2 * CHIPS["v5e"].link_bandwidth


def test_gpus_share_their_hosts_links_and_each_has_its_adapter():
    links = hosts_of(4, 8, data=4, fsdp=8)
    assert links.bandwidth(("fsdp",)) == 18 * 25e9
    assert links.bandwidth(("data",)) == 50e9
    assert links.bandwidth(("data", "fsdp")) == 8 * 50e9
    assert links.neighbour(("data",)) == 50e9


def test_collectives_take_the_time_of_a_ring():
    links = slice_of((8, 1, 1), fsdp=8)
    once = 8e9 * 7 / 8 / (2 * LINK)
    assert links.seconds(one()) == pytest.approx(once)
    assert links.seconds(one("reduce-scatter")) == pytest.approx(once)
    assert links.seconds(one("all-reduce")) == pytest.approx(2 * once)
    assert links.seconds(one("all-to-all")) == pytest.approx(8e9 * 8 / (4 * 2 * LINK))
    assert links.seconds(one("collective-permute", shift=1)) == pytest.approx(8e9 / LINK)
    assert links.seconds(one(axes=(), group=1)) == 0


def test_a_bandwidth_that_no_datasheet_gives_is_none():
    links = slice_of((4, 1, 1), CHIPS["cpu"], fsdp=4)
    assert links.seconds(one(group=4)) is None
    assert bound.roofline(links, 1e12, 1e9, [Counted(one(group=4), 1)]).times == {}


def test_a_roofline_is_its_longest_time():
    links = slice_of((8, 1, 1), fsdp=8)
    found = bound.roofline(links, 8 * 459e12, 2765e9 / 2, [Counted(one(), 2)])
    assert (found.compute, found.memory) == (1.0, 0.5)
    assert found.network == pytest.approx(2 * 8e9 * 7 / 8 / (2 * LINK))
    assert (found.seconds, found.limit) == (1.0, "matrix units")


PERMUTE = "source_target_pairs={{0,1},{1,2},{2,3},{3,4},{4,5},{5,6},{6,7},{7,0}}"
SIZE = 50_000_000  # elements of bfloat16: 1 ms on one link of 100 GB/s


def program(*between: str) -> hlo.Module:
    """A loop of 3 turns whose body has the lines `between`, on an array that takes a link 1 ms."""
    lines = "\n".join(f"  {line}" for line in between)
    return hlo.parse(f"""HloModule m

%body (c: (s32[], bf16[{SIZE}])) -> (s32[], bf16[{SIZE}]) {{
  %c = (s32[], bf16[{SIZE}]) parameter(0)
  %x = bf16[{SIZE}]{{0}} get-tuple-element(%c), index=1
{lines}
  ROOT %t = (s32[], bf16[{SIZE}]) tuple(%i, %x)
}}

ENTRY %main (p: bf16[{SIZE}]) -> bf16[{SIZE}] {{
  %p = bf16[{SIZE}]{{0}} parameter(0)
  %l = (s32[], bf16[{SIZE}]) while(%p), condition=%x, body=%body, backend_config={{"known_trip_count":{{"n":"3"}}}}
}}
""")


def start(name: str) -> str:
    return f"%{name} = (bf16[{SIZE}], bf16[{SIZE}], u32[], u32[]) collective-permute-start(%x), {PERMUTE}"


def done(name: str) -> str:
    return f"%{name}.d = bf16[{SIZE}] collective-permute-done(%{name})"


def work(milliseconds: float) -> str:
    cycles = round(milliseconds * 1e-3 * V5P.clock_hz)
    return f'%w = bf16[4] fusion(%x), kind=kLoop, calls=%f, backend_config={{"estimated_cycles":"{cycles}"}}'


KERNEL = '%k = bf16[4] custom-call(%x), custom_call_target="tpu_custom_call"'


@pytest.mark.parametrize(
    ("lines", "exposed"),
    [
        ((start("a"), work(0.4), done("a")), 0.6),
        ((start("a"), work(2), done("a")), 0),
        ((work(0.4), start("a"), done("a")), 1),
        ((start("a"), start("b"), work(0.5), done("a"), done("b")), 1.5),  # one link after the other
        ((start("a"), KERNEL, work(0.1), done("a")), 0.7),
    ],
)
def test_what_computation_does_not_hide_is_exposed_in_every_turn(lines, exposed):
    links, module = slice_of((8, 1, 1), fsdp=8), program(*lines)
    kernel_flops = 3 * 0.2e-3 * 8 * V5P.flops_bf16 * (KERNEL in lines)
    found = bound.modelled(links, module, hlo.schedule(module), kernel_flops)
    assert sum(found.exposed.values()) == pytest.approx(3 * exposed * 1e-3)
    assert found.kernels == pytest.approx(3 * 0.2e-3 * (KERNEL in lines))
    assert found.seconds == pytest.approx(found.compute + found.kernels + 3 * exposed * 1e-3)


def test_synchronous_collectives_are_exposed_and_can_be_the_limit():
    line = f"%g = bf16[{8 * SIZE}] all-reduce(%x), replica_groups=[1,8]<=[8], to_apply=%f"
    links, module = slice_of((8, 1, 1), fsdp=8), program(line, work(1))
    found = bound.modelled(links, module, hlo.schedule(module), 0)
    assert found.exposed == {("fsdp",): pytest.approx(3 * 2 * 0.8e9 * 7 / 8 / (2 * LINK))}
    assert found.limit == "collectives along fsdp"


def test_without_cycles_there_is_no_modelled_bound():
    links, module = hosts_of(1, 8, fsdp=8), program(start("a"), done("a"))
    assert bound.modelled(links, module, hlo.schedule(module), 0) is None


def test_mfu_is_model_flops_over_what_devices_could_compute():
    assert bound.mfu(V5P, 8, 459e12 * 4, 1.0) == 0.5
    assert bound.mfu(CHIPS["tpu7x"], 2, CHIPS["tpu7x"].flops_bf16, 2.0) == 0.5  # two devices of a chip
    assert bound.mfu(V5P, 8, 1.0, None) is None
