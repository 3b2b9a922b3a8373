"""`camelid eval` and `camelid results` from the command line, and their files."""

import json

import pytest

from camelid.evals import results
from camelid.launch.cli import main

OWN = """
from camelid.evals.items import Item


def length(model, *, most: int = 3):
    return [Item(str(i), {"length": float(i)}, shown={"n": i}, sample=True) for i in range(most)]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own.jsonl"
    lines = [{"question": f"What sees {n}?", "choices": ["red fox", "blue owl"], "answer": n % 2} for n in range(12)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def test_results_say_what_was_asked_and_found_and_compare(pretrained, tuned, file, tmp_path, capsys):
    first, second, report, plot = (str(tmp_path / name) for name in ("a.json", "b.json", "report.md", "plot.svg"))
    assert main(["eval", str(pretrained), f"--choices={file}", f"--output={first}"]) == 0
    assert "own/acc_norm" in capsys.readouterr().out
    more = [f"--against={first}", f"--output={second}", f"--report={report}", f"--plot={plot}"]
    assert main(["eval", str(tuned), f"--choices={file}", "--batch_size=2", *more]) == 0
    content = results.read(second).content
    assert content["model"]["identity"][0] == str(tuned) and content["model"]["stop_tokens"]
    assert "im_start" in content["model"]["template"]["source"] and content["versions"]["jax"]
    assert content["command"][:2] == ["camelid", "eval"] and list(content["evaluations"]["own"]["files"]) == [file]
    found = content["evaluations"]["own"]
    items = found["items"]
    assert found["metrics"]["acc"]["value"] == pytest.approx(sum(item["scores"]["acc"] for item in items) / 12)
    assert found["metrics"]["acc"]["low"] <= found["metrics"]["acc"]["value"] <= found["metrics"]["acc"]["high"]
    assert items[0]["shown"]["prompt"].endswith("Answer:")
    rows = {row.metric: row for row in results.compare([results.read(first), results.read(second)])}
    assert rows["acc"].differences[0][1] in ("inside the noise", "higher", "lower", "the same on every item")
    words = (tmp_path / "report.md").read_text()
    assert "| own/acc | 12 |" in words and f"`{pretrained}` at step" in words
    assert (tmp_path / "plot.svg").read_text().startswith("<?xml")
    assert main(["results", first, second]) == 0
    assert "b - a" in capsys.readouterr().out


def test_other_questions_are_not_compared(pretrained, file, tmp_path, capsys):
    first, second = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    assert main(["eval", str(pretrained), f"--choices={file}", f"--output={first}"]) == 0
    assert main(["eval", str(pretrained), f"--choices={file}", "--limit=5", f"--output={second}"]) == 0
    assert main(["results", first, second]) == 2
    assert "were asked differently" in capsys.readouterr().err


def test_own_evaluations_have_settings_and_names(pretrained, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_evals.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    section = json.dumps({"use": "own_evals:length", "most": 5})
    assert main(["eval", str(pretrained), f"--evaluation={section}"]) == 0
    assert "length/length" in capsys.readouterr().out
    section = json.dumps({"use": "own_evals:length", "least": 5})
    assert main(["eval", str(pretrained), f"--evaluation={section}"]) == 2
    assert "nothing reads --least; did you mean --most?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to measure: give --tasks"),
        (["--choices={file}", "--per_group=3"], "--per_group does nothing for choices: leave it out"),
        (["--choices={file}", "--shots=-1"], "--shots = -1: give a whole number from 0 up"),
        (["--choices={file}", "--choices={file}"], "two evaluations have one name (own, own)"),
        (["--choices={file}", "--output={file}"], "own.jsonl exists: give another name, or delete it"),
        (["--choices={file}", "--cache=int8"], "--cache and --draft do nothing here"),
        (["--choices={file}", "--model=x"], "--model names a model of a server"),
        (["--choices={file}", "--against={file}"], "own.jsonl is no file of results"),
        (["--evaluation={{"], "--evaluation is no JSON"),
        (["--evaluation=primr"], "--evaluation: there is no 'primr', only choices"),
        (["--evaluation=no_such:one"], "--evaluation: 'no_such:one' is no function"),
    ],
)
def test_a_mistake_is_told_before_anything_is_loaded(words, message, file, capsys):
    assert main(["eval", "/no/such/model", *(word.format(file=file) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_a_run_evaluates_by_any_name_on_a_schedule_of_its_own(arguments, file, tmp_path, monkeypatch, metrics):
    (tmp_path / "own_evals_in_training.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    line = arguments("pretrain", tmp_path / "run")
    evals = {
        "first": {"use": "choices", "file": file, "every_steps": 6},
        "mine": {"use": "own_evals_in_training:length", "most": 2},
    }
    line += [f"--config.evals={evals}", "--config.total_steps=12", "--config.checkpoint.best=('eval/first/acc', 'max')"]
    assert main(line) == 0
    found = metrics(tmp_path / "run")
    assert [step for step, each in found.items() if "eval/first/acc" in each] == [0, 6, 12]
    assert found[12]["eval/mine/length"] == 0.5
    line[-2] = "--config.total_steps=18"
    line[-3] = "--config.evals=" + str({"first": {"use": "choice", "file": file}})
    assert main(line) == 2
