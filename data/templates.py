"""Chat templates: from messages to tokens, and which of them are trained on.

A template is a jinja2 file as Hugging Face writes them, with the variables `messages`, `bos_token`, `eos_token`,
`add_generation_prompt` and the function `raise_exception`. A `{% generation %}…{% endgeneration %}` block stands around
the words that the assistant says; a template without one is trained on the assistant's contents.

A conversation is rendered once and cut where its parts meet: at the control tokens that the template writes, and where
the assistant begins to speak, which is where generation will cut it. Each stretch between the cuts is encoded once and
is trained as a whole or not at all. So the tokens of a prompt are always the beginning of the conversation's tokens.

An assistant's turn always ends in a control token, or nothing would teach the model to stop: the one that the template
writes after the words, or, where the tokenizer has no such token (ChatML on LLaMA's), the end of text, put before the
template's spelling. That end is trained too. The whole conversation begins with bos, once, if there is one.

What messages say stays text. While a template runs, their contents carry marks, private-use characters found nowhere in
the conversation, that keep the spelling of a control token in them from being read as one.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import jinja2
import numpy as np
from etils import epath

from .errors import UserError
from .template_language import BEGIN_VARIABLE, END_VARIABLE, CompiledTemplate, compile_template
from .tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")
_FOLDER = epath.Path(__file__).parent / "templates"
BUILT_IN = tuple(sorted(path.stem for path in _FOLDER.glob("*.jinja")))


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
        compile_template(self.source, self.name)  # a mistake in the source shows when it is loaded

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the source, in hexadecimal."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def render(self, messages: Sequence[dict], tokenizer: Tokenizer, *, generation_prompt: bool = False) -> str:
        """The conversation as text, for people to read: `encode` keeps apart what looks the same here."""
        _check(messages, generation_prompt)
        marks = _choose_marks(messages, self.source)
        text = self._render_marked(messages, tokenizer, marks, generation_prompt)
        return text.translate(dict.fromkeys(map(ord, marks)))

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
            messages: `{"role", "content"}` and what else `formats` lists; `"train": False` masks a turn.
            tools, documents: for the template, as Hugging Face's take them.
            tokenizer: any; control tokens that it lacks are written as plain text.
            generation_prompt: end with what comes before the assistant's next words.

        Returns:
            Tokens int32[n] and mask bool[n]. Where no assistant says anything, the mask is empty: `not mask.any()`.

        Raises:
            UserError: there are no messages, a message is malformed, or the template refuses their order.
        """
        _check(messages, generation_prompt)
        marks = _choose_marks(messages, self.source)
        around = {name: value for name, value in (("tools", tools), ("documents", documents)) if value}
        text = self._render_marked(messages, tokenizer, marks, generation_prompt, around)
        if not compile_template(self.source, self.name).marks_generation:
            text = self._move_beginnings(text, messages, tokenizer, marks)
        if {marks.begin, marks.end} & set(_said(marks).sub("", text)):
            raise UserError(
                f"chat template {self.name} cuts the assistant's words, so that what to train on is not known: put "
                "{% generation %} and {% endgeneration %} around them in the template"
            )
        speaking = [m.get("train", True) for m in messages if m["role"] == "assistant" and m["content"].strip()]
        regions = _regions(text, tokenizer, marks)
        if not all(speaking):
            if sum(trained for _, trained in regions) != len(speaking):
                raise UserError(f"chat template {self.name} does not show which of the assistant's turns is which")
            switches = iter(speaking)
            regions = [(part, trained and next(switches)) for part, trained in regions]
        return _tokenize(regions, tokenizer, marks)

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The tokens that end an assistant's turn: what follows its words in this template, and the end of text."""
        said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        tokens, mask = self.encode(said * 2, tokenizer)
        is_last = mask & ~np.append(mask[1:], False)
        return tuple(sorted({tokenizer.eos_id, *tokens[is_last].tolist()}))

    def _render_marked(
        self,
        messages: Sequence[dict],
        tokenizer: Tokenizer,
        marks: "_Marks",
        generation_prompt: bool,
        around: dict | None = None,
    ) -> str:
        compiled = compile_template(self.source, self.name)
        variables = {
            "messages": [_marked_message(message, tokenizer, marks, compiled) for message in messages],
            "bos_token": "" if tokenizer.bos_id is None else tokenizer.piece(tokenizer.bos_id),
            "eos_token": tokenizer.piece(tokenizer.eos_id),
            "add_generation_prompt": generation_prompt,
            BEGIN_VARIABLE: marks.begin,
            END_VARIABLE: marks.end,
            **(around or {}),
        }
        try:
            return compiled.template.render(variables)
        except (jinja2.TemplateError, TypeError) as error:
            raise UserError(f"chat template {self.name}: {error}") from None

    def _move_beginnings(self, text: str, messages: Sequence[dict], tokenizer: Tokenizer, marks: "_Marks") -> str:
        """Move each beginning mark from the assistant's content to where its generation would begin.

        Between the two a template may write more, like the space of "[/INST] answer", which the model must say itself.
        The place is the end of the prompt that the template writes for the messages before. A template whose prompt is
        not the beginning of the conversation (some move the system message to the last turn) keeps the mark.
        """
        turns = [
            k for k, message in enumerate(messages) if message["role"] == "assistant" and message["content"].strip()
        ]
        for k in reversed(turns):  # from the last on: what comes before a moved mark is still as it was rendered
            prompt = self._render_marked(messages[:k], tokenizer, marks, generation_prompt=True) if k else ""
            if text.startswith(prompt):
                said, end, rest = text[len(prompt) :].partition(marks.end)
                text = prompt + marks.begin + said.replace(marks.begin, "") + end + rest
        return text


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
    return ChatTemplate(path.stem, path.read_text())


def encode_text(text: str, tokenizer: Tokenizer) -> Encoded:
    """A plain document: bos where the tokenizer adds it, the text, and eos; everything but bos is trained on."""
    start = [tokenizer.bos_id] if tokenizer.adds_bos else []
    tokens = np.array([*start, *tokenizer.encode(text), tokenizer.eos_id], np.int32)
    return Encoded(tokens, np.arange(len(tokens)) >= len(start))


def _check(messages: Sequence[dict], generation_prompt: bool) -> None:
    if not messages:
        raise UserError("a conversation has no messages")
    for number, message in enumerate(messages, 1):
        if message.get("role") not in ROLES:
            raise UserError(f"message {number} has role {message.get('role')!r}: expected one of {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str) or not isinstance(message.get("input", ""), str):
            raise UserError(f"message {number}, from the {message['role']}, has no text as its content or input")
    if generation_prompt and messages[-1]["role"] == "assistant":
        raise UserError(f"message {len(messages)} is the assistant's: there is nothing to answer after it")


# Marks in the contents of messages -----------------------------------------------------------------------------------


class _Marks(NamedTuple):
    """Characters that mark places in rendered text: where the assistant's words begin and end, and quoted spellings."""

    begin: str
    end: str
    quote: str


def _choose_marks(messages: Sequence[dict], source: str) -> _Marks:
    """Three private-use characters that neither the messages nor the template contain."""
    used = set(source).union(*(message["content"] + message.get("input", "") for message in messages))
    free = (chr(code) for code in range(0xE000, 0xF900) if chr(code) not in used)
    try:
        return _Marks(next(free), next(free), next(free))
    except StopIteration:
        raise UserError("a conversation uses all of Unicode's private-use characters U+E000 to U+F8FF") from None


def _marked_message(message: dict, tokenizer: Tokenizer, marks: _Marks, compiled: CompiledTemplate) -> dict:
    """The message as the template sees it: role, content and, if the template knows it, input."""
    role, content, more = message["role"], message["content"], message.get("input", "")
    if more and not compiled.reads_input:
        content, more = f"{content}\n\n{more}", ""
    marks_words = role == "assistant" and not compiled.marks_generation
    first, last = (marks.begin, marks.end) if marks_words else (marks.quote, marks.quote)
    marked = {"role": role, "content": _quote(content, tokenizer, marks, first, last)}
    if more:
        marked["input"] = _quote(more, tokenizer, marks, marks.quote, marks.quote)
    plain = ("tool_calls", "reasoning_content", "name", "tool_call_id")
    return marked | {name: message[name] for name in plain if name in message}


def _quote(text: str, tokenizer: Tokenizer, marks: _Marks, first: str, last: str) -> str:
    """Break up every spelling of a control token in `text`, and mark where its words begin and end.

    The outer marks also keep a spelling from forming across the border with the template's text. They stand inside the
    outer whitespace, so that a template may still strip it.
    """
    words = text.strip()
    if not words:
        return text
    before, _, after = text.partition(words)
    control = _control_pattern(tuple(tokenizer.special), marks.quote)
    broken = re.sub(f"(?={control}).", lambda character: character[0] + marks.quote, words, flags=re.DOTALL)
    return before + first + broken + last + after


@functools.lru_cache(maxsize=64)
def _control_pattern(spellings: tuple[str, ...], quote: str) -> str:
    """A pattern for any control token's spelling whose first character is not followed by the mark of quotation."""
    longest_first = sorted(spellings, key=len, reverse=True)
    return "(?:" + "|".join(f"{re.escape(s[0])}(?!{quote}){re.escape(s[1:])}" for s in longest_first) + ")"


# From marked text to tokens ------------------------------------------------------------------------------------------


def _said(marks: _Marks) -> re.Pattern:
    return re.compile(f"{marks.begin}([^{marks.begin}{marks.end}]*){marks.end}")


def _regions(text: str, tokenizer: Tokenizer, marks: _Marks) -> list[tuple[str, bool]]:
    """Cut marked text into regions, each trained or not. An assistant's region reaches to the end of its turn."""
    control = _control_pattern(tuple(tokenizer.special), marks.quote)
    pieces = _said(marks).split(text)  # by turns what is not and what is said by the assistant
    trained = [i % 2 == 1 and piece.strip(marks.quote).strip() != "" for i, piece in enumerate(pieces)]
    for i in np.flatnonzero(trained):
        end = re.match(rf"\s*({control})", pieces[i + 1])
        if end and _ends_turn(tokenizer.special[end[1]], tokenizer):
            pieces[i] += end[0]
            pieces[i + 1] = pieces[i + 1][end.end() :]
        elif not re.search(rf"{control}\Z", pieces[i]):
            pieces[i] += tokenizer.piece(tokenizer.eos_id)
    return list(zip(pieces, trained, strict=True))


def _ends_turn(i: int, tokenizer: Tokenizer) -> bool:
    """Whether control token `i` can end a turn: bos begins the next one instead, unless it is eos as well."""
    return i != tokenizer.bos_id or i == tokenizer.eos_id


def _tokenize(regions: list[tuple[str, bool]], tokenizer: Tokenizer, marks: _Marks) -> Encoded:
    """Encode each stretch of plain text between control tokens and borders of regions; put bos in front if missing."""
    control = _control_pattern(tuple(tokenizer.special), marks.quote)
    limits = (None, tokenizer.bos_id, tokenizer.eos_id)  # after these a new text begins: SentencePiece's prefix is due
    ids, mask = [], []
    for region, trained in regions:
        for part in re.split(f"({control})", region):
            if part in tokenizer.special:
                ids.append(tokenizer.special[part])
            else:
                previous = ids[-1] if ids else None
                ids += tokenizer.encode(part.replace(marks.quote, ""), continues=previous not in limits)
        mask += [trained] * (len(ids) - len(mask))
    if tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        ids.insert(0, tokenizer.bos_id)
        mask.insert(0, False)
    return Encoded(np.array(ids, np.int32), np.array(mask, np.bool_))
