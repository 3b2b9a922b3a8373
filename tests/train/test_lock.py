"""One process a work directory."""

import os
import signal
import subprocess
import sys

import pytest

from camelid.data import locks
from camelid.errors import UserError
from camelid.launch import phases
from camelid.train.lock import only_process_of

HOLDER = """
import os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
from camelid.train.lock import only_process_of
with only_process_of(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told_who_holds_the_directory_and_a_lock_dies_with_its_holder(tmp_path):
    workdir = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, str(workdir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"is in use by process {holder.pid} on .* \(.*{workdir}\); wait"):
            phases.run({}, workdir, {})
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert (workdir / ".lock").exists()  # what a killed holder leaves is in nobody's way
        with only_process_of(workdir):
            pass
    assert os.listdir(workdir) == []
    with only_process_of(tmp_path / "new" / "run"):
        assert os.listdir(tmp_path / "new" / "run") == [".lock"]
    assert not (tmp_path / "new").exists()


def test_a_lock_that_its_holder_removes_while_another_waits_is_not_taken_for_the_new_one(tmp_path, monkeypatch):
    real, opened = os.open, []

    def slow_open(path, *args, **kwargs):
        file = real(path, *args, **kwargs)
        opened.append(path)
        if len(opened) == 1:
            os.unlink(path)  # the holder before ends between open and flock
        return file

    monkeypatch.setattr(locks.os, "open", slow_open)
    with only_process_of(tmp_path):
        assert len(opened) == 2 and (tmp_path / ".lock").exists()
        with pytest.raises(UserError, match=f"process {os.getpid()} on "), only_process_of(tmp_path):
            pass


def test_where_there_are_no_locks_a_line_says_so(tmp_path, monkeypatch, capsys):
    def refuse(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with only_process_of(tmp_path):
        pass
    assert "cannot be locked (Operation not supported)" in capsys.readouterr().err
    with only_process_of("gs://bucket/run"):
        pass
    assert "gs://bucket/run: object stores have no locks" in capsys.readouterr().err


def test_a_work_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for workdir in (tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        told = pytest.raises(UserError, match=rf"^--workdir={workdir} cannot be made: .+; give another folder$")
        with told, only_process_of(workdir):
            pass
