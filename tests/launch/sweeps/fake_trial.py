"""Stands in for `camelid train` in tests of sweeps: a short run that resumes, saves at SIGTERM, and needs no JAX.

It reads the leaves lr, seed, steps, pause and fate of its flags. WORKDIR/processes tells when it began and ended.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

flags = dict(word.lstrip("-").split("=", 1) for word in sys.argv[2:])
workdir = Path(flags["workdir"])
lr, seed = float(flags.get("config.lr", 0.1)), int(flags.get("config.seed", 0))
steps, pause = int(flags.get("config.steps", 8)), float(flags.get("config.pause", 0.02))
fate, asked = flags.get("config.fate", "finish"), []


def note(what: str) -> None:
    with (workdir / "processes").open("a") as file:
        file.write(f"{what} {os.getpid()} {time.time()}\n")


def end(code: int, line: str) -> None:
    print(f"camelid: {line}", flush=True)
    note("end")
    (workdir / "busy").unlink()
    sys.exit(code)


signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
workdir.mkdir(parents=True, exist_ok=True)
busy = workdir / "busy"
before = Path(f"/proc/{busy.read_text()}/stat") if busy.exists() else busy
if before.exists() and ") Z " not in before.read_text():
    note("twice")  # a second process in one run directory: tests look for this word
busy.write_text(str(os.getpid()))
note("begin")
state = workdir / "state.json"
x, done = json.loads(state.read_text()) if state.exists() else (float(seed), 0)
if fate == "mistake":
    end(2, "data/text.jsonl: no such file")
while done < steps:
    if asked:
        end(143, "SIGTERM ended the run; it is saved")
    x, done = (x * 1.1 + lr) % 7.0, done + 1  # a chaotic enough stand-in for a loss: a lost step would be seen
    time.sleep(pause)
    if fate == "fail" and done == 4:
        end(1, "step 4: 5 steps in a row were skipped")
    if fate == "die" and done == 4:
        state.write_text(json.dumps([x, done]))
        os.kill(os.getpid(), signal.SIGKILL)
    name = "eval/other/loss" if fate == "nameless" else "eval/a/loss"
    value = "nan" if fate == "nan" else x
    lines = (workdir / "metrics.jsonl").read_text().splitlines() if done > 1 else []
    kept = [line for line in lines if json.loads(line)["step"] < done]
    lines = [*kept, json.dumps({"step": done, name: value})]
    (workdir / "metrics.new").write_text("".join(f"{line}\n" for line in lines))
    (workdir / "metrics.new").replace(workdir / "metrics.jsonl")
    state.with_suffix(".new").write_text(json.dumps([x, done]))
    state.with_suffix(".new").replace(state)
end(0, "done")
