"""Files import from their own folder and from floors below it, and recipes from no other recipe."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW = {
    "settings": set(),
    "model": set(),
    "tasks": set(),
    "data": {"tasks"},
    "checkpoints": {"settings", "model", "data"},
    "evals": {"settings", "model", "tasks", "data", "checkpoints", "serve"},
    "curate": {"settings", "data", "serve"},
    "train": {"settings", "model", "data", "checkpoints"},
    "serve": {"model", "data", "checkpoints"},
    "rlhf": {"settings", "model", "tasks", "data", "checkpoints", "train"},
}
RECIPES = ("train/pretrain", "train/sft", "rlhf/reward", "rlhf/dpo", "rlhf/ppo", "rlhf/grpo", "rlhf/raft")


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, as paths from its root."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        folder = path.parents[node.level - 1]
        module = folder / (node.module or "").replace(".", "/")
        found |= {str((module / alias.name).relative_to(ROOT)) for alias in node.names}
        found.add(str(module.relative_to(ROOT)))
    return found


@pytest.mark.parametrize("folder", BELOW)
def test_imports_go_down(folder):
    allowed = BELOW[folder] | {folder, "errors", "."}
    for path in sorted((ROOT / folder).rglob("*.py")):
        floors = {Path(module).parts[0] if module != "." else "." for module in imported(path)}
        assert floors <= allowed, f"{path.relative_to(ROOT)} imports {floors - allowed}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_import_no_other_recipe(recipe):
    others = imported(ROOT / f"{recipe}.py") & set(RECIPES)
    assert not others


def test_every_folder_of_the_package_has_its_floor():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders - set(BELOW) == {"launch", "configs", "benchmarks"}
