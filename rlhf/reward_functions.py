"""Python functions that score answers: the forms that a user may write, and how the host calls them.

    def reward(record, answer) -> float                   called for each answer
    def reward(records, answers) -> sequence of floats    called for all answers of a step together

Either may be `async def`: its calls then run at the same time, up to a limit. The names of the parameters tell the
forms apart. `record` is {"messages": the prompt, "reference": the answer in the data or None, "meta": {...}, ...}, as
`data.prompts` describes it, and `answer` is the text.

Functions run in the main thread, and `async` functions in one event loop for the whole process. A client that a module
keeps open therefore serves all steps and phases. Where several processes train together, process 0 calls the functions
and all processes get its scores: a function that is not deterministic, such as a judge, cannot make them disagree.
"""

import asyncio
import concurrent.futures
import contextlib
import copy
import functools
import inspect
import math
import reprlib
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

from ..data.console import tell
from ..errors import UserError
from ..settings.functions import find, is_users, raised

FORMS = "reward(record, answer) or reward(records, answers)"
LIMIT = 32  # calls of an async function at the same time
GRACE_SECONDS = 5.0  # how long the step's functions may go on after a signal that ends the run
CANCEL_SECONDS = 5.0  # how long calls that are cancelled may take to end
SLOW_SECONDS = 60.0  # after which a line says that functions are waited for; the next line comes after twice the time
LARGEST_SCORE = float(np.finfo(np.float32).max)
MESSAGE_BYTES = 4096  # of an error that process 0 tells the others

_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 200


@dataclass(frozen=True)
class RewardFunction:
    """A function that scores answers, and how it is called."""

    call: Callable[..., Any]
    """The function."""

    batched: bool = False
    """Whether it takes all answers at once: (records, answers), in place of (record, answer)."""

    awaited: bool = False
    """Whether it is `async def`."""

    limit: int = LIMIT
    """The most calls of an `async` function at the same time."""

    batch_size: int | None = None
    """The most answers in a call of a batched function. None: all."""

    timeout_seconds: float | None = None
    """The longest time for a call of an `async` function. None: no limit."""

    def calls(self, count: int) -> list[slice]:
        """The answers of each call, in order, when there are `count` answers."""
        size = (self.batch_size or count) if self.batched else 1
        return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]


def find_reward_function(name: str, where: str) -> RewardFunction:
    """Imports the function "package.module:name" or "file.py:name", and reads its form.

    Raises UserError, which begins with `where`, if it cannot be imported or has neither form.
    """
    return of_callable(find(name, where), f"{where}: {name!r}")


def of_callable(function: Any, said: str) -> RewardFunction:
    """A callable with its form. Raises UserError, which begins with `said`, if it has neither form."""
    try:
        signature = inspect.signature(function)
        signature.bind(None, None)
    except (TypeError, ValueError) as error:  # ValueError: a function written in C may have no signature
        raise UserError(f"{said} cannot be called as {FORMS}: {error}") from None
    first, second = [*signature.parameters.values(), None, None][:2]
    names = tuple(each.name for each in (first, second) if each and each.kind is not each.KEYWORD_ONLY)
    if names not in (("record", "answer"), ("records", "answers")):
        raise UserError(
            f"{said} cannot be called as {FORMS}: it takes {signature}; name its parameters (record, answer) to score "
            "one answer in a call, or (records, answers) to score all answers of a step in a call"
        )
    awaited = any(map(inspect.iscoroutinefunction, (function, getattr(function, "__call__", None))))  # noqa: B004
    return RewardFunction(function, batched=names[0] == "records", awaited=awaited)


def score_all(
    functions: Mapping[str, RewardFunction], records: Sequence[Mapping], answers: Sequence[str]
) -> dict[str, Float[np.ndarray, " R"]]:
    """The score of each answer by each function, float32 [R], in the order of the answers.

    The calls of `async` functions run while the other functions are called one after the other. The first call that
    fails ends all.

    Args:
      functions: the functions by their rewards' names, which messages use.
      records: the record of each answer's prompt; functions get copies.
      answers: the texts.

    Raises:
      UserError: a call raised an exception, took longer than its limit, or gave anything but finite numbers. Where
        several processes train together, it is raised in all of them.
      InterruptedError: a signal has asked the run to end, and the functions took longer than GRACE_SECONDS after it.
    """
    if not functions or not answers:
        return {name: np.zeros(len(answers), np.float32) for name in functions}
    if jax.process_count() == 1:
        return _score_here(functions, records, answers)
    message, scores = "", {name: np.zeros(len(answers), np.float32) for name in functions}
    if jax.process_index() == 0:
        try:
            scores = _score_here(functions, records, answers)
        except UserError as error:
            message = str(error)
    encoded = np.frombuffer(message.encode()[:MESSAGE_BYTES].ljust(MESSAGE_BYTES, b"\0"), np.uint8)
    with jax.transfer_guard("allow"):
        encoded, scores = multihost_utils.broadcast_one_to_all((encoded, scores))
    if message := bytes(np.asarray(encoded, np.uint8)).rstrip(b"\0").decode(errors="ignore"):
        raise UserError(message)
    return {name: np.asarray(score_R, np.float32) for name, score_R in scores.items()}


def check_functions(functions: Mapping[str, RewardFunction], records: Sequence[Mapping]) -> None:
    """Calls each function once, so that what is wrong with it is known before answers are drawn.

    A function is called with the first prompt and the answer in the data, or an empty one where the data has none. A
    batched function gets the first two prompts.

    Args:
      functions: the functions by their rewards' names.
      records: the records of the prompts.

    Raises the errors of `score_all`.
    """
    for batched, count in ((False, 1), (True, 2)):
        tried, asked = {n: f for n, f in functions.items() if f.batched == batched}, records[:count]
        if not tried or not asked:
            continue
        try:
            score_all(tried, asked, [record.get("reference") or "" for record in asked])
        except UserError as error:
            raise UserError(f"{error}; every reward is tried on the first prompt before answers are drawn") from error


# The calls of one process -----------------------------------------------------------------------------------------


class _Progress:
    """How many answers each function has scored, for lines that say that functions are waited for."""

    def __init__(self, functions: Mapping[str, RewardFunction], count: int):
        self.scored, self.count = dict.fromkeys(functions, 0), count
        self._done = threading.Event()

    def __enter__(self) -> "_Progress":
        threading.Thread(target=self._tell, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()

    def _tell(self) -> None:
        begin, pause = time.monotonic(), SLOW_SECONDS
        while not self._done.wait(pause):
            for name, scored in self.scored.items():
                if scored < self.count:
                    seconds = time.monotonic() - begin
                    tell(f"reward {name}: {scored} of {self.count} answers are scored after {seconds:.0f} s")
            pause *= 2


def _score_here(
    functions: Mapping[str, RewardFunction], records: Sequence[Mapping], answers: Sequence[str]
) -> dict[str, np.ndarray]:
    scores = {name: np.zeros(len(answers), np.float32) for name in functions}
    awaited = {name: function for name, function in functions.items() if function.awaited}
    # The guard of the loop watches the recipes' transfers; a user's function may compute with JAX.
    with _Progress(functions, len(answers)) as progress, _ends_soon() as ended, jax.transfer_guard("allow"):
        waiting = _in_event_loop(_score_awaited(awaited, records, answers, scores, progress)) if awaited else None
        try:
            for name in [name for name in functions if name not in awaited]:
                _score_called(name, functions[name], records, answers, scores[name], progress, ended)
            if waiting:
                with contextlib.suppress(concurrent.futures.CancelledError):
                    waiting.result()
        finally:
            if waiting:
                waiting.cancel()
    for name in awaited:
        if progress.scored[name] < len(answers):
            told = f"{progress.scored[name]} of {len(answers)} answers are scored"
            raise UserError(f"reward {name}: {told}; a function has cancelled tasks that are not its own")
    return scores


def _score_called(
    name: str,
    function: RewardFunction,
    records: Sequence[Mapping],
    answers: Sequence[str],
    scores_R: np.ndarray,
    progress: _Progress,
    ended: threading.Event,
) -> None:
    """Writes the scores by a function that is not `async` into `scores_R`, one call after the other."""
    for rows in function.calls(len(answers)):
        with _told(name, function, answers[rows]):
            value = _listed(function.call(*_arguments(function, records[rows], answers[rows])))
            if ended.is_set():  # the function caught what should have ended it
                raise _Ended
            if inspect.isawaitable(value):
                getattr(value, "close", lambda: None)()
                raise UserError(f"reward {name}: gave a {type(value).__name__}; define the function with `async def`")
            scores_R[rows] = _scores(name, function, value, answers[rows])
        progress.scored[name] = rows.stop


async def _score_awaited(
    functions: Mapping[str, RewardFunction],
    records: Sequence[Mapping],
    answers: Sequence[str],
    scores: Mapping[str, np.ndarray],
    progress: _Progress,
) -> None:
    """Writes the scores by `async` functions into the arrays of `scores`."""

    async def work(name: str, function: RewardFunction, calls: Iterator[slice]) -> None:
        for rows in calls:  # the workers of a function share them
            with _told(name, function, answers[rows], passed=(asyncio.CancelledError, GeneratorExit)):
                value = await _awaited_value(name, function, records[rows], answers[rows])
                scores[name][rows] = _scores(name, function, value, answers[rows])
            progress.scored[name] += rows.stop - rows.start

    workers = []
    for name, function in functions.items():
        calls = function.calls(len(answers))
        shared = iter(calls)
        workers += [asyncio.create_task(work(name, function, shared)) for _ in calls[: function.limit]]
    try:
        await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.wait(workers, timeout=CANCEL_SECONDS)
    errors = [worker.exception() for worker in workers if worker.done() and not worker.cancelled()]
    if error := next((each for each in errors if each), None):
        raise error


async def _awaited_value(
    name: str, function: RewardFunction, records: Sequence[Mapping], answers: Sequence[str]
) -> Any:
    """What a call of an `async` function gives. Raises UserError for a call that fails or takes too long."""
    call = asyncio.ensure_future(
        function.call(*_arguments(function, records, answers))
    )  # which may refuse to be cancelled
    try:
        in_time, _ = await asyncio.wait([call], timeout=function.timeout_seconds)
    finally:
        if not call.done():
            call.cancel()
            await asyncio.wait([call], timeout=CANCEL_SECONDS)
        if call.done() and not call.cancelled():
            call.exception()  # asyncio tells of exceptions that nobody asks for
    if not in_time:
        seconds = f"{function.timeout_seconds:g} s (timeout_seconds)"
        raise UserError(f"reward {name}: no score after {seconds} for {_which(function, answers)}")
    if call.cancelled():
        raise UserError(f"reward {name}: the call cancelled itself for {_which(function, answers)}")
    return _listed(call.result())


def _in_event_loop(coroutine: Coroutine) -> Any:
    """Starts a coroutine in the event loop of the process, and returns its `concurrent.futures.Future`."""
    return asyncio.run_coroutine_threadsafe(coroutine, _event_loop())


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """The event loop of all `async` functions. Its thread ends with the process; the main thread is left to signals."""
    loop = asyncio.new_event_loop()

    def run() -> None:
        while not loop.is_closed():  # a user's function may stop the loop, or end it by a SystemExit in a callback
            with contextlib.suppress(BaseException):
                loop.run_forever()

    threading.Thread(target=run, name="rewards", daemon=True).start()
    return loop


# One call ---------------------------------------------------------------------------------------------------------


def _arguments(function: RewardFunction, records: Sequence[Mapping], answers: Sequence[str]) -> tuple[Any, Any]:
    """The arguments of a call: copies of the records, because a function may write into them."""
    copies = [copy.deepcopy(record) for record in records]
    return (copies, list(answers)) if function.batched else (copies[0], answers[0])


@contextlib.contextmanager
def _told(
    name: str,
    function: RewardFunction,
    answers: Sequence[str],
    passed: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
) -> Iterator[None]:
    """Makes one line of whatever a user's function may raise.

    passed: what goes on as it is, because it may come from outside of the function. So do this package's own exceptions
    that end a command, which signal handlers raise.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if isinstance(error, passed) or not (isinstance(error, Exception) or is_users(type(error).__module__)):
            raise
        raise UserError(f"reward {name}: {raised(error)} for {_which(function, answers)}") from error


def _which(function: RewardFunction, answers: Sequence[str]) -> str:
    """The answers of a call, for messages."""
    if function.batched:
        return f"{len(answers)} answers, the first {_shorten.repr(answers[0])}"
    return f"answer {_shorten.repr(answers[0])}"


def _listed(value: Any) -> Any:
    """What a call gives; the items of a generator, which runs the user's code as it is read."""
    return list(value) if inspect.isgenerator(value) else value


def _scores(name: str, function: RewardFunction, value: Any, answers: Sequence[str]) -> list[float]:
    """The scores of a call's answers. Raises UserError unless there is a finite number for each."""
    if not function.batched:
        return [_number(name, value, answers[0])]
    ordered = hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, str | Mapping)
    if not ordered or getattr(value, "ndim", 1) == 0:
        said = f"gave {_shorten.repr(value)} for {_which(function, answers)}"
        raise UserError(f"reward {name}: {said}; it must be a sequence of finite numbers")
    if len(value) != len(answers):
        raise UserError(f"reward {name}: gave {len(value)} scores for {len(answers)} answers; give one for each")
    return [_number(name, each, answer) for each, answer in zip(value, answers, strict=True)]


def _number(name: str, value: Any, answer: str) -> float:
    is_number = hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0
    try:
        score = float(value) if is_number else math.nan
    except (ArithmeticError, ValueError, TypeError):  # a whole number beyond all floats, a signalling NaN
        score = math.nan
    if not abs(score) <= LARGEST_SCORE:
        said = f"gave {_shorten.repr(value)} for answer {_shorten.repr(answer)}"
        raise UserError(f"reward {name}: {said}; it must be a finite number")
    return score


# Signals ----------------------------------------------------------------------------------------------------------


class _Ended(BaseException):
    """Ends the call of a user's function, whatever Exception it catches."""


@contextlib.contextmanager
def _ends_soon() -> Iterator[threading.Event]:
    """Functions that are called in this context do not keep a run from ending at a signal.

    A signal goes to the handler that is there, which lets the current step end first. If the functions are not done
    GRACE_SECONDS later, the context raises InterruptedError in the main thread, in whatever call it waits. The event
    that the context gives is then set. Signals without a handler in Python keep their effect.
    """
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    handlers = {n: h for n, h in handlers.items() if callable(h) and h is not signal.default_int_handler}
    ended, left = threading.Event(), threading.Event()
    if threading.current_thread() is not threading.main_thread() or not handlers:
        yield ended
        return
    main, timers = threading.get_ident(), []

    def note(number: int, frame: Any) -> None:
        if ended.is_set():
            if not left.is_set():
                raise _Ended
            return
        if not timers:
            timers.append(threading.Timer(GRACE_SECONDS, end, [number]))
            timers[0].daemon = True
            timers[0].start()
        handlers[number](number, frame)

    def end(number: int) -> None:
        ended.set()
        signal.pthread_kill(main, number)  # interrupts the call that the main thread waits in

    for number in handlers:
        signal.signal(number, note)
    try:
        try:
            yield ended
        finally:
            left.set()
            for timer in timers:
                timer.cancel()
                timer.join()
            for number, handler in handlers.items():
                signal.signal(number, handler)
    except _Ended:
        raise InterruptedError("the rewards of the step were not waited for") from None
