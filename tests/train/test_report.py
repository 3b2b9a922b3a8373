"""Reports: JSON lines that survive a resume, the console with and without a terminal, TensorBoard, Weights & Biases."""

import contextlib
import io
import json
import math
import os
import resource
import sys
import types

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from camelid.errors import UserError
from camelid.train.report import Reporter


def quiet():
    return Console(file=io.StringIO(), width=100)


def lines(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def tensorboard_events(directory):
    """The events of a TensorBoard folder, from the record format itself: length, its checksum, data, its checksum."""
    for path in sorted(directory.iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            body = data[12 : 12 + length]
            assert int.from_bytes(data[12 + length : 16 + length], "little") == masked_crc32c(body)
            yield event_pb2.Event.FromString(body)
            data = data[16 + length :]


def test_each_report_is_a_line_of_valid_json_at_once(tmp_path):
    with Reporter(tmp_path, 10, console=quiet()) as reporter:
        reporter.write(1, {"train/loss": jnp.float32(2.5), "train/tokens_per_second": 1000})
        assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, "train/loss": 2.5, "train/tokens_per_second": 1000.0}]
        reporter.write(2, {"train/loss": math.nan, "a": math.inf, "b": -math.inf})
        last = lines(tmp_path / "metrics.jsonl")[-1]
    assert last == {"step": 2, "train/loss": "nan", "a": "inf", "b": "-inf"}
    assert math.isnan(float(last["train/loss"])) and float(last["b"]) == -math.inf


def test_a_resumed_run_has_each_step_once_and_no_torn_line(tmp_path):
    with Reporter(tmp_path, 10, console=quiet()) as reporter:
        for step in range(1, 8):
            reporter.write(step, {"train/loss": step})
            reporter.text(step, "samples", [{"prompt": "你好", "response": str(step)}])
    for name in ("metrics", "samples"):
        with (tmp_path / f"{name}.jsonl").open("ab") as file:
            file.write('{"step": 2, "prompt": "你'.encode()[:-1])  # killed in the middle of a character
    with Reporter(tmp_path, 10, start_step=4, console=quiet()) as reporter:
        for step in range(5, 7):
            reporter.write(step, {"train/loss": 10 * step})
    assert [(line["step"], line["train/loss"]) for line in lines(tmp_path / "metrics.jsonl")] == [
        (1, 1), (2, 2), (3, 3), (4, 4), (5, 50), (6, 60)
    ]  # fmt: skip
    assert [line["step"] for line in lines(tmp_path / "samples.jsonl")] == [1, 2, 3, 4]


def test_a_run_that_starts_anew_drops_all_earlier_lines(tmp_path):
    for loss in (1.0, 2.0):
        with Reporter(tmp_path, 10, console=quiet()) as reporter:
            reporter.write(0, {"eval/loss": loss})
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 0, "eval/loss": 2.0}]


def test_without_a_terminal_each_report_is_one_plain_line(tmp_path):
    console = quiet()
    with Reporter(tmp_path, 10, console=console) as reporter:
        reporter.write(1, {"train/loss": 2.34567, "train/tokens_per_second": 12345.6, "train/lr": 1e-3})
        reporter.write(2, {"train/loss": 2.0})
        reporter.write(2, {f"eval/[{name}]/loss": 1.5 for name in "abcdefghij"})
    printed = console.file.getvalue().splitlines()
    assert printed[0] == "step 1/10  loss 2.346  tokens/s 12,346"
    assert printed[1].startswith("step 2/10  loss 2  left 0:00:0")
    assert printed[2].startswith("step 2  eval/[a]/loss 1.5  ") and printed[2].endswith("eval/[j]/loss 1.5")
    assert len(printed) == 3


def test_the_time_left_follows_from_the_speed_since_the_first_report(tmp_path, monkeypatch):
    clock = types.SimpleNamespace(now=100.0, monotonic=lambda: clock.now, time=lambda: 0.0)
    monkeypatch.setattr("camelid.train.report.time", clock)
    console = quiet()
    with Reporter(tmp_path, 1000, start_step=20, console=console) as reporter:
        reporter.write(30, {"train/loss": 1})
        clock.now = 130.0
        reporter.write(40, {"train/loss": 1})  # 10 steps in 30 s; 960 steps to go
    assert console.file.getvalue().splitlines()[1] == "step 40/1000  loss 1  left 0:48:00"


def test_on_a_terminal_a_bar_shows_the_headline_and_evaluations_are_printed(tmp_path):
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with Reporter(tmp_path, 10, headline={"rl/reward": "reward"}, console=console) as reporter:
        reporter.write(5, {"rl/reward": 0.75, "train/loss": 3.0})
        reporter.write(5, {"eval/score": 0.5})
    printed = console.file.getvalue()
    assert "5/10" in printed and "reward 0.75" in printed and "train/loss" not in printed
    assert "step 5  eval/score 0.5" in printed


def test_tables_of_samples_reach_the_console_the_lines_and_tensorboard(tmp_path):
    console = quiet()
    rows = [{"prompt": "[b]1|2[/b]", "response": "一\n二"}, {"prompt": "p", "response": "r"}]
    with Reporter(tmp_path, 10, console=console) as reporter:
        reporter.text(3, "samples/sft", rows)
        reporter.text(4, "samples/none", [])
    assert "[b]1|2[/b]" in console.file.getvalue() and "samples/sft, step 3" in console.file.getvalue()
    first = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert json.loads(first) == {"step": 3, "name": "samples/sft", "rows": rows} and "一" in first
    texts = [
        v.tensor.string_val[0].decode() for e in tensorboard_events(tmp_path / "tensorboard") for v in e.summary.value
    ]
    assert "| prompt | response |\n| --- | --- |\n| [b]1\\|2[/b] | 一<br>二 |\n| p | r |" in texts


def test_tensorboard_gets_each_metric_and_hides_what_a_resumed_run_repeats(tmp_path):
    with Reporter(tmp_path, 10, console=quiet()) as reporter:
        reporter.write(7, {"train/loss": 2.5, "eval/loss": 3.0})
    with Reporter(tmp_path, 10, start_step=4, console=quiet()):
        pass
    events = list(tensorboard_events(tmp_path / "tensorboard"))
    scalars = {(v.tag, e.step): v.simple_value for e in events for v in e.summary.value}
    assert scalars == {("train/loss", 7): 2.5, ("eval/loss", 7): 3.0}
    start = event_pb2.SessionLog.SessionStatus.Value("START")
    assert [e.step for e in events if e.session_log.status == start] == [0, 5]


def test_a_full_disk_is_an_error_of_the_report_and_not_of_a_thread_that_nobody_hears(tmp_path):
    reporter = Reporter(tmp_path, 10, console=quiet())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # writing more fails, as on a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            for step in range(1, 9):
                reporter.text(step, "samples", [{"a": "b" * 600}])
                reporter.write(step, {"train/loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    whole = list((tmp_path / "samples.jsonl").read_text().split("\n")[:-1])
    assert [json.loads(line)["step"] for line in whole] == list(range(1, len(whole) + 1))


def test_a_closed_pipe_is_an_error_too(tmp_path, monkeypatch):
    read, write = os.pipe()
    with os.fdopen(write, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        reporter = Reporter(tmp_path, 10)
        reporter.write(1, {"train/loss": 1.0})
        os.close(read)
        with pytest.raises(BrokenPipeError):
            reporter.write(2, {"train/loss": 1.0})
        monkeypatch.undo()
        with contextlib.suppress(BrokenPipeError):
            stdout.close()


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Reporter(tmp_path / "run", 10, console=quiet()) as reporter:
        reporter.write(1, {"train/loss": 1.0})
        reporter.text(1, "samples", [{"a": "b"}])
    assert not (tmp_path / "run").exists()


def test_weights_and_biases_asked_for_but_not_installed_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb = 'my-run' asks for Weights & Biases, which is missing: pip install"):
        Reporter(tmp_path, 10, wandb="my-run", console=quiet())


def test_weights_and_biases_gets_the_same_run_and_numbers_when_asked_for(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        define_metric=lambda *a, **k: None, log=calls.append, finish=lambda: calls.append("finished")
    )
    started = []
    fake = types.SimpleNamespace(init=lambda **k: started.append(k) or run, Table=lambda columns, data: (columns, data))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for start_step in (0, 5):
        with Reporter(tmp_path, 10, start_step=start_step, wandb="my-run", console=quiet()) as reporter:
            reporter.write(start_step + 1, {"train/loss": 1.0})
    with Reporter(tmp_path / "other", 10, wandb="my-run", console=quiet()) as reporter:
        reporter.text(2, "samples", [{"a": "b"}])
    ids = [call["id"] for call in started]
    assert ids[0] == ids[1] != ids[2] and {call["name"] for call in started} == {"my-run"}
    assert calls == [
        {"step": 1, "train/loss": 1.0}, "finished", {"step": 6, "train/loss": 1.0}, "finished",
        {"step": 2, "samples": (["a"], [["b"]])}, "finished",
    ]  # fmt: skip
