"""Tasks by their names, means by group, and tables of words that are installed with the code."""

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from camelid import tasks
from camelid.data.sources import Source, fingerprint
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


RECORDS = {
    ("primer", "documents"): ("821d1555", "d7f4f72e5c6f6bbd"),
    ("primer", "chat"): ("44a1d0e5", "597a16a3cf63eac3"),
    ("primer", "careless"): ("5629c24f", "337809bb1afca75a"),
    ("primer", "pairs"): ("e2055c99", "3fe029561851f965"),
    ("safe_sums", "chat"): ("f7f2a4a7", "a3b1d48b1b1af784"),
    ("safe_sums", "pairs"): ("fb11b4f0", "75b97d6a8d18c0d7"),
    ("walks", "chat"): ("53c11170", "eb39a1e0941e11b2"),
    ("walks", "pairs"): ("a8f5213c", "dde7ecb6f097c8ed"),
}
"""The beginning of each kind's version, and a hash of the first 2,000 records of both splits. Where the hash changes,
the kind needs a new version."""


def test_other_records_have_another_version():
    generated = [name for name in tasks.NAMES if name != "reviews"]
    assert {(name, kind) for name in generated for kind in tasks.find(name).KINDS} == set(RECORDS)
    for (name, kind), (version, digest) in RECORDS.items():
        found = hashlib.blake2b(digest_size=8)
        for split in ("train", "heldout"):
            for record in itertools.islice(tasks.find(name).records(kind, split), 2000):
                found.update(json.dumps(record, sort_keys=True, ensure_ascii=False).encode())
        assert (tasks.find(name).KINDS[kind][:8], found.hexdigest()) == (version, digest), (name, kind)
        assert fingerprint(Source(f"{name}:{kind}")) == tasks.find(name).KINDS[kind]


def test_every_version_is_one_of_its_own():
    versions = [version for name in tasks.NAMES for version in tasks.find(name).KINDS.values()]
    assert len(set(versions)) == len(versions) and all(re.fullmatch("[0-9a-f]{32}", version) for version in versions)
