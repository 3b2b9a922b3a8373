"""Jobs of this machine: attempts and their ends by a small program in place of training, and a whole command."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from camelid.data.locks import locked
from camelid.errors import UserError
from camelid.launch.cli import main
from camelid.launch.launching import following, job, local, platforms, ports, supervisor
from camelid.launch.launching.job import read_last

# In each attempt a process does the next word of its plan: an exit code; "kill", itself; "lost", as one whose peer
# died; or "wait", until SIGTERM, for which it ends with 143.
TASK = """
import os, signal, sys, time
from pathlib import Path

exits, number = (Path(word.partition("=")[2]) for word in sys.argv[1:3])
folder = Path(os.environ["PLANS"])
(folder / "commands").open("a").write(" ".join(sys.argv[sys.argv.index("--") + 1 :]) + "\\n")
plan = (folder / number).read_text().split()
(folder / number).write_text(" ".join(plan[1:]))
exits.mkdir(parents=True, exist_ok=True)

def end(said, code):
    (exits / number).write_text(said)
    os._exit(code)

print("begun", flush=True)
signal.signal(signal.SIGTERM, lambda *_: end("143", 143))
if plan[0] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if plan[0] == "lost":
    end("lost", 1)
if plan[0] == "wait":
    (folder / "waits").touch()
    time.sleep(60)
end(plan[0], int(plan[0]))
"""
SUPERVISE = "import sys; from camelid.launch.launching import supervisor as s; s.TASK = 'fake_task'; sys.exit(s.main())"


@pytest.fixture
def supervise(tmp_path, monkeypatch):
    """supervise(plan of each process, restarts=100): a supervisor as a process, with its log at its standard output."""
    (tmp_path / "fake_task.py").write_text(TASK)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("PLANS", str(tmp_path))
    started = []

    def start(*plans, restarts=100) -> subprocess.Popen:
        launch = tmp_path / "launch"
        launch.mkdir(exist_ok=True)
        for number, plan in enumerate(plans):
            (tmp_path / str(number)).write_text(plan)
        plan = dict(command=["train"], workdir=str(tmp_path), folder=str(tmp_path), processes=len(plans))
        plan |= dict(environments=[{}] * len(plans), most_restarts=restarts)
        (launch / "local.json").write_text(json.dumps(plan))
        started.append(subprocess.Popen([sys.executable, "-P", "-c", SUPERVISE, str(launch / "local.json")]))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def log(folder: Path) -> str:
    return (folder / "launch" / "log").read_text()


@pytest.mark.parametrize(
    ("plan", "code", "attempts", "words"),
    [
        ("0", 0, 1, "camelid: finished"),
        ("143 kill 0", 0, 3, "camelid: exit code 137: a process was killed: it is started again"),
        ("1", 1, 1, "failed: exit code 1"),
        ("2", 2, 1, "failed: exit code 2"),
        ("kill kill kill", 137, 3, "3 times in a row without a new checkpoint"),
        ("143 143 143", 143, 3, "it has been restarted 2 times already"),
    ],
)
def test_a_job_is_started_again_by_how_it_ended(supervise, tmp_path, plan, code, attempts, words):
    assert supervise(plan, restarts=100 if "kill" in plan else 2).wait(60) == code
    assert log(tmp_path).count("camelid: attempt") == attempts and words in log(tmp_path)


def test_two_processes_meet_at_a_port_of_each_attempt_and_end_by_the_one_that_was_killed(supervise, tmp_path):
    assert supervise("kill 0", "lost 0").wait(60) == 0
    commands = (tmp_path / "commands").read_text().splitlines()
    assert len(commands) == 4 and "attempt 2" in log(tmp_path)
    pattern = r"train --distributed --coordinator=127\.0\.0\.1:\d+ --num_processes=2 --process_id=[01]"
    assert all(re.fullmatch(pattern, command) for command in commands)


def test_a_job_that_is_told_to_end_saves_and_is_not_started_again(supervise, tmp_path):
    process = supervise("wait wait")
    while not (tmp_path / "waits").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert log(tmp_path).count("camelid: attempt") == 1 and "SIGTERM ended it; the same command resumes it" in log(
        tmp_path
    )


def test_the_state_of_a_job_tells_its_attempt_and_why_there_is_another(supervise, tmp_path):
    process = supervise("kill wait")
    launched = job.Launched("local", str(process.pid), ("train",), str(tmp_path / "launch" / "log"), {})
    while not (tmp_path / "waits").exists():
        assert process.poll() is None
        time.sleep(0.02)
    killed = "after exit code 137: a process was killed"
    assert local.state(launched) == f"running as process {process.pid}, attempt 2, {killed}"


def test_a_second_supervisor_of_a_folder_is_refused(supervise, tmp_path):
    first = supervise("wait")
    while not (tmp_path / "waits").exists():
        time.sleep(0.02)
    assert supervise("wait").wait(60) == 2
    assert first.poll() is None


def test_a_command_goes_on_in_the_background_and_its_end_is_told(tmp_path, capfd):
    """With a command that ends at once: a model that is not there."""
    words = ["generate", "/nowhere", "x"]
    launch = ["launch", "--on=local", f"--workdir={tmp_path / 'run'}"]
    assert main([*launch, "--dry_run", "--processes=2", "--", "doctor"]) == 0
    said = capfd.readouterr().out
    assert "command     camelid doctor\n" in said and "{" not in said
    assert "2 processes together" in said and "process 1   the variables of this shell" in said
    assert not (tmp_path / "run").exists()
    assert main([*launch, "--wait", "--", *words]) == 2
    said, launched = capfd.readouterr().out, read_last(tmp_path / "run")
    assert f"job {launched.id} on local: camelid-run, 1 process" in said and f"kill {launched.id}" in said
    assert "/nowhere" in said and f"job {launched.id} failed (exit code 2" in said
    assert local.state(launched) is None
    assert main(["launch", f"--status={tmp_path / 'run'}"]) == 2
    assert "failed (exit code 2" in capfd.readouterr().out
    assert main(["launch", f"--stop={tmp_path / 'run'}"]) == 0
    assert "has ended already" in capfd.readouterr().out
    assert main(["launch", f"--stop={tmp_path}"]) == 2
    assert "nothing was launched there" in capfd.readouterr().err


def test_two_launches_at_once_start_one_job(tmp_path, capsys):
    def busy(holder):
        raise AssertionError(holder)

    with locked(tmp_path / "launch" / "launching", busy):
        assert main(["launch", "--on=local", f"--workdir={tmp_path}", "--", "doctor"]) == 2
    assert "launches a job there at this moment" in capsys.readouterr().err
    assert not (tmp_path / "launch" / "launches.jsonl").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "its last line is damaged"),
        ('{"platform": "local", "id": "1"', "its last line is damaged"),
        ("null", "its last line is damaged"),
        ('{"platform": "local", "command": ["doctor"]}', "its last line is damaged"),
        (
            '{"platform": "moon", "id": "1", "command": [], "log": "log", "ways": {}}',
            "which this version does not know",
        ),
    ],
)
@pytest.mark.parametrize("options", [["--status=job"], ["--on=local", "--workdir=job", "--", "doctor"]])
def test_a_damaged_record_of_launches_is_one_line(tmp_path, monkeypatch, capsys, line, words, options):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job" / "launch").mkdir(parents=True)
    (tmp_path / "job" / "launch" / "launches.jsonl").write_text(f"{line}\n")
    assert main(["launch", *options]) == 2
    assert words in capsys.readouterr().err


def test_a_record_of_a_later_version_is_read(tmp_path):
    (tmp_path / "launch").mkdir()
    line = '{"platform": "local", "id": "1", "command": ["doctor"], "log": "log", "ways": {}, "colour": "red"}'
    (tmp_path / "launch" / "launches.jsonl").write_text(f"{line}\n")
    assert read_last(tmp_path).command == ("doctor",)


def test_a_job_whose_record_cannot_be_written_is_ended(tmp_path, monkeypatch):
    ended = []
    started = job.Launched("local", "7", ("doctor",), str(tmp_path / "log"), {})
    platform = platforms.PLATFORMS["local"]._replace(launch=lambda *_: started, stop=ended.append)
    monkeypatch.setitem(platforms.PLATFORMS, "local", platform)
    (tmp_path / "launch" / "launches.jsonl").mkdir(parents=True)
    monkeypatch.setattr("camelid.launch.launching.job.read_last", lambda workdir: None)
    assert main(["launch", "--on=local", f"--workdir={tmp_path}", "--", "doctor"]) == 1
    assert ended == [started]


def test_a_supervisor_forgets_a_job_before_the_reboot_that_had_its_process_id(tmp_path, monkeypatch):
    plan = dict(command=["doctor"], workdir=str(tmp_path), folder=str(tmp_path), processes=1, environments=[{}])
    (tmp_path / "local.json").write_text(json.dumps(plan | {"most_restarts": 1}))
    one = supervisor.Supervisor(tmp_path / "local.json")
    one.exits.parent.mkdir()
    for suffix in (".killed", ".verdict"):
        one.exits.with_suffix(suffix).write_text("before\n")
    monkeypatch.setattr(one, "_attempt", lambda restarts: 3 + len(list(one.exits.parent.iterdir())))
    assert one.run() == 3
    assert json.loads(one.exits.with_suffix(".verdict").read_text())["word"] == "failed"


def test_a_process_ends_with_its_supervisor():
    child = "import os, time; from camelid.launch.launching.task import _end_with; _end_with(os.getppid()); "
    child += "print(os.getpid(), flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    number = int(process.stdout.readline())
    process.kill()
    assert process.stdout.read() == ""  # closed, because the child has ended too
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(number, 0)
            time.sleep(0.05)


def test_a_log_is_followed_from_the_beginning_of_a_line_and_without_broken_characters(tmp_path, monkeypatch, capsys):
    log = tmp_path / "[a]" / "launch" / "log"
    log.parent.mkdir(parents=True)
    log.write_text("羊驼\n" * 3000)
    states = iter(["running", None])

    def state(_):
        if (found := next(states)) is None:
            with log.open("ab") as file:
                file.write("羊".encode()[1:] + b"\n")
        else:
            with log.open("ab") as file:
                file.write("羊".encode()[:1])
        return found

    monkeypatch.setattr(following, "state_of", state)
    monkeypatch.setattr(following, "STATE_SECONDS", 0.0)
    monkeypatch.setattr(following, "LOG_SECONDS", 0.0)
    following.follow(job.Launched("local", "7", ("doctor",), str(log), {}), tmp_path)
    lines = capsys.readouterr().out.splitlines()[:-1]
    assert set(lines[:-1]) == {"羊驼"} and lines[-1] == "羊"


def test_a_cluster_that_does_not_answer_for_a_while_ends_neither_the_job_nor_its_log(tmp_path, monkeypatch, capsys):
    answers = iter(["running", UserError("squeue did not answer"), None])

    def state(_):
        if isinstance(found := next(answers), UserError):
            raise found
        return found

    monkeypatch.setattr(following, "state_of", state)
    monkeypatch.setattr(following, "STATE_SECONDS", 0.0)
    monkeypatch.setattr(following, "LOG_SECONDS", 0.0)
    started = job.Launched("local", "7", ("doctor",), str(tmp_path / "log"), {})
    assert following.follow(started, tmp_path) == 1
    assert "squeue did not answer; the job is followed on" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "stopped"), [(UserError("no answer"), 0), (KeyboardInterrupt(), 1)])
def test_only_a_signal_ends_the_job_for_which_a_launch_waits(tmp_path, monkeypatch, error, stopped):
    def fail(*_):
        raise error

    ended = []
    started = job.Launched("local", "7", ("doctor",), str(tmp_path / "log"), {})
    platform = platforms.PLATFORMS["local"]._replace(launch=lambda *_: started, stop=ended.append)
    monkeypatch.setitem(platforms.PLATFORMS, "local", platform)
    monkeypatch.setattr(following, "follow", fail)
    assert main(["launch", "--on=local", "--wait", f"--workdir={tmp_path}", "--", "doctor"]) != 0
    assert len(ended) == stopped


def test_a_supervisor_that_cannot_begin_is_no_launch(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(local, "PYTHON", ("/bin/false",))
    assert main(["launch", "--on=local", f"--workdir={tmp_path}", "--", "doctor"]) == 2
    assert "the supervisor ended before it began: see" in capsys.readouterr().err
    assert read_last(tmp_path) is None


def test_a_command_without_the_hyphens_before_it_is_one_line(capsys):
    assert main(["launch", "--on=local", "train", "--config=sft/lora", "--workdir=runs/x"]) == 2
    assert "give -- before the command, as in -- train" in capsys.readouterr().err


@pytest.mark.parametrize("own", ["gs://bucket/run", "/elsewhere/run"])
def test_the_checkpoints_by_which_a_job_gets_further_are_those_of_its_command(
    arguments, tmp_path, monkeypatch, capsys, own
):
    monkeypatch.chdir(tmp_path)
    train = arguments("pretrain", own)
    for platform in platforms.PLATFORMS:
        assert main(["launch", f"--on={platform}", "--dry_run", "--workdir=logs", "--", *train]) == 0
    text = capsys.readouterr().out
    assert f"checkpoints {own}\n" in text and f" --workdir={own} " in text and f"{tmp_path}/logs/launch/log" in text


def test_a_job_of_another_host_is_not_taken_for_one_of_this(tmp_path):
    launched = job.Launched("local", "1", ("train",), str(tmp_path / "launch" / "log"), {}, host="elsewhere")
    with pytest.raises(UserError, match="the job runs on elsewhere"):
        local.state(launched)


def test_ports_differ_between_jobs_and_are_free():
    import socket

    port = ports.free_port(4)
    assert ports.FIRST <= port < ports.FIRST + ports.COUNT
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", port))
        listener.listen()
        assert ports.free_port(4) != port != ports.free_port(port - ports.FIRST)


def test_a_platform_is_one_module():
    assert set(platforms.PLATFORMS) == {"local", "slurm"}
    for name, platform in platforms.PLATFORMS.items():
        assert all(each.__module__.endswith(f"launching.{name}") for each in platform)


def launched_at_once(monkeypatch, launch) -> None:
    """Makes the platform local do nothing but `launch`."""
    platform = platforms.PLATFORMS["local"]._replace(launch=launch)
    monkeypatch.setitem(platforms.PLATFORMS, "local", platform)


def test_a_reader_that_has_read_enough_of_a_launch_is_no_fault(tmp_path):
    line = f"launch --on=slurm --workdir={tmp_path} -- doctor"
    code = "import sys, shutil; shutil.which = lambda name: None; from camelid.launch.cli import main; "
    code += f"sys.exit(main({line.split()!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(60) == 0 and process.stderr.read() == b""
    assert (tmp_path / "launch" / "launches.jsonl").exists()


def test_a_full_disk_and_a_file_in_place_of_the_launch_folder_are_told_with_their_paths(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(28, "No space left on device")

    launched_at_once(monkeypatch, fail)
    command = ["launch", "--on=local", f"--workdir={tmp_path}", "--", "doctor"]
    assert main(command) == 1
    assert f"No space left on device: '{tmp_path}/launch'" in capsys.readouterr().err
    (tmp_path / "launch").rename(tmp_path / "before")
    (tmp_path / "launch").touch()
    assert main(command) == 2
    assert f"{tmp_path}/launch is a file, and a job has its files in a folder" in capsys.readouterr().err


def test_options_that_do_nothing_are_told_as_they_were_given(capsys):
    assert main(["launch", "--status=x", "--wait"]) == 2
    assert "--wait does nothing without --on" in capsys.readouterr().err
    assert main(["launch", "--on=local", "--workdir=x", "--setup=module load cuda", "--", "doctor"]) == 2
    assert "--setup=module load cuda does nothing without --on=slurm" in capsys.readouterr().err
