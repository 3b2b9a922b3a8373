"""`camelid eval` and `camelid results` from the command line, and their files."""

import json

import pytest

from camelid.errors import UserError
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
        "first": {"use": "choices", "file": file, "every_steps": 4},
        "mine": {"use": "own_evals_in_training:length", "most": 2},
    }
    line += [f"--config.evals={evals}", "--config.total_steps=12", "--config.checkpoint.best=('eval/first/acc', 'max')"]
    assert main(line) == 0
    found = metrics(tmp_path / "run")
    assert [step for step, each in found.items() if "eval/first/acc" in each] == [0, 4, 8, 12]
    assert found[12]["eval/mine/length"] == 0.5
    line[-2] = "--config.total_steps=18"
    line[-3] = "--config.evals=" + str({"first": {"use": "choice", "file": file}})
    assert main(line) == 2


def asked(path, labels=(0, 1)):
    path.parent.mkdir(exist_ok=True)
    lines = [
        {"question": f"What sees {n}?", "choices": ["red fox", "blue owl"], "answer": labels[n % 2]} for n in range(4)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_what_is_asked_decides_what_is_compared_and_not_where_it_lies(pretrained, tmp_path, monkeypatch, capsys):
    def evaluate(name, *words):
        assert main(["eval", str(pretrained), *words, f"--output={tmp_path / name}.json"]) == 0
        return results.read(str(tmp_path / f"{name}.json"))

    first = evaluate("first", f"--choices={asked(tmp_path / 'a/own.jsonl')}")
    other_place = evaluate("moved", f"--choices={asked(tmp_path / 'b/own.jsonl')}")
    rows = results.compare([first, other_place])
    assert {row.differences[0][1] for row in rows} == {"the same on every item"}
    before = evaluate("before", f"--choices={tmp_path / 'b'}/*.jsonl")
    asked(tmp_path / "b/own.jsonl", labels=(1, 0))
    after = evaluate("after", f"--choices={tmp_path / 'b'}/*.jsonl")
    with pytest.raises(UserError, match="were asked differently"):
        results.compare([before, after])
    (tmp_path / "own_length.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    before = evaluate("code_before", "--evaluation=own_length:length")
    (tmp_path / "own_length.py").write_text(OWN.replace("float(i)", "float(i + 1)"))
    after = evaluate("code_after", "--evaluation=own_length:length")
    with pytest.raises(UserError, match="were asked differently"):
        results.compare([before, after])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: own["items"].pop(), "the metrics of own are not those of its items"),
        (lambda own: own["items"].append(own["items"][0]), "two items have the id"),
        (lambda own: own["items"][0]["scores"].update(acc=float("nan")), "give a finite number"),
        (lambda own: own["metrics"]["acc"].update(value=0.9), "the metrics of own are not those of its items"),
        (lambda own: own.pop("hash"), "it is no file of results any more"),
        (lambda own: own["items"][0].pop("id"), "it is no file of results any more"),
    ],
)
def test_a_file_that_was_changed_is_told(change, message, pretrained, tmp_path, capsys, shared_result):
    content = json.loads(json.dumps(shared_result))
    change(content["evaluations"]["own"])
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(content))
    assert main(["results", str(path)]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def shared_result(pretrained, tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    assert main(["eval", str(pretrained), f"--choices={asked(root / 'own.jsonl')}", f"--output={root}/a.json"]) == 0
    return json.loads((root / "a.json").read_text())


def test_names_that_look_like_markup_are_shown(pretrained, tmp_path, capsys):
    path = tmp_path / "[blue].jsonl"
    path.write_text(json.dumps({"question": "What?", "choices": ["a fox", "an owl"], "answer": 0, "group": "[/b]"}))
    output = [f"--output={tmp_path / 'a.json'}", f"--report={tmp_path / 'a.md'}"]
    assert main(["eval", str(pretrained), f"--choices={path}", *output]) == 0
    assert "[blue]/acc/[/b]" in capsys.readouterr().out and "[blue]/acc/[/b]" in (tmp_path / "a.md").read_text()


def test_an_evaluation_of_one_s_own_that_fails_is_told(pretrained, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_faults.py").write_text(
        "from camelid.evals.items import Item\n\n\ndef boom(model):\n    return 1 / 0\n\n\ndef none(model):\n"
        "    return None\n\n\ndef twice(model):\n    return [Item('1', {'x': 1.0}), Item('1', {'x': 0.0})]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name, said in {
        "boom": "evaluation own_faults:boom: ZeroDivisionError: division by zero",
        "none": "evaluation own_faults:none returned None: give a list of items",
        "twice": "two items have the id '1'",
    }.items():
        assert main(["eval", str(pretrained), f"--evaluation=own_faults:{name}"]) == 2
        assert said in capsys.readouterr().err


def test_settings_that_are_lists_reach_the_evaluation(tuned, tmp_path, capsys):
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps({"question": "Which colour?", "answer": "red"}))
    assert main(["eval", str(tuned), f"--exact={path}", "--chat", "--stop=red", "--stop=x", "--max_tokens=5"]) == 0
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "the red fox sees the owl. " * 4}))
    words = [f"--source={text}", "--borders=5,9", "--seq_len=20", f"--cache_dir={tmp_path}"]
    assert main(["eval", str(tuned), *words]) == 0
    assert "perplexity/5-9" in capsys.readouterr().out
