"""Counts the device memory of a training step, by what is trained and how, without the device.

    pip install -e '.[plan]'
    TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu python benchmarks/memory.py --preset=llama-7b --rows=1 --length=2048

Compiles the update of `camelid train`, with bfloat16 computation and splash attention, for one TPU v5p (95 GiB). Prints
a table in Markdown with the memory that XLA counts: what stays between steps (parameters and optimiser state), what a
step needs besides, and their sum. For a program that does not fit, the sum is the one in the compiler's error.
"""

import argparse
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from camelid.data.packed_rows import DTYPES
from camelid.model.logprobs import next_token_loss
from camelid.model.sharding import make_mesh
from camelid.settings.length import Length
from camelid.train.architecture import ModelSettings
from camelid.train.lengths import Lengths
from camelid.train.lora_settings import LoraSettings
from camelid.train.network import Network
from camelid.train.optimizer import OptimSettings
from camelid.train.run import Run
from camelid.train.run_config import SupervisedConfig
from camelid.train.trainable import LisaSettings, Rules

NORMS: Rules = [(r".*norm/scale", False), (r".*", True)]
NOT_EMBEDDING: Rules = [(r"embed/.*", True), (r".*", False)]
GIB = 2**30


class Case(NamedTuple):
    """A row of the table: settings of a config."""

    name: str
    """What is trained, in words."""
    optimizer: str = "adamw"
    remat: str = "full"
    frozen: Rules | None = None
    layers: int | list[int] | None = None
    """`config.lisa.layers`."""
    period: int | None = None
    """`config.lisa.period_steps`."""
    rank: int = 0
    """The rank of adapters on every matrix; 0 for none."""
    quantize: str | None = None
    """How the base of adapters is quantised."""
    stored: str = "float32"
    """The dtype of the parameters."""
    offload: bool = False
    """Whether the optimiser state stays in the host's memory."""


CASES = (
    Case("everything", remat="none"),
    Case("everything"),
    Case("everything", offload=True),
    Case("everything", "adamw8bit"),
    Case("everything", "adafactor"),
    Case("everything", "adafactor", stored="bfloat16"),
    Case("everything", stored="bfloat16", offload=True),
    Case("LISA, 2 layers", layers=2, period=20),
    Case("LISA, 2 layers", layers=2, period=20, stored="bfloat16"),
    Case("last 2 layers, embedding frozen", frozen=NOT_EMBEDDING, layers=[-2, -1], stored="bfloat16"),
    Case("norms", frozen=NORMS, stored="bfloat16"),
    Case("LoRA, rank 16", remat="none", rank=16, stored="bfloat16"),
    Case("LoRA, rank 16", remat="dots", rank=16, stored="bfloat16"),
    Case("LoRA, rank 16", remat="attention", rank=16, stored="bfloat16"),
    Case("LoRA, rank 16", rank=16, stored="bfloat16"),
    Case("LoRA, rank 16", remat="offload", rank=16, stored="bfloat16"),
    Case("QLoRA, rank 16, int8", rank=16, quantize="int8", stored="bfloat16"),
    Case("QLoRA, rank 16, nf4", rank=16, quantize="nf4", stored="bfloat16"),
)


def lowered(case: Case, preset: str, rows: int, length: int, mesh: jax.sharding.Mesh) -> tuple[Network, Any]:
    """Lowers the training step of a case from shapes alone.

    Args:
      case: the settings.
      preset: name of the network's preset.
      rows: rows of a batch.
      length: tokens of a row.
      mesh: the device.

    Returns:
      The network, and its lowered step.
    """
    architecture = dict(preset=preset, dtype="bfloat16", param_dtype=case.stored, attention="splash", remat=case.remat)
    optim = OptimSettings(name=case.optimizer, weight_decay=0.0, frozen=case.frozen, offload=case.offload)
    targets = [(r"layers/(attention|mlp)/.*", case.rank)] if case.rank else None
    lora = LoraSettings(targets=targets, quantize=case.quantize)
    lisa = LisaSettings(case.layers, case.period and Length(case.period, "steps"))
    config = SupervisedConfig(model=ModelSettings(**architecture), optim=optim, lora=lora, lisa=lisa)
    run = Run(config, ".", mesh)
    network = run.network(run.initial(run.model.init, None), Lengths(1000, 1, 1), lisa=lisa)
    update = run.update(network, next_token_loss(run.model))
    where = NamedSharding(mesh, PartitionSpec())
    batch = {name: jax.ShapeDtypeStruct((rows, length), dtype, sharding=where) for name, dtype in DTYPES.items()}
    return network, network.lower(update, batch)


def count(case: Case, preset: str, rows: int, length: int, mesh: jax.sharding.Mesh) -> list[str]:
    """The memory columns of a case's row, in GiB; the arguments are those of `lowered`."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        network, step = lowered(case, preset, rows, length, mesh)
    stored = jax.tree.leaves((network.initial.base_shapes, network.abstract_state))
    here, there = ([x for x in stored if _on_host(x) == host] for host in (False, True))
    stays, host = (sum(x.size * x.dtype.itemsize for x in leaves) / GIB for leaves in (here, there))
    remark = ""
    try:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            memory = step.compile().memory_analysis()
        needed = (memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes) / GIB
        host += memory.host_temp_size_in_bytes / GIB
    except jax.errors.JaxRuntimeError as error:
        needed, remark = _refused(str(error)) - stays, " (too much)"
    return [f"{stays:.1f}", f"{needed:.1f}", f"{stays + needed:.1f}{remark}", f"{host:.1f}" if host else ""]


def _on_host(x: jax.ShapeDtypeStruct) -> bool:
    return getattr(x.sharding, "memory_kind", None) == "pinned_host"


def _refused(message: str) -> float:
    """The memory in GiB that a step needs, from the compiler's error for a program that does not fit."""
    found = re.search(r"(?:temporaries \(|Used )([\d.]+)G", message)
    if not found:
        raise RuntimeError(message)
    return float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="llama-7b", help="preset of the network (default: llama-7b)")
    parser.add_argument("--rows", type=int, default=1, help="rows of a batch (default: 1)")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row (default: 2048)")
    parser.add_argument(
        "--only", default="", help="compute only rows of the table that contain this text (default: all)"
    )
    args = parser.parse_args()
    device = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1").devices[0]
    mesh = make_mesh({}, [device])
    print("| what learns | optimiser | parameters | `remat` | stays | step | peak, GiB | on the host |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for case in CASES:
        optimizer = case.optimizer + (", on the host" if case.offload else "")
        row = [case.name, optimizer, case.quantize or case.stored, case.remat]
        if args.only in ", ".join(row):
            print(f"| {' | '.join([*row, *count(case, args.preset, args.rows, args.length, mesh)])} |", flush=True)


if __name__ == "__main__":
    main()
