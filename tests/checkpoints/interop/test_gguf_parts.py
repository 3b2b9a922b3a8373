"""Split GGUF files, as the gguf package and llama.cpp's gguf-split write them: opened by any part, and whole or not at
all. Files without a tokenizer."""

import gguf
import pytest

from camelid import checkpoints
from camelid.checkpoints import convert, reading
from camelid.checkpoints.interop import gguf_files
from camelid.tests.checkpoints.interop import folders
from camelid.tests.checkpoints.interop.test_gguf import llama_cpp_tensors, metadata, write_raw
from camelid.tests.model.golden import make_llama

CASE = make_llama.CASES["grouped"]


@pytest.fixture
def parts(tmp_path):
    """The parts of a split model."""
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama", split_max_tensors=8)
    for key, value in metadata(CASE).items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(f"llama.{key}", value)
    for name, value in llama_cpp_tensors(CASE).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file(tmp_path / "model.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = sorted(tmp_path.glob("*.gguf"))
    assert [file.name for file in found] == [f"model-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    return found


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    file = tmp_path_factory.mktemp("whole") / "model.gguf"
    return folders.load(gguf_files.open_file(write_raw(file, metadata(CASE), llama_cpp_tensors(CASE))))


@pytest.mark.parametrize("opened", [0, 1, 2])
def test_a_split_model_is_opened_by_any_of_its_parts(opened, parts, expected):
    source = gguf_files.open_file(parts[opened])
    folders.assert_same_params(folders.load(source), expected)
    assert [str(file) for file in source.files] == [str(part) for part in parts]


def test_a_split_model_is_converted_and_all_its_parts_are_named(parts, tmp_path):
    convert.to_camelid(parts[0], tmp_path / "run")
    assert [file["name"] for file in reading.read_manifest(tmp_path / "run")["origin"]["files"]] == [
        part.name for part in parts
    ]


def other_place(parts):
    middle = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    parts[2].write_bytes(middle)
    return parts[0]


def other_name(parts):
    return parts[0].rename(parts[0].with_name("renamed.gguf"))


def twice(parts):
    """The same tensors in two parts, each of which gives itself out for the right one."""
    changed = parts[1].read_bytes()
    wrong = gguf.GGUFReader(parts[1]).fields["split.no"]
    parts[2].write_bytes(changed)
    with open(parts[2], "r+b") as file:
        file.seek(wrong.offset + sum(int(part.nbytes) for part in wrong.parts[:-1]))
        file.write((2).to_bytes(2, "little"))
    return parts[0]


def without(number):
    def spoil(parts):
        parts[number].unlink()
        return parts[0 if number else 1]

    return spoil


@pytest.mark.parametrize(
    "spoil, message",
    [
        (without(0), "1 of its 3 parts are missing beside it: .*model-00001-of-00003.gguf: no such file$"),
        (without(2), "1 of its 3 parts are missing beside it: .*model-00003-of-00003.gguf: no such file$"),
        (other_place, "model-00002-of-00003.gguf: its metadata does not say that it is part 2 of 3"),
        (other_name, "renamed.gguf is one of 3 parts: rename them to end in -00001-of-00003.gguf"),
        (twice, "its parts hold 16 tensors, but the first part says 21"),
    ],
)
def test_parts_that_are_missing_or_out_of_place_are_refused(spoil, message, parts):
    with pytest.raises(ValueError, match=message):
        gguf_files.open_file(spoil(parts))


@pytest.mark.parametrize("model", ["no_vocab", "none"])
def test_a_file_without_a_tokenizer_is_a_model_without_one(model, tmp_path):
    fields = metadata(CASE) | {"tokenizer.ggml.model": model}
    found = checkpoints.open(write_raw(tmp_path / "a.gguf", fields, llama_cpp_tensors(CASE)))
    assert found.tokenizer is None and found.template is None
    assert checkpoints.open(tmp_path / "a.gguf").tokenizer is None
