"""The token cache: one split of one source, tokenised once and stored as flat arrays that open as memory maps.

The folder is named by the hash of everything that decides its content, so a stale cache is never opened:

    tokens.npy   uint16 or uint32 [tokens]     the tokens of all samples, concatenated
    mask.npy     uint8 [ceil(tokens / 8)]      bit t: token t is trained on
    starts.npy   int64 [samples + 1]           index of the first token of each sample, and the number of tokens
    first.npy    int32 [samples]               index of a sample's first pair (token, next token) with a trained target
    numbers.npy  int64 [samples]               which record of the split a sample comes from, counted from 0
    cache.json   inputs, counts, and the checksums of all files

The first time that a process opens a cache, it compares the files with their checksums. A damaged cache is rebuilt.

A build cuts the records into shards. The cuts depend on the records alone. One process per core tokenises the shards,
and the results are joined in order. If a build is killed, the next one reuses its finished shards. A lock prevents two
processes from building the same cache at once.
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
from .console import LOGGER, shows
from .encoding import encoded, nothing_left
from .formats import READING
from .locks import locked
from .sources import Record, Source
from .tally import Tally
from .templates import Encoded
from .text_encoder import TextEncoder

VERSION = 1  # raised when the layout of the files or the cuts between shards change
SHARD_RECORDS = 8192
SHARD_CHARACTERS = 2_000_000
SERIAL_SHARDS = 4  # fewer shards are tokenised in this process, in less time than workers take to start


@dataclasses.dataclass(frozen=True, eq=False)
class TokenCache:
    """An open token cache. Sample i is `tokens[starts[i]:starts[i + 1]]`."""

    path: Path  # the folder
    fingerprint: str  # the hash that names the folder
    info: dict  # cache.json: "inputs", "counts", and "skipped", the error messages of the first bad records
    tokens: np.ndarray  # uint16 or uint32 [tokens]
    mask_bits: np.ndarray  # uint8 [ceil(tokens / 8)], bit t: token t is trained on
    starts: np.ndarray  # int64 [samples + 1], index of the first token of each sample
    first_trained: np.ndarray  # int32 [samples], index of the first pair (token, next token) with a trained target
    numbers: np.ndarray | None = None  # int64 [samples], which record of its split; None in older caches

    def __len__(self) -> int:
        return len(self.first_trained)

    @property
    def tally(self) -> Tally:
        """Counts of the records that the cache was built from."""
        counts = self.info["counts"]
        left_out = Counter(empty=counts["empty"], skipped=counts["skipped"])
        return Tally(counts["records"], counts["samples"], left_out, self.info["skipped"])

    @property
    def pairs(self) -> np.ndarray:
        """Number of pairs (token, next token) in each sample, int64 [samples]."""
        return np.diff(self.starts) - 1

    def mask(self, start: int, stop: int) -> np.ndarray:
        """Whether each of `tokens[start:stop]` is trained on, bool [stop - start]."""
        bits = np.unpackbits(self.mask_bits[start // 8 : -(-stop // 8)])
        return bits[start % 8 :][: stop - start].astype(bool)

    def trained_before(self, index: np.ndarray) -> np.ndarray:
        """How many of `tokens[:i]` are trained on, for each i of `index`, int64 [...]."""
        bits = np.append(self.mask_bits, np.uint8(0))
        whole = np.concatenate([[0], np.cumsum(np.bitwise_count(bits), dtype=np.int64)])
        return whole[index // 8] + np.bitwise_count(bits[index // 8] >> (8 - index % 8).astype(np.uint8))


def open_cache(path: str | Path) -> TokenCache:
    """Opens a finished cache as memory maps, without comparing checksums."""
    path = Path(path)
    return TokenCache(
        path=path,
        fingerprint=path.name,
        info=json.loads((path / "cache.json").read_text("utf-8")),
        tokens=np.load(path / "tokens.npy", mmap_mode="r"),
        mask_bits=np.load(path / "mask.npy", mmap_mode="r"),
        starts=np.load(path / "starts.npy"),
        first_trained=np.load(path / "first.npy"),
        numbers=np.load(path / "numbers.npy") if (path / "numbers.npy").exists() else None,
    )


def build_cache(
    source: Source, split: str | None, encoder: TextEncoder, cache_dir: str | Path, *, workers: int | None = None
) -> TokenCache:
    """Opens the token cache of one split of a source; builds it first if it is missing or damaged.

    Args:
      source: the records to tokenise.
      split: "train", "heldout", or None for the whole source.
      encoder: makes tokens and mask of a record.
      cache_dir: a local folder for caches; this cache is a folder in it, named by its hash.
      workers: number of processes that tokenise; None: one per core. A small source is tokenised in this process.

    Raises:
      UserError: a bad record, no record with a trained token, or a call from a worker that re-runs the main script.
    """
    if split is not None:
        source = dataclasses.replace(source, heldout=sources.heldout_share(source))
    inputs = {
        "source": sources.fingerprint(source),
        "format": source.format,
        "split": split,
        "heldout": source.heldout,
        **({"columns": dict(sorted(source.columns.items()))} if source.columns else {}),
        **({"system": source.system} if source.system else {}),
        **encoder.cache_key,
        "version": VERSION,
    }
    if getattr(current_process(), "_inheriting", False):  # multiprocessing checks this too, but after the lock
        raise UserError(
            "a worker process runs the main script again: put the script's code below `if __name__ == '__main__':`"
        )
    final = Path(cache_dir).expanduser() / hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]
    if not final.exists() or _problem_with(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        with locked(final.with_name(f".{final.name}.lock"), _wait_for), checksums.writing(final):
            if final.exists() and (problem := _problem_with(final)):
                LOGGER.warning("%s is %s: rebuilding it", final, problem)
                shutil.rmtree(final.rename(final.with_name(f"{final.name}.aside.{os.getpid()}")))
            if not final.exists():  # another process may have built it meanwhile
                _build(final, source, inputs, encoder, workers or os.cpu_count())
    cache = open_cache(final)
    if source.on_error == "raise" and cache.info["skipped"]:
        raise bad_record(cache.info["skipped"][0])
    return cache


def _problem_with(path: Path) -> str | None:
    """Why a finished cache cannot be used, in words; None if it can."""
    try:
        info = json.loads((path / "cache.json").read_text("utf-8"))
        if "checksum" in info and info.pop("checksum") != _checksum_of(info):
            return "damaged (cache.json differs from its checksum)"
        if info.get("reading") != READING:
            return "from a version of camelid that read records differently"
        problem = checksums.damage(path, info["files"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return "damaged (cache.json cannot be read)"
    return None if problem is None else f"damaged ({problem})"


def _checksum_of(info: dict) -> str:
    return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()


def _wait_for(holder: str) -> None:
    LOGGER.info("waiting for %s, which is building this token cache", holder)


def _build(final: Path, source: Source, inputs: dict, encoder: TextEncoder, workers: int) -> None:
    """Writes the missing shards, joins all shards, and renames the finished folder to `final`.

    Args:
      final: the folder of the finished cache; shards are kept in a folder beside it.
      source: the records to tokenise.
      inputs: everything that decides the content of the cache; written to cache.json.
      encoder: makes tokens and mask of a record.
      workers: number of processes that tokenise.
    """
    partial = final.with_name(f"{final.name}.{READING}.partial")
    partial.mkdir(exist_ok=True)
    split, reading = inputs["split"], Tally()
    records = sources.read(source, split, reading)
    write = functools.partial(_write_shard, encoder=encoder, on_error=source.on_error)
    with _progress() as progress:
        records = progress.track(records, description=escape(f"tokenising {source.split_name(split)}"))
        shards = _write_shards(records, partial, write, workers)
    tally, tokens = _shard_totals(shards)
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
    """A progress display with the number of records and the elapsed time, on terminals only."""
    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}: {task.completed:,} records"), TimeElapsedColumn()
    return Progress(*columns, console=console, disable=not (console.is_terminal and shows("info")))


def _shards_of(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Cuts the records into shards of at most SHARD_RECORDS records and about SHARD_CHARACTERS characters."""
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
    """Writes the shards that are missing in `folder`; returns the paths of all shards in order.

    Args:
      records: the records of the split.
      folder: where the shards are written.
      write: writes one shard: write(path, records).
      workers: number of processes that tokenise.
    """
    paths: list[Path] = []

    def missing() -> Iterator[tuple[Path, list[Record]]]:
        for index, shard in enumerate(_shards_of(records)):
            paths.append(folder / f"{index:06d}.npz")
            if not _is_whole_shard(paths[-1]):
                yield paths[-1], shard

    _run(missing(), write, workers)
    return paths


def _is_whole_shard(path: Path) -> bool:
    """Whether an earlier build has finished the shard at `path`, by the checksums inside the zip file, and wrote all
    that this version needs."""
    try:
        with zipfile.ZipFile(path) as shard:
            return shard.testzip() is None and "numbers.npy" in shard.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error):
        return False


def _run(jobs: Iterator[tuple[Path, list[Record]]], write: Callable, workers: int) -> None:
    """Calls `write(path, records)` for every job, in this process if there are fewer than SERIAL_SHARDS jobs.

    Otherwise `workers` processes run the jobs; at most two jobs per process are in memory.
    """
    few = list(islice(jobs, SERIAL_SHARDS))
    if len(few) < SERIAL_SHARDS or workers == 1:
        for job in chain(few, jobs):
            write(*job)
        return
    # Workers are spawned: a fork of a process with JAX's threads may hang.
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
                "a tokenising process was killed, perhaps for lack of memory: give the command again to go on from the "
                "finished shards"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Starts processes that ignore SIGINT: a terminal sends Ctrl-C to all processes, and this one ends its workers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(write: Callable) -> None:
    global _work_of_this_process  # so the tokenizer is pickled once per process, not once per shard
    _work_of_this_process = write
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker when its parent process is killed; otherwise the worker would wait for jobs for ever."""
    connection.wait([parent_process().sentinel])
    os._exit(1)


def _work(path: Path, shard: list[Record]) -> None:
    _work_of_this_process(path, shard)


def _write_shard(path: Path, records: list[Record], *, encoder: TextEncoder, on_error: str) -> None:
    """Tokenises the records of a shard and writes them to `path` atomically.

    Args:
      path: the shard's .npz file.
      records: the records of the shard.
      encoder: makes tokens and mask of a record.
      on_error: "raise" or "skip", for records that the encoder refuses.
    """
    tally = Tally.by(encoder.reasons, limit=len(records))  # all problems are kept: they count the bad records
    numbers: list[int] = []  # which of the records became a sample

    def encode(record: Record) -> Encoded:
        sample = encoder.encode(record)
        numbers.append(tally.read - 1)
        return sample

    samples = list(encoded(records, encode, tally, on_error))
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.savez(
                file,
                tokens=np.concatenate([np.zeros(0, encoder.dtype), *(s.tokens.astype(encoder.dtype) for s in samples)]),
                mask=np.concatenate([np.zeros(0, bool), *(s.mask for s in samples)]),
                lengths=np.array([len(s.tokens) for s in samples], np.int64),
                first=np.array([s.mask[1:].argmax() for s in samples], np.int32),
                numbers=np.array(numbers, np.int64),
                trained=sum(int(s.mask[1:].sum()) for s in samples),
                records=tally.read,
                empty=tally.left_out["empty"],
                skipped=np.array(tally.problems, np.str_),
            )
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # the disk may be full
        raise


def _shard_totals(shards: list[Path]) -> tuple[Tally, dict[str, int]]:
    """Counts over all shards: the tally of their records, and {"tokens": all tokens, "trained": trained tokens}."""
    tally, tokens = Tally.by(("empty",)), Counter(tokens=0, trained=0)
    for path in shards:
        with np.load(path) as shard:
            problems = shard["skipped"].tolist()
            left_out = Counter(empty=int(shard["empty"]), skipped=len(problems))
            tally += Tally(int(shard["records"]), len(shard["lengths"]), left_out, problems)
            tokens.update(tokens=int(shard["lengths"].sum()), trained=int(shard["trained"]))
    return tally, dict(tokens)


def _join(shards: list[Path], folder: Path, dtype: type) -> None:
    """Concatenates the shards into the files of a cache in `folder`; one shard at a time is in memory."""
    shutil.rmtree(folder, ignore_errors=True)  # left by a build that was killed while it joined shards
    folder.mkdir()
    lengths = _column(shards, "lengths")
    total = int(lengths.sum())
    np.save(folder / "starts.npy", np.concatenate([[0], np.cumsum(lengths)]))
    np.save(folder / "first.npy", _column(shards, "first"))
    np.save(folder / "numbers.npy", _numbers(shards))
    # Not through memory maps: on a full disk the process would die of SIGBUS.
    with (folder / "tokens.npy").open("wb") as tokens, (folder / "mask.npy").open("wb") as mask:
        for file, kind, length in ((tokens, dtype, total), (mask, np.uint8, -(-total // 8))):
            header = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": (length,)}
            np.lib.format.write_array_header_1_0(file, header)
        rest = np.zeros(0, bool)  # bits of the mask that do not fill a byte yet
        for path in shards:
            with np.load(path) as shard:
                tokens.write(shard["tokens"].tobytes())
                bits = np.concatenate([rest, shard["mask"]])
            whole = len(bits) // 8 * 8
            mask.write(np.packbits(bits[:whole]).tobytes())
            rest = bits[whole:]
        mask.write(np.packbits(rest).tobytes())


def _numbers(shards: list[Path]) -> np.ndarray:
    """Which record of the split each sample of all shards comes from, int64 [samples]."""
    columns, before = [], 0
    for path in shards:
        with np.load(path) as shard:
            columns.append(before + shard["numbers"])
            before += int(shard["records"])
    return np.concatenate(columns)


def _column(shards: list[Path], name: str) -> np.ndarray:
    columns = []
    for path in shards:
        with np.load(path) as shard:
            columns.append(shard[name])
    return np.concatenate(columns)
