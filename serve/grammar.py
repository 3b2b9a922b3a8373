"""Answers that must be JSON, or fit a JSON schema: which tokens may come next, by llguidance."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import llguidance
import numpy as np
from jaxtyping import Bool, Int
from llguidance.numpy import fill_next_token_bitmask

from ..data.tokenizer import Tokenizer
from ..errors import UserError

SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Spaces in answers. If the model could choose, it might write spaces without end."""
LIMITS = llguidance.LLParserLimits(initial_lexer_fuel=100_000, verbose_errors=False)
"""Bounds of the work for a schema: some hundredths of a second."""


class _Vocabulary:
    """A tokenizer in the form that llguidance takes."""

    def __init__(self, tokens: Sequence[bytes], end: int, special: Sequence[int], encode: Callable[[str], list[int]]):
        self.tokens, self.eos_token_id, self.bos_token_id, self.special_token_ids = tokens, end, None, special
        self._encode = encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


class Grammar:
    """What an answer may be, and how far it has come."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int):
        self._matcher = matcher
        self._mask_1W: Int[np.ndarray, "1 W"] = np.zeros((1, -(-vocab_size // 32)), np.int32)
        self._vocab_size = vocab_size

    def copy(self) -> "Grammar":
        """The grammar for another answer, which may have come to another place."""
        return Grammar(self._matcher.deep_copy(), self._vocab_size)

    def allowed(self) -> Bool[np.ndarray, " V"]:
        """The tokens that may come next. Raises UserError where the grammar cannot go on."""
        fill_next_token_bitmask(self._matcher, self._mask_1W)
        self._check()
        return np.unpackbits(self._mask_1W.view(np.uint8), bitorder="little")[: self._vocab_size].astype(bool)

    def take(self, token: int) -> bool:
        """Takes the next token. Returns whether the answer is complete and nothing may follow.

        Raises UserError where the grammar cannot go on, such as beyond llguidance's limits.
        """
        self._matcher.consume_token(token)
        self._check()
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UserError(f"its grammar fails: {' '.join(self._matcher.get_error().split())[:200]}")


class Grammars:
    """The grammars of one model.

    Args:
      tokenizer: the model's tokenizer.
      vocab_size: rows of the network's embedding.
      ends: ids that end an answer.

    Raises UserError for a tokenizer that cannot write JSON.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, ends: Sequence[int]):
        sample = '{"a": [-1.5e3, true, null, "\\u0041"]}'
        if tokenizer.decode(tokenizer.encode(sample)).strip() != sample:
            raise UserError("the model's tokenizer has no tokens for the characters of JSON")
        tokens = [*tokenizer.token_bytes, *[b""] * (vocab_size - len(tokenizer.token_bytes))][:vocab_size]
        named = [data or b"\xff[" + str(i).encode() + b"]" for i, data in enumerate(tokens)]  # as llguidance marks them
        special = [i for i, data in enumerate(tokens) if not data]
        vocabulary = _Vocabulary(named, ends[0], special, functools.partial(tokenizer.encode, continues=True))
        wrapped = llguidance.TokenizerWrapper(vocabulary)
        self._tokenizer = llguidance.LLTokenizer(wrapped, n_vocab=vocab_size, eos_token=list(ends))
        self._vocab_size = vocab_size

    def of_schema(self, schema: Mapping[str, Any]) -> Grammar:
        """The grammar of a JSON schema; {} stands for any object.

        Raises UserError for a schema that is not supported, or too complex.
        """
        schema = schema or {"type": "object"}
        try:
            text = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=SPACES)
        except ValueError as error:
            raise UserError(f"the JSON schema is not valid: {error}") from None
        grammar = Grammar(llguidance.LLMatcher(self._tokenizer, text, log_level=0, limits=LIMITS), self._vocab_size)
        try:
            grammar.allowed()  # here, not between the steps of other answers
        except UserError as error:
            raise UserError(f"the JSON schema is not supported: {error}") from None
        return grammar
