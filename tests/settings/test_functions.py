"""What users name as package.module:name or file.py:name: where it is looked for, and what is said where it is not."""

import hashlib
import pickle
import subprocess
import sys

import pytest

from camelid.errors import UserError
from camelid.settings import files
from camelid.settings.functions import code_of, file_of, find, find_function, is_function, source_of


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The current folder, in which mine.py lies; `sys.path` is as before afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text(
        "from own_neighbour import factor\n\n\ndef reward(record, answer):\n    return factor * len(answer)\n"
    )
    (tmp_path / "own_neighbour.py").write_text("factor = 2.0\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("mine", "own_neighbour", "email_of_mine"):
        sys.modules.pop(name, None)


def test_a_file_is_found_from_its_path_and_imports_its_neighbours(here, monkeypatch):
    found = find_function("mine.py:reward", "config.here", "reward(record, answer)", {}, "")
    assert found({}, "abc") == 6.0
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert find("../mine.py:reward", "config.here") is find(f"{here}/mine.py:reward", "config.here") is found


def test_a_file_beside_the_config_is_found_from_any_folder(here, monkeypatch):
    (here / "project").mkdir()
    (here / "project" / "loss.py").write_text("value = 1\n")
    assert file_of("loss.py:value") is None
    files.make_importable(here / "project")
    assert find("loss.py:value", "config.loss") == 1
    (here / "loss.py").write_text("value = 1\n")
    assert file_of("loss.py:value") == here / "loss.py"  # of two equal files, that of the current folder
    (here / "loss.py").write_text("value = 2\n")
    with pytest.raises(UserError, match=r"there are .*/loss\.py and .*/project/loss\.py: give the path"):
        find("loss.py:value", "config.loss")


def test_the_users_modules_hide_no_installed_ones_and_are_found_by_file(here):
    (here / "json.py").write_text("value = 'mine'\n")
    with pytest.raises(UserError, match=r"has no 'value'; json\.py of this folder is named as json\.py:value"):
        find("json:value", "config.here")
    assert find("json.py:value", "config.here") == "mine"
    assert find("json:loads", "config.here")("[1]") == [1]


def test_a_file_means_its_own_neighbours_whatever_the_current_folder_has(here):
    files.make_importable(here)
    (here / "project").mkdir()
    (here / "project" / "own_neighbour.py").write_text("factor = 7.0\n")
    (here / "project" / "other.py").write_text("from own_neighbour import factor\n")
    assert find("project/other.py:factor", "config.here") == 7.0


def test_a_relative_import_of_a_file_is_told_with_its_cure(here):
    for line in ("from .own_neighbour import factor", "from . import own_neighbour"):
        (here / "relative.py").write_text(f"{line}\n")
        with pytest.raises(UserError, match=r"has no package: write `import own_neighbour`.*relative\.py, line 1"):
            find("relative.py:factor", "config.here")


def test_worker_processes_import_what_a_file_defines_by_its_name_alone(here, tmp_path):
    pickled = pickle.dumps(find("mine.py:reward", "config.here"))
    code = f"import pickle; print(pickle.loads({pickled!r})({{}}, 'abcd'))"
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout == "8.0\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.py:rewrd", r"mine\.py has no 'rewrd'; did you mean reward\?"),
        ("mne.py:reward", r"no file mne\.py; did you mean mine\.py\?"),
        ("mine:rewrd", r"mine\.py has no 'rewrd'; did you mean reward\?"),
        ("nobody:reward", "No module named 'nobody'"),
        ("broken.py:reward", r"ValueError: half written \(.*broken\.py, line 2\)"),
        ("missing.py:reward", r"ModuleNotFoundError: No module named 'no_such_package' \(.*missing\.py, line 1\)"),
        ("mine.py:", "has no ''"),
    ],
)
def test_what_cannot_be_found_is_one_line_with_the_nearest_name(here, name, message):
    (here / "broken.py").write_text("x = 1\nraise ValueError('half\\nwritten')\n")
    (here / "missing.py").write_text("import no_such_package\n")
    with pytest.raises(UserError, match=rf"^config\.here: .* is no function as .*\(.*{message}") as error:
        find(name, "config.here")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"cannot be called as reward\(a\): missing a required argument: 'answer'"):
        find_function("mine.py:reward", "config.here", "reward(a)", {})


def test_names_of_functions_are_told_from_other_names():
    assert all(map(is_function, ("a:b", "a.b:c", "a.py:b", "../a b/c.py:d", "C:/a.py:b")))
    assert not any(map(is_function, ("sft", "a:", ":b", "a:b c", "a:b-c", "", "a.py")))


def test_the_code_that_a_config_names_is_known_by_its_hash(here):
    config = {
        "recipe": "sft",
        "loss": "mine.py:reward",
        "evals": {"a": {"use": "unknown.py:f"}},
        "source": "primer:chat",
    }
    find("mine.py:reward", "config.loss")
    before = hashlib.sha256((here / "mine.py").read_bytes()).hexdigest()
    assert code_of(config) == {"mine.py:reward": before}
    (here / "mine.py").write_text("reward = None\n")
    assert code_of(config)["mine.py:reward"] != before
    assert source_of("mine.py:x") == source_of("mine:x") == here / "mine.py"
    assert source_of("nobody:x") is source_of("nobody.py:x") is None
