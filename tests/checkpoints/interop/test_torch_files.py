"""PyTorch's files: tensors as they lie there, and pickles that are read without being run."""

import collections
import json
import pickle
import random
import shutil
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from camelid.checkpoints.interop import huggingface, meta, weight_files
from camelid.checkpoints.interop.torch_files import read_tensors
from camelid.tests.checkpoints.interop import folders
from camelid.tests.checkpoints.interop.torch_writer import Storage, Tensor, save, save_tensors
from camelid.tests.model.golden import make_interop, make_llama, make_torch_file

COLUMNS = make_interop.FOLDER / "meta_columns"
FLOATS = Storage("FloatStorage", "0", 12)


def one(file, value, **options):
    """A file with one storage of 12 numbers."""
    return save(file, value, storages={"0": np.arange(12, dtype=np.float32)}, **options)


def test_what_pytorch_wrote_is_read_whatever_lies_how():
    """Parts of one storage, turned and stepped views, parameters, 16 bits, in a state dict with PyTorch's metadata."""
    found = {name: tensor.read() for name, tensor in read_tensors(make_torch_file.FILE).items()}
    expected = make_torch_file.expected()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name].astype(np.float64), value, err_msg=name)
    assert found["bfloat16"].dtype == ml_dtypes.bfloat16 and found["float16"].dtype == np.float16


def test_tensors_may_be_parts_of_one_storage_and_have_axes_of_one(tmp_path):
    tensors = {
        "a": Tensor(FLOATS, 0, (2, 3), (3, 1)),
        "b": Tensor(FLOATS, 6, (3, 1, 2), (2, 7, 1)),  # the stride of an axis of 1 is anything
        "c": Tensor(FLOATS, 11, (), ()),
        "turned": Tensor(FLOATS, 0, (3, 4), (1, 3)),
        "every other": Tensor(FLOATS, 0, (2, 3), (6, 2)),
        "none": Tensor(FLOATS, 12, (0, 5), (5, 1)),
    }
    found = read_tensors(one(tmp_path / "a.pth", collections.OrderedDict(tensors)))
    np.testing.assert_array_equal(found["a"].read(), [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(found["b"].read(), [[[6, 7]], [[8, 9]], [[10, 11]]])
    assert found["c"].read() == 11
    np.testing.assert_array_equal(found["turned"].read(), [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]])
    np.testing.assert_array_equal(found["every other"].read(), [[0, 2, 4], [6, 8, 10]])
    assert found["none"].read().shape == (0, 5)


@pytest.mark.parametrize(
    "value, options, message",
    [
        ({"w": Tensor(FLOATS, 1, (3, 4), (4, 1))}, {}, r"a tensor \[3, 4\] reaches past the end of its storage"),
        ({"w": Tensor(Storage("FloatStorage", "0", 13), 0, (3, 4), (4, 1))}, {}, "shorter than 13 numbers"),
        ({"w": Tensor(Storage("FloatStorage", "7", 12), 0, (3, 4), (4, 1))}, {}, "no whole file .*archive/data/7"),
        ({"w": Tensor(Storage("FloatStorage", "0", -3), 0, (3, 4), (4, 1))}, {}, "storage 0 has -3 numbers"),
        ({"w": Tensor(FLOATS, -4, (3, 4), (4, 1))}, {}, "start -4"),
        ({"w": Tensor(FLOATS, 0, (3, -4), (4, 1))}, {}, r"shape \(3, -4\)"),
        ({"w": Tensor(FLOATS, 0, (3, 2.0), (4, 1))}, {}, r"shape \(3, 2.0\)"),
        ({"w": Tensor(FLOATS, 0, (3, 4), (4,))}, {}, r"strides \(4,\)"),
        ({"w": Tensor(FLOATS, 0, (3, 4), (4, 1), {"neg": True})}, {}, "has a lazily negated or conjugated tensor"),
        ({"w": Tensor(FLOATS, 0, (1 << 40, 1 << 40), (0, 0))}, {}, "reaches past the end"),
        ({"w": Tensor(FLOATS, 0, (10**4000,), (0,))}, {}, "reaches past the end"),
        ({"w": Tensor(FLOATS, 0, (200, 300), (0, 0))}, {}, "reaches past the end"),
        ({"w": Tensor(FLOATS, 0, (3, 4), (4, 10**9))}, {}, "reaches past the end"),
        ({3: Tensor(FLOATS, 0, (12,), (1,))}, {}, "a tensor's name is 3, which is no string"),
        ({"w": Tensor(FLOATS, 0, (12,), (1,))}, dict(compressed=["data/0"]), "storage 0 is compressed"),
        ({"w": Tensor(FLOATS, 0, (12,), (1,))}, dict(compressed=["data.pkl"]), "data.pkl is compressed"),
        ({"w": Tensor(FLOATS, 0, (12,), (1,))}, dict(kind="module"), "refers to a 'module', which is no storage"),
        ({"epoch": 3}, {}, "'epoch' in it is of type int: save a dict of tensors"),
        ({"state_dict": {}}, {}, "'state_dict' in it is of type dict: save a dict of tensors"),
        ([Tensor(FLOATS, 0, (12,), (1,))], {}, "holds something else than a dict of tensors"),
    ],
)
def test_what_cannot_be_read_as_it_lies_is_refused(value, options, message, tmp_path):
    file = one(tmp_path / "a.pth", value, **options)
    with pytest.raises(ValueError, match=message) as error:
        read_tensors(file)
    assert str(error.value).startswith(str(file))


def test_files_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no whole file of torch\.save's zip format"):
        (tmp_path / "old.pth").write_bytes(pickle.dumps(119547037146038801333356))
        read_tensors(tmp_path / "old.pth")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("other.txt", "x")
    with pytest.raises(ValueError, match=r"has no data\.pkl"):
        read_tensors(tmp_path / "other.pth")
    file = one(tmp_path / "short.pth", {"w": Tensor(FLOATS, 0, (12,), (1,))})
    whole = file.read_bytes()
    for length in range(0, len(whole) - 1, 7):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"short.pth: no whole file"):
            read_tensors(file)


def nested(depth: int) -> bytes:
    """A pickle of a tuple of a tuple twice, of a tuple twice, ...: small, and without end for what walks through it."""
    return b"\x80\x02)" + b"q\x00h\x00\x86" * depth


@pytest.mark.parametrize(
    "pickled, message",
    [
        (b"\x80\x02}" + nested(60)[2:] + b"K\x01s.", "a tensor's name is tuple of no use, which is no string"),
        (nested(60) + b"Q.", "no whole file|which is no storage"),
        (
            b"\x80\x02}r\xff\xff\xff\x7f.",
            None,
        ),  # a place in the memory of Python's own unpickler for each number before
        (b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".", "no whole file"),
        (b"\x80\x02ccollections\nOrderedDict\n(K\x01tR.", "no whole file"),
        (b"\x80\x02}", "no whole file|does not end"),
        (b"\x80\x02(((((.", "no whole file"),
        (b"\x80\x02ccamelid\nload\n)\x81.", "asks for camelid.load, which is no tensor; not executed"),
        (b"\x80\x02}(X\x01\x00\x00\x00aK\x01iposix\nsystem\n.", "its pickle has INST, which tensors do not need"),
    ],
)
def test_a_pickle_can_neither_fill_memory_nor_run_without_end(pickled, message, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a/data.pkl", pickled)
    if message is None:
        assert read_tensors(tmp_path / "a.pth") == {}
        return
    with pytest.raises(ValueError, match=message) as error:
        read_tensors(tmp_path / "a.pth")
    assert str(error.value).startswith(str(tmp_path)) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    "bomb, message", [("byteorder", "its byte order is not little-endian"), ("data.pkl", "data.pkl is compressed")]
)
def test_an_entry_that_unpacks_to_more_than_the_file_is_not_unpacked(bomb, message, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        for name, content in {"data.pkl": b"\x80\x02}.", "byteorder": b"little"}.items():
            packed = (bytes(10**7), zipfile.ZIP_DEFLATED) if name == bomb else (content, zipfile.ZIP_STORED)
            archive.writestr(f"a/{name}", *packed)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message):
        read_tensors(tmp_path / "a.pth")
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


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
def test_a_pickle_that_would_run_a_command_is_refused_and_the_command_not_run(pickled, tmp_path):
    proof = tmp_path / "proof"
    command = f"touch {proof}"
    file = tmp_path / "consolidated.00.pth"
    values = {"protocol 4": {"w": Shell(command)}, "among tensors": {"w": Tensor(FLOATS, 0, (1,), (1,)), "x": [()]}}
    if pickled == "among tensors":
        values[pickled]["x"].append(Shell(command))
        one(file, values[pickled])
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
        "camelid.checkpoints.interop.torch_files _Unpickler",
    ],
)
def test_every_name_but_those_of_tensors_is_refused(name, tmp_path):
    module, attribute = name.split()
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a/data.pkl", call(module, attribute, "1"))
    with pytest.raises(ValueError, match=f"a.pth: its pickle asks for {module}.{attribute}, which is no tensor"):
        read_tensors(tmp_path / "a.pth")


# Folders of pytorch_model.bin ---------------------------------------------------------------------------------------


def write_bin_folder(folder, case, files=1, **spoilt):
    """A folder of Hugging Face's with weights of make_llama.py in PyTorch's files."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **case}))
    named = list(make_llama.weights(case).items())
    if files == 1:
        save_tensors(folder / "pytorch_model.bin", dict(named))
        return folder
    file_of = {}
    for number in range(files):
        file = f"pytorch_model-{number + 1:05d}-of-{files:05d}.bin"
        part = dict(named[number::files])
        save_tensors(folder / file, part)
        file_of |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": file_of | spoilt}))
    return folder


@pytest.mark.parametrize("files", [1, 3])
def test_a_folder_of_pytorch_files_holds_the_same_network_as_one_of_safetensors(files, tmp_path, monkeypatch):
    case = make_llama.CASES["grouped"]
    expected = folders.load(huggingface.open_folder(folders.write_golden_folder(tmp_path / "safe", case)))
    opened = []
    monkeypatch.setattr(weight_files, "read_tensors", lambda path: opened.append(path) or read_tensors(path))
    source = huggingface.open_folder(write_bin_folder(tmp_path / "bin", case, files))
    folders.assert_same_params(folders.load(source), expected)
    assert [file.suffix for file in source.files] == [".json", *[".bin"] * files]
    assert len(opened) == files  # each pickle is read once, not once for each tensor


def test_safetensors_are_read_where_both_are_there(tmp_path):
    folder = write_bin_folder(tmp_path / "both", make_interop.META)
    folders.write_golden_folder(tmp_path / "safe", make_interop.META)
    shutil.copy(tmp_path / "safe" / "model.safetensors", folder)
    (folder / "pytorch_model.bin").write_bytes(b"damaged")
    assert [file.name for file in huggingface.open_folder(folder).files] == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["../secret.bin", "/etc/passwd", "sub/model.bin", "..", "", "a\0b", "a\nb", "..\\a"])
def test_an_index_names_files_of_its_own_folder_only(name, tmp_path):
    folder = write_bin_folder(tmp_path / "bin", make_interop.META, 2, further=name)
    save_tensors(tmp_path / "secret.bin", {"further": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"weight_map: further is .*, not the name of a file in this folder"):
        huggingface.open_folder(folder)


@pytest.mark.parametrize("weights", [None, [], {}, {"a": 3}, {"a": ["b"]}, "model.bin"])
def test_an_index_without_files_names_is_refused(weights, tmp_path):
    folder = write_bin_folder(tmp_path / "bin", make_interop.META, 2)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weights}))
    with pytest.raises(ValueError, match=r"has no weight_map|weight_map is .*, not an object|, not a string"):
        huggingface.open_folder(folder)


def test_a_link_that_leads_nowhere_is_said(tmp_path):
    folder = write_bin_folder(tmp_path / "bin", make_interop.META)
    (folder / "pytorch_model.bin").unlink()
    (folder / "pytorch_model.bin").symlink_to("../../blobs/1234")
    with pytest.raises(ValueError, match=r"pytorch_model.bin is a link to ../../blobs/1234, which does not exist"):
        huggingface.open_folder(folder)


def test_no_change_of_a_few_bytes_gives_anything_but_tensors_or_one_line(tmp_path):
    """A fixed draw of damages of the pickle and of the zip around it."""
    draw, whole = random.Random(0), make_torch_file.FILE.read_bytes()
    file, refused = tmp_path / "a.bin", 0
    for _ in range(400):
        spoilt = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            spoilt[draw.randrange(len(spoilt))] = draw.choice([0, 1, 0x2E, 0x52, 0x80, 0xFF, draw.randrange(256)])
        file.write_bytes(spoilt[: draw.randrange(len(spoilt))] if draw.random() < 0.1 else spoilt)
        try:
            for tensor in read_tensors(file).values():
                assert tensor.read().nbytes <= len(whole)
        except ValueError as error:
            assert str(error).startswith(str(file)) and "\n" not in str(error) and len(str(error)) < 500
            refused += 1
    assert 50 < refused < 400
