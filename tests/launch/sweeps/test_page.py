"""The report of a sweep: what stands in it, and that it holds for every space and every state of the trials."""

import dataclasses
import html
import json
import re
import warnings
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from camelid.launch.cli import main
from camelid.launch.sweeps import page, page_figures, start
from camelid.launch.sweeps.identity import Identity, Objective, Pruning, Sweep
from camelid.launch.sweeps.results import Results, TrialResult
from camelid.launch.sweeps.space import read_space
from camelid.tests.launch.sweeps.worker_processes import work

METRIC = "eval/a/loss"
VOID = {"meta", "link", "br", "wbr"}


class Made(Results):
    """Results without a study."""

    def __init__(self, sweep, trials):
        self.sweep, self.trials = sweep, trials


class Checked(HTMLParser):
    """The text of a page by element; raises where elements are not closed in their order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.scripts, self.addresses, self.cells = [], 0, [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.scripts += tag in ("script", "iframe", "object") or any(name.startswith("on") for name in found)
        self.addresses += [found[name] for name in ("href", "src", "xlink:href") if name in found]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and {"td", "th"} & set(self.open):
            self.cells[-1] += data


@pytest.fixture
def made(tmp_path):
    """made(lines, trials, ...): the results of a sweep. A trial is (point, state, values at steps 5, 10, ...), and its
    value the last one."""

    def results(lines, trials, *, name="a sweep", mode="min", metric=METRIC, wanted=None, reasons=()):
        identity = Identity(read_space(lines), Objective(metric, mode), "random", 0, Pruning(), {})
        folder = tmp_path / name
        count = wanted or len(trials)
        sweep = Sweep(folder, identity, "c.py:a=<1>", (), ("",), "journal", "s", count, ())
        found = []
        for number, (point, state, values) in enumerate(trials):
            run = sweep.run_folder(number)
            run.mkdir(parents=True)
            records = [json.dumps({"step": 5 * i, metric: value}) + "\n" for i, value in enumerate(values, 1)]
            (run / "metrics.jsonl").write_text("".join(records))
            value = values[-1] if state in ("finished", "pruned") else None
            reason = dict(reasons).get(number)
            found.append(TrialResult(number, state, point, value, reason, run, 61.0, 0))
        folder.mkdir(exist_ok=True)
        return Made(sweep, found)

    return results


def rows(checked):
    """The texts of the cells of the page, without empty ones."""
    return [" ".join(cell.split()) for cell in checked.cells if cell.strip()]


def test_the_leaderboard_has_means_and_intervals_over_seeds_the_best_point_first(made):
    lines = ["lr=log(1e-4,1e-2)", "seed={0,1}"]
    values = {1e-3: (2.0, 2.2), 1e-2: (1.0, 1.1), 1e-4: (3.0, None)}
    trials = [
        ({"lr": lr, "seed": seed}, "finished" if pair[seed] else "failed", [9.0, pair[seed] or 5.0])
        for lr, pair in values.items()
        for seed in (0, 1)
    ]
    results = made(lines, trials, reasons=[(5, "step 4: <b>it diverged</b>")])
    text = page.write_page(results).read_text()
    checked = Checked(text)
    low, high = 1.05 - 12.7062 * 0.05, 1.05 + 12.7062 * 0.05  # Student's t with one degree of freedom
    found = rows(checked)
    first = found.index("1")
    assert found[first : first + 5] == ["1", "0.01", "1.05", f"{low:.4g} to {high:.4g}", "2, 3"]
    assert found[first + 5 : first + 10 : 2] == ["2", "2.1", "0, 1"]
    assert "4, 5 failed" in found and "step 4: <b>it diverged</b>" in found
    assert "trials/0002/" in checked.addresses and "Best single trial" in text
    assert all(not each.startswith(("http:", "//")) for each in checked.addresses) and not checked.scripts
    assert not [each for each in checked.addresses if each.startswith("https:") and "arxiv.org" not in each]


def many(count):
    space = ["lr=log(1e-5,1e-1)", "layers=int(2,8)", "kind={adamw,muon,None}", "wd=uniform(0,0.1)"]
    trials = [
        (
            {
                "lr": 10 ** -(1 + 4 * (i * 7 % 97) / 97),
                "layers": 2 + i % 7,
                "kind": ("adamw", "muon", None)[i % 3],
                "wd": 0.001 * (i % 100),
            },
            ("finished", "finished", "pruned", "failed")[i % 4],
            [5.0, 2.0 + 0.1 * (i * 7 % 97)],
        )
        for i in range(count)
    ]
    return space, trials


@pytest.mark.parametrize(
    ("lines", "trials"),
    [
        (["lr=log(1e-4,1e-2)"], []),
        (["lr=log(1e-4,1e-2)"], [({"lr": 1e-3}, "running", [])]),
        (["lr=log(1e-4,1e-2)"], [({"lr": 1e-3}, "finished", [2.0])]),
        (["lr=log(1e-4,1e-2)", "seed={0,1}"], [({"lr": 1e-3, "seed": s}, "failed", []) for s in (0, 1)]),
        (["lr={0.1}", "b={True,False}"], [({"lr": 0.1, "b": b}, "finished", [1.0, 1.0]) for b in (True, False)]),
        (["seed={0,1,2}"], [({"seed": s}, "finished", [1.0 + s]) for s in range(3)]),
        (["n=int(3,4)", "x=uniform(0,1)"], [({"n": 3, "x": 1.0}, "finished", [1e30])]),
        (["lr=log(1e-4,1e-2)"], [({"lr": 1e-3}, "pruned", [2.0, float("inf")]), ({"lr": 2e-3}, "waiting", [3.0])]),
        (["x=uniform(0,1)"], [({"x": 0.1}, "finished", [1.0]), ({"x": 0.2}, "finished", [1e12])]),
        many(40),
    ],
)
def test_a_page_is_whole_in_every_state_of_every_space(lines, trials, made):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = page.render(made(lines, trials, wanted=len(trials) + 1))
    checked = Checked(text)
    assert "so far" in text and not checked.scripts
    finished = any(state == "finished" for _, state, _ in trials)
    searched = sum(not line.startswith("seed") for line in lines)
    assert ('class="wide parallel"' in text) == (finished and searched > 1)
    for state in ("finished", "failed", "pruned", "running", "waiting"):
        number = sum(s == state for _, s, _ in trials)
        assert (f"{number} {state}</li>" in text) == (number > 0)


def test_five_hundred_trials_are_folded_and_thinned_out(made):
    text = page.render(made(*many(500)))
    assert len(text) < 2_000_000 and f"{500 - page.FIRST_ROWS} more points" in text
    assert page_figures.thinned([(i, 0.0) for i in range(1001)])[-1] == (1000, 0.0)
    assert len(page_figures.thinned([(i, 0.0) for i in range(1001)])) <= page_figures.MOST_POINTS + 1


def test_names_and_values_are_text_and_never_markup(made):
    evil = "<script>alert(1)</script>"
    lines = ["phases.文档.lr=log(1e-4,1e-2)", f":template={{'{evil}','$x_1^2$','{'长' * 80}'}}"]
    trials = [
        ({"phases.文档.lr": 1e-3, ":template": value}, "finished", [0.5 + i / 10])
        for i, value in enumerate((evil, "$x_1^2$", "长" * 80))
    ]
    results = made(lines, trials, name="学习率 & <i>", mode="max", metric='eval/问题"><b>/x')
    text = page.render(results)
    checked = Checked(text)
    assert not checked.scripts and html.escape(evil) in text
    assert "<h1>学习率 &amp; &lt;i&gt;</h1>" in text
    found = rows(checked)
    assert found[found.index("1") + 2] == page_figures.cut("长" * 80, 40) and "$x_1^2$" in found


def pictures(text):
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg xmlns=.*?</svg>", text, re.DOTALL)]


def test_the_pictures_have_a_line_for_each_point_and_each_trial_with_what_it_is(made):
    results = made(*many(40))
    parallel, curves = pictures(page.render(results))
    name = "{http://www.w3.org/2000/svg}title"
    said = [title.text for title in parallel.iter(name)]
    assert len(said) == 20 and said.count(f"lr={results.best.point['lr']:.4g} " + said[-1].partition(" ")[2]) == 1
    said = [title.text for title in curves.iter(name)]
    assert len(said) == 40 and sum(", pruned: " in each for each in said) == 10
    text = ElementTree.tostring(parallel, encoding="unicode")
    assert all(label in text for label in ("lr", "layers", "kind", "wd", "1e-05", "0.001", "muon", "None"))
    assert page_figures.INK not in text and "currentColor" in text


def test_the_curves_of_few_points_have_the_colour_of_their_point_and_the_caption_names_it(made):
    def drawn(points):
        trials = [({"lr": 0.1 * (1 + p), "seed": s}, "finished", [2.0, 1.0 + p]) for p in range(points) for s in (0, 1)]
        return page.render(made(["lr=uniform(0.1,0.9)", "seed={0,1}"], trials, name=f"of {points}"))

    few, colors = drawn(3), page_figures.POINTS
    assert [few.count(f"stroke: {color}") for color in colors[:4]] == [2, 2, 2, 0]
    assert all(f'style="color: {colors[p]}"></span>lr=0.{1 + p}' in few for p in range(3))
    assert "finished <span" not in few and "finished <span" in drawn(len(colors) + 1)


def test_what_is_printed_names_the_step_of_running_trials_and_the_best_point_over_seeds(made, capsys):
    states = [
        (0.1, 0, "finished", [1.0]),
        (0.1, 1, "finished", [3.0]),
        (0.2, 0, "finished", [1.5]),
        (0.2, 1, "running", []),
    ]
    results = made(["lr={0.1,0.2}", "seed={0,1}"], [({"lr": r, "seed": s}, state, v) for r, s, state, v in states])
    results.trials[3] = dataclasses.replace(results.trials[3], step=40, reason="process 7 on here")
    start.print_results(results)
    said = capsys.readouterr().out
    assert "trial 3 runs at step 40, in process 7 on here" in said
    assert f"best point: lr=0.2, with a mean {METRIC} 1.5 over 1 seed\nbest trial: 0 with lr=0.1 seed=0" in said


def test_axes_are_logarithmic_where_the_space_is_and_in_order_for_choices():
    space = read_space(["lr=log(1e-4,1e-2)", "n=int(2,8)", "kind={a,b,c}", "x=uniform(0,10)"]).settings
    assert page._position(space["lr"], 1e-3) == pytest.approx(0.5)
    assert page._position(space["n"], 5) == 0.5 and page._position(space["kind"], "c") == 1.0
    assert page._position(space["x"], 20) == 1.0
    assert list(page._ticks(space["lr"]).values()) == ["0.0001", "0.001", "0.01"]
    assert list(page._ticks(space["lr"])) == pytest.approx([0.0, 0.5, 1.0])
    assert page._ticks(space["n"]) == {0.0: "2", 0.5: "5", 1.0: "8"}


def test_the_importance_finds_the_setting_that_decides_and_says_why_there_is_none(made):
    trials = [
        ({"lr": 10 ** -(2 + i % 8 / 4), "x": (i * 5 % 24) / 24}, "finished", [1.0 + abs(i % 8 - 3)]) for i in range(24)
    ]
    found = page.importance(made(["lr=log(1e-4,1e-2)", "x=uniform(0,1)"], trials))
    assert list(found.shares) == ["lr", "x"] and found.shares["lr"] > 0.8 and found.points == 24
    assert sum(found.shares.values()) == pytest.approx(1.0)
    few = page.importance(made(["lr=log(1e-4,1e-2)", "x=uniform(0,1)"], trials[:4], name="few"))
    assert not few.shares and few.why_not == "it needs 5 finished points, and there are 4"
    one = page.importance(made(["lr=log(1e-4,1e-2)"], [({"lr": 1e-3}, "finished", [1.0])] * 6, name="one"))
    assert one.why_not == "the space has one setting only"


def test_outliers_do_not_press_the_others_together():
    assert page._without_outliers([1.0, 1.1, 1.2, 1.3, 1e9]) == (1.0, 1.3)
    assert page._without_outliers([2.0]) == (2.0, 2.0)
    curves = [page_figures.Curve([(i, 1.0 + 100 * 0.1**i) for i in range(40)], "finished", "")]
    low, high = page_figures._limits(curves)
    assert low < 1.0 < high < 1.1


def test_a_running_sweep_writes_its_page_seldom_enough_and_a_full_disk_ends_no_sweep(made, monkeypatch, capsys):
    results, clock, written = made(*many(8)), [0.0], []
    monkeypatch.setattr(page.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(page, "Results", lambda sweep, study: results)

    def slow(results):
        written.append(clock[0])
        clock[0] += 2.0
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "write_page", slow)
    live = page.LivePage(results.sweep, None)
    for _ in range(100):
        clock[0] += 1.0
        live.update()
    assert written == [10.0, 52.0, 94.0]  # 2 seconds are a twentieth of 40
    assert "cannot be written" in capsys.readouterr().err


def test_a_sweep_has_its_page_at_its_end_and_the_command_writes_it_again(tmp_path, capsys):
    work({"folder": tmp_path, "lines": ["lr={0.1,0.2}"], "method": "grid", "trials": 2, "options": {"workers": 2}})
    assert f"report: {tmp_path / page.FILE}" in capsys.readouterr().out
    first = (tmp_path / page.FILE).read_text()
    assert "2 finished</li>" in first and 'class="wide curves"' in first
    (tmp_path / page.FILE).unlink()
    assert main(["sweep", "--page", f"--workdir={tmp_path}"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / page.FILE}\n"
    again = (tmp_path / page.FILE).read_text()
    assert re.sub(r"Written .*? UTC", "", again) == re.sub(r"Written .*? UTC", "", first)
    assert main(["sweep", "--page", "--workers=2", f"--workdir={tmp_path}"]) == 2
    assert "--workers does nothing with --page" in capsys.readouterr().err
