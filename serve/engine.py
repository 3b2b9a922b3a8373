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
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float

from ..checkpoints.language_model import LanguageModel
from ..errors import TooLong, UserError
from ..model.adapter_rows import adapters_over
from ..model.attention import BLOCK
from ..model.slots import MOST_TOP
from .prefixes import Prefixes
from .programs import Program, Programs
from .requests import Answer, Busy, Ended, Request, Scored, State, Token


def slots_of(max_len: int, chunk: int) -> int:
    """Slots of a row for `max_len` tokens that are read in chunks: whole chunks, and whole blocks of attention."""
    unit = chunk if max_len <= BLOCK else max(chunk, BLOCK)
    return -(-max_len // unit) * unit


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
      patience: seconds that an answer waits before one that has had its row for as long makes room. That one waits
        in turn and goes on with the same bits; its cache is in the host's memory meanwhile, for as many answers as
        there are rows.
      adapters: the model with adapters beside it (`LanguageModel.with_adapters`), by the names that requests choose.
      exact: whether every token is drawn by one program, which gives the same bits in any company. Else an answer that
        is written alone comes from a faster program, whose log-probabilities differ by rounding.
      report: called with each program once it is compiled.

    Attributes:
      failed: the error that ended the engine; None while it works.
      most_waiting: number of answers that may wait for a row.
      preemptions: number of times that an answer made room for another.

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
        patience: float = math.inf,
        adapters: Mapping[str, LanguageModel] | None = None,
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
        length = slots_of(self.max_len, chunk)
        blocks = rows * length // chunk if blocks is None else blocks
        trees = [adapters_over(model.params, each.params, name) for name, each in (adapters or {}).items()]
        self._adapters = {None: 0} | {name: number for number, name in enumerate(adapters or {}, 1)}
        with jax.set_mesh(model.mesh):
            how = dict(rows=rows, length=length, chunk=chunk, blocks=max(blocks, 1), adapters=trees)
            self._device = Programs(model, **how, alone=self._steps_alone, report=report)
        self._prefixes = Prefixes(blocks, chunk)
        self.most_waiting, self._patience, self.preemptions = most_waiting, patience, 0
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
          Ended: the engine is closed, or has failed.
        """
        return self._submit([request], notify, self.most_waiting)[0]

    def generate(self, requests: Sequence[Request]) -> list[list[Answer]]:
        """The answers to requests, once all have ended. Any number may wait. Raises as `submit`."""
        submitted = self._submit(requests, None, math.inf)
        return [[answer.wait() for answer in answers] for answers in submitted]

    def _submit(
        self, requests: Sequence[Request], notify: Callable[[], None] | None, most_waiting: float
    ) -> list[list[Answer]]:
        found = []
        for request in requests:
            self._check(request)
            leader = Answer(request, 0, None, notify)
            found.append([leader, *(Answer(request, i, leader, notify) for i in range(1, request.sampling.n))])
        answers = [answer for each in found for answer in each]
        with self._changed:
            if self._closed:
                failed = self.failed and f"the engine has failed: {' '.join(str(self.failed).split())}"
                raise Ended(failed or "the engine is closed")
            if len(self._waiting) + len(answers) > most_waiting:
                raise Busy(f"{len(self._waiting)} answers wait already, of at most {most_waiting}: try again")
            self._waiting.extend(answers)
            self._changed.notify()
        return found

    def _check(self, request: Request) -> None:
        vocab, size = self.model.config.vocab_size, len(request.prompt)
        if size == 0:
            raise UserError("the prompt is empty: give it a token, as bos")
        if request.embed and request.sampling.n > 1:
            raise UserError(f"n {request.sampling.n}: a text has one embedding; give 1")
        if request.embed and size > self.max_len:
            raise TooLong(f"the text has {size:,} tokens, more than the context of {self.max_len:,}: shorten it")
        if request.only_score and size > self.max_len + 1:  # the last token is scored, but not read
            raise TooLong(f"the text has {size:,} tokens, the context of {self.max_len:,} scores one more: shorten it")
        if size >= self.max_len and not request.embed and not request.only_score:
            said = f"the prompt has {size:,} tokens, and the context of {self.max_len:,} has no room for an answer"
            raise TooLong(f"{said}: shorten it")
        if wrong := [i for i in (*request.prompt, *request.bias) if not 0 <= i < vocab]:
            raise UserError(f"token id {wrong[0]}: give 0 to {vocab - 1}")
        if not 0 <= request.seed < 2**32:
            raise UserError(f"seed {request.seed}: give 0 to {2**32 - 1}")
        if request.sampling.n > self.most_waiting:
            raise UserError(f"n {request.sampling.n}: at most {self.most_waiting} answers may wait")
        if not 0 <= request.top <= MOST_TOP:
            raise UserError(f"{request.top} likeliest tokens: give 0 to {MOST_TOP}")
        if request.adapter not in self._adapters:
            raise UserError(f"adapters {request.adapter!r}: give one of {', '.join(filter(None, self._adapters))}")

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
        self._make_room()
        self._admit()
        if reading := [answer for answer in self._in_state(State.READING) if not answer.follows]:
            self._read(min(reading, key=lambda answer: answer.submitted))
        if writing := self._in_state(State.WRITING):
            self._step(writing)

    def _adapter(self, answer: Answer) -> int:
        """The number of the adapter that an answer uses."""
        return self._adapters[answer.request.adapter]

    def _in_state(self, state: State) -> list[Answer]:
        return [answer for answer in self._in_row if answer is not None and answer.state == state]

    def _make_room(self) -> None:
        """Takes the answer that has had its row longest out of it, if another has waited for too long."""
        latest = time.monotonic() - self._patience
        with self._changed:
            is_due = bool(self._waiting) and self._waiting[0].since <= latest and None not in self._in_row
            out = sum(answer.taken_out is not None for answer in self._waiting)
        longest = [answer for answer in self._in_state(State.WRITING) if answer.since <= latest]
        if not is_due or not longest or out >= self.rows:
            return
        answer = min(longest, key=lambda answer: answer.since)
        self.preemptions += 1
        answer.taken_out = self._device.take_out(answer.row)
        self._device.stop(answer.row)
        self._in_row[answer.row] = None
        with self._changed:
            self._waiting.append(answer)
        answer.enter(State.WAITING)

    def _admit(self) -> None:
        """Gives free rows to the answers that wait longest."""
        for row, holder in enumerate(self._in_row):
            if holder is not None:
                continue
            with self._changed:
                if not self._waiting:
                    return
                answer = self._waiting.popleft()
            self._in_row[row], answer.row = answer, row
            if answer.taken_out is not None:
                self._device.put_back(row, answer.taken_out)
                answer.taken_out = None
                answer.enter(State.WRITING)
                continue
            answer.enter(State.READING)
            if answer.leader is not None and answer.leader.state == State.WRITING:
                self._copy(answer)
            elif not answer.follows:
                self._begin(answer)

    def _copy(self, answer: Answer) -> None:
        """Lets an answer be written whose prompt another answer to the same request has read."""
        answer.cached = len(answer.request.prompt) - 1
        self._device.copy(answer.leader.row, answer.row, answer.cached)
        self._write(answer)

    def _begin(self, answer: Answer) -> None:
        """Begins to read a prompt behind the blocks that are kept of it. Texts to embed are read whole."""
        if answer.request.embed:
            return
        blocks = self._prefixes.find(answer.request.prompt[:-1], self._adapter(answer))
        if blocks:
            self._device.restore(blocks, answer.row)
        answer.read = answer.cached = len(blocks) * self._device.chunk

    def _read(self, answer: Answer) -> None:
        """Reads, scores or embeds the next chunk of a prompt. All its tokens but the last are read."""
        if answer.request.embed:
            return self._embed(answer)
        if answer.leader is not None and answer.read == 0:  # the leader may have been cancelled after it had this row
            self._begin(answer)
        prompt, chunk, last = answer.request.prompt, self._device.chunk, len(answer.request.prompt) - 1
        if answer.unscored and len(answer.prompt) <= answer.read:  # the tokens that score the next ones are read
            self._score(answer)
        elif answer.read < last:
            end = min(answer.read + chunk, last)
            self._device.read(prompt[answer.read : end], answer.row, answer.read, self._adapter(answer))
            answer.read = end
        if answer.read < last or answer.unscored:
            return
        for number, block in self._prefixes.add(prompt[:-1], self._adapter(answer)):
            self._device.keep(answer.row, number, block)
        self._write(answer)
        for other in self._in_state(State.READING):
            if other.leader is answer and answer.state == State.WRITING:
                self._copy(other)

    def _embed(self, answer: Answer) -> None:
        """Adds the states of the next chunk of a text to those found so far."""
        text, before = answer.request.prompt, answer.hidden
        tokens = text[answer.read : answer.read + self._device.chunk]
        found = self._device.embed(tokens, answer.row, answer.read, self._adapter(answer))
        answer.hidden = found if before is None else found._replace(sum_D=before.sum_D + found.sum_D)
        answer.read += len(tokens)
        if answer.read == len(text):
            self._leave(answer, "stop")

    def _score(self, answer: Answer) -> None:
        """Gives the tokens of the next chunk, each given those before, their log-probabilities."""
        begin, top = len(answer.prompt) - 1, answer.request.top
        tokens = answer.request.prompt[begin : begin + self._device.chunk + 1]
        logprobs_C, top_CN, top_logprobs_CN = self._device.score(tokens, answer.row, begin, self._adapter(answer))
        for i, token in enumerate(tokens[1:]):
            likeliest = list(zip(top_CN[i, :top].tolist(), top_logprobs_CN[i, :top].tolist(), strict=True))
            answer.prompt.append(Scored(token, float(logprobs_C[i]), likeliest))

    def _write(self, answer: Answer) -> None:
        """Lets an answer whose prompt is read be written from the next step on."""
        request = answer.request
        if request.only_score:
            return self._leave(answer, "length")
        how = request.sampling, request.seed, answer.sample, self._adapter(answer)
        self._device.start(answer.row, request.prompt, *how)
        answer.enter(State.WRITING)

    def _step(self, writing: Sequence[Answer]) -> None:
        alone = writing[0].row if len(writing) == 1 and self._steps_alone else None
        logits_RV = self._device.forward(alone)
        offsets_RV = self._offsets(writing)  # while the device computes the logits
        found = self._device.draw(logits_RV, offsets_RV, any(answer.request.top for answer in writing))
        for answer in (answer for answer in writing if answer.state == State.WRITING):
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
                try:
                    offsets_V[~answer.grammar.allowed()] = -np.inf
                except UserError as error:
                    self._leave(answer, "error", error)
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
