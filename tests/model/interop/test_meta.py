"""Meta's folders: parts joined as its code split them, and pickles that are read without being run."""

import collections
import json
import pickle
import shutil
import sys
import types
import zipfile

import numpy as np
import pytest

from camelid.model.config import RopeScaling
from camelid.model.interop import huggingface, meta
from camelid.model.interop.torch_files import read_tensors
from camelid.tests.model.golden import make_interop, make_llama
from camelid.tests.model.interop import folders

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
PUBLISHED = {  # params.json, then context, rotary base, factor
    "LLaMA 7B": (LLAMA1, 2048, 1e4, None),
    "LLaMA 65B": (LLAMA1 | dict(dim=8192, n_heads=64, norm_eps=1e-5), 2048, 1e4, None),
    "Llama 2 7B": (LLAMA1 | dict(norm_eps=1e-5), 4096, 1e4, None),
    "Llama 2 70B": (LLAMA1 | dict(dim=8192, n_heads=64, n_kv_heads=8, norm_eps=1e-5), 4096, 1e4, None),
    "Llama 3 8B": (LLAMA3, 8192, 5e5, None),
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


def first_part_gone(folder):
    (folder / "consolidated.00.pth").unlink()


def last_part_gone(folder):
    (folder / "consolidated.01.pth").unlink()


def cut_short(folder):
    file = folder / "consolidated.01.pth"
    file.write_bytes(file.read_bytes()[:-50])


def other_tensors(folder):
    save(folder / "consolidated.01.pth", {"norm.weight": Tensor(FLOATS, 0, (4,), (1,))})


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
        (first_part_gone, r"consolidated.00.pth and so on to the last part; found consolidated.01.pth"),
        (last_part_gone, r"of another shape: .*attention.wq.weight \[16, 32\], the config says \[32, 32\]"),
        (cut_short, "consolidated.01.pth: no whole file of torch.save's zip format"),
        (other_tensors, "consolidated.01.pth holds other tensors than consolidated.00.pth"),
        (other_widths, r"consolidated.00.pth: parts of tok_embeddings.weight do not fit each other: \[\(58, 16\), \("),
        (says(n_layers=2), r"9 tensor\(s\) missing: layers.1.attention.wk.weight \[16, 32\]; "),
        (says(n_layers=None), "does not say n_layers"),
        (says(n_kv_heads=4), r"of another shape: layers.0.attention.wk.weight \[16, 32\], the config says \[32, 32\]"),
        (lambda folder: (folder / "params.json").write_text("{"), "params.json is not JSON"),
    ],
)
def test_parts_that_are_missing_or_do_not_fit_are_refused(spoil, message, tmp_path, torch_names):
    folder = shutil.copytree(COLUMNS, tmp_path / "their")
    spoil(folder)
    with pytest.raises(ValueError, match=message) as error:
        meta.open_folder(folder)
    assert str(error.value).startswith(str(folder)) and "\n" not in str(error.value)


# Pickles --------------------------------------------------------------------------------------------------------------

Storage = collections.namedtuple("Storage", "kind key count")
FLOATS = Storage("FloatStorage", "0", 12)
NUMBERS = np.arange(12, dtype=np.float32)


class Tensor:
    """Pickled as torch.save pickles a tensor, without torch."""

    def __init__(self, storage, start, shape, strides):
        self.arguments = (storage, start, shape, strides, False, collections.OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


@pytest.fixture
def torch_names(monkeypatch):
    """What pickle looks up when it writes torch's names."""

    def _rebuild_tensor_v2():
        raise AssertionError("nothing is rebuilt here")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    kinds = {name: type(name, (), {"__module__": "torch"}) for name in ("FloatStorage", "LongStorage")}
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(**kinds))
    monkeypatch.setitem(sys.modules, "torch._utils", types.SimpleNamespace(_rebuild_tensor_v2=_rebuild_tensor_v2))


def save(file, value, *, kind="storage", compression=zipfile.ZIP_STORED, storage=NUMBERS):
    """A file as torch.save writes it, with one storage."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, x):
            if isinstance(x, Storage):
                return (kind, getattr(sys.modules["torch"], x.kind), x.key, "cpu", x.count)

    with zipfile.ZipFile(file, "w", compression) as archive:
        with archive.open("archive/data.pkl", "w") as stream:
            Pickler(stream, protocol=2).dump(value)
        archive.writestr("archive/data/0", storage.tobytes())
    return file


def test_tensors_may_be_parts_of_one_storage_and_have_axes_of_one(tmp_path, torch_names):
    tensors = {
        "a": Tensor(FLOATS, 0, (2, 3), (3, 1)),
        "b": Tensor(FLOATS, 6, (3, 1, 2), (2, 7, 1)),  # the stride of an axis of 1 is anything
        "c": Tensor(FLOATS, 11, (), ()),
    }
    found = read_tensors(save(tmp_path / "a.pth", collections.OrderedDict(tensors)))
    np.testing.assert_array_equal(found["a"].read(), [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(found["b"].read(), [[[6, 7]], [[8, 9]], [[10, 11]]])
    assert found["c"].read() == 11


@pytest.mark.parametrize(
    "value, options, message",
    [
        ({"w": Tensor(FLOATS, 0, (3, 4), (1, 3))}, {}, r"a tensor \[3, 4\] with strides \[1, 3\], not row after row"),
        ({"w": Tensor(FLOATS, 0, (2, 3), (6, 1))}, {}, r"a tensor \[2, 3\] with strides \[6, 1\]"),
        ({"w": Tensor(FLOATS, 1, (3, 4), (4, 1))}, {}, r"a tensor \[3, 4\] reaches past the end of its storage"),
        ({"w": Tensor(Storage("FloatStorage", "0", 13), 0, (3, 4), (4, 1))}, {}, "shorter than 13 numbers"),
        ({"w": Tensor(Storage("FloatStorage", "7", 12), 0, (3, 4), (4, 1))}, {}, "no whole file .*archive/data/7"),
        ({"w": Tensor(Storage("LongStorage", "0", 6), 0, (6,), (1,))}, {}, "its pickle asks for torch.LongStorage"),
        ({"w": Tensor(FLOATS, 0, (12,), (1,))}, dict(compression=zipfile.ZIP_DEFLATED), "storage 0 is compressed"),
        ({"w": Tensor(FLOATS, 0, (12,), (1,))}, dict(kind="module"), "refers to a 'module', which is no storage"),
        ({"epoch": 3}, {}, "holds something else than a dict of tensors"),
        ([Tensor(FLOATS, 0, (12,), (1,))], {}, "holds something else than a dict of tensors"),
    ],
)
def test_what_cannot_be_read_as_it_lies_is_refused(value, options, message, tmp_path, torch_names):
    file = save(tmp_path / "a.pth", value, **options)
    with pytest.raises(ValueError, match=message) as error:
        read_tensors(file)
    assert str(error.value).startswith(str(file))


def test_files_of_other_kinds_are_refused(tmp_path, torch_names):
    with pytest.raises(ValueError, match=r"no whole file of torch\.save's zip format"):
        (tmp_path / "old.pth").write_bytes(pickle.dumps(119547037146038801333356))
        read_tensors(tmp_path / "old.pth")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("other.txt", "x")
    with pytest.raises(ValueError, match=r"no data\.pkl in it"):
        read_tensors(tmp_path / "other.pth")
    file = save(tmp_path / "short.pth", {"w": Tensor(FLOATS, 0, (12,), (1,))})
    whole = file.read_bytes()
    for length in range(0, len(whole) - 1, 7):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"short.pth: no whole file"):
            read_tensors(file)


def call(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls module.name(argument)."""
    return f"c{module}\n{name}\n(S{argument!r}\ntR.".encode()


class Shell:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        import os

        return os.system, (self.command,)


@pytest.mark.parametrize("pickled", ["protocol 0", "protocol 4", "among tensors"])
def test_a_pickle_that_would_run_a_command_is_refused_and_the_command_not_run(pickled, tmp_path, torch_names):
    proof = tmp_path / "proof"
    command = f"touch {proof}"
    file = tmp_path / "consolidated.00.pth"
    values = {"protocol 4": {"w": Shell(command)}, "among tensors": {"w": Tensor(FLOATS, 0, (1,), (1,)), "x": [()]}}
    if pickled == "among tensors":
        values[pickled]["x"].append(Shell(command))
        save(file, values[pickled])
    else:
        content = call("os", "system", command) if pickled == "protocol 0" else pickle.dumps(values[pickled], 4)
        pickle.loads(content)
        assert proof.exists(), "the command is one that shows"
        proof.unlink()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", content)
    with pytest.raises(ValueError, match=r"its pickle asks for (os|posix)\.system, which is no tensor; not executed"):
        read_tensors(file)
    shutil.copy(COLUMNS / "params.json", tmp_path)
    with pytest.raises(ValueError, match="not executed"):
        meta.open_folder(tmp_path)
    assert not proof.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval",
        "builtins getattr",
        "torch load",
        "torch.storage _load_from_bytes",
        "torch._utils _rebuild_tensor",
        "torch.nn.modules.linear Linear",
        "torch FloatStorage.__init__",
        "numpy._core.multiarray _reconstruct",
        "numpy dtype",
        "collections defaultdict",
        "camelid.model.interop.torch_files _Unpickler",
    ],
)
def test_every_name_but_those_of_tensors_is_refused(name, tmp_path):
    module, attribute = name.split()
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a/data.pkl", call(module, attribute, "1"))
    with pytest.raises(ValueError, match=f"a.pth: its pickle asks for {module}.{attribute}, which is no tensor"):
        read_tensors(tmp_path / "a.pth")
