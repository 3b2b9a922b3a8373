"""The quickstart with a handful of steps: every stage runs, and what it writes is there and agrees."""

import json
from itertools import islice
from pathlib import Path

import pytest
from rich.console import Console

from camelid.launch import quickstart
from camelid.launch.cli import main
from camelid.rlhf.collect import write
from camelid.settings.config_files import load_config
from camelid.tasks import primer

SHORT = ["--pretrain_steps=3", "--sft_steps=2", "--reward_steps=2", "--ppo_steps=2"]
SMALL = {  # what a stage is given beside its own config, for a suite of seconds
    "pretrain": ["--config.eval_batches=2", "--config.model.preset=nano-test"],
    "sft": ["--config.eval_batches=2"],
    "reward": ["--config.calibrate.prompts=8", "--config.eval_batches=2", "--config.data.batch_size=8"],
    "ppo": ["--config.data.batch_size=32", "--config.data.heldout_prompts=8", "--config.evals.primer.per_group=1"],
}
# Of the primer, instead of all. The pairs stand for the tuned model's too: one of two steps would have none.
RECORDS = {"documents": 1000, "careless": 1000, "pairs": 600, "chat": 600}


@pytest.fixture(scope="module")
def quickstart_run(tmp_path_factory, one_device):
    workdir = tmp_path_factory.mktemp("quickstart")
    sources = {f"primer:{kind}": workdir / f"{kind}.jsonl" for kind in RECORDS}
    for kind, count in RECORDS.items():
        write(islice(primer.records(kind), count), sources[f"primer:{kind}"])

    def load_small(path, overrides):
        config = load_config(path, [*overrides, *SMALL[Path(path.partition(":")[0]).parent.name]])
        for part in config.data.mixture.values():
            part.source = str(sources.get(part.source, part.source))
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "PER_SKILL", 2)
        patch.setattr(quickstart, "TOKENIZER_RECORDS", 2000)
        patch.setattr(quickstart, "load_config", load_small)
        assert main(["quickstart", f"--workdir={workdir}", *SHORT]) == 0
        yield workdir


def test_results_hold_scores_of_every_stage_by_skill_and_language(quickstart_run):
    results = json.loads((quickstart_run / "results.json").read_text())
    assert set(results) == {"primer", "seconds"}
    assert list(results["primer"]) == ["pretrained", "sft", "ppo"]
    for stage in results["primer"]:
        scores = results["primer"][stage]
        assert set(scores) == {"all", "en", "zh", "greedy", "skills"}
        assert set(scores["skills"]) == set(primer.SKILLS)
        assert scores["all"] == pytest.approx((scores["en"] + scores["zh"]) / 2)
    assert results["seconds"] > 0


def test_the_report_has_scores_curves_and_every_skills_answers(quickstart_run):
    page = (quickstart_run / "report.html").read_text()
    assert page.count("<svg") == 5  # two loss curves, the reward model's, PPO's, the bars
    for skill in primer.SKILLS:
        assert f"<td>{skill}</td>" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")


def test_running_it_again_repeats_no_stage(quickstart_run, capsys):
    files = [quickstart_run / stage / "metrics.jsonl" for stage in ("pretrain", "sft", "reward", "ppo")]
    before = [file.read_text() for file in files]
    assert main(["quickstart", f"--workdir={quickstart_run}", *SHORT]) == 0
    assert [file.read_text() for file in files] == before
    assert f"camelid chat {quickstart_run / 'ppo'}" in capsys.readouterr().out.replace("\n", "")


def test_the_command_scores_its_models_in_any_task(quickstart_run, capsys):
    tasks = {"primer": "primer/sort/zh", "walks": "walks/all", "safe_sums": "safe_sums/cost/all"}
    for task, metric in tasks.items():
        assert main(["eval", str(quickstart_run / "ppo"), f"--tasks={task}", "--per_group=1"]) == 0
        assert metric in capsys.readouterr().out


def test_the_table_has_a_row_for_each_group_and_a_column_for_each_stage():
    scores = {"all": 0.1, "en": 0.2, "zh": 0.3, "greedy": 0.5, "skills": {"count": 0.4}}
    console = Console(width=80, record=True)
    console.print(quickstart.score_table({"pretrained": scores, "sft": scores | {"all": 0.9}}))
    text = console.export_text()
    assert "0.90" in text
    assert [word for word in ("all", "en", "zh", "greedy", "count") if word in text] == [
        "all",
        "en",
        "zh",
        "greedy",
        "count",
    ]
