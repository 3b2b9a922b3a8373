"""Chat templates: from messages to tokens, and which of them are trained on.

A template is a jinja2 file as Hugging Face writes them, and finds what transformers gives it: `messages`, `tools`,
`documents`, `add_generation_prompt`, the spellings of the special tokens, and a few functions. What it writes for a
conversation is, character for character, what it writes there.

A conversation is rendered once, in a way that keeps of each character where it comes from (`traced_text`), and is cut
where its parts meet: at the control tokens that the template writes, and where the assistant begins to speak, which is
where generation will cut it. Each stretch between the cuts is encoded once and is trained as a whole or not at all. So
the tokens of a prompt are always the beginning of the conversation's tokens.

An assistant's turn (`template_regions`) always ends in a control token, or nothing would teach the model to stop: the
one that the template writes after the words, or, where the tokenizer has no such token (ChatML on LLaMA's), the end of
text, put before the template's spelling. That end is trained too.

What messages say stays text: only what the template itself writes can be a control token.
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
from .added_tokens import Found, find, spellings
from .conversation import Conversation
from .template_following import CompiledTemplate, compile_template
from .template_limits import LimitReached
from .template_regions import Region, Rendered, block_regions, blocks, rendered_of, shared_length, word_regions
from .tokenizer import Tokenizer
from .traced_text import BLENDED, FIRST_TURN, TEMPLATE, WORDS

FOLLOWED = b"3"
"""Changes when templates that are not built in come to give other tokens, or others to train, than before."""
_FOLDER = epath.Path(__file__).parent / "templates"
BUILT_IN = tuple(sorted(path.stem for path in _FOLDER.glob("*.jinja")))


@functools.cache
def _built_in_sources() -> frozenset[str]:
    return frozenset((_FOLDER / f"{name}.jinja").read_text() for name in BUILT_IN)


class Encoded(NamedTuple):
    """A tokenised text: `tokens` int32[n], and `mask` bool[n], true where the token is trained on as a target."""

    tokens: np.ndarray
    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A chat template: its name and its jinja source."""

    name: str
    source: str

    def __post_init__(self):
        self._compiled()  # a mistake in the source shows when it is loaded

    def _compiled(self) -> CompiledTemplate:
        return compile_template(self.source, self.name, is_proven=self.source in _built_in_sources())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the source and of the way it is followed, in hexadecimal."""
        followed = b"" if self.source in _built_in_sources() else FOLLOWED  # what those give has never changed
        return hashlib.sha256(self.source.encode() + followed).hexdigest()

    def render(
        self,
        messages: Sequence[dict],
        tokenizer: Tokenizer,
        *,
        generation_prompt: bool = False,
        tools: Sequence[dict] | None = None,
        documents: Sequence[dict] | None = None,
    ) -> str:
        """The conversation as text, for people to read: `encode` keeps apart what looks the same here."""
        compiled = self._compiled()
        messages = _with_calls_as_taken(self, tokenizer, messages)
        conversation = Conversation.of(messages, tools, documents, generation_prompt, compiled)
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
        """Tokens of a conversation, and the mask of those that an assistant should learn to say.

        Args:
            messages: `{"role", "content"}`, with an optional `"input"` on user turns (Alpaca's), and on the assistant's
                `"tool_calls"`, `"reasoning_content"`, and `"train"`: False for a turn that is not to be learnt.
            tokenizer: any; control tokens that it lacks are written as plain text.
            generation_prompt: end with what comes before the assistant's next words.
            tools: JSON schemas of functions, for templates that tell of them.
            documents: `{"title", "text"}`, for templates that quote them.

        Returns:
            Tokens int32[n] and mask bool[n]. Where no assistant says anything, the mask is empty: `not mask.any()`.

        Raises:
            UserError: there are no messages, a message is malformed, the template refuses their order or knows nothing
                of what they hold, or it is not known which of its text is the assistant's.
        """
        turns = _turn_format(self, tokenizer)
        messages = _with_calls_as_taken(self, tokenizer, messages)
        return turns.encode(Conversation.of(messages, tools, documents, generation_prompt, turns.compiled))

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The tokens that end an assistant's turn: what follows its words in this template, and the end of text."""
        turns = _turn_format(self, tokenizer)
        ends = {region.ends_in for region in turns.regions_of(_SAID)}
        for call in _CALLS if "tool_calls" in turns.compiled.keys else ():
            try:
                ends |= {region.ends_in for region in turns.regions_of(call, _TOOLS)[:1]}
            except UserError:  # it wants arguments in the other form, or other roles
                continue
        return tuple(sorted({tokenizer.eos_id} | ends - {None}))


def load_template(name_or_path: str | epath.Path) -> ChatTemplate:
    """A built-in template by its name, a jinja file by its path, or a template given as its own source.

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
        raise UserError(f"{path}: no chat template, which writes what is in `messages`")
    return ChatTemplate(path.stem, source)


def encode_text(text: str, tokenizer: Tokenizer) -> Encoded:
    """A plain document: bos, where the tokenizer begins texts with it, the text, and eos; all but bos is trained on."""
    start = [tokenizer.bos_id] if tokenizer.adds_bos else []
    tokens = np.array([*start, *tokenizer.encode(text), tokenizer.eos_id], np.int32)
    return Encoded(tokens, np.arange(len(tokens)) >= len(start))


# What a template writes around a turn ---------------------------------------------------------------------------------

# Points end the words, because a token of single words (`single_word`) is found after these alone.
_SAID = [{"role": "user", "content": "a."}, {"role": "assistant", "content": "b."}] * 2
_TOOLS = [{"type": "function", "function": {"name": "f", "description": "a", "parameters": {"type": "object"}}}]
_CALLS = [
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


def _with_calls_as_taken(template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[dict]) -> Sequence[dict]:
    """The messages, with the arguments of calls spelled as JSON for a template that takes them in no other form."""
    if not any(message.get("tool_calls") for message in messages) or not _wants_spelled(template, tokenizer):
        return messages
    return [
        message | {"tool_calls": [_spelled(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _spelled(call: dict) -> dict:
    function = call["function"]
    if isinstance(function["arguments"], str):
        return call
    return call | {"function": function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


@functools.lru_cache(maxsize=32)
def _wants_spelled(template: ChatTemplate, tokenizer: Tokenizer) -> bool:
    """Whether a template writes the arguments of a call as JSON only where they are given as that: of an object it
    writes Python's form, or it fails."""
    compiled = template._compiled()
    tools = _TOOLS if "tools" in compiled.variables else None

    def writes_json(call: list[dict]) -> bool:
        try:
            conversation = Conversation.of(call, tools, None, False, compiled)
            return '{"b": "b"}' in compiled.render(conversation.variables(tokenizer), conversation.characters)
        except UserError:
            return False

    as_object, as_text = map(writes_json, _CALLS)
    return as_text and not as_object


@functools.lru_cache(maxsize=32)
def _turn_format(template: ChatTemplate, tokenizer: Tokenizer) -> "_TurnFormat":
    return _TurnFormat(template._compiled(), tokenizer)


class _TurnFormat:
    """A template with a tokenizer: how it writes turns, learnt from a short conversation, and how they become tokens.

    Attributes:
        ends, has_end, blocks_follow_prompts, bos_id, opening: as in `Surroundings`.
        quoted: spellings that are the template's to write, though the tokenizer finds them in a message's text too.
        quoted_said: those of them that an assistant cannot say: what ends a turn, and what begins another's.
    """

    def __init__(self, compiled: CompiledTemplate, tokenizer: Tokenizer):
        self.compiled, self.tokenizer = compiled, tokenizer
        # Blank ones (runs of spaces, line breaks) join with what stands beside them: the tokenizer finds them itself.
        self._added = {spelling: token for spelling, token in tokenizer.added.items() if spelling.strip()}
        self._added_ids = {token.id for token in tokenizer.added.values()}
        self._pattern = spellings(self._added)
        self.ends, self.has_end, self.blocks_follow_prompts, self.opening = frozenset(), False, False, ""
        self.bos_id = None if tokenizer.bos_id == tokenizer.eos_id else tokenizer.bos_id
        self.quoted = self.quoted_said = None
        try:
            self._learn()
        except LimitReached:
            raise
        except UserError:  # it refuses so plain a conversation: each one is looked at by itself
            pass

    def _learn(self) -> None:
        conversation = Conversation.of(_SAID, None, None, False, self.compiled)
        rendered = self.follow(conversation)
        regions = [region for region in self._regions(rendered, conversation) if region.turns]
        around = _Around(self, conversation)
        prompts = [around.prompt(turn) for turn in conversation.turns()]
        starts = [block.start for block in blocks(rendered)]
        self.blocks_follow_prompts = len(regions) == len(prompts) and all(
            prompt is not None and rendered.text.startswith(prompt) and len(prompt) in starts for prompt in prompts
        )
        self.ends = frozenset(region.ends_in for region in regions) - {None}
        self.has_end = len(regions) == len(prompts) and all(region.ends_in is not None for region in regions)
        if None not in prompts:
            opening = prompts[-1][around.asks(conversation.turns()[-1]) :]
            self.opening = opening if opening.strip() else ""
        others = [token for token in rendered.found if not any(r.start <= token.first < r.stop for r in regions)]
        users = [run.start for run in rendered.runs if run.source == WORDS]
        to_users = {  # what stands before a user's words, with no turn of the assistant's in between
            token.id
            for token in others
            for place in users[bisect.bisect_left(users, token.last) :][:1]
            if not any(token.last <= region.start < place for region in regions)
        }
        self.quoted = self._spellings(self.ends | {token.id for token in others})
        self.quoted_said = self._spellings(self.ends | to_users)

    def _spellings(self, ids: set[int] | frozenset[int]) -> re.Pattern | None:
        return spellings(s for s, token in self._added.items() if token.id in ids and not token.special)

    def encode(self, conversation: Conversation) -> Encoded:
        """The tokens of a conversation and the mask of those that are trained on."""
        rendered = self.follow(conversation)
        regions = self._regions(rendered, conversation)
        trained = [self._is_trained(region, regions, conversation) for region in regions]
        return self._tokenize(rendered, regions, trained)

    def regions_of(self, messages: Sequence[dict], tools: Sequence[dict] | None = None) -> list[Region]:
        """The assistant's turns in the text of a conversation."""
        tools = tools if "tools" in self.compiled.variables else None
        conversation = Conversation.of(messages, tools, None, False, self.compiled)
        return self._regions(self.follow(conversation), conversation)

    def follow(self, conversation: Conversation) -> Rendered:
        """A conversation's text, and whose it is."""
        plain = conversation.variables(self.tokenizer)
        text = self.compiled.follow(conversation.traced(plain), plain, conversation.characters)
        rendered = rendered_of(text, self._find)
        if any(run.source == BLENDED for run in rendered.runs):
            raise UserError(
                f"chat template {self.compiled.name} changes a message's words together with other text, so that it is "
                "not known which of what it writes is whose: have it change the words alone"
            )
        return rendered

    def _find(self, text: str, stretches: list[tuple[int, int]]) -> list[Found]:
        return find(text, stretches, self._pattern, self._added)

    def _regions(self, rendered: Rendered, conversation: Conversation) -> list[Region]:
        around = _Around(self, conversation)
        written = {run.source for run in rendered.runs}
        for turn in conversation.turns():
            if FIRST_TURN + turn not in written and conversation.says_something(turn):
                raise UserError(
                    f"chat template {self.compiled.name} writes nothing of message {turn + 1}, the assistant's: it is "
                    "made for messages of another form, or leaves the answer out"
                )
        if self.compiled.marks_generation:
            return block_regions(rendered, around)
        regions = word_regions(rendered, conversation.turns(), around)
        if regions is None or any(a.stop > b.start for a, b in itertools.pairwise(regions)):
            raise UserError(
                f"chat template {self.compiled.name} cuts the assistant's words, so that what to train on is not "
                "known: put {% generation %} and {% endgeneration %} around them in the template"
            )
        return regions

    def _is_trained(self, region: Region, regions: list[Region], conversation: Conversation) -> bool:
        """Whether the region's turns are to be learnt."""
        wanted = {conversation.messages[turn].get("train", True) for turn in region.turns}
        if wanted == {True, False}:
            raise UserError(
                f"chat template {self.compiled.name} writes messages {' and '.join(str(t + 1) for t in region.turns)} "
                "as one turn, of which not all are to be trained on"
            )
        return wanted == {True}

    def _tokenize(self, rendered: Rendered, regions: list[Region], trained: list[bool]) -> Encoded:
        """Encode each stretch of plain text between added tokens and borders of regions; put bos in front if due."""
        ids: list[int] = []
        mask: list[bool] = []
        place, tokens, breaks = 0, iter([*rendered.found, _AFTER_ALL]), self._breaks(rendered)
        token = next(tokens)
        length = len(rendered.text)
        for region, is_trained in [*zip(regions, trained, strict=True), (Region(length, length), False)]:
            for stop, learnt in ((region.start, False), (region.stop, is_trained)):
                while token.first < stop:
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
        """Append the tokens of a stretch of text in which no token is the template's."""
        inside = breaks[bisect.bisect_right(breaks, start) : bisect.bisect_left(breaks, stop)] if breaks else ()
        for end in (*inside, stop):
            if start < end:
                after = ids[-1] if ids and ids[-1] in self._added_ids else None
                ids += self.tokenizer.encode(text[start:end], after=after, continues=bool(ids) and after is None)
                start = end

    def _breaks(self, rendered: Rendered) -> list[int]:
        """Where to cut the text, so that the tokenizer does not find in messages what is the template's to write."""
        if self.quoted is None:
            return []
        breaks, starts, place = [], [run.start for run in rendered.runs], 0
        for token in (*rendered.found, Found(-1, False, *[len(rendered.text)] * 4)):
            for match in self.quoted.finditer(rendered.text, place, token.first):
                run = rendered.runs[bisect.bisect_right(starts, match.start()) - 1]
                is_said = run.source >= FIRST_TURN and match.end() <= run.stop
                if not is_said or (self.quoted_said is not None and self.quoted_said.fullmatch(match[0])):
                    breaks.append(match.start() + 1)
            place = token.last
        return breaks


class _Around:
    """`Surroundings` of a conversation: what else its template writes for parts of it."""

    def __init__(self, turns: _TurnFormat, conversation: Conversation):
        self._turns, self._conversation = turns, conversation
        self.ends, self.has_end, self.bos_id = turns.ends, turns.has_end, turns.bos_id
        self.blocks_follow_prompts, self.opening = turns.blocks_follow_prompts, turns.opening
        self.is_plain = conversation.is_plain

    def prompt(self, turn: int) -> str | None:
        return self._text(self._conversation.before(turn))

    def asks(self, turn: int) -> int:
        prompt, before = self.prompt(turn), self._text(self._conversation.until(turn - 1))
        return shared_length(prompt, before) if prompt and before else 0

    def closing(self, turn: int) -> str:
        prompt = self._turns.follow(self._conversation.before(turn))
        return prompt.text[max((run.stop for run in prompt.runs if run.source != TEMPLATE), default=0) :]

    def ending(self, turn: int) -> Rendered | None:
        try:
            return self._turns.follow(self._conversation.until(turn))
        except UserError:
            return None

    def content(self, turn: int) -> str:
        return self._conversation.messages[turn]["content"]

    def _text(self, part: Conversation) -> str | None:
        try:
            return self._turns.compiled.render(part.variables(self._turns.tokenizer), part.characters)
        except UserError:
            return None


_AFTER_ALL = Found(-1, False, *[1 << 62] * 4)
