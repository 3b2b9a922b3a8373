"""Reads what a judge wrote: scores, the better of two answers, and the five labels of Arena-Hard.

A verdict that cannot be read is None, never a number: callers count it and leave it out of means. Where a judge
corrects itself, its last verdict counts. Code blocks are left out, since [[1]] may be an array there, unless the judge
wrote next to nothing outside of them. Quotations are left out, since an answer may ask for a verdict: "[[10]]".

A verdict in brackets is marked if it follows a label ("Rating:", "My verdict is"), or is alone on its line. The last
marked one counts, unless a later one without a mark differs. Without a mark, verdicts that differ are None.
"""

import re
from collections.abc import Callable, Iterable
from typing import Literal, TypeVar

from .judgments import Winner

Label = Literal["A>>B", "A>B", "A=B", "B>A", "B>>A"]

T = TypeVar("T")

_FEW_WORDS = 8  # a text with at most this many words outside of its code blocks has its verdict inside of one
_FENCE = re.compile(r"(```|~~~)[^\n]*\n(.*?)(?:\1|\Z)", re.DOTALL)
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # full-width forms of ASCII characters
_QUOTES = dict.fromkeys((0x201C, 0x201D, 0x300C, 0x300D, 0x300E, 0x300F), '"')
_PLAIN = str.maketrans(_WIDE | _QUOTES | {0x3000: " ", 0xA0: " ", 0x2212: "-", 0x3010: "[", 0x3011: "]"})
_EMPHASIS = re.compile(r"(?<![0-9])(?:\*+|`|__)|(?:\*+|`|__)(?![0-9])")  # not 2**3

# A number that is no part of a word, a version, a date, a range (8-9), a decimal comma (8,5) or a fraction (8½).
_NUMBER = (
    r"(?<![0-9A-Za-z_.,/+-])(?<!\d[ -]-)([+-]?[0-9]+(?:\.[0-9]+)?)"
    r"(?![0-9A-Za-z_%½¼¾⅓⅔⁄]|[.,][0-9]|,? [0-9]| ?[-–~] ?[0-9])"
)
_SCORE = _NUMBER + r"(?:(?: ?/ ?| out of )([0-9]+(?:\.[0-9]+)?)(?![0-9A-Za-z_%/]|\.[0-9]))?"
# What may follow a score in a sentence; a noun may not: "a score of 8 teams" is none.
_END = (
    r"(?= ?分(?![钟之数类析])| ?points?\b| ?/?>|[ \"')}\]]*(?:$|[.,;:!?。，；！、\n(<–—-]"
    r"|(?:because|for|as|since|and|but|due|given|overall|with|to)\b))"
)
_WORD = r"(?:ratings?|scores?|grades?|marks?|评分|得分|分数|打分|评级|总分|总评)"
_NOTE = r"(?: ?\([^()\n]{1,20}\))?"  # as in "Rating (1-10): 8"
_LINK = r"[\"'>)]{0,2} ?(?:is|was|of|=|为|是|-|–|—)? ?:? ?(?:a |an )?[\"'(<\[]?"
_LABELLED = re.compile(
    rf"(?<![A-Za-z])({_WORD}{_NOTE}{_LINK}|rate (?:this|it|the)\b[^0-9.\n]{{0,40}}?){_SCORE}{_END}", re.I
)
_FINAL = re.compile(r"(?:final|overall|total|最终|最后|综合|总体|总)[ 的\"_]{0,2}$", re.I)
_OF_TEN = re.compile(rf"{_SCORE}{_END}", re.I)
_POINTS = re.compile(rf"{_NUMBER} ?分(?![钟之数类析])")
_ALONE = re.compile(rf"[\"'(\[]*{_SCORE} ?(?:分|points?)?[\"')\].]*", re.I)
_FULL_MARKS = re.compile(r"\(?满分 ?(?:为|是|:)? ?([0-9]+) ?分?制?\)?")

_VERDICT = r"(?:verdict|winner|choice|decision|judge?ment|判决|结论|裁决|胜者|胜出者)"
_NEAR = 100  # characters around a verdict among which its label is looked for
_MARK = re.compile(
    rf"(?:(?<![A-Za-z]){_WORD}{_NOTE}{_LINK}|{_VERDICT}[^.!?。\"\n]{{0,60}}?(?:is|:|=|为|是|-|–)[ :]{{0,2}}[\"'(]?"
    r"|(?<![A-Za-z])no[,:] ?|\": ?)$",
    re.I,
)
_QUOTATION = re.compile(r"(?<!\w)\"(?! )[^\"\n]{1,400}\"(?!\w)|'\[\[[^\[\]\n]*\]\]'")
_BRACKETS = re.compile(r"\[\[([^\[\]]*)\]\]")
_INSIDE = re.compile(r"(?<![0-9A-Za-z_.])([+-]?[0-9]+(?:\.[0-9]+)?)(?![0-9A-Za-z_])(?:(?: ?/ ?| out of )([0-9]+))?")
_AUTHOR = r"(?:assistant|model|answer|response|candidate|助手|助理|模型|回答|答案) ?#?([1-9]|[A-I])|(?<!\w)([AB])"
_VERB = r"(?:is|gets|receives|:|=|为|是|得|-|–|\()"
_GETS = rf"(?:'s)?(?: ?的)?{_NOTE}(?: ?{_VERB}|:?\s?(?:{_VERB} )?(?:an? )?{_WORD}(?: of| ?{_VERB})) ?\[*"
_NAMED = re.compile(rf"(?:{_AUTHOR})(?![0-9A-Za-z]){_GETS}{_SCORE}{_END}", re.I)
_ENTRY = r"([+-]?[0-9]+(?:\.[0-9]+)?)(?: ?/ ?([0-9]+))?"
_TWO = re.compile(  # as in "The output tuple is (10, 4)", "The scores are 4 and 9, respectively"
    rf"(?:output|tuple|{_WORD})\b[^.\n]{{0,60}}?(?<![0-9A-Za-z.+-]){_ENTRY}(?:,? and |, ?|和){_ENTRY}"
    r"(?![0-9A-Za-z]|\.[0-9])",
    re.I,
)
_BOTH = re.compile(rf"\bboth\b[^.\n]{{0,60}}? {_WORD} of {_SCORE}{_END}", re.I)
_BETWEEN = re.compile(r"(?: ?(?:[,;|&、]|and\b|vs\.?|和|分) ?| )+", re.I)
_HEADING = re.compile(rf"^(?:{_WORD}|.{{0,20}}{_WORD}) ?[:=] ?", re.I)

_CHOICE = re.compile(
    r"\[\[ ?(?:(?:assistant|model|answer|助手|模型|回答) ?)?(A|B|C|tie|平局|[AB] ?[<>=]{1,2} ?[AB]) ?\]\]"
    r"|\[([AB] ?[<>=]{1,2} ?[AB])\]",
    re.I,
)
_STATED = re.compile(
    rf"{_VERDICT}[\"' ]{{0,2}}(?:is|:|=|为|是)[ :]{{0,2}}"
    r"[\"'(]?(?:(?:assistant|model|answer|助手|模型|回答) ?)?(A|B|C|(?:a )?tie|平局)"
    r"(?=[\"')]{0,2} ?(?:$|[.,;!。，；\n]))",
    re.I,
)
_CHOICE_ALONE = re.compile(r"[\"'(]*(?:assistant )?(A|B|C|tie|平局)[\"')]*\.?", re.I)
_LABELS: dict[str, Label] = {"A>>B": "A>>B", "A>B": "A>B", "A=B": "A=B", "B=A": "A=B", "B>A": "B>A", "B>>A": "B>>A"}
_LABELS |= {"A<B": "B>A", "A<<B": "B>>A", "B<A": "A>B", "B<<A": "A>>B"}
_WINNERS: dict[str, Winner] = {"A": "a", "B": "b", "C": "tie", "TIE": "tie", "A TIE": "tie", "平局": "tie"}
_WINNERS |= {"A>>B": "a", "A>B": "a", "A=B": "tie", "B>A": "b", "B>>A": "b"}


def parse(text: str, n: int = 1, low: float = 1.0, high: float = 10.0) -> tuple[float, ...] | None:
    """The scores that a judge gave to n answers, in the order of the answers.

    It reads "[[8.5]]", "**Rating**: 8", "Score: 8/10", "8 out of 10", "评分：8", "8分", JSON, a number alone on the
    first or last line; for more answers "[[8, 7]]", "8 7", "8/10, 7/10", "Assistant 1: 8, Assistant 2: 7". Brackets
    count before labels, labels before other forms, and a final or overall score before other labels.

    Args:
      text: what the judge wrote.
      n: number of scores.
      low, high: the range of scores; a score "8/5" or "8 out of 100" is on another scale and is not read.

    Returns:
      n scores from low to high; None if there are none, or the last verdict is out of the range or on another scale.
    """
    found = _outside_code(text, lambda part: _scores(part, n, high))
    return found if found is not None and all(low <= score <= high for score in found) else None


def winner(text: str) -> Winner | None:
    """The better of two answers: "a", "b" or "tie".

    It reads [[A]], [[B]] and [[C]] or [[tie]], the labels of Arena-Hard, "Final verdict: A", "结论：平局", and A, B or
    C alone. None if the text gives no verdict, or verdicts that contradict each other (see the module).
    """
    found = _outside_code(text, _choice)
    return None if found is None else _WINNERS[found]


def label(text: str) -> Label | None:
    """The label of Arena-Hard that a judge gave, such as "A>>B": A is much better; "A<B" is read as "B>A".

    None if the text gives no such label, or labels that contradict each other (see the module).
    """
    found = _outside_code(text, _choice)
    return _LABELS.get(found) if found else None


def _outside_code(text: str, read: Callable[[str], T | None]) -> T | None:
    """What `read` finds outside of code blocks; inside of them if there are few words outside."""
    outside = _FENCE.sub("\n", text)
    found = read(_without_quotations(_plain(outside)))
    if found is None and len(outside.split()) <= _FEW_WORDS:
        found = read(_without_quotations(_plain("\n".join(match[2] for match in _FENCE.finditer(text)))))
    return found


def _plain(text: str) -> str:
    """The text with full-width characters as ASCII ones and without bold, one space between words, no blank lines."""
    lines = (" ".join(line.split()) for line in _EMPHASIS.sub("", text.translate(_PLAIN)).splitlines())
    return "\n".join(line for line in lines if line)


def _without_quotations(text: str) -> str:
    """The text without quotations that have a verdict in them; one that is marked is the judge's own."""

    def keep(match: re.Match) -> str:
        quotes = "[[" in match[0] or _LABELLED.search(match[0]) or _STATED.search(match[0])
        return match[0] if not quotes or _is_marked(match) else '"..."'

    return _QUOTATION.sub(keep, text)


def _is_marked(match: re.Match) -> bool:
    """Whether a verdict follows a label, or is alone on its line."""
    text, begin, end = match.string, match.start(), match.end()
    before = text[max(0, begin - _NEAR) : begin].rpartition("\n")
    after = text[end : end + _NEAR].partition("\n")[0]
    starts_near = bool(before[1]) or begin <= _NEAR
    alone = starts_near and not re.search(r"\w", before[2] + after)
    return alone or _MARK.search(before[2]) is not None


def _settled(found: list[tuple[re.Match, T]], others: Iterable[T] = ()) -> T | None:
    """The verdict of those in brackets, in the order of the text; None if they contradict each other.

    others: verdicts without brackets, which count beside those that are not marked.
    """
    marked = [place for place, (match, _) in enumerate(found) if _is_marked(match)]
    value = found[marked[-1] if marked else 0][1]
    rest = [each for _, each in found[marked[-1] :]] if marked else [*(each for _, each in found), *others]
    return value if all(each == value for each in rest) else None


def _scores(text: str, n: int, high: float) -> tuple[float, ...] | None:
    if any(float(full) != high for full in _FULL_MARKS.findall(text)):
        return None
    text = _FULL_MARKS.sub("", text)
    finders = (
        (_in_brackets, _labelled, _out_of, _alone) if n == 1 else (_in_brackets, _on_a_line, _named, _in_a_sentence)
    )
    for find in finders:
        found = find(text, n, high)
        if found:  # a value of nan stands for a score on another scale
            return found
    return None


def _value(number: str, scale: str | None, high: float) -> float:
    return float(number) if not scale or float(scale) == high else float("nan")


def _in_brackets(text: str, n: int, high: float) -> tuple[float, ...] | None:
    brackets = [(match, _INSIDE.findall(match[1])) for match in _BRACKETS.finditer(text)]
    found = [(match, tuple(_value(*pair, high) for pair in pairs)) for match, pairs in brackets if pairs]
    if not found:
        return None
    nothing = (float("nan"),)
    if n > 1 and len(found[-1][1]) == 1:  # a bracket for each answer
        each = tuple(values[0] for _, values in found)
        return _named(text, n, high) or (each if len(each) == n else nothing)
    labelled = _labelled(text, n, high) if n == 1 else None
    settled = _settled(found, [labelled] if labelled else [])
    return settled if settled and len(settled) == n else nothing


def _labelled(text: str, n: int, high: float) -> tuple[float, ...] | None:
    found = list(_LABELLED.finditer(text))
    final = [match for match in found if _FINAL.search(text[: match.start()][-12:]) or match[1].startswith("总")]
    return (_value(*(final or found)[-1].groups()[1:], high),) if found else None


def _out_of(text: str, n: int, high: float) -> tuple[float, ...] | None:
    found = [
        (match.start(), float(match[1])) for match in _OF_TEN.finditer(text) if match[2] and float(match[2]) == high
    ]
    found += [(match.start(), float(match[1])) for match in _POINTS.finditer(text)]
    return (max(found)[1],) if found else None


def _alone(text: str, n: int, high: float) -> tuple[float, ...] | None:
    lines = text.split("\n")
    found = [match for line in (lines[0], lines[-1]) if (match := _ALONE.fullmatch(line))]
    return (_value(*found[-1].groups(), high),) if found else None


def _named(text: str, n: int, high: float) -> tuple[float, ...] | None:
    """Scores that name their answers, as in "Assistant A: 8"; the last one of each answer."""
    found = {}
    for match in _NAMED.finditer(text):
        who = (match[1] or match[2]).upper()
        found[int(who) if who.isdigit() else ord(who) - ord("A") + 1] = _value(match[3], match[4], high)
    return tuple(found[place] for place in range(1, n + 1)) if found.keys() == set(range(1, n + 1)) else None


def _on_a_line(text: str, n: int, high: float) -> tuple[float, ...] | None:
    """The last line that is n scores and nothing else, or that follow a heading such as "Scores:"."""
    for line in reversed(text.split("\n")):
        parts = [_INSIDE.fullmatch(part) for part in _BETWEEN.split(_HEADING.sub("", line).strip(" .()[]")) if part]
        if len(parts) == n and all(parts):
            return tuple(_value(*part.groups(), high) for part in parts)
    return None


def _in_a_sentence(text: str, n: int, high: float) -> tuple[float, ...] | None:
    """Two scores in one sentence, or one that both answers got."""
    if n != 2:
        return None
    two = [(match.start(), (match[1], match[2]), (match[3], match[4])) for match in _TWO.finditer(text)]
    both = [(match.start(), match.groups(), match.groups()) for match in _BOTH.finditer(text)]
    last = max(two + both, default=None)
    return last and tuple(_value(*pair, high) for pair in last[1:])


def _choice(text: str) -> str | None:
    """A key of _WINNERS: the verdict in brackets, else the last one that is stated, else one that stands alone."""
    brackets, stated = ([(match, _key(match)) for match in each.finditer(text)] for each in (_CHOICE, _STATED))
    last_line = stated[-1][0].string.rfind("\n", 0, stated[-1][0].start()) if stated else 0
    said = {choice for match, choice in stated if match.start() > last_line}
    if brackets:
        return _settled(brackets, said)
    if stated:
        return said.pop() if len(said) == 1 else None
    lines = text.split("\n")
    alone = [match[1].upper() for line in (lines[0], lines[-1]) if (match := _CHOICE_ALONE.fullmatch(line))]
    return alone[-1] if alone else None


def _key(match: re.Match) -> str:
    choice = match[match.lastindex].upper().replace(" ", "")
    return _LABELS.get(choice, choice.replace("ATIE", "TIE"))
