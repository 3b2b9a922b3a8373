"""Templates see the words, what they write is known by whose it is, and they are kept within limits."""

import datetime
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camelid.data import template_limits
from camelid.data.template_tracing import compile_template
from camelid.data.templates import BUILT_IN, load_template
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.data.traced_text import (
    FIRST_TURN,
    TEMPLATE,
    WORDS,
    Traced,
    concat,
    from_source,
    mark_block,
    origins_of,
    percent,
    runs,
)
from camelid.errors import UserError

CORPUS = ["USER: ASSISTANT: Below is an instruction [INST] system user assistant hello there, how are you? 你好 " * 5]
HELLO, HI = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A LLaMA tokenizer: no control tokens but <s> and </s>."""
    return train_sentencepiece(CORPUS, vocab_size=330, output_dir=tmp_path_factory.mktemp("plain"))


# Texts with origins --------------------------------------------------------------------------------------------------

texts = st.text("abA \n\tß\u3000é", max_size=12)
spaces = st.sampled_from([None, " ", "a", "ab", "\n", " \n"])
METHODS = {
    "add": lambda t, s: [t + s, s + t, t * 2, 2 * t],
    "slices": lambda t, s: [t[1:4], t[::-1], t[-2:], *t, *(t[:1] and [t[0]])],
    "split": lambda t, s: [*t.split(), *t.split("a"), *t.split(None, 1), *t.rsplit("b", 1), *t.rsplit(None, 1)],
    "lines": lambda t, s: [*t.splitlines(), *t.splitlines(True), *t.partition("b"), *t.rpartition("a")],
    "strip": lambda t, s: [t.strip(), t.lstrip("a "), t.rstrip("\n"), t.removeprefix("a"), t.removesuffix("b")],
    "letters": lambda t, s: [t.upper(), t.lower(), t.title(), t.capitalize(), t.casefold(), t.swapcase()],
    "replace": lambda t, s: [t.replace("a", s), t.replace("a", "", 1), t.replace("ab", "xyz"), t.replace("", "-")],
    "join": lambda t, s: [t.join([s, s, s]), t.join([])],
    "fill": lambda t, s: [t.center(9), t.ljust(9, "*"), t.rjust(9), t.zfill(9), t.expandtabs(3), t.ljust(2)],
    "percent": lambda t, s: [percent("%s|%s", (t, s)), percent("<%(a)s>%%", {"a": t}), percent("%5s", t)],
}


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=60, deadline=None)
@given(texts, texts)
def test_a_traced_text_does_what_the_plain_one_does_and_keeps_an_origin_for_each_character(name, text, other):
    ours, theirs = METHODS[name](from_source(text, FIRST_TURN), other), METHODS[name](text, other)
    assert ours == theirs
    assert all(len(origins_of(our)) == len(our) for our in ours)
    assert hash(from_source(text, WORDS)) == hash(text) and isinstance(from_source(text, WORDS), str)


def sources(text):
    return [(text[run.start : run.stop], run.source) for run in runs(text)]


def test_origins_follow_the_characters_that_are_cut_and_joined():
    said, asked = from_source("Hi <b> there", FIRST_TURN), from_source(" you ", WORDS)
    assert sources("A: " + said.split("<b>")[-1].strip() + asked) == [
        ("A: ", TEMPLATE),
        ("there", FIRST_TURN),
        (" you ", WORDS),
    ]
    assert sources(said.replace("<b>", asked.strip())) == [("Hi ", FIRST_TURN), ("you", WORDS), (" there", FIRST_TURN)]
    assert sources(percent("[%s] %s", (asked, said[:2]))) == [
        ("[", TEMPLATE),
        (" you ", WORDS),
        ("] ", TEMPLATE),
        ("Hi", FIRST_TURN),
    ]


@pytest.mark.parametrize(
    "made, expected",
    [
        ("m | indent(2, true)", "  Hi <b>\n  there\n\n  you"),
        ("m | indent('\t', blank=true)", "Hi <b>\n\tthere\n\t\n\tyou"),
        ("m | indent", "Hi <b>\n    there\n\n    you"),
        ("m | wordwrap(5)", "Hi\n<b>\nthere\n\nyou"),
        ("m | truncate(9, true, '')", "Hi <b>\nth"),
        ("m | map('upper') | join", "HI <B>\nTHERE\n\nYOU"),
        ("m.split('\n') | map('trim') | join('\n')", "Hi <b>\nthere\n\nyou"),
        ("[m, [m]] | batch(1) | sum(start=[]) | first", "Hi <b>\nthere\n\nyou"),
        ("[m] | tojson", '["Hi <b>\\nthere\\n\\nyou"]'),
    ],
)
def test_whatever_is_made_of_words_is_none_of_the_templates(made, expected):
    words = "Hi <b>\nthere\n\nyou"
    text = compile_template("{{ " + made + " }}", "custom").trace({"m": from_source(words, WORDS)}, {"m": words}, 99)
    assert text == expected
    assert "".join(text[run.start : run.stop] for run in runs(text) if run.source == TEMPLATE).strip() == ""


def test_blocks_that_touch_are_told_apart():
    text = concat([mark_block(from_source("a", FIRST_TURN), 1), mark_block("b", 2), mark_block("c", 1), "d"])
    assert [(run.source, run.block) for run in runs(text)] == [
        (FIRST_TURN, 1),
        (TEMPLATE, 2),
        (TEMPLATE, 1),
        (TEMPLATE, 0),
    ]
    assert type(concat(["a", "b"])) is str and type(text) is Traced


# What templates see --------------------------------------------------------------------------------------------------

words = st.text(max_size=12) | st.sampled_from(["</s>", "<s>", "[INST]", " \n x \n ", "▁", "\ue000", "{{ x }}", "%s"])


@settings(max_examples=60, deadline=None)
@given(st.lists(words, min_size=4, max_size=4), st.sampled_from(BUILT_IN), st.booleans())
def test_following_a_built_in_template_changes_nothing(contents, name, with_system):
    """So that its text need not be compared with what is written without traces each time."""
    roles = ["user", "assistant"] * 2
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    if with_system:
        messages.insert(0, {"role": "system", "content": "Be kind."})
    variables = {"messages": messages, "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": False}
    compiled = compile_template(load_template(name).source, name)
    assert not compiled.is_verified
    compiled.trace(
        variables | {"messages": [m | {"content": from_source(m["content"], WORDS)} for m in messages]}, variables, 99
    )


def test_a_template_whose_text_would_be_another_without_traces_is_refused(plain):
    """To jinja2 a safe text plus another is the other escaped; a traced text is never safe."""
    source = "{% for m in messages %}{{ ('<b>' | safe) + m.content }}{% endfor %}"
    assert load_template(source).encode([HELLO], plain).tokens.size
    with pytest.raises(UserError, match="writes another text when it is traced"):
        load_template(source).encode([HELLO | {"content": "a & b"}], plain)


@pytest.mark.parametrize(
    "source, expected",
    [
        ("{{ m.content.translate({72: 'x'}) }}", "calls translate on a text"),
        ("{{ m.content.encode() }}", "calls encode on a text"),
        ("{{ '{a}'.format_map({'a': m.content}) }}", "calls format_map on a text"),
        ("{{ (m.content ~ '.') | title }}{{ m.content }}", "together with other text"),
        ("{{ m.content | urlize }}{% autoescape true %}{{ m.content }}{% endautoescape %}", "has an autoescape block"),
        ("{{ loop }}", "writes an object of type LoopContext"),
    ],
)
def test_what_cannot_be_followed_is_refused(source, expected, plain):
    with pytest.raises(UserError, match=expected):
        load_template("{% for m in messages %}" + source + "{% endfor %}").encode([HELLO, HI], plain)


def test_changed_words_are_refused_where_no_prompt_leads_to_them(plain):
    source = "{% for m in messages %}{{ loop.length }}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(UserError, match="cuts up the assistant's text"):
        load_template(source).encode([HELLO, HI], plain)


def test_a_template_finds_todays_date(plain, monkeypatch):
    class Clock(datetime.datetime):
        @classmethod
        def now(cls):
            return cls(2024, 7, 26)

    monkeypatch.setattr(datetime, "datetime", Clock)
    source = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert load_template(source).render([HELLO], plain) == "26 Jul 2024Hello"


def test_what_is_set_in_a_generation_block_stays_in_it(plain):
    """As in transformers, where it is a call block."""
    source = (
        "{% set x = 'a' %}{% for m in messages %}{% generation %}{% set x = 'b' %}{{ x ~ m.content }}"
        "{% endgeneration %}{{ x }}{% endfor %}"
    )
    assert load_template(source).render([HI], plain) == "bHi therea"


def test_what_a_template_complains_of_is_told_as_of_plain_texts(plain):
    with pytest.raises(UserError, match=r"^chat template custom: 'str object' has no attribute 'text'$"):
        load_template("{{ messages[0].content.text.x }}").encode([HELLO, HI], plain)
    with pytest.raises(UserError, match=r"^chat template custom: two lines$"):
        load_template("{{ raise_exception('two\nlines') }}").encode([HELLO, HI], plain)


# Limits --------------------------------------------------------------------------------------------------------------

LOOPS = (
    "{% set r = range(100000) %}{% for i in r %}{% for j in r %}{% for k in r %}{% endfor %}{% endfor %}{% endfor %}"
)
GROWS = (
    "{% set ns = namespace(x=messages[0].content) %}{% for i in range(99) %}{% set ns.x = GROW %}{% endfor %}{{ ns.x }}"
)
ENDLESS = {
    LOOPS: "more than .* steps: shorten its loops",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}": "steps",
    "{% for i in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 60 }}{% endfor %}": "steps",
    "{% for i in range(99999) | map('string') %}{{ range(99999) | map('abs') | list | length }}{% endfor %}": "steps",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "RecursionError",
    **dict.fromkeys(
        [
            "{{ (messages[0].content * 20000) | list | length }}",
            "{{ (messages[0].content * 20000).split('l') | length }}",
            "{{ ('a\n' * 20000).splitlines() | length }}",
            "{{ ([0] * 9999999) | select('even') | list | length }}",
            "{{ ([messages[0]] * 9999999) | groupby('role') | length }}",
            GROWS.replace("GROW", "{0: ns.x, 1: ns.x}").replace("{{ ns.x }}", "{{ ns.x == [ns.x] }}"),
            GROWS.replace("GROW", "dict(a=ns.x, b=ns.x)"),
        ],
        "steps",
    ),
    "{{ strftime_now('%Y' * 500000) }}": "characters of text: shorten",
    GROWS.replace("GROW", "ns.x + ns.x"): "characters of text: shorten",
    GROWS.replace("GROW", "ns.x ~ ns.x"): "characters of text: shorten",
    GROWS.replace("GROW", "ns.x | replace('l', ns.x)"): "characters of text: shorten|steps",
    GROWS.replace("GROW", "[ns.x, ns.x]"): "steps",
    GROWS.replace("GROW", "[ns.x, ns.x]").replace("{{ ns.x }}", "{{ ns.x | tojson }}"): "steps",
    "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}": "bits",
    "{{ 9 ** 999999999 }}": "bits",
    "{{ range(9999) | join('c' * 1000000) }}": "characters of text: shorten",
    "{% for i in range(70) %}{{ 'a' * 100000 }}{% endfor %}": "it writes 7,000,0.. characters for .* in messages",
    **dict.fromkeys(
        [
            "{{ 'a' * 10000000000 }}",
            "{{ ([0] * 10000000000) | length }}",
            "{{ messages[0].content | center(10000000000) }}",
            "{{ messages[0].content.ljust(10000000000) }}",
            "{{ '%10000000000d' % 1 }}",
            "{{ '%*d' % (10000000000, 1) }}",
            "{{ '{:10000000000}'.format(1) }}",
            "{{ '{:{w}}'.format(1, w=10000000000) }}",
            "{{ [1] | batch(10000000000, 0) | list }}",
            "{{ [1] | tojson(indent=10000000000) }}",
            "{{ 'a\nb' | indent(10000000000) }}",
            "{{ ('\t' * 1000000).expandtabs(1000000) }}",
            "{{ ('a ' * 1000000) | wordwrap(1, true, 'b' * 100000) }}",
        ],
        "it asks for a text or a list of",
    ),
}


@pytest.mark.parametrize("source", ENDLESS)
def test_a_template_may_not_run_without_end_nor_fill_the_memory(source, plain, monkeypatch):
    monkeypatch.setattr(template_limits, "MOST_STEPS", 1 << 14)
    monkeypatch.setattr(template_limits, "MOST_CHARACTERS", 1 << 24)
    with pytest.raises(UserError, match=ENDLESS[source]) as raised:
        load_template(source + "{{ messages[1].content }}").encode([HELLO, HI], plain)
    assert "\n" not in str(raised.value)


def test_seconds_are_limited_on_any_thread(plain, monkeypatch):
    monkeypatch.setattr(template_limits, "MOST_SECONDS", 0.02)
    monkeypatch.setattr(template_limits, "MOST_STEPS", 1 << 60)
    raised = []

    def encode():
        with pytest.raises(UserError, match="more than 0 seconds") as error:
            load_template(LOOPS).encode([HELLO, HI], plain)
        raised.append(error)

    thread = threading.Thread(target=encode)
    thread.start()
    thread.join()
    assert raised


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
        "{% if 1 %}" * 20000,
    ],
)
def test_a_template_too_deep_or_too_long_to_compile_is_one_line(source):
    with pytest.raises(UserError, match="chat template custom cannot be compiled"):
        load_template(source)


def test_long_conversations_are_within_the_limits(plain):
    messages = [HELLO | {"content": "a" * 20_000}, HI | {"content": "b " * 10_000}] * 20
    text = load_template("llama2").render(messages, plain)
    assert len(text) > 800_000
    many = load_template("chatml").render([HELLO, HI] * 4000, plain)
    assert many.count("Hi there") == 4000
