"""Runs as processes that die by kill -9 and by SIGTERM, and go on bit for bit as if nothing had been."""

import json
import random
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

import camelid
from camelid.checkpoints import reading
from camelid.launch.cli import main
from camelid.train.run_record import read_record

STEPS = 24


OFTEN = "--config.checkpoint.every_steps=4"
# Where each run is ended and begins again. kill -9 at random steps, late enough for a checkpoint: of step 4, whose
# writing the save of step 8 waits for.
ENDS = {
    "pretrain": [(6, signal.SIGTERM), (random.Random("pretrain").randrange(14, 22), signal.SIGKILL)],
    "sft": [
        (random.Random("sft").randrange(9, 12), signal.SIGKILL),
        (random.Random("sft").randrange(14, 22), signal.SIGKILL),
    ],
}


def finish(process, code: int = 0) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    return output


def send_at(process, step, number, workdir, metrics) -> None:
    """Sends a signal once the run has reported `step`."""
    while not (workdir / "metrics.jsonl").exists() or max(metrics(workdir), default=0) < step:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    process.send_signal(number)


def state_of(workdir):
    """Everything in a run's last checkpoint, on one device."""
    path = reading.find(workdir)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    stored = ocp.metadata(path).metadata
    return ocp.load(path, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), stored))


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


class Runs(NamedTuple):
    """straight: the directory of a run that nothing disturbs. ended: that of the same one, ended twice; the last step
    whose metrics it had told each time, the one that it went on from, what it had said, and the seconds that all of its
    processes lived."""

    straight: Path
    ended: Path
    told: list[int]
    resumed_from: list[int]
    said: list[str]
    lived: list[float]


@pytest.fixture(scope="module")
def runs(arguments, start, metrics, pretrained, tmp_path_factory):
    """The runs of each recipe, on two devices."""

    def both(recipe) -> Runs:
        root = tmp_path_factory.mktemp(recipe)
        straight, ended = (
            [*arguments(recipe, root / name, init_from=pretrained if recipe == "sft" else None), OFTEN]
            for name in ("straight", "ended")
        )
        finish(start(straight))
        found = Runs(root / "straight", root / "ended", [], [], [], [])
        for step, number in ENDS[recipe]:
            begin = time.monotonic()
            process = start(ended)
            send_at(process, step, number, found.ended, metrics)
            found.said.append(finish(process, code=143 if number == signal.SIGTERM else -number))
            found.lived.append(time.monotonic() - begin)
            found.told.append(max(metrics(found.ended)))
            found.resumed_from.append(reading.read_manifest(found.ended)["step"])
        begin = time.monotonic()
        finish(start(ended))
        found.lived.append(time.monotonic() - begin)
        return found

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(ENDS, pool.map(both, ENDS), strict=True))


@pytest.mark.parametrize("recipe", ENDS)
def test_a_run_that_was_ended_twice_ends_with_the_same_bits(recipe, runs, metrics):
    straight, killed, _, resumed_from, *_ = runs[recipe]
    assert 0 < resumed_from[0] <= resumed_from[1] < STEPS
    found, expected = state_of(killed), state_of(straight)
    assert int(found["step"]) == STEPS
    assert found.keys() == {"params", "opt_state", "step", "guard"} | ({"ema"} if recipe == "sft" else set())
    assert_same_bits(found, expected)
    measured = [
        {
            step: {name: value for name, value in line.items() if re.search(r"loss|norm|/lr|epochs|perplexity", name)}
            for step, line in metrics(workdir).items()
        }
        for workdir in (killed, straight)
    ]
    assert list(measured[0]) == list(range(STEPS + 1))
    assert measured[0] == measured[1]


def test_sigterm_saves_and_ends_with_a_code_of_its_own(runs):
    stopped = runs["pretrain"].resumed_from[0]
    assert 6 <= stopped < STEPS
    assert f"camelid: SIGTERM ended the run at step {stopped} of {STEPS}; it is saved" in runs["pretrain"].said[0]
    assert runs["pretrain"].told[0] == stopped


def test_the_record_of_a_run_that_was_ended_twice_accounts_for_the_time_of_all_its_processes(runs):
    """A kill leaves up to a second untold, and what Python needs to end is in no bucket: on a busy machine that is more
    (`tests/goodput.py` measures it over longer lives)."""
    lost = 0.0
    for name, ends in {"pretrain": ["interrupted", "lost", "finished"], "sft": ["lost", "lost", "finished"]}.items():
        record = read_record(runs[name].ended)
        assert [each.exit for each in record.attempts] == ends and record.status == "finished"
        assert [each.from_step for each in record.attempts] == [0, *runs[name].resumed_from]
        assert record.attempts[-1].to_step == record.step == STEPS
        assert sum(record.seconds.values()) == pytest.approx(sum(runs[name].lived), rel=0.15, abs=2.0 * len(ends))
        killed = [each for each in record.attempts if each.exit == "lost"]
        assert all(each.exit_code is None for each in killed)
        lost += sum(each.seconds["lost"] for each in killed)  # nothing, if it was killed before the beat after a save
        assert 0 < record.goodput < 1
    assert lost > 0
    [stopped, *_] = read_record(runs["pretrain"].ended).attempts
    assert stopped.exit_code == 143 and stopped.reason.startswith("SIGTERM ended the run at step")
    assert stopped.seconds["lost"] == 0  # what it had done is saved
    told = [line for said in runs["sft"].said for line in said.splitlines() if "compiling, once: " in line]
    assert len(told) == 2


def test_a_run_that_no_longer_improves_ends_early_and_goes_on_with_more_patience(arguments, tmp_path, capsys):
    stop = ["--config.early_stopping.metric=eval/heldout/text/loss", "--config.early_stopping.min_delta=100.0"]
    short = [*arguments("pretrain", tmp_path), "--config.total_steps=6", "--config.eval_steps=2", *stop]
    short += ["--config.eval_percent=None"]
    assert main([*short, "--config.early_stopping.patience=2"]) == 0
    said = capsys.readouterr()
    why = "eval/heldout/text/loss has not improved by more than 100 in 2 evaluations since step 0 ("
    assert f"stopped early at step 4 of 6: {why}" in said.err and "step 4: checkpoints, metrics" in said.out
    assert read_record(tmp_path).status == "stopped early" and read_record(tmp_path).attempts[0].reason.startswith(why)
    assert main([*short, "--config.early_stopping.patience=2"]) == 0
    assert "already complete, stopped early at step 4 of 6; nothing was done" in capsys.readouterr().err
    assert camelid.load(tmp_path).step == 4 and len(read_record(tmp_path).attempts) == 1
    assert main([*short, "--config.early_stopping.patience=3"]) == 0
    assert "resuming from step 4 with changes: config.early_stopping.patience was 2" in capsys.readouterr().err
    assert [each.exit for each in read_record(tmp_path).attempts] == ["stopped early", "finished"]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["early_stopping"]["patience"] == 3 and config["total_steps"] == 6


def test_a_run_does_not_go_on_with_other_data(pretrained, arguments, tmp_path, capsys):
    shutil.copytree(pretrained, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert main([*arguments("pretrain", tmp_path / "run"), "--config.seed=1"]) == 2
    said = capsys.readouterr().err
    assert "config.seed was 0 and is 1. Give the former values" in said and said.count("\n") == 1
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_run_does_not_go_on_with_another_optimiser(pretrained, arguments, tmp_path, capsys):
    shutil.copytree(pretrained, tmp_path / "run")
    assert main([*arguments("pretrain", tmp_path / "run"), "--config.optim.name=lion"]) == 2
    said = capsys.readouterr().err
    assert "config.optim.name was 'adamw' and is 'lion'" in said and said.count("\n") == 1


def everything_in(workdir):
    return {path.relative_to(workdir): path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def test_a_finished_run_given_again_says_so_and_changes_not_a_byte(pretrained, arguments, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(pretrained, run)
    for further, said in (
        ([], "\n"),
        (["--config.log_steps=5"], "; changes have no effect any more: config.log_steps was 1 and is 5\n"),
    ):
        capsys.readouterr()
        assert main([*arguments("pretrain", run), *further]) == 0
        assert capsys.readouterr().err == f"camelid: {run}: already complete, 24 steps; nothing was done{said}"
    assert main([*arguments("pretrain", run), "--config.optim.lr=0.5"]) == 2
    assert "config.optim.lr was 0.01 and is 0.5" in capsys.readouterr().err
    assert main([*arguments("pretrain", run), "--config.total_steps=12"]) == 2
    assert "the run was 24 steps long and is 12: it can only be made longer" in capsys.readouterr().err
    assert everything_in(run) == everything_in(pretrained)


def test_a_run_does_not_go_on_from_another_model_than_it_began_with(tuned, pretrained, arguments, tmp_path, capsys):
    shutil.copytree(tuned, tmp_path / "run")
    shutil.copytree(pretrained, tmp_path / "base")
    again = arguments("sft", tmp_path / "run", init_from=tmp_path / "base")
    assert main(again) == 0  # the same, moved
    shutil.rmtree(tmp_path / "base" / "checkpoints" / "24")
    capsys.readouterr()
    assert main(again) == 2
    said = capsys.readouterr().err
    assert "there is another model at config.init_from (identity: 24 before, 12 now)" in said and said.count("\n") == 1


def test_a_damaged_newest_checkpoint_is_told_and_the_run_ends_with_the_same_bits(
    pretrained, arguments, tmp_path, capsys
):
    run = tmp_path / "run"
    shutil.copytree(pretrained, run)
    data = max((run / "checkpoints" / "24" / "state").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert main(arguments("pretrain", run)) == 0
    said = capsys.readouterr().err
    assert "checkpoints/24 is damaged (" in said and "resuming from step 12" in said
    assert_same_bits(state_of(run), state_of(pretrained))


def test_a_metric_that_no_evaluation_gives_is_no_best_and_one_that_is_has_its_checkpoint(arguments, tmp_path, capsys):
    short = [*arguments("pretrain", tmp_path), "--config.total_steps=4", "--config.checkpoint.keep_last=1"]
    assert main([*short, "--config.checkpoint.best=('eval/heldout/txt/loss', 'min')"]) == 2
    assert "no evaluation gives 'eval/heldout/txt/loss'; there are eval/heldout/text/loss" in capsys.readouterr().err
    assert main([*short, "--config.checkpoint.best=('eval/heldout/text/loss', 'max')"]) == 0
    assert f"samples are in {tmp_path}, the best in checkpoints/2" in capsys.readouterr().out
    assert camelid.load(f"{tmp_path}@best").step == 2 and camelid.load(tmp_path).step == 4


def test_what_reads_a_run_with_an_average_takes_what_its_evaluations_measured_and_says_so(tuned, capsys):
    average, last, default = (camelid.load(tuned, weights=weights).params for weights in ("ema", "params", None))
    leaves = [jax.tree.leaves(tree) for tree in (average, last, default)]
    assert all(np.array_equal(a, b) for a, b in zip(leaves[0], leaves[2], strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(leaves[1], leaves[2], strict=True))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), last)
    stored = reading.load_part(reading.find(tuned), shapes, ["ema"])
    assert_same_bits(default, stored)
