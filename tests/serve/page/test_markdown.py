"""The page's Markdown: harmless and quick whatever the source, and CommonMark where the source is plain."""

import json
import re
from html.parser import HTMLParser

import pytest

from camelid.tests.serve.page.browser import answers, load_file, say
from camelid.tests.serve.page.corpus import ATTACKS, PLAIN, SLOW
from camelid.tests.serve.page.fake_server import MARKDOWN

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

BLOCKS = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "hr", "pre", "div"}
TABLES = {"table", "thead", "tbody", "tr", "th", "td"}
ELEMENTS = BLOCKS | TABLES | {"br", "em", "strong", "del", "code", "a", "span", "button"}
ATTRIBUTES = {"class", "start", "tabindex", "role", "aria-label", "type", "data-copy", "href", "target", "rel"}
RENDER = """async (texts) => {
  const { Markdown } = await import("/page/markdown.js");
  return texts.map((text) => {
    const node = document.createElement("div");
    new Markdown(node).update(text);
    const all = [...node.querySelectorAll("*")], depth = (each) => (each === node ? 0 : 1 + depth(each.parentNode));
    return {
      html: all.length < 5000 ? node.innerHTML : "",
      elements: [...new Set(all.map((each) => each.localName))],
      attributes: [...new Set(all.flatMap((each) => each.getAttributeNames()))],
      links: all.filter((each) => each.localName === "a").map((each) => [each.protocol, each.rel, each.target]),
      depth: Math.max(0, ...all.slice(-5000).map(depth)),
      text: node.textContent,
    };
  });
}"""
SLOWNESS = """async ([text, usual]) => {
  const { Markdown } = await import("/page/markdown.js");
  const times = [usual, text, usual].map((each) => {
    const begun = performance.now();
    new Markdown(document.createElement("div")).update(each);
    return performance.now() - begun;
  });
  return times[1] / Math.min(times[0], times[2]);
}"""


def assert_harmless(told, source):
    assert set(told["elements"]) <= ELEMENTS, source
    assert set(told["attributes"]) <= ATTRIBUTES, source
    for protocol, rel, target in told["links"]:
        assert protocol in ("http:", "https:", "mailto:") and "noopener" in rel and target == "_blank", source


def test_hostile_markdown_makes_only_harmless_elements(page, server):
    for source, told in zip(ATTACKS, page.evaluate(RENDER, ATTACKS), strict=True):
        assert_harmless(told, source)
        assert not re.search(r"<(script|img|svg|iframe|style|base|meta|form|object)", told["html"]), source
    server.answers["attack"] = "\n\n".join(ATTACKS)
    say(page, "attack")
    assert page.locator(".assistant .text :is(script, img, iframe, form, object, svg)").count() == 0


@pytest.mark.parametrize("name", SLOW)
def test_markdown_that_is_made_to_be_slow_is_not(bare, name):
    (told,) = bare.evaluate(RENDER, [SLOW[name]])
    assert_harmless(told, name)
    assert told["depth"] < 100
    usual = (MARKDOWN * 100)[:20_000]  # at most 80 times as long when this was written; what is quadratic, thousands
    assert any(bare.evaluate(SLOWNESS, [SLOW[name], usual]) < 500 for _ in range(3))


def test_hostile_answers_are_laid_out_in_time(page):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]
    for text in SLOW.values():
        turns += [{"role": "user", "content": text[:5000]}, {"role": "assistant", "content": text[:10000]}]
    load_file(page, "slow.json", json.dumps({"messages": turns}))
    expect(answers(page)).to_have_count(len(SLOW) + 1, timeout=60_000)
    assert page.evaluate("document.querySelector('.scroller').scrollWidth") <= 1100
    say(page, "still alive")
    expect(answers(page).last).to_have_text("You said: still alive")


def test_markdown_that_grows_ends_as_it_is_when_it_comes_whole(bare):
    same = """async (text) => {
      const { Markdown } = await import("/page/markdown.js");
      const [grown, whole] = [0, 1].map(() => document.createElement("div")), growing = new Markdown(grown);
      for (let end = 0; end <= text.length; end++) {
        growing.update(text.slice(0, end));
        whole.replaceChildren();
        new Markdown(whole).update(text.slice(0, end));
        if (!grown.isEqualNode(whole)) return [text.slice(0, end), grown.innerHTML, whole.innerHTML];
      }
    }"""
    for text in [MARKDOWN, *PLAIN, "\n\n".join(PLAIN), "\n".join(ATTACKS)]:
        assert bare.evaluate(same, text) is None


class Skeleton(HTMLParser):
    """The elements, addresses and text of HTML, without what this page adds or leaves out."""

    def __init__(self, html):
        super().__init__()
        self.parts, self.left_out = [], 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        if dict(attributes).get("class") == "code-head":
            self.left_out = 2  # two children
        elif tag not in ("p", "div", "span", "button"):
            given = dict(attributes)
            self.parts.append((tag, given.get("href"), given.get("start")))

    def handle_endtag(self, tag):
        if self.left_out and tag in ("span", "button"):
            self.left_out -= 1
        elif tag not in ("p", "div", "span", "button"):
            self.parts.append(tag)

    def handle_data(self, data):
        if not self.left_out and data.strip():
            self.parts.append(" ".join(data.split()))


def test_plain_markdown_means_what_commonmark_says(bare):
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"breaks": True})
    parser.enable(["table", "strikethrough"])
    for source, told in zip(PLAIN, bare.evaluate(RENDER, PLAIN), strict=True):
        reference = parser.render(source).replace("<s>", "<del>").replace("</s>", "</del>").replace("<br />", "<br>")
        ours = Skeleton(told["html"].replace("https://b.example/", "https://b.example")).parts
        theirs = Skeleton(reference.replace("<hr />", "<hr>")).parts
        assert [str(part).replace(".example/'", ".example'") for part in ours] == [str(part) for part in theirs], source


def test_tex_stays_as_it_is_written_and_prices_are_not_tex(bare):
    shown = {
        r"so $a_1*b*c_2$ and $$x_{i}\{y\}_{j}$$": ["$a_1*b*c_2$", r"$$x_{i}\{y\}_{j}$$"],
        r"\(a_i * b * \frac{1}{2}\) and \[ \{x\}_1 *y* \]": [r"\(a_i * b * \frac{1}{2}\)", r"\[ \{x\}_1 *y* \]"],
        r"from $5 to $10, $5-$10, or \$1 and `$a$`": [],
    }
    texts = """async (text) => {
      const { inline } = await import("/page/inline.js");
      return [...inline(text).querySelectorAll(".tex")].map((each) => each.textContent);
    }"""
    assert {source: bare.evaluate(texts, source) for source in shown} == shown


def test_a_long_answer_streams_smoothly(bare):
    """An update makes as many elements at the end of 83,000 characters as at their beginning."""
    made = bare.evaluate(
        """async (text) => {
          const { Markdown } = await import("/page/markdown.js"), make = document.createElement;
          const growing = new Markdown(document.createElement("div")), made = [];
          document.createElement = (...given) => (made[made.length - 1]++, make.apply(document, given));
          for (let end = 0; end < text.length; end += 200) {
            made.push(0);
            growing.update(text.slice(0, end));
          }
          delete document.createElement;
          return made;
        }""",
        f"{MARKDOWN}\n\n" * 150,
    )
    assert len(made) > 400 and 0 < max(made[200:]) <= max(made[:200])
