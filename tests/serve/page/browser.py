"""What a user does on the page."""

import time


def say(page, text, wait=True):
    """Sends a message, and waits for the end of the answer."""
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    if wait:
        page.wait_for_selector(".send[data-running=false]")


def answers(page):
    """The texts of the answers."""
    return page.locator(".assistant .text")


def set_up(page, **values):
    """Sets settings in the panel."""
    page.click("#open-settings")
    for name, value in values.items():
        page.fill(f"#set-{name}", value)
    page.click("#close-settings")


def load_file(page, name, text):
    """Imports a file of conversations."""
    page.click("#open-settings")
    give_file(page, name, text)


def give_file(page, name, text):
    """Gives a file to the panel of settings, which is open."""
    page.set_input_files("#import-file", {"name": name, "mimeType": "application/json", "buffer": text.encode()})


def until(is_true):
    """Waits for a condition; the page's policy forbids Playwright's own way with expressions."""
    end = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.05)
