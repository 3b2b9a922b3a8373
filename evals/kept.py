"""Answers of a model under test that are kept in a file: a killed evaluation goes on where it was."""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .lm import LM, Likelihood, Tokens

Report = Callable[[str, int, int], None]
"""report(kind of answers, number that are there, number in all), after each batch."""

BATCH_LIKELIHOODS = 512
"""Likelihoods that are asked for, and put on disk, at a time."""

BATCH_ANSWERS = 64
"""Answers that are generated, and put on disk, at a time."""


class AnswerFile:
    """A SQLite file of answers, each under the hash of the model and the request.

    Answers are committed together by `put`; a process that is killed loses those that it had not put. Several processes
    may use one file at the same time, and one file holds the answers of any number of models.

    Args:
      path: the file; it is made, with its folder, where there is none.

    Raises:
      UserError: the file is no SQLite file, or cannot be written.
    """

    def __init__(self, path: str | Path):
        path = Path(path).expanduser()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, check_same_thread=False)
            with self._db:
                self._db.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answer TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"{path} cannot keep answers: {error}; name another file") from None

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        """The answers that are there, by key."""
        found = {}
        for key in keys:
            row = self._db.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
            if row is not None:
                found[key] = json.loads(row[0])
        return found

    def put(self, answers: Mapping[bytes, Any]) -> None:
        """Writes answers, all of them or none."""
        rows = [(key, json.dumps(answer)) for key, answer in answers.items()]
        with self._db:
            self._db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)

    def close(self) -> None:
        """Closes the file."""
        self._db.close()


class KeptLM:
    """An `LM` that asks another one, in batches; what is in a file is not asked again.

    Requests that are equal are asked once. What a model answers depends on its checkpoint, dtype, tokenizer and
    template (`LM.describe`); behind a server, on its address and name.

    Args:
      lm: the model.
      file: where answers are kept; None: nowhere.
      report: is told of progress.

    Raises:
      UserError: answers of a model in memory that no checkpoint stands for are to be kept.
    """

    def __init__(self, lm: LM, file: AnswerFile | None, report: Report = lambda kind, done, every: None):
        self._lm, self._file, self._report = lm, file, report
        about = lm.describe()
        if file is not None and about.get("identity", "") is None:
            raise UserError("a model that no checkpoint on disk stands for has no identity: its answers cannot be kept")
        self._model = json.dumps(about, sort_keys=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lm, name)

    def loglikelihoods(self, requests: Sequence[tuple[Tokens, Tokens]]) -> list[Likelihood]:
        asked = [(tuple(context), tuple(continuation)) for context, continuation in requests]
        found = self._ask("likelihoods", asked, {}, self._lm.loglikelihoods, BATCH_LIKELIHOODS)
        return [Likelihood(float(logp), bool(is_greedy)) for logp, is_greedy in found]

    def generate(self, prompts: Sequence[Tokens], *, n: int = 1, **settings: Any) -> list[list[str]]:
        def ask(some: Sequence[Tokens]) -> list[list[str]]:
            return self._lm.generate(some, n=n, **settings)

        asked = [tuple(prompt) for prompt in prompts]
        return self._ask("answers", asked, settings | {"n": n}, ask, max(1, BATCH_ANSWERS // n))

    def _ask(
        self,
        kind: str,
        requests: Sequence[Any],
        settings: Mapping[str, Any],
        ask: Callable[[Sequence[Any]], list[Any]],
        batch: int,
    ) -> list[Any]:
        """The answer to each request: those in the file, then the others in batches, the longest first."""
        found, keys = {}, {request: self._key([kind, request, settings]) for request in requests}
        if self._file is not None:
            kept = self._file.get(list(keys.values()))
            found = {request: kept[key] for request, key in keys.items() if key in kept}
        missing = sorted((each for each in keys if each not in found), key=_by_length)
        for first in range(0, len(missing), batch):
            some = missing[first : first + batch]
            answers = dict(zip(some, ask(some), strict=True))
            found |= answers
            if self._file is not None:
                self._file.put({keys[request]: answer for request, answer in answers.items()})
            self._report(kind, len(found), len(keys))
        return [found[request] for request in requests]

    def _key(self, request: Sequence[Any]) -> bytes:
        return hashlib.sha256(f"{self._model}\n{json.dumps(request)}".encode()).digest()


def _by_length(request: Sequence[Any]) -> tuple[int, Any]:
    """The longest first; texts that begin alike are neighbours."""
    size = sum(map(len, request)) if isinstance(request[0], tuple) else len(request)
    return -size, request
