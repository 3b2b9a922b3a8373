"""A teacher over HTTP that fails in every way, and a command that is killed: the dataset has the same bytes."""

import json
import random
import subprocess
import sys
import time

import pytest

from camelid.tests.curate.simulated_teacher import answer, write_seeds
from camelid.tests.serve.misbehaving import digest_of, misbehaving

KILLS = 10
LANGUAGES = ("en", "zh")
FAILURES = ["429", "silence", "reset", "cut", "garbage", "hidden error", "500", "no choice", "503", "list"]


def plan(text, before):
    """Up to three failures, and then what depends on the request alone."""
    digest = digest_of(text)
    if before < digest % 4:
        return FAILURES[(digest // 4 + before) % len(FAILURES)]
    return "filtered" if digest % 17 == 0 else "cut_off" if digest % 5 == 0 else "slow"


def write(messages):
    """The teacher's tasks; cut in the middle where the plan says so, and sometimes nothing."""
    digest, text = digest_of(messages[-1]["content"]), answer(messages)
    return "" if digest % 7 == 0 else text[: len(text) * 2 // 3] if digest % 5 == 0 else text


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def replied(journal):
    """The questions that have a reply in a journal."""
    asked, found = {}, set()
    for line in journal.read_bytes().split(b"\n")[:-1] if journal.exists() else ():
        line = json.loads(line)
        if "request" in line:
            asked[line["key"]] = line["request"]["messages"][-1]["content"]
        if "reply" in line:
            found.add(asked[line["key"]])
    return found


@pytest.fixture
def run(tmp_path):
    """run(server, name, seconds) runs the command with the output `name`, and says how it ended."""
    for language in LANGUAGES:
        write_seeds(tmp_path / f"{language}.jsonl", language)
    seeds = [f"--seeds={tmp_path}/{language}.jsonl" for language in LANGUAGES]
    how = [*seeds, "--rows=20", "--model=m", "--concurrency=16", "--retries=20", "--timeout_seconds=0.5"]

    def say(server, name, seconds=None):
        arguments = [*how, f"--teacher={server.url}", f"--output={tmp_path / name}"]
        process.stdin.write(f"{json.dumps([seconds, arguments])}\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    command = [sys.executable, "-m", "camelid.tests.curate.killed_command"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield say
        process.stdin.close()


def test_a_run_that_is_killed_ten_times_has_the_same_bytes_and_asks_for_no_reply_twice(run, tmp_path):
    with misbehaving(plan, write) as server:
        begin = time.monotonic()
        assert run(server, "whole") == "0"
        seconds, asked = time.monotonic() - begin, len(server.asked)
    expected = files_of(tmp_path / "whole")
    rng, kills = random.Random(0), 0
    while kills < KILLS:  # a run that ends before its kill is followed by one from the beginning
        name = f"killed{kills}"
        with misbehaving(plan, write) as server:
            how, done, before = "killed", set(), 0
            while how == "killed":
                how = run(server, name, None if kills == KILLS else rng.uniform(0.02, 1.6 * seconds / KILLS))
                kills += how == "killed"
                assert not done & set(server.asked[before:])
                done, before = replied(tmp_path / f"{name}.journal"), len(server.asked)
            assert how == "0"
            assert run(server, name) == "0"  # which repeats the output from the journal
            assert len(server.asked) == before and set(server.asked) == done
        assert files_of(tmp_path / name) == expected
    card = json.loads(expected["card.json"])
    assert card["splits"]["train"]["rows"] == 40
    reasons = {reason for step in card["steps"].values() for reason, count in step["rejected"].items() if count}
    assert {"cut", "empty_answer", "beyond_text", "too_short", "punctuation"} <= reasons
    assert asked > 1.5 * len(done)  # the teacher did fail
