"""Compiles attention, or the gradient of a two-layer llama-7b, for eight TPU chips without a TPU; prints JSON.

Needs libtpu and a process of its own: `JAX_PLATFORMS=cpu python compile_for_tpu.py attention`, or `model`, which takes
a minute. The implementation of attention is "auto": the devices to compile for decide.
"""

import json
import sys
import time

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from camelid.launch.plans.topologies import topology
from camelid.model import llama, sharding
from camelid.model.attention import attention
from camelid.model.config import LlamaConfig

ROWS, LENGTH = 8, 2048
BATCH = PartitionSpec(sharding.BATCH, "context")
HEADS = PartitionSpec(sharding.BATCH, "context", "tensor", None)


def compiled(mesh, function, *args, out_shardings=None) -> dict:
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = jax.jit(function, out_shardings=out_shardings).lower(*args)
        executable = lowered.compile()
    memory = executable.memory_analysis()
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "kernels": lowered.as_text().count("@tpu_custom_call"),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
    }


def attention_gradient(mesh, n_heads: int, n_kv_heads: int, head_dim: int) -> dict:
    def loss(q, k, v, segments):
        return jnp.sum(attention(q, k, v, segments).astype(jnp.float32) ** 2)

    def heads(n):
        return jax.ShapeDtypeStruct((ROWS, LENGTH, n, head_dim), jnp.bfloat16, sharding=NamedSharding(mesh, HEADS))

    segments = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32, sharding=NamedSharding(mesh, BATCH))
    args = heads(n_heads), heads(n_kv_heads), heads(n_kv_heads), segments
    return compiled(mesh, jax.value_and_grad(loss, (0, 1, 2)), *args)


def model_gradient(mesh) -> dict:
    config = LlamaConfig.preset("llama-7b", n_layers=2, dtype="bfloat16", remat="full")
    model = llama.build(config)
    specs = sharding.shardings(model.abstract_params, mesh)
    params = sharding.placed(model.abstract_params, specs)
    tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32, sharding=NamedSharding(mesh, BATCH))

    def loss(params, tokens, segments, positions):
        return jnp.mean(jax.nn.logsumexp(model.apply(params, tokens, segments, positions), axis=-1))

    report = compiled(mesh, jax.grad(loss), params, tokens, tokens, tokens, out_shardings=specs)
    return report | {"params": config.n_params}


def main(part: str):
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2, "context": 2}, topology("v5p:2x2x2").devices)
    if part == "attention":
        report = [attention_gradient(mesh, 8, 4, 128), attention_gradient(mesh, 8, 8, 64)]
    else:
        report = model_gradient(mesh)
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
