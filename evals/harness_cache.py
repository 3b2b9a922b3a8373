"""Answers to the requests of an evaluation on disk: a killed evaluation goes on where it was."""

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError


class RequestCache:
    """A SQLite file of answers, each under the hash of the model and the request.

    Answers are committed together by `put`; a process that is killed loses those that it had not put. Several processes
    may use one file at the same time, and one file holds the answers of any number of models.

    Args:
      path: the file; it is made, with its folder, where there is none.
      model: what decides the model's answers: the identity of its checkpoint, its dtype, tokenizer and so on.

    Raises:
      UserError: the file is no SQLite file, or cannot be written.
    """

    def __init__(self, path: str | Path, model: Mapping[str, Any]):
        path = Path(path).expanduser()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, check_same_thread=False)
            with self._db:
                self._db.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answer TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"the request cache {path} cannot be used: {error}; name another file") from None
        self._model = json.dumps(model, sort_keys=True)

    def key(self, request: Sequence[Any]) -> bytes:
        """The key of a request, a list of JSON values that has everything its answer depends on, beside the model."""
        return hashlib.sha256(f"{self._model}\n{json.dumps(request)}".encode()).digest()

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
        self._db.close()
