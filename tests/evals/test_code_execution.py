"""Programs of a model run locked in: what they may do, and what hostile ones cannot."""

import itertools
import os
import sys
import time

import pytest

from camelid.evals import code_execution
from camelid.evals.code_execution import Outcome, pass_at_k, run_program, run_programs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are locked in by means of Linux")


def error_of(program: str, **limits: float) -> str:
    outcome = run_program(program, **limits)
    assert not outcome.passed
    return outcome.error


def test_a_program_passes_if_its_tests_hold():
    assert run_program("def add(a, b):\n    return a + b\n\nassert add(2, 3) == 5") == Outcome(True)
    assert error_of("assert 2 + 3 == 6, 'wrong sum'") == "AssertionError: wrong sum"
    assert error_of("def f(:").startswith("SyntaxError")


def test_a_program_may_use_the_library_packages_threads_and_dataclasses():
    program = (
        "from __future__ import annotations\nimport collections, dataclasses, decimal, json, random, re, threading\n"
        "import numpy as np\n@dataclasses.dataclass\nclass Point:\n    x: int\n\n"
        "thread = threading.Thread(target=random.random)\nthread.start()\nthread.join()\n"
        "assert Point(1) == Point(1) and np.ones((8, 8)).sum() == 64"
    )
    assert run_program(program, seconds=10.0) == Outcome(True)


def test_leaving_before_the_tests_is_no_pass():
    for program in ("import sys\nsys.exit(0)", "raise SystemExit", "import os\nos._exit(0)", "import os\nos.abort()"):
        assert not run_program(program + "\nassert False").passed


def test_a_program_cannot_write_its_own_result():
    forged = 'import os\nfor fd in range(3, 16):\n    try:\n        os.write(fd, b\'{"token": "", "error": null}\')\n'
    assert error_of(forged + "    except OSError:\n        pass\nos._exit(0)") == "ended early"


@pytest.mark.parametrize("program", ["while True: pass", "import time\ntime.sleep(60)"])
def test_an_endless_program_is_ended(program):
    begin = time.monotonic()
    assert error_of(program, seconds=1.0) == "time limit"
    assert time.monotonic() - begin < 10


def test_a_fork_bomb_makes_no_process():
    assert error_of("import os\nos.fork()").startswith("PermissionError")
    assert error_of("import subprocess\nsubprocess.run(['true'])").startswith("PermissionError")
    assert error_of("import os\nos.execv('/bin/true', ['true'])").startswith("PermissionError")
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    assert error_of(bomb, seconds=1.0) == "time limit"


def test_memory_and_output_are_limited():
    assert error_of("x = bytearray(2 << 30)") == "MemoryError"
    flood = "import os\nwhile True:\n    for fd in range(3, 9):\n        try:\n            os.write(fd, b'x' * 4096)\n"
    assert error_of(flood + "        except OSError:\n            pass") == "ended early"


def test_files_cannot_be_written_removed_or_read(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("password")
    for program in (
        f"open({str(secret)!r}, 'w')",
        f"open({str(tmp_path / 'new')!r}, 'x')",
        "open('new', 'w')",
        f"import os\nos.remove({str(secret)!r})",
        f"import os\nos.rename({str(secret)!r}, 'stolen')",
        f"import os\nos.mkdir({str(tmp_path / 'folder')!r})",
        f"import os\nos.truncate({str(secret)!r}, 0)",
        f"import os\nos.chmod({str(secret)!r}, 0)",
        f"import shutil\nshutil.rmtree({str(tmp_path)!r})",
    ):
        assert error_of(program).startswith(("PermissionError", "Error")), program
    assert list(tmp_path.iterdir()) == [secret] and secret.read_text() == "password"
    if has_landlock():
        assert error_of(f"open({str(secret)!r}).read()").startswith("PermissionError")


def test_the_environment_of_the_user_is_hidden(monkeypatch):
    monkeypatch.setenv("CAMELID_API_KEY", "sk-secret")
    assert run_program("import os\nassert 'sk-secret' not in os.environ.values() and 'HOME' not in os.environ").passed
    if has_landlock():
        assert error_of("import os\nopen(f'/proc/{os.getppid()}/environ').read()").startswith("PermissionError")


def test_there_is_no_network_and_no_signal_to_others():
    assert error_of("import socket\nsocket.socket()").startswith("PermissionError")
    assert error_of("import socket\nsocket.create_connection(('127.0.0.1', 80))").startswith("PermissionError")
    assert error_of("import os\nos.kill(os.getppid(), 9)").startswith("PermissionError")
    assert error_of("import os\nos.killpg(0, 15)").startswith("PermissionError")


def test_limits_cannot_be_raised_and_the_lock_cannot_be_opened():
    raised = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))"
    assert not run_program(raised).passed
    trace = "import ctypes, os\nassert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0"
    assert error_of(trace).startswith("AssertionError")


def test_programs_run_side_by_side_in_their_order():
    outcomes = run_programs([f"assert {number} % 2" for number in range(6)], workers=3)
    assert [outcome.passed for outcome in outcomes] == [False, True] * 3


def test_a_machine_without_the_means_runs_nothing(monkeypatch):
    monkeypatch.setattr(code_execution.sys, "platform", "darwin")
    with pytest.raises(code_execution.UserError, match="only on Linux"):
        run_program("pass")


@pytest.mark.parametrize(("n", "passed", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 2), (7, 1, 7), (8, 3, 5)])
def test_pass_at_k_is_the_share_of_draws_with_a_program_that_passes(n, passed, k):
    draws = list(itertools.combinations(range(n), k))
    share = sum(min(draw) < passed for draw in draws) / len(draws)
    assert pass_at_k(n, passed, k) == pytest.approx(share, abs=1e-12)


def test_pass_at_k_refuses_more_tries_than_samples():
    with pytest.raises(ValueError, match="pass@10 of 1 among 5"):
        pass_at_k(5, 1, 10)


def has_landlock() -> bool:
    import ctypes

    return ctypes.CDLL(None).syscall(444, None, 0, 1) > 0 and os.uname().sysname == "Linux"
