"""Makes a data set for adapting a model to a field, from Python's own manual and docstrings.

    python benchmarks/python_field.py field
    camelid train --workdir=runs/field --config=configs/adapt/domain.py:init_from=MODEL,\\
        documents=field/documents,questions=field/questions.json

Writes `field/documents/`, with a file for each topic of the language reference, and `field/questions.json`. Its records
ask what a function of the standard library does; the answer is the first paragraph of its docstring.
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

SKIPPED = {"antigravity", "this", "idlelib", "test", "lib2to3"}  # these print, open windows, or are no library
LENGTHS = range(40, 400)
"""The accepted lengths of an answer, in characters."""


def modules() -> Iterator[str]:
    """Yields the names of the standard library's top-level modules."""
    for module in pkgutil.iter_modules():
        if module.name in sys.stdlib_module_names and module.name not in SKIPPED and not module.name.startswith("_"):
            yield module.name


def questions() -> Iterator[dict[str, str]]:
    """Yields a record for each public function whose docstring has a length in `LENGTHS`."""
    for name in modules():
        try:
            module = importlib.import_module(name)
        except ImportError:  # a module for another operating system
            continue
        for function, value in inspect.getmembers(module, inspect.isroutine):
            if function.startswith("_") or getattr(value, "__module__", None) != name:
                continue
            answer = " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())
            if len(answer) in LENGTHS:
                yield {"instruction": f"What does Python's {name}.{function} do?", "input": "", "output": answer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the folder to write")
    args = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)  # old modules warn when they are imported
    (args.output / "documents").mkdir(parents=True, exist_ok=True)
    for topic, text in topics.items():
        (args.output / "documents" / f"{topic}.md").write_text(text, "utf-8")
    records = list(questions())
    (args.output / "questions.json").write_text(json.dumps(records, indent=1), "utf-8")
    print(f"{len(topics)} documents, {len(records)} questions in {args.output}")


if __name__ == "__main__":
    main()
