"""Every implementation of attention against a float64 loop in numpy, gradients included."""

import contextlib
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from camelid.model import attention as implementations
from camelid.model import xla_cpu
from camelid.model.attention import attention, splash
from camelid.model.sharding import AXES, make_mesh

interpreted_splash = functools.partial(splash, interpret=True)
xla = functools.partial(attention, implementation="xla")


def reference(q_BTHE, k_BTKE, v_BTKE, segments_BT, d_out_BTHE, window=None, scale=None):
    """out, dq, dk, dv in float64, one query at a time, from the formulas of softmax attention."""
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q_BTHE, k_BTKE, v_BTKE, d_out_BTHE))
    out, dq, dk, dv = np.zeros_like(q), np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    B, T, H, E = q.shape
    group, scale, window = H // k.shape[2], scale or 1 / np.sqrt(E), window or T
    for b, t, h in np.ndindex(B, T, H):
        sees = [s for s in range(t + 1) if segments_BT[b, s] == segments_BT[b, t] and t - s < window]
        keys, values = k[b, sees, h // group], v[b, sees, h // group]
        score = scale * (keys @ q[b, t, h])
        p = np.exp(score - score.max())
        p /= p.sum()
        out[b, t, h] = p @ values
        dp = values @ d_out[b, t, h]
        d_score = scale * p * (dp - p @ dp)
        dq[b, t, h] = d_score @ keys
        dk[b, sees, h // group] += np.outer(d_score, q[b, t, h])
        dv[b, sees, h // group] += np.outer(p, d_out[b, t, h])
    return out, dq, dk, dv


def packed(B: int, T: int) -> np.ndarray:
    """Segment ids of packed rows: a few segments of uneven length, then padding (0)."""
    cuts = [np.array([0.3 + 0.1 * b, 0.8, 0.95]) * T for b in range(B)]
    ids = np.array([1 + np.searchsorted(cut, np.arange(T), side="right") for cut in cuts])
    return np.where(ids == 4, 0, ids).astype(np.int32)


def inputs(B: int, T: int, H: int, K: int, E: int, dtype=jnp.float32):
    random = np.random.RandomState(0)
    q, k, v, d_out = (jnp.asarray(random.standard_normal((B, T, n, E)), dtype) for n in (H, K, K, H))
    return q, k, v, packed(B, T), d_out


def compare(implementation, shape, *, dtype=jnp.float32, tolerance: float = 1e-5, mesh=None, **fields):
    """Outputs and gradients within `tolerance` of the largest value of each array. fields: window and scale."""
    q, k, v, segments, d_out = inputs(*shape, dtype)

    def with_gradients(q, k, v, segments, d_out):
        out, pull = jax.vjp(lambda *qkv: implementation(*qkv, segments, **fields), q, k, v)
        return out, *pull(d_out)

    with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
        actual = jax.jit(with_gradients)(q, k, v, segments, d_out)
    expected = reference(q, k, v, segments, d_out, **fields)
    for name, a, e in zip(("out", "dq", "dk", "dv"), actual, expected, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(np.asarray(a, np.float64), e, atol=tolerance * np.abs(e).max(), err_msg=name)


@pytest.mark.parametrize(
    "shape",
    [(2, 1, 2, 2, 8), (2, 70, 4, 4, 16), (2, 129, 4, 2, 16), (1, 200, 6, 1, 16)],
    ids=["one token", "plain", "grouped", "one kv head"],
)
def test_xla_equals_the_reference_at_lengths_that_no_block_divides(shape):
    compare(xla, shape)


def test_xla_equals_the_reference_where_blocks_are_longer_than_64():
    compare(xla, (1, 1100, 1, 1, 8))


@pytest.mark.parametrize("window", [1, 7, 64, 70, 200])
def test_with_a_window_xla_equals_the_reference_in_packed_rows(window):
    compare(xla, (2, 129, 4, 2, 16), window=window, scale=0.4)


def test_keys_that_a_window_does_not_reach_are_not_read():
    """Blocks of 128 queries in a row of 2,048 tokens see the 128 keys before them at most, and those of no more."""
    program = jax.make_jaxpr(functools.partial(xla, window=129))(*inputs(1, 2048, 1, 1, 8)[:4])
    [shape] = {e.outvars[0].aval.shape[-1] for e in program.eqns if "dot" in e.primitive.name} - {8, 128}
    assert shape == 256
    compare(xla, (1, 1100, 1, 1, 8), window=100)


def test_splash_equals_the_reference_with_a_window():
    compare(interpreted_splash, (1, 128, 4, 2, 128), window=20, scale=0.05)


def test_the_mask_of_cudnn_is_the_reference_s(monkeypatch):
    """The kernel itself runs on a GPU alone; here JAX's own attention takes what it is given."""
    product = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *qkv, implementation, **fields: product(*qkv, **fields))
    for fields in ({}, {"window": 20, "scale": 0.3}):
        compare(functools.partial(attention, implementation="cudnn"), (2, 70, 4, 2, 16), **fields)


def test_splash_equals_the_reference_with_grouped_heads():
    compare(interpreted_splash, (1, 128, 4, 2, 128))


@pytest.mark.parametrize("implementation", [xla, interpreted_splash], ids=["xla", "splash"])
def test_split_over_rows_heads_and_context_it_equals_the_reference(implementation):
    mesh = make_mesh({"fsdp": 2, "tensor": 2, "context": 2})
    compare(implementation, (2, 256, 4, 2, 64), mesh=mesh)
    compare(implementation, (2, 256, 4, 2, 64), mesh=mesh, window=30)


@pytest.mark.parametrize(
    ("implementation", "shape"),
    [(xla, (2, 129, 4, 2, 16)), (interpreted_splash, (1, 128, 4, 2, 128))],
    ids=["xla", "splash"],
)
def test_bfloat16_stays_within_two_percent(implementation, shape):
    compare(implementation, shape, dtype=jnp.bfloat16, tolerance=0.02)


@pytest.mark.parametrize("implementation", [xla, interpreted_splash], ids=["xla", "splash"])
def test_a_position_sees_exactly_the_earlier_ones_of_its_segment(implementation):
    T = 128
    q, k, v, segments, _ = inputs(1, T, 2, 1, 128)
    attend = jax.jit(lambda k, v: implementation(q, k, v, segments))
    before = np.asarray(attend(k, v))[0]
    for s in (0, 20, 63, 64, 101, 127):
        after = np.asarray(attend(k.at[0, s].add(1), v.at[0, s].add(1)))[0]
        changed = (before != after).any(axis=(1, 2))
        expected = (np.arange(T) >= s) & (segments[0] == segments[0, s])
        np.testing.assert_array_equal(changed, expected, err_msg=f"position {s} changed")


def absent(platform: str, context: int = 1):
    """A context in which functions are traced for eight devices that are not there."""
    device = AbstractDevice(device_kind=f"a {platform}", num_cores=None, platform=platform)
    kinds = (AxisType.Auto,) * len(AXES)
    mesh = AbstractMesh((1, 8 // context, 1, context), AXES, axis_types=kinds, abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def choice(T: int, dtype=jnp.bfloat16) -> str:
    return implementations._choose(jax.ShapeDtypeStruct((1, T, 1, 8), dtype))


def test_auto_takes_the_kernel_of_the_hardware_where_it_can_run(monkeypatch):
    for platform, expected in (("cpu", "xla"), ("tpu", "splash"), ("gpu", "cudnn")):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        assert choice(256) == expected
    assert choice(200, jnp.float32) == "xla"


def test_auto_chooses_for_the_devices_of_the_mesh_which_need_not_be_here():
    with absent("tpu"):
        assert (choice(256), choice(200)) == ("splash", "xla")
    with absent("tpu", context=2):
        assert (choice(256), choice(128)) == ("splash", "xla")
    for platform in ("gpu", "cuda"):
        with absent(platform):
            assert (choice(200), choice(200, jnp.float32)) == ("cudnn", "xla")
    with jax.set_mesh(make_mesh()):
        assert choice(256) == "xla"


def test_forms_for_xlas_cpu_backend_are_not_compiled_for_other_devices(monkeypatch):
    with absent("tpu"):
        assert not xla_cpu.is_backend()
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert not xla_cpu.is_backend()
    with jax.set_mesh(make_mesh()):
        assert xla_cpu.is_backend()


def test_an_implementation_that_is_unknown_or_cannot_run_raises():
    q, k, v, segments, _ = inputs(1, 128, 2, 2, 64)
    with pytest.raises(ValueError, match="'flash': give one of auto, xla, splash, cudnn"):
        attention(q, k, v, segments, "flash")
    with pytest.raises(ValueError, match="multiple of 128 tokens, not 100"):
        attention(q[:, :100], k[:, :100], v[:, :100], segments[:, :100], "splash")
    with jax.set_mesh(make_mesh({"fsdp": -1, "context": 2})), pytest.raises(ValueError, match="256 tokens, not 128"):
        attention(q, k, v, segments, "splash")
    with pytest.raises(ValueError, match="interpret mode"):
        attention(q, k, v, segments, "splash").block_until_ready()
    with pytest.raises(RuntimeError, match="cuDNN"):
        attention(q.astype(jnp.bfloat16), k.astype(jnp.bfloat16), v.astype(jnp.bfloat16), segments, "cudnn")


def run_elsewhere(*command: str, **environment: str) -> str:
    """Output of a Python process with another JAX platform than the one these tests pin."""
    env = os.environ | {"XLA_FLAGS": ""} | environment
    done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: nothing was compiled for a TPU"
)


def compile_for_tpu(part: str):
    script = Path(__file__).with_name("compile_for_tpu.py")
    report = run_elsewhere(str(script), part, JAX_PLATFORMS="cpu")
    print(report)  # seconds and bytes, shown by pytest -rP
    return json.loads(report.splitlines()[-1])


@needs_libtpu
def test_splash_compiles_for_a_tpu_mesh_forward_and_backward():
    for shape in compile_for_tpu("attention"):
        assert shape["kernels"] == 6, "forward, dq and dkv, of a device's own part and of one that comes along the ring"


@needs_libtpu
def test_a_llama_7b_layers_gradient_compiles_for_a_tpu_mesh_and_stays_split():
    report = compile_for_tpu("model")
    assert report["kernels"] >= 3
    # Eight chips, of which the two along the context axis hold the same quarter of the float32 parameters.
    assert report["argument_bytes"] == pytest.approx(report["params"], rel=0.01)
    assert report["output_bytes"] == pytest.approx(report["params"], rel=0.01)


@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no NVIDIA GPU here: cudnn was not run")
def test_cudnn_equals_the_reference_on_a_gpu():
    code = (
        "import functools, jax.numpy as jnp;"
        "from camelid.tests.model.test_attention import attention, compare;"
        "cudnn = functools.partial(attention, implementation='cudnn');"
        "shapes = (2, 128, 4, 4, 64), (2, 200, 4, 2, 128);"
        "[compare(cudnn, shape, dtype=jnp.bfloat16, tolerance=0.02) for shape in shapes]"
    )
    run_elsewhere("-c", code, JAX_PLATFORMS="cuda")
