"""Records in the formats of other programs. What a format cannot hold is refused, never dropped.

The parsers of `data/formats.py` are the judge: a record is written in a format only if they read the same record back.
"""

from collections.abc import Mapping
from typing import Any

from ..data.formats import parse
from ..errors import UserError
from .rows import Row

OWN = ("source", "place", "given")
"""Fields of "meta" that are no columns."""


def final_record(row: Row, form: str = "camelid") -> dict[str, Any]:
    """The object that stands in the files of a dataset: the record with the row's id and columns.

    It is `record | {"id", "meta": {"source", "place", "given": other fields of the raw record, **columns}}`.

    Args:
      row: the row. Its record is parsed.
      form: "camelid", "alpaca", "sharegpt" or "openai".

    Raises:
      UserError: the format cannot hold the record.
    """
    record = {name: value for name, value in row.record.items() if name not in ("meta", "id")}
    given = {"given": row.record["meta"]} if row.record.get("meta") else {}
    if taken := [name for name in OWN if name in row.columns]:
        raise UserError(f"row {row.id} ({row.place}) has a column {taken[0]}: a step has to give it another name")
    meta = {"source": row.source, "place": row.place, **given, **row.columns}
    return {**_in_form(record, form, row), "id": row.id, "meta": meta}


def _in_form(record: dict[str, Any], form: str, row: Row) -> dict[str, Any]:
    if form == "camelid":
        return record
    try:
        written = {"alpaca": _alpaca, "sharegpt": _sharegpt, "openai": _openai}[form](record)
        if parse(written, form) == record:
            return written
        problem = "it would be read back with other turns or fields"
    except (ValueError, LookupError, TypeError) as error:
        problem = str(error) or type(error).__name__
    raise UserError(
        f"row {row.id} ({row.place}): the format {form} cannot hold this {record.get('kind')} record ({problem}): "
        "write camelid's own format, or leave such records out"
    )


def _further(record: Mapping[str, Any], *taken: str) -> dict[str, Any]:
    """The fields of a record, such as its label or tools, that formats share."""
    return {name: value for name, value in record.items() if name not in ("kind", "messages", *taken)}


def _turns(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "messages" not in record:
        raise ValueError("it has no turns")
    return list(record["messages"])


def _alpaca(record: Mapping[str, Any]) -> dict[str, Any]:
    """{"system"?, "history"?, "instruction", "input", "output"}, or "chosen" and "rejected" in place of "output"."""
    turns = _turns(record)
    system = {"system": turns.pop(0)["content"]} if turns[0]["role"] == "system" else {}
    answer = {"output": turns.pop()["content"]} if record["kind"] == "chat" else {}
    sides = {side: _only(record[side])["content"] for side in ("chosen", "rejected") if side in record}
    if not answer and not sides:
        raise ValueError("it has no answer")
    question, before = turns[-1], turns[:-1]
    pairs = [[user["content"], reply["content"]] for user, reply in zip(before[::2], before[1::2], strict=True)]
    history = {"history": pairs} if pairs else {}
    asked = {"instruction": question["content"], "input": question.get("input", "")}
    return {**system, **history, **asked, **answer, **sides, **_further(record, "chosen", "rejected")}


def _sharegpt(record: Mapping[str, Any]) -> dict[str, Any]:
    """{"conversations": [{"from", "value"}], "system"?}, with "chosen" and "rejected" turns in a preference."""
    turns = _turns(record)
    system = {"system": turns.pop(0)["content"]} if turns[0]["role"] == "system" else {}
    sides = {side: _spoken(_only(record[side])) for side in ("chosen", "rejected") if side in record}
    return {"conversations": [*map(_spoken, turns)], **system, **sides, **_further(record, "chosen", "rejected")}


def _spoken(message: Mapping[str, Any]) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt", "tool": "observation"}
    further = {name: value for name, value in message.items() if name not in ("role", "content")}
    return {"from": names[message["role"]], "value": message["content"], **further}


def _openai(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"messages": _turns(record), **_further(record)}


def _only(answer: Any) -> Mapping[str, Any]:
    """The answer of a side that has one message."""
    messages = answer if isinstance(answer, list) else [answer]
    if len(messages) != 1:
        raise ValueError("an answer has several turns")
    return messages[0]
