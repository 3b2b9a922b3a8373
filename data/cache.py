"""The token cache: one split of one source, tokenised once, as flat arrays that open as memory maps.

The folder is named by the hash of everything its content depends on, so a stale cache is never opened by mistake:

    tokens.npy   uint16 or uint32 [tokens]     every sample's tokens, one after the other
    mask.npy     uint8 [ceil(tokens / 8)]      bit t: token t is trained on
    starts.npy   int64 [samples + 1]           where each sample begins
    first.npy    int32 [samples]               its first pair (token, next token) whose target is trained on
    cache.json   what it was made from, counts, and the checksums of all files

Opening compares the files with the checksums, once in a process; a damaged cache is told and built anew.

Building cuts the stream of records into shards at places that only the records decide, tokenises the shards in as many
processes as there are cores, and joins them in order. A finished shard is a file that outlives a kill: the next build
makes only the missing ones. A lock keeps two processes from building the same cache at once.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import signal
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import connection, current_process, get_context, parent_process
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..errors import UserError, bad_record
from . import checksums, sources
from .encoding import encoded, nothing_left
from .formats import READING
from .locks import locked
from .sources import Record, Source
from .tally import Tally
from .text import TextEncoder

VERSION = 1  # of the files' layout and of where shards are cut
SHARD_RECORDS = 8192
SHARD_CHARACTERS = 2_000_000
SERIAL_SHARDS = 4  # a source of fewer shards is done before worker processes have started


@dataclasses.dataclass(frozen=True, eq=False)
class TokenCache:
    """An open cache. Sample i is the tokens `starts[i]:starts[i + 1]`."""

    path: Path
    fingerprint: str  # the hash that names the folder
    info: dict  # cache.json: "inputs", "counts" and "skipped", the messages of the first bad records
    tokens: np.ndarray  # uint16 or uint32 [tokens]
    mask_bits: np.ndarray  # uint8 [ceil(tokens / 8)]
    starts: np.ndarray  # int64 [samples + 1]
    first_trained: np.ndarray  # int32 [samples]

    def __len__(self) -> int:
        return len(self.first_trained)

    @property
    def tally(self) -> Tally:
        """What became of the records that the cache was made from."""
        counts = self.info["counts"]
        left_out = Counter(empty=counts["empty"], skipped=counts["skipped"])
        return Tally(counts["records"], counts["samples"], left_out, self.info["skipped"])

    @property
    def pairs(self) -> np.ndarray:
        """Pairs (token, next token) in each sample, int64 [samples]."""
        return np.diff(self.starts) - 1

    def mask(self, start: int, stop: int) -> np.ndarray:
        """Which of the tokens `start:stop` of the whole cache are trained on, bool [stop - start]."""
        bits = np.unpackbits(self.mask_bits[start // 8 : -(-stop // 8)])
        return bits[start % 8 :][: stop - start].astype(bool)


def open_cache(path: str | Path) -> TokenCache:
    """Opens a finished cache; its large arrays stay on disk until they are read."""
    path = Path(path)
    return TokenCache(
        path=path,
        fingerprint=path.name,
        info=json.loads((path / "cache.json").read_text("utf-8")),
        tokens=np.load(path / "tokens.npy", mmap_mode="r"),
        mask_bits=np.load(path / "mask.npy", mmap_mode="r"),
        starts=np.load(path / "starts.npy"),
        first_trained=np.load(path / "first.npy"),
    )


def build_cache(
    source: Source, split: str | None, encoder: TextEncoder, cache_dir: str | Path, *, workers: int | None = None
) -> TokenCache:
    """Opens the token cache of one split of a source, and builds it first where there is none.

    Args:
      source: what is tokenised.
      split: "train", "heldout", or None for the whole source.
      encoder: makes tokens and mask of a record.
      cache_dir: a local folder; the cache is the folder in it that the hash names.
      workers: processes to tokenise in, by default one per core. A small source starts none.

    Raises:
      UserError: a bad record, or no record with a trained token.
    """
    if split is not None:
        source = dataclasses.replace(source, heldout=sources.held_out_below(source))
    inputs = {
        "source": sources.fingerprint(source),
        "format": source.format,
        "split": split,
        "heldout": source.heldout,
        **encoder.cache_key,
        "version": VERSION,
    }
    if getattr(current_process(), "_inheriting", False):  # as multiprocessing itself asks, but before the lock
        raise UserError(
            "a worker process runs the main script again: put what the script does below `if __name__ == '__main__':`"
        )
    final = Path(cache_dir).expanduser() / hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]
    if not final.exists() or _fault_of(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        with locked(final.with_name(f".{final.name}.lock"), _wait_for), checksums.writing(final):
            if final.exists() and (problem := _fault_of(final)):
                Console(stderr=True).print(f"{final} is {problem}: built anew", markup=False, soft_wrap=True)
                shutil.rmtree(final.rename(final.with_name(f"{final.name}.aside.{os.getpid()}")))
            if not final.exists():  # else another process has built it meanwhile
                _build(final, source, inputs, encoder, workers or os.cpu_count())
    cache = open_cache(final)
    if source.on_error == "raise" and cache.info["skipped"]:
        raise bad_record(cache.info["skipped"][0])
    return cache


def _fault_of(path: Path) -> str | None:
    """Why a finished cache cannot be used; None where it can."""
    stamp = checksums.stamp(path)
    if _proven.get(path) == stamp:
        return None
    try:
        info = json.loads((path / "cache.json").read_text("utf-8"))
        if "checksum" in info and info.pop("checksum") != _checksum_of(info):
            return "damaged (cache.json has other bytes than were written)"
        if info.get("reading") != READING:
            return "of a version that read records otherwise"
        problem = checksums.damage(path, info["files"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return "damaged (cache.json cannot be read)"
    if problem is not None:
        return f"damaged ({problem})"
    _proven[path] = stamp
    return None


_proven: dict[Path, tuple] = {}  # stamps of the caches that were whole when this process looked


def _checksum_of(info: dict) -> str:
    return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()


def _wait_for(holder: str) -> None:
    told = f"this token cache is being built by {holder}: waiting for it"
    Console(stderr=True).print(told, markup=False, highlight=False, soft_wrap=True)


def _build(final: Path, source: Source, inputs: dict, encoder: TextEncoder, workers: int) -> None:
    """Writes the missing shards, joins all of them, and moves the result into place in one step."""
    partial = final.with_name(f"{final.name}.{READING}.partial")
    partial.mkdir(exist_ok=True)
    split, reading = inputs["split"], Tally()
    records = sources.read(source, split, reading)
    write = functools.partial(_write_shard, encoder=encoder, on_error=source.on_error)
    with _progress() as progress:
        records = progress.track(records, description=escape(f"tokenising {source.part(split)}"))
        shards = _write_shards(records, partial, write, workers)
    tally, tokens = _counted(shards)
    tally = dataclasses.replace(reading, read=0) + tally
    if not tally.kept:
        raise nothing_left(encoder, source, split, tally, reading)
    counts = {"records": tally.read, "samples": tally.kept, **tokens, "empty": tally.left_out["empty"]}
    info = {
        "inputs": {"name": source.location, **inputs},
        "counts": counts | {"skipped": tally.skipped},
        "skipped": tally.problems,
        "reading": READING,
    }
    _join(shards, partial / "joined", encoder.dtype)
    info["files"] = checksums.checksums_of(partial / "joined")
    info["checksum"] = _checksum_of(info)
    checksums.write_whole(partial / "joined" / "cache.json", json.dumps(info, indent=2, ensure_ascii=False))
    (partial / "joined").rename(final)
    shutil.rmtree(partial)


def _progress() -> Progress:
    """A count of records and the time they took, on a terminal; nothing elsewhere."""
    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}: {task.completed:,} records"), TimeElapsedColumn()
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _cut(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Consecutive records, shard by shard."""
    shard, characters = [], 0
    for record in records:
        shard.append(record)
        characters += len(record.get("text", "")) + sum(len(m["content"]) for m in record.get("messages", ()))
        if len(shard) == SHARD_RECORDS or characters >= SHARD_CHARACTERS:
            yield shard
            shard, characters = [], 0
    if shard:
        yield shard


def _write_shards(records: Iterable[Record], folder: Path, write: Callable, workers: int) -> list[Path]:
    """Writes the shards that are not there yet; returns the paths of all of them, in order."""
    paths: list[Path] = []

    def missing() -> Iterator[tuple[Path, list[Record]]]:
        for index, shard in enumerate(_cut(records)):
            paths.append(folder / f"{index:06d}.npz")
            if not _is_whole_shard(paths[-1]):
                yield paths[-1], shard

    _run(missing(), write, workers)
    return paths


def _is_whole_shard(path: Path) -> bool:
    """Whether a build before this one has left the shard, and every part of it has the checksum that zip files keep."""
    try:
        with zipfile.ZipFile(path) as shard:
            return shard.testzip() is None
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error):
        return False


def _run(jobs: Iterator[tuple[Path, list[Record]]], write: Callable, workers: int) -> None:
    """Writes shards here if they are few, else in worker processes, with two waiting for each."""
    few = list(islice(jobs, SERIAL_SHARDS))
    if len(few) < SERIAL_SHARDS or workers == 1:
        for job in chain(few, jobs):
            write(*job)
        return
    # Spawned, since a fork of a process that runs JAX's threads may hang.
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (write,)) as pool:
        pending = set()
        try:
            for job in chain(few, jobs):
                if len(pending) == 2 * workers:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                with _without_ctrl_c():  # the first submission starts the workers
                    pending.add(pool.submit(_work, *job))
            for future in pending:
                future.result()
        except BrokenProcessPool:
            raise ChildProcessError(
                "a process that tokenises was killed, as happens where memory is short; what the others have finished "
                "is kept: give the command again"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes that are started here do not hear Ctrl-C, which a terminal sends to all: this one ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(write: Callable) -> None:
    global _work_of_this_process  # the tokenizer travels once per process, not once per shard
    _work_of_this_process = write
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker when the process that it works for was killed: it would wait for work for ever."""
    connection.wait([parent_process().sentinel])
    os._exit(1)


def _work(path: Path, shard: list[Record]) -> None:
    _work_of_this_process(path, shard)


def _write_shard(path: Path, records: list[Record], *, encoder: TextEncoder, on_error: str) -> None:
    """Tokenises a shard into a file that is either there and whole or not there."""
    tally = Tally.by(encoder.reasons, most=len(records))  # all problems: their number is the count of bad records
    samples = list(encoded(records, encoder.encode, tally, on_error))
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.savez(
                file,
                tokens=np.concatenate([np.zeros(0, encoder.dtype), *(s.tokens.astype(encoder.dtype) for s in samples)]),
                mask=np.concatenate([np.zeros(0, bool), *(s.mask for s in samples)]),
                lengths=np.array([len(s.tokens) for s in samples], np.int64),
                first=np.array([s.mask[1:].argmax() for s in samples], np.int32),
                trained=sum(int(s.mask[1:].sum()) for s in samples),
                records=tally.read,
                empty=tally.left_out["empty"],
                skipped=np.array(tally.problems, np.str_),
            )
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # the disk may be full: nothing stays that is of no use
        raise


def _counted(shards: list[Path]) -> tuple[Tally, dict[str, int]]:
    """What became of the records of all shards, and how many tokens they have and train on."""
    tally, tokens = Tally.by(("empty",)), Counter(tokens=0, trained=0)
    for path in shards:
        with np.load(path) as shard:
            problems = shard["skipped"].tolist()
            left_out = Counter(empty=int(shard["empty"]), skipped=len(problems))
            tally += Tally(int(shard["records"]), len(shard["lengths"]), left_out, problems)
            tokens.update(tokens=int(shard["lengths"].sum()), trained=int(shard["trained"]))
    return tally, dict(tokens)


def _join(shards: list[Path], folder: Path, dtype: type) -> None:
    """Joins the shards' arrays on disk, with the tokens of one shard in memory at a time."""
    shutil.rmtree(folder, ignore_errors=True)  # of a build that was killed in here
    folder.mkdir()
    lengths = _column(shards, "lengths")
    total = int(lengths.sum())
    np.save(folder / "starts.npy", np.concatenate([[0], np.cumsum(lengths)]))
    np.save(folder / "first.npy", _column(shards, "first"))
    # Not through memory maps: a full disk would end the process by SIGBUS.
    with (folder / "tokens.npy").open("wb") as tokens, (folder / "mask.npy").open("wb") as mask:
        for file, kind, length in ((tokens, dtype, total), (mask, np.uint8, -(-total // 8))):
            header = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": (length,)}
            np.lib.format.write_array_header_1_0(file, header)
        rest = np.zeros(0, bool)  # of the mask, less than a byte
        for path in shards:
            with np.load(path) as shard:
                tokens.write(shard["tokens"].tobytes())
                bits = np.concatenate([rest, shard["mask"]])
            whole = len(bits) // 8 * 8
            mask.write(np.packbits(bits[:whole]).tobytes())
            rest = bits[whole:]
        mask.write(np.packbits(rest).tobytes())


def _column(shards: list[Path], name: str) -> np.ndarray:
    columns = []
    for path in shards:
        with np.load(path) as shard:
            columns.append(shard[name])
    return np.concatenate(columns)
