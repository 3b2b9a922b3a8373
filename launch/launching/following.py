"""What became of a job that was launched: its log as it grows, its state, its exit code."""

import codecs
import time
from pathlib import Path

from ...data.console import tell
from ...errors import UserError
from .job import Launched, read_last
from .platforms import PLATFORMS
from .verdict import read_verdicts

LOG_SECONDS = 0.5
"""Time between two looks at the log."""
STATE_SECONDS = 5.0
"""Time between two questions for the state, which ask the controller of a whole cluster."""


def last_launch(workdir: Path) -> Launched:
    """The last job that was launched in a work directory. Raises UserError if there was none."""
    found = read_last(workdir)
    if found is None:
        raise UserError(f"{workdir}: nothing was launched there (no {workdir / 'launch' / 'launches.jsonl'})")
    if found.id is None:
        raise UserError(f"{workdir}: the last launch wrote {found.file} and did not submit it")
    return found


def logs_of(launched: Launched) -> list[Path]:
    """The logs that a job has begun to write: one, or one for each worker."""
    log = Path(launched.log)
    return sorted(log.parent.glob(log.name))  # the folder may have characters of a pattern


def state_of(launched: Launched) -> str | None:
    """The state of a job in the words of its platform; None once it has ended."""
    if launched.platform not in PLATFORMS:
        raise UserError(f"job {launched.id} was launched on {launched.platform}, which this version does not know")
    return PLATFORMS[launched.platform].state(launched)


def outcome(launched: Launched, workdir: Path) -> tuple[int, str]:
    """The exit code of a job that has ended, and how it ended, in words.

    Of an array of workers the highest exit code counts.
    """
    verdicts = read_verdicts(workdir / "launch", launched.id)
    if not verdicts:
        return 1, "ended before the end of its first attempt: see its log"
    verdict = max((verdict for verdict, _ in verdicts), key=lambda verdict: verdict.code)
    attempts, jobs = sum(number for _, number in verdicts), len(verdicts)
    counted = f"after {attempts} attempt{'s' * (attempts != 1)}" + f" of {jobs} workers" * (jobs > 1)
    if verdict.word == "again":  # and yet it has ended
        return verdict.code, f"was ended {counted} ({verdict.reason}); the same command resumes it"
    return verdict.code, f"{'finished' if verdict.word == 'finished' else f'failed ({verdict.reason})'} {counted}"


def follow(launched: Launched, workdir: Path, begin: dict[str, int] | None = None) -> int:
    """Prints what is added to the logs of a job until it has ended. Returns its exit code.

    Args:
      launched: the job.
      workdir: its work directory.
      begin: {log: bytes that are left out}; default: the last 4,000 bytes of each log are printed first.

    Raises UserError if the state is not told at the beginning; later it is asked for again.
    """
    read = dict(begin or {})
    decoders: dict[str, codecs.IncrementalDecoder] = {}  # a character may be written in two parts
    asked, ended = 0.0, False
    while True:
        if time.monotonic() - asked > STATE_SECONDS:
            try:
                ended = state_of(launched) is None
            except UserError as error:  # a controller that is busy, as of a large cluster
                if not asked:
                    raise
                tell(f"{error}; the job is followed on")
            asked = time.monotonic()
        for log in map(str, logs_of(launched)):
            size = Path(log).stat().st_size
            start = read.get(log, 0 if begin is not None else max(0, size - 4000))
            if size > start:
                with open(log, "rb") as file:
                    file.seek(start)
                    content = file.read(size - start)
                if start and log not in read:  # somewhere in a line
                    content = content.partition(b"\n")[2]
                decoder = decoders.setdefault(log, codecs.getincrementaldecoder("utf-8")("replace"))
                print(decoder.decode(content), end="", flush=True)
            read[log] = size
        if ended:
            code, words = outcome(launched, workdir)
            print(f"job {launched.id} {words}")
            return code
        time.sleep(LOG_SECONDS)


def sizes(launch: Path) -> dict[str, int]:
    """{log: bytes} of the logs in a launch folder."""
    return {str(log): log.stat().st_size for log in launch.glob("log*")}
