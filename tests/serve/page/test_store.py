"""What is said is kept: over reloads, in several tabs, and where writes fail."""

import pytest

from camelid.tests.serve.page.browser import answers, say, until

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect


@pytest.fixture
def other(page):
    """A second tab."""
    other = page.context.new_page()
    other.goto(page.url)
    other.wait_for_selector("#model option", state="attached")
    return other


def test_conversations_are_kept_renamed_deleted_and_brought_back(page):
    say(page, "first")
    page.click("#new")
    say(page, "second")
    page.reload()
    links = page.locator("#conversations a")
    expect(links).to_have_text(["second", "first"])
    expect(answers(page)).to_have_text("You said: second")
    links.nth(1).click()
    expect(answers(page)).to_have_text("You said: first")
    page.get_by_label("Rename “first”").click()
    page.keyboard.type("a <b>title</b>")
    page.keyboard.press("Enter")
    expect(links).to_have_text(["second", "a <b>title</b>"])
    page.hover("#conversations li >> nth=1")
    page.get_by_label("Delete “a <b>title</b>”").click()
    expect(links).to_have_text(["second"])
    page.click(".toast button")
    expect(links).to_have_text(["second", "a <b>title</b>"])
    expect(answers(page)).to_have_text("You said: first")


def test_a_reload_in_the_middle_of_an_answer_loses_nothing(page):
    say(page, "slow", wait=False)
    expect(answers(page)).to_contain_text("word word word")
    page.fill("#prompt", "a draft")
    page.evaluate("""async () => {
      const { conversations } = await import("/page/store.js");
      const [{ messages }] = conversations.values();
      addEventListener("pagehide", () => localStorage.setItem("seen", messages[1].content));
    }""")
    page.reload()
    expect(page.locator(".note")).to_contain_text("Interrupted")
    seen = page.evaluate("localStorage.getItem('seen')")
    assert seen.startswith("word word word") and answers(page).inner_text().strip() == seen.strip()
    assert page.input_value("#prompt") == "a draft"


def test_what_the_database_does_not_take_any_more_is_found_after_a_reload(page):
    say(page, "one")
    page.evaluate("IDBObjectStore.prototype.put = () => ({})")  # as when the page closes before the end of a write
    say(page, "two")
    page.reload()
    expect(answers(page)).to_have_text(["You said: one", "You said: two"])
    assert page.evaluate("Object.keys(localStorage).filter((name) => name.includes('unsaved'))") == []


def test_another_tab_shows_what_this_one_writes(page, other):
    say(page, "from here")
    expect(other.locator("#conversations a")).to_have_text("from here")
    other.click("#conversations a")
    say(page, "and more")
    expect(answers(other)).to_have_text(["You said: from here", "You said: and more"])


def ended(page):
    page.wait_for_selector(".send[data-running=false]")


def open_in_both(page, other):
    """A conversation with one turn that both tabs show."""
    say(page, "first")
    other.click("#conversations a")
    expect(answers(other)).to_have_text("You said: first")


def kept(page):
    """What is stored of the only conversation, after a reload."""
    page.reload()
    expect(page.locator(".message")).not_to_have_count(0)
    expect(page.locator("#conversations li")).to_have_count(1)
    return page.locator(".bubble").all_inner_texts(), answers(page).all_inner_texts()


def test_what_two_tabs_say_at_the_same_time_is_kept_in_order(page, other, server):
    open_in_both(page, other)
    for each, text in ((page, "held here"), (other, "held there")):
        say(each, text, wait=False)
        expect(answers(each).last).to_have_text("You said")
    expect(page.locator(".bubble")).to_have_text(["first", "held here", "held there"])
    expect(other.locator(".bubble")).to_have_text(["first", "held here", "held there"])
    server.go_on.set()
    ended(page), ended(other)
    asked = ["first", "held here", "held there"]
    for each in (page, other):
        expect(answers(each)).to_have_text([f"You said: {text}" for text in asked])
        assert kept(each) == (asked, [f"You said: {text}" for text in asked])


def test_a_change_in_another_tab_does_not_part_an_answer_from_its_conversation(page, other, server):
    open_in_both(page, other)
    say(page, "held", wait=False)
    expect(answers(other).last).to_have_text("You said")  # all is written: the first tab has nothing unsaved
    other.hover("#conversations li")
    other.get_by_label("Rename “first”").click()
    other.keyboard.type("renamed")
    other.keyboard.press("Enter")
    expect(page.locator("#conversations a")).to_have_text("renamed")
    server.go_on.set()
    expect(answers(page).last).to_have_text("You said: held")
    expect(answers(other).last).to_have_text("You said: held")
    assert kept(other) == (["first", "held"], ["You said: first", "You said: held"])
    expect(other.locator("#conversations a")).to_have_text("renamed")


def test_what_one_tab_drops_stays_dropped_and_what_the_other_adds_stays(page, other):
    say(page, "first")
    say(page, "second")
    other.click("#conversations a")
    expect(answers(other)).to_have_count(2)
    page.bring_to_front()  # the frames of a tab behind are slow
    page.hover(".user >> nth=1")
    page.locator(".user >> nth=1").get_by_label("Edit").click()
    page.keyboard.press("Control+A")
    page.keyboard.type("zweitens")
    page.keyboard.press("Enter")
    say(other, "third")
    ended(page), ended(other)
    for each in (page, other):
        expect(each.locator(".bubble")).to_have_text(["first", "zweitens", "third"])
    assert kept(page)[0] == ["first", "zweitens", "third"]


STORED = """() => new Promise((done) => {
  indexedDB.open("camelid").onsuccess = ({ target }) => {
    const all = target.result.transaction("conversations").objectStore("conversations").getAll();
    all.onsuccess = () => done(all.result.map((each) => each.messages.length));
  };
})"""


def test_a_tab_that_was_not_told_finds_what_another_has_written_when_it_writes(page, other):
    open_in_both(page, other)
    other.evaluate("BroadcastChannel.prototype.postMessage = () => {}")
    say(other, "there")
    until(lambda: page.evaluate(STORED) == [4])
    say(page, "here")
    expect(page.locator(".bubble")).to_have_text(["first", "there", "here"])
    asked = ["first", "there", "here"]
    assert kept(page) == (asked, [f"You said: {text}" for text in asked])


def test_what_a_closed_tab_left_unsaved_is_taken_by_one_that_goes_on(page, other):
    open_in_both(page, other)
    other.evaluate("IDBObjectStore.prototype.put = () => ({})")
    say(other, "in the last moment")
    say(page, "here")
    other.close(run_before_unload=True)
    expect(page.locator(".bubble")).to_have_text(["first", "in the last moment", "here"])
    say(page, "and here")
    asked = ["first", "in the last moment", "here", "and here"]
    assert kept(page) == (asked, [f"You said: {text}" for text in asked])


def test_a_tab_that_is_closed_tells_the_others_that_its_answer_has_ended(page, other):
    open_in_both(page, other)
    say(other, "held", wait=False)
    expect(page.locator(".assistant >> nth=1")).to_have_attribute("aria-busy", "true")
    other.goto("about:blank")
    expect(page.locator(".note")).to_contain_text("Interrupted")
    expect(page.get_by_role("button", name="Continue")).to_be_visible()


def test_a_conversation_that_another_tab_deletes_is_answered_no_more(page, other, server):
    open_in_both(page, other)
    say(page, "held", wait=False)
    expect(answers(other).last).to_have_text("You said")
    other.hover("#conversations li")
    other.get_by_label("Delete “first”").click()
    expect(page.locator(".welcome")).to_be_visible()
    server.go_on.set()
    expect(page.locator("#conversations li")).to_have_count(0)
    page.reload()
    expect(page.locator(".welcome")).to_be_visible()
