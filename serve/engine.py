"""Continuous batching: requests join and leave the rows of a batch between two steps, and share what they have read.

    with Engine(camelid.load("runs/sft"), rows=8) as engine:
        answers = engine.submit(Request(prompt, sampling, seed=1))
        for token in answers[0]:
            ...

One thread decides what the device does: it gives free rows to waiting answers in their order, reads at most one chunk
of a prompt, then takes a step of all rows that answer. An answer's tokens and log-probabilities are the same bits
whatever else the engine does (`model.slots`).
"""

import collections
import dataclasses
import enum
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from ..checkpoints.language_model import LanguageModel
from ..errors import UserError
from ..model.attention import BLOCK
from ..model.sampling import Sampling
from ..model.slots import MOST_TOP
from .grammar import Grammar
from .prefixes import Prefixes
from .programs import Program, Programs


class Busy(RuntimeError):
    """More requests wait than the engine takes."""


class Token(NamedTuple):
    """A token of an answer."""

    id: int
    logprob: float
    """Log-probability under the model, at temperature 1 and before any filter."""
    top: list[tuple[int, float]]
    """The likeliest tokens in its place with their log-probabilities, as many as the request asks for."""


class Scored(NamedTuple):
    """A token of a prompt."""

    id: int
    logprob: float | None
    """Log-probability given the tokens before; None for the first."""
    top: list[tuple[int, float]]
    """As in `Token`."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to answer."""

    prompt: Sequence[int]
    """Tokens, 1 or more."""

    sampling: Sampling
    """Settings; `n` answers are written."""

    seed: int = 0
    """Seed of the randomness, from 0 to 2**32 - 1."""

    top: int = 0
    """Number of likeliest tokens to report with each token, at most `slots.MOST_TOP`."""

    score_prompt: bool = False
    """Whether the prompt's tokens are given their log-probabilities (`Answer.prompt`)."""

    only_score: bool = False
    """Whether the request ends once its prompt is scored."""

    bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """Numbers that are added to the logits of tokens that are drawn; log-probabilities do not count them."""

    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that stand in the answer so far, as `bias`."""

    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time that it stands in the answer so far, as `bias`."""

    grammar: Grammar | None = None
    """What answers may be; None for anything."""


class State(enum.Enum):
    """Where an answer is."""

    WAITING = enum.auto()
    READING = enum.auto()
    """Its row reads the prompt."""
    WRITING = enum.auto()
    DONE = enum.auto()


class Answer:
    """An answer that is being written: an iterator over its tokens, which waits for each.

    Attributes:
      request: what is answered.
      sample: the answer's number among those to the request.
      tokens: the tokens so far.
      counts: how often each token stands in the answer so far.
      prompt: the scores of the prompt's tokens, where the request asks for them; complete before the first token.
      cached: number of the prompt's tokens that were not read, but copied.
      finish_reason: "stop", "length" or "cancelled" once it has ended, or "error".
      error: what ended it, for "error".
    """

    def __init__(self, request: Request, sample: int, leader: "Answer | None", notify: Callable[[], None] | None):
        self.request, self.sample, self.leader, self._notify = request, sample, leader, notify
        self.tokens: list[Token] = []
        self.counts: collections.Counter[int] = collections.Counter()
        self.prompt: list[Scored] = []
        self.cached, self.finish_reason, self.error = 0, None, None
        self.state, self.row, self.read = State.WAITING, -1, 0
        self.cancelled = False
        self.submitted = time.monotonic()
        self.first_token: float | None = None
        self._stop_state = 0
        self.grammar = None if request.grammar is None else request.grammar.copy()
        self._told: queue.SimpleQueue[Token | None] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[Token]:
        while (token := self._told.get()) is not None:
            yield token
        self._told.put(None)
        if self.error is not None:
            raise self.error

    def poll(self) -> list[Token]:
        """The tokens that were written since the last call, without waiting."""
        found = []
        while not self._told.empty():
            token = self._told.get()
            if token is None:
                self._told.put(None)
                break
            found.append(token)
        return found

    def wait(self) -> "Answer":
        """The answer, once it has ended."""
        collections.deque(self, maxlen=0)
        return self

    @property
    def shifts(self) -> bool:
        """Whether something is added to the logits that tokens are drawn by."""
        request = self.request
        return bool(request.bias or self.grammar or request.presence_penalty or request.frequency_penalty)

    @property
    def unscored(self) -> int:
        """Number of the prompt's tokens that are to get log-probabilities and have none yet."""
        return len(self.request.prompt) - max(len(self.prompt), 1) if self.request.score_prompt else 0

    @property
    def follows(self) -> bool:
        """Whether another answer to the same request is reading the prompt for this one too."""
        return self.leader is not None and self.leader.state == State.READING

    def cancel(self) -> None:
        """Ends the answer before its next token."""
        self.cancelled = True

    def take(self, token: Token) -> str | None:
        """Takes a further token. Returns why the answer ends with it; None if it goes on."""
        sampling = self.request.sampling
        if self.first_token is None:
            self.first_token = time.monotonic()
        self.tokens.append(token)
        self.counts[token.id] += 1
        self._told.put(token)
        complete = token.id in sampling.stop_ids
        if sampling.stops is not None:
            self._stop_state = int(sampling.stops.table_SV[self._stop_state, token.id])
            complete |= self._stop_state == len(sampling.stops.table_SV) - 1
        if self.grammar is not None:
            complete |= self.grammar.take(token.id)
        if self._notify is not None:
            self._notify()
        if complete:
            return "stop"
        return "length" if len(self.tokens) == sampling.max_tokens else None

    def finish(self, reason: str, error: Exception | None = None) -> None:
        """Ends the answer."""
        self.state, self.finish_reason, self.error = State.DONE, reason, error
        self._told.put(None)
        if self._notify is not None:
            self._notify()


class Engine:
    """A model that answers many requests at a time.

    Args:
      model: the model.
      rows: number of answers that are written at a time.
      max_len: most tokens of a prompt and its answer together; default: the model's context.
      chunk: tokens of a prompt that are read between two steps, a power of two. More read a prompt faster, and make
        other answers wait longer.
      blocks: number of chunks of prompts that are kept for later requests; default: as many as rows hold.
      most_waiting: number of answers that may wait for a row.
      exact: whether every token is drawn by one program, which gives the same bits in any company. Else an answer that
        is written alone comes from a faster program, whose log-probabilities differ by rounding.
      report: called with each program once it is compiled.

    Attributes:
      failed: the error that ended the engine; None while it works.
      most_waiting: number of answers that may wait for a row.

    Raises UserError for settings that do not fit.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        rows: int = 8,
        max_len: int | None = None,
        chunk: int = 32,
        blocks: int | None = None,
        most_waiting: int = 256,
        exact: bool = True,
        report: Callable[[Program], None] | None = None,
    ):
        context = model.config.max_len
        self.max_len = context if max_len is None else max_len
        if not 2 <= self.max_len <= context:
            raise UserError(f"max_len {max_len}: give 2 to the model's context of {context:,} tokens")
        for name, value in {"rows": rows, "chunk": chunk, "most_waiting": most_waiting}.items():
            if value < 1:
                raise UserError(f"{name} {value}: give 1 or more")
        self.model, self.rows = model, rows
        if chunk & (chunk - 1):
            raise UserError(f"chunk {chunk}: give a power of two")
        self._steps_alone = not exact and rows > 1
        unit = chunk if self.max_len <= BLOCK else max(chunk, BLOCK)
        length = -(-self.max_len // unit) * unit
        blocks = rows * length // chunk if blocks is None else blocks
        with jax.set_mesh(model.mesh):
            how = dict(rows=rows, length=length, chunk=chunk, blocks=max(blocks, 1))
            self._device = Programs(model, **how, alone=self._steps_alone)
        for program in self._device.programs.values():
            if report is not None:
                report(program)
        self._prefixes = Prefixes(blocks, chunk)
        self.most_waiting = most_waiting
        self._waiting: collections.deque[Answer] = collections.deque()
        self._in_row: list[Answer | None] = [None] * rows
        self._changed, self._closed, self.failed = threading.Condition(), False, None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Cancels all answers and ends the engine."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def running(self) -> int:
        """Number of answers that have a row."""
        return sum(answer is not None for answer in self._in_row)

    @property
    def waiting(self) -> int:
        """Number of answers that wait for a row."""
        return len(self._waiting)

    @property
    def kept_blocks(self) -> int:
        """Number of chunks of prompts that are kept."""
        return len(self._prefixes)

    def submit(self, request: Request, notify: Callable[[], None] | None = None) -> list[Answer]:
        """Begins to answer a request.

        Args:
          request: the request.
          notify: called from the engine's thread after every token and at the end.

        Returns:
          The `sampling.n` answers.

        Raises:
          UserError: the request does not fit the model.
          Busy: too many answers wait.
        """
        self._check(request)
        leader = Answer(request, 0, None, notify)
        answers = [leader, *(Answer(request, i, leader, notify) for i in range(1, request.sampling.n))]
        with self._changed:
            if self._closed:
                raise Busy("the engine is closed" if self.failed is None else f"the engine failed: {self.failed}")
            if len(self._waiting) + len(answers) > self.most_waiting:
                raise Busy(f"{len(self._waiting)} answers wait already, of at most {self.most_waiting}: try again")
            self._waiting.extend(answers)
            self._changed.notify()
        return answers

    def generate(self, requests: Sequence[Request]) -> list[list[Answer]]:
        """The answers to requests, once all have ended."""
        return [[answer.wait() for answer in answers] for answers in map(self.submit, requests)]

    def _check(self, request: Request) -> None:
        vocab, size = self.model.config.vocab_size, len(request.prompt)
        if size == 0:
            raise UserError("the prompt is empty: give it a token, as bos")
        if size >= self.max_len:
            said = f"the prompt has {size:,} tokens, and the context of {self.max_len:,} has no room for an answer"
            raise UserError(f"{said}: shorten it")
        if wrong := [i for i in (*request.prompt, *request.bias) if not 0 <= i < vocab]:
            raise UserError(f"token id {wrong[0]}: give 0 to {vocab - 1}")
        if not 0 <= request.seed < 2**32:
            raise UserError(f"seed {request.seed}: give 0 to {2**32 - 1}")
        if request.sampling.n > self.most_waiting:
            raise UserError(f"n {request.sampling.n}: at most {self.most_waiting} answers may wait")
        if not 0 <= request.top <= MOST_TOP:
            raise UserError(f"{request.top} likeliest tokens: give 0 to {MOST_TOP}")

    # The engine's thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with jax.set_mesh(self.model.mesh):
            while True:
                with self._changed:
                    while not (self._closed or self._waiting or self.running):
                        self._changed.wait()
                    if self._closed:
                        break
                try:
                    self._turn()
                except Exception as error:  # whatever it is, nobody must wait for ever
                    self.failed, self._closed = error, True
                    break
        self._end_all()

    def _turn(self) -> None:
        """What happens between two steps, and a step."""
        for answer in self._in_row:
            if answer is not None and answer.cancelled:
                self._leave(answer, "cancelled")
        with self._changed:
            cancelled = [answer for answer in self._waiting if answer.cancelled]
            for answer in cancelled:
                self._waiting.remove(answer)
        for answer in cancelled:
            answer.finish("cancelled")
        self._admit()
        if reading := [answer for answer in self._in_state(State.READING) if not answer.follows]:
            self._read(min(reading, key=lambda answer: answer.submitted))
        if writing := self._in_state(State.WRITING):
            self._step(writing)

    def _in_state(self, state: State) -> list[Answer]:
        return [answer for answer in self._in_row if answer is not None and answer.state == state]

    def _admit(self) -> None:
        """Gives free rows to the answers that wait longest."""
        for row, holder in enumerate(self._in_row):
            if holder is not None:
                continue
            with self._changed:
                if not self._waiting:
                    return
                answer = self._waiting.popleft()
            self._in_row[row], answer.row, answer.state = answer, row, State.READING
            if answer.leader is not None and answer.leader.state == State.WRITING:
                self._copy(answer)
            elif not answer.follows:
                self._begin(answer)

    def _copy(self, answer: Answer) -> None:
        """Lets an answer be written whose prompt another answer to the same request has read."""
        self._device.copy(answer.leader.row, answer.row)
        answer.cached = len(answer.request.prompt) - 1
        self._write(answer)

    def _begin(self, answer: Answer) -> None:
        """Begins to read a prompt behind the blocks that are kept of it."""
        blocks = self._prefixes.find(answer.request.prompt[:-1])
        if blocks:
            self._device.restore(blocks, answer.row)
        answer.read = answer.cached = len(blocks) * self._device.chunk

    def _read(self, answer: Answer) -> None:
        """Reads or scores the next chunk of a prompt. All its tokens but the last are read."""
        if answer.leader is not None and answer.read == 0:  # the leader may have been cancelled after it had this row
            self._begin(answer)
        prompt, chunk, last = answer.request.prompt, self._device.chunk, len(answer.request.prompt) - 1
        if answer.unscored and len(answer.prompt) <= answer.read:
            self._score(answer)
        elif answer.read < last:
            end = min(answer.read + chunk, last)
            self._device.read(prompt[answer.read : end], answer.row, answer.read)
            answer.read = end
        if answer.read < last or answer.unscored:
            return
        for number, block in self._prefixes.add(prompt[:-1]):
            self._device.keep(answer.row, number, block)
        self._write(answer)
        for other in self._in_state(State.READING):
            if other.leader is answer and answer.state == State.WRITING:
                self._copy(other)

    def _score(self, answer: Answer) -> None:
        """Gives the tokens of the next chunk, each given those before, their log-probabilities."""
        if not answer.prompt:
            answer.prompt.append(Scored(answer.request.prompt[0], None, []))
        begin, top = len(answer.prompt) - 1, answer.request.top
        tokens = answer.request.prompt[begin : begin + self._device.chunk + 1]
        logprobs_C, top_CN, top_logprobs_CN = self._device.score(tokens, answer.row, begin)
        for i, token in enumerate(tokens[1:]):
            likeliest = list(zip(top_CN[i, :top].tolist(), top_logprobs_CN[i, :top].tolist(), strict=True))
            answer.prompt.append(Scored(token, float(logprobs_C[i]), likeliest))

    def _write(self, answer: Answer) -> None:
        """Lets an answer whose prompt is read be written from the next step on."""
        request = answer.request
        if request.only_score:
            return self._leave(answer, "length")
        self._device.start(answer.row, request.prompt, request.sampling, request.seed, answer.sample)
        answer.state = State.WRITING

    def _step(self, writing: Sequence[Answer]) -> None:
        alone = writing[0].row if len(writing) == 1 and self._steps_alone else None
        found = self._device.step(self._offsets(writing), any(answer.request.top for answer in writing), alone)
        for answer in writing:
            row, top = answer.row, answer.request.top
            ids, logprobs = found.top_RN[row, :top].tolist(), found.top_logprobs_RN[row, :top].tolist()
            token = Token(int(found.tokens_R[row]), float(found.logprobs_R[row]), list(zip(ids, logprobs, strict=True)))
            try:
                reason = answer.take(token)
            except UserError as error:
                self._leave(answer, "error", error)
                continue
            if reason is None and len(answer.request.prompt) + len(answer.tokens) >= self.max_len:
                reason = "length"
            if reason is not None:
                self._leave(answer, reason)

    def _offsets(self, writing: Sequence[Answer]) -> Float[np.ndarray, "R V"] | None:
        """What is added to the logits of each row; None if nothing is."""
        if not any(answer.shifts for answer in writing):
            return None
        offsets_RV = np.zeros((self.rows, self.model.config.vocab_size), np.float32)
        for answer in writing:
            request, offsets_V = answer.request, offsets_RV[answer.row]
            for token, bias in request.bias.items():
                offsets_V[token] = bias
            if request.presence_penalty or request.frequency_penalty:
                for token, count in answer.counts.items():
                    offsets_V[token] -= request.presence_penalty + request.frequency_penalty * count
            if answer.grammar is not None:
                offsets_V[~answer.grammar.allowed()] = -np.inf
        return offsets_RV

    def _leave(self, answer: Answer, reason: str, error: Exception | None = None) -> None:
        """Frees the row of an answer, then ends it."""
        self._device.stop(answer.row)
        self._in_row[answer.row] = None
        answer.finish(reason, error)

    def _end_all(self) -> None:
        """Ends all answers, when the engine ends."""
        with self._changed:
            left = [answer for answer in (*self._in_row, *self._waiting) if answer is not None]
            self._waiting.clear()
        for answer in left:
            answer.finish("cancelled" if self.failed is None else "error", self.failed)
        self._in_row = [None] * self.rows
