"""Self-instruct: a teacher continues a list of tasks, and what is new and can be done by a model of text is kept.

    made = instruct(settings, asker)
    write_dataset(output, made.rows, made.rejected, about(made, settings, asker.name))      # instruct_report.py

Sources: self-instruct (Wang et al., arXiv:2212.10560), Stanford Alpaca, InstructionWild. The work goes in rounds, whose
requests are asked together. Each request shows examples that are drawn by (seed, language, round, number) from the
seeds and the tasks that earlier rounds kept. So the whole run follows from the settings and the replies. With the
replies in a journal, a run that was killed anywhere comes to the same end.

Each task in an answer is kept, or rejected by one of these steps:

    answer     it could not be read (`instruct_parsing.REASONS`)
    filters    rules for one task (`instruct_filters.Filters`)
    ...        the steps that the settings name
    novelty    similar: its ROUGE-L with a seed or an earlier instruction that is not dropped is above the threshold
    rows       enough: as many rows as wanted were kept before it
"""

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from ...data.formats import parse
from ...data.licences import check_name
from ...errors import UserError
from ...serve.journal import Asker, Reply, Request
from ...settings.leaves import Count, NotNegative, OneOf, Path, Share, Unset, Whole
from ..applying import apply_steps
from ..rows import LANGUAGE, Rejected, Row, id_of
from ..settings import is_whole
from ..steps import make
from .candidates import Counting
from .candidates import Made as MadeRows
from .instruct_filters import Filters
from .instruct_parsing import Candidate, parse_answer, parse_instance, parse_instructions, parse_tasks
from .instruct_prompts import Prompts
from .novelty import Novelty, Similar
from .rouge import rouge_words
from .seeds import LANGUAGES, Task, read_seeds

ANSWER, FILTERS, NOVELTY, ROWS = "answer", "filters", "novelty", "rows"
"""Names of the steps that reject tasks."""

FEWEST = 8
"""Requests of the smallest round, unless `round_requests` is smaller."""


@dataclass(frozen=True)
class Wanted:
    """What is wanted in a language."""

    seeds: Path
    """Path, glob or folder of the seed tasks (`seeds.read_seeds`)."""

    rows: Count
    """Number of tasks to keep."""

    licence: Annotated[str | None, Unset("no recorded licence")] = None
    """Name of the licence of the rows, for the card (`data/licences.toml`)."""

    def check(self, where: str) -> None:
        check_name(self.licence, f"{where}.licence")


@dataclass(frozen=True)
class Instruct:
    """How tasks are made by self-instruct."""

    name: str = "instructions"
    """Name of the dataset on its card."""

    languages: dict[str, Wanted] = field(default_factory=dict)
    """What is wanted in each language, "en" and "zh"."""

    method: Annotated[str, OneOf("alpaca", "self_instruct", "instruction_wild")] = "alpaca"
    """alpaca: each request brings whole tasks. self_instruct: each request brings instructions, and a further request
    for each new one brings its input and output. instruction_wild: each request brings instructions without an input,
    and the teacher answers each new one as it stands."""

    shown_seeds: Count = 3
    """Seeds that a request shows; 3 in Alpaca, 5 in InstructionWild, 6 in self-instruct. A language with fewer seeds
    shows all of them."""

    shown_kept: Whole = 0
    """Tasks kept in earlier rounds that a request shows; 0 in Alpaca, 2 in self-instruct."""

    tasks: Count = 17
    """Tasks that a request asks for; 17 in Alpaca, whose list ends with number 20."""

    round_requests: Count = 64
    """Requests in each round and language. The last rounds have fewer: as many as ask for twice the tasks that are
    wanted yet, and at least FEWEST."""

    requests: Annotated[int | None, Unset("no limit")] = None
    """The most requests for lists of tasks, in all languages. Requests for the rest of a task are not among them."""

    least_share: Share = 0.02
    """Share of the tasks in a round that have to be kept. After a round with fewer, the language ends."""

    threshold: Share = 0.7
    """The highest ROUGE-L of a kept task's instruction with a seed or another one; 0.7 in self-instruct and Alpaca."""

    seed: Whole = 0
    """Seed by which examples are drawn."""

    temperature: NotNegative = 1.0
    """Temperature of the answers; 1 in Alpaca."""

    max_tokens: Count = 3072
    """The most tokens of an answer; 3,072 in Alpaca."""

    prompts: Annotated[str | None, Unset("the project's own prompts")] = None
    """Folder with prompts of one's own (`instruct_prompts.Prompts`)."""

    filters: Filters = Filters()
    """Rules by which a task is dropped."""

    steps: list[str] = field(default_factory=list)
    """Steps from row to row (`curate/steps.py`, or a class "package.module:Name") that tasks pass after the filters,
    such as language, refusals, personal_data, heldout, or a check of safety."""

    step: dict = field(default_factory=dict)
    """Settings of each step in `steps` by its name."""

    def check(self, where: str) -> None:
        """Raises UserError for languages that there are no prompts for, and for steps that need all rows."""
        if not self.languages:
            raise UserError(f"{where}.languages is empty: give {where}.languages.en.seeds and rows, or --seeds")
        for language in self.languages:
            if language not in LANGUAGES:
                raise UserError(f"{where}.languages.{language}: tasks can be asked for in {', '.join(LANGUAGES)}")
        if self.requests is not None and self.requests < 1:
            raise UserError(f"{where}.requests = {self.requests}: give 1 or more, or None for no limit")
        self.made_steps(where)

    def made_steps(self, where: str = "config") -> list[tuple[str, Any]]:
        """Name and step, in order. Raises UserError as `steps.make` does."""
        if unused := [name for name in self.step if name not in self.steps]:
            raise UserError(f"{where}.step.{unused[0]} does nothing: {unused[0]} is not in {where}.steps; add it there")
        found = []
        for name in self.steps:
            settings = dict(self.step.get(name, {}))
            step = make(settings.pop("use", name), settings, f"{where}.step.{name}")
            if is_whole(step):
                raise UserError(f"{where}.steps: {name} needs all rows: run it on the output with `camelid curate run`")
            found.append((name, step))
        return found


@dataclass
class Round:
    """What a round brought in a language."""

    number: int
    """Number of the round, from 1."""

    language: str
    """Language of the tasks."""

    requests: int
    """Number of requests for lists of tasks."""

    kept: int = 0
    """Number of tasks that were kept."""

    rejected: Counter[str] = field(default_factory=Counter)
    """Number of tasks that were rejected, by reason."""

    def __str__(self) -> str:
        """The counts, the commonest reason first."""
        reasons = sorted(self.rejected.items(), key=lambda item: (-item[1], item[0]))
        dropped = f"; {', '.join(f'{reason} {count:,}' for reason, count in reasons)}" if reasons else ""
        return f"{self.kept:,} of {self.kept + self.rejected.total():,} tasks kept{dropped}"


@dataclass
class Made(MadeRows):
    """The tasks that self-instruct made, the kept ones in the order in which they were kept."""

    teacher: Counting = field(kw_only=True, compare=False)
    """The teacher, with its replies."""

    rounds: list[Round] = field(default_factory=list)
    """The rounds of each language."""

    ended: dict[str, str] = field(default_factory=dict)
    """Why a language ended with fewer rows than wanted."""


def instruct(
    settings: Instruct,
    asker: Asker,
    more: Mapping[str, Any] | None = None,
    tell: Callable[[Round], None] = lambda round: None,
) -> Made:
    """Makes tasks with a teacher.

    Args:
      settings: how.
      asker: the teacher.
      more: settings of each request besides temperature and max_tokens. One that is None takes a setting out.
      tell: called with each round at its end.

    Raises:
      UserError: seeds, prompts or steps are wrong, or some requests could not be answered.
    """
    how = {"temperature": settings.temperature, "max_tokens": settings.max_tokens} | dict(more or {})
    run = _Run(settings, asker, {name: value for name, value in how.items() if value is not None})
    number = 0
    while open_ := run.open_languages():
        number += 1
        for round in run.round(number, open_):
            tell(round)
    return run.made


def source_of(language: str) -> str:
    """Name of the source of the tasks in a language, which is part of their ids."""
    return f"self-instruct.{language}"


class _Run:
    """The state of a run between rounds."""

    def __init__(self, settings: Instruct, asker: Asker, how: Mapping[str, Any]):
        self._asker = Counting(asker)
        self.made, self._settings, self._how = Made(teacher=self._asker), settings, how
        self._prompts, self._steps = Prompts(settings.prompts), settings.made_steps()
        self._novelty, self._names = Novelty(settings.threshold), []
        self._texts: list[str] = []
        self._seeds, self._pool, self._kept = {}, {language: [] for language in settings.languages}, Counter()
        self._asked: Counter[str] = Counter()  # by the content of a request
        self._lists = 0
        for language, wanted in settings.languages.items():
            self._seeds[language] = seeds = read_seeds(wanted.seeds)
            if settings.method == "alpaca" and not all(seed.output for seed in seeds):
                raise UserError(
                    f"{wanted.seeds} has instructions without an answer, which the method alpaca cannot show: give "
                    "tasks with outputs, or --config.method=self_instruct"
                )
            for number, seed in enumerate(seeds, 1):
                self._add_to_pool(f"seed {number} of {language}", seed.instruction)

    def open_languages(self) -> list[str]:
        """The languages in which tasks are still asked for."""
        wanted = self._settings.languages
        return [name for name in wanted if self._left(name) and name not in self.made.ended]

    def round(self, number: int, languages: Sequence[str]) -> list[Round]:
        """Asks the requests of a round and takes in the answers."""
        asked, rounds = [], {}
        for language in languages:
            fitting = math.ceil(2 * self._left(language) / self._settings.tasks)
            count = min(self._settings.round_requests, max(FEWEST, fitting))
            if self._settings.requests is not None:
                count = min(count, self._settings.requests - self._lists)
            self._lists += count
            rounds[language] = Round(number, language, count)
            asked += [(language, self._request_list(language, number, i)) for i in range(count)]
        replies = self._asker.ask([request for _, request in asked])
        lists = []
        for (language, request), reply in zip(asked, replies, strict=True):
            lists.append((rounds[language], self._candidates(rounds[language], request, reply)))
        if self._settings.method == "alpaca":
            for round, candidates in lists:
                for row, candidate in candidates:
                    self._take(round, row, candidate)
        else:
            self._take_instructions(lists)
        self.made.rounds += rounds.values()
        for language, round in rounds.items():
            self._end(language, round)
        return list(rounds.values())

    def _end(self, language: str, round: Round) -> None:
        """Ends a language whose round brought too little, or for which no request is left."""
        wanted, count = self._settings.languages[language].rows, round.kept + round.rejected.total()
        have = f"{self._kept[language]:,} of {wanted:,} rows"
        if not self._left(language):
            return
        if self._settings.requests is not None and self._lists >= self._settings.requests:
            self.made.ended[language] = f"{have}: all {self._settings.requests:,} requests were asked"
        elif round.kept < self._settings.least_share * count or not round.kept:
            self.made.ended[language] = f"{have}: round {round.number} brought too few ({round})"

    def _request_list(self, language: str, number: int, i: int) -> Request:
        """The request with number i of a round, for a list of tasks."""
        rng, settings = random.Random(f"{self._settings.seed}/{language}/{number}/{i}"), self._settings
        seeds, pool = self._seeds[language], self._pool[language]
        shown = rng.sample(seeds, min(settings.shown_seeds, len(seeds)))
        shown += rng.sample(pool, min(settings.shown_kept, len(pool)))
        if settings.shown_kept:
            rng.shuffle(shown)
        if settings.method == "alpaca":
            return self._request(self._prompts.messages("tasks", language, tasks=shown, count=settings.tasks))
        more = {"count": settings.tasks, "with_input": settings.method == "self_instruct"}
        return self._request(self._prompts.messages("instructions", language, tasks=shown, **more))

    def _request(self, messages: Sequence[Mapping[str, str]]) -> Request:
        """A request. Its sample counts how often its content was asked before, so that each has a reply of its own."""
        content = json.dumps(messages, ensure_ascii=False)
        sample = self._asked[content]
        self._asked[content] += 1
        return Request(messages, self._how, sample)

    def _candidates(self, round: Round, request: Request, reply: Reply) -> list[tuple[Row, Candidate]]:
        """The tasks in a reply, each with its row."""
        read = parse_tasks if self._settings.method == "alpaca" else parse_instructions
        key, found = self._asker.key(request), []
        for number, candidate in enumerate(read(reply.text, reply.finish_reason), 1):
            raw = _raw(candidate.task)
            columns = {LANGUAGE: round.language, "teacher": self._asker.name}
            columns |= {"version": reply.model} if reply.model else {}
            columns |= {"round": round.number, "request": key, "task": number}
            source = source_of(round.language)
            id = id_of(source, raw | {"request": key, "task": number})
            found.append((Row(id, raw, source, f"request {key}, task {number}", columns), candidate))
        return found

    def _take(self, round: Round, row: Row, candidate: Candidate) -> None:
        """Keeps a whole task, or rejects it."""
        language = round.language
        if candidate.reason:
            return self._reject(round, row, ANSWER, Rejected(candidate.reason, candidate.detail))
        if dropped := self._settings.filters(candidate.task, language):
            return self._reject(round, row, FILTERS, dropped)
        if (row := self._through_steps(round, row)) is None:
            return None
        task = task_of(row.record)
        row, similar = self._compared(row, task.instruction)
        if similar is not None and similar.score > self._settings.threshold:
            return self._reject(round, row, NOVELTY, self._similar_to(similar))
        if not self._left(language):
            return self._reject(round, row, ROWS, Rejected("enough"))
        self._add_to_pool(row.id, task.instruction)
        return self._keep(round, row, task)

    def _take_instructions(self, lists: Sequence[tuple[Round, Sequence[tuple[Row, Candidate]]]]) -> None:
        """Asks for the rest of each task whose instruction is new, until enough tasks are kept."""
        waiting: dict[str, list[tuple[Round, Row, str]]] = {round.language: [] for round, _ in lists}
        for round, candidates in lists:
            for row, candidate in candidates:
                text = candidate.task.instruction
                if candidate.reason:
                    self._reject(round, row, ANSWER, Rejected(candidate.reason, candidate.detail))
                elif dropped := self._settings.filters.of_instruction(text, round.language):
                    self._reject(round, row, FILTERS, dropped)
                else:
                    row, similar = self._compared(row, text)
                    if similar is not None and similar.score > self._settings.threshold:
                        self._reject(round, row, NOVELTY, self._similar_to(similar))
                    else:
                        self._add_to_pool(row.id, text)
                        waiting[round.language].append((round, row, text))
        while asked := [each for language, found in waiting.items() for each in found[: self._left(language)]]:
            waiting = {language: found[self._left(language) :] for language, found in waiting.items()}
            self._take_rest(asked)
        for round, row, _ in (each for found in waiting.values() for each in found):
            self._reject(round, row, ROWS, Rejected("enough"))

    def _take_rest(self, asked: Sequence[tuple[Round, Row, str]]) -> None:
        """Asks for the rest of the tasks with these instructions, and keeps the whole tasks."""
        read = parse_instance if self._settings.method == "self_instruct" else parse_answer
        requests = [self._request_instance(*each) for each in asked]
        for (round, row, text), request, reply in zip(asked, requests, self._asker.ask(requests), strict=True):
            candidate = read(text, reply.text, reply.finish_reason)
            row = row.with_(_raw(candidate.task), instance_request=self._asker.key(request))
            if candidate.reason:
                self._reject(round, row, ANSWER, Rejected(candidate.reason, candidate.detail))
            elif dropped := self._settings.filters(candidate.task, round.language):
                self._reject(round, row, FILTERS, dropped)
            elif (passed := self._through_steps(round, row)) is not None:
                self._keep(round, passed, task_of(passed.record))

    def _left(self, language: str) -> int:
        """Number of tasks that are wanted yet."""
        return self._settings.languages[language].rows - self._kept[language]

    def _request_instance(self, round: Round, row: Row, instruction: str) -> Request:
        """The request for the input and the output of an instruction, or for the answer to it."""
        if self._settings.method == "instruction_wild":
            return self._request([{"role": "user", "content": instruction}])
        rng = random.Random(f"{self._settings.seed}/{row.id}")
        known = [seed for seed in self._seeds[round.language] if seed.output]
        shown = rng.sample(known, min(self._settings.shown_seeds, len(known)))
        return self._request(self._prompts.messages("instance", round.language, tasks=shown, instruction=instruction))

    def _through_steps(self, round: Round, row: Row) -> Row | None:
        """The row with its record parsed and after the steps of the settings; None if it was rejected."""
        try:
            row = row.with_(parse(dict(row.record), "alpaca"))
        except ValueError as problem:
            self._reject(round, row, ANSWER, Rejected("unreadable", str(problem)))
            return None
        rows, rejected = apply_steps(row, self._steps)
        if len(rows) + len(rejected) > 1:
            divides = f"a step of config.steps makes several rows of one ({row.place})"
            raise UserError(f"{divides}: run it on the output with `camelid curate run`")
        for each in rejected:
            self._reject(round, each.row, each.step, Rejected(each.reason, each.detail))
        return rows[0] if rows else None

    def _compared(self, row: Row, instruction: str) -> tuple[Row, Similar | None]:
        """The row with the most similar seed or task of the pool in its columns, and how similar that is."""
        similar = self._novelty.nearest(rouge_words(instruction))
        if similar is None:
            return row.with_(most_similar=None, rouge_l=0.0), None
        return row.with_(most_similar=self._names[similar.place], rouge_l=round(similar.score, 4)), similar

    def _similar_to(self, similar: Similar) -> Rejected:
        return Rejected(
            "similar", f"{similar.score:.2f} with {self._names[similar.place]}: {self._texts[similar.place]}"
        )

    def _add_to_pool(self, name: str, instruction: str) -> None:
        """Lets later tasks be compared with an instruction."""
        self._novelty.keep(rouge_words(instruction))
        self._names.append(name)
        self._texts.append(instruction)

    def _keep(self, round: Round, row: Row, task: Task) -> None:
        self.made.rows.append(row)
        self._pool[round.language].append(task)
        self._kept[round.language] += 1
        round.kept += 1

    def _reject(self, round: Round, row: Row, step: str, why: Rejected) -> None:
        self.made.drop(row, step, why)
        round.rejected[why.reason] += 1


def task_of(record: Mapping[str, Any]) -> Task:
    """The task in a parsed record of one question and its answer."""
    asked, answer = (message for message in record["messages"] if message["role"] != "system")
    return Task(asked["content"], asked.get("input", ""), answer["content"])


def _raw(task: Task) -> dict[str, str]:
    return {"instruction": task.instruction, "input": task.input, "output": task.output}
