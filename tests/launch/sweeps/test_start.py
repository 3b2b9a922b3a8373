"""The command `camelid sweep`: what it checks before it begins, what continues a sweep, and a sweep of a training."""

import json
import os
import re
import sys
from pathlib import Path

import jax
import pytest

from camelid.errors import UserError
from camelid.launch.cli import main
from camelid.launch.sweeps import start as starting
from camelid.launch.sweeps.devices import MEMORY, environments
from camelid.launch.sweeps.identity import Pruning, read_sweep
from camelid.launch.sweeps.results import Results
from camelid.launch.sweeps.space import read_space
from camelid.launch.sweeps.stopping import MARK, last_asked
from camelid.launch.sweeps.trials import last_line, train_command
from camelid.model.host_devices import HostDevices

CONFIG = Path(__file__).parents[2] / "tiny.py"
PHASES = """
from camelid.tests.tiny import get_config as tiny

def get_config(arg=None):
    c = tiny(arg)
    c.phases = [("first", {"optim.lr": 1e-3}), ("second", {"total_steps": 8, "optim.lr": 1e-4})]
    return c
"""


def asked(folder: Path, space: str, **more) -> starting.Asked:
    given = {"config": f"{CONFIG}:root=/nowhere", "overrides": (), "objective": "eval/heldout/text/loss:min"}
    return starting.Asked(folder=folder, space=read_space([space]), **(given | more))


@pytest.mark.parametrize(
    ("space", "said"),
    {
        "optim.lrr={1,2}": "there is no config.optim.lrr; did you mean config.optim.lr?",
        "optim.lr={0.1,-1}": "at optim.lr=-1: config.optim.lr = -1.0: give a number from 0 to 100",
        "optim.lr=log(0.1,1e4)": "at optim.lr=1e+04",
        "data.batch_size=log(8,32)": "for whole numbers write data.batch_size=int(low,high)",
        "total_steps=uniform(8,32)": "for whole numbers write total_steps=int(low,high)",
        "total_steps={8,16} total_tokens={1e4,2e4}": "the config sets config.total_steps and config.total_tokens",
        ":recipe={pretrain,sftt}": "did you mean sft?",
        ":lora={a,b} :siz={1,2}": "unknown argument 'siz'",
    }.items(),
)
def test_settings_are_checked_at_both_ends_before_anything_begins(tmp_path, space, said):
    with pytest.raises(UserError) as error:
        starting.begin(asked(tmp_path / "sweep", space, trials=4))
    assert said in str(error.value) and "--space" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"method": "grid"}, "--method=grid needs choices"),
        ({"space": "optim.lr={0.1,0.2}", "seed": 3}, "--seed=3 does nothing with --method=grid"),
        ({"space": "seed={0,1}", "method": "tpe"}, "nothing but seeds to choose from"),
        ({"trials": None}, "give --trials=N"),
        ({"objective": "loss"}, "write METRIC:min or METRIC:max"),
        ({"objective": "loss:mim"}, "did you mean min?"),
        ({"overrides": ("--config.optim.lr=1",)}, "--config.optim.lr=1 and --space both set optim.lr"),
        ({"overrides": ("--config.optim.b1=7",)}, "config.optim.b1 = 7: give a number"),
        ({"storage": "nothing://u:secret@h"}, "--storage=nothing://u:***@h"),
    ],
)
def test_options_that_make_no_sweep_are_told(tmp_path, more, said):
    with pytest.raises(UserError) as error:
        starting.begin(asked(tmp_path, **({"space": "optim.lr=log(1e-4,1e-2)", "trials": 4} | more)))
    assert said in str(error.value)


def test_without_optuna_there_is_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"camelid sweep needs optuna: pip install 'camelid\[sweep\]'"):
        starting.begin(asked(tmp_path, "optim.lr={0.1,0.2}"))


def test_a_length_of_the_space_unsets_the_one_of_the_config(tmp_path):
    sweep, _ = starting.begin(asked(tmp_path, "total_tokens={1e4,2e4}"))
    assert sweep.trials == 2 and sweep.identity.config["log_steps"] == 1


def test_the_same_command_continues_and_another_one_is_refused_by_name(tmp_path):
    space = "optim.lr={0.1,0.2} seed={0,1}"
    first, _ = starting.begin(asked(tmp_path, space, trials=2))
    again, _ = starting.begin(asked(tmp_path, space, overrides=("--config.optim.b1=None",)))
    assert (first.trials, again.trials, again.study) == (2, 4, first.study)
    assert read_sweep(tmp_path).trials == 4
    others = (
        ({"overrides": ("--config.optim.b1=0.8",)}, "config.optim.b1 was null and is 0.8"),
        ({"config": f"{CONFIG}:root=/else"}, 'config.data.cache_dir was "/nowhere/cache" and is "/else/cache"'),
        ({"space": "optim.lr={0.1,0.3} seed={0,1}"}, "optim.lr in --space was {0.1,0.2} and is {0.1,0.3}"),
        ({"space": "optim.lr={0.1,0.2}"}, "seed in --space was {0,1} and is not there"),
        ({"space": "seed={0,1} optim.lr={0.1,0.2}"}, "had the order optim.lr, seed"),
        ({"method": "random", "trials": 4}, "--method was grid and is random"),
        ({"storage": "sqlite"}, "--storage was journal and is sqlite"),
        ({"prune": Pruning(2, 3)}, "--prune was none and is hyperband with --min_evaluations=2 --reduction=3"),
    )
    for more, said in others:
        with pytest.raises(UserError) as error:
            starting.begin(asked(tmp_path, **({"space": space} | more)))
        assert said in str(error.value) and "another --workdir" in str(error.value)
    assert read_sweep(tmp_path).identity == first.identity


def test_the_objective_is_read_from_the_last_phase(tmp_path):
    (tmp_path / "two.py").write_text(PHASES)
    sweep, _ = starting.begin(
        asked(tmp_path / "sweep", "phases.first.optim.lr={0.1,0.2}", config=f"{tmp_path / 'two.py'}:root=/nowhere")
    )
    assert sweep.run_folder(3) == tmp_path / "sweep" / "trials" / "0003" / "second"
    assert sweep.identity.config["phases.second.total_steps"] == 8
    assert sweep.identity.config["phases.second.optim.lr"] == 1e-4
    assert sweep.identity.config.keys().isdisjoint({"phases.first.optim.lr", "optim.lr"})
    command = train_command(sweep, 3, {"phases.first.optim.lr": 0.1})
    assert command[0] == "train" and "--config.phases.first.optim.lr=0.1" in command


def test_trials_have_one_group_on_weights_and_biases(tmp_path):
    sweep, _ = starting.begin(asked(tmp_path / "s", "seed={0,1}", overrides=("--config.wandb.project=p",)))
    assert sweep.overrides == ("--config.wandb.project=p", "--config.wandb.group=s")


def test_the_last_line_of_a_log_is_what_a_terminal_shows_of_it(tmp_path):
    log = tmp_path / "log.txt"
    for said, line in {
        b"50%\r99%\rdone\r\n\n": "done",
        b"camelid: \x1b[31mred\x1b[0m \x1b]x\xe2\x80\xaelive\x07 \xe7\x8b\x90\n\x1b[0m\n": "red xlive \u72d0",
        b"\xff\xfe": "\ufffd\ufffd",
        b"": "",
    }.items():
        log.write_bytes(said)
        assert last_line(log) == line


def test_workers_divide_gpus_or_share_them(monkeypatch):
    assert environments(3, HostDevices("cpu", 1)) == [{}, {}, {}]
    eight = environments(2, HostDevices("cuda", 8))
    assert eight == [{"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    shared = environments(3, HostDevices("cuda", 2))
    assert [each["CUDA_VISIBLE_DEVICES"] for each in shared] == ["5", "7", "5"]
    assert [float(each[MEMORY]) for each in shared] == [0.375, 0.75, 0.375]
    assert [each["TPU_VISIBLE_CHIPS"] for each in environments(4, HostDevices("tpu", 4))] == ["0", "1", "2", "3"]
    with pytest.raises(UserError, match="--workers=2 with 2 chips each: a process has one chip of a TPU or all 4"):
        environments(2, HostDevices("tpu", 4))
    with pytest.raises(UserError, match="--workers=5 with a device each: there are 4: give at most 4"):
        environments(5, HostDevices("tpu", 4))


def test_options_that_do_nothing_are_refused(tmp_path, capsys):
    base = ["sweep", f"--config={CONFIG}", "--space=seed={0,1}", "--objective=x:min", f"--workdir={tmp_path}"]
    for line, said in {
        (*base, "--reduction=4"): "--reduction does nothing without --prune=hyperband",
        (*base, "--json"): "--json does nothing without --show",
        ("sweep", f"--workdir={tmp_path}", "--show", "--workers=2"): "--workers does nothing with --show",
        ("sweep", f"--workdir={tmp_path}", "--show"): "there is no sweep here",
        ("sweep", f"--workdir={tmp_path}"): "give --config=FILE",
        ("sweep", "--workdir=gs://bucket/sweep", "--show"): "a sweep needs a folder of a file system",
        ("sweep", "--workdir=~nobody-here/sweep", "--show"): "~nobody-here is no user's home",
        (*base[:-1], f"--workdir={CONFIG}"): "is a file, not a folder",
        (base[0], f"{base[1]}:root=a", "--space=:root={b,c}", *base[3:]): "--space sets :root too: give one of them",
    }.items():
        assert main(list(line)) == 2
        assert said in capsys.readouterr().err


def test_a_sweep_in_the_home_folder_goes_on_after_it_was_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    marks = []
    monkeypatch.setattr(
        starting, "run", lambda sweep, study, options: marks.append(options.stop_mark) or Results(sweep, study)
    )
    base = ["sweep", f"--config={CONFIG}:root=/nowhere", "--space=seed={0,1}", "--objective=x:min"]
    assert main([*base, "--workdir=~/sweep"]) == 1 and main(["sweep", "--workdir=~/sweep", "--stop"]) == 0
    assert main([*base, "--workdir=~/sweep"]) == 1 and marks == [0, last_asked(tmp_path / "sweep")]
    assert marks[1] > 0 and f"the workers of {tmp_path}/sweep save" in capsys.readouterr().out


def test_what_was_asked_of_a_sweep_in_the_background_ends_it_also_while_it_starts(tmp_path, monkeypatch, capsys):
    started, marks = [], []

    class Background:
        def __init__(self, argv, env, **_):
            started.append((argv[argv.index("sweep") :], env[MARK]))
            self.pid = 7

    monkeypatch.setattr(starting.subprocess, "Popen", Background)
    monkeypatch.setattr(starting, "run", lambda _, study, options: marks.append(options.stop_mark) or Results(_, study))
    base = ["sweep", f"--config={CONFIG}:root=/nowhere", "--space=seed={0,1}", "--objective=x:min"]
    assert main([*base, f"--workdir={tmp_path}/a b", "--detach"]) == 0
    assert f"camelid sweep --workdir='{tmp_path}/a b' --show" in capsys.readouterr().out
    assert main(["sweep", f"--workdir={tmp_path}/a b", "--stop"]) == 0
    [(argv, mark)] = started
    monkeypatch.setenv(MARK, mark)
    assert main(argv) == 1 and marks == [0] and last_asked(tmp_path / "a b") > 0
    assert main(argv) == 1 and marks[1] == last_asked(tmp_path / "a b")


def test_a_trial_is_an_ordinary_run(corpus, tmp_path, monkeypatch, capsys):
    jax.devices()  # those of this process; the flags are for its children
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1")
    metric = "eval/heldout/text/loss"
    lines = [
        *("sweep", f"--config={CONFIG}:root={corpus}", "--space=optim.lr={0.02} seed={3}", f"--workdir={tmp_path}"),
        *(f"--objective={metric}:min", "--config.total_steps=2", "--quiet"),
    ]
    assert main(lines) == 0
    said = capsys.readouterr()
    assert re.search(rf"best point: optim.lr=0.02, with a mean {metric} \d.* over 1 seed\nbest trial: 0 with", said.out)
    assert "best trial: 0 with optim.lr=0.02 seed=3" in said.out and said.err == ""
    run = tmp_path / "trials" / "0000"
    assert (run / "checkpoints" / "2").is_dir() and "step 2/2" in (run / "log.txt").read_text()
    config = json.loads((run / "config.json").read_text())
    assert (config["optim"]["lr"], config["seed"], config["total_steps"]) == (0.02, 3, 2)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert main(["sweep", "--show", f"--workdir={tmp_path}", "--json"]) == 0
    [trial] = json.loads(capsys.readouterr().out)["trials"]
    assert (trial["state"], trial["value"], trial["folder"]) == ("finished", last[metric], str(run))
    assert (tmp_path / "report.html").exists()
