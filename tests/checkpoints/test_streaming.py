"""Checkpoints that are never in memory together: how little of them is, and that Orbax takes them for its own."""

import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from etils import epath

from camelid.checkpoints import convert, reading, streaming
from camelid.checkpoints.interop import gguf_files, huggingface, peft_export, tensors
from camelid.errors import UserError
from camelid.model import llama, lora
from camelid.model.lora import Lora
from camelid.model.sharding import make_mesh, placed, shardings
from camelid.model.weights import without
from camelid.tests.checkpoints.interop import folders
from camelid.tests.checkpoints.interop.folders import TINY

MIB = 2**20
DEEP = TINY.replace(
    vocab_size=2000, dim=768, n_layers=14, n_heads=12, n_kv_heads=12, ffn_dim=2048, head_dim=64, param_dtype="bfloat16"
)
SMALL = DEEP.replace(n_layers=1, vocab_size=64)
TOTAL = DEEP.n_params * 2
LARGEST = DEEP.ffn_dim * DEEP.dim * 2
# Some tensors as they are read, decoded to float32, turned around and written; what allocators and TensorStore keep; to
# merge, adapters in two copies and the programs for it.
ALLOWED = 10 * LARGEST + 32 * MIB
ALLOWED_MERGING = ALLOWED + 40 * MIB

# What is in memory at most, mapped pages of files counted, is Linux's VmHWM. `getrusage` would do for a process that
# nobody started: it counts what the parent had in memory.
CONVERT = """
import sys
from camelid.checkpoints import convert

def mib(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))

to, small, source, output = sys.argv[1:]
getattr(convert, to)(small, output + ".small")  # what is imported and started once
before = mib("VmRSS:")
open("/proc/self/clear_refs", "w").write("5")  # the peak is from now on
getattr(convert, to)(source, output)
print(mib("VmHWM:") - before)
"""


def any_bits(config):
    """Parameters of any bits that are numbers, made faster than random numbers are."""
    random = np.random.default_rng(0)

    def draw(leaf):
        return (random.integers(0, 2**16, leaf.shape, np.uint16) & 0xBFFF).view(ml_dtypes.bfloat16)

    return jax.tree.map(draw, llama.build(config).abstract_params)


def write_gguf(path, config, params):
    values = (value for _, value in folders.in_order(config, params, tensors.GGUF))
    gguf_files.write_file(path, config, values, encoding="BF16", fields={}, name="deep")


def write_peft(path, config, params, base):
    """Adapters that change nothing yet."""
    spec = Lora(targets=(("layers/(attention|mlp)/.*", 4),))
    fresh = lora.adapt(spec, params, params, jax.random.key(0))
    peft_export.write_folder(
        path, spec, jax.tree.map(np.asarray, without(fresh, lora.base_of(spec, params))), config, base=str(base)
    )


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A network of 190 MiB: its parameters, and where it is in each format; and a small one, in each format."""
    root = tmp_path_factory.mktemp("deep")
    for name, config in {"small": SMALL, "deep": DEEP}.items():
        params = any_bits(config)
        folders.write_folder(root / f"{name}.huggingface", config, params)
        write_gguf(root / f"{name}.gguf", config, params)
        convert.to_camelid(root / f"{name}.huggingface", root / f"{name}.camelid")
        write_peft(root / f"{name}.peft", config, params, base=root / f"{name}.huggingface")
    return params, root


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(
    "source, to",
    [
        ("huggingface", "camelid"),
        ("gguf", "camelid"),
        ("camelid", "gguf"),
        ("camelid", "huggingface"),
        ("peft", "huggingface"),
    ],
)
def test_a_conversion_holds_a_few_tensors_and_not_the_model(source, to, deep, tmp_path):
    params, root = deep
    output = tmp_path / f"output.{to}"
    arguments = [f"to_{to}", str(root / f"small.{source}"), str(root / f"deep.{source}"), str(output)]
    ran = subprocess.run([sys.executable, "-c", CONVERT, *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    grown = float(ran.stdout.split()[-1]) * MIB
    allowed, part = (ALLOWED_MERGING, 0.55) if source == "peft" else (ALLOWED, 0.35)
    assert grown < allowed < part * TOTAL, f"{grown / MIB:.0f} MiB"
    if to == "camelid":
        assert_loads_by_orbax(output, params)
    if to == "huggingface":
        found = folders.load(huggingface.open_folder(output))
        if source != "peft":
            folders.assert_same_params(found, params)
            return
        for a, b in zip(*(jax.tree.leaves(tree) for tree in (found, params)), strict=True):  # x + 0 is not -0 any more
            assert np.abs(a.astype(np.float32) - b.astype(np.float32)).max() < 1e-37


def assert_loads_by_orbax(workdir, params):
    """On one device and on eight."""
    for mesh in (make_mesh({}, jax.devices()[:1]), make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        abstract = llama.build(DEEP).abstract_params
        asked = placed(abstract, shardings(abstract, mesh))
        found = reading.load_part(reading.find(workdir), asked, ["params"])
        folders.assert_same_params(found, params)
        assert {len(leaf.devices()) for leaf in jax.tree.leaves(found)} == {mesh.size}


def test_a_checkpoint_that_goes_while_it_is_read_is_told(tmp_path):
    with pytest.raises(UserError, match="was deleted while it was read, as a running training does: try again"):
        list(streaming.read_layers(epath.Path(tmp_path / "gone"), ["params", "layers"]))
