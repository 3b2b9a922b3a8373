"""The chat page in a browser, with a server whose answers are known."""

import json
import re

import pytest

from camelid.tests.serve.page.browser import answers, give_file, load_file, say, set_up, until
from camelid.tests.serve.page.fake_server import MARKDOWN, PAGE, tokens_of

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect


def test_an_answer_is_asked_for_streamed_and_rendered(page, server):
    say(page, "markdown")
    assert server.requests == [
        {
            "model": "camel-1b",
            "messages": [{"role": "user", "content": "markdown"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]
    expect(answers(page).locator("h1")).to_have_text("How a camel stores water")
    assert answers(page).locator("td").all_inner_texts() == ["Camel", "114", "in 13 minutes", "Cow", "95", "a day"]
    assert "<b>not bold</b>" in answers(page).locator("pre").inner_text()
    figures = page.locator(".figures").inner_text()
    assert "139 tokens" in figures and "1,234 read, 1,024 from the cache" in figures


def test_the_conversation_so_far_is_sent_with_the_settings_and_the_system_prompt(page, server):
    settings = dict(temperature="0.5", top_p="0.9", top_k="40", min_p="0.05", repetition_penalty="1.1")
    set_up(page, system="Be brief.", **settings, max_tokens="64", seed="7")
    say(page, "one")
    page.select_option("#model", "camel-poet")
    say(page, "two")
    body = server.requests[-1]
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "You said: one"},
        {"role": "user", "content": "two"},
    ]
    numbers = {name: float(value) for name, value in settings.items()} | {"max_tokens": 64, "seed": 7}
    assert {name: body[name] for name in numbers} == numbers
    assert body["model"] == "camel-poet"


def test_a_setting_out_of_bounds_is_marked_and_not_sent(page, server):
    set_up(page, top_p="1.5", temperature="1")
    page.click("#open-settings")
    page.fill("#set-top_p", "1.5")
    expect(page.locator("#set-top_p")).to_have_attribute("aria-invalid", "true")
    page.click("#close-settings")
    say(page, "one")
    assert "top_p" not in server.requests[0] and server.requests[0]["temperature"] == 1


def test_stopping_ends_the_request_and_keeps_the_text_and_asking_again_replaces_it(page, server):
    say(page, "slow", wait=False)
    expect(answers(page)).to_contain_text("word word")
    page.keyboard.press("Escape")
    expect(page.locator(".note")).to_have_text("Stopped.")
    assert server.aborted.wait(20)
    expect(page.locator(".figures")).to_have_text(re.compile(r"about \d+ tokens · "))
    expect(answers(page)).to_contain_text("word word")
    page.click("[aria-label='Answer again']")
    expect(answers(page)).to_have_count(1)
    page.click("[aria-label='Stop (Esc)']")
    expect(page.locator(".note")).to_have_text("Stopped.")
    assert [body["messages"] for body in server.requests] == [[{"role": "user", "content": "slow"}]] * 2


def test_editing_a_message_drops_what_follows_and_can_be_undone(page, server):
    for text in ("one", "two", "three"):
        say(page, text)
    page.hover(".user >> nth=0")
    page.locator(".user >> nth=0").get_by_label("Edit").click()
    page.keyboard.press("Control+A")
    page.keyboard.type("uno")
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_text(["You said: uno"])
    assert server.requests[-1]["messages"] == [{"role": "user", "content": "uno"}]
    page.click(".toast button")
    expect(answers(page)).to_have_text([f"You said: {text}" for text in ("one", "two", "three")])


def test_enter_sends_but_not_within_a_composition_and_shift_enter_breaks_the_line(page, server):
    page.fill("#prompt", "ni")
    composing = "(field) => field.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', %s, cancelable: true}))"
    for how in ("isComposing: true", "keyCode: 229"):
        assert page.eval_on_selector("#prompt", composing % how)  # not prevented: it is the input method's
    assert not server.requests
    page.press("#prompt", "Shift+Enter")
    page.keyboard.type("hao")
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_text("You said: nihao")
    assert server.requests[0]["messages"][0]["content"] == "ni\nhao"


def test_probabilities_are_asked_for_coloured_and_listed_on_hover_and_focus(page, server):
    page.click("#open-settings")
    page.check("#set-probabilities")
    page.click("#close-settings")
    say(page, "骆驼 and probabilities")
    assert server.requests[0]["logprobs"] is True and server.requests[0]["top_logprobs"] == 5
    tokens = page.locator(".tokens span")
    assert "".join(tokens.all_text_contents()) == "You said: 骆驼 and probabilities"
    assert [tokens.nth(k).get_attribute("class") for k in range(6)] == ["p0", "p1", "p2", "p3", "p4", "p5"]
    tokens.nth(5).hover()
    rows = page.locator("#alternatives tr")
    assert rows.count() == 5
    assert rows.nth(0).inner_text().split() == ["␣other1", "48.0%"]
    expect(page.locator("#alternatives .chosen")).to_contain_text("4.0%")
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(page.locator("#alternatives .chosen")).to_contain_text("75.0%")
    page.get_by_role("button", name="Token probabilities").click()
    expect(answers(page).locator("p")).to_have_text("You said: 骆驼 and probabilities")


def test_a_character_of_several_tokens_in_a_stream_of_single_bytes_is_whole(bare):
    told = bare.evaluate("""async () => {
      const { answer } = await import("/page/answers.js");
      const bytes = [...new TextEncoder().encode("骆")];
      const content = bytes.map((byte) => ({ token: "?", logprob: -1, bytes: [byte], top_logprobs: [] }));
      const chunk = JSON.stringify({ choices: [{ delta: { content: "骆" }, logprobs: { content } }] });
      const sent = new TextEncoder().encode(`: hello\\r\\n\\r\\ndata: ${chunk}\\r\\n\\r\\ndata: [DONE]\\r\\n\\r\\n`);
      const start = (stream) => (sent.forEach((byte) => stream.enqueue(Uint8Array.of(byte))), stream.close());
      globalThis.fetch = async () => new Response(new ReadableStream({ start }));
      const conversation = { id: "x", system: "", model: null, messages: [{ role: "user", content: "a" }] };
      await answer(conversation);
      const { content: text, tokens } = conversation.messages[1];
      return [text, ...tokens.map(([text]) => text)];
    }""")
    assert told == ["骆", "", "", "骆"]


def test_an_answer_that_was_cut_off_goes_on_from_its_last_word(page, server):
    server.answers["more"] = " and the rest"
    page.click("#open-settings")
    page.check("#set-probabilities")
    page.click("#close-settings")
    for cut in ("break", "cut"):
        say(page, cut)
        begin = answers(page).last.inner_text().split("Probability")[0].strip()
        page.get_by_role("button", name="Continue").click()
        expect(answers(page).last).to_contain_text(f"{begin} and the rest")
        expect(page.get_by_role("button", name="Continue")).to_have_count(0)
        assert server.requests[-1]["messages"][-1] == {"role": "assistant", "content": begin}
        tokens = len(tokens_of(begin)) + len(tokens_of(" and the rest"))
        expect(page.locator(".figures").last).to_contain_text(f"{tokens} tokens")
    expect(page.locator(".failure, .note")).to_have_count(0)


def test_too_long_a_conversation_is_told_with_what_helps(page):
    say(page, "too long")
    expect(page.locator(".failure")).to_contain_text("The prompt has 300 tokens")
    expect(page.locator(".failure")).to_contain_text("Start a new chat, or edit an earlier message")


def test_adapters_are_a_group_under_their_base(page):
    assert page.locator("#model > option").all_inner_texts() == ["camel-1b", "tiny"]
    assert page.get_attribute("#model optgroup", "label") == "Adapters of camel-1b"
    assert page.locator("#model > option + optgroup > option").all_inner_texts() == ["camel-poet"]


def test_a_conversation_keeps_the_model_that_it_was_asked_with(page, server):
    say(page, "to camel")
    page.select_option("#model", "camel-poet")
    say(page, "to the poet")
    page.click("#new")
    page.select_option("#model", "tiny")
    say(page, "to tiny")
    page.click("text=to camel")
    expect(page.locator("#model")).to_have_value("camel-poet")
    say(page, "again")
    page.reload()
    expect(page.locator("#model")).to_have_value("camel-poet")
    page.click("#new")
    expect(page.locator("#model")).to_have_value("tiny")
    assert [body["model"] for body in server.requests] == ["camel-1b", "camel-poet", "tiny", "camel-poet"]


def test_a_model_that_is_gone_is_told_and_not_replaced_in_its_conversation(page, server):
    page.select_option("#model", "camel-poet")
    say(page, "one")
    del server.models["camel-poet"]
    page.reload()
    expect(page.locator(".toast")).to_have_text("camel-poet is not served any more: new chats use camel-1b")
    expect(page.locator("#model option:checked")).to_have_text("camel-poet (not served)")
    say(page, "two")
    expect(page.locator(".failure")).to_contain_text("there is no model 'camel-poet'")
    page.select_option("#model", "tiny")
    page.get_by_role("button", name="Try again").click()
    expect(answers(page).last).to_have_text("You said: two")
    page.click("#new")
    say(page, "three")
    assert [body["model"] for body in server.requests[1:]] == ["camel-poet", "tiny", "tiny"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("bad gateway", "The server answered: 502 Bad Gateway"),
        ("break", "The connection ended before the answer was complete."),
        ("error inside", "the engine failed"),
    ],
)
def test_failures_are_shown_with_what_had_come(page, said, told):
    say(page, said)
    expect(page.locator(".failure p").first).to_have_text(told)
    assert answers(page).inner_text() == ("" if said == "bad gateway" else f"You said: {said}"[:12])


def test_an_error_of_the_api_is_shown_as_text_and_tried_again(page, server):
    say(page, "fail once")
    expect(page.locator(".failure")).to_contain_text("<b>the queue is full</b>")
    expect(page.locator(".failure")).to_contain_text("429 · rate_limit_error · queue_full")
    page.get_by_role("button", name="Try again").click()
    expect(answers(page)).to_have_text("You said: fail once")
    expect(page.locator(".failure")).to_have_count(0)
    assert server.requests[0] == server.requests[1]


def test_a_server_that_is_gone_is_said_and_the_cut_of_max_tokens_too(page):
    page.route("**/v1/chat/completions", lambda route: route.abort())
    say(page, "one")
    expect(page.locator(".failure")).to_contain_text("The server cannot be reached.")
    page.unroute("**/v1/chat/completions")
    say(page, "cut")
    expect(page.locator(".failure")).to_have_count(0)
    expect(page.locator(".note")).to_have_text("Cut off at the limit of tokens.")


@pytest.mark.parametrize(("said", "figures"), [("held", "4 tokens"), ("held, then break", "about 3 tokens")])
def test_the_speed_is_that_of_the_tokens_after_the_first(page, server, said, figures):
    say(page, said, wait=False)
    expect(answers(page)).to_have_text("You said")
    page.wait_for_timeout(200)
    server.go_on.set()
    page.wait_for_selector(".send[data-running=false]")
    expect(page.locator(".figures")).to_contain_text(f"camel-1b · {figures} · ")
    assert 0 < float(re.search(r"([\d.]+) tokens/s", page.locator(".figures").inner_text())[1]) <= 15


def test_an_answer_without_text_says_so_and_can_be_asked_for_again(page):
    say(page, "empty")
    expect(page.locator(".note")).to_have_text("The model gave an empty answer.")
    expect(page.get_by_label("Answer again")).to_be_visible()


def test_a_key_is_asked_for_and_kept_for_the_session_only(open_page, server):
    page = open_page()
    server.key = "secret"
    say(page, "one", wait=False)
    page.fill("#key-field", "wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-text")).to_contain_text("refused")
    page.fill("#key-field", "secret")
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_text("You said: one")
    page.reload()
    say(page, "two")
    expect(answers(page)).to_have_count(2)
    assert "secret" not in page.evaluate("JSON.stringify(localStorage)")
    assert page.evaluate("sessionStorage.getItem('camelid.key')") == "secret"


def test_two_requests_in_flight_ask_for_the_key_once(bare):
    """The second 401 comes while the key is asked for, or after it was given."""
    ask = """async (late) => {
      const { keys, models } = await import("/page/api.js"), given = [];
      let asked = 0, sent = 0, reply;
      const waiting = new Promise((go) => (reply = go));
      globalThis.fetch = async (_, { headers }) => {
        const key = headers.Authorization ?? null;
        given.push(key);
        if (key) return Response.json({ data: [] });
        if (sent++ && late) await waiting;
        return new Response("{}", { status: 401 });
      };
      keys.ask = async () => (asked++, await new Promise((go) => setTimeout(go)), "secret");
      const first = models(), second = models();
      await first.then(reply);
      await second;
      sessionStorage.clear();
      return [asked, given];
    }"""
    for late in (False, True):
        asked = bare.evaluate(ask, late)
        assert asked == [1, [None, None, "Bearer secret", "Bearer secret"]]


def test_without_a_key_the_error_stays(page, server):
    server.key = "secret"
    say(page, "one", wait=False)
    page.click("#key-cancel")
    expect(page.locator(".failure")).to_contain_text("give the API key")


def exported(page, row, name):
    page.click("#open-settings")
    with page.expect_download() as download:
        page.locator(".field", has_text=row).get_by_role("button", name=name).click()
    page.click("#close-settings")
    return json.loads(download.value.path().read_text())


def test_conversations_go_out_and_come_in(page):
    set_up(page, system="Be brief.")
    say(page, "one")
    openai = [{"messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "You said: one"},
    ]}]  # fmt: skip
    sharegpt = [{"conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "one"},
        {"from": "gpt", "value": "You said: one"},
    ]}]  # fmt: skip
    assert exported(page, "Export this", "OpenAI") == openai
    assert exported(page, "Export all", "ShareGPT") == sharegpt
    for records in (openai, sharegpt):
        load_file(page, "a.jsonl", json.dumps(records[0]) + "\n" + json.dumps(records[0]))
        expect(page.locator(".toast")).to_have_text("Conversations imported: 2")
        expect(answers(page)).to_have_text("You said: one")
    assert exported(page, "Export all", "OpenAI") == openai * 5


def test_a_file_that_does_not_fit_is_refused_whole(page):
    page.click("#open-settings")
    for text, told in {
        "nonsense": "line 1 is not JSON",
        "[{}]": "record 1 has neither “messages” nor “conversations”",
        '[{"messages": [{"role": "tool", "content": ""}]}]': 'record 1, turn 1: role "tool" is not system',
        '[{"messages": [{"role": "user", "content": 1}]}]': "record 1, turn 1: the content is not text",
        '{"conversations": [{"from": "__proto__", "value": ""}]}': 'record 1, turn 1: role "__proto__" is not',
    }.items():
        give_file(page, "bad.json", text)
        expect(page.locator(".import-error")).to_contain_text(f"bad.json: {told}")
    expect(page.locator("#conversations li")).to_have_count(0)


def test_an_imported_conversation_that_ends_with_the_user_is_answered_on_demand(page):
    load_file(page, "a.json", json.dumps({"messages": [{"role": "user", "content": "asked"}]}))
    page.click("text=Get an answer")
    expect(answers(page)).to_have_text("You said: asked")


def test_the_page_speaks_the_browsers_language_and_the_chosen_one(open_page):
    page = open_page(locale="zh-CN")
    expect(page.locator("#new")).to_have_text("新对话")
    say(page, "markdown")
    page.click("#open-settings")
    page.select_option("#set-language", "en")
    expect(page.locator("#settings-title")).to_have_text("Settings")
    expect(page.locator("#new")).to_have_text("New chat")
    page.reload()
    expect(page.locator("#new")).to_have_text("New chat")
    assert page.get_attribute("html", "lang") == "en"


def test_both_languages_say_the_same_things(bare):
    texts = bare.evaluate("async () => (await import('/page/strings.js')).TEXTS")
    for name, (english, chinese) in texts.items():
        places = [sorted(re.findall(r"\{\w+\}", text)) for text in (english, chinese)]
        assert english and chinese and places[0] == places[1], name
    used = set().union(*(re.findall(r'\bt\("(\w+)"', path.read_text()) for path in PAGE.glob("*.js")))
    assert used <= texts.keys()


def test_dark_and_light_follow_the_browser_or_the_choice(open_page):
    page = open_page(color_scheme="dark")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    dark = page.evaluate(ground)
    page.click("#open-settings")
    page.select_option("#set-theme", "light")
    light = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == light


def test_a_phone_shows_all_in_its_width_and_the_list_on_demand(open_page, server):
    server.answers["wide"] = "a" * 500 + "\n\n```\n" + "b" * 500 + "\n```\n\n|" + "c" * 300 + "|d|\n|-|-|\n|1|2|"
    page = open_page(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    say(page, "wide")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("document.querySelector('.scroller').scrollWidth") <= 360
    expect(page.locator("#conversations")).to_be_hidden()
    page.click("#menu")
    expect(page.locator("#conversations a")).to_be_visible()
    page.click("#new")
    expect(page.locator("#conversations")).to_be_hidden()


def test_every_control_has_a_name_and_the_keyboard_reaches_the_main_ones(page):
    say(page, "markdown")
    page.click("#open-settings")
    nameless = page.evaluate("""() => [...document.querySelectorAll("button, a, input, select, textarea")]
      .filter((each) => !each.getAttribute("aria-label") && !each.getAttribute("aria-labelledby"))
      .filter((each) => !each.labels?.length && !each.textContent.trim())
      .map((each) => each.outerHTML)""")
    assert nameless == []
    page.keyboard.press("Escape")
    page.reload()
    page.keyboard.press("Shift+Tab")
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label')"))
    assert {"skip", "new", "model", "open-settings", "Copy", "Answer again", "prompt", "Send"} <= reached
    assert page.get_attribute(".thread", "aria-live") == "polite"


def test_the_list_is_worked_by_keyboard_without_losing_the_focus(page):
    for text in ("one", "two", "three"):
        say(page, text)
        page.click("#new")
    links = page.locator("#conversations a")
    links.nth(1).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.type("zwei")
    page.keyboard.press("Enter")
    expect(links).to_have_text(["three", "zwei", "one"])
    expect(links.nth(1)).to_be_focused()
    for left in (["three", "one"], ["three"], []):
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(links).to_have_text(left)
        expect(links.nth(min(1, len(left) - 1)) if left else page.locator("#new")).to_be_focused()


def test_the_code_of_a_block_is_copied(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    say(page, "markdown")
    page.click(".code [data-copy]")
    expect(page.locator(".code [data-copy]")).to_have_text("Copied")
    code = MARKDOWN.split("```python\n")[1].split("\n```")[0]
    assert page.evaluate("navigator.clipboard.readText()") == code


def test_no_source_makes_markup_from_text():
    for path in PAGE.iterdir():
        found = re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|\beval\(", path.read_text())
        assert not found, path.name
    index = (PAGE / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=|//", index.replace("<!doctype", ""))


def test_only_new_messages_are_new_nodes(page):
    """Screen readers announce what is added to the log, so what stays must not be added again."""
    say(page, "one")
    page.evaluate("for (const each of document.querySelectorAll('.message')) each.dataset.old = true")
    say(page, "two")
    assert page.locator(".message").evaluate_all("(all) => all.map((each) => each.dataset.old)") == [
        "true",
        "true",
        None,
        None,
    ]
    expect(page.get_by_label("Answer again")).to_have_count(1)


def test_the_view_follows_the_answer_until_the_reader_scrolls(page, server):
    server.answers["slow"] = "line\n\n" * 400
    say(page, "slow", wait=False)
    scroller = page.locator(".scroller")

    def value(name):
        return scroller.evaluate(f"(each) => each.{name}")

    until(lambda: value("scrollTop") > 200)
    scroller.evaluate("(each) => (each.scrollTop = 0)")
    height = value("scrollHeight")
    until(lambda: value("scrollHeight") > height)
    assert value("scrollTop") == 0
    page.get_by_label("Go to the end").click()
    until(lambda: value("scrollTop") > 200)
    page.keyboard.press("Escape")
    expect(page.locator(".note")).to_be_visible()
