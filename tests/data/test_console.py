"""What commands tell: levels, the logger that Python programs may set, and reports of runs that --quiet leaves out."""

import io
import logging
import subprocess
import sys

import jax
import pytest
from rich.console import Console

from camelid.data import console
from camelid.data.console import LOGGER, set_level, shows, tell, warn
from camelid.launch.cli import main
from camelid.train.report import Reporter


@pytest.fixture(autouse=True)
def level_as_before():
    before = LOGGER.level
    yield
    LOGGER.setLevel(before)


@pytest.mark.parametrize(
    ("level", "expected"),
    [("info", ["camelid: 10% done", "camelid: damaged"]), ("warning", ["camelid: damaged"]), ("error", [])],
)
def test_a_level_shows_what_is_at_least_as_serious(level, expected, capsys, monkeypatch):
    monkeypatch.setattr(console.warnings, "simplefilter", lambda action: None)  # of pytest's process
    set_level(level)
    tell("10% done")
    warn("damaged")
    printed = capsys.readouterr()
    assert printed.err.splitlines() == expected and not printed.out
    assert [shows(name) for name in ("info", "warning", "error")] == [
        level == "info", level in ("info", "warning"), True,
    ]  # fmt: skip


def test_only_process_0_tells(capsys, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    tell("a line")
    warn("a warning")
    assert capsys.readouterr().err == ""


def test_a_process_by_itself_takes_no_devices_to_tell(capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: pytest.fail("devices are taken"))
    tell("a line")
    assert capsys.readouterr().err == "camelid: a line\n"


def test_a_program_may_handle_the_messages_itself_and_sees_each_once():
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append((record.name, record.levelname, record.getMessage()))
    for logger in (LOGGER, logging.getLogger()):
        logger.addHandler(handler)
    try:
        tell("a line")
    finally:
        for logger in (LOGGER, logging.getLogger()):
            logger.removeHandler(handler)
    assert seen == [("camelid", "INFO", "a line")]


def test_debug_adds_the_messages_of_jax_and_error_leaves_out_the_warnings_of_python():
    code = (
        "import sys, warnings; from camelid.data.console import set_level; set_level(sys.argv[1]);"
        "import jax, absl.logging; warnings.warn('old'); jax.jit(lambda x: x + 1)(1.0); absl.logging.info('saved')"
    )

    def said(level):
        return subprocess.run([sys.executable, "-c", code, level], capture_output=True, text=True, check=True).stderr

    debug, error = map(said, ("debug", "error"))
    assert "Compiling jit(<lambda>)" in debug and "absl: saved" in debug and "UserWarning: old" in debug
    assert len(debug.splitlines()) == len(set(debug.splitlines())), "each message once"
    assert error == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_reports_are_not_printed_where_only_warnings_are_asked_for(tmp_path, terminal):
    set_level("warning")
    output = Console(file=io.StringIO(), width=100, force_terminal=terminal)
    with Reporter(tmp_path, 10, console=output) as reporter:
        reporter.write(1, {"train/loss": 1.0})
        reporter.write(1, {"eval/loss": 1.0})
        reporter.text(1, "samples", [{"a": "b"}])
    assert output.file.getvalue() == ""
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_quiet_command_tells_nothing_of_its_progress(arguments, pretrained, capsys):
    line = arguments("pretrain", pretrained)
    assert main([*line, "--quiet"]) == 0
    quiet = capsys.readouterr()
    assert main([*line, "--log_level=info"]) == 0
    assert "already complete" in capsys.readouterr().err and "already complete" not in quiet.err
    assert main([*line, "--quiet", "--log_level=debug"]) == 2
    assert "not allowed with argument --quiet" in capsys.readouterr().err
