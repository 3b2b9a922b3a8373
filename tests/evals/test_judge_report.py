"""Reports on judgments, and the command that makes them."""

import dataclasses
import hashlib
import itertools
import json
import re
import sys

import pytest

from camelid.errors import UserError
from camelid.evals import ratings
from camelid.evals.judge_plot import draw
from camelid.evals.judge_report import make_report, read_files
from camelid.evals.judgment_files import read_judgments
from camelid.evals.judgments import Judgment
from camelid.evals.win_rates import comparisons, mean_score, win_rate
from camelid.launch.commands.arguments import Parser
from camelid.launch.commands.judge_report import add_judge_report
from camelid.tests.evals.simulated_judges import QUALITY, First, Judge, Longer, Vain, pairs, singles


def write(path, judgments):
    path.write_text("".join(json.dumps(dataclasses.asdict(each), ensure_ascii=False) + "\n" for each in judgments))
    return str(path)


def run(*argv):
    parser = Parser(prog="camelid")
    add_judge_report(parser.add_subparsers(parser_class=Parser))
    args = parser.parse_args(["report", *argv])
    return args.run(args)


@pytest.fixture(scope="module")
def report():
    return make_report(pairs(Judge()) + pairs(First()) + singles())


def test_the_verdict_on_each_judge_comes_first(report):
    text = report.markdown()
    assert [line.split(":")[0] for line in report.headlines] == ["first", "grader", "honest"]
    start = text.index("# Judge report")
    assert all(start < text.index(line) < text.index("## Trust in first") for line in report.headlines)
    assert text.index("## Trust in honest") < text.index("## Win rates by first")
    assert "by weights" not in text  # no judge gave probabilities: the column would be empty


def test_tables_have_the_rates_scores_and_differences_of_their_functions(report):
    found = comparisons(pairs(Judge()))
    table = report.table("Win rates by honest against all others")
    assert {row[0]: row[2] for row in table.rows} == {model: win_rate(found, model) for model in QUALITY}
    assert [row[0] for row in table.rows] == ["vicuna", "llama", "alpaca"]
    scores = report.table("Mean scores by grader")
    assert {row[0]: row[2] for row in scores.rows} == {model: mean_score(singles(), model) for model in QUALITY}
    (row,) = [row for row in report.table("Differences in score by grader").rows if row[:2] == ["alpaca", "vicuna"]]
    assert row[4] == "lower" and row[3].high < 0
    part = [each for each in singles() if each.category == "math"]
    by_category = report.table("Mean scores by grader and category").records()
    assert {row["model"]: row["math"] for row in by_category} == {model: mean_score(part, model) for model in QUALITY}


def test_ratings_are_bradley_terry_ratings_of_models_alone(report):
    table = report.table("Ratings by honest")
    assert {row[0] for row in table.rows} == set(QUALITY)
    outcome = {1.0: "a", 0.5: "tie", 0.0: "b"}
    battles = [
        (*each.models, outcome[each.outcome])
        for each in comparisons(pairs(Judge()))
        if set(each.models) <= set(QUALITY)
    ]
    assert {row[0]: row[2].value for row in table.rows} == ratings.bradley_terry(battles)
    assert all(row[2].low < row[2].value < row[2].high for row in table.rows)
    assert "All models can be told apart." in table.notes
    assert "Groups that cannot be told apart: alpaca, llama, vicuna." in report.table("Ratings by first").notes


def test_models_that_cannot_be_rated_are_said():
    apart = [Judgment("1", (a, b), "j", winner="tie") for a, b in (("a", "b"), ("b", "a"), ("c", "d"), ("d", "c"))]
    assert make_report(apart).table("Ratings by j").notes[0].startswith("There are no ratings")
    wins = [Judgment(str(i), each, "j", winner="a") for i in range(3) for each in (("a", "b"), ("b", "c"), ("a", "c"))]
    table = make_report(wins).table("Ratings by j")
    assert table.notes[0].startswith("Some models won or lost every battle")
    assert [row[0] for row in table.rows] == [
        "a",
        "b",
        "c",
    ]


def test_a_baseline_gives_length_controlled_rates_and_the_overall_ones_beside():
    found = make_report(pairs(Judge(), 60), baseline="alpaca")
    rows = {row[0]: row for row in found.table("Win rates by honest against alpaca").rows}
    assert set(rows) == {"llama", "vicuna"}
    plain, controlled = rows["vicuna"][2], rows["vicuna"][4]  # lengths are chance here: control changes little
    assert controlled.value == pytest.approx(plain.value, abs=0.05) and controlled.low < plain.value < controlled.high
    assert found.table("Win rates by honest against all others").rows
    with pytest.raises(UserError, match=r"no judgment has the baseline lama; did you mean llama\?"):
        make_report(pairs(Judge(), 3), baseline="lama")


def test_judges_are_compared_with_each_other():
    found = make_report(pairs(Judge(), 60) + pairs(Vain(), 60))
    (row,) = found.table("Agreement between judges").rows
    assert row[:3] == ["honest", "llama", 180] and 0.4 < row[3].value < 1 and 0 < row[5] < 1


def test_the_judgments_are_counted():
    table = make_report(pairs(Judge(), 10)).table("Judgments")
    (row,) = table.records()
    assert (row["judgments"], row["of pairs"], row["of controls"], row["questions"]) == (140, 60, 80, 10)
    assert row["pairs in both orders"] == 70 and row["missing"] == 0
    with pytest.raises(UserError, match="no judgments"):
        make_report([])


def test_json_has_every_number_and_no_nan(report):
    content = json.loads(report.json(), parse_constant=pytest.fail)
    position = next(each for each in content["findings"]["first"] if each["subject"] == "fairness to both positions")
    assert position["estimate"]["value"] == 1.0 and position["result"] == "fail"
    row = content["tables"]["Win rates by honest against all others"]["rows"][0]
    assert row["model"] == "vicuna" and row["by count"]["low"] < row["by count"]["value"] and row["by weights"] is None


def test_the_report_is_the_same_each_time(report):
    again = make_report(pairs(Judge()) + pairs(First()) + singles())
    assert again.json() == report.json() and again.markdown() == report.markdown()


def test_the_command_writes_markdown_json_and_a_plot(tmp_path, capsys):
    judged = write(tmp_path / "judgments.jsonl", pairs(Judge(), 20))
    names = {kind: str(tmp_path / f"report.{kind}") for kind in ("md", "json", "svg")}
    run(
        judged,
        f"--output={names['md']}",
        f"--json={names['json']}",
        f"--plot={names['svg']}",
    )
    text = (tmp_path / "report.md").read_text()
    digest = hashlib.sha256((tmp_path / "judgments.jsonl").read_bytes()).hexdigest()
    assert f"| {judged} | 280 | {digest} |" in text
    assert capsys.readouterr().out.startswith("honest: It can be trusted for")
    assert json.loads((tmp_path / "report.json").read_text())["verdicts"][0] in text
    assert (tmp_path / "report.svg").read_text().startswith("<?xml")
    run(judged)
    assert "Trust in honest" in capsys.readouterr().out


def test_gold_votes_are_compared_and_named(tmp_path, capsys):
    judged, gold = write(tmp_path / "j.jsonl", pairs(Judge(), 30)), pairs(Judge(9), 30, controls=False)
    votes = write(tmp_path / "gold.jsonl", [dataclasses.replace(each, judge="people") for each in gold])
    run(judged, f"--gold={votes}", f"--output={tmp_path / 'out.md'}")
    text = (tmp_path / "out.md").read_text()
    assert "agreement with the gold verdicts | pass" in text and votes in text
    assert "Win rates by people" not in text


def test_judgments_are_read_as_they_were_written(tmp_path):
    judged = [*pairs(Judge(), 2), *singles(questions=2, mumbles=0.5)]
    found, (source,) = read_files([write(tmp_path / "j.jsonl", judged)])
    assert found == judged and source.judgments == len(judged)
    copy = write(tmp_path / "copy.jsonl", judged)
    with pytest.raises(UserError, match=r"same file as .*j\.jsonl"):
        read_files([str(tmp_path / "j.jsonl"), copy])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": "8"}, "scores is '8'"),
        ({"winner": "c"}, "winner is 'c'"),
        ({"models": ["a", "b", "c"]}, "one model, or of two different ones"),
        ({"models": ["", "a"]}, "one model, or of two different ones"),
        ({"models": ["a", "a"]}, "one model, or of two different ones"),
        ({"models": ["a", "\ud800"]}, "half of a surrogate pair"),
        ({"models": ["a"]}, "a single answer has no winner"),
        ({"models": ["a"], "winner": None, "weight": 0.5}, "a single answer has no winner and no weight"),
        ({"scores": [1.0, 9.0]}, "winner is a and scores are (1.0, 9.0): they contradict each other"),
        ({"scores": [1.0]}, "1 scores for 2 models"),
        ({"scores": [float("nan"), 1.0]}, "scores are (nan, 1.0): give numbers"),
        ({"scores": [float("inf"), 1.0]}, "scores are (inf, 1.0): give numbers"),
        ({"scores": [10**400, 1.0]}, "give numbers from"),
        ({"turn": -1}, "turn is -1: turns count from 1"),
        ({"lengths": [-5, 6]}, "lengths are (-5, 6): give 0 or more"),
        ({"lengths": [1]}, "1 lengths for 2 models"),
        ({"weight": 1.5}, "from 0 to 1"),
        ({"wieght": 0.5}, "no field wieght; did you mean weight"),
        ({"question": None}, "question is None: give str"),
    ],
)
def test_a_bad_line_is_named(tmp_path, change, message):
    good = dataclasses.asdict(Judgment("1", ("a", "b"), "j", winner="a"))
    path = tmp_path / "j.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | change) + "\n")
    with pytest.raises(UserError, match=rf"j\.jsonl:2: .*{re.escape(message)}"):
        list(read_judgments(path))


def test_a_pair_with_scores_and_no_winner_is_won_by_the_higher_score(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text('{"question": "1", "models": ["a", "b"], "judge": "j", "scores": [9, 1]}\n')
    assert [each.winner for each in read_judgments(path)] == ["a"]
    assert Judgment("1", ("a", "b"), "j", (2.0, 2.0)).winner == "tie"
    assert Judgment("1", ("a", "b"), "j", (2.00001, 2.0), "tie").winner == "tie"  # equal but for rounding
    with pytest.raises(UserError, match="contradict each other"):
        Judgment("1", ("a", "b"), "j", (9.0, 1.0), "tie")


def test_one_question_has_no_intervals_and_tells_no_models_apart():
    wins = {("a", "b"): 3, ("b", "c"): 3, ("a", "c"): 4}
    judged = [
        Judgment("1", models, "j", winner="a" if turn <= most else "b", turn=turn)
        for models, most in wins.items()
        for turn in range(1, 6)
    ]
    text = make_report(judged).markdown()
    assert (
        "One question, or several that agree exactly, have no intervals and tell no models apart." in text
        and "nan" not in text
    )
    assert "All models can be told apart" not in text and "| a | 10 | 1100 | 1 to 3 | b, c |" in text


def test_an_output_takes_the_place_of_no_file(tmp_path):
    judged = write(tmp_path / "j.jsonl", pairs(Judge(), 3))
    before = (tmp_path / "j.jsonl").read_bytes()
    for argv, message in {
        (f"--output={judged}",): "j.jsonl exists: give another name",
        (f"--json={tmp_path}/../{tmp_path.name}/j.jsonl",): "j.jsonl exists",
        (f"--output={tmp_path}/x", f"--json={tmp_path}/../{tmp_path.name}/x"): "is the file of --output too",
    }.items():
        with pytest.raises(UserError, match=message):
            run(judged, *argv)
    assert (tmp_path / "j.jsonl").read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["j.jsonl"]


def test_a_report_with_nothing_to_draw_is_written_and_the_lack_is_said(tmp_path):
    judged = write(tmp_path / "j.jsonl", [Judgment(str(i), ("a", "b"), "j") for i in range(5)])
    names = {flag: tmp_path / f"x.{flag}" for flag in ("output", "json", "svg")}
    with pytest.raises(UserError, match="no win rates or scores to draw"):
        run(judged, f"--output={names['output']}", f"--json={names['json']}", f"--plot={names['svg']}")
    assert names["output"].exists() and names["json"].exists() and not names["svg"].exists()


def test_names_with_markup_are_shown_as_they_are(tmp_path, capsys):
    names = ["[blue]", "a|b\nc", "*<b>*"]
    judged = [
        Judgment(str(i), (a, b), "[x]\x1b[2J", winner="ab"[i % 2], category=f"[/i]|{i % 2}")
        for i in range(8)
        for a, b in itertools.combinations(names, 2)
    ]
    run(write(tmp_path / "[x].jsonl", judged))
    shown = capsys.readouterr().out
    assert "[blue]" in shown and "[x] [2J" in shown and "[/i]|0" in shown and "\x1b" not in shown
    text = make_report(judged).markdown()
    rows = [line for line in text.split("\n") if line.startswith("|")]
    assert any(line.startswith(r"| \[blue\] |") for line in rows) and r"a\|b c" in text and r"\*\<b>\*" in text
    for table in "\n".join(line if line.startswith("|") else "" for line in text.split("\n")).split("\n\n"):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().split("\n")}) == 1


def test_wrong_options_are_named_before_anything_is_read(tmp_path):
    for argv, message in {
        (f"--plot={tmp_path / 'x.pdf'}",): "ends in .svg or .png",
        (f"--output={tmp_path}",): "is a folder",
    }.items():
        with pytest.raises(UserError, match=message):
            run(str(tmp_path / "missing.jsonl"), *argv)
    with pytest.raises(UserError, match="no such file"):
        run(str(tmp_path / "missing.jsonl"))


def test_only_failures_cannot_be_drawn_and_are_reported(tmp_path):
    found = make_report([Judgment(str(i), ("a", "b"), "j") for i in range(5)])
    assert "cannot be trusted for verdicts that can be read" in found.headlines[0]
    assert draw(found, "svg") is None


def test_the_command_is_built_without_matplotlib():
    import subprocess

    code = "import sys; from camelid.launch.commands import judge_report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_ratings_at_equal_length_take_the_preference_of_a_judge_for_length_away():
    judged = make_report(pairs(Longer(), longer=1500))
    rows = judged.table("Ratings by longer").records()
    plain, equal = ([row[name].value for row in rows] for name in ("rating", "rating at equal length"))
    assert max(plain) - min(plain) > 400 and max(equal) - min(equal) < 100
    bare = [dataclasses.replace(each, lengths=()) for each in pairs(Longer())]
    table = make_report(bare).table("Ratings by longer")
    assert {row["rating at equal length"] for row in table.records()} == {None}
    assert "Ratings at equal length need the lengths of all answers." in table.notes


def test_scores_of_pairs_are_summed_by_category_whatever_the_order():
    judged = [
        Judgment("1", ("a", "b"), "j", (8.0, 6.0), "a", "math"),
        Judgment("2", ("b", "a"), "j", (9.0, 7.0), "a", "writing"),
        Judgment("3", ("a", "b"), "j", category="math"),
        Judgment("1", ("b", "control:null"), "j", (8.0, 1.0), "a", "math"),
    ]
    table = make_report(judged).table("Sums of scores of a and b")
    assert [row[:3] for row in table.rows] == [["all", 15, 15], ["math", 8, 6], ["writing", 7, 9]]
    assert table.rows[1][3].value == 0.75
    below = [dataclasses.replace(each, scores=(0.0, 2.0), winner=None) for each in judged[:1]]
    assert all(not each.title.startswith("Sums") for each in make_report(below).tables)


def test_many_voters_are_one_judge_and_a_judge_without_a_name_has_one():
    votes = [Judgment(str(i), ("a", "b"), f"user {i % 30}", winner="ab"[i % 2]) for i in range(60)]
    report = make_report(votes)
    assert list(report.findings) == ["30 judges together"]
    assert report.table("Win rates by 30 judges together against b").rows[0][2].value == 0.5
    nameless = make_report([dataclasses.replace(each, judge="") for each in votes])
    assert list(nameless.findings) == ["unnamed judge"]
