"""Turns the HTML of exported chats back into Markdown.

Which texts are HTML is decided by `export_html.page_of`; all others stay as they are, to the byte. The conversion is
markdownify's, with what chats need besides: code blocks with their language and without the header above them,
maths as the TeX that it was written in, tables with one line for each row, and lists numbered as in the page. Markdown
has no form for <sup> and <sub>, so their tags stay. Letters that Markdown could take for markup (* and _) are not
escaped: they are the letters that the model wrote.

Sources: structure of KaTeX's output (annotation with encoding application/x-tex) and of MathJax 2 (script with type
math/tex) as their documentation describes it.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from ...data.messages import Message
from ...errors import UserError
from ...settings.leaves import OneOf
from ..rows import Rejected, Row, answers_of
from .export_html import BLOCKS, MOST_LEVELS, Page, page_of
from .repair import with_turns

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

_LANGUAGE = re.compile(r"(?:language|lang|highlight-source|brush)[-:]([\w+#.][\w+#.-]*)")
_LANGUAGE_NAME = re.compile(r"[A-Za-z][\w+#.-]{0,19}")
_MATHS_CLASS = re.compile(
    r"katex(?:-display|-mathml)?|math(?:-inline|-display)?|MathJax(?:_\w+)?|MJX_Assistive_MathML|mwe-math-[\w-]+"
)
_DISPLAY_CLASS = re.compile(r"katex-display|math-display|MathJax_Display|mwe-math-[\w-]*display")
_BACKTICKS = re.compile(r"`+")
_WHITE_SPACE = re.compile(r"[ \t\r\n]+")

MOST_COLUMNS = 100
"""Columns of a table that cells of several rows or columns reach into, and to which short rows are filled up."""


class ConversionError(ValueError):
    """A text that is HTML and cannot be turned into Markdown without losing something.

    `reason` is one of the reasons of the step `Markdown`.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Markdown:
    """Turns turns that are HTML of an exported chat into Markdown, and leaves all others as they are.

    A turn is converted if it has the form that `export_html.page_of` describes, and a class that chat pages give to
    their turns. An answer without such a class is converted if all answers of the conversation have that form. A turn
    of which nothing is left, such as a picture, is left out, and the order of turns is repaired as in `conversation`.

    Columns: `html_turns`, the number of texts that were converted, in rows that have any; those of `conversation`.
    """

    reasons: ClassVar[tuple[str, ...]] = (
        "nested_too_deeply",
        "maths_without_tex",
        "nothing_left",
        "no_turns",
        "no_question",
        "no_answer",
    )

    images: Annotated[str, OneOf("alt", "drop")] = "alt"
    """What is left of an image: its alternative text, or nothing."""

    def __call__(self, row: Row) -> Row | Rejected:
        """The row with its HTML as Markdown, the row itself if it has none, or why it is rejected."""
        record = row.record
        try:
            if record.get("kind") == "text":
                return self._text(row, record["text"])
            answers = answers_of(record)
            turns = [*record["messages"], *answers]
            pages = [_page(message) for message in turns]
            if not any(pages):
                return row
            chosen = _chosen(turns, pages)
            changed = [
                {**message, "content": to_markdown(message["content"], images=self.images)} if is_chosen else message
                for message, is_chosen in zip(turns, chosen, strict=True)
            ]
        except ConversionError as error:
            return Rejected(error.reason, error.detail)
        return row if not any(chosen) else with_turns(row, changed, html_turns=sum(chosen))

    def _text(self, row: Row, text: str) -> Row | Rejected:
        """The row of a text."""
        page = page_of(text)
        if not page or not page.of_export:
            return row
        found = to_markdown(text, images=self.images)
        return row.with_({**row.record, "text": found}, html_turns=1) if found else Rejected("nothing_left")


def _page(message: Message) -> Page | None:
    return page_of(message["content"]) if message["role"] in ("user", "assistant") else None


def _chosen(turns: Sequence[Message], pages: Sequence[Page | None]) -> list[bool]:
    """Whether each turn is converted."""
    answers = [page for turn, page in zip(turns, pages, strict=True) if turn["role"] == "assistant"]
    all_html = bool(answers) and all(answers)
    return [
        page is not None and (page.of_export or (all_html and turn["role"] == "assistant"))
        for turn, page in zip(turns, pages, strict=True)
    ]


def to_markdown(html: str, *, images: str = "alt") -> str:
    """The Markdown of a text that is HTML, without white space around it.

    Args:
      html: the text.
      images: "alt" for the alternative text in place of an image, "drop" for nothing.

    Raises:
      ConversionError: elements are nested more than MOST_LEVELS deep, or maths has no TeX in it.
      UserError: a package is not installed.
    """
    page = page_of(html)
    if page and page.levels > MOST_LEVELS:
        raise ConversionError("nested_too_deeply", f"{page.levels} levels of elements; at most {MOST_LEVELS} are read")
    return markdown_of(_parse(html.strip()), images=images)


def markdown_of(soup: "BeautifulSoup", *, images: str = "alt") -> str:
    """The Markdown of parsed HTML, which is changed. Arguments and errors are those of `to_markdown`, but for the depth
    of elements, which the caller has checked."""
    for element in soup.find_all(["svg", "style"]):
        element.decompose()
    _replace_maths(soup)
    for element in soup.find_all(["sup", "sub"]):
        if element.find_parent(["pre", "code", "kbd", "samp"]):
            element.insert(0, "^" if element.name == "sup" else "_")
    _mark_code(soup)
    for element in soup.find_all(["script", "button"]):
        element.decompose()
    for items in soup.find_all(["ol", "ul"]):
        _describe_items(items)
    for table in soup.find_all("table"):
        _describe_cells(table)
    for box in soup.find_all("input"):
        space = "" if str(box.next_sibling or "")[:1].isspace() else " "
        box.replace_with(("[x]" if box.has_attr("checked") else "[ ]") + space)
    for element in soup.find_all(class_="whitespace-pre-wrap"):
        if not element.find([*BLOCKS, "tex", "verbatim"]):
            element.name = "verbatim"
    for image in soup.find_all("img"):
        image.replace_with(image.get("alt", "").strip() if images == "alt" else "")
    return _converter().convert_soup(soup).rstrip(" \t").strip("\n")


def _parse(html: str) -> "BeautifulSoup":
    try:
        import lxml  # noqa: F401  BeautifulSoup's own error does not name the package
        from bs4 import BeautifulSoup
    except ImportError as error:
        raise UserError(f"turning HTML into Markdown needs {error.name}: pip install 'camelid[curate]'") from None
    return BeautifulSoup(html, "lxml")


def _replace_maths(soup: "BeautifulSoup") -> None:
    """Puts an element <tex> with the source in place of each formula and of all that stands for the same formula."""
    for script in _in_tree(soup, soup.find_all("script")):
        for before in list(script.previous_siblings)[:2]:
            if any(_MATHS_CLASS.fullmatch(name) for name in _classes(before)):
                before.decompose()
        _put_tex(soup, script, script.get_text(), "mode=display" in script.get("type", ""))
    for annotation in _in_tree(soup, soup.find_all("annotation", encoding="application/x-tex")):
        _put_tex(soup, annotation, annotation.get_text())
    for maths in _in_tree(soup, soup.find_all("math")):
        if "alttext" not in maths.attrs:
            raise ConversionError("maths_without_tex", f"the formula {maths.get_text()[:60]!r} is given as MathML only")
        _put_tex(soup, maths, maths["alttext"])
    for maths in soup.find_all(lambda tag: tag.name == "mjx-container" or "katex" in _classes(tag)):
        raise ConversionError("maths_without_tex", f"the formula {maths.get_text()[:60]!r} is given as glyphs only")


def _in_tree(soup: "BeautifulSoup", elements: "Iterable[Tag]") -> "Iterator[Tag]":
    """The elements that are still part of the document when their turn comes."""
    for element in elements:
        if any(around is soup for around in element.parents):
            yield element


def _put_tex(soup: "BeautifulSoup", element: "Tag", source: str, display: bool = False) -> None:
    """Puts <tex> in place of an element and of the elements around it that hold the same formula and nothing else."""
    while element.name != "[document]":
        display = display or element.get("display") in ("block", "true") or _is_display(element)
        around = element.parent
        if around is None or not _holds_one_formula(around):
            break
        element = around
    tex = soup.new_tag("tex", display="block" if display else "inline")
    tex.string = " ".join(source.split()) if not display else source.strip()
    element.replace_with(tex)


def _classes(element: Any) -> Sequence[str]:
    return (getattr(element, "attrs", None) and element.attrs.get("class")) or ()


def _holds_one_formula(element: "Tag") -> bool:
    """Whether an element around a formula stands for that formula, with no words or further formula beside it."""
    if element.name in ("math", "semantics") or element.name.startswith("mjx-"):
        return True
    if not any(_MATHS_CLASS.fullmatch(name) for name in _classes(element)):
        return False
    has_words = any(isinstance(child, str) and child.strip() for child in element.children)
    return not has_words and len(element.find_all(["annotation", "script", "tex"])) <= 1


def _is_display(element: "Tag") -> bool:
    return any(_DISPLAY_CLASS.fullmatch(name) for name in _classes(element))


def _mark_code(soup: "BeautifulSoup") -> None:
    """Leaves of each <pre> its code alone, with the name of its language as an attribute.

    The code is without the line break directly after <pre>, which HTML does not count (HTML standard, 13.1.2.5), and
    without the one at its end, which renderers of Markdown write.
    """
    for pre in soup.find_all("pre"):
        if pre.find_parent("pre"):
            continue
        codes = pre.find_all("code") or [pre]
        language = next((found for tag in (*codes, pre) if (found := _language_of(tag))), "")
        button = pre.find("button")
        if not language and button and not button.find_parent("code"):
            label = next((text for text in button.parent.stripped_strings), "")
            is_button = label == next(iter(button.stripped_strings), "")
            language = label.lower() if _LANGUAGE_NAME.fullmatch(label) and not is_button else ""
        if button and codes[0] is pre and button.parent is not pre:
            button.parent.decompose()
        for line_break in pre.find_all("br"):
            line_break.replace_with("\n")
        code = "\n".join(tag.get_text() for tag in codes).replace("\u00a0", " ").removesuffix("\n")
        code = code.removeprefix("\n") if codes[0] is pre else code
        pre.clear()
        pre.string = code
        pre["data-language"] = language


def _language_of(tag: "Tag") -> str:
    """The language that the classes of an element name; "" if they name none."""
    found = next((match[1] for name in _classes(tag) if (match := _LANGUAGE.fullmatch(name))), "")
    return "" if found.lower() in ("undefined", "none", "nohighlight") else found


def _describe_items(items: "Tag") -> None:
    """Gives each item of a list its mark, and what separates it from the next one, as attributes.

    As in Markdown, a list whose items hold paragraphs has blank lines between them.
    """
    number = whole(items.get("start"), 1)
    found = items.find_all("li", recursive=False)
    is_loose = any(item.find("p", recursive=False) for item in found)
    for item in found:
        number = whole(item.get("value"), number)
        item["data-mark"] = f"{number}. " if items.name == "ol" else "- "
        item["data-gap"] = "\n\n" if is_loose else "\n"
        number += 1


def _describe_cells(table: "Tag") -> None:
    """Gives cells and rows of a table the numbers of empty cells before and after them, as attributes.

    They stand where a cell of several columns or rows reaches, and at the ends of rows that are shorter than others.
    """
    rows = [row for row in table.find_all("tr") if row.find_parent("table") is table]
    reach: dict[int, int] = {}  # by column: in how many rows, with this one, a cell stands there
    lengths = []
    for row in rows:
        place = 0
        for cell in row.find_all(["td", "th"], recursive=False):
            start = place
            while place in reach:
                place += 1
            columns = max(1, min(whole(cell.get("colspan"), 1), MOST_COLUMNS - place))
            cell["data-before"], cell["data-after"] = place - start, columns - 1
            if place < MOST_COLUMNS:
                reach |= dict.fromkeys(range(place, place + columns), whole(cell.get("rowspan"), 1) or len(rows))
            place += columns
        lengths.append((place, max(place, max(reach) + 1)) if place else (0, 0))
        reach = {column: count - 1 for column, count in reach.items() if count > 1}
    longest = columns = max((reached for _, reached in lengths), default=0)
    for row, (length, reached) in zip(rows, lengths, strict=True):
        if length:
            row["data-after"] = max(reached, columns) - length
            columns = min(longest, MOST_COLUMNS)  # of the rows below the first one, so that time stays linear


def whole(value: str | None, default: int) -> int:
    """The whole number that an attribute gives, or a default."""
    return int(value) if value and value.isascii() and value.isdigit() and len(value) < 10 else default


@functools.cache
def _converter() -> Any:
    """A converter of markdownify with this module's forms of code, maths, lists, links and tables."""
    try:
        from markdownify import ATX, MarkdownConverter
        from markdownify import should_remove_whitespace_inside as inside
        from markdownify import should_remove_whitespace_outside as outside
    except ImportError as error:
        raise UserError(f"turning HTML into Markdown needs {error.name}: pip install 'camelid[curate]'") from None

    class Converter(MarkdownConverter):
        """Conversion functions, as markdownify calls them: the element, its converted content, names around it."""

        def process_text(self, el, parent_tags=None):
            if not parent_tags.isdisjoint(("pre", "tex", "verbatim")):
                return ""  # their functions read the element
            text = _WHITE_SPACE.sub(lambda match: "\n" if "\n" in match[0] or "\r" in match[0] else " ", el)
            if outside(el.previous_sibling) or (inside(el.parent) and not el.previous_sibling):
                text = text.lstrip(" \n")
            if outside(el.next_sibling) or (inside(el.parent) and not el.next_sibling):
                text = text.rstrip()
            return text

        def convert_a(self, el, text, parent_tags):
            address = el.get("href") or ""
            if not address or text.strip() == address:
                return text
            el["href"] = _closed(_WHITE_SPACE.sub("%20", address.strip()), "()")
            return super().convert_a(el, _closed(text, "[]"), parent_tags)

        def convert_pre(self, el, text, parent_tags):
            code = el.get_text()
            if not code.strip():
                return ""
            if "_inline" in parent_tags:  # in a heading or a cell, which are one line of Markdown
                lines = (line.strip() for line in code.split("\n"))
                return " " + "<br>".join(self.convert_code(el, line, set()) for line in lines if line) + " "
            fence = "`" * max([3, *(len(run) + 1 for run in _BACKTICKS.findall(code))])
            return f"\n\n{fence}{el.get('data-language', '')}\n{code}\n{fence}\n\n"

        def convert_tex(self, el, text, parent_tags):
            source = el.get_text()
            return f"\n\n$$\n{source}\n$$\n\n" if el["display"] == "block" else f"${source}$"

        def convert_verbatim(self, el, text, parent_tags):
            return f"\n\n{el.get_text().strip()}\n\n"

        def convert_li(self, el, text, parent_tags):
            text = text.strip()
            if not text:
                return "\n"
            mark = el.get("data-mark", "- ")
            return mark + re.sub(r"\n(?=[^\n])", "\n" + " " * len(mark), text) + el.get("data-gap", "\n")

        def convert_td(self, el, text, parent_tags):
            return _empty(el, "before") + f" {_in_cell(text)} |" + _empty(el, "after")

        convert_th = convert_td

        def convert_tr(self, el, text, parent_tags):
            if not el.find(["td", "th"]):  # text outside of cells is no row, whatever it begins with
                return f"{_in_cell(text)}\n"
            return f"|{text}{_empty(el, 'after')}\n" if text.strip() else ""

        def convert_table(self, el, text, parent_tags):
            rows = [line for line in text.split("\n") if line.startswith("|")]
            around = "\n".join(line for line in text.split("\n") if not line.startswith("|")).strip()  # the caption
            if not rows:
                return f"\n\n{around}\n\n" if around else ""
            columns = max(len(_CELL_END.findall(row)) - 1 for row in rows)
            first = el.find(lambda tag: tag.name == "tr" and tag.find(["td", "th"]))
            has_head = first.parent.name == "thead" or not first.find("td")
            head = rows.pop(0) if has_head else "|" + "  |" * columns
            lines = [head, _rule(first if has_head else None, columns), *rows]
            return "\n\n".join(["", *filter(None, [around]), "\n".join(lines), ""])

    return Converter(
        **dict(autolinks=False, bullets="-", heading_style=ATX, sub_symbol="<sub>", sup_symbol="<sup>"),
        **dict(escape_asterisks=False, escape_underscores=False),
    )


def _closed(text: str, pair: str) -> str:
    """The text itself if each opening bracket of a pair has its closing one, or else with both escaped."""
    depth = 0
    for letter in text:
        depth += (letter == pair[0]) - (letter == pair[1])
        if depth < 0:
            break
    return text if not depth else re.sub(rf"[{re.escape(pair)}]", r"\\\g<0>", text)


_ALIGN = re.compile(r"text-align:\s*(left|center|right)", re.IGNORECASE)
_CELL_END = re.compile(r"(?<!\\)\|")


def _rule(head: "Tag | None", columns: int) -> str:
    """The line below the head of a table, with the alignment of each column. head: the row of the head, if any."""
    rules = {"left": ":---", "center": ":---:", "right": "---:"}
    marks = []
    for cell in head.find_all(["th", "td"], recursive=False) if head is not None else []:
        style = _ALIGN.search(f"{cell.get('style', '')};text-align:{cell.get('align', '')}")
        marks += ["---"] * whole(cell.get("data-before"), 0)
        marks += [rules.get(style[1].lower() if style else "", "---")] * (1 + whole(cell.get("data-after"), 0))
    return "".join(f"| {mark} " for mark in [*marks, *["---"] * (columns - len(marks))]) + "|"


def _empty(element: "Tag", side: str) -> str:
    """The empty cells before or after a cell or a row."""
    return " |" * whole(element.get(f"data-{side}"), 0)


def _in_cell(text: str) -> str:
    """Text as it can stand in a cell of a table: on one line, with escaped bars."""
    return " ".join(text.split()).replace("|", "\\|")
