"""A field to make a model at home in, from what every Python carries: its manual's topics, and docstrings as answers.

    python benchmarks/python_field.py field
    camelid train --workdir=runs/field --config=configs/adapt/domain.py:init_from=MODEL,\\
        documents=field/documents,questions=field/questions.json

Writes `field/documents/`, a file for each topic of the language's reference, and `field/questions.json`: records that
ask what a function of the standard library does, answered with the first paragraph of its docstring.
"""

import argparse
import importlib
import inspect
import json
import pkgutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

SKIPPED = {"antigravity", "this", "idlelib", "test", "lib2to3"}  # print, open windows, or are no library
LENGTHS = range(40, 400)
"""Characters of an answer."""


def modules() -> Iterator[str]:
    """Names of the standard library's modules, those inside packages that the name alone does not import left out."""
    for module in pkgutil.iter_modules():
        if module.name in sys.stdlib_module_names and module.name not in SKIPPED and not module.name.startswith("_"):
            yield module.name


def questions() -> Iterator[dict[str, str]]:
    """One for each public function with a docstring of some length."""
    for name in modules():
        try:
            module = importlib.import_module(name)
        except ImportError:  # of another system
            continue
        for function, value in inspect.getmembers(module, inspect.isroutine):
            if function.startswith("_") or getattr(value, "__module__", None) != name:
                continue
            answer = " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())
            if len(answer) in LENGTHS:
                yield {"instruction": f"What does Python's {name}.{function} do?", "input": "", "output": answer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)  # of old modules, which are documented all the same
    (args.output / "documents").mkdir(parents=True, exist_ok=True)
    for topic, text in topics.items():
        (args.output / "documents" / f"{topic}.md").write_text(text, "utf-8")
    records = list(questions())
    (args.output / "questions.json").write_text(json.dumps(records, indent=1), "utf-8")
    print(f"{len(topics)} documents, {len(records)} questions in {args.output}")


if __name__ == "__main__":
    main()
