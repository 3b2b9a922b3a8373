"""PEFT's folders: its own logits from what it saved, back as they were written, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from camelid.model import llama, lora
from camelid.model.interop import huggingface, peft
from camelid.model.lora import Lora
from camelid.model.weights import join, without
from camelid.tests.model.golden import make_llama, make_peft
from camelid.tests.model.interop import folders
from camelid.tests.model.interop.folders import TINY


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The network that PEFT's adapters were put on, and its parameters."""
    folder = folders.write_golden_folder(tmp_path_factory.mktemp("base") / "a", make_peft.BASE)
    source = huggingface.open_folder(folder)
    return source.config, folders.load(source)


def adapted(found: Lora, own, params):
    return join(own, lora.base_of(found, params))


@pytest.mark.parametrize("name", make_peft.CASES)
def test_what_peft_saved_gives_its_logits(name, base):
    config, params = base
    found, own = peft.read_folder(make_peft.FOLDER / f"peft_{name}", config)
    logits = jax.jit(llama.build(config).apply)(adapted(found, own, params), make_llama.batch(make_peft.BASE)[0])
    with np.load(make_peft.FILE) as stored:
        expected = stored[name]
    found = np.asarray(logits)[:, :: make_peft.EVERY]
    np.testing.assert_allclose(found, expected, rtol=folders.RTOL, atol=folders.ATOL * np.abs(expected).max())


def test_the_adapters_are_described_as_camelid_names_them(base):
    config, _ = base
    found, own = peft.read_folder(make_peft.FOLDER / "peft_patterns", config)
    ranks = lora.ranks(found, llama.build(config).abstract_params)
    assert ranks == {
        **{f"layers/attention/{name}": 2 if name == "k" else 3 for name in "qkvo"},
        **{f"layers/mlp/{name}": 5 if name == "down" else 3 for name in ("gate", "up", "down")},
    }
    assert (found.alpha, found.rank_stabilized, found.dora) == (6, True, False)
    gains = {name: own["layers"]["mlp"][name]["gain"] for name in ("gate", "up", "down")}
    np.testing.assert_allclose(gains["gate"], [6 / 3**0.5] * 2, rtol=1e-6)
    np.testing.assert_allclose(gains["up"], [6 / 3**0.5, 20 / 3**0.5], rtol=1e-6)
    np.testing.assert_allclose(gains["down"], [9 / 5**0.5] * 2, rtol=1e-6)
    whole, _ = peft.read_folder(make_peft.FOLDER / "peft_whole", config)
    assert whole.trains_whole("head/kernel") and whole.trains_whole("embed/embedding")
    assert not whole.trains_whole("norm/scale") and not whole.trains_whole("layers/mlp/up")


@pytest.mark.parametrize("name", make_peft.CASES)
def test_what_is_written_says_what_was_read(name, base, tmp_path):
    config, _ = base
    found, own = peft.read_folder(make_peft.FOLDER / f"peft_{name}", config)
    peft.write_folder(tmp_path, found, own, config, base="there")
    again, own_again = peft.read_folder(tmp_path, config)
    assert again.targets == found.targets and again.whole == found.whole
    assert (again.dora, again.rank_stabilized) == (found.dora, found.rank_stabilized)
    assert jax.tree.structure(own_again) == jax.tree.structure(own)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), own_again, own)
    stored = safetensors.numpy.load_file(tmp_path / peft.WEIGHTS)
    expected = safetensors.numpy.load_file(make_peft.FOLDER / f"peft_{name}" / peft.WEIGHTS)
    assert stored.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(stored[key], value, err_msg=key)
    fields = json.loads((tmp_path / peft.CONFIG).read_text())
    assert fields["base_model_name_or_path"] == "there" and fields["peft_type"] == "LORA"


def test_adapters_that_began_as_principal_components_become_ordinary_ones(tmp_path):
    params = jax.tree.map(np.asarray, llama.build(TINY).init(jax.random.key(0)))
    made = Lora(targets=(("layers/attention/[qo]|layers/mlp/down", 3),), alpha=6, init="pissa")
    tree = lora.adapt(made, params, params, jax.random.key(1))
    own = jax.tree.map(np.asarray, without(tree, lora.base_of(made, params)))
    random = np.random.RandomState(0)
    for name in ("q", "o"):
        own["layers"]["attention"][name] = learnt(own["layers"]["attention"][name], random)
    peft.write_folder(tmp_path, made, own, TINY, base="there")
    found, read = peft.read_folder(tmp_path, TINY)
    assert {rank for _, rank in found.targets} == {6}
    tokens = np.arange(24).reshape(2, 12)
    apply = jax.jit(llama.build(TINY).apply)
    expected = apply(adapted(made, own, params), tokens)
    assert np.abs(expected - apply(params, tokens)).max() > 0.1
    np.testing.assert_allclose(apply(adapted(found, read, params), tokens), expected, atol=1e-4)


def learnt(parts, random):
    return parts | {name: parts[name] + 0.1 * random.standard_normal(parts[name].shape) for name in ("a", "b")}


# Refusals -------------------------------------------------------------------------------------------------------------

UP = "base_model.model.model.layers.1.mlp.up_proj"


def says(**fields):
    def spoil(folder):
        file = folder / peft.CONFIG
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return spoil


def holds(change):
    def spoil(folder):
        file = folder / peft.WEIGHTS
        safetensors.numpy.save_file(change(safetensors.numpy.load_file(file)), file)

    return spoil


def without_layer(tensors):
    return {name: value for name, value in tensors.items() if not name.startswith(UP)}


def cut_short(folder):
    file = folder / peft.WEIGHTS
    file.write_bytes(file.read_bytes()[:-9])


@pytest.mark.parametrize(
    "spoil, message",
    [
        (says(peft_type="IA3"), "peft_type 'IA3'; only LORA can be read"),
        (says(bias="all"), "bias is 'all'; only 'none' can be read"),
        (says(fan_in_fan_out=True), "fan_in_fan_out is True"),
        (says(alora_invocation_tokens=[1, 2]), r"alora_invocation_tokens is \[1, 2\]"),
        (says(init_lora_weights="pissa_niter_4"), "init_lora_weights is 'pissa_niter_4', so these adapters fit only"),
        (says(init_lora_weights="olora"), "init_lora_weights is 'olora'"),
        (lambda folder: (folder / peft.CONFIG).write_text("{"), "adapter_config.json is not JSON"),
        (cut_short, r"adapter_model.safetensors: no whole safetensors file \("),
        (holds(without_layer), "layers/mlp/up is adapted in some layers only, or at different ranks"),
        (
            holds(lambda t: t | {f"{UP}.lora_A.weight": np.zeros((3, 32), np.float32)}),
            rf"{UP}.lora_B.weight \[40, 2\] has no place on \[40, 32\]",
        ),
        (
            holds(lambda t: {name: value for name, value in t.items() if name != f"{UP}.lora_A.weight"}),
            rf"{UP}.lora_B.weight \[40, 2\] has no place|{UP} has b but not both lora_A and lora_B",
        ),
        (
            holds(lambda t: t | {"base_model.model.model.layers.2.mlp.up_proj.lora_A.weight": np.zeros((2, 32))}),
            r"1 tensor\(s\) with no place in the network: base_model.model.model.layers.2.mlp.up_proj.lora_A.weight",
        ),
        (
            holds(lambda t: t | {f"{UP}.lora_B.bias": np.zeros(40, np.float32)}),
            rf"1 tensor\(s\) with no place in the network: {UP}.lora_B.bias \[40\]",
        ),
    ],
)
def test_what_the_network_cannot_take_is_refused_with_what_and_where(spoil, message, base, tmp_path):
    folder = shutil.copytree(make_peft.FOLDER / "peft_whole", tmp_path / "their")
    spoil(folder)
    with pytest.raises(ValueError, match=message) as error:
        peft.read_folder(folder, base[0])
    assert str(error.value).startswith(str(folder)) and "\n" not in str(error.value)


@pytest.mark.parametrize("begin", [True, False, "gaussian", "eva", None])
def test_adapters_that_leave_the_base_as_it_is_are_read_however_they_began(begin, base, tmp_path):
    folder = shutil.copytree(make_peft.FOLDER / "peft_whole", tmp_path / "their")
    says(init_lora_weights=begin)(folder)
    assert peft.read_folder(folder, base[0])[0].targets


def test_what_peft_cannot_say_of_other_families_is_refused(tmp_path):
    with pytest.raises(ValueError, match="peft_plain: PEFT adapts Phi-3's fused qkv_proj and gate_up_proj"):
        peft.read_folder(make_peft.FOLDER / "peft_plain", folders.TINY.replace(family="phi3"))
    config = folders.TINY.replace(family="qwen2", qkv_bias=True)
    chosen = Lora(((r"layers/attention/q", 2),), whole=(r".*q_bias",))
    params = folders.random_params(config)
    own = without(lora.adapt(chosen, params, params, jax.random.key(0)), lora.base_of(chosen, params))
    with pytest.raises(
        ValueError, match="layers/attention/q_bias was trained whole, which PEFT's format has no place for"
    ):
        peft.write_folder(tmp_path / "a", chosen, own, config, base="there")
    del own["layers"]["attention"]["q_bias"]
    peft.write_folder(tmp_path / "a", chosen, own, config, base="there")
    found, again = peft.read_folder(tmp_path / "a", config)
    assert found.targets == ((r"layers/attention/q", 2),)
    folders.assert_same_params(again, jax.device_get(own))
