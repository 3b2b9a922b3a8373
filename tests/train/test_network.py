"""A step from shapes alone: neither data nor weights nor a tokenizer is on disk."""

import dataclasses

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from camelid.data.packed_rows import DTYPES
from camelid.model.logprobs import next_token_loss
from camelid.model.sharding import BATCH, make_mesh
from camelid.settings.length import Length
from camelid.train.architecture import ModelSettings
from camelid.train.lengths import Lengths
from camelid.train.lora_settings import LoraSettings
from camelid.train.run import Run
from camelid.train.run_config import SupervisedConfig
from camelid.train.trainable import LisaSettings

TARGETS = [(r"layers/(attention|mlp)/.*", 4)]
CASES = {
    "everything": {},
    "average": {"ema_decay": 0.9},
    "layers": {"lisa": LisaSettings(1, Length(4, "steps"))},
    "adapters": {"lora": LoraSettings(TARGETS)},
    "adapters on nf4": {"lora": LoraSettings(TARGETS, quantize="nf4")},
}


def lowered(changes: dict, mesh: jax.sharding.Mesh):
    """A network of 8 devices, and its step lowered for a batch of 16 rows of 64 tokens."""
    model = ModelSettings(preset="nano-test", vocab_size=352)
    run = Run(SupervisedConfig(model=model, **changes), "nowhere", mesh)
    network = run.network(run.initial(run.model.init, None), Lengths(100, 10, 10), lisa=run.config.lisa)
    rows = NamedSharding(mesh, PartitionSpec(BATCH, None))
    batch = {name: jax.ShapeDtypeStruct((16, 64), dtype, sharding=rows) for name, dtype in DTYPES.items()}
    return network, network.lower(run.update(network, next_token_loss(run.model)), batch)


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_lowered_from_shapes_alone(case):
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    with jax.set_mesh(mesh):
        network, step = lowered(CASES[case], mesh)
    state, metrics = step.out_info
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), network.abstract_state
    )
    assert {"loss", "grad_norm", "tokens"} <= set(metrics)
    donated = [x.donated for x in jax.tree.leaves(step.args_info[0][2])]
    assert all(donated) and len(donated) == len(jax.tree.leaves(network.abstract_state))


def test_the_programs_of_a_step_are_compiled_with_the_runs_options():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    with jax.set_mesh(mesh):
        network, _ = lowered({"compiler_options": {"xla_cpu_enable_fast_math": "false"}}, mesh)
        assert network.compiler_options == {"xla_cpu_enable_fast_math": False}
        refused = dataclasses.replace(network, compiler_options={"xla_nonsense": True})
        with pytest.raises(jax.errors.JaxRuntimeError, match="xla_nonsense"):
            refused.lower(lambda state, batch: (state, {}), {}).compile()
        with pytest.raises(jax.errors.JaxRuntimeError, match="xla_nonsense"):
            refused.compile_read(lambda state, batch: batch + 1)({}, 1.0)


def test_adapters_keep_their_base_out_of_the_state():
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    with jax.set_mesh(mesh):
        whole, _ = lowered({}, mesh)
        adapted, step = lowered(CASES["adapters on nf4"], mesh)
    size = lambda network: sum(x.size for x in jax.tree.leaves(network.abstract_state["params"]))  # noqa: E731
    assert size(adapted) < size(whole) / 5
    base = jax.tree.leaves(step.args_info[0][0])
    assert {"uint8", "float32"} <= {str(x.dtype) for x in base} and not any(x.donated for x in base)
