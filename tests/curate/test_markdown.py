"""HTML of chat pages becomes Markdown again; text that is no such HTML is not touched.

An independent renderer, markdown-it, turns Markdown into HTML as chat pages do: what comes back has to render to the
same HTML.
"""

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from camelid.curate.conversations.export_html import page_of
from camelid.curate.conversations.markdown import ConversionError, Markdown, to_markdown
from camelid.curate.rows import Row

pytest.importorskip("markdownify", reason="the extra curate is not installed")
SHARED = Path(__file__).parents[3] / "shared" / "data"

KATEX = (
    '<span class="katex"><span class="katex-mathml"><math xmlns="http://www.w3.org/1998/Math/MathML"><semantics><mrow>'
    '<msup><mi>x</mi><mn>2</mn></msup></mrow><annotation encoding="application/x-tex">{tex}</annotation></semantics>'
    '</math></span><span class="katex-html" aria-hidden="true"><span class="base">x2</span></span></span>'
)
CODE_HEAD = (
    '<pre><div class="bg-black rounded-md"><div class="flex items-center text-xs"><span class="">python</span>'
    '<button class="flex ml-auto"><svg stroke="currentColor"><path d="M16 4"></path></svg>Copy code</button></div>'
    '<div class="p-4"><code class="!whitespace-pre hljs language-python">{code}</code></div></div></pre>'
)


def export(html):
    return f'<div class="markdown prose w-full break-words dark:prose-invert">{html}</div>'


def chat(*turns):
    messages = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 9, turns, strict=False)]
    return Row("0123456789abcdef0123", {"kind": "chat", "messages": messages}, "chats", "chats.json, record 1")


def texts(row):
    return [message["content"] for message in row.record["messages"]]


@pytest.mark.parametrize(
    "html, expected",
    [
        ("<p>a &lt; b &amp;&amp; c, x_1 * y_2</p>", "a < b && c, x_1 * y_2"),
        ("<p>one<strong> two </strong><em>three</em> <code>a_b &lt;T&gt;</code></p>", "one **two** *three* `a_b <T>`"),
        ("<h2>Head</h2><p>text</p><hr><p>more</p>", "## Head\n\ntext\n\n---\n\nmore"),
        ("<blockquote>\n<p>q1</p>\n<p>q2</p>\n</blockquote>", "> q1\n>\n> q2"),
        ("<p><a href='http://x.org/a_b'>http://x.org/a_b</a></p>", "http://x.org/a_b"),
        ("<p>See <a href='http://y.org'>y</a>.</p>", "See [y](http://y.org)."),
        ("<ul><li>a<ul><li>b</li><li>c</li></ul></li><li>d</li></ul>", "- a\n  - b\n  - c\n- d"),
        ("<ol start='3'>\n<li>\n<p>a</p>\n</li>\n<li>\n<p>b</p>\n</li>\n</ol>", "3. a\n\n4. b"),
        ("<ol><li>a</li><li value='5'>b</li><li>c</li></ol>", "1. a\n5. b\n6. c"),
        ("<ul><li><input type='checkbox' checked disabled> done</li></ul>", "- [x] done"),
        ("<p>a<br>b</p>", "a  \nb"),
        ("<p>a <img src='x.png' alt='A llama'> b</p>", "a A llama b"),
        ("<p>你好，<strong>世界</strong>！</p><ol><li>一</li></ol>", "你好，**世界**！\n\n1. 一"),
        ("<table><tr><td>1</td><td>2</td></tr></table>", "|  |  |\n| --- | --- |\n| 1 | 2 |"),
        ("<p>10<sup>8</sup> m of H<sub>2</sub>O</p>", "10<sup>8</sup> m of H<sub>2</sub>O"),
        ("<p><code>x<sup>2</sup> a<sub>i</sub></code></p>", "`x^2 a_i`"),
        ("<p><a href='http://x.y/a b(c)'>te[x]t</a></p>", "[te[x]t](http://x.y/a%20b(c))"),
        ("<p><a href='http://x.y/a)'>x]</a></p>", "[x\\]](http://x.y/a\\))"),
        ("<p>a \t \r\n  b</p>\n \n<p> c\t d </p>", "a\nb\n\nc d"),
    ],
)
def test_html_becomes_markdown(html, expected):
    assert to_markdown(export(html)) == expected


def test_tables_keep_bars_breaks_and_alignment():
    head = '<thead><tr><th>A</th><th style="text-align:center">B|C</th></tr></thead>'
    body = "<tbody><tr><td>1</td><td>x<br>y</td></tr><tr><td colspan='2'><code>a|b</code></td></tr></tbody>"
    assert to_markdown(export(f"<table>{head}{body}</table>")) == (
        "| A | B\\|C |\n| --- | :---: |\n| 1 | x y |\n| `a\\|b` | |"
    )


def test_cells_of_several_rows_and_columns_leave_others_in_their_columns():
    """Each row of the Markdown has as many cells as the rule below the head, which GFM asks of a table."""
    html = (
        "<table><caption>a|b</caption><tr><th>h</th><th colspan=2 align=right>i</th></tr>"
        "<tr><td rowspan=2>1</td><td>2</td><td rowspan=0>3</td></tr><tr><td>4</td></tr><tr><td>5</td><td>6</td></tr>"
        "<tr></tr><tr><td>7</td></tr></table>"
    )
    rows = ["| h | i | |", "| --- | ---: | ---: |", "| 1 | 2 | 3 |", "| | 4 | |", "| 5 | 6 | |", "| 7 | | |"]
    assert to_markdown(html) == "a|b\n\n" + "\n".join(rows)
    short = "<table><tr><th>h</th></tr><tr><td rowspan=2>a</td><td>b</td></tr><tr><td>c</td></tr></table>"
    assert to_markdown(short) == "| h | |\n| --- | --- |\n| a | b |\n| | c |"
    nested = "<table><tr><td rowspan=2>a<td><table><tr><td>x</table></td></tr><tr><td>c</td></tr></table>"
    assert to_markdown(nested).split("\n")[-1] == "| | c |"


def test_code_in_a_cell_is_a_span_for_each_line():
    html = "<table><tr><th>h</th></tr><tr><td><pre><code>a|b\n\n  c`d\n</code></pre></td></tr></table>"
    assert to_markdown(html) == "| h |\n| --- |\n| `a\\|b`<br>`` c`d `` |"


@pytest.mark.parametrize("code", ["\n\n    lead\n\n\n", "\tx \n", " x", "x\n \n"])
def test_blank_lines_at_the_ends_of_code_stay(code):
    """HTML does not count a line break directly after <pre>, and renderers of Markdown write one after the code."""
    expected = f"```\n{code.removesuffix(chr(10))}\n```"
    for form in ("<pre><code>{}</code></pre>", "<pre>\n{}</pre>", "<ol><pre><code>{}</code></pre></ol>"):
        assert to_markdown(form.format(code)) == expected
    assert to_markdown("<p>a</p><pre><code> \n\n</code></pre>") == "a"


@pytest.mark.parametrize("code", ["print(a < b)\n\nfor x in y:\n    z()", "<p>a</p>", "List<T> x;", "if (a && b) {}"])
def test_code_blocks_keep_language_and_every_character_but_not_their_head(code):
    escaped = code.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    coloured = re.sub(r"(print|for|List)", r'<span class="hljs-keyword">\1</span>', escaped)
    html = export(f"<p>Run:</p>{CODE_HEAD.format(code=coloured)}<p>Done.</p>")
    assert to_markdown(html) == f"Run:\n\n```python\n{code}\n```\n\nDone."


def test_code_in_other_forms():
    assert to_markdown("<pre>js<button>复制代码</button><code>a;</code></pre>") == "```js\na;\n```"
    assert to_markdown("<pre><code class='hljs'>a<br>&nbsp;&nbsp;b</code></pre>") == "```\na\n  b\n```"
    assert to_markdown("<pre><code>```\nx\n```</code></pre>") == "````\n```\nx\n```\n````"
    assert (
        to_markdown("<ol><li><p>a</p><pre><code>x\n  y</code></pre></li></ol>")
        == "1. a\n\n   ```\n   x\n     y\n   ```"
    )
    for name in ("language-undefined", "language-", "languages", "lang-c++", "brush:c++"):
        fence = "```c++" if name.endswith("c++") else "```"
        assert to_markdown(f"<pre><code class='{name}'>x</code></pre>") == f"{fence}\nx\n```"


def test_maths_is_its_tex_once():
    inline = KATEX.format(tex="x^2 &lt; a_b")
    block = f'<span class="katex-display">{KATEX.format(tex="E = mc^2")}</span>'
    assert to_markdown(export(f"<p>If {inline}, then</p>{block}<p>so.</p>")) == (
        "If $x^2 < a_b$, then\n\n$$\nE = mc^2\n$$\n\nso."
    )
    old = '<p>m <span class="MathJax_Preview">x</span><span class="MathJax" id="a">x2</span><script type="math/tex">x^2'
    assert to_markdown(f"{old}</script></p>") == "m $x^2$"
    assert to_markdown('<p>m <math alttext="x^2"><mi>x</mi></math></p>') == "m $x^2$"


@pytest.mark.parametrize(
    "maths",
    [
        "<math><msup><mi>x</mi><mn>2</mn></msup></math>",
        '<mjx-container class="MathJax" jax="CHTML"><mjx-math><mjx-mi>x</mjx-mi></mjx-math></mjx-container>',
        '<span class="katex"><span class="katex-html"><span class="base">x2</span></span></span>',
    ],
)
def test_maths_without_tex_is_refused_rather_than_flattened(maths):
    found = Markdown()(chat("q", export(f"<p>{maths}</p>")))
    assert found.reason == "maths_without_tex" and "x" in found.detail


@pytest.mark.parametrize(
    "text",
    [
        "a < b and c > d",
        "vector<T> x; List<String> y",
        "<T> is a type parameter.",
        "Use the <div> tag, then <p>a</p>.",
        "<p>a</p>\n\nThis is a paragraph in HTML.",
        "```html\n<p>a</p>\n```",
        "<!DOCTYPE html>\n<html><body><p>a</p></body></html>",
        "<html><head><title>x</title></head></html>",
        "<ul>\n  <li>a</li>\n</ul>",
        "<div>\n    <p>a</p>\n</div>",
        "<note><to>A</to></note>",
        "<p>a < b</p>",
        "<p>cut off <stro",
        "# Head\n\n- a\n- b &lt; c &amp; d",
        "<form><p>a</p></form>",
        "<script>alert(1)</script>",
        "",
        "<3",
    ],
)
def test_text_that_is_no_html_of_a_page_is_not_touched(text):
    assert page_of(text) is None
    for row in (chat("q", text), chat(text, "a"), chat("q", text, "r", export("<p>x</p>"))):
        found = Markdown()(row)
        assert text in texts(found) and found.columns in ({}, {"html_turns": 1})


def test_which_turns_are_converted():
    html = export("<p>a &lt; b</p>")
    assert texts(Markdown()(chat("<p>q</p>", html))) == ["<p>q</p>", "a < b"]  # a user's own HTML stays
    assert texts(Markdown()(chat(export("<p>q</p>"), html))) == ["q", "a < b"]
    assert texts(Markdown()(chat("q", "<p>a</p>", "r", "<p>b</p>"))) == ["q", "a", "r", "b"]
    mixed = chat("q", "<p>a</p>", "r", "Use `<p>`.")
    assert Markdown()(mixed) is mixed
    assert texts(Markdown()(chat("q", html, "r", "Network error"))) == ["q", "a < b", "r", "Network error"]
    assert Markdown()(chat("q", html)).columns == {"html_turns": 1}


def test_exports_that_were_laid_out_anew_and_turns_with_line_breaks_of_their_own():
    laid_out = '<div class="markdown prose">\n  <p>a\n    b</p>\n  <ul>\n    <li>c</li>\n  </ul>\n</div>'
    assert texts(Markdown()(chat("q", laid_out)))[1] == "a\nb\n\n- c"
    as_typed = '<div class="min-h-[20px] whitespace-pre-wrap">def f():\n    return 1\n\n\nend &lt;</div>'
    assert texts(Markdown()(chat(as_typed, export("<p>a</p>"))))[0] == "def f():\n    return 1\n\n\nend <"


def test_answers_of_preferences_are_converted():
    turn = {"role": "assistant", "content": export("<p>a</p>")}
    record = {
        "kind": "preference",
        "messages": [{"role": "user", "content": "q"}],
        "chosen": [turn],
        "rejected": [turn],
    }
    found = Markdown()(Row("0", record, "s", "p")).record
    assert found["chosen"] == found["rejected"] == [{"role": "assistant", "content": "a"}]


def test_turns_of_pictures_alone_are_left_out():
    picture = export("<p><img src='x.png' alt='A llama'></p>")
    assert texts(Markdown()(chat("q", picture))) == ["q", "A llama"]
    found = Markdown(images="drop")(chat("q", export("<p>a</p>"), "r", picture))
    assert texts(found) == ["q", "a"]
    assert found.columns == {"html_turns": 2, "turns_empty": 1, "turns_trailing": 1}
    assert Markdown(images="drop")(chat("q", picture)).reason == "no_answer"


def test_texts_of_an_export_are_converted():
    text = Row("0", {"kind": "text", "text": export("<p>a</p>")}, "web", "web.jsonl, line 1")
    assert Markdown()(text).record == {"kind": "text", "text": "a"}
    code = Row("0", {"kind": "text", "text": "<p>a</p>"}, "web", "web.jsonl, line 1")
    assert Markdown()(code) is code


def test_deep_nesting_is_refused():
    with pytest.raises(ConversionError, match="nested_too_deeply"):
        to_markdown("<div>" * 100_000 + "a")
    assert to_markdown("<div>" * 200 + "a" + "</div>" * 200) == "a"


SOUP = {
    "items": ("<ul>", "<li>a</li>", "</ul>"),
    "numbered": ("<ol>", "<li>a</li>", ""),
    "rows of a head": ("<table><thead>", "<tr><th>a</th></tr>", "</thead></table>"),
    "cells": ("<table><tr>", "<td>a</td>", "</tr></table>"),
    "paragraphs without end": ("<div>", "<p>a", ""),
    "crossed": ("<p>", "<b><i>x</b></i>", "</p>"),
    "spans": ("<pre>", "<span>b</span>\n", "</pre>"),
    "blocks of code": ("<div>", "<pre><code>b</code></pre>", "</div>"),
    "blanks": ("<p>a", " ", "b</p>"),
    "tabs": ("<p>", "\t", "b</p>"),
    "line breaks": ("<p>a", "\n", "b</p>"),
    "blanks in code": ("<pre><code>a", " ", "b</code></pre>"),
    "lines in code": ("<pre><code>a", "\n", "b</code></pre>"),
    "blanks at the end of code": ("<pre><code>a", " ", "</code></pre>"),
    "blanks of a user": ("<div class='whitespace-pre-wrap'>a", " ", "b</div>"),
    "blanks in a cell": ("<table><td>a", " ", "b</table>"),
    "wide cells": ("<table><tr>", "<td colspan=99999 rowspan=99999>a", "</table>"),
    "tall cells": ("<table>", "<tr><td rowspan=99999>a</td></tr>", "</table>"),
    "brackets": ("<a href='x'>", "[", "</a>"),
    "addresses": ("<p><a href='", "( ", "'>x</a></p>"),
    "powers": ("<p>", "<sup>1</sup>", "</p>"),
    "formulas": ("<p>", KATEX.format(tex="x"), "</p>"),
}


@pytest.mark.parametrize("name", SOUP)
def test_time_grows_with_the_length_of_the_html(name):
    before, unit, after = SOUP[name]
    few, many = 3_000 // len(unit), 30_000 // len(unit)

    def seconds(count):
        start = time.process_time()
        assert to_markdown(before + unit * count + after)
        return time.process_time() - start

    seconds(2)
    assert seconds(many) < 30 * seconds(few) + 0.2  # 100 times as long if it were quadratic


TAGS = "p div pre code ol ul li table tr td th thead b i a img br hr h1 span button svg math annotation input script"
ATTRIBUTES = 'class="katex language-x" start="3" colspan="2" type="math/tex" encoding="application/x-tex" alttext="z"'
PIECE = st.one_of(
    st.sampled_from([tag.format(name) for name in TAGS.split() for tag in ("</{}>", f"<{{}} {ATTRIBUTES}>")]),
    st.sampled_from([f"<{name}>" for name in TAGS.split() if name != "script"]),  # no page holds a program
    st.sampled_from([" ", "a|b", "`", "$", "*", "\n", "你", "&lt;", "Copy code", "<!-- x -->"]),
)


def test_text_in_a_row_but_in_no_cell_stands_beside_the_table():
    assert to_markdown(export("<table><tr>|a|b</tr></table>")) == "\\|a\\|b"
    assert to_markdown(export("<table><tr>|a</tr><tr><td>1</td></tr></table>")) == "\\|a\n\n|  |\n| --- |\n| 1 |"


@settings(max_examples=60, deadline=None)
@example(["<table>", "<tr>", "a|b"])
@given(st.lists(PIECE, max_size=25))
def test_no_order_of_tags_is_too_much(pieces):
    html = '<div class="prose">begin ' + "".join(pieces)
    result = Markdown()(chat("q", html))
    if page_of(html) is None:  # such as text behind the last element
        assert texts(result)[1] == html
        return
    assert getattr(result, "reason", "maths_without_tex") == "maths_without_tex"
    if not hasattr(result, "reason"):
        assert "begin" in texts(result)[1]
        assert "<div" not in texts(result)[1] or "math/tex" in html  # in a script tags are letters


def html_of(markdown):
    """The HTML of Markdown by markdown-it, without the differences between a tight list and one with blank lines."""
    renderer = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": False})
    html = renderer.enable(["table", "strikethrough"]).render(markdown)
    return html, re.sub(r"\s*(</?(?:p|li|ul|ol|pre|h\d|blockquote|table|t\w+)\b[^>]*>|<br />)\s*", r"\1", html)


DOCUMENTS = [
    "# Title\n\nSome *text* with `code` and **more**:\n\n1. one\n2. two\n   - nested\n   - again\n\n> quoted\n\nend.",
    "## 标题\n\n这是一段**中文**，有`代码`：\n\n- 第一\n- 第二\n\n```python\nprint('你好')\n```\n\n结束。",
    "| a | b |\n|---|:-:|\n| 1 | `x` |\n| 2 | [y](http://z.org) |\n\nAfter the table.",
    "1. First:\n\n   ```sh\n   ls | wc -l\n   ```\n\n2. Second\n\n---\n\n~~old~~ new",
    "A list:\n- `a < b`\n- snake_case and 2 * 3\n\n    indented code\n\nlast <em> & co.",
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_markdown_rendered_to_html_comes_back_with_the_same_meaning(document):
    html, expected = html_of(document)
    assert html_of(to_markdown(export(html)))[1] == expected


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
@pytest.mark.parametrize("language", ["en", "zh"])
def test_real_answers_rendered_to_html_come_back_with_the_same_meaning(language):
    records = json.loads((SHARED / f"dpo_{language}_demo.json").read_text())
    answers = [record["chosen"]["value"] for record in records]
    same = 0
    for answer in answers:
        html, expected = html_of(answer)
        same += html_of(to_markdown(export(html)))[1] == expected
        assert page_of(answer) is None
    assert same >= 0.97 * len(answers)  # the others have runs of spaces, which HTML does not keep
