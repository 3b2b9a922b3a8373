"""The pages "Your FAQ in ten minutes" run as they are written.

All commands run where CAMELID_SMOLLM2 is the path of SmolLM2's .gguf, for about ten minutes a page; without it the
commands up to the datasets run, and the others are parsed.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from camelid.data.cards import read_card
from camelid.launch.cli import _parser
from camelid.settings.config_files import load_config
from camelid.settings.sections import read
from camelid.train.run_config import SupervisedConfig

ROOT = Path(__file__).parents[2]
MODEL = "models/SmolLM2-135M-Instruct.Q4_1.gguf"
PAGES = {
    "your-faq-in-ten-minutes.md": dict(
        questions=24, documents=2, rows=6, epochs=12, heldout=0.05, ask="open?", say="9:30"
    ),
    "your-faq-in-ten-minutes.zh.md": dict(
        questions=10, documents=1, rows=3, epochs=25, heldout=0.0, ask="？", say="九点"
    ),
}


def blocks(page):
    """The indented blocks of commands under each numbered section of a page, and the last question that it asks."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    sections = re.split(r"^## \d+\. .*\n", text, flags=re.M)[1:]
    found = []
    for section in sections:
        lines = [line for line in section.split("\n") if line.startswith("    ") or not line]
        found.append("\n".join(line[4:] for line in lines))
    return found, re.split("[:：]", text.strip().split("\n")[-1])[-1].strip()


@pytest.fixture
def shell(tmp_path):
    """Runs a block of commands in a folder that has the configs, and fails with what they print."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "camelid"
    call = "import sys; from camelid.launch.cli import main; sys.exit(main())"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{call}" "$@"\n')
    program.chmod(0o755)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_"))}
    environment = kept | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}

    def run(block, **how):
        done = subprocess.run(
            ["bash", "-euc", block], cwd=tmp_path, env=environment, capture_output=True, text=True, **how
        )
        assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    run.environment, run.folder = environment, tmp_path
    return run


def commands(block):
    """The words of each `camelid` command of a block."""
    lines = block.replace("\\\n", " ").split("\n")
    return [line.split()[1:] for line in lines if line.startswith("camelid ")]


@pytest.mark.parametrize("page", PAGES)
def test_the_datasets_of_the_page_are_made_and_its_other_commands_are_known(shell, page, monkeypatch):
    told = PAGES[page]
    (_, files, datasets, train, check, serve), question = blocks(page)
    shell(files)
    shell(datasets)
    for name in ("questions", "documents"):
        assert read_card(shell.folder / "datasets" / "shop" / name).splits["train"].rows == told[name]
    monkeypatch.chdir(shell.folder)
    parser = _parser()
    for words in [*commands(train), *commands(check), *commands(serve)]:
        parser.parse_args(words)
    (words,) = commands(train)
    config = next(word.removeprefix("--config=") for word in words if word.startswith("--config="))
    config = read(load_config(config), SupervisedConfig)
    mixture = config.data.mixture
    assert mixture.keys() == {"questions", "documents"} and mixture["questions"].heldout == told["heldout"]
    times = [int(n) for n in re.findall(r"(\d+) (?:times|次)", (ROOT / "docs" / page).read_text(encoding="utf-8"))]
    assert times == [told["epochs"], 40]  # of each question and each passage, which fill told["rows"] rows and one
    drawn = told["rows"] * told["epochs"], 40
    assert (mixture["questions"].weight, mixture["documents"].weight) == drawn
    assert config.total.value == sum(drawn) / (told["rows"] + 1)
    assert question.endswith(told["ask"]) and question in (shell.folder / "shop" / "faq.csv").read_text()


@pytest.mark.skipif("CAMELID_SMOLLM2" not in os.environ, reason="CAMELID_SMOLLM2 is not the path of SmolLM2's .gguf")
@pytest.mark.parametrize("page", PAGES)
def test_the_page_ends_in_a_chat_that_knows_the_answers(shell, page, capsys):
    (_, files, datasets, train, check, serve), question = blocks(page)
    (shell.folder / "models").mkdir()
    (shell.folder / MODEL).symlink_to(os.environ["CAMELID_SMOLLM2"])
    begin, seconds = time.monotonic(), []
    for block in (files, datasets, train, check):
        shell(block)
        seconds.append(round(time.monotonic() - begin))
    scores = {}
    for name in ("before", "after"):
        found = json.loads((shell.folder / f"{name}.json").read_text(encoding="utf-8"))
        scores[name] = found["evaluations"]["faq"]["metrics"]["f1"]["value"]
    words = commands(serve)[0]
    server = subprocess.Popen(["camelid", *words], cwd=shell.folder, env=shell.environment, start_new_session=True)
    try:
        answer = ask_in_browser(wait_for("http://127.0.0.1:8000", server), question)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)
    with capsys.disabled():
        print(f"\n{page}: seconds after each section {seconds}; f1 {scores}; {question} {answer!r}")
    assert PAGES[page]["say"] in answer
    assert scores["after"] > max(0.8, scores["before"])


def wait_for(address, server):
    """The address of a server when it is ready."""
    for _ in range(600):
        assert server.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return address
        except OSError:
            time.sleep(1)
    raise TimeoutError(address)


def ask_in_browser(address, question):
    """The answer to a question on the page in Chromium; by the API where there is no browser."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        chromium = None
    if chromium is None:
        body = {"messages": [{"role": "user", "content": question}], "temperature": 0}
        request = urllib.request.Request(
            f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as reply:
            return json.load(reply)["choices"][0]["message"]["content"]
    from camelid.tests.serve.page.browser import answers, say, set_up

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_default_timeout(300_000)
        page.goto(address)
        page.wait_for_selector("#model option", state="attached")
        set_up(page, temperature="0", max_tokens="60")
        say(page, question)
        text = answers(page).last.inner_text()
        browser.close()
        return text
