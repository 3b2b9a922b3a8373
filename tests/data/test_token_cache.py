"""The token cache: what it holds, what it counts, and that nothing interrupts or corrupts it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from camelid.data import sources, token_cache
from camelid.data.formats import READING
from camelid.data.sources import Source
from camelid.data.templates import Encoded, load_template
from camelid.data.text_encoder import TextEncoder, encode_record
from camelid.data.token_cache import build_cache, open_cache
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.errors import UserError

RECORDS = 500


class CharacterTokenizer:
    """One id per character; `calls` counts texts. With `fail_at` it dies on the way."""

    bos_id, adds_bos, eos_id, vocab_size, name = 1, True, 2, 300, "characters"

    def __init__(self, fail_at=None):
        self.calls, self.fail_at = 0, fail_at

    def cache_key(self, template_source):
        return [self.name, self.bos_id, self.eos_id]

    def encode(self, text):
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("killed")
        return [ord(character) for character in text]


class LastAnswerTemplate:
    """Trains on the last message if it is the assistant's and not "mute"; refuses the word "bad"."""

    fingerprint, source = "last answer", ""

    def encode(self, messages, tokenizer, tools=None, documents=None):
        if any("bad" in message["content"] for message in messages):
            raise UserError("bad words")
        pieces = [tokenizer.encode(message["content"]) for message in messages]
        tokens = np.array([token for piece in pieces for token in piece], np.int32)
        trained = 0 if messages[-1]["content"] == "mute" else len(pieces[-1])
        return Encoded(tokens, np.arange(len(tokens)) >= len(tokens) - trained)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(token_cache, "SHARD_RECORDS", 50)


@pytest.fixture
def text_source(tmp_path):
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(97, 123, rng.integers(1, 30)))) for _ in range(RECORDS)]
    return write(tmp_path / "texts.jsonl", [{"text": text} for text in texts])


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def build(source, folder, tokenizer=None, template=None, split=None, workers=1, **options):
    encoder = TextEncoder(tokenizer or CharacterTokenizer(), template)
    return build_cache(Source(source, **options), split, encoder, folder, workers=workers)


def content(folder):
    """All files of a cache."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def samples_of(opened):
    for start, stop in zip(opened.starts, opened.starts[1:], strict=False):
        yield opened.tokens[start:stop].tolist(), opened.mask(start, stop).tolist()


def test_the_cache_holds_every_record_in_order(text_source, tmp_path):
    opened = build(text_source, tmp_path / "cache")
    expected = [
        ([1, *map(ord, record["text"]), 2], [False] + [True] * (len(record["text"]) + 1))
        for record in sources.read(Source(text_source))
    ]
    assert list(samples_of(opened)) == expected
    assert len(opened) == RECORDS
    assert opened.pairs.tolist() == [len(tokens) - 1 for tokens, _ in expected]
    assert opened.tokens.dtype == np.uint16
    assert isinstance(opened.tokens, np.memmap)
    assert opened.first_trained.tolist() == [0] * RECORDS
    tokens = sum(len(tokens) for tokens, _ in expected)
    assert opened.info["counts"] == {
        "records": RECORDS,
        "samples": RECORDS,
        "tokens": tokens,
        "trained": tokens - RECORDS,
        "empty": 0,
        "skipped": 0,
    }


def test_masks_of_any_stretch_equal_the_sample_masks(tmp_path):
    rng = np.random.default_rng(1)
    chats = [
        {"messages": [{"role": r, "content": "x" * rng.integers(1, 9)} for r in ("user", "assistant")]}
        for _ in range(130)
    ]
    opened = build(write(tmp_path / "chats.jsonl", chats), tmp_path / "cache", template=LastAnswerTemplate())
    lengths = [[len(message["content"]) for message in chat["messages"]] for chat in chats]
    whole = [trained for asked, said in lengths for trained in [False] * asked + [True] * said]
    for start, stop in np.sort(rng.integers(0, len(whole), (200, 2))):
        assert opened.mask(start, stop).tolist() == whole[start:stop]
    assert opened.first_trained.tolist() == [asked - 1 for asked, _ in lengths]
    assert opened.info["counts"]["trained"] == sum(whole)


def test_a_large_vocabulary_is_stored_in_32_bits(text_source, tmp_path):
    tokenizer = CharacterTokenizer()
    tokenizer.vocab_size = 65_537
    assert build(text_source, tmp_path / "cache", tokenizer).tokens.dtype == np.uint32


def test_splits_are_caches_of_their_own(text_source, tmp_path):
    parts = [build(text_source, tmp_path / "cache", split=split, heldout=0.2) for split in ("train", "heldout")]
    assert sum(len(part) for part in parts) == RECORDS
    assert parts[0].path != parts[1].path
    assert 0.1 < len(parts[1]) / RECORDS < 0.3


def test_samples_without_a_trained_token_are_counted_and_left_out(tmp_path):
    answers = ["yes", "mute", "no", "mute"]
    chats = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": answer}]}
        for i, answer in enumerate(answers)
    ]
    opened = build(write(tmp_path / "chats.jsonl", chats), tmp_path / "cache", template=LastAnswerTemplate())
    assert len(opened) == 2
    assert opened.info["counts"]["empty"] == 2
    with pytest.raises(UserError, match=r"nothing to train on.*1 records, 1 empty"):
        build(write(tmp_path / "mute.jsonl", chats[1:2]), tmp_path / "cache", template=LastAnswerTemplate())


def test_bad_records_stop_the_build_or_are_skipped_counted_and_listed(tmp_path):
    bad = {"messages": [{"role": "user", "content": "bad"}, {"role": "assistant", "content": "a"}]}
    source = write(tmp_path / "some.jsonl", [{"text": "a"}, {"text": 1}, bad, {"text": "b"}])
    template = LastAnswerTemplate()
    with pytest.raises(UserError, match=r"some\.jsonl:2"):
        build(source, tmp_path / "cache", template=template)
    opened = build(source, tmp_path / "cache", template=template, on_error="skip")
    assert len(opened) == 2
    assert opened.info["counts"]["skipped"] == 2
    assert ["some.jsonl:2" in message or "bad words" in message for message in opened.info["skipped"]] == [True] * 2
    with pytest.raises(UserError, match=r"some\.jsonl:2.*on_error=skip"):  # though the cache is there
        build(source, tmp_path / "cache", template=template)


def test_what_cannot_be_trained_on_says_what_to_do():
    chat = {"kind": "chat", "messages": []}
    with pytest.raises(UserError, match="needs a chat template"):
        encode_record(chat, CharacterTokenizer(), None)
    with pytest.raises(UserError, match="prompt record has no answer"):
        encode_record({"kind": "prompt", "messages": []}, CharacterTokenizer(), LastAnswerTemplate())


def test_the_name_changes_with_whatever_changes_the_content(text_source, tmp_path):
    other = CharacterTokenizer()
    other.name = "other"
    longer = write(tmp_path / "longer.jsonl", [{"text": "one"}, {"text": "more"}])
    caches = [
        build(text_source, tmp_path / "cache"),
        build(text_source, tmp_path / "cache", other),
        build(text_source, tmp_path / "cache", template=LastAnswerTemplate()),
        build(text_source, tmp_path / "cache", split="train"),
        build(text_source, tmp_path / "cache", split="train", heldout=0.3),
        build(longer, tmp_path / "cache"),
    ]
    assert len({opened.fingerprint for opened in caches}) == len(caches)


@pytest.mark.parametrize(
    "split,with_template,name",
    [
        (None, False, "b13c2cac3f67bfa02e238016f06cd008"),
        ("train", True, "ecd4a550e583da8b120aa811350a031f"),
        ("heldout", False, "73744a6df8b4029a7b51e30f1ba356c1"),
    ],
)
def test_a_caches_name_never_changes(tmp_path, split, with_template, name):
    source = write(tmp_path / "x.jsonl", [{"text": text} for text in ("one", "two", "three")])
    template = LastAnswerTemplate() if with_template else None
    assert build(source, tmp_path / "cache", template=template, split=split).path.name == name


def test_a_finished_cache_is_opened_not_built_again(text_source, tmp_path):
    first = build(text_source, tmp_path / "cache")
    tokenizer = CharacterTokenizer(fail_at=1)
    assert build(text_source, tmp_path / "cache", tokenizer).path == first.path
    assert tokenizer.calls == 0
    assert open_cache(first.path).info == first.info


def test_after_a_failure_only_the_missing_shards_are_made(text_source, tmp_path):
    whole = build(text_source, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        build(text_source, tmp_path / "cache", CharacterTokenizer(fail_at=275))
    tokenizer = CharacterTokenizer()
    resumed = build(text_source, tmp_path / "cache", tokenizer)
    assert tokenizer.calls == RECORDS - 250  # five shards of 50 were whole
    assert content(resumed.path) == content(whole.path)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.suffix == ".partial"] == []


def test_a_failure_while_joining_is_made_good(text_source, tmp_path, monkeypatch):
    whole = build(text_source, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(np, "packbits", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(text_source, tmp_path / "cache")
    tokenizer = CharacterTokenizer()
    resumed = build(text_source, tmp_path / "cache", tokenizer)
    assert tokenizer.calls == 0
    assert content(resumed.path) == content(whole.path)


def test_of_two_builders_at_once_one_builds_and_the_other_waits(text_source, tmp_path):
    whole = build(text_source, tmp_path / "whole")
    tokenizers = [CharacterTokenizer() for _ in range(4)]
    with ThreadPoolExecutor() as pool:
        built = [pool.submit(build, text_source, tmp_path / "cache", tokenizer) for tokenizer in tokenizers]
        assert {future.result().path.name for future in built} == {whole.path.name}
    assert sum(tokenizer.calls for tokenizer in tokenizers) == RECORDS
    assert content(tmp_path / "cache" / whole.path.name) == content(whole.path)


SLOW_BUILD = """
import sys, time
from camelid.data import token_cache
from camelid.data.sources import Source
from camelid.data.text_encoder import TextEncoder

class Tokenizer:
    bos_id, adds_bos, eos_id, vocab_size = 1, True, 2, 300

    def cache_key(self, template_source):
        return ["characters", self.bos_id, self.eos_id]

    def encode(self, text):
        time.sleep(0.002)
        return [ord(character) for character in text]

token_cache.SHARD_RECORDS = 50
token_cache.build_cache(Source(sys.argv[1]), None, TextEncoder(Tokenizer()), sys.argv[2], workers=1)
"""


def test_a_build_killed_by_kill_9_goes_on_where_it_was(text_source, tmp_path):
    whole = build(text_source, tmp_path / "whole")
    slow = subprocess.Popen([sys.executable, "-c", SLOW_BUILD, text_source, str(tmp_path / "cache")])
    partial = tmp_path / "cache" / f"{whole.path.name}.{READING}.partial"
    while len(list(partial.glob("*.npz"))) < 3:
        assert slow.poll() is None
        time.sleep(0.01)
    slow.send_signal(signal.SIGKILL)
    slow.wait()
    tokenizer = CharacterTokenizer()
    resumed = build(text_source, tmp_path / "cache", tokenizer)
    assert 0 < tokenizer.calls <= RECORDS - 150
    assert content(resumed.path) == content(whole.path)


def test_worker_processes_give_the_same_bytes(text_source, tmp_path, monkeypatch):
    texts = [record["text"] for record in sources.read(Source(text_source))]
    tokenizer = train_sentencepiece(texts, vocab_size=300, output_dir=tmp_path / "tokenizer")
    template = load_template("chatml")
    serial = build(text_source, tmp_path / "serial", tokenizer, template)
    pools = []
    pool = token_cache.ProcessPoolExecutor
    monkeypatch.setattr(token_cache, "ProcessPoolExecutor", lambda *args: pools.append(pool(*args)) or pools[-1])
    monkeypatch.setattr(token_cache, "SERIAL_SHARDS", 2)
    parallel = build(text_source, tmp_path / "parallel", tokenizer, template, workers=2)
    assert len(pools) == 1
    assert content(serial.path) == content(parallel.path)


def test_a_tokenising_process_that_is_killed_is_an_error_of_the_machine(monkeypatch):
    killed = "import os; os._exit(9)"
    with pytest.raises(ChildProcessError, match="a tokenising process was killed, perhaps for lack of memory"):
        token_cache._run(iter([(killed, {})] * 5), exec, workers=2)


ON_A_FULL_DISK = """
import errno, shutil, subprocess, sys
from camelid.data import token_cache
from camelid.data.sources import Source
from camelid.data.text_encoder import TextEncoder

class Tokenizer:
    bos_id, adds_bos, eos_id, vocab_size = 1, True, 2, 300

    def cache_key(self, template_source):
        return ["characters", self.bos_id, self.eos_id]

    def encode(self, text):
        return [ord(character) for character in text]

source, disk, output = sys.argv[1:]
token_cache.SHARD_RECORDS = 50
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", disk], check=True)
kilobytes, full = 8, 0
while True:
    try:
        built = token_cache.build_cache(Source(source), None, TextEncoder(Tokenizer()), disk, workers=1)
        break
    except OSError as error:
        assert error.errno == errno.ENOSPC and disk in str(error), error
        full, kilobytes = full + 1, kilobytes + 8
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", disk], check=True)
shutil.copytree(built.path, f"{output}/{built.path.name}")
print(full)
"""


def test_a_build_on_a_full_disk_is_an_error_at_every_point_and_goes_on_when_there_is_room(text_source, tmp_path):
    """A memory map that is written to would end the process by SIGBUS."""
    apart = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*apart, "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    (tmp_path / "disk").mkdir()
    paths = [text_source, str(tmp_path / "disk"), str(tmp_path / "cache")]
    ended = subprocess.run([*apart, sys.executable, "-c", ON_A_FULL_DISK, *paths], capture_output=True, text=True)
    assert ended.returncode == 0 and int(ended.stdout) > 3, ended
    whole = build(text_source, tmp_path / "whole")
    assert content(tmp_path / "cache" / whole.path.name) == content(whole.path)


DAMAGES = int(os.environ.get("CAMELID_FUZZ", 12))  # 200 by hand


@pytest.mark.parametrize("seed", range(DAMAGES))
def test_a_damaged_cache_is_told_and_built_anew_bit_for_bit(text_source, tmp_path, capsys, seed):
    first = build(text_source, tmp_path / "cache")
    expected, rng = content(first.path), random.Random(seed)
    path = first.path / rng.choice(sorted(expected))
    spoiled = bytearray(expected[path.name])
    match seed % 3:
        case 0:
            del spoiled[rng.randrange(len(spoiled)) :]
        case 1:
            spoiled[rng.randrange(len(spoiled))] ^= 1 << rng.randrange(8)
        case 2:
            spoiled = bytearray(expected[rng.choice(sorted(expected.keys() - {path.name}))])
    path.write_bytes(spoiled)
    again = build(text_source, tmp_path / "cache")
    said = " ".join(capsys.readouterr().err.split())
    if json.loads(expected["cache.json"]) != json.loads((again.path / "cache.json").read_text()):
        pytest.fail("the cache that was built anew says something else")
    if again.path.joinpath("cache.json").read_bytes() == expected["cache.json"]:
        assert content(again.path) == expected
    assert "rebuilding" in said or path.name == "cache.json"  # white space there means nothing


def test_a_missing_file_of_a_cache_is_told_and_built_anew(text_source, tmp_path, capsys):
    first = build(text_source, tmp_path / "cache")
    expected = content(first.path)
    (first.path / "mask.npy").unlink()
    assert content(build(text_source, tmp_path / "cache").path) == expected
    assert "is damaged (mask.npy is missing): rebuilding it" in capsys.readouterr().err


def test_a_damaged_shard_of_a_build_that_was_killed_is_made_again(text_source, tmp_path):
    expected = content(build(text_source, tmp_path / "straight").path)
    with pytest.raises(RuntimeError, match="killed"):
        build(text_source, tmp_path / "killed", CharacterTokenizer(fail_at=220))
    shards = sorted((tmp_path / "killed").glob("*.partial/*.npz"))
    os.truncate(shards[0], 100)
    spoiled = bytearray(shards[1].read_bytes())
    spoiled[len(spoiled) // 3] ^= 1
    shards[1].write_bytes(spoiled)
    tokenizer = CharacterTokenizer()
    assert content(build(text_source, tmp_path / "killed", tokenizer).path) == expected
    assert tokenizer.calls == RECORDS - 50 * (len(shards) - 2)


@pytest.mark.parametrize("without", ["reading", "files"])
def test_a_cache_of_an_older_version_is_built_anew_under_the_same_name(text_source, tmp_path, capsys, without):
    first = build(text_source, tmp_path / "cache")
    expected = content(first.path)
    info = {name: value for name, value in first.info.items() if name not in (without, "checksum")}
    (first.path / "cache.json").write_text(json.dumps(info))
    assert content(build(text_source, tmp_path / "cache").path) == expected
    said = {
        "reading": "from a version of camelid that read records differently",
        "files": "damaged (cache.json cannot be read)",
    }
    assert f"{first.path} is {said[without]}: rebuilding it" in capsys.readouterr().err
