"""The commands `camelid curate mix` and `camelid curate audit`: datasets and runs with their licences and origins."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import UserError
from .arguments import command, refuse_unread, require_output

LEAKED = 3
"""Exit code of an audit that finds items of an evaluation set."""

NO_ADVICE = "Licences are compared as data/licences.toml records them; nothing here is legal advice."


def add_ledger(actions) -> None:
    """Adds `camelid curate mix` and `camelid curate audit`."""
    _add_mix(actions)
    _add_audit(actions)


def _add_mix(actions) -> None:
    parser = command(
        actions,
        "mix",
        _mix,
        "Mix datasets into one, without exact repeats, unless their licences exclude each other or the use.",
        f"camelid curate mix datasets/chats datasets/faq/questions --output=datasets/mix --weights=3,1\n\n{NO_ADVICE}",
    )
    parser.add_argument("datasets", nargs="+", metavar="DIR", help="folders of datasets with a card.json")
    parser.add_argument(
        "--weights",
        metavar="W,W,...",
        help="shares of the training rows, relative to each other, in the order of the datasets (default: all rows)",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the mixture")
    parser.add_argument(
        "--allow_conflicts",
        default="",
        metavar="KIND,...",
        help="kinds of conflicts between licences that you have cleared: share_alike, no_derivatives, non_commercial, "
        "training, unknown (default: none)",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="tokenizer that counts tokens for the card (default: characters are counted)",
    )
    parser.add_argument("--shards", type=int, default=1, metavar="N", help="number of files of each split (default: 1)")
    _add_use(parser)


def _add_use(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--use",
        default="research",
        choices=("research", "commercial"),
        help="use that the licences are compared with (default: research)",
    )


def _add_audit(actions) -> None:
    parser = command(
        actions,
        "audit",
        _audit,
        "Say where a dataset, a row of it, or what a training run was trained on comes from.",
        "camelid curate audit datasets/mix\n"
        "camelid curate audit datasets/mix --row='three tips for staying healthy'\n"
        "camelid curate audit datasets/mix --against=gsm8k_test.jsonl\n"
        "camelid curate audit runs/sft --step=7 --row=3\n\n"
        f"The exit code is 1 if a file of the dataset is damaged, and {LEAKED} if --against finds anything.\n"
        f"{NO_ADVICE}",
    )
    parser.add_argument("path", metavar="DIR", help="folder of a dataset with a card.json, or of a training run")
    parser.add_argument("--id", metavar="ID", help="id of a row of the dataset, kept or rejected")
    parser.add_argument(
        "--row", metavar="TEXT", help="text that stands in a row of the dataset; with --step, number of the batch's row"
    )
    parser.add_argument("--step", type=int, metavar="N", help="step of the training run whose batch is looked at")
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="FILES",
        help="path or glob of an evaluation set whose questions and answers are looked for in the rows; "
        "give the option again for further sets",
    )
    parser.add_argument("--output", metavar="FILE", help="the .json file to write the report to as well")
    _add_use(parser)


def _mix(args: argparse.Namespace) -> None:
    from rich.console import Console

    from ...curate.ledger.mixing import Part, check_conflicts, mix
    from ...curate.outputs import check_replaceable
    from ...curate.run_table import to_rich
    from ..outputs import check_writable

    if args.shards < 1:
        raise UserError(f"--shards {args.shards}: give 1 or more")
    check_writable(args.output, "--output")
    weights = _weights(args)
    parts = [Part(Path(path).expanduser(), weight) for path, weight in zip(args.datasets, weights, strict=True)]
    allow = [kind for kind in args.allow_conflicts.split(",") if kind]
    for allowed in check_conflicts(parts, args.use, allow):
        print(f"allowed: {allowed}")
    output = Path(args.output).expanduser()
    check_replaceable(output, args.datasets)
    card, table = mix(parts, output, use=args.use, allow=allow, tokenizer=args.tokenizer, shards=args.shards)
    Console().print(to_rich(table.tables(card.steps)))
    splits = ", ".join(f"{count.rows:,} rows in {name}" for name, count in card.splits.items()) or "no rows"
    print(f"{args.output}: {splits}; data.mixture reads the folder as a source")


def _weights(args: argparse.Namespace) -> list[float | None]:
    """The weight of each dataset; None for each without `--weights`."""
    if args.weights is None:
        return [None] * len(args.datasets)
    try:
        weights = [float(weight) for weight in args.weights.split(",")]
    except ValueError:
        raise UserError(f"--weights={args.weights}: give numbers with commas between, such as 3,1") from None
    if len(weights) != len(args.datasets):
        raise UserError(f"--weights={args.weights}: give {len(args.datasets)} numbers, one for each dataset")
    return weights


def _audit(args: argparse.Namespace) -> int:
    """Prints a report. Returns the exit code: 1 for a damaged dataset, LEAKED for items of an evaluation set."""
    from ...curate.ledger.audit import WRITTEN
    from ...data.cards import check_complete, has_card
    from ..outputs import check_new_file

    require_output()
    if args.output is not None:
        check_new_file(args.output)
    if (chosen := [name for name in ("id", "row", "against") if getattr(args, name)]) and len(chosen) > 1:
        raise UserError(f"--{chosen[0]} and --{chosen[1]} are different questions: give one of them")
    path = Path(args.path).expanduser()
    check_complete(path)
    report = _of_dataset(args, path) if has_card(path) else _of_run(args)
    if args.output is not None:
        from ...data.checksums import write_whole

        text = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
        write_whole(args.output, text.encode(errors="backslashreplace"))  # a rejected row may have a lone surrogate
    if args.against and (leaked := len(report["leaked"])):
        print(f"camelid: {leaked:,} items of the evaluation sets are in the rows of {args.path}", file=sys.stderr)
        return LEAKED
    if isinstance(report, dict) and report.get("files", WRITTEN) != WRITTEN:
        print(f"camelid: {args.path} is damaged: {report['files']}", file=sys.stderr)
        return 1
    return 0


def _of_dataset(args: argparse.Namespace, path: Path) -> Any:
    from ...curate.ledger import audit
    from ...data.cards import read_card

    if args.step is not None:
        raise UserError(f"--step={args.step}: {args.path} is a dataset, and steps are those of a training run")
    card = read_card(path)
    if args.against:
        report = audit.leak_report(audit.searched_rows(path, card), _sets(args))
        _print_leaks(report)
    elif args.id is not None or args.row is not None:
        wanted = f"id {args.id}" if args.id is not None else f"text {args.row!r}"
        by = audit.rows_by_id if args.id is not None else audit.rows_by_text
        report = by(path, card, args.id if args.id is not None else args.row)
        if not report:
            raise UserError(f"{args.path}: no row, kept or rejected, has the {wanted}, nor have its parents")
        for row in report:
            _print_row(row)
    else:
        report = audit.dataset_report(path, card, args.use)
        _print_dataset(report)
    return report


def _of_run(args: argparse.Namespace) -> Any:
    from ...curate.ledger.audit import leak_report
    from ..run_audit import RunAudit

    refuse_unread(args, ("id",), "the folder of a dataset with a card.json")
    if args.row is not None and args.step is None:
        raise UserError(f"--row={args.row}: {args.path} is a training run; give --step=N too, and the row as a number")
    path = Path(args.path).expanduser()
    if "://" not in args.path and not path.exists() and not Path(str(path).partition("@")[0]).exists():
        raise UserError(f"{args.path}: there is no such dataset or training run")
    if path.is_dir() and not (path / "checkpoints").exists() and path.parent.name != "checkpoints":
        phases = sorted(str(found.parent) for found in path.glob("*/checkpoints"))
        hint = f"; it has phases: give {' or '.join(phases)}" if phases else ""
        raise UserError(
            f"{path} has neither a card.json, as datasets have, nor checkpoints, as training runs have{hint}"
        )
    audit = RunAudit(args.path)
    if args.against:
        report = leak_report(audit.records(), _sets(args))
        _print_leaks(report)
    elif args.step is not None:
        if not (args.row or "").isdecimal():
            raise UserError(f"--step={args.step} --row={args.row}: give the number of the batch's row, from 0")
        report = audit.row(args.step, int(args.row))
        for piece in report:
            begin, end = piece["positions"]
            _line(f"positions {begin} to {end - 1}: source {piece['source']}, {piece['record']}")
            if "way" in piece:
                _print_row(piece)
            else:
                _line(f"  {_start(piece['text'])}")
    else:
        report = audit.report(args.use)
        _print_run(report)
    return report


def _sets(args: argparse.Namespace) -> dict[str, Any]:
    """The evaluation sets of `--against`, by the names of their files; of equal names by the whole paths."""
    from ...curate.duplicates.evaluation_sets import EvaluationSet

    names = [Path(source).name.split(".")[0] for source in args.against]
    return {
        name if names.count(name) == 1 else source: EvaluationSet(source)
        for name, source in zip(names, args.against, strict=True)
    }


# What is printed -----------------------------------------------------------------------------------------------------


def _line(text: str) -> None:
    print(text, flush=True)


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for number, name in enumerate(header):
        numeric = bool(rows) and isinstance(rows[0][number], int | float)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_shown(cell)) for cell in row))
    Console().print(table)


def _shown(value: Any) -> str:
    if value is None:
        return "not recorded"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _start(text: str) -> str:
    return " ".join(text.split())[:200]


def _print_dataset(report: Mapping[str, Any]) -> None:
    _line(f"{report['dataset']}: files {report['files']}; card {report['card'][:12]}")
    for kind in ("splits", "languages"):
        counts = [(name, count["rows"], count["tokens"]) for name, count in report[kind].items()]
        _table(kind, ["", "rows", report["unit"]], counts)
    for name, source in report["sources"].items():
        teacher = f"teacher {source['teacher']} ({source['terms'] or 'terms not known'})" if source["teacher"] else ""
        inner = f"the dataset {source['dataset']}" if source["dataset"] else ""
        kept = f"{source['kept']['rows']:,} rows of {source['read']:,} records"
        licence = f"licence {source['licence'] or 'not recorded'}"
        _line(f"{name}: {'; '.join(filter(None, (source['location'], inner, kept, licence, teacher)))}")
    rejected = [
        (name, reason, rows)
        for name, step in report["steps"].items()
        for reason, rows in step["rejected"].items()
        if rows
    ]
    if rejected:
        _table("rejected", ["step", "reason", "rows"], rejected)
    for name, parent in report["parents"].items():
        _line(f"made from {name} ({parent['location']}, card {parent['card'][:12]}): {parent['now']}")
    _print_licences(report)


def _print_licences(report: Mapping[str, Any]) -> None:
    rows = [(kind.replace("_", " "), what) for kind, duties in report["duties"].items() for what in duties]
    _table("what the licences ask for", ["duty", "of what (licences)"], rows)
    for conflict in report["conflicts"]:
        _line(f"conflict ({conflict['kind']}): {conflict['message']}")
    if not report["conflicts"]:
        _line(f"no conflict is recorded for the use {report['use']}")
    _line(NO_ADVICE)


def _print_row(row: Mapping[str, Any]) -> None:
    why = row["rejected"]
    said = f"rejected by {why['step']}: {why['reason']} ({why['detail']})" if why else f"in {row['kind']}"
    _line(f"row {row['id']} of {row['dataset']}: {said}; {row['line']}")
    for origin in row["way"]:
        _line(f"  from {origin['source']} of {origin['dataset']}: {origin['record']}")
        for label in ("licence", "teacher", "terms"):
            if (value := origin[label]) is not None:
                title = origin["titles"].get(label)
                _line(f"    {label}: {value}" + (f" ({title})" if title else ""))
        for name, value in origin["columns"].items():
            _line(f"    {name}: {json.dumps(value, ensure_ascii=False)}")
    _line(f"  {_start(row['text'])}")


def _print_leaks(report: Mapping[str, Any]) -> None:
    splits = report["rows"]
    rows = [
        (name, each["items"], *(each["leaked"][split] for split in splits), each["unchecked"])
        for name, each in report["sets"].items()
    ]
    header = ["evaluation set", "items", *(f"leaked in {split}" for split in splits), "too short to check"]
    _table(", ".join(f"{count:,} rows in {split}" for split, count in splits.items()), header, rows)
    for item in report["leaked"]:
        first = item["found"][0]
        such = f"such as {first['row']} in {first['split']}: {_start(first['ngram'])}"
        _line(f"{item['set']} {item['item']}: {item['rows']} rows, {such}")


def _print_run(report: Mapping[str, Any]) -> None:
    _line(f"{report['run']}: {report['recipe']}, {report['steps']:,} of {report['total_steps']:,} steps")
    if report["unknown"]:
        _line(f"tokens by source are not known: {report['unknown']}")
    else:
        rows = [(s["source"], s["tokens"], s["trained"], f"{s['share']:.2%}", s["epochs"]) for s in report["sources"]]
        _table("tokens so far", ["source", "tokens", "trained on", "share of those", "epochs"], rows)
    for name, dataset in report["datasets"].items():
        card = f"card {dataset['card'][:12]}" if dataset["card"] else "no card"
        _line(f"{name}: {dataset['location']}, {card}: {dataset['now']}")
    if not report["datasets"]:
        _line("no source is a dataset with a card, so no licence is recorded")
        return
    if any(dataset["now"] != "the same" for dataset in report["datasets"].values()):
        _line("what follows is said by the cards as they are now, not as they were when the run began")
    _print_licences(report)
