"""Makes the sampling settings of an answer (`model.sampling.Sampling`), and the text of its tokens."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from ..data.stop_strings import cut
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from ..model.sampling import Sampling
from ..model.stopping import Stops, stops_of
from .interop.generation_config import GenerationDefaults


def sampling_of(
    tokenizer: Tokenizer,
    rows: int,
    *,
    stop_ids: Iterable[int],
    stop: str | Sequence[str] = (),
    **fields: Any,
) -> Sampling:
    """The sampling settings for a tokenizer and a network.

    Args:
      tokenizer: the network's tokenizer.
      rows: rows of the network's embedding; ids without a token are never drawn.
      stop_ids: ids that end an answer.
      stop: strings that end an answer.
      **fields: further fields of `Sampling`, such as temperature.

    Raises:
      UserError: a field is out of range, or a stop string is empty, too long or not text.
    """
    try:
        return Sampling(
            stop_ids=tuple(sorted(set(stop_ids))),
            stops=_stops(tokenizer, rows, strings_of(stop)),
            unused=_unused(tokenizer, rows),
            **fields,
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def strings_of(stop: str | Sequence[str], defaults: GenerationDefaults | None = None) -> tuple[str, ...]:
    """The strings that end an answer, each once: the caller's `stop`, then those that a model recommends."""
    given = tuple(stop) if isinstance(stop, (tuple, list)) else (stop,)
    if wrong := [each for each in given if not isinstance(each, str)]:
        raise UserError(f"stop has {wrong[0]!r}, which is not a string: give strings")
    return tuple(dict.fromkeys((*given, *(defaults.stop if defaults is not None else ()))))


def text_of(tokenizer: Tokenizer, ids: Sequence[int], sampling: Sampling) -> str:
    """The text of an answer's tokens without the stop id or stop string that ended it."""
    said = ids[:-1] if len(ids) and ids[-1] in sampling.stop_ids else ids
    strings = [] if sampling.stops is None else [string.decode() for string in sampling.stops.strings]
    return cut(tokenizer.decode(said), strings)


@functools.lru_cache(maxsize=4)
def _stops(tokenizer: Tokenizer, rows: int, strings: tuple[str, ...]) -> Stops | None:
    if not strings:
        return None
    try:
        as_bytes = [string.encode() for string in strings]
    except UnicodeEncodeError as error:
        raise ValueError(f"stop {error.object!r} cannot be written in UTF-8: give text") from None
    if any("\N{REPLACEMENT CHARACTER}" in string for string in strings):
        raise ValueError("a stop string has U+FFFD, which stands for bytes that are no character: give text")
    return stops_of(as_bytes, tokenizer.token_bytes[:rows], rows, drops_first_space=tokenizer.drops_first_space)


@functools.lru_cache(maxsize=4)
def _unused(tokenizer: Tokenizer, rows: int) -> tuple[tuple[int, int], ...]:
    return tokenizer.unused(rows)
