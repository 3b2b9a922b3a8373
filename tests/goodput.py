"""Kills a run with kill -9 at random moments, gives it again each time, and compares its account of time with a clock.

    python -m camelid.tests.goodput --kills=5

The seconds of all buckets in run.json have to be within 1% of the time that the processes lived, as this script
measures it; otherwise the exit code is 1. One kill comes while a process starts, the others after up to 400 more steps.
Nothing is known of a process that is killed before its first heartbeat, while it imports JAX.
"""

import argparse
import random
import shutil
import sys
import time
from pathlib import Path

from camelid.tests.kills import finish, make_root, start
from camelid.train.run_record import read_record

STEPS = 3000
TOLERANCE = 0.01


def wait_for_step(workdir: Path, pid: int, more: int) -> None:
    """Waits until a process has done so many steps more than the processes before it; with 0, for its heartbeat."""
    first = None
    while True:
        record = read_record(workdir)
        beat = record and record.heartbeat
        if beat and beat["pid"] == pid:
            first = beat["step"] if first is None else first
            if beat["step"] >= first + more:
                return
        time.sleep(0.1)


def measure(root: Path, kills: int, seed: int) -> float:
    """Prints the attempts and their buckets, and returns by which share their sum is off."""
    make_root(root)
    workdir = root / f"goodput-{seed}"
    shutil.rmtree(workdir, ignore_errors=True)
    config = f"--config={Path(__file__).with_name('tiny.py')}:root={root},recipe=sft,init_from={root / 'base'}"
    often = [f"--config.total_steps={STEPS}", "--config.checkpoint.every_steps=100", "--config.log_steps=100"]
    arguments = ["train", config, f"--workdir={workdir}", *often]
    rng, lived = random.Random(seed), []
    for number in range(kills + 1):
        begin = time.monotonic()
        process = start(arguments, root)
        if number < kills:
            wait_for_step(workdir, process.pid, rng.randrange(1, 400) if number else 0)
            time.sleep(rng.uniform(0, 3))
            assert process.poll() is None, f"it ended before its kill: {process.communicate()[0]}"
            process.kill()
        how, said = finish(process)
        lived.append(time.monotonic() - begin)
        assert number < kills or how == "done", said
    record = read_record(workdir)
    for each, seconds in zip(record.attempts, lived, strict=True):
        shown = ", ".join(f"{bucket} {x:.1f}" for bucket, x in each.seconds.items() if x >= 0.05)
        print(f"{each.exit}, steps {each.from_step} to {each.to_step}, lived {seconds:.1f} s: {shown}")
    told = sum(record.seconds.values())
    off = told / sum(lived) - 1
    print(f"told {told:.2f} s of {sum(lived):.2f} s lived: {off:+.2%}; goodput {record.goodput:.1%}")
    return off


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, default=Path("/tmp/camelid-kills"))
    args = parser.parse_args()
    return int(abs(measure(args.root, args.kills, args.seed)) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
