"""Meta's folders: parts joined as its code split them."""

import json
import shutil

import numpy as np
import pytest

from camelid.checkpoints.interop import huggingface, meta
from camelid.model.config import RopeScaling
from camelid.tests.checkpoints.interop import folders, torch_writer
from camelid.tests.model.golden import make_interop, make_llama

COLUMNS, ROWS = make_interop.FOLDER / "meta_columns", make_interop.FOLDER / "meta_rows"


@pytest.fixture(scope="module")
def golden_params(tmp_path_factory):
    """The network of both folders, in float32, from Hugging Face's names and order."""
    folder = folders.write_golden_folder(tmp_path_factory.mktemp("golden") / "a", make_interop.META)
    return folders.load(huggingface.open_folder(folder))


@pytest.mark.parametrize("folder", [COLUMNS, ROWS], ids=lambda folder: folder.name)
def test_two_parts_written_by_pytorch_give_hugging_faces_logits(folder):
    with np.load(make_interop.FILE) as stored:
        expected = stored[f"{folder.name}/logits"]
    source = meta.open_folder(folder)
    found = folders.logits(source, make_llama.batch(make_interop.META)[0])[:, :: make_interop.EVERY]
    np.testing.assert_allclose(found, expected, rtol=folders.RTOL, atol=folders.ATOL * np.abs(expected).max())


def test_the_config_comes_from_params_json_and_the_tensors():
    case, source = make_interop.META, meta.open_folder(COLUMNS)
    expected = huggingface.read_config(case | {"model_type": "llama"}, "")
    assert source.config == expected.replace(max_len=4096)
    assert meta.open_folder(ROWS).config == source.config.replace(param_dtype="bfloat16")
    assert [file.name for file in source.files] == ["params.json", "consolidated.00.pth", "consolidated.01.pth"]


def test_tensors_are_those_of_hugging_faces_folder_bit_for_bit(golden_params):
    folders.assert_same_params(folders.load(meta.open_folder(COLUMNS)), golden_params)


def test_eight_devices_get_the_same_arrays_and_read_only_their_parts(golden_params):
    folders.assert_loads_in_parts(meta.open_folder(COLUMNS), golden_params)


LLAMA1 = dict(dim=4096, n_layers=32, n_heads=32, norm_eps=1e-6, vocab_size=-1, multiple_of=256)
LLAMA3 = dict(dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, norm_eps=1e-5, rope_theta=500_000.0)
MISTRAL = dict(dim=4096, n_layers=32, head_dim=128, n_heads=32, n_kv_heads=8, norm_eps=1e-5, sliding_window=4096)
PUBLISHED = {  # params.json, then context, rotary base, factor
    "LLaMA 7B": (LLAMA1, 2048, 1e4, None),
    "LLaMA 65B": (LLAMA1 | dict(dim=8192, n_heads=64, norm_eps=1e-5), 2048, 1e4, None),
    "Llama 2 7B": (LLAMA1 | dict(norm_eps=1e-5), 4096, 1e4, None),
    "Llama 2 70B": (LLAMA1 | dict(dim=8192, n_heads=64, n_kv_heads=8, norm_eps=1e-5), 4096, 1e4, None),
    "Llama 3 8B": (LLAMA3, 8192, 5e5, None),
    "Mistral 7B": (MISTRAL, 32_768, 1e4, None),
    "Llama 3.1 8B": (LLAMA3 | dict(use_scaled_rope=True), 131_072, 5e5, 8.0),
    "Llama 3.2 1B": (LLAMA3 | dict(dim=2048, use_scaled_rope=True), 131_072, 5e5, 32.0),
    "Llama 3.3, which says it": (LLAMA3 | dict(use_scaled_rope=True, rope_scaling_factor=4), 131_072, 5e5, 4.0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_context_and_rotary_settings_are_those_of_the_published_models(name):
    fields, context, theta, factor = PUBLISHED[name]
    shapes = {"tok_embeddings.weight": (32_000, fields["dim"]), "layers.0.feed_forward.w1.weight": (11_008, 4096)}
    config = meta.read_config(fields, shapes | {"output.weight": ()}, "there")
    assert (config.max_len, config.rope_theta) == (context, theta)
    assert config.rope_scaling == (factor and RopeScaling("llama3", factor, original_max_len=8192))
    assert config.n_kv_heads == fields.get("n_kv_heads", fields["n_heads"]) and not config.tied
    assert config.window == fields.get("sliding_window")


def first_part_gone(folder):
    (folder / "consolidated.00.pth").unlink()


def last_part_gone(folder):
    (folder / "consolidated.01.pth").unlink()


def cut_short(folder):
    file = folder / "consolidated.01.pth"
    file.write_bytes(file.read_bytes()[:-50])


def other_tensors(folder):
    torch_writer.save_tensors(folder / "consolidated.01.pth", {"norm.weight": np.zeros(4, np.float32)})


def holds(value):
    def spoil(folder):
        for number in range(2):
            torch_writer.save_tensors(folder / f"consolidated.{number:02d}.pth", {"tok_embeddings.weight": value})

    return spoil


def other_widths(folder):
    shutil.copy(ROWS / "consolidated.01.pth", folder / "consolidated.01.pth")


def says(**fields):
    def spoil(folder):
        known = json.loads((folder / "params.json").read_text()) | fields
        (folder / "params.json").write_text(json.dumps({k: v for k, v in known.items() if v is not None}))

    return spoil


@pytest.mark.parametrize(
    "spoil, message",
    [
        (first_part_gone, r"consolidated.00.pth and so on up to the last part; found consolidated.01.pth"),
        (last_part_gone, r"of another shape: .*attention.wq.weight \[16, 32\], the config says \[32, 32\]"),
        (cut_short, "consolidated.01.pth: no whole file of torch.save's zip format"),
        (other_tensors, "consolidated.01.pth holds other tensors than consolidated.00.pth"),
        (other_widths, r"consolidated.00.pth: parts of tok_embeddings.weight do not fit each other: \[\(58, 16\), \("),
        (holds(np.float32(1)), r"consolidated.00.pth: parts of tok_embeddings.weight do not fit each other: \[\(\), "),
        (holds(np.ones((3, 4), np.int64)), "tensors that are not float32, .*: tok_embeddings.weight int64"),
        (says(n_layers=2), r"9 tensor\(s\) missing: layers.1.attention.wk.weight \[16, 32\]; "),
        (says(n_layers=None), "has no n_layers"),
        (says(n_kv_heads=4), r"of another shape: layers.0.attention.wk.weight \[16, 32\], the config says \[32, 32\]"),
        (lambda folder: (folder / "params.json").write_text("{"), "params.json is not JSON"),
    ],
)
def test_parts_that_are_missing_or_do_not_fit_are_refused(spoil, message, tmp_path):
    folder = shutil.copytree(COLUMNS, tmp_path / "their")
    spoil(folder)
    with pytest.raises(ValueError, match=message) as error:
        meta.open_folder(folder)
    assert str(error.value).startswith(str(folder)) and "\n" not in str(error.value)
