"""What a config reads and is not there, told before a job with it waits in a queue."""

import re
import shutil

import pytest

from camelid.evals.registry import Evaluations
from camelid.launch.cli import main
from camelid.launch.inputs import missing_inputs
from camelid.settings.config_files import load_phases

PHASES = """
from camelid.configs.ppo import primer as ppo
from camelid.configs.sft import primer as sft

def get_config(arg=None):
    c = ppo.get_config("init_from=runs/nope,reward=runs/x/reward")
    c.critic.init_from = "runs/other"
    c.phases = [("first", {"critic.init_from": None}), ("second", {})]
    return c
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the run runs/sft, where commands are given."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "sft").mkdir(parents=True)
    return tmp_path


def missing(name, *flags, leave_out=()) -> list[tuple[str, bool]]:
    """(leaf and value, whether it is certain) of each missing input of a config."""
    phases = load_phases(name, [f"--config.{flag}" for flag in flags])
    found = missing_inputs(phases, Evaluations(), "runs/x", leave_out)
    return [(re.match(r".*? = '.*?'", each.problem)[0], each.certain) for each in found]


@pytest.mark.parametrize(
    ("name", "flags", "found"),
    [
        ("sft/primer:init_from=runs/sft", [], []),
        ("sft/primer:init_from=runs/nope", [], ["init_from = 'runs/nope'"]),
        ("sft/primer:init_from=hf:nope", [], ["init_from = 'hf:nope'"]),
        ("sft/primer:init_from=runs/nope@best", [], ["init_from = 'runs/nope@best'"]),
        ("sft/primer:init_from=runs/sft,source=data/*.jsonl", [], ["data.mixture.primer.source = 'data/*.jsonl'"]),
        ("sft/primer:init_from=runs/sft,source=primer:chats", [], ["data.mixture.primer.source = 'primer:chats'"]),
        ("ppo/primer:init_from=runs/sft,reward=runs/rm", [], ["reward.sources.proxy.model = 'runs/rm'"]),
        (
            "sft/primer:init_from=runs/sft",
            ["evals.exam.use=choices", "evals.exam.file=exams/*.jsonl"],
            ["evals.exam.file = 'exams/*.jsonl'"],
        ),
    ],
)
def test_models_data_and_files_of_evaluations_are_looked_for(folder, name, flags, found):
    assert missing(name, *flags) == [(f"config.{each}", True) for each in found]


def test_a_name_that_the_hub_may_know_is_not_certain_and_addresses_are_left_to_the_run(folder):
    assert missing("sft/primer:init_from=owner/model") == [("config.init_from = 'owner/model'", False)]
    assert missing("sft/primer:init_from=hf:owner/model") == missing("sft/primer:init_from=gs://bucket/run") == []


def test_what_an_earlier_phase_makes_and_what_a_sweep_sets_is_not_missing(folder):
    (folder / "phases.py").write_text(PHASES)
    found = [each for each, _ in missing(str(folder / "phases.py"))]
    assert found == [
        "phase first: config.init_from = 'runs/nope'",
        "phase first: config.reward.sources.proxy.model = 'runs/x/reward'",
        "phase second: config.critic.init_from = 'runs/other'",
    ]
    assert missing("sft/primer:init_from=runs/nope", leave_out=["init_from"]) == []


@pytest.mark.parametrize(
    ("options", "tokenizer", "refused"),
    [
        (["--on=local"], "nope", True),
        (["--on=local"], "/else/nope", True),
        (["--on=slurm"], "nope", True),
        (["--on=slurm"], "/else/nope", False),  # perhaps a disk of the nodes
        (["--on=slurm", "--sbatch=--dependency=afterok:7"], "nope", False),  # which job 7 may make
    ],
)
def test_a_job_is_refused_where_it_would_miss_what_is_missing_here(
    folder, monkeypatch, capsys, options, tokenizer, refused
):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    train = ["train", f"--config=pretrain/primer:tokenizer={tokenizer}", "--workdir=runs/new"]
    assert main(["launch", *options, "--dry_run", "--", *train]) == (2 if refused else 0)
    said = capsys.readouterr()
    assert f"config.tokenizer = '{tokenizer}': no tokenizer at {tokenizer}" in said.err
    assert ("the job fails unless it is there" in said.err) == (not refused) == bool(said.out)
