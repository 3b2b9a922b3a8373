"""Names of columns: which column of a table is which field of a format, by a map or by well-known names.

    columns={"instruction": "question", "output": "answer"}      Alpaca's fields, from the columns of a table

The keys of a map are fields of a format (`formats.FORMATS`), its values the names that the records have.
"""

from collections.abc import Iterable, Mapping

from ..errors import UserError, did_you_mean, shown

QUESTION = ("question", "Question", "QUESTION", "questions", "Questions", "QUESTIONS", "问题", "提问", "問題")
ANSWER = ("answer", "Answer", "ANSWER", "answers", "Answers", "ANSWERS", "答案", "回答", "解答")
CONTEXT = ("context", "Context", "CONTEXT", "上下文", "背景")
"""Names of the fields of a question with its answer, in English and Chinese. Of several, the first is preferred."""

SHORT_QUESTION, SHORT_ANSWER = ("Q", "q", "问"), ("A", "a", "答")
"""Further names, which count in a record without a column B: beside it, A is one of several choices."""


def field_of(raw: Mapping, names: Iterable[str]) -> str | None:
    """The first of several names that a record has; None if it has none of them."""
    for name in names:  # a loop, as a generator takes several times as long for so few names
        if name in raw:
            return name
    return None


def qa_columns(raw: Mapping) -> tuple[str | None, str | None, str | None]:
    """The names under which a record has a question, its answer and its context; None for what it lacks."""
    question, answer = field_of(raw, QUESTION), field_of(raw, ANSWER)
    if "B" not in raw and "b" not in raw:
        question, answer = question or field_of(raw, SHORT_QUESTION), answer or field_of(raw, SHORT_ANSWER)
    return question, answer, field_of(raw, CONTEXT)


def check_columns(columns: Mapping[str, str], fields: Iterable[str]) -> None:
    """Raises UserError if a key of a map is none of `fields`, a value is no name of a column, or one is named twice."""
    fields, seen = sorted(fields), {}
    for field, column in columns.items():
        if field not in fields:
            near = did_you_mean(str(field), fields)
            raise UserError(f"columns: there is no field {shown(field)}{near}; the keys are fields of a format")
        if not isinstance(column, str) or not column:
            raise UserError(f"columns.{field} is {shown(column)}: give the name of a column")
        if (other := seen.setdefault(column, field)) != field:
            raise UserError(f"columns.{other} and columns.{field} are both {shown(column)}: give each its own column")


def rename(raw: Mapping, columns: Mapping[str, str]) -> dict:
    """The record with its columns under the names of fields.

    A column that the record lacks is left out. A mapped field takes the place of a column that has its name by chance.
    """
    rest = {name: value for name, value in raw.items() if name not in columns and name not in columns.values()}
    return rest | {field: raw[column] for field, column in columns.items() if column in raw}


def absent(columns: Mapping[str, str], raw: Mapping) -> str:
    """A clause for a message: the first column of a map that a record lacks, and those it has; "" if it lacks none."""
    missing = next((column for column in columns.values() if column not in raw), None)
    if missing is None:
        return ""
    there = ", ".join(map(str, [*raw][:20])) or "no other"
    return f"there is no value in the column {shown(missing)} of the map{did_you_mean(missing, raw)}; it has {there}"
