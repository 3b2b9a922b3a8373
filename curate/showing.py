"""Examples of what each step of a config changes or drops, on a sample of its rows, for people who set the steps."""

import difflib
import heapq
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..data.formats import parse
from .applying import Result, call_step, decisions, is_change
from .conversations.repair import turns_of
from .rows import Rejected, Row, Step
from .settings import CurateConfig, is_whole, named_steps, source_of
from .stages import raw_records, row_of

T = TypeVar("T")

_LINES, _WIDTH, _BEFORE = 16, 300, 40
"""Lines of an example that are printed, characters of a line, and of these before a change."""


@dataclass
class Seen:
    """What a step did to the rows of a sample."""

    name: str
    came: int = 0
    changed: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[Row, Result]] = field(default_factory=list)
    """Rows before the step, and what it made of them: up to a number of changed ones and of each reason."""

    def add(self, step: Step, row: Row, result: Result, most: int) -> None:
        """Counts a row, and keeps it with what the step made of it if there are fewer than `most` of its kind."""
        self.came += 1
        if isinstance(result, Rejected):
            self.rejected[result.reason] += 1
            number = self.rejected[result.reason]
        elif is_change(step, row, result):
            self.changed += 1
            number = self.changed
        else:
            return
        if number <= most:
            self.examples.append((row, result))


@dataclass(frozen=True)
class _SampleRows:
    """The rows of a sample, for a step that needs to see all rows (`rows.Rows`)."""

    rows: list[Row]
    folder: Path
    workers: int = 1

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def map(self, function: Callable[[Iterator[Row]], T]) -> Iterator[T]:
        return iter([function(iter(self.rows))])


def sample_of(config: CurateConfig, size: int) -> list[Row]:
    """The rows with the smallest ids, in their order: a sample drawn by a hash. Records that cannot be read are left
    out. All input is read. Raises UserError for a source that is not there."""
    found: dict[str, Row] = {}
    heap: list[tuple[int, str]] = []
    for source in (source_of(config, name) for name in sorted(config.sources)):
        for place, raw in raw_records(source):
            if not isinstance(raw, dict) or (id := (row := row_of(source, place, raw)).id) in found:
                continue
            if len(heap) < size:
                heapq.heappush(heap, (-int(id, 16), id))
            elif -int(id, 16) > heap[0][0]:
                del found[heapq.heapreplace(heap, (-int(id, 16), id))[1]]
            else:
                continue
            found[id] = row
    return [found[id] for id in sorted(found)]


def steps_on(rows: Iterable[Row], steps: Iterable[tuple[str, Any]], most: int) -> Iterator[Seen]:
    """What each step does to rows that fit into memory, one step after the other.

    Args:
      rows: the rows.
      steps: names and steps.
      most: number of examples of changed rows, and of each reason.
    """
    rows = list(rows)
    for name, step in steps:
        seen, following = Seen(name), []
        if is_whole(step):
            with tempfile.TemporaryDirectory() as folder:
                decided = dict(decisions(name, step, _SampleRows(rows, Path(folder))))
        for row in rows:
            result = decided.get(row.id, row) if is_whole(step) else call_step(name, step, row)
            seen.add(step, row, result, most)
            if not isinstance(result, Rejected):
                following += [result] if isinstance(result, Row) else result
        rows = sorted(following, key=lambda row: row.id)
        yield seen


def examples_of(config: CurateConfig, size: int, most: int) -> Iterator[Any]:
    """Each step with its counts on a sample of `size` rows and up to `most` examples of each kind, for the terminal."""
    from rich.text import Text

    rows = sample_of(config, size)
    yield Text(f"{len(rows):,} rows of the sources, drawn by a hash")
    for seen in steps_on(rows, named_steps(config), most):
        counts = ", ".join(f"{number:,} {reason}" for reason, number in sorted(seen.rejected.items()))
        dropped = f"{seen.rejected.total():,} dropped{f' ({counts})' if counts else ''}"
        yield Text(f"\n{seen.name}: {seen.came:,} rows, {seen.changed:,} changed, {dropped}", style="bold")
        for row, result in seen.examples:
            yield _drawn(row, result)


def _drawn(row: Row, result: Result):
    """An example as text for the terminal."""
    from rich.text import Text

    drawn = Text(f"  {row.id} {row.place}", style="cyan")
    if isinstance(result, Rejected):
        drawn.append(f": {result.reason}{f' ({result.detail})' if result.detail else ''}", style="red")
        lines = [("", line) for line in written(row.record)]
    else:
        after = [result] if isinstance(result, Row) else result
        news = {name: value for each in after[:1] for name, value in each.columns.items() if name not in row.columns}
        drawn.append("".join(f" {name}={value}" for name, value in news.items()), style="dim")
        lines = list(_difference(row.record, [each.record for each in after]))
    styles = {"-": "red", "+": "green", "@": "dim"}
    for mark, line in lines[:_LINES]:
        text = line if len(line) <= _WIDTH else f"{line[:_WIDTH]} ... ({len(line):,} characters)"
        drawn.append(f"\n    {mark}{text}", style=styles.get(mark, ""))
    if len(lines) > _LINES:
        drawn.append(f"\n    ... ({len(lines) - _LINES:,} further lines)", style="dim")
    return drawn


def _difference(before: Mapping[str, Any], after: list[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """The lines that differ between a record and those made of it: pairs of a mark, one of " -+", and a line.

    A line that is changed far from its beginning is shown from a few characters before the change.
    """
    old, new = written(before), written(after[0])
    for number, record in enumerate(after[1:], 2):
        new += [f"=== part {number}", *written(record)]
    for kind, i, i_end, j, j_end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            yield from ((" ", line) for line in old[i_end - 1 : i_end if i_end < len(old) else i])
            continue
        pairs = itertools.zip_longest(old[i:i_end], new[j:j_end], fillvalue="")
        starts = [max(0, _common(*pair) - _BEFORE) for pair in pairs]
        for mark, lines in (("-", old[i:i_end]), ("+", new[j:j_end])):
            for line, start in zip(lines, starts, strict=False):
                yield mark, f"... {line[start:]}" if start else line


def _common(one: str, other: str) -> int:
    """Number of characters with which both texts begin."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def written(record: Mapping[str, Any]) -> list[str]:
    """A record as lines that people read: turns below their roles. Raw records without turns are shown as JSON."""
    if "kind" not in record:
        try:
            record = parse(dict(record))
        except ValueError:
            turns = turns_of(record)
            record = {"kind": "raw", "messages": turns} if turns else record
    if record.get("kind") == "text":
        return record["text"].splitlines()
    if not record.get("messages"):
        return json.dumps(record, ensure_ascii=False, indent=1).splitlines()
    lines = []
    for side, messages in (("", record["messages"]), *((s, record[s]) for s in ("chosen", "rejected") if s in record)):
        for message in messages if isinstance(messages, list) else [messages]:
            lines.append(f"[{side or message['role']}]")
            lines += [line for name in ("content", "input") for line in (message.get(name) or "").splitlines()]
            lines += [f"{k}: {v}" for k, v in message.items() if k not in ("role", "content", "input")]
    shown = ("kind", "messages", "chosen", "rejected", "meta")
    return lines + [f"{name}: {value}" for name, value in record.items() if name not in shown]
