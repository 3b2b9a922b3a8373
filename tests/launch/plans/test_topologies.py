"""Names of topologies, and the devices to compile for that they give."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from camelid.errors import UserError
from camelid.launch.plans import topologies
from camelid.launch.plans.gpu_target import target_text
from camelid.launch.plans.topologies import environment_for, topology
from camelid.model.sharding import make_mesh
from camelid.train.chips import CHIPS

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="JAX's CUDA plugin is not installed"
)
COMPILE = """
import json, sys
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from camelid.launch.plans.topologies import topology
report = []
for name in sys.argv[1:]:
    found = topology(name)
    x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=SingleDeviceSharding(found.devices[0]))
    memory = jax.jit(lambda x: x @ x).lower(x).compile().memory_analysis()
    report.append([found.name, found.n_chips, found.n_devices, found.hosts, memory.output_size_in_bytes])
print(json.dumps(report))
"""


def compiled(*names: str) -> list[list]:
    """[name, chips, devices, hosts, bytes of a product of 256 x 256 numbers] of topologies, in a process of its own."""
    environment = os.environ | {"XLA_FLAGS": ""} | environment_for(names[0])
    command = [sys.executable, "-c", COMPILE, *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not done.stderr, "nothing but the command's own lines is written to a terminal"
    return json.loads(done.stdout)


@needs_libtpu
def test_programs_compile_for_tpus_that_are_not_here():
    size = 256 * 256 * 2
    names = "v5p:8x8x8", "v6e-256", "v4-32", "v5litepod-1", "tpu7x:2x2x1"
    assert compiled(*names) == [
        ["v5p:8x8x8", 512, 512, 128, size],
        ["v6e:16x16", 256, 256, 64, size],
        ["v4:2x2x4", 16, 16, 4, size],
        ["v5e:1x1", 1, 1, 1, size],
        ["tpu7x:2x2x1", 4, 8, 1, size],
    ]


@needs_cuda
def test_programs_compile_for_gpus_that_are_not_here():
    size = 256 * 256 * 2
    assert compiled("h100:2x8", "a100-80gb:8", "rtx4090:1") == [
        ["h100:2x8", 16, 16, 2, size],
        ["a100-80gb:1x8", 8, 8, 1, size],
        ["rtx4090:1x1", 1, 1, 1, size],
    ]


def test_simulated_devices_are_those_that_jax_started_with():
    found = topology("cpu:4")
    assert (found.n_chips, found.n_devices, found.hosts) == (4, 4, 1)
    with pytest.raises(UserError, match=r"8 CPU device\(s\): set XLA_FLAGS='.*device_count=16' before it starts"):
        topology("cpu:16")


def test_an_environment_is_told_before_jax_starts(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2 --xla_cpu_use_fusion_emitters=false")
    count = "--xla_force_host_platform_device_count=8"
    assert environment_for("cpu:8")["XLA_FLAGS"] == f"--xla_cpu_use_fusion_emitters=false {count}"
    assert environment_for("h100:8")["CUDA_VISIBLE_DEVICES"] == "-1"
    assert environment_for("v5p-512")["TPU_SKIP_MDS_QUERY"] == "1"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("h10:8", "did you mean h100:8?"),
        ("a100:8", "did you mean a100-40gb:8 or a100-80gb:8?"),
        ("h100-8", "did you mean h100:8?"),
        ("tpu7x-64", "did you mean tpu7x:64?"),
        ("gpu:8", "give local alone, or a chip and sizes, as in h100:64x8, of v4, "),
        ("local:8", "give local alone, or a chip and sizes"),
        ("h100", "give sizes of 1 or more after the chip, as in h100:8"),
        ("h100:16", "and 8 GPUs of a host, as in h100:2x8"),
        ("h100:2x4x8", "and 8 GPUs of a host, as in h100:8x8"),
        ("h100:99999999x8", "give at most 4,096 hosts and 8 GPUs of a host, as in h100:4096x8"),
        ("v5p:8xx8", "give sizes of 1 or more after the chip, as in v5p:16x16x24"),
        ("v5p:0x2x2", "give sizes of 1 or more after the chip"),
        ("v6p-64", "unknown accelerator type 'v6p': did you mean v6e-64?"),
        ("v5p-500", "no such slice; give one of v5p-8, v5p-16, "),
        ("cpu:2x4", "give the number of simulated devices, as in cpu:8"),
        ("cpu:100000", "each simulated device has threads of its own; give at most 512"),
    ],
)
def test_a_name_that_means_nothing_is_one_line_before_jax_starts(name, line):
    with pytest.raises(UserError) as error:
        environment_for(name)
    message = str(error.value)
    assert message.startswith(f"--topology={name}: ")
    assert line in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("v5p:16x16", "a slice of TPU v5p has 3 dimensions; shapes of about this size that work: v5p:4x4x4, "),
        ("v6e:32x32", "has at most 256 chips; shapes of about this size that work: v6e:4x8, v6e:8x8, "),
        pytest.param("v5p:3x3x3", "libtpu refuses this shape (", marks=needs_libtpu),
    ],
)
def test_a_slice_that_does_not_exist_names_slices_that_do(name, line):
    with pytest.raises(UserError) as error:
        topology(name)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "extra"), [("v5e:2x2", "plan"), ("h100:8", "plan-gpu")])
def test_a_missing_compiler_is_told_with_how_to_install_it(monkeypatch, name, extra):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"is not installed: pip install 'camelid\\[{extra}\\]'"):
        topology(name)


@pytest.mark.parametrize("kind", topologies.ACCELERATOR_TYPES)
def test_every_accelerator_type_has_the_chips_that_it_counts(kind):
    chip, cores = topologies.ACCELERATOR_TYPES[kind]
    for shape in topologies.SHAPES[chip]:
        count = cores * topologies.math.prod(shape)
        read = topologies._read(f"{kind}-{count}")
        assert (read.chip.name, read.shape) == (chip, shape)
        assert str(count // cores) in read.note


UNITS = {"v4": 8 * 128**2, "v5e": 4 * 128**2, "v5p": 8 * 128**2, "v6e": 4 * 256**2, "tpu7x": 8 * 256**2}
"""{TPU: multiply-adds of all its matrix units in a cycle}."""
TENSOR_CORES = {"a100-40gb": 256, "a100-80gb": 256, "h100": 512, "h200": 512, "l4": 128, "rtx3090": 64, "rtx4090": 64}
"""{GPU: multiply-adds of a tensor core in a cycle}, with four of them in a multiprocessor."""


@pytest.mark.parametrize(
    "chip", [chip for chip in CHIPS.values() if chip.platform != "cpu"], ids=lambda chip: chip.name
)
def test_figures_of_a_chip_agree_with_each_other(chip):
    in_cycle = UNITS[chip.name] if chip.platform == "tpu" else chip.gpu.count * 4 * TENSOR_CORES[chip.name]
    boost = 1.98 / 1.83 if chip.name in ("h100", "h200") else 1  # their tensor cores do not reach the boost clock
    assert 2 * in_cycle * chip.clock_hz / boost == pytest.approx(chip.flops_bf16, rel=0.01)
    assert (chip.hbm_usable or chip.hbm_bytes) / chip.hbm_bytes == pytest.approx(0.97, abs=0.05)
    assert chip.links * chip.link_bandwidth < chip.hbm_bandwidth
    assert chip.network_bandwidth is None or chip.network_bandwidth < chip.links * chip.link_bandwidth


def test_a_gpus_description_is_made_of_its_figures():
    text = target_text(CHIPS["rtx4090"])
    for line in ("core_count: 128", "l2_cache_size: 75497472", "clock_rate_ghz: 2.52", "major: 8 minor: 9"):
        assert line in text


@needs_libtpu
def test_a_mesh_axis_may_take_a_part_of_a_dimension_of_a_slice():
    mesh = make_mesh({"data": 2, "fsdp": 32}, topology("v5p:4x4x4").devices)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 32, "tensor": 1, "context": 1}
