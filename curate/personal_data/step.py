"""The step `personal_data`: puts placeholders in place of personal data and secrets.

    Mail john@example.com or call 138-0013-8000.   ->   Mail <EMAIL> or call <PHONE>.

What is found, and what is left alone: docs/quality.md. It is found by shapes and checks, not by a model, so names and
street addresses stay.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from ...errors import UserError, shown
from ...settings.leaves import Unset
from ..rows import Row
from .addresses import Found, emails, ip_addresses, spelled_emails
from .keys import keys
from .numbers import Numbers, ibans

KINDS = ("key", "email", "iban", "identity_number", "bank_card", "ssn", "ip", "phone")
"""Kinds of personal data. Where two overlap, the first one is masked."""

NOT_TEXT = {"role", "kind", "type", "id", "name", "tool_call_id", "tools"}
"""Fields of records, messages and calls that are never masked."""

_WIDE = re.compile("[０-９Ａ-Ｚａ-ｚ＠＋\u2010-\u2015\xa0\u2000-\u200a\u202f]|（(?=[0+])")
_FULL = [code for code in range(0xFF01, 0xFF5F) if chr(code).isalnum() or chr(code) in "＠＋－．＿（）"]
_NARROW = {code: code - 0xFEE0 for code in _FULL} | dict.fromkeys(range(0x2010, 0x2016), "-")
_NARROW |= dict.fromkeys([0xA0, *range(0x2000, 0x200B), 0x202F, 0x3000], " ")
"""ASCII in place of full-width characters, dashes and spaces, one character for one."""


@dataclass(frozen=True)
class PersonalData:
    """Masks personal data in all texts of a row: messages, inputs, reasoning, arguments of tool calls, documents, meta.

    Each placeholder may be set to another text, or to None, which leaves the kind alone. Keys and tokens, mail
    addresses and numbers are found with full-width digits too, and where a line is split. Masking twice changes no more
    than masking once. The columns personal_email, personal_phone, ... count what was masked, where anything was.
    """

    reasons: ClassVar = ()

    email: Annotated[str | None, Unset("no masking of mail addresses")] = "<EMAIL>"
    """Placeholder of mail addresses."""

    phone: Annotated[str | None, Unset("no masking of phone numbers")] = "<PHONE>"
    """Placeholder of phone numbers: international with +, US, Chinese mobile and landline, others after such a word as
    "phone" or 电话, and in a list behind one."""

    ip: Annotated[str | None, Unset("no masking of IP addresses")] = "<IP>"
    """Placeholder of IPv4 and IPv6 addresses."""

    key: Annotated[str | None, Unset("no masking of keys and tokens")] = "<KEY>"
    """Placeholder of API keys, tokens, private keys and passwords in URLs."""

    identity_number: Annotated[str | None, Unset("no masking of identity numbers")] = "<IDENTITY_NUMBER>"
    """Placeholder of Chinese identity numbers of 18 digits."""

    bank_card: Annotated[str | None, Unset("no masking of card numbers")] = "<BANK_CARD>"
    """Placeholder of numbers of bank cards."""

    iban: Annotated[str | None, Unset("no masking of account numbers")] = "<IBAN>"
    """Placeholder of international bank account numbers."""

    ssn: Annotated[str | None, Unset("no masking of social security numbers")] = "<SSN>"
    """Placeholder of US social security numbers."""

    number: bool = False
    """Whether placeholders are numbered, as in <EMAIL_1>: the same value has the same number in all of a row."""

    reserved_ip: bool = False
    """Whether addresses that belong to nobody are masked too: private, loopback, link-local, documentation."""

    spelled_email: bool = False
    """Whether addresses in words are masked too, such as "john at example dot com"."""

    def check(self, where: str) -> None:
        """Raises UserError for a placeholder of less than three characters, which texts are full of."""
        for kind in KINDS:
            placeholder = getattr(self, kind)
            if placeholder is not None and (not placeholder.strip() or any(self._found(f" {placeholder} "))):
                raise UserError(
                    f"{where}.{kind} = {shown(placeholder)}: give a text such as '<{kind.upper()}>', or None"
                )

    def __call__(self, row: Row) -> Row:
        """The row with its texts masked, and a column for each kind that was found."""
        numbers: dict[str, dict[str, int]] = {}
        counts: Counter[str] = Counter()

        def mask(text: str, context: str = "") -> str:
            return self._mask(text, context, numbers, counts)

        record = _map_strings(row.record, mask)
        return row.with_(record, **{f"personal_{kind}": counts[kind] for kind in KINDS if counts[kind]})

    def mask(self, text: str) -> str:
        """A text with its personal data masked, by itself."""
        return self._mask(text, "", {}, Counter())

    def _mask(self, text: str, context: str, numbers: dict[str, dict[str, int]], counts: Counter[str]) -> str:
        """Masks a text. Repeats until nothing is found, because a placeholder may part what was one number before."""
        while found := self._apart(context + text, len(context)):
            parts, end = [], 0
            for kind, (start, stop, value) in found:
                placeholder = getattr(self, kind)
                if self.number:
                    known = numbers.setdefault(placeholder, {})
                    placeholder = _numbered(placeholder, known.setdefault(value, len(known) + 1))
                parts += [text[end : start - len(context)], placeholder]
                end = stop - len(context)
                counts[kind] += 1
            text = "".join([*parts, text[end:]])
        return text

    def _apart(self, text: str, start: int = 0) -> list[tuple[str, Found]]:
        """What is to be masked from `start` on, in the order of the text. What overlaps a kind before it in KINDS, or a
        placeholder, is left out."""
        found = list(self._found(text))
        if not found:
            return found
        taken, kept = bytearray(len(text)), []
        for match in self._placeholders.finditer(text):
            taken[match.start() : match.end()] = b"\1" * len(match[0])
        for kind, each in found:
            if each.start >= start and taken.find(1, each.start, each.end) < 0:
                taken[each.start : each.end] = b"\1" * (each.end - each.start)
                kept.append((kind, each))
        return sorted(kept, key=lambda pair: pair[1].start)

    def _found(self, text: str) -> Iterator[tuple[str, Found]]:
        """Everything that looks like personal data in a text, in the order of KINDS."""
        narrow = text.translate(_NARROW) if not text.isascii() and _WIDE.search(text) else text
        numbers = Numbers(narrow)
        finders = dict(
            key=lambda: keys(narrow),
            email=lambda: emails(narrow),
            identity_number=numbers.identity_numbers,
            bank_card=numbers.bank_cards,
            iban=lambda: ibans(narrow),
            ssn=numbers.social_security_numbers,
            ip=lambda: ip_addresses(narrow, self.reserved_ip),
            phone=numbers.phones,
        )
        for kind in KINDS:
            if getattr(self, kind) is not None:
                yield from ((kind, each) for each in finders[kind]())
        if self.email is not None and self.spelled_email:
            yield from (("email", each) for each in spelled_emails(narrow))

    @functools.cached_property
    def _placeholders(self) -> re.Pattern:
        """The placeholders that are in a text already, numbered or not."""
        words = sorted({getattr(self, kind) for kind in KINDS} - {None})
        ends = [_end(word) for word in words]
        shapes = [
            rf"{re.escape(word[:end])}(?:_\d+)?{re.escape(word[end:])}" for word, end in zip(words, ends, strict=True)
        ]
        return re.compile("|".join(shapes) or "(?!)")


def _numbered(placeholder: str, number: int) -> str:
    """A placeholder with a number before its closing bracket, if it has one."""
    return f"{placeholder[: _end(placeholder)]}_{number}{placeholder[_end(placeholder) :]}"


def _end(placeholder: str) -> int:
    """The index of a placeholder's closing bracket, or its length."""
    return len(placeholder) - (not placeholder[-1].isalnum())


def _map_strings(value: Any, mask: Callable[[str, str], str], key: str = "", *, is_text: bool = False) -> Any:
    """A record with every string masked but the fields NOT_TEXT of records, messages and calls.

    The arguments of a call may be JSON in a string; its values are masked, and it stays JSON. Inside arguments,
    documents and meta all fields are masked, with their names as context, and whole numbers under such names as phone.
    """
    inner = is_text or key in ("arguments", "documents", "meta", "parameters")
    if isinstance(value, Mapping):
        kept = () if inner else NOT_TEXT
        return {k: v if k in kept else _map_strings(v, mask, k, is_text=inner) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(each, mask, key, is_text=is_text) for each in value]
    if isinstance(value, str):
        if key == "arguments" and not is_text:
            return _map_json(value, mask)
        return mask(value, f"{key}: " if is_text and len(value) < 100 else "")
    if is_text and type(value) is int and value > 10**8:
        masked = mask(str(value), f"{key} = ")
        return value if masked == str(value) else masked
    return value


def _map_json(text: str, mask: Callable[[str, str], str]) -> str:
    """JSON in a string with its values masked: as it was where there is nothing to mask."""
    try:
        value = json.loads(text)
    except ValueError:
        return mask(text, "")
    masked = _map_strings(value, mask, is_text=True)
    return text if masked == value else json.dumps(masked, ensure_ascii=False)
