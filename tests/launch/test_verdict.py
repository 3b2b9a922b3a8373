"""What follows from the exit codes of an attempt: the table of docs/launching.md."""

import pytest

from camelid.launch.launching import verdict
from camelid.launch.launching.verdict import judge, judge_attempt, read_verdicts


@pytest.mark.parametrize(
    ("code", "said", "word"),
    [
        (0, ["0", "0"], "finished"),
        (0, ["0"], "failed"),  # srun says 0, and one of two processes never started
        (0, [], "failed"),
        (0, ["0", "143"], "failed"),
        (129, ["129", "129"], "again"),
        (130, ["130", "130"], "again"),
        (143, ["143", "143"], "again"),
        (143, ["143"], "again"),
        (137, ["lost"], "again"),
        (137, [], "again"),
        (1, ["lost", "lost"], "again"),
        (1, ["lost"], "again"),
        (1, ["lost", "1"], "failed"),  # one failed by itself, and the other one lost it
        (1, ["1", "1"], "failed"),
        (1, [], "failed"),
        (2, ["2", "2"], "failed"),
        (139, ["lost"], "failed"),
    ],
)
def test_the_exit_code_and_what_processes_said_decide(code, said, word):
    found = judge(code, said, 2, restarts=0, most=100, stuck=False)
    assert found.word == word
    assert (found.code == 0) == (word == "finished")


def test_the_largest_number_of_restarts_is_kept():
    assert judge(143, [], 1, restarts=4, most=5, stuck=False).word == "again"
    found = judge(143, [], 1, restarts=5, most=5, stuck=False)
    assert found.word == "failed" and found.code == 143 and "restarted 5 times" in found.reason


def attempt(folder, code, restarts):
    return judge_attempt(code, folder / "launch" / "exits" / "7", folder, 1, restarts=restarts, most=100).word


def test_attempts_that_are_killed_without_a_new_checkpoint_between_them_end_the_job(tmp_path):
    (tmp_path / "launch" / "exits").mkdir(parents=True)
    checkpoints = tmp_path / "sft" / "checkpoints"
    assert [attempt(tmp_path, 137, i) for i in range(2)] == ["again", "again"]
    (checkpoints / "20").mkdir(parents=True)
    assert [attempt(tmp_path, 137, i) for i in range(2, 4)] == ["again", "again"]
    assert attempt(tmp_path, 143, 4) == "again"  # saved: the count begins anew
    assert [attempt(tmp_path, 137, i) for i in range(5, 8)] == ["again", "again", "failed"]
    found, attempts = read_verdicts(tmp_path / "launch", "7")[0]
    assert found.word == "failed" and f"{verdict.KILLS} times in a row" in found.reason and attempts == 8


def test_files_that_no_process_wrote_do_not_disturb_a_verdict(tmp_path):
    exits = tmp_path / "launch" / "exits" / "7"
    exits.mkdir(parents=True)
    (exits / "0").write_text("0")
    (exits / ".nfs000000000001").write_text("")  # of a file that NFS deletes once it is closed
    (tmp_path / "checkpoints").write_text("no folder")
    assert attempt(tmp_path, 0, 0) == "finished" and attempt(tmp_path, 137, 0) == "again"


def test_the_trials_of_a_sweep_count_as_progress(tmp_path):
    before = verdict.hash_of_checkpoints(tmp_path)
    step = tmp_path / "trials" / "0007" / "checkpoints" / "12"
    step.mkdir(parents=True)
    after = verdict.hash_of_checkpoints(tmp_path)
    (step.parent / ".saving").mkdir()
    assert before != after == verdict.hash_of_checkpoints(tmp_path)


def test_a_job_file_calls_it_as_a_program(tmp_path, capsys):
    exits = tmp_path / "exits" / "7"
    exits.mkdir(parents=True)
    for number in range(12):
        (exits / str(number)).write_text("0")
    arguments = [f"--exits={exits}", f"--workdir={tmp_path}", "--processes=12", "--restarts=0", "--most=1"]
    assert verdict.main(["--code=0", *arguments]) == 0
    assert capsys.readouterr() == ("finished\n", "camelid: finished\n")
    assert verdict.main(["--code=2", *arguments]) == 2
    assert capsys.readouterr().out == "failed\n"


def test_the_first_word_of_a_process_on_how_it_ended_stays(tmp_path, monkeypatch):
    monkeypatch.setenv(verdict.EXIT_FILE, str(tmp_path / "0"))
    verdict.write_exit(verdict.LOST)
    verdict.write_exit("1")
    assert verdict.read_exits(tmp_path) == ["lost"]
