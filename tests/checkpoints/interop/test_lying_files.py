"""Files of others that lie about themselves: changed in one place, each is read, or refused in one line.

The suite changes each kind of file a few times; `CAMELID_FUZZ=500 pytest -s` changes each so many times and tells what
came of it.
"""

import collections
import contextlib
import functools
import json
import math
import os
import random
import shutil
import signal
import tracemalloc

import gguf
import jax
import pytest

from camelid import checkpoints
from camelid.checkpoints.interop import gguf_files, huggingface, meta
from camelid.errors import UserError
from camelid.model import llama
from camelid.model.config import RopeScaling
from camelid.tests.checkpoints.interop import folders, test_gguf
from camelid.tests.checkpoints.interop.folders import TINY
from camelid.tests.model.golden import make_interop

TIMES = int(os.environ.get("CAMELID_FUZZ", "24"))
SECONDS = 10
MEMORY = 200e6  # bytes of Python's and numpy's, for files of less than a megabyte

NUMBERS = [0, -1, 1, 2, 7, 2**15, 2**31 - 1, 2**32, 2**53 + 1, 2**63, 10**30, -(10**12), 0.5, 1e-30, 1e30, -0.0]
NUMBERS += [math.inf, -math.inf, math.nan]
VALUES = [*NUMBERS, None, True, False, "", "1", "x" * 5000, "../../etc/passwd", "\0", [], [1], [None], {}, {"a": {}}]

SCALINGS = {
    "plain": None,
    "linear": RopeScaling("linear", 4.0),
    "dynamic": RopeScaling("dynamic", 4.0, original_max_len=128),
    "yarn": RopeScaling("yarn", 4.0, 128),
    "llama3": RopeScaling("llama3", 8.0, original_max_len=64),
    "longrope": RopeScaling("longrope", 4.0, 128, short_factors=(1.0,) * 8, long_factors=(2.0,) * 8),
}


def outcome(open_file) -> str:
    """Whether a file is "accepted", its network in shapes included, or "refused", in time and in memory."""
    with limits():
        try:
            config = open_file().config
            jax.eval_shape(llama.build(config).init, jax.random.key(0))
        except (ValueError, UserError) as error:
            assert type(error) in (ValueError, UserError), repr(error)  # not those of json, unicode and numpy
            assert "\n" not in str(error) and len(str(error)) < 2000, str(error)
            return "refused"
    return "accepted"


@contextlib.contextmanager
def limits():
    def hang(*_):
        raise TimeoutError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY, "too much memory"
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def change(document, chance: random.Random):
    """A JSON document with one of its values changed or removed, and where."""

    def places(value, path=()):
        yield path
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            yield from places(value[key], (*path, key))

    document = json.loads(json.dumps(document))
    *path, last = chance.choice([path for path in places(document) if path])
    holder = document
    for key in path:
        holder = holder[key]
    is_number = isinstance(holder[last], int | float) and not isinstance(holder[last], bool)
    if chance.random() < 0.1:
        del holder[last]
        return document, f"{[*path, last]} removed"
    holder[last] = chance.choice(NUMBERS if is_number and chance.random() < 0.6 else VALUES)
    return document, f"{[*path, last]} = {holder[last]!r:.100}"


def run(kind: str, attempts) -> None:
    """attempts: pairs of what was changed and the function that opens the file, made one after the other."""
    counts, failed = collections.Counter(), []
    for what, open_file in attempts:
        try:
            counts[outcome(open_file)] += 1
        except BaseException as error:
            failed.append(f"{what}: {error!r:.200}")
    print(f"{kind}: {dict(counts)}, {len(failed)} failed")
    assert not failed, "\n".join(failed)
    assert counts["accepted"] and counts["refused"], counts


def changes_of_json(file, seed: int, open_file, times: int = TIMES):
    original, chance = json.loads(file.read_text()), random.Random(seed)
    for _ in range(times):
        changed, what = change(original, chance)
        file.write_text(json.dumps(changed))
        yield what, open_file
    file.write_text(json.dumps(original))


def test_a_config_json_changed_in_one_place_is_read_or_refused_in_one_line(tmp_path):
    def attempts():
        for seed, (name, scaling) in enumerate(SCALINGS.items()):
            folder = folders.write_folder(tmp_path / name, TINY.replace(rope_scaling=scaling))
            open_folder = functools.partial(huggingface.open_folder, folder)
            yield from changes_of_json(folder / "config.json", seed, open_folder, TIMES // len(SCALINGS))

    run("config.json", attempts())


def test_an_index_changed_in_one_place_is_read_or_refused_in_one_line(tmp_path):
    folder = folders.write_folder(tmp_path / "a", TINY, max_file_bytes=40_000)
    run("index", changes_of_json(folder / huggingface.INDEX, 1, lambda: huggingface.open_folder(folder)))


def test_a_params_json_changed_in_one_place_is_read_or_refused_in_one_line(tmp_path):
    folder = shutil.copytree(make_interop.FOLDER / "meta_columns", tmp_path / "a")
    fields = json.loads((folder / "params.json").read_text())
    fields |= {"use_scaled_rope": True, "rope_theta": 500_000.0, "rope_scaling_factor": 8}
    (folder / "params.json").write_text(json.dumps(fields))
    run("params.json", changes_of_json(folder / "params.json", 2, lambda: meta.open_folder(folder)))


def test_a_gguf_header_changed_in_one_place_is_read_or_refused_in_one_line(tmp_path):
    def attempts():
        for seed, name in enumerate(("plain", "linear", "yarn", "llama3")):
            config = TINY.replace(rope_scaling=SCALINGS[name])
            tokens = {"tokenizer.ggml.tokens": ["a"] * config.vocab_size}
            path = test_gguf.write(tmp_path / f"{name}.gguf", config, folders.random_params(config), **tokens)
            original, header, chance = path.read_bytes(), gguf.GGUFReader(path).data_offset, random.Random(seed)
            for _ in range(TIMES // 4):
                data, place, kind = bytearray(original), chance.randrange(header), chance.random()
                if kind < 0.4:
                    data[place] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, data[place] ^ (1 << chance.randrange(8))])
                elif kind < 0.8:
                    number = chance.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, 2**40, len(data)])
                    data[place : place + 8] = number.to_bytes(8, "little")
                else:
                    del data[chance.randrange(len(data)) :]
                path.write_bytes(data)
                yield f"{name}: {kind:.2f} at byte {place}", lambda path=path: gguf_files.open_file(path)

    run("gguf", attempts())


@pytest.mark.parametrize("field", ["num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads"])
def test_a_size_that_no_file_holds_is_refused_before_anything_is_made_of_it(field, tmp_path):
    folder = folders.write_folder(tmp_path / "a", TINY)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {field: 2**40}))
    with (
        limits(),
        pytest.raises(ValueError, match=rf"config.json: {field} is 1099511627776, not a whole number from 1 to"),
    ):
        huggingface.open_folder(folder)


@pytest.mark.parametrize("name", ["../b/model.safetensors", "/etc/passwd", "..", "a\0b"])
def test_the_files_of_an_index_are_in_its_own_folder(name, tmp_path):
    folder = folders.write_folder(tmp_path / "a", TINY, max_file_bytes=40_000)
    folders.write_folder(tmp_path / "b", TINY)
    index = json.loads((folder / huggingface.INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = name
    (folder / huggingface.INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"lm_head.weight is .*, not the name of a file in this folder"):
        huggingface.open_folder(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_link_to_a_file_that_is_gone_is_said(name, tmp_path):
    folder = folders.write_folder(tmp_path / "a", TINY)
    if name == "tokenizer_config.json":
        (folder / "tokenizer.json").write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "blobs" / "3f2a")
    with pytest.raises(UserError, match=rf"{name} is a link to .*3f2a, which does not exist"):
        checkpoints.open(folder)


def test_a_link_to_a_recommendation_that_is_gone_is_told_and_one_that_nobody_reads_is_not(tmp_path):
    folder = folders.write_folder(tmp_path / "a", TINY)
    for name in ("generation_config.json", "pytorch_model.bin", "LICENSE"):
        (folder / name).symlink_to(tmp_path / "blobs" / "3f2a")
    with pytest.warns(UserWarning) as told:
        assert checkpoints.open(folder).source.config == TINY
    assert [str(each.message) for each in told] == [
        f"{folder}/generation_config.json is a link to {tmp_path}/blobs/3f2a, which does not exist; its "
        "sampling settings are not used"
    ]
