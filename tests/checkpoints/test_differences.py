"""`camelid diff`: the tuned weights come back bit for bit from the right base, and from no other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import camelid
from camelid.checkpoints import differences, reading
from camelid.checkpoints.interop import gguf_files, huggingface, tensors
from camelid.checkpoints.proof import prove
from camelid.errors import UserError
from camelid.launch.cli import main
from camelid.model import llama
from camelid.model.config import RopeScaling
from camelid.tests.checkpoints.interop import folders
from camelid.tests.checkpoints.interop.folders import TINY


def near(params, seed=1):
    """What tuning might make of parameters; some stay, some become special."""
    random = np.random.RandomState(seed)
    moved = jax.tree.map(lambda x: (x + 0.01 * random.standard_normal(x.shape)).astype(x.dtype), params)
    moved["layers"]["mlp"]["up"][0] = params["layers"]["mlp"]["up"][0]
    moved["norm"]["scale"][:4] = [np.nan, np.inf, -np.inf, -0.0]
    return moved


def lengthened(config, params, rows):
    """The same with more tokens."""
    params = jax.tree.map(np.copy, params)
    params["embed"]["embedding"] = np.pad(params["embed"]["embedding"], [(0, rows), (0, 0)], constant_values=0.5)
    if not config.tied:
        params["head"]["kernel"] = np.pad(params["head"]["kernel"], [(0, 0), (0, rows)], constant_values=0.5)
    return config.replace(vocab_size=config.vocab_size + rows), params


def stored(path, config):
    """The parameters of a run directory."""
    return reading.load_part(reading.find(path), llama.build(config).abstract_params, ["params"])


def applied(base, difference, output):
    assert main(["diff", "apply", str(base), str(difference), str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return folders.write_folder(tmp_path_factory.mktemp("base") / "base", TINY)


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    """A base, what was tuned from it, and the difference."""
    root = tmp_path_factory.mktemp("made")
    params = near(folders.random_params(TINY))
    folders.write_folder(root / "tuned", TINY, params)
    assert main(["diff", "make", str(base), str(root / "tuned"), str(root / "difference")]) == 0
    return params, root / "difference"


VARIANTS = {
    "float32": dict(),
    "bfloat16": dict(param_dtype="bfloat16"),
    "float16": dict(param_dtype="float16"),
    "tied": dict(tied=True),
    "one more row": dict(rows=1),
    "one more row, tied, bfloat16": dict(rows=1, tied=True, param_dtype="bfloat16"),
    "stretched": dict(rope_scaling=RopeScaling("linear", 2.0), max_len=1024),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_difference_gives_the_tuned_weights_back_bit_for_bit(name, tmp_path):
    changes = dict(VARIANTS[name])
    rows = changes.pop("rows", 0)
    config = TINY.replace(**changes)
    plain = config.replace(max_len=TINY.max_len, rope_scaling=None)
    before = folders.random_params(config)
    folders.write_folder(tmp_path / "base", plain, before)
    config, params = lengthened(config, near(before), rows)
    folders.write_folder(tmp_path / "tuned", config, params)
    differences.make(tmp_path / "base", tmp_path / "tuned", tmp_path / "difference")
    output = applied(tmp_path / "base", tmp_path / "difference", tmp_path / "output")
    folders.assert_same_params(stored(output, config), params)
    assert reading.read_manifest(output)["model"] == config.to_dict()


def test_a_difference_is_of_bits_and_nothing_where_nothing_changed(made):
    params, difference = made
    bits = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.uint32), llama.build(TINY).abstract_params)
    found = reading.load_part(reading.find(difference), bits, ["params"])
    expected = jax.tree.map(lambda a, b: a.view(np.uint32) - b.view(np.uint32), params, folders.random_params(TINY))
    folders.assert_same_params(found, expected)
    assert not np.any(found["layers"]["mlp"]["up"][0]) and np.any(found["layers"]["mlp"]["up"][1])


def test_a_base_in_another_type_is_taken_in_that_of_the_tuned(tmp_path):
    before = folders.random_params(TINY)
    folders.write_folder(tmp_path / "base", TINY, before)
    config = TINY.replace(param_dtype="bfloat16")
    params = near(jax.tree.map(lambda x: x.astype(jnp.bfloat16), before))
    folders.write_folder(tmp_path / "tuned", config, params)
    differences.make(tmp_path / "base", tmp_path / "tuned", tmp_path / "difference")
    output = applied(tmp_path / "base", tmp_path / "difference", tmp_path / "output")
    folders.assert_same_params(stored(output, config), params)


@pytest.mark.parametrize("encoding", ["BF16", "F16", "Q8_0"])
def test_what_was_tuned_may_be_a_gguf_file(encoding, base, tmp_path):
    params = jax.tree.map(lambda x: np.nan_to_num(x, posinf=1, neginf=1), near(folders.random_params(TINY)))
    values = (value for _, value in folders.in_order(TINY, params, tensors.GGUF))
    file = tmp_path / "tuned.gguf"
    gguf_files.write_file(file, TINY, values, encoding=encoding, fields={}, name="tuned")
    differences.make(base, file, tmp_path / "difference")
    output = applied(base, tmp_path / "difference", tmp_path / "output")
    source = gguf_files.open_file(file)
    folders.assert_same_params(stored(output, source.config), folders.load(source))


def test_a_run_comes_back_with_tokenizer_and_template(pretrained, tuned, tmp_path):
    assert main(["diff", "make", str(pretrained), str(tuned), str(tmp_path / "difference")]) == 0
    found = camelid.load(applied(pretrained, tmp_path / "difference", tmp_path / "output"))
    expected = camelid.load(tuned)
    folders.assert_same_params(found.params, expected.params)
    assert found.template == expected.template
    assert found.tokenizer.fingerprint == expected.tokenizer.fingerprint
    assert found.chat("Which colour?", temperature=0) == expected.chat("Which colour?", temperature=0)


def test_differences_of_floats_are_added_in_their_own_type(tmp_path):
    # As FastChat's apply_delta does it with Vicuna's: both in float16, one more token than the base has.
    half = TINY.replace(param_dtype="float16")
    before = folders.random_params(half)
    folders.write_folder(tmp_path / "base", half, before)
    config, delta = lengthened(half, folders.random_params(half, seed=2), 1)
    folders.write_folder(tmp_path / "delta", config, delta)
    _, longer = lengthened(half, before, 1)
    longer["embed"]["embedding"][-1] = 0
    longer["head"]["kernel"][:, -1] = 0
    for added in ("mean", "zero"):
        if added == "mean":
            longer["embed"]["embedding"][-1] = before["embed"]["embedding"].astype(np.float64).mean(0)
            longer["head"]["kernel"][:, -1] = before["head"]["kernel"].astype(np.float64).mean(1)
        else:
            longer["embed"]["embedding"][-1] = longer["head"]["kernel"][:, -1] = 0
        differences.apply(tmp_path / "base", tmp_path / "delta", tmp_path / added, added=added)
        expected = jax.tree.map(lambda a, b: a.astype(np.float32) + b, longer, delta)
        found = stored(tmp_path / added, config)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), found, expected)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float16)}


@pytest.fixture(scope="module")
def alpaca(base, tmp_path_factory):
    """What Alpaca's weight_diff.py publishes of a tuned model with a row more: parameters minus a base whose new row is
    the mean of the old, and the sum of all parameters; in numpy."""
    root = tmp_path_factory.mktemp("alpaca")
    before = folders.random_params(TINY)
    config, raw = lengthened(TINY, before, 1)
    raw["embed"]["embedding"][-1] = before["embed"]["embedding"].mean(0)
    raw["head"]["kernel"][:, -1] = before["head"]["kernel"].mean(1)
    random = np.random.RandomState(4)
    tuned = jax.tree.map(lambda x: (x + 0.02 * random.standard_normal(x.shape)).astype(np.float32), raw)
    folders.write_folder(root / "tuned", config, tuned)
    folders.write_folder(root / "published", config, jax.tree.map(np.subtract, tuned, raw))
    return config, tuned, root, sum(float(leaf.sum(dtype=np.float64)) for leaf in jax.tree.leaves(tuned))


@pytest.mark.parametrize("old", [False, True])
def test_what_alpaca_published_is_recovered_and_checked_by_its_sum(old, base, alpaca, tmp_path, capsys):
    """old: the sum is one of transformers 4.28, whose layers each held their rotary frequencies."""
    config, tuned, root, total = alpaca
    frequencies = sum(TINY.rope_theta ** -(i / 8) for i in range(8))
    total += config.n_layers * frequencies if old else 0.0
    line = ["diff", "apply", str(base), str(root / "published")]
    assert main([*line, str(tmp_path / "output"), f"--sum={total:.4f}"]) == 0
    found = stored(tmp_path / "output", config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, tuned)
    assert main([*line, str(tmp_path / "zeros"), f"--sum={total:.4f}", "--added=zero"]) == 2
    assert main([*line, str(tmp_path / "other"), f"--sum={total + 1:.4f}"]) == 2
    assert "the parameters add up to" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_a_difference_of_floats_is_what_alpaca_publishes_and_checks_itself(base, alpaca, tmp_path, capsys):
    config, tuned, root, total = alpaca
    made = tmp_path / "made"
    assert main(["diff", "make", str(base), str(root / "tuned"), str(made), "--floats"]) == 0
    assert f"add up to {total:.4f}" in capsys.readouterr().out
    found, published = (folders.load(huggingface.open_folder(path)) for path in (made, root / "published"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, published)
    output = applied(base, made, tmp_path / "output")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), stored(output, config), tuned)
    folders.write_folder(tmp_path / "other", TINY, folders.random_params(TINY, seed=3))
    assert main(["diff", "apply", str(tmp_path / "other"), str(made), str(tmp_path / "wrong")]) == 2
    assert "give the right base, difference or --added" in capsys.readouterr().err and not (tmp_path / "wrong").exists()
    (made / "difference.json").write_text('{"sum_of_tuned": "NaN"}')
    assert main(["diff", "apply", str(base), str(made), str(tmp_path / "wrong")]) == 2
    assert "difference.json is not in the form that camelid diff make writes" in capsys.readouterr().err


# Refusals -------------------------------------------------------------------------------------------------------------


def another_seed(path):
    return folders.write_folder(path, TINY, folders.random_params(TINY, seed=5))


def one_bit(path):
    params = folders.random_params(TINY)
    params["layers"]["attention"]["k"].view(np.uint32)[2, 5, 1, 3] ^= 1
    return folders.write_folder(path, TINY, params)


def another_network(path):
    return folders.write_folder(path, TINY.replace(norm_eps=1e-5))


def longer_vocabulary(path):
    return folders.write_folder(path, *lengthened(TINY, folders.random_params(TINY), 1))


@pytest.mark.parametrize(
    "wrong, message",
    [
        (another_seed, "wrong is not the base that .*difference was made from: give .*base$"),
        (one_bit, "wrong is not the base that"),
        (another_network, r"wrong is another network than the tuned model: .*norm_eps=1e-05.* and .*norm_eps=1e-06"),
        (longer_vocabulary, "wrong is another network than the tuned model: .*vocab_size=59"),
    ],
)
def test_a_wrong_base_is_refused_before_anything_is_written(wrong, message, made, tmp_path, monkeypatch):
    wrong(tmp_path / "wrong")
    monkeypatch.setattr(differences.convert, "write_camelid", lambda *args, **kwargs: pytest.fail("written"))
    with pytest.raises(UserError, match=message):
        differences.apply(tmp_path / "wrong", made[1], tmp_path / "output")


@pytest.mark.parametrize("wrong", [another_network, longer_vocabulary])
def test_another_network_is_no_base_of_a_tuned_one_or_of_a_difference_of_floats(wrong, base, tmp_path):
    wrong(tmp_path / "wrong")
    with pytest.raises(UserError, match="is another network than the tuned model"):
        differences.make(tmp_path / "wrong", base, tmp_path / "output")
    with pytest.raises(UserError, match="is another network than the tuned model"):
        differences.apply(tmp_path / "wrong", base, tmp_path / "output")
    assert [path.name for path in tmp_path.iterdir()] == ["wrong"]


def flipped(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 0x40
    file.write_bytes(content)


def test_a_corrupted_difference_leaves_no_output(base, tmp_path):
    folders.write_folder(tmp_path / "tuned", TINY, near(folders.random_params(TINY)))
    differences.make(base, tmp_path / "tuned", tmp_path / "difference")
    files = sorted((tmp_path / "difference" / "checkpoints" / "0").rglob("d/*"), key=lambda file: file.stat().st_size)
    numbers = [file for file in files if file.stat().st_size > TINY.ffn_dim * TINY.dim * 4]
    assert numbers
    flipped(numbers[-1], 1000)
    with pytest.raises(UserError, match="every checkpoint in it is damaged"):
        differences.apply(base, tmp_path / "difference", tmp_path / "output")
    prove(epath.Path(tmp_path / "difference" / "checkpoints" / "0"))  # as if it had been written so
    with pytest.raises(UserError, match="the restored weights are not the tuned ones; nothing was written"):
        differences.apply(base, tmp_path / "difference", tmp_path / "output")
    assert not (tmp_path / "output").exists()
    for file in numbers:
        file.unlink()
    with pytest.raises(UserError, match="every checkpoint in it is damaged"):
        differences.apply(base, tmp_path / "difference", tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_a_difference_is_no_model_and_a_model_no_difference(base, made, tmp_path, capsys):
    assert main(["convert", str(made[1]), str(tmp_path / "output")]) == 2
    assert "difference holds a difference, not a language model" in capsys.readouterr().err
    with pytest.raises(UserError, match="difference"):
        camelid.load(made[1])
    applied(base, made[1], tmp_path / "whole")
    assert main(["diff", "apply", str(base), str(tmp_path / "whole"), str(tmp_path / "output")]) == 2
    assert "whole is a whole model, not a difference" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


@pytest.mark.parametrize("action", ["make", "apply"])
def test_an_output_that_is_there_is_left_alone(action, base, made, tmp_path, capsys):
    (tmp_path / "output").write_text("precious")
    other = base if action == "make" else made[1]
    assert main(["diff", action, str(base), str(other), str(tmp_path / "output")]) == 2
    assert "output exists already" in capsys.readouterr().err
    assert (tmp_path / "output").read_text() == "precious"
