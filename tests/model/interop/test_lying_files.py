"""Files of others that lie about themselves: changed in one place, they are read or refused in one line.

A run of the suite changes each kind of file a few times; `CAMELID_FUZZ=500` changes each so many times.
"""

import json
import math
import os
import random
import resource
import signal
import struct
import tracemalloc
from contextlib import contextmanager

import gguf
import jax
import pytest

from camelid.data.errors import UserError
from camelid.model.interop import gguf_files, huggingface, meta, tensors
from camelid.model import llama
from camelid.model.config import RopeScaling
from camelid.tests.model.interop import folders, test_gguf
from camelid.tests.model.interop.folders import TINY
from camelid.tests.model.golden import make_interop

TIMES = int(os.environ.get("CAMELID_FUZZ", "60"))
SECONDS = 5
MEMORY = 200e6  # bytes of Python's and numpy's, for files of less than a megabyte

NUMBERS = [0, -1, 1, 2, 3, 7, 2**15, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63, 10**30, -(10**12), 0.5, 1e-30, 1e30, -0.0, math.inf, -math.inf, math.nan]
VALUES = [*NUMBERS, None, True, False, "", "1", "x" * 5000, "../../etc/passwd", "\x00", [], [1], [None], {}, {"a": {}}, [[[[]]]]]


@contextmanager
def limits():
    """Ends what hangs, by SIGALRM, and tells what took too much memory."""

    def hang(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(open_it) -> str:
    """"accepted" or "refused": in one line, and by no other error than the two that become one line."""
    with limits():
        try:
            source = open_it()
            source.config.n_params
            jax.eval_shape(llama.build(source.config).init, jax.random.key(0))
        except (ValueError, UserError) as error:
            assert type(error) in (ValueError, UserError), repr(error)
            assert "\n" not in str(error) and len(str(error)) < 2000, str(error)
            return "refused"
    return "accepted"


def paths(value, path=()):
    """Where each value of a JSON document stands."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from paths(value[key], (*path, key))


def change(document, random: random.Random):
    """The document with one value changed, removed, or one more."""
    document = json.loads(json.dumps(document))
    chosen = random.choice([path for path in paths(document) if path])
    holder = document
    for key in chosen[:-1]:
        holder = holder[key]
    value = random.choice(VALUES)
    old = holder[chosen[-1]]
    if isinstance(old, (int, float)) and not isinstance(old, bool) and random.random() < 0.6:
        value = random.choice(NUMBERS)
    if random.random() < 0.1:
        del holder[chosen[-1]]
        return document, f"{chosen} removed"
    holder[chosen[-1]] = value
    return document, f"{chosen} = {value!r}"[:200]


CONFIGS = {
    "plain": {},
    "linear": dict(rope_scaling=RopeScaling("linear", 4.0)),
    "dynamic": dict(rope_scaling=RopeScaling("dynamic", 4.0, original_max_len=128)),
    "yarn": dict(rope_scaling=RopeScaling("yarn", 4.0, 128)),
    "llama3": dict(rope_scaling=RopeScaling("llama3", 8.0, original_max_len=64)),
    "longrope": dict(
        rope_scaling=RopeScaling("longrope", 4.0, 128, short_factors=(1.0,) * 8, long_factors=(2.0,) * 8)
    ),
}


FAILED = []

def tell(counts, kind):
    print(f"{kind}: {counts}", *FAILED, sep="\n"); FAILED.clear()


def test_a_config_json_changed_in_one_place_is_read_or_refused_in_a_line(tmp_path):
    chance = random.Random(0)
    counts = {}
    folder = {name: folders.write_folder(tmp_path / name, TINY.replace(**fields)) for name, fields in CONFIGS.items()}
    for _ in range(TIMES):
        name = chance.choice(list(folder))
        file = folder[name] / "config.json"
        original = file.read_text()
        changed, what = change(json.loads(original), chance)
        file.write_text(json.dumps(changed))
        try:
            result = outcome(lambda: huggingface.open_folder(folder[name]))
        except BaseException as error:
            FAILED.append(f"{name}: {what}: {error!r}"[:300]); result = "traceback"
        counts[result] = counts.get(result, 0) + 1
        file.write_text(original)
    tell(counts, "config.json")


def test_an_index_changed_in_one_place_is_read_or_refused_in_a_line(tmp_path):
    chance = random.Random(1)
    counts = {}
    folder = folders.write_folder(tmp_path / "a", TINY, max_file_bytes=40_000)
    file = folder / huggingface.INDEX
    original = file.read_text()
    for _ in range(TIMES):
        changed, what = change(json.loads(original), chance)
        file.write_text(json.dumps(changed))
        try:
            result = outcome(lambda: huggingface.open_folder(folder))
        except BaseException as error:
            FAILED.append(f"{what}: {error!r}"[:300]); result = "traceback"
        counts[result] = counts.get(result, 0) + 1
    tell(counts, "model.safetensors.index.json")


def test_a_params_json_changed_in_one_place_is_read_or_refused_in_a_line(tmp_path):
    chance = random.Random(2)
    counts = {}
    folder = tmp_path / "a"
    folder.mkdir()
    for file in (make_interop.FOLDER / "meta_columns").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    file = folder / "params.json"
    original = json.loads(file.read_text()) | {"use_scaled_rope": True, "rope_theta": 500000.0, "rope_scaling_factor": 8}
    for _ in range(TIMES):
        changed, what = change(original, chance)
        file.write_text(json.dumps(changed))
        try:
            result = outcome(lambda: meta.open_folder(folder))
        except BaseException as error:
            FAILED.append(f"{what}: {error!r}"[:300]); result = "traceback"
        counts[result] = counts.get(result, 0) + 1
    tell(counts, "params.json")


def test_a_gguf_file_changed_in_one_place_is_read_or_refused_in_a_line(tmp_path):
    chance = random.Random(3)
    counts = {}
    files = {}
    for name, fields in CONFIGS.items():
        if name not in ("dynamic", "longrope"):
            files[name] = test_gguf.write(tmp_path / f"{name}.gguf", TINY.replace(**fields)
                , folders.random_params(TINY), **{"tokenizer.ggml.tokens": ["a"] * 58})
    for _ in range(TIMES):
        path = files[chance.choice(list(files))]
        original = path.read_bytes()
        header = gguf.GGUFReader(path).data_offset
        data, place = bytearray(original), chance.randrange(header)
        kind = chance.random()
        if kind < 0.4:
            data[place] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, data[place] ^ (1 << chance.randrange(8))])
        elif kind < 0.8:
            width = chance.choice([4, 8])
            place -= place % 4
            number = chance.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, 2**40, len(data)])
            data[place : place + width] = (number % 2 ** (8 * width)).to_bytes(width, "little")
        else:
            del data[chance.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            result = outcome(lambda: gguf_files.open_file(path))
        except BaseException as error:
            FAILED.append(f"{path.name} at {place}, {kind:.2f}: {error!r}"[:300]); result = "traceback"
        counts[result] = counts.get(result, 0) + 1
        path.write_bytes(original)
    tell(counts, "gguf")
