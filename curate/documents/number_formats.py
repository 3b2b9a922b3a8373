"""Number formats of spreadsheets: what a cell shows of its value.

Known are the formats of numbers, percentages, currencies, scientific notation, dates, times and durations, with
sections for signs and conditions, in English and with Chinese dates. A format that is not known, such as a fraction,
gives the plain value: a number with all its digits, a date in ISO 8601, a duration as hours:minutes:seconds.

Source: ECMA-376, part 1, 18.8.31 (numFmts); the names of sections, digits and letters are those of the standard.
"""

import datetime
import functools
import re
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

TOKEN = re.compile(
    r"""(?P<quoted>"[^"]*"?) | \\(?P<escaped>.) | (?P<blank>_.|\*.) | \[(?P<bracket>[^\]]*)\] | (?P<general>General)
    | (?P<noon>AM/PM|A/P|上午/下午) | (?P<letters>y+|m+|d+|h+|s+|aaaa?) | (?P<fraction>\.0+(?=[^0#?]|$))
    | (?P<exponent>E[+-]0+) | (?P<digit>[0#?.,%]) | (?P<text>@) | (?P<plain>[^A-Za-z])""",
    re.VERBOSE | re.IGNORECASE,
)
COLOURS = re.compile(r"black|blue|cyan|green|magenta|red|white|yellow|color ?\d+", re.IGNORECASE)
CONDITION = re.compile(r"(<=|>=|<>|<|>|=)(-?[\d.]+)")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July")
MONTHS += ("August", "September", "October", "November", "December")
ENGLISH = 9
"""The primary language of English in a locale of Windows."""

Moment = datetime.datetime | datetime.date | datetime.time | datetime.timedelta


class _Unknown(ValueError):
    """A format has a part that is not known."""


def shown_value(value, number_format: str) -> str:
    """A cell's value as a spreadsheet shows it.

    Args:
      value: None, a boolean, text, a number, or a date, time or duration, as openpyxl gives it.
      number_format: the format of the cell, such as "0.0%".
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if not isinstance(value, int | float | Moment):
        return str(value).replace("_x000D_", "").strip()
    try:
        if isinstance(value, Moment):
            return _moment(value, _sections(number_format)[0]).strip()
        return _number(value, _sections(number_format)).strip()
    except (_Unknown, ArithmeticError):
        return _plain_moment(value) if isinstance(value, Moment) else _plain_number(value)


@dataclass(frozen=True)
class _Section:
    """A part of a format that stands for some values."""

    tokens: tuple[tuple[str, str], ...]
    """Pairs (kind, text) of its tokens; "literal" is text that is shown."""

    condition: tuple[str, Decimal] | None = None
    """Operator and number of the values that it stands for, if it says them."""


@functools.lru_cache(maxsize=1000)
def _sections(number_format: str) -> tuple[_Section, ...]:
    """The sections of a format, of which there is at least one. Raises _Unknown."""
    sections, tokens, condition, place = [], [], None, 0
    while place < len(number_format):
        if number_format[place] == ";":
            sections.append(_Section(tuple(tokens), condition))
            tokens, condition, place = [], None, place + 1
            continue
        match = TOKEN.match(number_format, place)
        if match is None:
            raise _Unknown(number_format)
        place, kind, text = match.end(), match.lastgroup, match[match.lastgroup]
        if kind == "bracket":
            if found := CONDITION.fullmatch(text):
                condition = found[1], Decimal(found[2])
            else:
                tokens += _bracket(text)
        elif kind in ("quoted", "escaped", "plain"):
            tokens.append(("literal", text.strip('"') if kind == "quoted" else text))
        elif kind != "blank":  # space as wide as a character, or one that fills the cell
            tokens.append((kind, text.lower() if kind == "letters" else text))
    return (*sections, _Section(tuple(tokens), condition))


def _bracket(text: str) -> list[tuple[str, str]]:
    """The token of a bracket: a currency, a duration or a locale. Raises _Unknown."""
    if text.startswith("$"):
        sign, _, locale = text[1:].partition("-")
        language = int(locale, 16) & 0x3FF if re.fullmatch("[0-9a-fA-F]{1,8}", locale) else ENGLISH
        windows = locale.upper() in ("F800", "F400")  # long date and time of the system
        return [("literal", sign)] if windows or language == ENGLISH else [("literal", sign), ("locale", locale)]
    if re.fullmatch("h+|m+|s+", text, re.IGNORECASE):
        return [("elapsed", text.lower())]
    if COLOURS.fullmatch(text):
        return []
    raise _Unknown(text)


def _number(value: int | float, sections: tuple[_Section, ...]) -> str:
    """A number by the section that stands for it."""
    number = Decimal(f"{value:.15g}" if isinstance(value, float) else value)
    section, signed = _section_of(number, sections)
    kinds = [kind for kind, _ in section.tokens]
    if {"letters", "elapsed", "noon"} & {*kinds}:
        raise _Unknown("a date that is no date")
    if not {"digit", "fraction", "general", "text"} & {*kinds}:
        return "".join(text for kind, text in section.tokens if kind == "literal")
    sign = "-" if number < 0 and signed else ""
    if "general" in kinds or "text" in kinds:
        plain = _plain_number(abs(value))
        return sign + "".join(
            plain if kind in ("general", "text") else text for kind, text in section.tokens if kind != "locale"
        )
    return sign + _digits(abs(number), section)


def _section_of(number: Decimal, sections: tuple[_Section, ...]) -> tuple[_Section, bool]:
    """The section that stands for a number, and whether a minus sign is shown before it."""
    numbers = sections[:3]
    if any(section.condition for section in numbers):
        for section in numbers:
            if section.condition is None or _holds(number, *section.condition):
                return section, True
        raise _Unknown("no section stands for the number")
    if number < 0 and len(numbers) > 1:
        return numbers[1], False
    return numbers[2 if not number and len(numbers) > 2 else 0], True


def _holds(number: Decimal, operator: str, limit: Decimal) -> bool:
    """Whether a number fulfils the condition of a section."""
    order = "<" if number < limit else ">" if number > limit else "="
    return order in operator


def _digits(number: Decimal, section: _Section) -> str:
    """A number without its sign, with its digits in the places of a section."""
    tokens = [pair for kind, text in section.tokens for pair in _single(kind, text)]
    code = "".join(text for kind, text in tokens if kind == "digit")
    whole, _, fraction = code.replace("%", "").partition(".")
    scale = len(whole) - len(whole.rstrip(","))
    if "." in fraction or "," in fraction or ("exponent" in dict(tokens) and whole != "0"):
        raise _Unknown(code)
    if any(kind == "literal" and text == "/" for kind, text in tokens):
        raise _Unknown("a fraction")
    number, power = number.scaleb(2 * code.count("%") - 3 * scale), 0
    if exponent := next((text for kind, text in tokens if kind == "exponent"), ""):
        power = number.adjusted() if number else 0
        if _rounded(number.scaleb(-power), len(fraction)) >= 10:
            power += 1
        number = number.scaleb(-power)
        sign = "-" if power < 0 else "+" if exponent[1] == "+" else ""
        exponent = f"E{sign}{abs(power):0{len(exponent) - 2}d}"
    before, _, after = f"{_rounded(number, len(fraction)):f}".partition(".")
    optional = re.search(r"[#?]*$", fraction)[0]
    while optional and after.endswith("0"):
        optional, after = optional[1:], after[:-1]
    places = whole.replace(",", "")
    before = before.lstrip("0").zfill(places.count("0"))
    if grouped := "," in whole.rstrip(","):
        before = re.sub(r"(?<=\d)(?=(?:\d{3})+$)", ",", before)
    text, seen, point = [], 0, False
    for kind, letter in tokens:
        if kind == "exponent":
            text.append(exponent)
        elif kind == "literal" or letter == "%":
            text.append(letter)
        elif letter == ".":
            point = True
            text += [before, ".", after]
            before = ""
        elif letter != "," and not point:
            seen += 1
            left = len(before) if grouped and seen < len(places) else len(places) - seen  # for the places that follow
            take = max(0, len(before) - left)
            text.append(before[:take])
            before = before[take:]
    return "".join(text)


def _single(kind: str, text: str) -> list[tuple[str, str]]:
    """A token, or those that it is short for."""
    return [("digit", letter) for letter in text] if kind == "fraction" else [] if kind == "locale" else [(kind, text)]


def _rounded(number: Decimal, places: int) -> Decimal:
    """A number with so many decimals; halves are rounded away from zero."""
    return number.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)


def _moment(value: Moment, section: _Section) -> str:
    """A date, a time or a duration by a section."""
    tokens = section.tokens
    if isinstance(value, datetime.timedelta):
        seconds, micro = divmod(value // datetime.timedelta(microseconds=1), 1_000_000)
    else:
        clock = value if isinstance(value, datetime.time | datetime.datetime) else datetime.time()
        seconds, micro = 3600 * clock.hour + 60 * clock.minute + clock.second, clock.microsecond
    if seconds < 0 or not any(kind in ("letters", "elapsed") for kind, _ in tokens):
        raise _Unknown("no format of a date")
    parts = [text[0] if kind in ("letters", "elapsed") else "" for kind, text in tokens]
    noon = any(kind == "noon" for kind, _ in tokens)
    english = all(kind != "locale" for kind, _ in tokens)
    text = []
    for place, (kind, code) in enumerate(tokens):
        near = [*filter(None, parts[:place])][-1:], [*filter(None, parts[place + 1 :])][:1]
        minute = code in ("m", "mm") and (near[0] == ["h"] or near[1] == ["s"])
        if kind == "literal" or (kind == "digit" and code in ".,"):
            text.append(code)
        elif kind == "fraction":
            text.append(f".{micro:06d}"[: len(code)])
        elif kind == "noon" and english:
            text.append(code.split("/")[seconds % 86400 >= 43200])
        elif kind == "elapsed":
            text.append(f"{seconds // {'h': 3600, 'm': 60, 's': 1}[code[0]]:0{len(code)}d}")
        elif kind == "letters" and (code[0] in "hs" or minute):
            hour = seconds // 3600 % 24
            part = {"h": (hour % 12 or 12) if noon else hour, "m": seconds // 60 % 60, "s": seconds % 60}[code[0]]
            text.append(f"{part:0{len(code[:2])}d}")
        elif kind == "letters" and isinstance(value, datetime.date):
            text.append(_day(value, code, english))
        elif kind != "locale":
            raise _Unknown(code)
    return "".join(text)


def _day(value: datetime.date, code: str, english: bool) -> str:
    """A part of a date. Raises _Unknown for a name in another language."""
    letter, size = code[0], len(code)
    if letter == "y":
        return f"{value.year % 100:02d}" if size < 3 else f"{value.year:04d}"
    if letter == "a":
        return ("周" if size < 4 else "星期") + "一二三四五六日"[value.weekday()]
    if size < 3:
        return f"{value.day if letter == 'd' else value.month:0{size}d}"
    if not english:
        raise _Unknown(code)
    name = DAYS[value.weekday()] if letter == "d" else MONTHS[value.month - 1]
    return name[:1] if size == 5 and letter == "m" else name[:3] if size == 3 else name


def _plain_number(value: int | float) -> str:
    """A number with all its digits, of which a spreadsheet has 15."""
    if isinstance(value, int):
        return str(value)
    text = f"{value:.15g}"
    return f"{Decimal(text):f}" if "e" in text and 1e-10 < abs(value) < 1e21 else text


def _plain_moment(value: Moment) -> str:
    """A date in ISO 8601, without a time at midnight; a duration as hours:minutes:seconds."""
    if isinstance(value, datetime.timedelta):
        minutes, seconds = divmod(abs(round(value.total_seconds())), 60)
        return f"{'-' if value < datetime.timedelta() else ''}{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
    return value.isoformat(" ").removesuffix(" 00:00:00") if isinstance(value, datetime.datetime) else value.isoformat()
