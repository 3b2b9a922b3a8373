"""A model of ours as lm-evaluation-harness sees it: `loglikelihood`, `loglikelihood_rolling`, `generate_until`.

Tokens, contexts and windows are cut as the library's Hugging Face backend cuts them, so that the numbers are the same.
This file imports lm_eval; nothing but `harness.py` imports this file.
"""

import functools
import json
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval import utils
from lm_eval.api.model import LM as HarnessLM

from ..errors import UserError
from .lm import LM, encode_pair

BLOCK = 64
"""Samples of a prompt that are drawn with one seed."""

MAX_TOKENS = 256
"""Length of an answer where the task gives none, as in the harness."""

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the length of an answer in a task's generation_kwargs; the first that is there holds."""


class HarnessModel(HarnessLM):
    """An `LM` as a model of lm-evaluation-harness.

    Args:
      lm: the model.
      seed: seed of sampled answers.
    """

    def __init__(self, lm: LM, *, seed: int = 0):
        super().__init__()
        self._lm, self._seed = lm, seed
        self._encode_pair = functools.lru_cache(1 << 14)(functools.partial(encode_pair, lm))
        self._is_space = functools.lru_cache(256)(lambda token: lm.decode([token]).isspace())
        self._chat_ids = functools.lru_cache(256)(lambda chat: lm.chat_ids(json.loads(chat)))

    # What the harness asks -------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding would write it) of each request's continuation."""
        return self._likelihoods([self._pair(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """The log-probability of each text, in windows of the model's context; every token is predicted once.

        As in the Hugging Face backend a text begins with the tokenizer's own bos after the token that stands for an
        empty context: a tokenizer that adds bos has it predicted once.
        """
        windows, owner = [], []
        for number, request in enumerate(requests):
            tokens = [*self._lm.begin, *self._lm.encode(request.args[0])]
            cut = utils.get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
            windows += map(utils.make_disjoint_window, cut)
            owner += [number] * (len(windows) - len(owner))
        sums = [0.0] * len(requests)
        for number, (logp, _) in zip(owner, self._likelihoods(windows), strict=True):
            sums[number] += logp
        return sums

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to each request. Requests that are alike, `repeats` of a task, get one sample each."""
        places: dict[tuple[tuple[int, ...], str], list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            context, given = request.args[:2]
            settings = generation_settings(given, request.task_name)
            ids = self._context(context)
            room = self.max_length - settings["max_tokens"]
            if room < 1:
                said = f"asks for answers of {settings['max_tokens']} tokens, the model's context has {self.max_length}"
                raise UserError(f"task {request.task_name} {said}: give a smaller max_gen_toks as generation setting")
            places[tuple(ids[-room:]), json.dumps(settings)].append(place)
        answers = [""] * len(requests)
        for settings in dict.fromkeys(settings for _, settings in places):
            asked = {ids: places[ids, text] for ids, text in places if text == settings}
            greedy = not json.loads(settings)["temperature"]
            counts = {ids: 1 if greedy else len(where) for ids, where in asked.items()}
            for ids, texts in self._answers(counts, json.loads(settings)).items():
                for number, place in enumerate(asked[ids]):
                    answers[place] = texts[0 if greedy else number]
        return answers

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as JSON: its tokens come from the chat template later, control tokens by id."""
        return json.dumps([dict(message) for message in chat_history], ensure_ascii=False)

    @property
    def tokenizer_name(self) -> str:
        """Name under which the harness keeps requests that it has built."""
        return f"{self._lm.name}"

    @property
    def max_length(self) -> int:
        return self._lm.max_len

    @property
    def eot_token_id(self) -> int:
        return self._lm.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty context."""
        return self._lm.prefix_id

    # Tokens ----------------------------------------------------------------------------------------------------------

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The tokens of a request, cut from the left to the model's context."""
        if is_chat(context):
            first, second = self._chat_pair(context, continuation)
        else:
            first, second = self._encode_pair(context, continuation)
        if not second:
            raise UserError(f"a continuation has no tokens: {continuation!r} after {context[-60:]!r}")
        if len(second) > self.max_length:
            raise UserError(
                f"a continuation of {len(second):,} tokens exceeds the model's context of {self.max_length:,}: "
                f"{continuation[:60]!r}"
            )
        return first[-(self.max_length + 1 - len(second)) :], second

    def _chat_pair(self, chat: str, continuation: str) -> tuple[list[int], list[int]]:
        """The tokens of a conversation and of an answer, or of an answer that its last turn has begun.

        White space at the end of the template belongs to the continuation, as with texts.
        """
        messages = json.loads(chat)
        begun = ""
        if messages[-1]["role"] == "assistant":
            begun = messages.pop()["content"]
        context, answer = self._lm.chat_pair(messages, begun + continuation)
        size = len(self._lm.chat_pair(messages, begun)[1]) if begun else 0
        first, second = [*context, *answer[:size]], answer[size:]
        while not begun and len(first) > 1 and self._is_space(first[-1]):
            second.insert(0, first.pop())
        return first, second

    def _context(self, context: str) -> list[int]:
        if not is_chat(context):
            return [*self._lm.begin, *self._lm.encode(context)] or [self.prefix_token_id]
        messages = json.loads(context)
        if messages[-1]["role"] != "assistant":
            return list(self._chat_ids(context))
        first, second = self._lm.chat_pair(messages[:-1], messages[-1]["content"])
        return [*first, *second]

    # Answers ---------------------------------------------------------------------------------------------------------

    def _likelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        return [(each.logp, each.is_greedy) for each in self._lm.loglikelihoods(pairs)]

    def _answers(self, counts: Mapping[tuple[int, ...], int], settings: Mapping[str, Any]) -> dict[Any, list[str]]:
        """As many answers to each prompt as `counts` says.

        They are drawn in blocks of at most BLOCK, each with a seed of its own, so that the number of prompts does not
        change what is sampled.
        """
        found: dict[tuple[int, ...], list[str]] = {prompt: [] for prompt in counts}
        blocks: dict[tuple[int, int], list[tuple[int, ...]]] = defaultdict(list)
        for prompt, count in counts.items():
            for first in range(0, count, BLOCK):
                blocks[first, min(BLOCK, count - first)].append(prompt)
        for (first, n), prompts in sorted(blocks.items()):
            seed = zlib.crc32(f"{self._seed}/{first}".encode())
            for prompt, texts in zip(prompts, self._lm.generate(prompts, n=n, seed=seed, **settings), strict=True):
                found[prompt] += texts
        return found


def is_chat(context: str) -> bool:
    """Whether a context is a conversation that `HarnessModel.apply_chat_template` wrote."""
    return context.startswith('[{"role": ')


def generation_settings(given: Mapping[str, Any], task: str | None) -> dict[str, Any]:
    """The arguments of `LM.generate` for a task's generation_kwargs.

    Raises UserError for a setting that has no counterpart, because the task's answers would be others without it.
    """
    given = dict(given)
    lengths = [given.pop(name) for name in LENGTHS if given.get(name) is not None]
    until = given.pop("until", None) or []
    temperature = float(given.pop("temperature", 0.0) or 0.0)
    sampled = given.pop("do_sample", None)
    found = {
        "max_tokens": int(lengths[0]) if lengths else MAX_TOKENS,
        "stop": [each for each in ([until] if isinstance(until, str) else until) if each],
        "temperature": 0.0 if sampled is False else temperature,
        "top_p": float(given.pop("top_p", 1.0)),
    }
    if sampled and not temperature:
        raise UserError(f"task {task} asks for samples at temperature 0: give a temperature, or leave do_sample out")
    if given:
        name, value = next(iter(given.items()))
        raise UserError(
            f"task {task} has the generation setting {name}={value!r}: only until, max_gen_toks, do_sample, "
            "temperature and top_p are known here"
        )
    return found
