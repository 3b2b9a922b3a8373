"""The quickstart with a handful of steps: every stage runs, and what it writes is there and agrees."""

import json

import pytest
from rich.console import Console

from camelid.data import primer
from camelid.launch import quickstart
from camelid.launch.cli import main


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "PER_SKILL", 2)
        assert main(["quickstart", f"--workdir={workdir}", "--pretrain_steps=3", "--sft_steps=2"]) == 0
        yield workdir


def test_results_hold_scores_of_both_stages_by_skill_and_language(workdir):
    results = json.loads((workdir / "results.json").read_text())
    assert set(results) == {"gold", "seconds"}
    for stage in ("pretrained", "sft"):
        scores = results["gold"][stage]
        assert set(scores) == {"all", "en", "zh", "skills"}
        assert set(scores["skills"]) == set(primer.SKILLS)
        assert scores["all"] == pytest.approx((scores["en"] + scores["zh"]) / 2)
    assert results["seconds"] > 0


def test_the_report_has_scores_curves_and_every_skills_answers(workdir):
    page = (workdir / "report.html").read_text()
    assert page.count("<svg") == 3  # two loss curves, the bars
    for skill in primer.SKILLS:
        assert f"<td>{skill}</td>" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")


def test_running_it_again_repeats_no_stage(workdir, capsys):
    before = (workdir / "sft" / "metrics.jsonl").read_text()
    assert main(["quickstart", f"--workdir={workdir}", "--pretrain_steps=3", "--sft_steps=2"]) == 0
    assert (workdir / "sft" / "metrics.jsonl").read_text() == before
    assert f"camelid chat {workdir / 'sft'}" in capsys.readouterr().out.replace("\n", "")


def test_the_table_has_a_row_for_each_group_and_a_column_for_each_stage():
    scores = {"all": 0.1, "en": 0.2, "zh": 0.3, "skills": {"count": 0.4}}
    console = Console(width=80, record=True)
    console.print(quickstart.gold_table({"pretrained": scores, "sft": scores | {"all": 0.9}}))
    text = console.export_text()
    assert "0.90" in text
    assert [word for word in ("all", "en", "zh", "count") if word in text] == ["all", "en", "zh", "count"]
