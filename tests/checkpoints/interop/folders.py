"""Small networks as other formats keep them, for the tests of each: random weights, and those with stored logits."""

import collections
import json

import jax
import numpy as np
import safetensors.numpy

from camelid.checkpoints.interop import huggingface, tensors
from camelid.model import llama
from camelid.model.config import LlamaConfig
from camelid.model.sharding import make_mesh, placed, shardings
from camelid.tests.model.golden import make_llama as golden

# float32 on both sides, the same sums in another order.
RTOL, ATOL = 5e-5, 5e-5

# Widths are all different, so that no transposed or swapped weight fits by accident.
TINY = LlamaConfig(
    vocab_size=58, dim=32, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=44, head_dim=16, norm_eps=1e-6, max_len=512
)


def random_params(config: LlamaConfig, seed: int = 0) -> llama.Params:
    """Numpy arrays of the network's shapes and dtype."""
    random = np.random.RandomState(seed)
    return jax.tree.map(
        lambda leaf: random.standard_normal(leaf.shape).astype(leaf.dtype), llama.build(config).abstract_params
    )


def in_order(config: LlamaConfig, params: llama.Params, naming: tensors.Naming):
    """(name there, value as it lies there), one tensor after the other, as the writers take them."""
    values = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for place in tensors.places(config, naming):
        value = values[place.path] if place.layer is None else values[place.path][place.layer]
        yield place.name, tensors.write_part(naming, place, np.asarray(value))


def write_folder(path, config: LlamaConfig, params: llama.Params | None = None, **more):
    """A folder of Hugging Face's, by camelid's own writer."""
    params = random_params(config) if params is None else params
    values = (value for _, value in in_order(config, params, tensors.HUGGING_FACE))
    huggingface.write_folder(path, config, values, **more)
    return path


def write_golden_folder(path, case: dict, weights: dict[str, np.ndarray] | None = None, **fields):
    """A folder of Hugging Face's with settings and weights of `make_llama.py`, by nothing of camelid's."""
    path.mkdir(parents=True)
    fields = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | case | fields
    (path / "config.json").write_text(json.dumps(fields))
    safetensors.numpy.save_file(golden.weights(case) if weights is None else weights, path / "model.safetensors")
    return path


def load(source: tensors.TensorSource) -> llama.Params:
    return tensors.load_params(source, llama.build(source.config).abstract_params)


def logits(source: tensors.TensorSource, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(llama.build(source.config).apply)(load(source), tokens))


def assert_same_params(found: llama.Params, expected: llama.Params) -> None:
    """Bit for bit, dtypes included."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, path
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


def assert_loads_in_parts(source: tensors.TensorSource, expected: llama.Params) -> None:
    """Onto eight devices, two along each of data, fsdp and tensor: the same arrays, and no part is read that has more
    than what one device keeps of a tensor."""
    read = []

    def spy(name, index):
        part = source.read(name, index)
        read.append((name, part.size))
        return part

    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    abstract = llama.build(source.config).abstract_params
    asked = placed(abstract, shardings(abstract, mesh))
    found = tensors.load_params(source._replace(read=spy), asked)
    assert_same_params(found, expected)
    for leaf, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(asked), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    sizes, pieces = collections.defaultdict(list), collections.Counter()
    for place in tensors.places(source.config, source.naming):
        parts = 1 if "norm" in place.name else 2 if place.name.endswith("bias") else 4
        sizes[place.name] += [int(np.prod(place.shape)) // parts] * parts
        pieces[place.name] += parts
    times = collections.Counter(name for name, _ in read)
    assert times == pieces
    assert sorted(read) == sorted((name, size) for name, parts in sizes.items() for size in parts)
