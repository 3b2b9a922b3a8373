"""Tasks by their names, means by group, and tables of words that are installed with the code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from camelid import tasks
from camelid.errors import UserError
from camelid.tasks.groups import group_means, metric_names


@pytest.mark.parametrize("name", tasks.NAMES)
def test_each_task_offers_the_same(name):
    task = tasks.find(name)
    assert "chat" in task.KINDS and task.SCORES[0] == "reward"
    assert tasks.find_score(name) == task.reward
    assert all(tasks.find_score(f"{name}:{score}") == getattr(task, score) for score in task.SCORES)
    record = {"meta": {field: values[0] for field, values in task.GROUPS.items()}}
    assert set(task.metrics([record], [0.5]).values()) == {0.5}


@pytest.mark.parametrize(
    ("find", "name", "says"),
    [
        (tasks.find, "walk", "there is no task 'walk'; choose one of .*; did you mean walks?"),
        (tasks.find, "", "there is no task ''; choose one of primer, reviews, safe_sums, walks"),
        (tasks.find_score, "safe_sum:cost", "there is no task 'safe_sum'; .*; did you mean safe_sums?"),
        (tasks.find_score, "safe_sums:costs", "choose one of safe_sums:reward, .*; did you mean safe_sums:cost?"),
        (tasks.find_score, "walks:", "there is no score 'walks:'; choose one of walks:reward"),
        (tasks.find_score, "walks:records", "there is no score 'walks:records'"),
    ],
)
def test_a_name_that_there_is_not_is_told_with_the_nearest(find, name, says):
    with pytest.raises(UserError, match=says.replace("?", r"\?")):
        find(name)


def test_names_are_known_before_anything_large_is_imported():
    program = "import sys; from camelid import tasks; [tasks.find(name) for name in tasks.NAMES]\n"
    program += "sys.exit(bool({'jax', 'numpy', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_means_are_over_all_over_each_value_and_over_each_group():
    groups = {"topic": ("sum", "word"), "language": ("en", "zh")}
    records = [
        {"meta": {"topic": topic, "language": language, "more": 1}}
        for topic, language in [("sum", "en"), ("sum", "zh"), ("word", "en"), ("word", "en")]
    ]
    means = {"all": 2.5, "sum": 1.5, "word": 3.5, "en": 8 / 3, "zh": 2.0, "sum/en": 1.0, "sum/zh": 2.0, "word/en": 3.5}
    assert group_means(groups, records, [1.0, 2.0, 3.0, 4.0]) == pytest.approx(means)
    assert metric_names(groups) == ("all", "sum", "word", "en", "zh", "sum/en", "sum/zh", "word/en", "word/zh")
    assert metric_names({}) == ("all",) and metric_names({"language": ("en",)}) == ("all", "en")
    assert group_means({}, [{"meta": {}}] * 2, [0.0, 1.0]) == {"all": 0.5}


def test_an_installed_package_finds_its_tables(tmp_path):
    pytest.importorskip("setuptools")
    root = Path(tasks.__file__).parents[1]
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(build, cwd=root, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    tables = {str(path.relative_to(root)) for path in (root / "tasks").rglob("*.toml")}
    assert tables == {str(path.relative_to(tmp_path / "camelid")) for path in tmp_path.rglob("tasks/**/*.toml")}
    assert len(tables) == 3
    program = (
        "import json; from importlib import resources; from camelid import tasks\n"
        "found = [str(resources.files(tasks))]\n"
        "found += [next(tasks.find(name).records('chat', 'heldout')) for name in ('primer', 'safe_sums', 'walks')]\n"
        "print(json.dumps(found))"
    )
    said = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        check=True,
    )
    folder, *records = json.loads(said.stdout)
    assert folder == str(tmp_path / "camelid/tasks")
    assert records == [next(tasks.find(name).records("chat", "heldout")) for name in ("primer", "safe_sums", "walks")]
