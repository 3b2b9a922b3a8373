"""A tokenizer with more ids than the embedding has rows, as Alpaca's [PAD]: told, and given rows."""

import json

import jax
import numpy as np
import pytest

import camelid
from camelid import checkpoints
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.errors import UserError
from camelid.launch.cli import main
from camelid.model.sharding import make_mesh, placed, shardings
from camelid.tests.checkpoints.interop import folders
from camelid.train.architecture import ModelSettings, model_of

ROWS = 300
CONFIG = folders.TINY.replace(vocab_size=ROWS, tied=False)


@pytest.fixture(scope="module")
def alpaca(tmp_path_factory):
    """A network of 300 rows whose folder adds a padding token, id 300, as Alpaca's and Vicuna's do."""
    folder = folders.write_folder(tmp_path_factory.mktemp("alpaca") / "alpaca", CONFIG)
    train_sentencepiece(["the llama walks over hills"], vocab_size=ROWS - 20, output_dir=folder)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "[PAD]"}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": ROWS}))
    return folder


@pytest.fixture(scope="module")
def params():
    return folders.random_params(CONFIG)


def check_rows(found, params, rows):
    """The old rows as they were, the new ones their mean."""
    table, kernel = np.asarray(found["embed"]["embedding"]), np.asarray(found["head"]["kernel"])
    assert table.shape[0] == kernel.shape[1] == rows
    np.testing.assert_array_equal(table[:ROWS], params["embed"]["embedding"])
    np.testing.assert_array_equal(kernel[:, :ROWS], params["head"]["kernel"])
    mean_D = np.mean(params["embed"]["embedding"], axis=0, dtype=np.float64)
    mean_head_D = np.mean(params["head"]["kernel"], axis=1, dtype=np.float64)
    for row in range(ROWS, rows):
        np.testing.assert_allclose(table[row], mean_D, atol=1e-6)
        np.testing.assert_allclose(kernel[:, row], mean_head_D, atol=1e-6)


def test_ids_without_a_row_are_told_with_what_gives_them_one(alpaca, tmp_path, capsys):
    told = f"{alpaca}: the tokenizer has 301 ids, but the embedding has 300 rows, none for '[PAD]': "
    with pytest.raises(UserError) as error:
        camelid.load(alpaca)
    assert str(error.value).startswith(told + "load(..., vocab_size=301)")
    assert main(["convert", str(alpaca), str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith(f"camelid: {told}--vocab_size=301 adds rows")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"none for '\[PAD\]': config\.model\.vocab_size=301 adds rows"):
        model_of(ModelSettings(), *start(alpaca))


def start(path):
    """A checkpoint and its tokenizer."""
    found = checkpoints.open(path)
    return found, found.tokenizer


def test_load_gives_new_rows_the_mean_of_the_others(alpaca, params):
    found = camelid.load(alpaca, vocab_size=304)
    check_rows(found.params, params, 304)
    assert (found.config.vocab_size, found.tokenizer.vocab_size, found.tokenizer.pad_id) == (304, 301, 300)
    quantised = camelid.load(alpaca, vocab_size=304, quantize="int8")
    assert np.abs(np.asarray(quantised.logits(np.array([[1, 2, 300]])))).max() > 0
    with pytest.raises(UserError, match=r"vocab_size 299 can only add to the 300 rows"):
        camelid.load(alpaca, vocab_size=299)


def test_a_run_starts_from_the_new_rows(alpaca, params):
    model = model_of(ModelSettings(vocab_size=304), *start(alpaca))
    mesh = make_mesh({"fsdp": 2}, jax.devices()[:2])
    asked = placed(model.abstract_params, shardings(model.abstract_params, mesh))
    check_rows(checkpoints.open(alpaca).load_params(asked), params, 304)
    with pytest.raises(UserError, match="vocab_size 299 is less than the 300 of"):
        model_of(ModelSettings(vocab_size=299), *start(alpaca))


@pytest.mark.parametrize("to", ["camelid", "huggingface", "gguf"])
def test_convert_writes_the_new_rows(to, alpaca, params, tmp_path):
    output = tmp_path / ("out.gguf" if to == "gguf" else "out")
    assert main(["convert", str(alpaca), str(output), f"--to={to}", "--vocab_size=301"]) == 0
    found = camelid.load(output)
    check_rows(found.params, params, 301)
    assert found.tokenizer.piece(300) == "[PAD]" and found.tokenizer.pad_id == 300
    assert "[PAD]" in found.tokenizer.special


def test_a_run_of_camelids_gets_rows_by_convert_alone(alpaca, params, tmp_path, capsys):
    assert main(["convert", str(alpaca), str(tmp_path / "run"), "--vocab_size=301"]) == 0
    with pytest.raises(UserError, match=r"camelid convert .*run OUTPUT --vocab_size=320"):
        model_of(ModelSettings(vocab_size=320), *start(tmp_path / "run"))
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "wider"), "--vocab_size=320"]) == 0
    found = camelid.load(tmp_path / "wider").params["embed"]["embedding"]
    np.testing.assert_array_equal(found[:ROWS], params["embed"]["embedding"])
    np.testing.assert_allclose(found[301:], np.broadcast_to(found[:301].mean(0), (19, CONFIG.dim)), atol=1e-6)
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "narrow"), "--vocab_size=100"]) == 2
    assert "has 301 rows, and rows are only added" in capsys.readouterr().err
