"""Tells a page's HTML, as exports of chats hold it, from text that speaks of HTML; and how deeply it is nested.

A browser that serialises part of a page writes `<` of text as `&lt;`, so every `<` begins a tag, and it indents
nothing. What chats show is rendered Markdown: blocks of prose, code and tables, and no page furniture such as <head>,
<form> or <nav>. So a text is taken for such HTML if

- its first tag is one of BLOCKS, and every character outside tags, but for white space, is inside an element;
- every `<` begins a complete tag or comment, and every element is one of KNOWN;
- outside <pre> no line between two tags is indented, as people and models indent the HTML that they write; but it may
  be where an element has a class of a chat page, since some exports are laid out anew.

The scan is linear in the length of the text, whatever the text.
"""

import re
from collections import Counter
from typing import NamedTuple


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


BLOCKS = _set("p div pre ol ul table h1 h2 h3 h4 h5 h6 blockquote section article hr dl figure details")
_INLINE = "a abbr annotation b bdi bdo br button caption cite code col colgroup dd del dfn dt em figcaption font i img"
_FURTHER = "input ins kbd label li mark q s samp small span strike strong sub summary sup svg tbody td tfoot th thead"
_MATHS = "math maction menclose merror mfenced mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts mroot"
_MORE_MATHS = "mrow ms mspace msqrt mstyle msub msubsup msup mtable mtd mtext mtr munder munderover none semantics"
_DRAWING = "circle clippath defs ellipse g line lineargradient mask path polygon polyline rect stop symbol title use"
_SCRIPTS = "script time tr tt u var wbr picture source video audio"  # <script type="math/tex"> holds maths
KNOWN = BLOCKS.union(*map(_set, (_INLINE, _FURTHER, _MATHS, _MORE_MATHS, _DRAWING, _SCRIPTS)))
"""Elements that rendered Markdown, its code blocks, its maths and the buttons around them are made of; further
elements are those of MathJax, whose names begin with "mjx-"."""

VOID = _set("area br col hr img input source wbr")
SELF_CLOSING_AT_NEXT = _set("p li dt dd td th tr option")
"""Elements that end where the next element of the same name begins."""

MOST_LEVELS = 200
"""Levels of nested elements up to which a text is converted."""

_TAG = re.compile(
    r"""<(?: !--.*?--> | (?P<end>/)? (?P<name>[a-zA-Z][\w:-]*) (?P<rest>(?: [^<>"'] | "[^"]*" | '[^']*' )*+) > )""",
    re.VERBOSE | re.DOTALL,
)
_INDENTED = re.compile(r"\n[ \t]+\Z")
_OF_EXPORT = re.compile(
    r"""class=["'](?:[^"']*\s)?(?:markdown|prose|hljs|katex|math-inline|math-display|whitespace-pre-wrap|result-streaming)[\s"']"""
)


class Page(NamedTuple):
    """A text that is HTML."""

    levels: int
    """How many elements are open at once, at most."""

    of_export: bool
    """Whether a class of its elements is one that chat pages give to rendered answers."""


def page_of(text: str) -> Page | None:
    """What is known of a text that is HTML of a chat page, by the rule of the module; None for any other text."""
    text = text.strip()
    first = _TAG.match(text)
    if not first or not first["name"] or first["end"] or first["name"].lower() not in BLOCKS:
        return None
    of_export = _OF_EXPORT.search(text) is not None
    open_elements: list[str] = []
    count: Counter[str] = Counter()
    place = levels = 0
    while (start := text.find("<", place)) >= 0:
        gap = text[place:start]
        if gap and not (open_elements or gap.isspace()):
            return None
        if not of_export and "\n" in gap and not count["pre"] and gap.isspace() and _INDENTED.search(gap):
            return None
        tag = _TAG.match(text, start)
        if not tag:
            return None
        place = tag.end()
        if not tag["name"]:
            continue
        name = tag["name"].lower()
        if not (name in KNOWN or name.startswith("mjx-")) or (name == "script" and not _is_maths(tag)):
            return None
        if tag["end"]:
            _close(name, open_elements, count)
        elif name not in VOID and not (tag["rest"].endswith("/") and name not in BLOCKS):
            if name in SELF_CLOSING_AT_NEXT and open_elements and open_elements[-1] == name:
                _close(name, open_elements, count)
            open_elements.append(name)
            count[name] += 1
            levels = max(levels, len(open_elements))
    if text[place:].strip() and not open_elements:
        return None
    return Page(levels, of_export)


def _close(name: str, open_elements: list[str], count: Counter[str]) -> None:
    """Ends the innermost open element of this name, and all within it; nothing if there is none."""
    while count[name]:
        last = open_elements.pop()
        count[last] -= 1
        if last == name:
            return


def _is_maths(tag: re.Match[str]) -> bool:
    """Whether a <script> holds TeX, as MathJax 2 writes it; also true of its end."""
    return bool(tag["end"]) or "math/tex" in tag["rest"]
