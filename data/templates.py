"""Chat templates: turn messages into tokens, and mark the tokens that are trained on.

A template is a jinja2 file in Hugging Face's form. It gets the variables that transformers gives it: `messages`,
`tools`, `documents`, `add_generation_prompt`, the spellings of the special tokens, and a few functions. The rendered
text is the same as in transformers, character for character.

A conversation is rendered once, with the origin of every character (`traced_text`). The text is cut at the control
tokens that the template writes, and where the assistant's turns begin, which is where generation begins. Each piece is
encoded by itself and trained on as a whole or not at all. So the tokens of a prompt are always the beginning of the
conversation's tokens.

A turn of the assistant (`template_regions`) always ends in a control token, or nothing would teach the model to stop.
It is the one that the template writes after the words. If the tokenizer has no such token (ChatML with LLaMA's
tokenizer), it is the end of text, put before the template's spelling. The end token is trained on too.

The text of messages stays text: only what the template itself writes can become a control token.
"""

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from ..errors import UserError
from .added_tokens import AddedTokenMatch, find_added_tokens, spelling_pattern
from .conversation import Conversation
from .template_limits import LimitReached
from .template_regions import Region, Rendered, block_regions, blocks, rendered_of, shared_length, word_regions
from .template_tracing import CompiledTemplate, compile_template
from .tokenizer import Tokenizer
from .traced_text import BLENDED, FIRST_TURN, TEMPLATE, WORDS

TRACING_VERSION = b"3"
"""Raised by one when templates that are not built in give other tokens, or another mask, than before."""
_FOLDER = epath.Path(__file__).parent / "templates"
BUILT_IN = tuple(sorted(path.stem for path in _FOLDER.glob("*.jinja")))


@functools.cache
def _built_in_sources() -> frozenset[str]:
    return frozenset((_FOLDER / f"{name}.jinja").read_text() for name in BUILT_IN)


class Encoded(NamedTuple):
    """A tokenised text."""

    tokens: np.ndarray  # int32 [n]
    mask: np.ndarray  # bool [n], true where the token is trained on as a target


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A chat template."""

    name: str  # for messages
    source: str  # jinja

    def __post_init__(self):
        self._compiled()  # so that errors in the source are raised here

    def _compiled(self) -> CompiledTemplate:
        return compile_template(self.source, self.name, is_verified=self.source in _built_in_sources())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the source, in hexadecimal; for templates that are not built in, of TRACING_VERSION too."""
        version = b"" if self.source in _built_in_sources() else TRACING_VERSION  # their output has never changed
        return hashlib.sha256(self.source.encode() + version).hexdigest()

    def render(
        self,
        messages: Sequence[dict],
        tokenizer: Tokenizer,
        *,
        generation_prompt: bool = False,
        tools: Sequence[dict] | None = None,
        documents: Sequence[dict] | None = None,
    ) -> str:
        """The conversation as text for people to read; `encode` may cut text that looks the same into other tokens.

        Args:
            messages: as for `encode`.
            tokenizer: gives the spellings of the special tokens.
            generation_prompt: as for `encode`.
            tools: as for `encode`.
            documents: as for `encode`.

        Raises:
            UserError: a message is malformed, or the template refuses the conversation.
        """
        compiled = self._compiled()
        messages = _with_supported_arguments(self, tokenizer, messages)
        conversation = Conversation.from_messages(messages, tools, documents, generation_prompt, compiled)
        return compiled.render(conversation.variables(tokenizer), conversation.characters)

    def encode(
        self,
        messages: Sequence[dict],
        tokenizer: Tokenizer,
        *,
        generation_prompt: bool = False,
        tools: Sequence[dict] | None = None,
        documents: Sequence[dict] | None = None,
    ) -> Encoded:
        """Tokens of a conversation, with the mask of the tokens that the assistant should learn.

        Args:
            messages: `{"role", "content"}`. User turns may have `"input"` (Alpaca's). Assistant turns may have
                `"tool_calls"`, `"reasoning_content"`, and `"train"`: False for a turn that is not trained on.
            tokenizer: the tokenizer; control tokens that it lacks are written as plain text.
            generation_prompt: whether to end with the beginning of the assistant's next turn.
            tools: JSON schemas of functions, for templates that write them.
            documents: `{"title", "text"}`, for templates that write them.

        Returns:
            Tokens int32 [n] and mask bool [n]. Without an assistant's turn the mask is all false.

        Raises:
            UserError: there is no message, or a malformed one; the template refuses messages or does not write all of
                them; or the assistant's part of the text is unknown.
        """
        turns = _turn_format(self, tokenizer)
        messages = _with_supported_arguments(self, tokenizer, messages)
        return turns.encode(Conversation.from_messages(messages, tools, documents, generation_prompt, turns.compiled))

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The ids of the tokens that end an assistant's turn in this template, and the end of text; sorted."""
        turns = _turn_format(self, tokenizer)
        ends = {region.ends_in for region in turns.regions_of(_PROBE)}
        for call in _PROBE_CALLS if "tool_calls" in turns.compiled.keys else ():
            try:
                ends |= {region.ends_in for region in turns.regions_of(call, _PROBE_TOOLS)[:1]}
            except UserError:  # the template needs arguments in the other form, or other roles
                continue
        return tuple(sorted({tokenizer.eos_id} | ends - {None}))


def load_template(name_or_path: str | epath.Path) -> ChatTemplate:
    """A built-in template by its name, a template file by its path, or a template given as its jinja source.

    Raises:
        UserError: there is no such template, or it is not valid jinja.
    """
    text = str(name_or_path)
    if text in BUILT_IN:
        return ChatTemplate(text, (_FOLDER / f"{text}.jinja").read_text())
    if "{{" in text or "{%" in text:
        return ChatTemplate("custom", text)
    path = epath.Path(name_or_path)
    if not path.is_file():
        raise UserError(f"no chat template {text!r}: give one of {', '.join(BUILT_IN)}, or a path to a .jinja file")
    try:
        source = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"chat template {text} is not UTF-8: {error}") from None
    if "messages" not in source:
        raise UserError(f"{path} is not a chat template: it does not use the variable `messages`")
    return ChatTemplate(path.stem, source)


def encode_text(text: str, tokenizer: Tokenizer) -> Encoded:
    """Tokens of a document: bos if the tokenizer begins texts with it, the text, and eos. All but bos is trained on."""
    start = [tokenizer.bos_id] if tokenizer.adds_bos else []
    tokens = np.array([*start, *tokenizer.encode(text), tokenizer.eos_id], np.int32)
    return Encoded(tokens, np.arange(len(tokens)) >= len(start))


# How a template writes turns -----------------------------------------------------------------------------

# Each content ends in a full stop, since an added token with `single_word` is not found directly behind a letter.
_PROBE = [{"role": "user", "content": "a."}, {"role": "assistant", "content": "b."}] * 2
_PROBE_TOOLS = [{"type": "function", "function": {"name": "f", "description": "a", "parameters": {"type": "object"}}}]
_PROBE_CALLS = [
    [
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "id": "call00001", "function": {"name": "f", "arguments": arguments}}],
        },
        {"role": "tool", "content": "c", "name": "f", "tool_call_id": "call00001"},
        {"role": "assistant", "content": "d"},
    ]
    for arguments in ({"b": "b"}, '{"b": "b"}')
]


def _with_supported_arguments(template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[dict]) -> Sequence[dict]:
    """The messages, with arguments of tool calls written as JSON if the template needs them in that form."""
    if not any(message.get("tool_calls") for message in messages) or not _needs_json_arguments(template, tokenizer):
        return messages
    return [
        message | {"tool_calls": [_with_json_arguments(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _with_json_arguments(call: dict) -> dict:
    """The tool call with its arguments as a JSON string."""
    function = call["function"]
    if isinstance(function["arguments"], str):
        return call
    return call | {"function": function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


@functools.lru_cache(maxsize=32)
def _needs_json_arguments(template: ChatTemplate, tokenizer: Tokenizer) -> bool:
    """Whether a template writes arguments of tool calls as JSON only if they are given as a JSON string.

    Given an object, such a template writes Python's repr of it, or fails.
    """
    compiled = template._compiled()
    tools = _PROBE_TOOLS if "tools" in compiled.variables else None

    def writes_json(call: list[dict]) -> bool:
        try:
            conversation = Conversation.from_messages(call, tools, None, False, compiled)
            return '{"b": "b"}' in compiled.render(conversation.variables(tokenizer), conversation.characters)
        except UserError:
            return False

    as_object, as_text = map(writes_json, _PROBE_CALLS)
    return as_text and not as_object


@functools.lru_cache(maxsize=32)
def _turn_format(template: ChatTemplate, tokenizer: Tokenizer) -> "_TurnFormat":
    return _TurnFormat(template._compiled(), tokenizer)


class _TurnFormat:
    """How a template writes turns with a tokenizer, learnt from a short conversation, and the tokens of its output.

    Attributes:
        ends: as in `TurnContext`.
        has_end: as in `TurnContext`.
        blocks_follow_prompts: as in `TurnContext`.
        bos_id: as in `TurnContext`.
        opening: as in `TurnContext`.
        quoted: spellings that only the template may write as tokens, but that the tokenizer finds in plain text too.
        quoted_said: those of `quoted` that an assistant must not write: the ends of turns and the beginnings of
            others'.
    """

    def __init__(self, compiled: CompiledTemplate, tokenizer: Tokenizer):
        self.compiled, self.tokenizer = compiled, tokenizer
        # Blank spellings (runs of spaces, line breaks) join with adjacent blanks; the tokenizer itself finds them.
        self._added = {spelling: token for spelling, token in tokenizer.added.items() if spelling.strip()}
        self._added_ids = {token.id for token in tokenizer.added.values()}
        self._pattern = spelling_pattern(self._added)
        self.ends, self.has_end, self.blocks_follow_prompts, self.opening = frozenset(), False, False, ""
        self.bos_id = None if tokenizer.bos_id == tokenizer.eos_id else tokenizer.bos_id
        self.quoted = self.quoted_said = None
        try:
            self._learn()
        except LimitReached:
            raise
        except UserError:  # the template refuses the probe: every conversation is then examined on its own
            pass

    def _learn(self) -> None:
        """Fills the attributes by rendering _PROBE."""
        conversation = Conversation.from_messages(_PROBE, None, None, False, self.compiled)
        rendered = self._trace(conversation)
        regions = [region for region in self._regions(rendered, conversation) if region.turns]
        context = _TemplateTurnContext(self, conversation)
        prompts = [context.prompt(turn) for turn in conversation.assistant_turns()]
        starts = [block.start for block in blocks(rendered)]
        self.blocks_follow_prompts = len(regions) == len(prompts) and all(
            prompt is not None and rendered.text.startswith(prompt) and len(prompt) in starts for prompt in prompts
        )
        self.ends = frozenset(region.ends_in for region in regions) - {None}
        self.has_end = len(regions) == len(prompts) and all(region.ends_in is not None for region in regions)
        if None not in prompts:
            opening = prompts[-1][context.request_start(conversation.assistant_turns()[-1]) :]
            self.opening = opening if opening.strip() else ""
        others = [
            token for token in rendered.found if not any(r.start <= token.spelling_start < r.stop for r in regions)
        ]
        users = [run.start for run in rendered.runs if run.source == WORDS]
        to_users = {  # tokens before a user's words, with no turn of the assistant in between
            token.id
            for token in others
            for place in users[bisect.bisect_left(users, token.spelling_stop) :][:1]
            if not any(token.spelling_stop <= region.start < place for region in regions)
        }
        self.quoted = self._spellings(self.ends | {token.id for token in others})
        self.quoted_said = self._spellings(self.ends | to_users)

    def _spellings(self, ids: set[int] | frozenset[int]) -> re.Pattern | None:
        """A pattern of the spellings of added tokens with these ids, without control tokens."""
        return spelling_pattern(s for s, token in self._added.items() if token.id in ids and not token.special)

    def encode(self, conversation: Conversation) -> Encoded:
        """The tokens of a conversation, with the mask of the tokens that are trained on."""
        rendered = self._trace(conversation)
        regions = self._regions(rendered, conversation)
        trained = [self._is_trained(region, regions, conversation) for region in regions]
        return self._tokenize(rendered, regions, trained)

    def regions_of(self, messages: Sequence[dict], tools: Sequence[dict] | None = None) -> list[Region]:
        """The assistant's turns in the rendered text of a conversation."""
        tools = tools if "tools" in self.compiled.variables else None
        conversation = Conversation.from_messages(messages, tools, None, False, self.compiled)
        return self._regions(self._trace(conversation), conversation)

    def _trace(self, conversation: Conversation) -> Rendered:
        """The rendered text of a conversation with the origin of every character."""
        plain = conversation.variables(self.tokenizer)
        text = self.compiled.trace(conversation.traced(plain), plain, conversation.characters)
        rendered = rendered_of(text, self._find)
        if any(run.source == BLENDED for run in rendered.runs):
            raise UserError(
                f"chat template {self.compiled.name} changes a message together with other text, so it is not known "
                "which text is the message's: apply the change to the message alone"
            )
        return rendered

    def _find(self, text: str, stretches: list[tuple[int, int]]) -> list[AddedTokenMatch]:
        return find_added_tokens(text, stretches, self._pattern, self._added)

    def _regions(self, rendered: Rendered, conversation: Conversation) -> list[Region]:
        """The assistant's turns in a rendered conversation, in order."""
        context = _TemplateTurnContext(self, conversation)
        written = {run.source for run in rendered.runs}
        for turn in conversation.assistant_turns():
            if FIRST_TURN + turn not in written and conversation.has_words(turn):
                raise UserError(
                    f"chat template {self.compiled.name} writes nothing of message {turn + 1}, the assistant's: use a "
                    "template that writes all messages"
                )
        if self.compiled.marks_generation:
            return block_regions(rendered, context)
        regions = word_regions(rendered, conversation.assistant_turns(), context)
        if regions is None or any(a.stop > b.start for a, b in itertools.pairwise(regions)):
            raise UserError(
                f"chat template {self.compiled.name} cuts up the assistant's text, so it is unknown what to train on: "
                "put {% generation %} and {% endgeneration %} around it in the template"
            )
        return regions

    def _is_trained(self, region: Region, regions: list[Region], conversation: Conversation) -> bool:
        """Whether a region is trained on, by the `train` of its messages."""
        wanted = {conversation.messages[turn].get("train", True) for turn in region.turns}
        if wanted == {True, False}:
            raise UserError(
                f"chat template {self.compiled.name} writes messages {' and '.join(str(t + 1) for t in region.turns)} "
                "as one turn, but their `train` differs: give them the same"
            )
        return wanted == {True}

    def _tokenize(self, rendered: Rendered, regions: list[Region], trained: list[bool]) -> Encoded:
        """Encodes the text piece by piece between added tokens and borders of regions, with bos in front if it is due.

        Args:
            rendered: the rendered conversation.
            regions: the assistant's turns.
            trained: whether each region is trained on.
        """
        ids: list[int] = []
        mask: list[bool] = []
        place, tokens, breaks = 0, iter([*rendered.found, _NO_MORE_TOKENS]), self._breaks(rendered)
        token = next(tokens)
        length = len(rendered.text)
        for region, is_trained in [*zip(regions, trained, strict=True), (Region(length, length), False)]:
            for stop, learnt in ((region.start, False), (region.stop, is_trained)):
                while token.spelling_start < stop:
                    self._encode(rendered.text, place, token.start, breaks, ids)
                    ids.append(token.id)
                    place, token = token.stop, next(tokens)
                self._encode(rendered.text, place, min(stop, token.start), breaks, ids)
                place = max(place, min(stop, token.start))
                mask += [learnt] * (len(ids) - len(mask))
            if region.lacks_end and region.turns:
                ids.append(self.tokenizer.eos_id)
                mask.append(is_trained)
        if self.tokenizer.adds_bos and ids[:1] != [self.tokenizer.bos_id]:
            ids.insert(0, self.tokenizer.bos_id)
            mask.insert(0, False)
        return Encoded(np.array(ids, np.int32), np.array(mask, np.bool_))

    def _encode(self, text: str, start: int, stop: int, breaks: list[int], ids: list[int]) -> None:
        """Appends to `ids` the tokens of `text[start:stop]`, which holds no token that the template wrote.

        Args:
            text: the rendered text.
            start: the first character.
            stop: one past the last character.
            breaks: where to cut the text, from `_breaks`.
            ids: the tokens so far.
        """
        inside = breaks[bisect.bisect_right(breaks, start) : bisect.bisect_left(breaks, stop)] if breaks else ()
        for end in (*inside, stop):
            if start < end:
                after = ids[-1] if ids and ids[-1] in self._added_ids else None
                ids += self.tokenizer.encode(text[start:end], after=after, continues=bool(ids) and after is None)
                start = end

    def _breaks(self, rendered: Rendered) -> list[int]:
        """Where to cut messages so that the tokenizer finds no spelling that only the template may write as a token."""
        if self.quoted is None:
            return []
        breaks, starts, place = [], [run.start for run in rendered.runs], 0
        for token in (*rendered.found, AddedTokenMatch(-1, False, *[len(rendered.text)] * 4)):
            for match in self.quoted.finditer(rendered.text, place, token.spelling_start):
                run = rendered.runs[bisect.bisect_right(starts, match.start()) - 1]
                is_said = run.source >= FIRST_TURN and match.end() <= run.stop
                if not is_said or (self.quoted_said is not None and self.quoted_said.fullmatch(match[0])):
                    breaks.append(match.start() + 1)
            place = token.spelling_stop
        return breaks


class _TemplateTurnContext:
    """The `TurnContext` of a conversation: what its template writes for parts of it."""

    def __init__(self, turns: _TurnFormat, conversation: Conversation):
        self._turns, self._conversation = turns, conversation
        self.ends, self.has_end, self.bos_id = turns.ends, turns.has_end, turns.bos_id
        self.blocks_follow_prompts, self.opening = turns.blocks_follow_prompts, turns.opening
        self.is_plain = conversation.is_plain

    def prompt(self, turn: int) -> str | None:
        return self._text(self._conversation.prompt_for(turn))

    def request_start(self, turn: int) -> int:
        prompt, before = self.prompt(turn), self._text(self._conversation.up_to(turn - 1))
        return shared_length(prompt, before) if prompt and before else 0

    def after_last_words(self, turn: int) -> str:
        prompt = self._turns._trace(self._conversation.prompt_for(turn))
        return prompt.text[max((run.stop for run in prompt.runs if run.source != TEMPLATE), default=0) :]

    def rendered_up_to(self, turn: int) -> Rendered | None:
        try:
            return self._turns._trace(self._conversation.up_to(turn))
        except UserError:
            return None

    def content(self, turn: int) -> str:
        return self._conversation.messages[turn]["content"]

    def _text(self, part: Conversation) -> str | None:
        try:
            return self._turns.compiled.render(part.variables(self._turns.tokenizer), part.characters)
        except UserError:
            return None


_NO_MORE_TOKENS = AddedTokenMatch(-1, False, *[1 << 62] * 4)
