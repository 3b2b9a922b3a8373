"""The quickstart with a handful of steps: every stage runs, and what it writes is there and agrees."""

import json
from itertools import islice
from pathlib import Path

import pytest
from rich.console import Console

from camelid.data import primer
from camelid.launch import quickstart
from camelid.launch.cli import main
from camelid.rlhf.collect import write
from camelid.train.settings import load_config

SHORT = ["--pretrain_steps=3", "--sft_steps=2", "--reward_steps=2", "--ppo_steps=2"]
SMALL = {  # what a stage is given beside its own config, for a suite of seconds
    "pretrain": ["--config.eval_batches=2"],
    "sft": ["--config.eval_batches=2"],
    "reward": ["--config.normalise.prompts=8", "--config.eval_batches=2", "--config.data.batch_size=8"],
    "ppo": ["--config.data.batch_size=32", "--config.data.heldout_prompts=8", "--config.evals.gold.per_skill=1"],
}


def load_small(path, overrides):
    return load_config(path, [*overrides, *SMALL.get(Path(path.partition(":")[0]).parent.name, [])])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "PER_SKILL", 2)
        patch.setattr(quickstart, "load_config", load_small)
        # Pairs, which a model of two steps would not have of its own; `tests/rlhf/test_collect.py` makes some.
        write(islice(primer.records("pairs"), 300), workdir / "pairs.jsonl")
        assert main(["quickstart", f"--workdir={workdir}", *SHORT]) == 0
        yield workdir


def test_results_hold_scores_of_every_stage_by_skill_and_language(workdir):
    results = json.loads((workdir / "results.json").read_text())
    assert set(results) == {"gold", "seconds"}
    assert list(results["gold"]) == ["pretrained", "sft", "ppo"]
    for stage in results["gold"]:
        scores = results["gold"][stage]
        assert set(scores) == {"all", "en", "zh", "greedy", "skills"}
        assert set(scores["skills"]) == set(primer.SKILLS)
        assert scores["all"] == pytest.approx((scores["en"] + scores["zh"]) / 2)
    assert results["seconds"] > 0


def test_the_report_has_scores_curves_and_every_skills_answers(workdir):
    page = (workdir / "report.html").read_text()
    assert page.count("<svg") == 5  # two loss curves, the reward model's, PPO's, the bars
    for skill in primer.SKILLS:
        assert f"<td>{skill}</td>" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")


def test_running_it_again_repeats_no_stage(workdir, capsys):
    files = [workdir / stage / "metrics.jsonl" for stage in ("pretrain", "sft", "reward", "ppo")]
    before = [file.read_text() for file in files]
    assert main(["quickstart", f"--workdir={workdir}", *SHORT]) == 0
    assert [file.read_text() for file in files] == before
    assert f"camelid chat {workdir / 'ppo'}" in capsys.readouterr().out.replace("\n", "")


def test_the_table_has_a_row_for_each_group_and_a_column_for_each_stage():
    scores = {"all": 0.1, "en": 0.2, "zh": 0.3, "greedy": 0.5, "skills": {"count": 0.4}}
    console = Console(width=80, record=True)
    console.print(quickstart.gold_table({"pretrained": scores, "sft": scores | {"all": 0.9}}))
    text = console.export_text()
    assert "0.90" in text
    assert [word for word in ("all", "en", "zh", "greedy", "count") if word in text] == [
        "all",
        "en",
        "zh",
        "greedy",
        "count",
    ]
