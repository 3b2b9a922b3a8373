"""What a client sees of an answer: its text in pieces, cut before a stop string, and the tokens of each piece."""

from collections.abc import Sequence
from typing import NamedTuple

from ..data.stop_strings import StopFilter
from ..data.tokenizer import Tokenizer
from .requests import Answer, Token


class Piece(NamedTuple):
    """Text that can be passed on, and the tokens that were taken for it."""

    text: str
    tokens: list[Token]


class TextOf:
    """Turns the tokens of an answer into text as they come.

    Args:
      answer: the answer.
      tokenizer: the model's tokenizer.
      continues: whether the text goes on from the prompt's: a space at its beginning is then its own.

    Attributes:
      ended: whether all text was given.
    """

    def __init__(self, answer: Answer, tokenizer: Tokenizer, *, continues: bool):
        self._answer, self._decoder, self.ended = answer, tokenizer.stream(), False
        if continues:
            for token in answer.request.prompt:
                self._decoder.push(token)
        stops = answer.request.sampling.stops
        self._filter = StopFilter([] if stops is None else [string.decode() for string in stops.strings])

    def push(self, tokens: Sequence[Token]) -> Piece:
        """Takes the next tokens. Text that may begin a stop string is held back."""
        said, ended = [], self._answer.request.sampling.stop_ids
        for token in tokens:
            if token.id not in ended:  # a stop id may have a text, which is not part of the answer
                said.append(self._filter.push(self._decoder.push(token.id)))
        return Piece("".join(said), list(tokens))

    def end(self) -> str:
        """The text that was held back, once the answer has ended."""
        self.ended = True
        return self._filter.push(self._decoder.flush()) + self._filter.flush()
