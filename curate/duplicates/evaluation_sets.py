"""Questions and answers of evaluation sets, from files of any format that `data/` reads, and of questions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from ...data.files import file_rows, find_files
from ...data.formats import parse, unfold
from ...errors import UserError, shown
from ...settings.leaves import Path, Unset

QUESTIONS = ("question", "turns", "problem", "query", "goal", "Question", "Problem")
ANSWERS = (
    *("answer", "answers", "solution", "choices", "options", "target", "targets", "reference", "canonical_solution"),
    *("best_answer", "correct_answer", "correct_answers", "Answer", "Solution"),
)
"""Fields that hold questions and answers in public evaluation sets, such as GSM8K, MATH, MMLU, ARC and MT-bench."""


@dataclass(frozen=True)
class EvaluationSet:
    """The files of an evaluation set, and where its questions and answers stand in them."""

    source: Path
    """A path, glob or folder of files that `data/` reads: JSON, JSON lines, Parquet or text."""

    question: Annotated[list[str] | None, Unset("the known fields")] = None
    """The fields that hold questions: a string, or a list with a question for each turn."""

    answer: Annotated[list[str] | None, Unset("the known fields")] = None
    """The fields that hold answers: a string, or a list such as choices."""


class Item(NamedTuple):
    """An item of an evaluation set."""

    set: str
    """Name of the set."""

    place: str
    """File name and line or number, without the folder, such as "gsm8k_test.jsonl:7"."""

    questions: list[str]
    """Its questions: one, or one for each turn."""

    answers: list[str]
    """Its answers, if it has any."""


def items_of(name: str, chosen: EvaluationSet) -> Iterator[Item]:
    """The items of an evaluation set in the order of its files.

    The fields that the set names hold questions and answers. Without names, the user's turns of a record that `data/`
    can parse are its questions and the assistant's its answers. Of other records, fields in QUESTIONS and ANSWERS are.

    Raises:
      UserError: a file cannot be read, a record has no question, or there is no record.
    """
    count = 0
    for file in find_files(chosen.source):
        folder = f"{file.parent}/"
        for place, raw in file_rows([file]):
            for number, one in enumerate(instances := unfold(raw), 1):
                where = f"{place}, instance {number}" if len(instances) > 1 else place
                if isinstance(one, ValueError):
                    raise UserError(f"{where}: {one}")
                questions, answers = _texts(one, chosen)
                if not questions:
                    raise UserError(f"{where}: no question in {shown(one)}; name its field, as in question=['text']")
                count += 1
                yield Item(name, where.removeprefix(folder), questions, answers)
    if not count:
        raise UserError(f"{chosen.source}: no questions in these files")


def _texts(raw: Any, chosen: EvaluationSet) -> tuple[list[str], list[str]]:
    """The questions and the answers of a raw record."""
    if not isinstance(raw, Mapping):
        return [], []
    questions, answers = [], _fields(raw, chosen.answer or ANSWERS)
    if chosen.question:
        questions = [text for name in chosen.question for text in _strings(raw.get(name))]
    else:
        try:
            record = parse(raw)
        except ValueError:
            questions = [text for name in QUESTIONS for text in _strings(raw.get(name))]
        else:
            questions, parsed = _of_record(record)
            answers += [] if chosen.answer else parsed
    return [text for text in questions if text.strip()], list(dict.fromkeys(text for text in answers if text.strip()))


def _of_record(record: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The questions and answers of a parsed record; a text is a question."""
    if record["kind"] == "text":
        return [record["text"]], []
    sides = [record[side] for side in ("chosen", "rejected") if side in record]
    turns = [*record["messages"], *(turn for side in sides for turn in (side if isinstance(side, list) else [side]))]
    texts = [(turn["role"], "\n".join(_strings([turn.get("content"), turn.get("input")]))) for turn in turns]
    return [text for role, text in texts if role == "user"], [text for role, text in texts if role == "assistant"]


def _fields(raw: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The text of each field, the strings of a list one below the other."""
    return ["\n".join(_strings(raw[name])) for name in names if name in raw]


def _strings(value: Any) -> list[str]:
    """All strings and numbers in a value of JSON, as strings."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for each in value.values() for text in _strings(each)]
    if isinstance(value, list | tuple):
        return [text for each in value for text in _strings(each)]
    return [] if value is None or isinstance(value, bool) else [str(value)]
