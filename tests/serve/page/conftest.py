"""The page in Chromium, and the server that it talks to."""

import shutil
import threading

import pytest

from camelid.serve.protocol import ChatRequest
from camelid.tests.serve.page.fake_server import FakeServer


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


@pytest.fixture
def open_page(browser, server):
    """Opens the page.

    At the end nothing may have raised, broken the policy, gone to another server, or asked what the API refuses.
    """
    server.reset()
    contexts, faults = [], []

    def watch(page):
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda each: faults.append(each.text) if "Content Security" in each.text else None)
        page.on("request", lambda each: faults.append(each.url) if not each.url.startswith(local) else None)
        return page

    def open_(**options):
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 800}, "locale": "en-US", **options})
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = watch(context.new_page())
        page.goto(server.url)
        page.wait_for_selector("#model option", state="attached")
        return page

    local = (server.url, "blob:" + server.url)
    yield open_
    for context in contexts:
        context.close()
    assert not faults
    for body in server.requests:
        ChatRequest.model_validate(body)


@pytest.fixture
def page(open_page):
    return open_page()


@pytest.fixture(scope="module")
def bare(browser, server):
    """One page for all tests of the Markdown module alone."""
    page = browser.new_page()
    page.goto(server.url)
    yield page
    page.close()
