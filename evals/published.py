"""Reads judgments and votes that others published, tells their kind by the fields of each record, and sums them up.

    FastChat's reviews of 2023      score: [a, b], text, answer1_id, answer2_id; the models are in the file's name,
                                    review_A_B.jsonl
    MT-bench, single                model, judge, judgment, score, turn
    MT-bench, pairs                 model_1, model_2, g1_winner, g2_winner, g1_judgment, g2_judgment: one in each order
    AlpacaEval                      output_1, output_2, generator_1, generator_2, annotator, preference from 1 to 2
    Arena-Hard                      model, judge, games, each with a score such as "A>>B": one in each order
    votes and battles               model_a, model_b, winner: Chatbot Arena, and Arena-Hard's battles

Files are JSON, JSON lines or Parquet, also with .gz. A verdict that is missing in a record is missing in its judgment.
So is a score that is not on the scale of its kind: 0 to 10 in FastChat's reviews, 1 to 10 in MT-bench.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..data.files import file_rows, find_files
from ..errors import UserError, shown
from . import intervals, verdicts
from .intervals import Estimate
from .judgments import LARGEST, Judgment, Winner, higher
from .ratings import Battle

ARENA_HARD_BASELINES = {
    "": "gpt-4-0314",  # version 0.1, which has no categories
    "hard_prompt": "o3-mini-2025-01-31",
    "coding": "o3-mini-2025-01-31",
    "math": "o3-mini-2025-01-31",
    "creative_writing": "gemini-2.0-flash-001",
}
"""The models that Arena-Hard compares with, by category, for records that do not name theirs."""


REVIEWER = "gpt-4-0328"
"""The judge of FastChat's reviews of 2023. The three reviewer ids of records are its prompts for general questions,
code and maths (FastChat's reviewer.jsonl)."""


class Totals(NamedTuple):
    """The sums of the scores of pairs of answers."""

    first: float
    """Sum of the scores of the first model."""

    second: float
    """Sum of the scores of the second model."""

    ratio: Estimate
    """second / first, with its 95% interval over questions."""

    failed: int
    """Judgments without scores, which are in no sum."""


def read(
    path: str, *, questions: str | None = None, baseline: str | None = None, anonymous: bool = True
) -> Iterator[Judgment]:
    """The judgments of published files, in the order of the files.

    Pairs of a model with itself are left out.

    Args:
      path: a file, a glob or a folder, local or gs://.
      questions: a file of questions {"question_id", "category"}, which names the categories of records that have none.
      baseline: the model that Arena-Hard's judgments compare with, where records do not name theirs. None: that of
        `ARENA_HARD_BASELINES`.
      anonymous: leaves out votes of Chatbot Arena by people who saw the names of the models, as its ratings do.

    Raises:
      UserError: a file cannot be read, or a record is of no kind that is known, or malformed: its place is named.
    """
    categories = {} if questions is None else _categories(questions)
    for where, record in file_rows(find_files(str(path))):
        if isinstance(record, ValueError):
            raise UserError(f"{where}: {record}") from record
        if not isinstance(record, dict):
            raise UserError(f"{where}: {shown(record)} is no record; give an object with the fields of a judgment")
        if (anonymous and record.get("anony") is False) or _is_of_one_model(record):
            continue
        parse = next((parse for fields, parse in _KINDS if fields <= record.keys()), None)
        if parse is None:
            kinds = "; ".join(", ".join(sorted(fields)) for fields, _ in _KINDS)
            raise UserError(f"{where}: no known judgment has the fields {', '.join(record)}; known are {kinds}")
        if parse is _arena_hard and baseline is not None:
            record = {"baseline": baseline} | record
        try:
            found = parse(record, where)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as problem:
            raise UserError(f"{where}: {_said(problem)}") from problem
        for judgment in found:
            yield judgment if judgment.category else replace(judgment, category=categories.get(judgment.question, ""))


def _is_of_one_model(record: dict) -> bool:
    """Whether a pair's answers are both of one model, which says nothing of it; published battles have such."""
    names = (("model_a", "model_b"), ("model_1", "model_2"), ("generator_1", "generator_2"))
    return any(a in record and record[a] == record.get(b) for a, b in names)


def totals(judgments: Iterable[Judgment]) -> dict[str, Totals]:
    """The sums of scores of pairs by category, as FastChat's blog post of March 2023 shows them; "" is over all.

    The ratio is what "92% of ChatGPT's quality" meant: sums over all questions, not a share of wins.

    Args:
      judgments: scored pairs of the same two models, in the same order.

    Raises:
      UserError: there are none with scores, one is no pair, or models or their order differ.
    """
    found: dict[str, list[Judgment]] = {"": []}
    models = None
    for judgment in judgments:
        models = models or judgment.models
        if not judgment.is_pair or judgment.models != models:
            differs = f"{' and '.join(judgment.models)} after {' and '.join(models)}"
            raise UserError(f"question {judgment.question} has {differs}: give scored pairs of the same two models")
        for group in {"", judgment.category}:
            found.setdefault(group, []).append(judgment)
    return {group: _sum(group, each) for group, each in found.items()}


def _sum(group: str, judgments: list[Judgment]) -> Totals:
    scored = [judgment for judgment in judgments if judgment.scores is not None]
    if not scored:
        raise UserError(f"{group or 'the judgments'}: there are no scores to sum up")
    first, second = zip(*(judgment.scores for judgment in scored), strict=True)
    ratio = intervals.ratio(second, first, [judgment.question for judgment in scored])
    return Totals(sum(first), sum(second), ratio, len(judgments) - len(scored))


def battles(judgments: Iterable[Judgment], *, join: bool = True, decisive: int = 1) -> list[Battle]:
    """Battles for `ratings.py` from judgments of pairs; those that failed are none.

    Args:
      judgments: judgments of pairs.
      join: makes one battle of the two orders of a pair, for the same question, turn and judge: a verdict that flips
        with the order is a tie, and if one of the two failed there is no battle. False: each judgment is a battle.
      decisive: number of battles that a win counts as if the judge wrote [[A>>B]] or [[B>>A]], in both orders where
        they are joined; Arena-Hard takes 3, with join=False.

    Raises:
      UserError: a judgment is of a single answer.
    """
    return [battle for battle, _ in battles_and_questions(judgments, join=join, decisive=decisive)]


def battles_and_questions(
    judgments: Iterable[Judgment], *, join: bool = True, decisive: int = 1
) -> list[tuple[Battle, str]]:
    """Battles as `battles` makes them, each with its question: the cluster for intervals of ratings."""
    games: dict[tuple, tuple[list[Judgment], list[Judgment]]] = {}
    for number, judgment in enumerate(judgments):
        if not judgment.is_pair:
            raise UserError(f"question {judgment.question}: the judgment of a single answer is no battle; give pairs")
        key = (judgment.question, judgment.turn, judgment.judge, frozenset(judgment.models)) if join else (number,)
        forward, backward = games.setdefault(key, ([], []))
        same = not forward or forward[0].models == judgment.models
        (forward if same else backward).append(judgment)
    found = []
    for forward, backward in games.values():
        for place in range(max(len(forward), len(backward))):
            pair = [orders[place] for orders in (forward, backward) if place < len(orders)]
            if any(judgment.winner is None for judgment in pair):
                continue
            (a, b), question = forward[0].models, pair[0].question
            won = {None if each.winner == "tie" else each.models["ab".index(each.winner)] for each in pair}
            winner: Winner = "tie" if len(won) > 1 or None in won else "a" if a in won else "b"
            strong = winner != "tie" and all(verdicts.label(each.text) in ("A>>B", "B>>A") for each in pair)
            found += [((a, b, winner), question)] * (decisive if strong else 1)
    return found


def _categories(path: str) -> dict[str, str]:
    found = {}
    for where, record in file_rows(find_files(str(path))):
        if not isinstance(record, dict) or "question_id" not in record or "category" not in record:
            raise UserError(f"{where}: a question needs the fields question_id and category")
        try:
            found[_question(record)] = str(record["category"])
        except ValueError as problem:
            raise UserError(f"{where}: {problem}") from problem
    return found


def _said(problem: Exception) -> str:
    if isinstance(problem, KeyError):
        return f"the field {problem.args[0]} is missing"
    return str(problem).splitlines()[0] if isinstance(problem, ValueError) else f"the record is malformed: {problem}"


def _name(value: object, field: str) -> str:
    """The name of a model or judge; a judge may be a pair of its name and its prompt's."""
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, str) or not value:
        raise ValueError(f"{field} is {shown(value)}: it must be a name")
    return value


def _number(value: object, field: str) -> float | None:
    """A number; None for a missing one, null or NaN."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{field} is {shown(value)}: it must be a number")
    if abs(value) > LARGEST:
        raise ValueError(f"{field} is {shown(value)}: it must be a number of a usual size")
    return None if math.isnan(value) else float(value)


def _score(value: object, field: str, low: float) -> float | None:
    """A score from `low` to 10; None for -1, which says that a verdict could not be read, and for one out of range."""
    score = _number(value, field)
    return score if score is not None and low <= score <= 10 else None


def _question(record: Mapping, field: str = "question_id") -> str:
    """The id of a question, a text or a whole number."""
    value = record[field]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{field} is {shown(value)}: it must be a text or a whole number")
    return str(value)


def _turn(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value != int(value):
        raise ValueError(f"turn is {shown(value)}: it must be a whole number")
    return int(value)


def _of(value: object, winners: Mapping[str, Winner | None], field: str) -> Winner | None:
    if not isinstance(value, str) or value not in winners:
        raise ValueError(f"{field} is {shown(value)}: it must be one of {', '.join(winners)}")
    return winners[value]


def _review(record: dict, where: str) -> list[Judgment]:
    name = Path(re.sub(r"(:\d+|, record \d+)$", "", where)).name
    match = re.fullmatch(r"(?:(.+?)_)?review_([^_]+)_(.+?)\.(?:jsonl?|ndjson|parquet)(?:\.gz)?", name)
    if match is None:
        raise ValueError("reviews name their models only in the file's name: rename the file to review_A_B.jsonl")
    if not isinstance(record["score"], list) or len(record["score"]) != 2:
        raise ValueError(f"score is {shown(record['score'])}: it must be two numbers")
    scores = tuple(_score(score, "score", 0) for score in record["score"])
    failed = None in scores
    return [
        Judgment(
            _question(record),
            (match[2], match[3]),
            match[1] or REVIEWER,
            None if failed else scores,
            None if failed else higher(*scores),
            text=str(record["text"] or ""),
        )
    ]


def _single(record: dict, where: str) -> list[Judgment]:
    score, model, judge = (
        _score(record["score"], "score", 1),
        _name(record["model"], "model"),
        _name(record["judge"], "judge"),
    )
    scores = None if score is None else (score,)
    return [Judgment(_question(record), (model,), judge, scores, turn=_turn(record["turn"]), text=record["judgment"])]


def _pair(record: dict, where: str) -> list[Judgment]:
    models = _name(record["model_1"], "model_1"), _name(record["model_2"], "model_2")
    common = dict(question=_question(record), judge=_name(record["judge"], "judge"), turn=_turn(record.get("turn", 1)))
    if "m1_score" in record:  # two answers that were graded one by one
        scores = [_score(record[f"m{place}_score"], f"m{place}_score", 1) for place in (1, 2)]
        return [
            Judgment(models=(model,), scores=None if score is None else (score,), text=text, **common)
            for model, score, text in zip(models, scores, (record["g1_judgment"], record["g2_judgment"]), strict=True)
        ]
    first = _of(record["g1_winner"], {"model_1": "a", "model_2": "b", "tie": "tie", "error": None}, "g1_winner")
    second = _of(record["g2_winner"], {"model_1": "b", "model_2": "a", "tie": "tie", "error": None}, "g2_winner")
    return [
        Judgment(models=models, winner=first, text=record["g1_judgment"], **common),
        Judgment(models=models[::-1], winner=second, text=record["g2_judgment"], **common),
    ]


def _alpaca(record: dict, where: str) -> list[Judgment]:
    preference = _number(record["preference"], "preference")
    preference = {0.0: 1.5, -1.0: None}.get(preference, preference)  # older files write 0 for a tie
    if preference is not None and not 1 <= preference <= 2:
        raise ValueError(f"preference is {preference}: it must be from 1 to 2, or 0 for a tie")
    weight = None if preference is None else preference - 1
    raw = record.get("raw_completion")
    return [
        Judgment(
            record["instruction"],
            (_name(record["generator_1"], "generator_1"), _name(record["generator_2"], "generator_2")),
            _name(record["annotator"], "annotator"),
            winner=None if weight is None else higher(0.5, weight),
            category=record.get("dataset") or "",
            lengths=(len(record["output_1"]), len(record["output_2"])),
            text=str((raw.get("text") if isinstance(raw, dict) else raw) or ""),
            weight=weight,
        )
    ]


def _arena_hard(record: dict, where: str) -> list[Judgment]:
    category = record.get("category") or ""
    baseline = record.get("baseline") or ARENA_HARD_BASELINES.get(category)
    if baseline is None:
        raise ValueError(f"the record names no baseline, and none is known for the category {category}")
    model = _name(record["model"], "model")
    found = []
    for game, models in zip(record["games"], ((baseline, model), (model, baseline)), strict=False):
        game = game or {"score": None, "judgment": ""}  # null: the request failed
        text = game["judgment"]
        text = text["answer"] if isinstance(text, dict) else text
        winner = None if game["score"] is None else verdicts.winner(f"[[{game['score']}]]")
        if winner is None and game["score"] is not None:
            raise ValueError(f"score is {shown(game['score'])}: it must be a label such as A>>B")
        question = _question(record, "question_id" if "question_id" in record else "uid")
        found.append(
            Judgment(question, models, _name(record["judge"], "judge"), None, winner, category, text=text or "")
        )
    return found


_VOTES: dict[str, Winner] = dict(model_a="a", model_b="b", tie="tie", both_bad="tie") | {"tie (bothbad)": "tie"}


def _vote(record: dict, where: str) -> list[Judgment]:
    models = _name(record["model_a"], "model_a"), _name(record["model_b"], "model_b")
    question = next((str(record[name]) for name in ("question_id", "id") if record.get(name) is not None), where)
    category = record.get("category")
    return [
        Judgment(
            question,
            models,
            str(record.get("judge", "")),
            winner=_of(record["winner"], _VOTES, "winner"),
            category=category if isinstance(category, str) else "",
        )
    ]


_KINDS: tuple[tuple[frozenset[str], Callable[[dict, str], list[Judgment]]], ...] = (
    (frozenset({"score", "text", "answer1_id", "answer2_id"}), _review),
    (frozenset({"model", "judge", "games"}), _arena_hard),
    (frozenset({"model_1", "model_2", "g1_winner", "g2_winner"}), _pair),
    (frozenset({"model", "judge", "judgment", "score", "turn"}), _single),
    (frozenset({"generator_1", "generator_2", "output_1", "output_2", "preference"}), _alpaca),
    (frozenset({"model_a", "model_b", "winner"}), _vote),
)
