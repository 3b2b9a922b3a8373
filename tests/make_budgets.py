"""Budgets of steps (`launch/plans/budget.py`): compiles those of tests/budget_entries.py, and keeps or compares them.

    python -m camelid.tests.make_budgets                     compiles all and writes tests/budgets and the table of
                                                             docs/scaling.md anew (`make budget`)
    python -m camelid.tests.make_budgets llama_7b small_sft  these alone
    python -m camelid.tests.make_budgets --check             compares instead; the exit code is 1 if a step differs
    python -m camelid.tests.make_budgets --table             only writes the table anew

Each step is compiled in a process of its own: TPU steps need minutes and libtpu (`camelid[plan]`), GPU steps JAX's CUDA
plugin (`camelid[plan-gpu]`). Steps whose compiler is not installed are left out. Commit a budget that has changed with
the change that explains it.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence

import jax

from camelid.launch.plans.budget import Budget, differences
from camelid.tests.budget_entries import BUDGETS, ENTRIES, TESTS, Entry
from camelid.train.chips import CHIPS

PAGE = TESTS.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- budgets: make budget -->", "<!-- end of budgets -->"
GIB = 2**30


def compiled(entry: Entry) -> Budget:
    """The budget of a step, compiled in this process, whose environment is that of the entry's topology."""
    from camelid.launch.plans.budget import budget_of
    from camelid.launch.plans.plan import plan
    from camelid.launch.plans.topologies import topology
    from camelid.model.config import LlamaConfig
    from camelid.settings.config_files import load_phases

    (config,) = load_phases(entry.path, list(entry.overrides)).values()
    architecture = entry.architecture and LlamaConfig.preset(entry.architecture)
    return budget_of(plan(config, topology(entry.topology), architecture=architecture))


def in_process(name: str) -> Budget:
    """The budget of a step, compiled in another process. Raises SystemExit with what that process said if it fails."""
    from camelid.launch.plans.topologies import environment_for

    words = [sys.executable, "-m", "camelid.tests.make_budgets", "--print", name]
    done = subprocess.run(
        words, env=os.environ | environment_for(ENTRIES[name].topology), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return json.loads(done.stdout)


def compiler_missing(entry: Entry) -> str | None:
    """The extra to install for a step, if its compiler is not there."""
    platform = CHIPS[entry.topology.partition(":")[0]].platform
    if platform == "tpu" and importlib.util.find_spec("libtpu") is None:
        return "plan"
    if platform == "gpu" and importlib.util.find_spec("jax_cuda12_plugin") is None:
        return "plan-gpu"
    return None


def write(name: str, budget: Budget) -> None:
    """Writes a budget, one collective and one array in a line."""
    lines = []
    for key, value in budget.items():
        if key in ("collectives", "shardings"):
            lines.append(f"  {json.dumps(key)}: {_spread(value)}")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    (BUDGETS / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _spread(value: dict) -> str:
    rows = []
    for key, inner in value.items():
        if isinstance(inner, list):
            each = ",\n".join(f"      {json.dumps(one)}" for one in inner)
            rows.append(f"    {json.dumps(key)}: [\n{each}\n    ]")
        else:
            rows.append(f"    {json.dumps(key)}: {json.dumps(inner)}")
    return "{\n" + ",\n".join(rows) + "\n  }"


def kept(name: str) -> Budget:
    """The budget of a step as it is kept."""
    return json.loads((BUDGETS / f"{name}.json").read_text())


# The table -----------------------------------------------------------------------------------------------------------

HEAD = """| run | devices | GiB | of | tokens a step | model / hardware FLOPs | a step | % of peak | tokens/s a chip |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def table() -> str:
    """The table of docs/scaling.md: a row for each step with a title, and below it the commands that plan them."""
    rows, commands = [HEAD], []
    for name, entry in ENTRIES.items():
        if entry.title and (BUDGETS / f"{name}.json").exists():
            rows.append(_row(entry, kept(name)))
            commands.append(f"    {entry.command}")
    return "\n".join([*rows, "", "The commands, in the order of the rows:", "", *commands])


def _row(entry: Entry, budget: Budget) -> str:
    speed, flops = budget["speed"], sum(budget["hardware_flops"].values())
    mesh = " × ".join(f"{axis} {size}" for axis, size in budget["mesh"].items())
    cells = [
        entry.title,
        f"`{entry.topology}`" + (f", {mesh}" if mesh else ""),
        f"{budget['compiled_memory']['peak'] / GIB:,.1f}",
        f"{speed['capacity'] / GIB:,.1f}",
        f"{budget['tokens']:,}",
    ]
    if speed["seconds"] is None:  # FLOPs and time of a loop until all answers end are those of one turn
        cells += ["–"] * 4
    else:
        cells += [
            f"{speed['model_flops'] / flops:.2f}",
            f"{speed['seconds']:#.3g} s, {speed['bound']}: {speed['limit']}",
            f"{100 * speed['mfu']:.0f}",
            f"{speed['tokens_per_second_per_chip']:,.0f}",
        ]
    return f"| {' | '.join(cells)} |"


def write_table() -> None:
    """Writes the table anew into docs/scaling.md, between its marks."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}")


# The command ---------------------------------------------------------------------------------------------------------


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", choices=[*ENTRIES, []], metavar="NAME", help="names of steps (default: all)"
    )
    parser.add_argument("--check", action="store_true", help="compare with the budgets that are kept")
    parser.add_argument("--table", action="store_true", help="only write the table of docs/scaling.md anew")
    parser.add_argument("--print", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if unknown := set(args.names) - set(ENTRIES):
        parser.error(f"there is no step {', '.join(sorted(unknown))}: give {', '.join(ENTRIES)}")
    if args.print:
        jax.config.update("jax_platforms", "cpu")
        print(json.dumps(compiled(ENTRIES[args.names[0]])))
        return 0
    differing = 0
    for name in [] if args.table else args.names or ENTRIES:
        if extra := compiler_missing(ENTRIES[name]):
            print(f"{name}: left out, its compiler is not installed: pip install 'camelid[{extra}]'", flush=True)
            continue
        budget = in_process(name)
        lines = differences(name, kept(name), budget) if (BUDGETS / f"{name}.json").exists() else [f"{name}: new"]
        print("\n".join(lines or [f"{name}: as in its budget"]), flush=True)
        differing += bool(lines)
        if not args.check:
            write(name, budget)
    if args.check:
        return int(differing > 0)
    write_table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
