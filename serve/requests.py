"""What is asked of an engine, and the answers while they are being written."""

import collections
import dataclasses
import enum
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ..model.rows import Rows
from ..model.sampling import Sampling
from ..model.slots import Hidden
from .grammar import Grammar


class Busy(RuntimeError):
    """More requests wait than the engine takes."""


class Ended(RuntimeError):
    """The engine is closed, or has failed."""


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

    embed: bool = False
    """Whether the prompt is a text whose states are asked for (`Answer.hidden`), and nothing is written."""

    bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """Numbers that are added to the logits of tokens that are drawn; log-probabilities do not count them."""

    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that stand in the answer so far, as `bias`."""

    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time that it stands in the answer so far, as `bias`."""

    grammar: Grammar | None = None
    """What answers may be; None for anything."""

    adapter: str | None = None
    """Name of the adapters that answer; None for the model without any."""


class State(enum.Enum):
    """Where an answer is."""

    WAITING = enum.auto()
    """It has no row, or none any more since it made room for another."""
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
      prompt: the scores of the prompt's tokens, where the request asks for them, in its first answer; complete before
        the first token.
      hidden: the states of the prompt that were found so far, where the request asks for them.
      cached: number of the prompt's tokens that were not read, but copied.
      finish_reason: "stop", "length" or "cancelled" once it has ended, or "error".
      error: what ended it, for "error".
    """

    def __init__(self, request: Request, sample: int, leader: "Answer | None", notify: Callable[[], None] | None):
        self.request, self.sample, self.leader, self._notify = request, sample, leader, notify
        self.tokens: list[Token] = []
        self.counts: collections.Counter[int] = collections.Counter()
        scores = request.score_prompt and leader is None
        self.prompt: list[Scored] = [Scored(request.prompt[0], None, [])] if scores else []
        self.hidden: Hidden | None = None
        self.cached, self.finish_reason, self.error = 0, None, None
        self.state, self.row, self.read = State.WAITING, -1, 0
        self.cancelled = False
        self.submitted = self.since = time.monotonic()  # since: when it came to its state
        self.taken_out: Rows | None = None
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
        return len(self.request.prompt) - len(self.prompt) if self.prompt else 0

    @property
    def follows(self) -> bool:
        """Whether another answer to the same request is reading the prompt for this one too."""
        return self.leader is not None and self.leader.state == State.READING

    def enter(self, state: State) -> None:
        """Takes another state."""
        self.state, self.since = state, time.monotonic()

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
