"""The file that keeps the answers to an evaluation's requests."""

import sqlite3

import pytest

from camelid.errors import UserError
from camelid.evals.harness_cache import RequestCache


def test_the_cache_keeps_what_was_put_and_refuses_other_files(tmp_path):
    cache = RequestCache(tmp_path / "a" / "cache.sqlite", {"identity": "x"})
    keys = [cache.key(["likelihoods", [[1], [number]], {}]) for number in range(3)]
    cache.put({keys[0]: [-1.5, True], keys[1]: "text"})
    cache.close()
    again = RequestCache(tmp_path / "a" / "cache.sqlite", {"identity": "x"})
    assert again.get(keys) == {keys[0]: [-1.5, True], keys[1]: "text"}
    other = RequestCache(tmp_path / "a" / "cache.sqlite", {"identity": "y"})
    assert other.key(["likelihoods", [[1], [0]], {}]) != keys[0]
    with sqlite3.connect(tmp_path / "a" / "cache.sqlite") as db:
        assert db.execute("SELECT count(*) FROM answers").fetchone() == (2,)
    (tmp_path / "notes.txt").write_text("these are no answers, but notes of somebody" * 9)
    with pytest.raises(UserError, match=r"notes.txt cannot be used"):
        RequestCache(tmp_path / "notes.txt", {})
