"""Jobs of Slurm: the job file by programs in Slurm's place, and whole jobs where Slurm runs (`tests/slurm_here.sh`)."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from camelid.checkpoints import reading
from camelid.launch.cli import main
from camelid.launch.launching.job import read_last

SRUN = """#!/bin/bash
echo "$@" > $FAKE/srun.arguments
env | grep -E '^(JAX_COORDINATOR_PORT|PYTHONUNBUFFERED)=' > $FAKE/srun.environment
[ -n "$FAKE_TERM" ] && kill -TERM $PPID && sleep 0.5  # what Slurm sends to a job that is cancelled
[ -n "$FAKE_KILL" ] && sleep 3 && kill -KILL $PPID  # what it does to a job that is still there after KillWait
for word in "$@"; do case $word in --exits=*) exits=${word#--exits=} ;; esac; done
mkdir -p "$exits"
number=0
for said in $FAKE_SAID; do echo $said > "$exits/$number"; number=$((number + 1)); done
exit $FAKE_CODE
"""
SCONTROL = """#!/bin/bash
echo "$@" >> $FAKE/scontrol.arguments
[ "$1 $2" = "show job" ] && echo "JobId=12 JobName=x JobState=$FAKE_STATE Reason=${FAKE_REASON:-None} Restarts=0"
exit 0
"""
SBATCH = """#!/bin/bash
echo "$@" > $FAKE/sbatch.arguments
if [ -n "$FAKE_REFUSES" ]; then echo "sbatch: error: $FAKE_REFUSES" >&2; exit 1; fi
echo "12;cluster"
"""
SQUEUE = """#!/bin/bash
[ -f $FAKE/queue ] && cat $FAKE/queue
exit 0
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A folder for what programs in Slurm's place were given; they are first on the PATH."""
    folder = tmp_path / "fake"
    folder.mkdir()
    for name, text in {
        "srun": SRUN,
        "scontrol": SCONTROL,
        "sbatch": SBATCH,
        "squeue": SQUEUE,
        "scancel": SCONTROL,
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def launch(*options, command=("doctor",), workdir="job") -> int:
    return main(["launch", "--on=slurm", f"--workdir={workdir}", *options, "--", *command])


def job_file(workdir: Path) -> str:
    return (workdir / "launch" / "job.sh").read_text()


def run_job(fake, code, said, state="RUNNING", restarts=0, **more) -> tuple[int, str, list[str]]:
    """Runs the job file as Slurm would. Returns its exit code, its output, and the requeues that it asked for."""
    settings = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_RESTART_COUNT": str(restarts)}
    settings |= {"FAKE_CODE": str(code), "FAKE_SAID": " ".join(said), "FAKE_STATE": state} | more
    (fake / "scontrol.arguments").unlink(missing_ok=True)
    ended = subprocess.run(
        ["bash", "job/launch/job.sh"],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=fake.parent,
    )
    file = fake / "scontrol.arguments"
    asked = file.read_text().splitlines() if file.exists() else []
    return ended.returncode, ended.stdout, [line for line in asked if line.startswith("requeue")]


def test_a_job_file_asks_for_what_the_options_say_and_is_valid_bash(fake, capsys):
    options = [
        "--nodes=2",
        "--gpus_per_node=8",
        "--cpus_per_task=4",
        "--mem=500G",
        "--time=12:00:00",
        "--partition=gpu",
    ]
    assert launch(*options, "--account=lab", "--signal_seconds=300", "--sbatch=--qos=high --exclude=node7 -C a100") == 0
    text = job_file(fake.parent / "job")
    asked = re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)
    assert asked == [
        "--job-name=camelid-job",
        f"--chdir={fake.parent}",
        f"--output={fake.parent}/job/launch/log",
        "--open-mode=append",
        "--partition=gpu",
        "--account=lab",
        "--time=12:00:00",
        "--nodes=2",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--cpus-per-task=4",
        "--mem=500G",
        "--qos=high",
        "--exclude=node7",
        "-C a100",
        "--requeue",
        "--signal=TERM@300",
    ]
    assert subprocess.run(["bash", "-n", "job/launch/job.sh"]).returncode == 0
    assert (fake / "sbatch.arguments").read_text().strip() == f"--parsable {fake.parent}/job/launch/job.sh"
    said = capsys.readouterr().out
    assert "job 12 on slurm: camelid-job, 16 processes" in said
    own = [f"camelid launch --{action}={fake.parent}/job" for action in ("status", "follow", "stop")]
    assert [line.split(maxsplit=1)[1] for line in said.splitlines() if "camelid launch" in line] == own
    assert said.index(own[2]) < said.index("squeue --jobs=12") and "most clusters" not in said
    assert "at most 101 attempts of --time=12:00:00, 50 days in all (--restarts)" in said
    for line in ("squeue --jobs=12", f"tail -F {fake.parent}/job/launch/log", "scontrol requeue 12", "scancel 12"):
        assert line in said


def test_what_users_give_stays_within_its_line_of_the_job_file(fake, tmp_path, monkeypatch):
    (tmp_path / "my folder #1").mkdir()
    monkeypatch.chdir(tmp_path / "my folder #1")
    prompt = "--prompt=a\ntouch owned\n#SBATCH --nodes=9 '"
    assert launch('--sbatch=--comment="a b#c"', command=["generate", "runs/x", prompt], workdir="100% 羊驼") == 0
    text = job_file(tmp_path / "my folder #1" / "100% 羊驼")
    before_code = text.partition('\n: "')[0].splitlines()
    assert all(line.startswith("#") or not line for line in before_code)
    asked = [line.removeprefix("#SBATCH ") for line in before_code if line.startswith("#SBATCH ")]
    assert f'--chdir="{tmp_path}/my folder #1"' in asked and '--comment="a b#c"' in asked and "--nodes=9" not in asked
    assert f'--output="{tmp_path}/my folder #1/100%% 羊驼/launch/log"' in asked
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


def test_srun_is_told_what_it_does_not_take_from_a_job(fake):
    assert launch("--cpus_per_task=4") == 0
    run_job(fake, 0, ["0"], SLURM_CPUS_PER_TASK="4")
    assert "--export=ALL --cpus-per-task=4" in (fake / "srun.arguments").read_text()


def test_options_of_srun_and_lines_of_setup_are_given_to_the_processes(fake):
    setup = ["--setup=export SITE='a b' # our own", "--setup=if true; then\n  export PYTHONUNBUFFERED=$SITE\nfi"]
    assert launch(*setup, "--srun=--container-image='lab + jax' --mpi none", "--srun=-v") == 0
    assert run_job(fake, 0, ["0"])[0] == 0
    arguments = (fake / "srun.arguments").read_text()
    assert "--export=ALL --container-image=lab + jax --mpi none -v " in arguments
    assert (fake / "srun.environment").read_text() == "PYTHONUNBUFFERED=a b\n"


def test_a_setup_that_fails_ends_the_job_before_its_processes(fake):
    assert launch("--setup=export A=1; (exit 3)") == 0
    code, text, asked = run_job(fake, 0, ["0"])
    assert code == 2 and "camelid: --setup failed with exit code 3: export A=1; (exit 3)" in text
    assert not asked and not (fake / "srun.arguments").exists()
    assert main(["launch", "--status=job"]) == 2


@pytest.mark.parametrize(
    ("options", "tasks", "gpus"),
    [
        (["--gpus_per_node=a100:4"], 4, "a100:4"),
        (["--gpus_per_node=a100:8", "--tasks_per_node=2"], 2, "a100:8"),
        (["--gpus_per_node=8", "--tasks_per_node=1"], 1, "8"),
        (["--gpus_per_node=0", "--tasks_per_node=3"], 3, "0"),
    ],
)
def test_processes_are_counted_by_gpus_of_any_type(fake, options, tasks, gpus):
    assert launch(*options) == 0
    text = job_file(fake.parent / "job")
    assert f"#SBATCH --ntasks-per-node={tasks}\n#SBATCH --gpus-per-node={gpus}\n" in text


def test_several_processes_train_together_and_meet_at_a_port_that_is_free(fake):
    assert launch("--tasks_per_node=2") == 0
    assert run_job(fake, 0, ["0", "0"])[0] == 0
    arguments = (fake / "srun.arguments").read_text()
    assert arguments.strip().endswith("-- doctor --distributed") and "--label" in arguments
    port = int(re.search(r"JAX_COORDINATOR_PORT=(\d+)", (fake / "srun.environment").read_text())[1])
    assert 61440 <= port < 65536


def test_one_process_is_not_distributed(fake):
    assert launch() == 0
    assert run_job(fake, 0, ["0"])[0] == 0
    assert (fake / "srun.arguments").read_text().strip().endswith("-- doctor")
    assert "JAX_COORDINATOR_PORT" not in (fake / "srun.environment").read_text()


@pytest.mark.parametrize(
    ("code", "said", "state", "requeued"),
    [
        (0, ["0", "0"], "RUNNING", False),
        (0, ["0"], "RUNNING", False),
        (143, ["143", "143"], "RUNNING", True),
        (137, ["lost"], "RUNNING", True),
        (1, ["lost", "lost"], "RUNNING", True),
        (1, ["1", "1"], "RUNNING", False),
        (2, ["2", "2"], "RUNNING", False),
        (143, ["143", "143"], "COMPLETING", False),  # cancelled or preempted: Slurm's own matter
    ],
)
def test_a_job_is_requeued_by_how_its_processes_ended(fake, code, said, state, requeued):
    assert launch("--tasks_per_node=2") == 0
    found, text, asked = run_job(fake, code, said, state)
    assert asked == (["requeue 12"] if requeued else []), text
    assert found == (0 if (code, said) == (0, ["0", "0"]) else code or 1)


def test_a_job_whose_time_is_over_before_it_ended_is_requeued(fake):
    assert launch() == 0
    assert run_job(fake, 143, ["143"], "COMPLETING", FAKE_REASON="TimeLimit")[2] == ["requeue 12"]


def test_the_shell_of_a_job_outlives_the_signal_that_ends_it(fake):
    assert launch() == 0
    code, text, _ = run_job(fake, 143, ["143"], "COMPLETING", FAKE_TERM="1")
    assert code == 143 and "attempt 1 was cut off: JobState=COMPLETING" in text


def test_a_job_that_is_killed_at_its_time_limit_is_requeued_before(fake):
    assert launch() == 0
    over = dict(FAKE_REASON="TimeLimit", FAKE_TERM="1", FAKE_KILL="1")
    for restarts in range(2):
        assert run_job(fake, 0, [], "COMPLETING", restarts, **over)[::2] == (-9, ["requeue 12"])
    code, text, asked = run_job(fake, 0, [], "COMPLETING", 2, **over)
    assert code == -9 and not asked and "3 times in a row without a new checkpoint" in text
    assert run_job(fake, 143, ["143"], "COMPLETING", 3, **over | {"FAKE_KILL": ""})[2] == ["requeue 12"]  # once


def test_a_job_is_not_requeued_for_ever(fake):
    assert launch("--restarts=3") == 0
    assert run_job(fake, 143, ["143"], restarts=2)[2] == ["requeue 12"]
    code, text, asked = run_job(fake, 143, ["143"], restarts=3)
    assert code == 143 and not asked and "it has been restarted 3 times already" in text


def test_what_an_attempt_before_said_does_not_count(fake):
    assert launch() == 0
    assert run_job(fake, 0, ["0"])[0] == 0
    assert run_job(fake, 0, [])[0] == 1


def test_the_workers_of_a_sweep_are_an_array(fake, capsys):
    config = f"--config={Path(__file__).parents[1] / 'tiny.py'}:root=/nowhere"
    objective = "--objective=eval/heldout/text/loss:min"
    sweep = ["sweep", config, "--space=seed={0,1}", objective, "--workdir=sweeps/lr"]
    assert main(["launch", "--on=slurm", "--workers=8", "--gpus_per_node=1", "--dry_run", "--", *sweep]) == 0
    text = capsys.readouterr().out
    assert "#SBATCH --array=0-7" in text and "#SBATCH --ntasks-per-node=1" in text
    assert f"#SBATCH --output={fake.parent}/sweeps/lr/launch/log-%a" in text
    assert "    --workers=1 &\n" in text and "--distributed" not in text
    assert not Path("sweeps").exists()


@pytest.mark.parametrize("worker", [0, 2])
def test_a_worker_that_was_cut_off_is_seen_and_requeued_alone(fake, worker):
    """SLURM_JOB_ID of the last worker is that of the array, for which Slurm would take all workers."""
    config = f"--config={Path(__file__).parents[1] / 'tiny.py'}:root=/nowhere"
    sweep = ["sweep", config, "--space=seed={0,1}", "--objective=eval/heldout/text/loss:min", "--workdir=job"]
    assert launch("--workers=3", command=sweep) == 0
    of_array = dict(SLURM_ARRAY_JOB_ID="12", SLURM_ARRAY_TASK_ID=str(worker))
    code, _, requeued = run_job(fake, 143, ["143"], **of_array)
    assert code == 143 and requeued == [f"requeue 12_{worker}"]
    asked = (fake / "scontrol.arguments").read_text().splitlines()
    assert {line.split()[-1] for line in asked} == {f"12_{worker}"}
    assert (Path("job") / "launch" / "exits" / f"12_{worker}.verdict").exists()


@pytest.mark.parametrize(
    ("options", "command", "words"),
    [
        (["--processes=2"], ["doctor"], "--processes=2 does nothing without --on=local"),
        (["--workers=2"], ["doctor"], "--workers=2 does nothing without the command sweep"),
        (["--nodes=2"], ["quickstart"], "2 processes: `camelid quickstart` runs as one process"),
        ([], ["doctor", "--distributed"], "leave it out"),
        ([], ["doctor", "--jsn"], "takes no --jsn"),
        ([], ["trian"], "did you mean train?"),
        ([], ["chat", "runs/x"], "`camelid chat` cannot be launched"),
        ([], [], "no command is given"),
        (["--sbatch=--output=x"], ["doctor"], "--output is what camelid launch sets itself"),
        (["--sbatch=-N 3"], ["doctor"], "-N is what camelid launch sets itself"),
        (["--sbatch=-Jmine"], ["doctor"], "-Jmine is what camelid launch sets itself"),
        (["--sbatch=--ntasks=4"], ["doctor"], "--ntasks is what camelid launch sets itself"),
        (["--sbatch=--out=x"], ["doctor"], "--out is what camelid launch sets itself"),
        (["--sbatch=qos"], ["doctor"], "qos is no option"),
        (["--sbatch=-- x"], ["doctor"], "-- is what camelid launch sets itself"),
        (["--srun=--export=NONE"], ["doctor"], "--srun=--export=NONE: --export is what camelid launch sets itself"),
        (["--srun=-n 3"], ["doctor"], "-n is what camelid launch sets itself"),
        (["--srun=--mpi=none bash"], ["doctor"], "bash is no option of srun"),
        (["--setup=if true"], ["doctor"], "--setup=if true: bash cannot read it"),
        (["--setup=echo 'a"], ["doctor"], "bash cannot read it"),
        (["--setup=cat <<END"], ["doctor"], "bash cannot read it"),
        (["--setup= "], ["doctor"], "--setup= is empty"),
        (["--gpus_per_node=a100"], ["doctor"], "--gpus_per_node=a100: give a number, or a type and a number"),
        (["--gpus_per_node=-1"], ["doctor"], "--gpus_per_node=-1: give a number"),
        (["--gpus_per_node=8", "--tasks_per_node=3"], ["doctor"], "cannot be divided evenly among 3 processes: give"),
        (["--gpus_per_node=a100:1", "--tasks_per_node=2"], ["doctor"], "1 GPU of --gpus_per_node cannot be divided"),
        (["--partition=a b"], ["doctor"], "--partition=a b: give one word"),
        (["--account="], ["doctor"], "--account=: give one word"),
        (["--time=2 days"], ["doctor"], "--time=2 days: give minutes"),
        (["--time=2"], ["doctor"], "--time=2 is no longer than the notice of --signal_seconds=120"),
        (["--time=0-0:10:00", "--signal_seconds=600"], ["doctor"], "is no longer than the notice"),
        (["--name=a b"], ["doctor"], "--name=a b"),
        ([], ["train", "--config=missing.py", "--workdir=job"], "missing.py"),
        ([], ["sweep", "--workdir=job", "--workers=3"], "give it to launch"),
        ([], ["sweep", "--workdir=job", "--show"], "is not for a job"),
    ],
)
def test_a_mistake_is_told_before_anything_is_submitted(fake, options, command, words, capsys):
    assert launch(*options, command=command) == 2
    assert words in capsys.readouterr().err
    assert not (fake / "sbatch.arguments").exists() and not Path("job").exists()


def test_without_sbatch_the_job_file_is_written_and_the_command_to_submit_it_told(fake, capsys, monkeypatch):
    (fake / "sbatch").unlink()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert launch() == 0
    said = capsys.readouterr().out
    assert "is written and not submitted" in said and f"sbatch {fake.parent}/job/launch/job.sh" in said
    assert main(["launch", "--status=job"]) == 2


def test_what_sbatch_refuses_is_told_in_one_line(fake, capsys, monkeypatch):
    monkeypatch.setenv("FAKE_REFUSES", "Batch job submission failed: Invalid partition name specified")
    assert launch("--partition=nowhere") == 2
    assert "sbatch refused" in (said := capsys.readouterr().err) and "Invalid partition name" in said


def test_a_job_that_waits_or_runs_is_not_submitted_again(fake, capsys):
    assert launch() == 0
    (fake / "queue").write_text("PENDING|Resources\n")
    assert launch() == 2
    assert "job 12 on slurm is PENDING (Resources): `camelid launch --stop=" in capsys.readouterr().err
    assert main(["launch", "--stop=job"]) == 0
    assert (fake / "scontrol.arguments").read_text() == "12\n"
    (fake / "queue").unlink()
    assert launch() == 0


def test_the_state_and_the_end_of_a_job_are_told(fake, capsys):
    assert launch() == 0
    (fake / "queue").write_text("RUNNING|None\n")
    assert main(["launch", "--status=job"]) == 0
    assert ": RUNNING\n" in capsys.readouterr().out
    (fake / "queue").unlink()
    assert main(["launch", "--status=job"]) == 1
    assert "ended before the end of its first attempt" in capsys.readouterr().out
    run_job(fake, 143, ["143"])
    run_job(fake, 0, ["0"], restarts=1)
    assert main(["launch", "--follow=job"]) == 0
    assert "job 12 finished after 2 attempts" in capsys.readouterr().out
    run_job(fake, 2, ["2"])
    assert main(["launch", "--follow=job"]) == 2


# Whole jobs, where Slurm runs for these tests.

real = pytest.mark.skipif("CAMELID_TEST_SLURM" not in os.environ, reason="no Slurm for tests: see tests/slurm_here.sh")


@pytest.fixture
def job(arguments, tmp_path, monkeypatch):
    """job(name, *settings): submits a run of two tasks. Returns its work directory and the job's id."""
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"  # the last one counts
    monkeypatch.setenv("XLA_FLAGS", flags)
    submitted = []

    def submit(name, *settings) -> tuple[Path, str]:
        line = [
            *arguments("pretrain", tmp_path / name),
            "--config.total_steps=200",
            "--config.checkpoint.every_steps=20",
        ]
        options = ["--tasks_per_node=2", "--time=20", "--signal_seconds=60"]
        assert main(["launch", "--on=slurm", *options, "--", *line, *settings]) == 0
        submitted.append(read_last(tmp_path / name).id)
        return tmp_path / name, submitted[-1]

    yield submit
    subprocess.run(["scancel", *submitted])


def wait_for(workdir: Path, words: str) -> None:
    """Waits until the log of a job has the words."""
    log, end = workdir / "launch" / "log", time.monotonic() + 300
    while not log.exists() or words not in log.read_text():
        assert time.monotonic() < end, log.read_text() if log.exists() else "the job has not begun"
        time.sleep(0.1)


def state(run: Path) -> dict[str, bytes]:
    """The arrays of a run's last checkpoint: parameters and the optimiser's."""
    path, here = reading.find(run), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), reading.stored_shapes(path))
    leaves = jax.tree_util.tree_leaves_with_path(reading.load_part(path, shapes, ()))
    return {jax.tree_util.keystr(place): np.asarray(leaf).tobytes() for place, leaf in leaves}


@real
def test_a_run_that_is_requeued_twice_ends_as_an_undisturbed_one_bit_for_bit(job, capfd):
    """Once by `scontrol requeue`, and once because a task was killed."""
    disturbed, number = job("disturbed")
    undisturbed, _ = job("undisturbed")
    wait_for(disturbed, "step 30/200")
    subprocess.run(["scontrol", "requeue", number], check=True)
    wait_for(disturbed, "attempt 2")
    wait_for(disturbed, "step 70/200")
    tasks = subprocess.run(["scontrol", "listpids", f"{number}.0"], capture_output=True, text=True, check=True).stdout
    pid = next(int(line.split()[0]) for line in tasks.splitlines() if line.split()[-1] == "1")
    os.kill(pid, signal.SIGKILL)
    died = time.monotonic()
    wait_for(disturbed, "waits for its next attempt")
    assert time.monotonic() - died < 30
    for run in (disturbed, undisturbed):
        assert main(["launch", f"--follow={run}"]) == 0
    said = (disturbed / "launch" / "log").read_text()
    assert "camelid: another process of this run died" in said and "resuming from step" in said
    assert f"job {number} finished after 3 attempts" in capfd.readouterr().out
    found, expected = state(disturbed), state(undisturbed)
    assert found.keys() == expected.keys() and len(found) > 10
    assert [place for place in found if found[place] != expected[place]] == []


@real
def test_a_run_that_fails_is_not_requeued(job, capfd):
    run, number = job("failing", "--config.data.mixture.text.source=/nowhere.jsonl")
    assert main(["launch", f"--follow={run}"]) == 2
    assert f"job {number} failed (exit code 2" in capfd.readouterr().out


@real
def test_a_run_that_is_stopped_is_saved_and_not_requeued(job, capfd):
    run, number = job("stopped")
    wait_for(run, "step 30/200")
    assert main(["launch", f"--stop={run}"]) == 0
    assert main(["launch", f"--follow={run}"]) == 143
    assert f"job {number} was ended after 1 attempt" in capfd.readouterr().out
    assert reading.read_manifest(run)["step"] >= 30


@real
def test_a_worker_that_is_cancelled_or_requeued_leaves_the_others_alone(arguments, tmp_path):
    _, config, workdir, *_ = arguments("pretrain", tmp_path / "sweep")
    sweep = ["sweep", config, workdir, "--space=seed={0,1,2}", "--objective=eval/heldout/text/loss:min"]
    assert main(["launch", "--on=slurm", "--workers=3", "--", *sweep]) == 0
    number, launch = read_last(tmp_path / "sweep").id, tmp_path / "sweep" / "launch"
    attempts = lambda: [log.read_text().count("camelid: job") for log in sorted(launch.glob("log-*"))]  # noqa: E731
    shown = ["squeue", "--noheader", "--array", f"--jobs={number}", "--format=%i"]
    waiting = lambda: subprocess.run(shown, capture_output=True, text=True, check=True).stdout.split()  # noqa: E731
    try:
        wait_until(lambda: attempts() == [1, 1, 1])
        time.sleep(2)
        subprocess.run(["scancel", f"{number}_2"], check=True)  # the one whose id is that of the array
        subprocess.run(["scontrol", "requeue", f"{number}_1"], check=True)
        wait_until(lambda: attempts() == [1, 2, 1] and f"{number}_2" not in waiting())
        time.sleep(5)
        assert attempts() == [1, 2, 1] and set(waiting()) == {f"{number}_0", f"{number}_1"}
    finally:
        subprocess.run(["scancel", number])


def wait_until(holds) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)
