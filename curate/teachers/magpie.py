"""Magpie: a chat model writes the user's turns too, so that instructions need no seeds (arXiv:2406.08464).

    made = Magpie(rows=1000)(asker, template, tokenizer)

The model continues the tokens that its chat template writes before a user's words. What it writes up to the end of the
turn is an instruction, which it then answers as usual. A system prompt in front of the user's turn sets topic and
language, as the paper does for mathematics and code; the answer is written without it. With `turns` above 1 the model
goes on with further turns of the user (Magpie-MT in the paper).

Each sample of an instruction is a candidate, which is kept or rejected by one of these steps:

    instruction   empty, cut or withheld; control_text: it spells a control token
    filters       rules for instructions (`instruct_filters.Filters`)
    novelty       similar: its ROUGE-L with an earlier instruction is above the threshold
    answer        the answer to the first instruction is empty, cut or withheld

Samples have numbers from 0 up, which decide topic, language and temperature. So the rows follow from the settings and
the replies alone.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from ...data.templates import ChatTemplate
from ...data.tokenizer import Tokenizer
from ...data.user_turns import UserTurn, user_turn
from ...errors import UserError
from ...serve.journal import Asker, Reply, Request
from ...settings.leaves import Count, NotNegative, Range, Share, Unset, Whole
from ..rows import LANGUAGE, Rejected, Row, id_of
from .candidates import REPLY_REASONS, Made, Messages, problem_of, request_settings
from .instruct_filters import Filters
from .instruct_prompts import Prompts
from .novelty import Novelty
from .rouge import rouge_words
from .seeds import LANGUAGES

SOURCE = "magpie"
"""Name of the source of all rows, which is part of their ids."""

STEPS = {
    "instruction": (*REPLY_REASONS, "control_text"),
    "filters": Filters.reasons,
    "novelty": ("similar",),
    "answer": REPLY_REASONS,
}
"""Reasons of each step that rejects candidates."""


@dataclass(frozen=True)
class Magpie:
    """How instructions are sampled and answered."""

    rows: Count = 1000
    """Number of conversations to keep."""

    samples: Annotated[Count | None, Unset("10 for each row")] = None
    """The most instructions that are sampled, kept or not."""

    languages: list[str] = field(default_factory=lambda: ["en"])
    """Languages of the instructions, "en" and "zh", by turns."""

    topics: list[str] = field(default_factory=lambda: ["general"])
    """Topics by turns: general, maths, code, or others for which `prompts` has a file magpie.TOPIC.LANGUAGE.toml."""

    temperatures: list[NotNegative] = field(default_factory=lambda: [1.0])
    """Temperatures at which instructions are sampled, by turns; 1 in the published scripts."""

    top_p: Annotated[float, Range(above=0, most=1)] = 1.0
    """Share of the probability that instructions are sampled from; 1 in the published scripts."""

    turns: Count = 1
    """The most turns of the user in a conversation. It is shorter where a further question or its answer is of no
    use."""

    answer_temperature: NotNegative = 0.0
    """Temperature of the answers; 0, greedy, in the published scripts."""

    instruction_tokens: Count = 512
    """The most tokens of an instruction; a longer one is cut, and rejected."""

    max_tokens: Count = 2048
    """The most tokens of an answer."""

    threshold: Share = 0.7
    """The highest ROUGE-L of two instructions; a later one that is more similar is rejected."""

    filters: Filters = Filters()
    """Rules by which instructions are dropped."""

    prompts: Annotated[str | None, Unset("the project's own prompts")] = None
    """Folder with system prompts of one's own, files magpie.TOPIC.LANGUAGE.toml with `system` and `user`, "" for no
    system prompt. `user` is not used."""

    seed: Annotated[Whole | None, Unset("no seed")] = None
    """Seed of the sampling; the number of the sample is added to it."""

    def check(self, where: str) -> None:
        """Raises UserError for languages that there are no prompts for, and for empty lists."""
        for name in ("languages", "topics", "temperatures"):
            if not getattr(self, name):
                raise UserError(f"{where}.{name} is empty: give one or more")
        if wrong := [each for each in self.languages if each not in LANGUAGES]:
            raise UserError(f"{where}.languages: {wrong[0]} is none of {', '.join(LANGUAGES)}")

    def __call__(
        self, asker: Asker, template: ChatTemplate, tokenizer: Tokenizer, more: Mapping[str, Any] = {}
    ) -> Made:
        """Samples instructions until enough are kept, or as many as `samples` have been sampled.

        Args:
          asker: the teacher.
          template: its chat template.
          tokenizer: its tokenizer.
          more: further settings of all requests, such as min_p; None takes one out.

        Raises:
          UserError: a topic has no prompt, the template does not fit, or some requests could not be answered.
        """
        run = _Run(self, asker, template, tokenizer, more)
        number, most = 0, 10 * self.rows if self.samples is None else self.samples
        while (wanted := min(self.rows - len(run.made.rows), most - number)) > 0:
            run.take(range(number, number + wanted))
            number += wanted
        return run.made


@dataclass
class _Candidate:
    """A conversation that is being sampled."""

    number: int
    language: str
    topic: str
    temperature: float
    system: Messages
    messages: Messages = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    ended: str = "turns"  # why there are no further turns


class _Run:
    """The state of a run between rounds."""

    def __init__(self, settings: Magpie, asker: Asker, template: ChatTemplate, tokenizer: Tokenizer, more: Mapping):
        self.made, self._settings, self._asker, self._more = Made(), settings, asker, more
        self._template, self._tokenizer = template, tokenizer
        self._control = [spelling for spelling in tokenizer.special if spelling.strip()]
        self._novelty, self._names = Novelty(settings.threshold), []
        prompts = Prompts(settings.prompts)
        pairs = list(itertools.product(settings.topics, settings.languages))
        systems = {
            (topic, language): [m for m in prompts.messages(f"magpie.{topic}", language) if m["role"] == "system"]
            for topic, language in pairs
        }
        self._variants = [(*pair, heat, systems[pair]) for heat in settings.temperatures for pair in pairs]

    def take(self, numbers: Sequence[int]) -> None:
        """Samples the instructions with some numbers, and takes in what comes of them."""
        candidates = []
        for number in numbers:
            topic, language, temperature, system = self._variants[number % len(self._variants)]
            candidates.append(_Candidate(number, language, topic, temperature, system))
        open_ = []
        for candidate, reply in zip(candidates, self._instructions(candidates), strict=True):
            text = self._said(candidate, reply)
            candidate.messages = [{"role": "user", "content": text}]
            if not self._drop(candidate, *self._problem(candidate, text, reply)):
                open_.append(candidate)
        open_ = self._answered(open_)
        kept = list(open_)
        for _ in range(1, self._settings.turns):
            open_ = self._further(open_)
        for candidate in kept:
            row = self._row(candidate, {"kind": "chat", "messages": candidate.messages})
            columns = {"turns": len(candidate.messages) // 2}
            columns |= {"ended": candidate.ended} if self._settings.turns > 1 else {}
            self.made.rows.append(row.with_(**columns))

    def _instructions(self, candidates: Sequence[_Candidate]) -> list[Reply]:
        """What the model writes in the place of the user."""
        settings, requests = self._settings, []
        for each in candidates:
            turn = self._turn([*each.system, *each.messages])
            how = request_settings(
                self._more,
                temperature=each.temperature,
                top_p=settings.top_p,
                max_tokens=settings.instruction_tokens,
                seed=settings.seed,
                stop=list(turn.stop) or None,
                stop_token_ids=list(turn.stop_ids) or None,
            )
            requests.append(Request(settings=how, sample=each.number, prompt=turn.prefix))
        return self._ask(candidates, requests)

    def _answers(self, candidates: Sequence[_Candidate]) -> list[Reply]:
        settings = self._settings
        temperature, tokens = settings.answer_temperature, settings.max_tokens
        how = request_settings(self._more, temperature=temperature, max_tokens=tokens, seed=settings.seed)
        return self._ask(candidates, [Request(list(each.messages), how) for each in candidates])

    def _ask(self, candidates: Sequence[_Candidate], requests: Sequence[Request]) -> list[Reply]:
        for candidate, request in zip(candidates, requests, strict=True):
            candidate.requests.append(self._asker.key(request))
        return self._asker.ask(requests)

    def _said(self, candidate: _Candidate, reply: Reply) -> str:
        """What the user says, without the token that ends the turn, which some endpoints write out."""
        end = self._turn(candidate.system)
        spellings = [spelling for spelling, id in self._tokenizer.special.items() if id in end.stop_ids]
        text = reply.text
        for spelling in (*spellings, *end.stop):
            text = text.partition(spelling)[0]
        return text.strip()

    def _turn(self, messages: Messages) -> UserTurn:
        return _user_turn(self._template, self._tokenizer, tuple((m["role"], m["content"]) for m in messages))

    def _problem(self, candidate: _Candidate, text: str, reply: Reply) -> tuple[str, Rejected | None]:
        """The step that rejects an instruction, and why; None if it is kept. A kept one joins the earlier ones."""
        if why := self._fault(text, reply):
            return "instruction", why
        if why := self._settings.filters.of_instruction(text, candidate.language):
            return "filters", why
        if similar := self._novelty.add(rouge_words(text)):
            return "novelty", Rejected("similar", f"ROUGE-L {similar.score:.3f} with {self._names[similar.place]}")
        self._names.append(f"sample {candidate.number}")
        return "", None

    def _fault(self, text: str, reply: Reply) -> Rejected | None:
        """Why what the model wrote in the place of a user is of no use; None for a good text."""
        if why := problem_of(reply):
            return why
        found = next((spelling for spelling in self._control if spelling in text), None)
        if found:
            return Rejected("control_text", found)
        return None if text else Rejected("empty", "nothing before the end of the turn")

    def _answered(self, candidates: Sequence[_Candidate]) -> list[_Candidate]:
        """The candidates whose first instruction has an answer."""
        found = []
        for candidate, reply in zip(candidates, self._answers(candidates), strict=True):
            if not self._drop(candidate, "answer", problem_of(reply)):
                candidate.messages.append({"role": "assistant", "content": reply.text.strip()})
                found.append(candidate)
        return found

    def _further(self, candidates: Sequence[_Candidate]) -> list[_Candidate]:
        """The candidates that have a further turn of the user with an answer."""
        asked = []
        for candidate, reply in zip(candidates, self._instructions(candidates), strict=True):
            text = self._said(candidate, reply)
            if why := self._fault(text, reply):
                candidate.ended = f"question {why.reason}"
            elif text in [message["content"] for message in candidate.messages]:
                candidate.ended = "question repeated"
            else:
                candidate.messages.append({"role": "user", "content": text})
                asked.append(candidate)
        found = []
        for candidate, reply in zip(asked, self._answers(asked), strict=True):
            if why := problem_of(reply):
                candidate.ended = f"answer {why.reason}"
                candidate.messages.pop()
            else:
                candidate.messages.append({"role": "assistant", "content": reply.text.strip()})
                found.append(candidate)
        return found

    def _drop(self, candidate: _Candidate, step: str, why: Rejected | None) -> bool:
        """Rejects a candidate if there is a reason. Returns whether there is."""
        if why is not None:
            self.made.drop(self._row(candidate, {"messages": candidate.messages}), step, why)
        return why is not None

    def _row(self, candidate: _Candidate, record: Mapping[str, Any]) -> Row:
        columns = {LANGUAGE: candidate.language, "topic": candidate.topic, "temperature": candidate.temperature}
        columns |= {"teacher": self._asker.name, "requests": candidate.requests}
        id = id_of(SOURCE, {"sample": candidate.number, "requests": candidate.requests, "record": record})
        return Row(id, record, SOURCE, f"sample {candidate.number}", columns)


@functools.lru_cache(maxsize=1024)
def _user_turn(template: ChatTemplate, tokenizer: Tokenizer, messages: tuple[tuple[str, str], ...]) -> UserTurn:
    return user_turn(template, tokenizer, [{"role": role, "content": content} for role, content in messages])
