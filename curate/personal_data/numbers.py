"""Phone numbers, Chinese identity numbers, bank cards, IBANs and social security numbers in a text.

Each kind has a shape and a check: a checksum, a table of prefixes and lengths, a plausible date, or words around it.
Numbers inside URLs' paths, DOIs and longer runs of letters and digits are left alone.
"""

import bisect
import datetime
import functools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .addresses import Found

_RUN = re.compile(r"[+(]{0,2}\d[\d \t\n().+/\-]{5,}[Xx]?", re.A)
"""What may hold a number of at least seven digits."""

_BEFORE = r"(?<![\w.])(?<![\w)][\-+])"
_AFTER = r"(?![\w])(?![.\-]\d)"
_GAP = r"(?:[ \-]\n?|\n)?"

_LINK = re.compile(
    r"(?<![a-z0-9])(?:[a-z][a-z0-9+.\-]{0,15}://|www\.)[^\s/?#<>\"'\u3000-\u30ff\u4e00-\uffef]*"
    r"(/[^\s?<>\"'\u3000-\u30ff\u4e00-\uffef]*)"
    r"|(?<![\w.])(10\.\d{4,9}/[^\s<>\"'\u4e00-\uffef]+)",
    re.I | re.A,
)
"""A URL, of which the path is a group, and a DOI."""


@functools.cache
def _tables() -> dict[str, Any]:
    """Prefixes, lengths and codes of `personal_data.toml`."""
    return tomllib.loads(Path(__file__).with_name("personal_data.toml").read_text(encoding="utf-8"))


def _digits(text: str) -> str:
    return re.sub(r"[^\d+]", "", text)


class Numbers:
    """The numbers of one text, and what around them says what they are."""

    def __init__(self, text: str):
        self.text = text
        runs = [m.span() for m in _RUN.finditer(text)]
        self.runs = [(a, b) for a, b in runs if b - a >= 9 or sum(map(str.isdigit, text[a:b])) >= 7]

    @functools.cached_property
    def _links(self) -> list[tuple[int, int]]:
        """The paths of URLs, and the DOIs, in order."""
        return [match.span(match.lastindex) for match in _LINK.finditer(self.text)]

    def _matches(self, pattern: re.Pattern) -> Iterator[re.Match]:
        for start, end in self.runs:
            for match in pattern.finditer(self.text, max(0, start - 5), end + 2):
                nearest = bisect.bisect(self._links, (match.start(), len(self.text))) - 1
                if nearest < 0 or self._links[nearest][1] <= match.start():
                    yield match

    def identity_numbers(self) -> Iterator[Found]:
        """Chinese identity numbers of 18 digits with a known region, a date of birth and the right last digit."""
        for match in self._matches(_IDENTITY):
            value = re.sub(r"[ \-\n]", "", match[0]).upper()
            if is_identity_number(value):
                yield Found(*match.span(), value)

    def bank_cards(self) -> Iterator[Found]:
        """Card numbers with an issuer's prefix, its length, and Luhn's checksum."""
        for match in self._matches(_CARD):
            for written in (match[0], match[0][:19]):  # 16 digits in fours, before another number
                value = _digits(written)
                if is_bank_card(value):
                    yield Found(match.start(), match.start() + len(written), value)
                    break

    def social_security_numbers(self) -> Iterator[Found]:
        """US social security numbers: with hyphens, or nine digits after words that name them."""
        for match in self._matches(_SSN):
            if "-" in match[0] or _SSN_HINT.search(self._left(match)):
                yield Found(*match.span(), _digits(match[0]))

    def phones(self) -> Iterator[Found]:
        """Phone numbers: international ones with +, US, Chinese mobile and landline, and any after a word for phone."""
        for match in self._matches(_MOBILE_CN):
            if self._is_phone(match):
                yield Found(*match.span(), _digits(match[0])[-11:])
        for match in self._matches(_LANDLINE_CN):
            yield Found(*match.span(), re.sub(r"^(?:\+|00)?86(?=0)", "", _digits(match[0])))
        for match in self._matches(_US):
            if self._is_phone(match):
                yield Found(*match.span(), _digits(match[0])[-10:])
        for match in self._matches(_INTERNATIONAL):
            if is_international(match[0]):
                yield Found(*match.span(), _digits(match[0]))
        for match in self._matches(_ABROAD):
            if self._is_phone(match) and _is_abroad(match):
                yield Found(*match.span(), "+" + _digits(match[0])[2:])
        last = -1  # where the last number ends that a word before it names
        for match in self._matches(_ANY):
            value = _digits(match[0])
            is_number = (
                7 <= len(value) <= 14 and not _NO_PHONE.match(match[0]) and match[0].count("(") == match[0].count(")")
            )
            if not is_number:
                continue
            is_next = 0 <= match.start() - last < 10 and _AND.fullmatch(self.text, last, match.start())
            if (is_next and self._is_phone(match)) or _PHONE_HINT.search(self._left(match)) or self._is_called(match):
                last = match.end()
                yield Found(*match.span(), value)

    def _is_called(self, match: re.Match) -> bool:
        """Whether somebody is to be called at a number, such as "call me at 07911 123456" and "dial 415 555 2671"."""
        left = self._left(match)
        called = _CALLED.search(left)
        if not called or _AMOUNT_AFTER.match(self.text[match.end() : match.end() + 12]):
            return False
        value = _digits(match[0])
        if called["person"]:
            return 10 <= len(value) <= 13
        return bool(_US_DIGITS.fullmatch(match[0]) or (_TRUNK.fullmatch(match[0]) and "123456789" not in value))

    def _left(self, match: re.Match) -> str:
        return self.text[max(0, match.start() - 40) : match.start()]

    def _is_phone(self, match: re.Match) -> bool:
        """Whether what stands around a number of the right shape leaves it a phone number, and no amount or literal."""
        left, right = self._left(match), self.text[match.end() : match.end() + 12]
        if _AMOUNT_BEFORE.search(left) or _AMOUNT_AFTER.match(right):
            return False
        if match[0].isdigit() and (_ARITHMETIC.search(left) or _ARITHMETIC_AFTER.match(right)):
            return False
        name = _NAMED.search(left)
        if not name or _IS_PHONE_NAME.search(name["name"]):
            return True
        is_assigned = name["sign"].startswith(("=", "(")) and name["name"].isascii() and match[0].isdigit()
        is_literal = not name["quote"] and (is_assigned or name["quoted"])
        return not is_literal and not _OTHER_NAME.search(name["name"])


def ibans(text: str) -> Iterator[Found]:
    """International bank account numbers (ISO 13616): a country's length, and a remainder of 1 by 97."""
    for match in _IBAN.finditer(text):
        length = _tables()["iban_length"].get(match[1])
        written = length and _iban_of(length).match(text, match.start())
        if written:
            value = re.sub(r"[ \-\n]", "", written[0])
            if int("".join(str(int(letter, 36)) for letter in value[4:] + value[:4])) % 97 == 1:
                yield Found(*written.span(), value)


@functools.cache
def _iban_of(length: int) -> re.Pattern:
    return re.compile(rf"[A-Z]{{2}}\d{{2}}(?:{_GAP}[A-Z0-9]){{{length - 4}}}(?![A-Za-z0-9_])", re.A)


def is_identity_number(value: str) -> bool:
    """Whether 18 characters are a Chinese identity number (GB 11643): region, date of birth, check digit mod 11-2."""
    if value[:2] not in _tables()["provinces"]:
        return False
    try:
        born = datetime.date(int(value[6:10]), int(value[10:12]), int(value[12:14]))
    except ValueError:
        return False
    weighted = sum(int(digit) * (2 ** (17 - place) % 11) for place, digit in enumerate(value[:17]))
    return 1880 <= born.year <= 2050 and "10X98765432"[weighted % 11] == value[17]


def is_bank_card(value: str) -> bool:
    """Whether digits are a card number: prefix and length of an issuer (ISO/IEC 7812), and Luhn's checksum."""
    issuers = _tables()["issuers"]
    if not any(len(value) in each["lengths"] and _within(value, *each["prefixes"]) for each in issuers):
        return False
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(value))]
    return sum(n - 9 if n > 9 else n for n in doubled) % 10 == 0 and len(set(value)) > 1


def _within(value: str, first: str, last: str) -> bool:
    return first <= value[: len(first)] <= last


def is_international(written: str) -> bool:
    """Whether a number that begins with + has the code of a country and a plausible length (ITU-T E.164)."""
    digits = _digits(written)[1:]
    if not 8 <= len(digits) <= 15:
        return False
    if digits[0] == "1":
        return bool(re.fullmatch(r"1[2-9]\d\d[2-9]\d{6}", digits))
    if digits[0] == "7":
        return bool(re.fullmatch(r"7[3-9]\d{9}", digits))
    if digits.startswith("86"):
        return bool(re.fullmatch(r"86(?:1[3-9]\d{9}|0?(?:10\d{8}|[2-9]\d{8,10}))", digits))
    code = next((digits[:n] for n in (1, 2, 3) if digits[:n] in _tables()["country_codes"]), None)
    is_long = len(digits) > 13 and written[1:].isdigit()
    return code is not None and not is_long and not digits[len(code) :].startswith("00") and len(set(digits)) > 3


def _is_abroad(match: re.Match) -> bool:
    """Whether a number with 00 and the code of a country is a phone number, and no line of a table of numbers."""
    lengths = [len(group) for group in re.findall(r"\d+", match["rest"])]
    is_even = len(lengths) > 1 and len(set(lengths)) == 1 and lengths[0] < 5  # such as bytes in hexadecimal
    return not is_even and sum(lengths) >= 8 and is_international(f"+{match['code']}{match['rest']}")


_IDENTITY = re.compile(
    rf"{_BEFORE}[1-9]\d{{5}}{_GAP}(?:18|19|20)\d\d{_GAP}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
    rf"{_GAP}\d{{3}}[\dXx]{_AFTER}",
    re.A,
)
_CARD = re.compile(
    rf"{_BEFORE}(?:\d{{13,19}}|\d{{4}}[ \-]\n?(?:\d{{4}}[ \-]?\n?){{2}}\d{{4}}(?:[ \-]?\d{{3}})?"
    rf"|\d{{4}}[ \-]\n?\d{{6}}[ \-]\n?\d{{4,5}}|\d{{6}} \d{{10,13}}|\d{{4}}\n\d{{4}}[ \-]\d{{4}}[ \-]\d{{4}}){_AFTER}",
    re.A,
)
_SSN = re.compile(rf"{_BEFORE}(?!000|666|9)\d{{3}}(?P<s>[\- ]?)(?!00)\d\d(?P=s)(?!0000)\d{{4}}{_AFTER}", re.A)
_SSN_HINT = re.compile(
    r"(?:\bSSN|social security(?: number| no\.?)?|社会安全号码?|社保号码?)\W{0,4}(?:is|为|是)?\W{0,3}$", re.I
)

_MOBILE_CN = re.compile(
    rf"{_BEFORE}(?<![\-+])(?:(?:\((?:\+|00)?86\)|(?:\+|00)?86)[\- ]?)?1[3-9]\d"
    rf"(?:\n?\d{{4}}\n?\d{{4}}|(?P<a>[ \-])\n?\d{{4}}(?P=a)\n?\d{{4}}|(?P<b>[ \-])\n?\d{{3}}(?P=b)\n?\d{{5}}){_AFTER}",
    re.A,
)
_LANDLINE_CN = re.compile(
    rf"{_BEFORE}(?:(?:\+|00)?86[\- ]?)?(?:\(0(?:10|2\d|[3-9]\d\d)\) ?|0(?:10|2\d|[3-9]\d\d)(?:-\n?| ))"
    rf"[2-8]\d{{2,3}}[\- ]?\d{{4}}(?:-\d{{1,4}})?{_AFTER}"
    rf"|{_BEFORE}(?<![\-+])(?:\+|00)?86[\- ](?:10|2\d|[3-9]\d\d)[\- ][2-8]\d{{2,3}}[\- ]?\d{{4}}{_AFTER}"
    rf"|{_BEFORE}400(?:-\d{{3}}-\d{{4}}|-\d{{4}}-\d{{3}}){_AFTER}",
    re.A,
)
_US = re.compile(
    rf"{_BEFORE}(?:\+?1[\-. ])?(?:\((?!.11)[2-9]\d\d\)[ \-]?\n?[2-9]\d\d[\-. ]\n?\d{{4}}"
    rf"|(?!.11)[2-9]\d\d(?P<s>[\-.])\n?[2-9]\d\d(?P=s)\n?\d{{4}}){_AFTER}",
    re.A,
)
_INTERNATIONAL = re.compile(
    rf"(?<![\w+)])\+[1-9]\d{{0,2}}(?:[\-. ]?\(\d{{1,4}}\))?(?:[\-. ]?\n?\d{{1,5}}){{1,5}}\d{{0,8}}{_AFTER}", re.A
)
_IBAN = re.compile(r"(?<![A-Za-z0-9_])([A-Z]{2})\d{2}(?=[ \-\n]?[A-Z0-9]{4})", re.A)
_ANY = re.compile(rf"{_BEFORE}[+(]{{0,2}}\d(?:[ .()/\-]{{0,2}}\d){{6,14}}{_AFTER}", re.A)
_ABROAD = re.compile(rf"{_BEFORE}00(?P<code>[1-9]\d{{0,2}})(?P<rest>(?:[ \-]\(?\d{{1,8}}\)?){{1,5}}){_AFTER}", re.A)
_NO_PHONE = re.compile(
    r"(?:18|19|20)\d\d[ .\-/]\d\d?[ .\-/]|\d\d?[.\-/]\d\d?[.\-/]\d{4}|(?:18|19|20)\d\d[ \-]+(?:18|19|20)\d\d"
    r"|\d+\.\d+$|\d{1,3}(?:\.\d{1,3}){3}$"
)
"""Dates, decimal fractions and IP addresses."""


_PHONE_HINT = re.compile(
    r"(?:(?:(?<![a-z])(?:(?:tele)?phone|tel|mobile|cell|fax|whatsapp|telefon[eo]?|tel[ée]fono|t[ée]l|handy|celular|móvil)"
    r"|(?<![а-яА-Я])(?:[Тт]ел(?:ефон)?|[Мм]об)"
    r"|(?<![a-z])(?:contact|ph|mob)(?=[ _]?(?:numbers?|nos?|num)\b|\.?\s?[:：]))"
    r"(?:[ _]?(?:numbers?|nos?|num|nummer))?\.?['\"]?\s?(?:is|are|at|[:=：]|:=)?\s{0,2}['\"]?"
    r"|(?:电话|電話|手机|手機|手机号|手機號|传真|傳真|座机|座機|固话|固話|致电|致電|拨打|撥打|联系方式|聯繫方式|聯絡方式|携帯|携帯電話"
    r"|전화|휴대폰|연락처)(?:号码?|號碼?|番号|번호)?\s?(?:是|为|為|[:：])?\s{0,2}['\"]?)$",
    re.I | re.A,
)
_AND = re.compile(r"\s?(?:[,;/、，；]|and|or|和|或|及)\s?", re.A)
"""What stands between phone numbers of one list."""
_US_DIGITS = re.compile(r"[2-9]\d\d ?[2-9]\d\d ?\d{4}", re.A)
_TRUNK = re.compile(r"\(?0(?:[ .()\-]{0,2}\d){9,10}", re.A)
"""A number of ten or eleven digits with the 0 that most countries write before the area."""
_CALLED = re.compile(
    r"(?:(?<![a-z])(?:call|text|dial|ring|reach|contact)(?:s|ing)?(?P<person> (?:me|us|him|her|them|you))?"
    r"(?: (?:at|on))?"
    r"|(?:(?<![a-z])(?:my|his|her|our|their|your)|'s) (?:new |old )?number(?: is)?):?\s$",
    re.I | re.A,
)
_AMOUNT_BEFORE = re.compile(r"(?:[$€£¥￥]|\b(?:USD|EUR|RMB|CNY|GBP))\s?$", re.I)
_AMOUNT_AFTER = re.compile(
    r"\s?(?:[%‰°]|[元圆圓块塊万萬亿億人次个個年秒毫美字千米吨噸件倍票股条條项項户戶]"
    r"|(?:bytes?|bits?|ms|ns|km|kg|people|users|views|times|years|dollars|steps|items|rows)\b)",
    re.I,
)
_ARITHMETIC = re.compile(r"[\w)\]](?:[*/%^+\-]| (?:\*\*?|//?|[%^+\-<>]|[<>]=) |\s?[\-+*/]=\s?)$", re.A)
_ARITHMETIC_AFTER = re.compile(r"[*/%^]\w| (?:\*\*?|//?|[%^+\-<>]|[<>]=) [\w(]|[LlUu]{1,2}\b", re.A)
_NAMED = re.compile(
    r"(?P<quoted>['\"])?(?P<name>[A-Za-z_$][\w$.\- ]{0,30}|[\u4e00-\u9fff]{2,8})['\"]?"
    r"\s?(?P<sign>=>?|[:：]|(?<! )\(|#|[为是]|\.? ?)\s{0,2}(?P<quote>['\"])?$",
    re.A,
)
"""A name before a number, in code or in a sentence, and the sign between them."""

_IS_PHONE_NAME = re.compile(
    r"phone|mobile|cell|tel|fax|whatsapp|contact|call|text|sms|dial|mob\b"
    r"|手机|手機|电话|電話|联系|聯繫|聯絡|号码|號碼|传真|傳真|致电|致電|拨打|撥打|热线|熱線|微信",
    re.I,
)
_OTHER_NAME = re.compile(
    r"(?:^|[^a-z])(?:[a-z]*_)?(?:u?id|order|invoice|serial|sku|upc|ean|isbn|issn|timestamp|ts|time|date|seed|size|count"
    r"|total|hash|port|offset|version|number of|tracking|ticket|case|part|model|account|checksum|pid|epoch|qq)"
    r"(?:[ _](?:number|no|num|id|code))?s?\W*$"
    r"|订单|单号|编号|流水|序列|批次|账单|运单|快递|QQ|学号|工号|条码|时间戳|数量|金额|代码|票号|书号|批号|版本"
    r"|訂單|單號|編號|帳單|賬單|運單|快遞|學號|工號|條碼|時間戳|數量|金額|代碼|票號|書號|批號",
    re.I,
)
