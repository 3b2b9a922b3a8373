"""Runs compared: the leaves that differ, groups of seeds with their intervals, and each way in which they are shown."""

import csv
import io
import json
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from camelid.errors import UserError
from camelid.launch import comparison, run_folders
from camelid.launch.cli import main
from camelid.launch.comparison import (
    Metric,
    default_metrics,
    differing_leaves,
    groups,
    over_seeds,
    read_run,
    read_runs,
)
from camelid.launch.comparison_figure import MOST_LINES, draw, labels, learning_curves
from camelid.launch.comparison_notes import notes
from camelid.launch.comparison_tables import Comparison, short_names
from camelid.launch.run_folders import find_runs
from camelid.launch.sweeps.identity import Objective

LOSS = "eval/heldout/text/loss"
CONFIG = {
    "recipe": "sft", "seed": 0, "optim": {"lr": 0.01, "decay": None}, "model": {"n_layers": 2}, "total_steps": 20,
    "data": {"cache_dir": "cache", "mixture": {"text": {"weight": 1.0}}}, "wandb": {"name": None},
    "checkpoint": {"best": None},
}  # fmt: skip


def config_of(leaves):
    """`CONFIG` with some leaves changed, by their dotted names."""
    config = json.loads(json.dumps(CONFIG))
    for name, value in leaves.items():
        *sections, last = name.split(".")
        inner = config
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return config


def make_run(folder: Path, losses=(3.0, 2.0, 2.5), *, more=None, lines=None, **leaves) -> Path:
    """A run directory with an evaluation loss at the steps 0, 10, 20, and leaves such as optim__lr=0.1."""
    folder.mkdir(parents=True)
    leaves = {name.replace("__", "."): value for name, value in leaves.items()}
    (folder / "config.json").write_text(json.dumps(config_of(leaves)))
    records = [{"step": 10 * i, LOSS: loss} for i, loss in enumerate(losses)]
    records += [{"step": 20, "train/loss": 1.0}] if losses else []
    records += more or []
    text = "".join(json.dumps(record) + "\n" for record in records) if lines is None else lines
    (folder / "metrics.jsonl").write_text(text)
    return folder


@pytest.fixture
def sweep(tmp_path):
    """Two learning rates with three seeds each."""
    for lr, base in ((0.01, 2.0), (0.1, 1.0)):
        for seed in range(3):
            losses = (5.0, base + seed / 10, base + 0.5 + seed / 10)
            make_run(tmp_path / f"lr{lr}-s{seed}", losses, optim__lr=lr, seed=seed, data__cache_dir=f"cache{seed}")
    return tmp_path


def test_runs_that_differ_in_their_seed_alone_are_one_group(sweep):
    found = groups(read_runs([sweep]))
    assert [group.leaves for group in found] == [{"optim.lr": 0.01}, {"optim.lr": 0.1}]
    assert [[run.seed for run in group.runs] for group in found] == [[0, 1, 2]] * 2


def test_the_interval_over_seeds_is_students(sweep):
    group = groups(read_runs([sweep]))[0]
    best = group.best(Metric(LOSS, "min"))
    low, high = stats.t.interval(0.95, 2, loc=2.1, scale=stats.sem([2.0, 2.1, 2.2]))
    np.testing.assert_allclose([best.value, best.low, best.high], [2.1, low, high], rtol=1e-12)
    assert best.n == 3
    assert group.last(Metric(LOSS, "min")).value == pytest.approx(2.6)
    steps, values = zip(*((step, each.value) for step, each in group.curve(LOSS)), strict=True)
    assert steps == (0, 10, 20) and values == pytest.approx((5.0, 2.1, 2.6))


def test_a_single_seed_has_no_interval_and_a_diverged_one_leaves_no_mean():
    assert math.isnan(over_seeds([1.5]).low) and over_seeds([1.5]).value == 1.5
    assert math.isnan(over_seeds([1.5, math.nan]).value)
    assert over_seeds([1.5, math.inf]).value == math.inf and math.isnan(over_seeds([1.5, math.inf]).high)
    assert math.isnan(over_seeds([math.inf, -math.inf]).value)
    assert over_seeds([]) is None


def test_the_best_value_is_the_later_of_two_equal_ones_and_never_nan(tmp_path):
    run = read_run(make_run(tmp_path / "a", ("nan", 2.0, 2.0)))
    assert run.best(Metric(LOSS, "min")) == (2.0, 20)
    assert run.best(Metric(LOSS, "max")) == (2.0, 20)
    run = read_run(make_run(tmp_path / "b", (1.0, 2.0, "nan")))
    assert run.best(Metric(LOSS, "max")) == (2.0, 10) and math.isnan(run.last(Metric(LOSS, "max")).value)
    run = read_run(make_run(tmp_path / "c", ("nan",)))
    assert math.isnan(run.best(Metric(LOSS, "min")).value) and run.best(Metric("other", "min")) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("eval/heldout/text/loss", ("eval/heldout/text/loss", "min")),
        ("eval/heldout/text/bits_per_character", ("eval/heldout/text/bits_per_character", "min")),
        ("eval/heldout/pairs/calibration_error", ("eval/heldout/pairs/calibration_error", "min")),
        ("eval/heldout/kl", ("eval/heldout/kl", "min")),
        ("eval/primer/all", ("eval/primer/all", "max")),
        ("eval/lossless/accuracy", ("eval/lossless/accuracy", "max")),
        ("eval/primer/all:min", ("eval/primer/all", "min")),
        ("eval/x/loss:max", ("eval/x/loss", "max")),
        ("odd:name", ("odd:name", "max")),
    ],
)
def test_the_direction_of_a_metric_is_given_or_follows_from_its_name(text, expected):
    assert Metric.parse(text) == expected


def test_leaves_that_name_places_are_compared_only_where_they_are_asked_for(sweep):
    runs = read_runs([sweep])
    assert differing_leaves(runs) == ["seed", "optim.lr"]
    assert differing_leaves(runs, ["data.cache_dir", "model.*"]) == [
        "seed", "optim.lr", "model.n_layers", "data.cache_dir",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"--leaves: no config has a leaf 'optim.l'; did you mean optim.lr"):
        differing_leaves(runs, ["optim.l"])


def test_a_leaf_that_came_with_a_version_is_no_difference_but_another_source_is(tmp_path):
    make_run(tmp_path / "old")
    make_run(tmp_path / "new", model__extra=None)
    make_run(tmp_path / "mixed", data__mixture={"text": {"weight": 1.0}, "chat": {"weight": 2.0}})
    assert differing_leaves(read_runs([tmp_path / "old", tmp_path / "new"])) == []
    assert differing_leaves(read_runs([tmp_path])) == ["data.mixture.chat.weight"]
    by_sources = groups(read_runs([tmp_path]))
    assert sorted(len(group.runs) for group in by_sources) == [1, 2]


def test_seeds_of_a_config_with_phases_start_from_the_same_phase(tmp_path):
    for seed in (0, 1):
        workdir = tmp_path / f"s{seed}"
        make_run(workdir / "pretrain", seed=seed)
        make_run(workdir / "tune", seed=seed, init_from=f"elsewhere/s{seed}/pretrain", recipe="dpo")
        (workdir / "config.json").write_text(json.dumps({"phases": [["pretrain", {}], ["tune", {}]]}))
    found = groups(read_runs([tmp_path]))
    assert [[run.name for run in group.runs] for group in found] == [
        ["s0/pretrain", "s1/pretrain"], ["s0/tune", "s1/tune"],
    ]  # fmt: skip
    assert found[1].runs[0].leaves["init_from"] == "../pretrain"


def test_runs_are_found_by_path_glob_and_folder_each_once(sweep):
    make_run(sweep / "deep" / "er" / "run")
    (sweep / "deep" / "er" / "run" / "checkpoints" / "12").mkdir(parents=True)
    assert len(read_runs([sweep, sweep / "lr0.1-s0", f"{sweep}/lr*"])) == 7
    assert [path.name for path in find_runs(f"{sweep}/lr0.1*")] == ["lr0.1-s0", "lr0.1-s1", "lr0.1-s2"]
    (sweep / "empty").mkdir()
    for pattern, said in (("nothing*", "no such run directory"), ("empty", "neither a run directory nor a folder")):
        with pytest.raises(UserError, match=said):
            find_runs(f"{sweep}/{pattern}")


def test_a_run_to_which_links_lead_is_read_once_and_under_its_own_name(sweep):
    """A link to the newest run would otherwise count as another seed, and make the interval narrower."""
    for link, target in (("0latest", sweep / "lr0.1-s0"), ("again", sweep)):
        (sweep / link).symlink_to(target)
    names = [f"lr{lr}-s{seed}" for lr in (0.01, 0.1) for seed in range(3)]
    assert sorted(run.name for run in read_runs([sweep])) == names
    assert [run.name for run in read_runs([sweep / "0latest"])] == ["0latest"]


def test_a_run_that_has_not_begun_is_left_out_of_a_folder_and_refused_by_name(sweep, capsys):
    number = len(read_runs([sweep]))
    (sweep / "new" / "checkpoints").mkdir(parents=True)
    assert len(read_runs([sweep])) == len(read_runs([f"{sweep}/*"])) == number
    assert f"{sweep}/new: neither" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"neither a config\.json nor"):
        read_runs([sweep, sweep / "new"])


def test_a_run_that_is_being_written_and_one_with_a_damaged_line_are_read(tmp_path):
    whole = json.dumps({"step": 10, LOSS: 2.0}) + "\n"
    run = read_run(make_run(tmp_path / "a", lines=f'{whole}{{"step": 15, {whole}[1]\n{{"step": 20, "{LOSS}": 1.'))
    assert dict(run.metrics) == {10: {LOSS: 2.0}} and run.step == 10
    empty = read_run(make_run(tmp_path / "b", losses=()))
    assert empty.step == 0 and empty.best(Metric(LOSS, "min")) is None and empty.status == "unknown"
    (tmp_path / "b" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is damaged"):
        read_run(tmp_path / "b")
    (tmp_path / "b" / "config.json").unlink()
    with pytest.raises(UserError, match=r"neither a config\.json nor a complete checkpoint tells the config"):
        read_run(tmp_path / "b")


def test_the_metrics_by_default_are_the_one_that_chooses_the_best_and_one_of_each_evaluation(tmp_path):
    more = [{"step": 20, "eval/primer/all": 0.5, "eval/primer/en": 0.4, "eval/heldout/text/perplexity": 9.0}]
    make_run(tmp_path / "a", more=more)
    make_run(tmp_path / "b", more=more)
    make_run(tmp_path / "new", losses=())
    runs = read_runs([tmp_path])
    assert default_metrics(runs) == [(LOSS, "min"), ("eval/primer/all", "max")]
    make_run(tmp_path / "c", more=more, checkpoint__best=["eval/primer/en", "max"])
    assert default_metrics(read_runs([tmp_path])) == [("eval/primer/en", "max"), (LOSS, "min")]
    make_run(tmp_path / "d", lines='{"step": 20, "train/loss": 1.0}\n')
    assert default_metrics(read_runs([tmp_path])) == [("train/loss", "min")]
    make_run(tmp_path / "e", lines='{"step": 20, "other": 1.0}\n')
    assert default_metrics(read_runs([tmp_path])) == []


def test_an_evaluation_has_the_metric_with_the_shortest_name(tmp_path):
    names = ("scores/gold/en", "scores/gold", "scores", "kl")
    rewards = {f"eval/heldout/{name}": 1.0 for name in names} | {"eval/exam/de/all": 0.5, "eval/exam/all": 0.4}
    make_run(tmp_path / "a", lines=json.dumps({"step": 3, **rewards, LOSS: 2.0}) + "\n")
    found = default_metrics(read_runs([tmp_path]))
    assert found == [("eval/heldout/scores", "max"), ("eval/exam/all", "max"), (LOSS, "min")]


def test_the_value_before_the_first_step_is_the_best_only_where_there_is_no_other(tmp_path):
    run = read_run(make_run(tmp_path / "worse", (1.0, 2.0, 3.0)))
    assert run.best(Metric(LOSS, "min")) == (2.0, 10)
    assert read_run(make_run(tmp_path / "new", (1.0,))).best(Metric(LOSS, "min")) == (1.0, 0)
    for objective in (Objective(LOSS, "min", "best"), Objective(LOSS, "max", "best")):  # of a sweep
        curve = {point.step: point.value for point in run.curve(LOSS)}
        assert objective.of(curve) == run.best(Metric(LOSS, objective.mode)).value


def test_repeats_of_a_seed_are_no_evidence_and_the_one_that_went_furthest_counts(sweep, tmp_path, capsys):
    once = groups(read_runs([sweep]))[1].best(Metric(LOSS, "min"))
    for copy in ("a", "b"):
        shutil.copytree(sweep / "lr0.1-s1", sweep / f"{copy}-copy")
    make_run(sweep / "c-further", (5.0, 1.1, 1.6, 1.1), optim__lr=0.1, seed=1)
    runs = read_runs([sweep])
    group = next(group for group in groups(runs) if group.leaves == {"optim.lr": 0.1})
    assert len(group.runs) == 6 and [run.name for run in group.counted] == ["lr0.1-s0", "c-further", "lr0.1-s2"]
    assert group.best(Metric(LOSS, "min")) == once and once.n == 3
    found = Comparison(runs, [Metric(LOSS, "min")], each=True)
    assert [row.seeds_and_repeats for row in found.rows][:7] == [
        "0, 1, 2 (+3 repeats)", "0", "1 (repeat)", "1 (repeat)", "1", "1 (repeat)", "2",
    ]  # fmt: skip
    assert notes(found) == []
    (row, *_) = csv.DictReader(io.StringIO(found.csv()))
    assert (row["n"], row["seeds"], row["repeats"]) == ("3", "0, 1, 2", "3")
    assert [run["counts"] for run in json.loads(found.json())["groups"][0]["runs"]].count(True) == 3
    make_run(sweep / "d-other", (5.0, 1.1, 1.7), optim__lr=0.1, seed=1)
    assert main(["compare", str(sweep)]) == 0
    assert (
        "1 run repeats another with the same seed and settings, but with other values: "
        f"d-other ({LOSS} 1.7 at step 20, 1.6 in c-further); of each seed the run that went furthest counts"
    ) in capsys.readouterr().err


def record_of(folder, *attempts, **leaves):
    """A run directory whose run.json has attempts of 20 steps."""
    make_run(folder, **leaves)
    ends = {"exit": "finished", "from_step": 0, "to_step": 20}
    (folder / "run.json").write_text(json.dumps({"attempts": [ends | each for each in attempts]}))


def test_runs_with_other_own_code_are_other_settings(tmp_path, capsys):
    old, new, changed = ({"code": {"mine/loss.py:make": digit * 64}} for digit in "abc")
    idle = changed | {"to_step": 0}
    for seed, attempts in enumerate([[old], [old, idle], [new], [old, new | {"from_step": 10}]]):
        record_of(tmp_path / f"s{seed}", *attempts, seed=seed, loss="mine/loss.py:make")
    found = groups(read_runs([tmp_path]))
    assert [[run.seed for run in group.runs] for group in found] == [[0, 1], [2], [3]]
    assert [group.leaves["code mine/loss.py"] for group in found] == ["a" * 64, "b" * 64, f"{'a' * 64}, {'b' * 64}"]
    record_of(tmp_path / "s4", {}, seed=4, loss="mine/loss.py:make")  # a version that did not say
    assert main(["compare", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "┃ run ┃ code loss.py     ┃ seeds ┃" in said and "a" * 8 not in said
    assert "│ s2  │ bbbbbbb          │ 2     │" in said and "│ s3  │ aaaaaaa, bbbbbbb │ 3     │" in said
    assert main(["compare", str(tmp_path / "s0"), "--leaves=code *"]) == 0
    assert "│ aaaaaaa" in capsys.readouterr().out


def test_commits_of_camelid_separate_no_settings_and_are_told(tmp_path, capsys):
    commits = ["1" * 40, "2" * 40, "2" * 40]
    for seed, commit in enumerate(commits):
        record_of(tmp_path / f"s{seed}", {"commit": commit, "dirty": seed == 2}, seed=seed)
    runs = read_runs([tmp_path])
    assert len(groups(runs)) == 1
    (said,) = notes(Comparison(runs, [Metric(LOSS, "min")]))
    assert said == (
        "the runs were made by 2 commits of camelid: 1111111, 2222222 with changed files; run.json has them"
    )
    (said,) = notes(Comparison(runs[1:], [Metric(LOSS, "min")]))
    assert said.startswith("some of the runs were made by commit 2222222, others by its changed files")
    record_of(tmp_path / "s3", {"versions": {"camelid": "0.1.0"}}, seed=3)
    (said,) = notes(Comparison(read_runs([tmp_path]), [Metric(LOSS, "min")]))
    assert said.startswith("the runs were made by 3 versions of camelid: 1111111,")


def test_the_step_is_that_which_the_run_reached(tmp_path):
    record_of(tmp_path / "a", {"to_step": 25, "exit": "preempted"})
    run = read_run(tmp_path / "a")
    assert (run.step, run.status, next(reversed(run.metrics))) == (25, "interrupted", 20)


def test_the_best_group_comes_first_and_one_without_the_metric_last(sweep):
    make_run(sweep / "none", losses=(), optim__lr=1.0)
    found = Comparison(read_runs([sweep]), [Metric(LOSS, "min")])
    assert [group.leaves["optim.lr"] for group in found.groups] == [0.1, 0.01, 1.0]
    worst_first = Comparison(read_runs([sweep]), [Metric(LOSS, "max")])
    assert [group.leaves["optim.lr"] for group in worst_first.groups][-1] == 1.0


def test_csv_and_json_have_all_digits_and_the_intervals(sweep):
    found = Comparison(read_runs([sweep]), [Metric(LOSS, "min")], each=True)
    rows = list(csv.DictReader(io.StringIO(found.csv())))
    assert [row["run"] for row in rows] == [
        "lr0.1-s*", "lr0.1-s0", "lr0.1-s1", "lr0.1-s2", "lr0.01-s*", "lr0.01-s0", "lr0.01-s1", "lr0.01-s2",
    ]  # fmt: skip
    low, high = stats.t.interval(0.95, 2, loc=1.1, scale=stats.sem([1.0, 1.1, 1.2]))
    first = rows[0]
    assert [float(first[f"{LOSS} best{end}"]) for end in ("", " low", " high")] == pytest.approx([1.1, low, high])
    assert (first["n"], first["seeds"], first["optim.lr"], first[f"{LOSS} best step"]) == ("3", "0, 1, 2", "0.1", "")
    assert (rows[1][f"{LOSS} best step"], rows[1][f"{LOSS} best low"], rows[1][f"{LOSS} last"]) == ("10", "", "1.5")
    content = json.loads(found.json())
    assert content["leaves"] == ["optim.lr"] and content["metrics"] == [{"name": LOSS, "mode": "min"}]
    group = content["groups"][0]
    assert group["leaves"] == {"optim.lr": 0.1} and len(group["runs"]) == 3
    assert group["metrics"][LOSS]["best"] == {
        "value": float(first[f"{LOSS} best"]), "low": float(first[f"{LOSS} best low"]),
        "high": float(first[f"{LOSS} best high"]), "n": 3,
    }  # fmt: skip
    assert group["runs"][1]["metrics"][LOSS] == {
        "best": {"value": 1.1, "step": 10}, "last": {"value": 1.6, "step": 20},
    }  # fmt: skip


def test_json_is_valid_where_a_run_diverged(tmp_path):
    make_run(tmp_path / "a", (1.0, "nan", "inf"))
    content = json.loads(Comparison(read_runs([tmp_path]), [Metric(LOSS, "max")]).json(), parse_constant=pytest.fail)
    assert content["groups"][0]["runs"][0]["metrics"][LOSS]["last"] == {"value": "inf", "step": 20}


def test_names_of_leaves_are_as_short_as_they_can_be_told_apart():
    leaves = ["optim.lr", "critic.optim.lr", "critic.optim.schedule.name", "seed", "code a/loss.py", "code a/c/b.py"]
    leaves += ["code b/c/b.py"]
    assert short_names(leaves) == {
        "optim.lr": "optim.lr", "critic.optim.lr": "critic.optim.lr", "critic.optim.schedule.name": "schedule.name",
        "seed": "seed", "code a/loss.py": "code loss.py", "code a/c/b.py": "code a/c/b.py",
        "code b/c/b.py": "code b/c/b.py",
    }  # fmt: skip


def test_a_figure_has_a_line_for_each_setting_and_a_band_where_there_are_seeds(sweep):
    make_run(sweep / "alone", optim__lr=0.5)
    found = Comparison(read_runs([sweep]), [Metric(LOSS, "min")])
    figure = learning_curves(found.groups, found.metrics)
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert set(lines) == {"optim.lr=0.1", "optim.lr=0.01", "optim.lr=0.5"} and len(axes.collections) == 2
    np.testing.assert_allclose(lines["optim.lr=0.1"].get_data(), [(0, 10, 20), (5.0, 1.1, 1.6)])
    assert len({line.get_color() for line in axes.get_lines()}) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "optim.lr=0.1", "optim.lr=0.5", "optim.lr=0.01",
    ]  # fmt: skip
    svg = draw(found.groups, found.metrics, "svg")
    assert svg == draw(found.groups, found.metrics, "svg") and b"optim.lr=0.1" in svg
    assert draw(found.groups, found.metrics, "png").startswith(b"\x89PNG")


def test_more_settings_than_lines_that_can_be_told_apart_are_grey_and_have_no_name(tmp_path):
    for i in range(MOST_LINES + 3):
        make_run(tmp_path / f"{i:03}", optim__lr=float(i))
    found = groups(read_runs([tmp_path]))
    figure = learning_curves(found, [Metric(LOSS, "min")])
    looks = [(line.get_color(), line.get_linestyle()) for line in figure.axes[0].get_lines()]
    assert len(set(looks)) == MOST_LINES + 1 and len(figure.legends[0].get_texts()) == MOST_LINES
    assert len(set(labels(found))) == len(found)


def test_the_command_prints_and_writes_what_it_found(sweep, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    ends = {"output": "md", "csv": "csv", "json": "json", "figure": "svg"}
    files = {flag: out / f"found.{end}" for flag, end in ends.items()}
    line = ["compare", f"{sweep}/lr*", "--each", "--goodput", *(f"--{flag}={path}" for flag, path in files.items())]
    assert main(line) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("6 runs, 2 settings; mean ± half of the 95% interval over seeds\n")
    assert "│ lr0.1-s*    │ 0.1      │ 0, 1, 2 │ unknown │ 20   │" in printed.out and "1.1 ± 0.25" in printed.out
    assert not printed.err
    assert "| lr0.1-s* | 0.1 | 0, 1, 2 | unknown | 20 |" in files["output"].read_text()
    assert files["figure"].read_text().startswith("<?xml") and json.loads(files["json"].read_text())["groups"]
    assert main(line) == 0, "files of an earlier comparison are written anew"


def test_what_cannot_be_compared_is_said_in_a_line(sweep, capsys):
    make_run(sweep / "other", recipe="dpo", lines='{"step": 3, "other/metric": 1.0}\n')
    assert main(["compare", str(sweep)]) == 0
    said = capsys.readouterr().err
    assert "runs of different recipes (dpo, sft): only the leaves that they share are compared" in said
    assert "the runs have reported no metric in common: name some by --metric=NAME" in said
    assert main(["compare", str(sweep), "--metric=eval/heldout/text/los"]) == 2
    assert "no run has reported it; did you mean eval/heldout/text/loss?" in capsys.readouterr().err
    assert main(["compare", str(sweep), f"--metric={LOSS}", f"--metric={LOSS}:max"]) == 2
    assert "is given twice" in capsys.readouterr().err
    assert main(["compare", str(sweep), "--figure=a.pdf"]) == 2
    assert "--figure=a.pdf: give a name that ends in .svg or .png" in capsys.readouterr().err
    assert main(["compare", str(sweep), "--figure=a.svg"]) == 2
    assert "--figure=a.svg: the runs have reported no metric in common" in capsys.readouterr().err
    make_run(sweep / "new" / "run", losses=())
    assert main(["compare", str(sweep / "new"), "--figure=a.svg"]) == 2
    assert "no run has reported a metric yet" in capsys.readouterr().err
    assert main(["compare", str(sweep / "new")]) == 0
    assert "no run has reported a metric yet" in capsys.readouterr().err


def test_damaged_and_odd_files_of_runs_are_compared_or_told_in_a_line(tmp_path, capsys):
    huge = f'{{"step": 1, "{LOSS}": 1{"0" * 400}}}\n{{"step": 2, "{LOSS}": 2.0}}\n'
    odd = make_run(tmp_path / "runs" / "\x1b[31ma\nb", lines=huge, seed="x", checkpoint__best=7)
    make_run(tmp_path / "runs" / os.fsdecode(b"caf\xe9"), seed=None, optim__lr=0.5)
    make_run(tmp_path / "runs" / "c", seed=0.5, checkpoint__best=[LOSS, "sideways"])
    for name in ("d", "e"):
        make_run(tmp_path / "runs" / name, seed=math.nan, optim__lr=0.7)
    (odd / "run.json").write_text('{"attempts": [{"from_step": 1e400}]}')
    files = [f"--{kind}={tmp_path}/new/{kind}" for kind in ("csv", "json", "output")]
    assert main(["compare", str(tmp_path / "runs"), "--each", *files]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out and r"\x1b[31ma\nb" in said.out and r"caf\udce9" in said.out
    assert "run.json cannot be read, and is left out" in said.err
    assert json.loads((tmp_path / "new" / "json").read_text())["groups"]
    (odd / "config.json").write_text('{"a":' * 100_000)
    assert main(["compare", str(odd)]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_a_metric_whose_name_looks_like_markup_has_its_name(tmp_path, capsys):
    make_run(tmp_path / "a", lines='{"step": 1, "eval/[/x]/loss": 1.0, "eval/[red]y/loss": 2.0}\n')
    assert main(["compare", str(tmp_path)]) == 0
    assert "eval/[/x]/loss" in (said := capsys.readouterr().out) and "eval/[red]y/loss" in said


def test_a_narrow_terminal_has_a_block_for_each_line(sweep, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["compare", str(sweep)]) == 0
    said = capsys.readouterr().out
    assert "\nlr0.1-s*\n  optim.lr: 0.1\n" in said and f"  {LOSS} best (min): 1.1 ± 0.25\n" in said and "┃" not in said


def test_two_outputs_of_one_name_are_refused(sweep, tmp_path, capsys):
    assert main(["compare", str(sweep), f"--csv={tmp_path}/x", f"--json={tmp_path}/./x"]) == 2
    assert "another option names the same file" in capsys.readouterr().err


def test_no_standard_output_is_one_line(sweep, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["compare", str(sweep)]) == 1
    assert "standard output was closed" in capsys.readouterr().err


def test_runs_of_versions_without_config_json_are_read_from_their_checkpoints(pretrained, monkeypatch):
    monkeypatch.setattr(comparison, "CONFIG", "of-another-version.json")
    old = read_run(pretrained)
    monkeypatch.undo()
    new = read_run(pretrained)
    assert old.leaves["optim.lr"] == 0.01 and old.leaves == new.leaves and new.step == 24
    assert new.status == "finished" and 0 < new.goodput < 1


@pytest.mark.parametrize("pattern", ["", "*"])
@pytest.mark.parametrize(
    ("module", "name", "rest"), [(run_folders, "is_run", "its runs are"), (comparison, "read_record", "it is")]
)
def test_a_folder_that_cannot_be_read_is_told_and_the_others_are_compared(
    sweep, monkeypatch, capsys, pattern, module, name, rest
):
    usual, private = getattr(module, name), sweep / "lr0.1-s0"

    def refuse(folder):
        if folder.name == private.name:
            raise PermissionError(13, "Permission denied", str(folder))
        return usual(folder)

    monkeypatch.setattr(module, name, refuse)
    assert len(read_runs([sweep / pattern])) == 5
    assert capsys.readouterr().err == f"camelid: {private} cannot be read (Permission denied): {rest} left out\n"
    with pytest.raises(PermissionError):
        read_runs([private])
