"""Reports: JSON lines that survive a resume, the console with and without a terminal, TensorBoard, Weights & Biases."""

import contextlib
import dataclasses
import importlib.machinery
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
from tensorboardX.proto.api_pb2 import Status
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from tensorboardX.record_writer import masked_crc32c

from camelid.errors import UserError
from camelid.settings.sections import read
from camelid.train.metrics_file import read_metrics
from camelid.train.report import Reporter
from camelid.train.run_config import SupervisedConfig
from camelid.train.weights_and_biases import WandbSettings


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
    assert printed[2].startswith("step 2  eval/[a]/loss 1.5  ")
    assert printed[2].endswith("eval/[h]/loss 1.5  (2 more in metrics.jsonl)")
    assert len(printed) == 3


def test_of_an_evaluation_the_metrics_of_all_groups_are_printed_and_the_file_has_every_one(tmp_path):
    groups = {"all": 0.5, "en": 0.5, "sort": 0.5, "sort/en": 0.5, "cost/all": 0.1, "cost/en": 0.2, "scores": 1}
    values = {f"eval/primer/{name}": value for name, value in {**groups, "scores/en": 2}.items()}
    console = quiet()
    with Reporter(tmp_path, 10, console=console) as reporter:
        reporter.write(3, values)
        reporter.write(4, {"eval/heldout/scores/en": 1, "eval/heldout/scores": 2, "eval/heldout/kl": 3})
    first, second = console.file.getvalue().splitlines()
    assert first == "step 3  eval/primer/all 0.5  eval/primer/cost/all 0.1  (6 more in metrics.jsonl)"
    assert second == "step 4  eval/heldout/scores 2  eval/heldout/kl 3  (1 more in metrics.jsonl)"
    assert lines(tmp_path / "metrics.jsonl")[0] == {"step": 3, **values}


def test_a_table_of_short_cells_is_lines_where_it_has_one_row_or_does_not_fit(tmp_path):
    console = quiet()
    row = {"source": "text", "records": "1,259", "held-out records": ""}
    with Reporter(tmp_path, 10, console=console) as reporter:
        reporter.text(0, "data", [row])
        reporter.text(0, "wide", [row | {f"count{n}": str(n) for n in range(12)}] * 2)
        reporter.text(0, "narrow", [row] * 2)
    printed = console.file.getvalue().splitlines()
    assert printed[0] == "data, step 0: source text, records 1,259"
    assert [line.startswith("wide, step 0: source text, records 1,259, count0 0, ") for line in printed[1:3]] == [
        True
    ] * 2
    assert printed[3].strip() == "narrow, step 0" and sum("1,259" in line for line in printed[3:]) == 2


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


def sessions(directory):
    """The settings and ends in TensorBoard's HParams sessions of a folder, in the order in which they were written."""
    found = []
    for event in tensorboard_events(directory):
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "hparams":
                data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                found.append((value.tag.removeprefix("_hparams_/"), getattr(data, data.WhichOneof("data"))))
    return found


def test_tensorboard_gets_the_settings_that_are_set_each_with_its_type(tmp_path):
    config = SupervisedConfig(seed=3, ema_decay=0.9, z_loss=0.0, init_from="runs/base")
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, decay=[("head", False)]))
    with Reporter(tmp_path, 10, config=config, console=quiet()):
        pass
    (start_kind, start), (end_kind, end) = sessions(tmp_path / "tensorboard")
    assert (start_kind, end_kind) == ("session_start_info", "session_end_info")
    assert Status.Name(end.status) == "STATUS_SUCCESS" and end.end_time_secs >= start.start_time_secs > 0
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    expected = {"seed": 3.0, "ema_decay": 0.9, "init_from": "runs/base", "optim.decay": "[('head', False)]"}
    assert expected.items() <= values.items()
    assert values["optim.offload"] is False and values["z_loss"] == 0.0 and "tokenizer" not in values


def test_a_run_that_is_cut_off_and_resumed_is_one_session_of_tensorboard(tmp_path):
    with pytest.raises(KeyboardInterrupt), Reporter(tmp_path, 10, config=SupervisedConfig(seed=1), console=quiet()):
        raise KeyboardInterrupt
    assert [kind for kind, _ in sessions(tmp_path / "tensorboard")] == ["session_start_info"]
    with Reporter(tmp_path, 10, start_step=4, config=SupervisedConfig(seed=1, z_loss=0.5), console=quiet()):
        pass
    (start_kind, start), (end_kind, _) = sessions(tmp_path / "tensorboard")
    assert (start_kind, end_kind) == ("session_start_info", "session_end_info")
    assert start.hparams["z_loss"].number_value == 0.5, "the settings are those of the last attempt"
    with Reporter(tmp_path, 10, config=SupervisedConfig(seed=2), console=quiet()):  # the run starts over
        pass
    (_, start), _ = sessions(tmp_path / "tensorboard")
    assert start.hparams["seed"].number_value == 2


def with_wandb(**settings):
    return SupervisedConfig(seed=7, wandb=WandbSettings(**settings))


def test_weights_and_biases_asked_for_but_not_installed_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb\.project = 'mine' asks for Weights & Biases, which is missing: pip"):
        Reporter(tmp_path, 10, config=with_wandb(project="mine"), console=quiet())


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package, which keeps what it is called with: `started` and `calls`."""
    calls, started = [], []
    run = types.SimpleNamespace(
        define_metric=lambda *a, **k: None, log=calls.append, finish=lambda exit_code: calls.append(exit_code)
    )
    fake = types.ModuleType("wandb")
    fake.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    fake.init, fake.Table = lambda **k: started.append(k) or run, lambda columns, data: (columns, data)
    fake.Settings, fake.calls, fake.started = types.SimpleNamespace, calls, started
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_weights_and_biases_gets_the_same_run_and_numbers_when_asked_for(tmp_path, wandb):
    config = with_wandb(project="mine", name="my-run")
    for start_step in (0, 5):
        with Reporter(tmp_path, 10, start_step=start_step, config=config, console=quiet()) as reporter:
            reporter.write(start_step + 1, {"train/loss": 1.0})
    with (
        pytest.raises(KeyboardInterrupt),
        Reporter(tmp_path / "other", 10, config=config, console=quiet()) as reporter,
    ):
        reporter.text(2, "samples", [{"a": "b"}])
        raise KeyboardInterrupt
    ids = [call["id"] for call in wandb.started]
    assert ids[0] == ids[1] != ids[2] and {call["name"] for call in wandb.started} == {"my-run"}
    assert wandb.calls == [
        {"step": 1, "train/loss": 1.0}, 0, {"step": 6, "train/loss": 1.0}, 0,
        {"step": 2, "samples": (["a"], [["b"]])}, 1,
    ]  # fmt: skip


def test_weights_and_biases_gets_the_config_tags_and_group(tmp_path, wandb):
    config = with_wandb(project="mine", group="seeds", tags=["primer", "nano"], entity="us", mode="offline")
    with Reporter(tmp_path / "runs" / "sft", 10, config=config, console=quiet()):
        pass
    (call,) = wandb.started
    asked = ("project", "name", "group", "tags", "entity", "mode", "resume")
    assert [call[name] for name in asked] == [
        "mine", "runs/sft", "seeds", ["primer", "nano"], "us", "offline", "allow",
    ]  # fmt: skip
    assert (
        not call["settings"].silent and call["config"]["seed"] == 7 and call["config"]["optim"]["lr"] == config.optim.lr
    )


def test_reports_that_cannot_be_sent_do_not_end_a_run(tmp_path, wandb, capsys):
    def fail(content):
        wandb.calls.append(content)
        raise BrokenPipeError("the service is gone")

    with Reporter(tmp_path, 10, config=with_wandb(project="mine"), console=quiet()) as reporter:
        reporter._outlets[0]._run.log = fail
        for step in (1, 2):
            reporter.write(step, {"train/loss": 1.0})
    assert len(wandb.calls) == 1 and sorted(read_metrics(tmp_path)) == [1, 2]
    assert capsys.readouterr().err.count("gets no more reports of this run, which goes on: BrokenPipeError: the") == 1


@pytest.mark.parametrize(("name", "kind"), [("UsageError", UserError), ("CommError", OSError)])
def test_a_run_that_weights_and_biases_refuses_says_so_in_a_line(tmp_path, wandb, name, kind):
    def init(**settings):
        raise type(name, (Exception,), {})("no\nAPI key")

    wandb.init = init
    with pytest.raises(kind, match=f"Weights & Biases: {name}: no API key; config.wandb.mode=offline keeps"):
        Reporter(tmp_path, 10, config=with_wandb(project="mine"), console=quiet())


def test_nothing_is_sent_to_weights_and_biases_unless_a_project_is_named(tmp_path, wandb):
    with Reporter(tmp_path, 10, config=with_wandb(), console=quiet()):
        pass
    assert not wandb.started
    with pytest.raises(UserError, match=r"config.wandb.tags = \['a'\] does nothing where config.wandb.project is None"):
        read({"tags": ["a"], "project": None}, WandbSettings, "config.wandb")
