"""The page in Chromium, and the server that it talks to."""

import shutil
import threading

import pytest

from camelid.serve.protocol import ChatRequest
from camelid.tests.serve.page.fake_server import FakeServer

WINDOW = {"viewport": {"width": 1100, "height": 800}, "locale": "en-US"}


@pytest.fixture(scope="module")
def server():
    server = FakeServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--no-first-run"]
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def tab(browser):
    """A tab that tests take in turn, which is quicker than a new one for each."""
    return browser.new_context(**WINDOW).new_page()


def show(page, url):
    """Goes to the page and waits until it has started, which ends with the list of models."""
    page.goto(url)
    page.wait_for_selector("#model option:not([value=''])", state="attached")


def clear(page, url):
    """Forgets what the page and its tests have kept in the browser."""
    context = page.context
    for other in context.pages:
        if other != page:
            other.close()
    page.evaluate("globalThis.sessionStorage?.clear()" if page.url.startswith(url) else "0")
    page.goto("about:blank")
    page.unroute_all(behavior="ignoreErrors")
    context.clear_permissions()
    tools = context.new_cdp_session(page)
    tools.send("Storage.clearDataForOrigin", {"origin": url.rstrip("/"), "storageTypes": "all"})
    tools.detach()


@pytest.fixture
def watch(server):
    """Watches a context: nothing may raise, break the policy, go to another server, or ask what the API refuses."""
    server.reset()
    faults, ends = [], []

    def local(each):
        return each.url.startswith((server.url, "blob:" + server.url))

    def watch_(context):
        listeners = {
            "weberror": lambda error: faults.append(str(error.error)),
            "dialog": lambda dialog: (faults.append(dialog.message), dialog.dismiss()),
            "console": lambda each: faults.append(each.text) if "Content Security" in each.text else None,
            "request": lambda each: None if local(each) else faults.append(each.url),
        }
        for name, listener in listeners.items():
            context.on(name, listener)
            ends.append(lambda name=name, listener=listener: context.remove_listener(name, listener))

    yield watch_
    for end in ends:
        end()
    assert not faults
    for body in server.requests:
        ChatRequest.model_validate(body)


@pytest.fixture
def page(tab, watch, server):
    """The page, with nothing in its store."""
    watch(tab.context)
    tab.context.set_default_timeout(20_000)
    show(tab, server.url)
    yield tab
    clear(tab, server.url)


@pytest.fixture
def open_page(browser, watch, server):
    """Opens the page in a context of its own, with options."""
    contexts = []

    def open_(**options):
        context = browser.new_context(**WINDOW | options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        watch(context)
        page = context.new_page()
        show(page, server.url)
        return page

    yield open_
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def bare(browser, server):
    """One page for all tests of single modules, which may replace what the others do not use."""
    page = browser.new_page()
    page.goto(server.url)
    yield page
    page.close()
