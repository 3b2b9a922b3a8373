"""Configs of several phases: each run goes on from the one before, wherever it was cut off, and the table says so."""

import itertools
import json
import shutil

import jax
import numpy as np
import pytest

import camelid
from camelid import checkpoints
from camelid.configs.base import base
from camelid.data.sources import Source
from camelid.evals.items import metrics_of
from camelid.evals.perplexity import of_cache, text_cache
from camelid.launch import phases
from camelid.launch.cli import main
from camelid.launch.quickstart import CONFIGS
from camelid.launch.recipes import RECIPES
from camelid.model.sharding import match, path_name
from camelid.settings.config_files import load_phases
from camelid.tests.train.test_resume import assert_same_bits, state_of
from camelid.train.loop import Interrupted
from camelid.train.run import Result

pytestmark = pytest.mark.usefixtures("one_device")
SMALL = [
    "--config.total_epochs=None",
    "--config.log_steps=1",
    "--config.eval_percent=100",
    "--config.checkpoint.every_steps=5",
]


@pytest.fixture(scope="module")
def arguments_of(corpus, pretrained):
    """arguments_of(config, workdir, *overrides, **arguments): a command of configs/adapt, from `pretrained`."""

    def line(name, workdir, *overrides, **arguments) -> list[str]:
        given = {"init_from": pretrained, "seq_len": 64, "batch_size": 16, "heldout": 0.1} | arguments
        values = ",".join(f"{key}={value}" for key, value in given.items())
        config = f"--config={CONFIGS}/adapt/{name}.py:{values}"
        cache = f"--config.data.cache_dir={corpus}/cache"
        return ["train", config, f"--workdir={workdir}", cache, *SMALL, *overrides]

    return line


@pytest.fixture(scope="module")
def domain(arguments_of, corpus, tmp_path_factory):
    """domain(workdir): the command of the domain recipe; 4 steps on documents and 8 on questions."""
    general = tmp_path_factory.mktemp("general") / "general.jsonl"
    general.write_text("\n".join(json.dumps({"text": f"Once, {n} llamas met."}) for n in range(40)))
    given = {"documents": corpus / "text.jsonl", "questions": corpus / "chat.jsonl", "general": general}

    def line(workdir) -> list[str]:
        steps = ["--config.phases.documents.total_steps=4", "--config.phases.questions.total_steps=8"]
        return arguments_of("domain", workdir, *steps, **given, template="chatml", rank=4, lr=2e-2)

    return line


@pytest.fixture(scope="module")
def adapted(domain, tmp_path_factory):
    """The directory of a finished domain recipe."""
    workdir = tmp_path_factory.mktemp("adapted")
    assert main(domain(workdir)) == 0
    return workdir


def test_the_table_is_of_the_model_before_between_and_after(adapted, pretrained, corpus):
    progress = json.loads((adapted / "phases.json").read_text())
    assert set(progress) == {
        f"heldout/{source}/{metric}"
        for source in ("documents", "questions", "general")
        for metric in ("loss", "perplexity", "bits_per_character")
    }
    questions = progress["heldout/questions/loss"]
    assert list(questions) == ["before", "documents", "questions"]
    assert questions["questions"] < 0.5 * questions["before"]
    for model, when, kind, file in (
        (pretrained, "before", "documents", corpus / "text.jsonl"),
        (adapted / "questions", "questions", "questions", corpus / "chat.jsonl"),
    ):
        llama = camelid.load(model)
        cache = text_cache(llama, Source(str(file), heldout=0.1), "heldout", f"{corpus}/cache")
        found = metrics_of(of_cache(llama, cache, seq_len=64, batch_size=16))
        for metric in ("loss", "bits_per_character"):
            said = progress[f"heldout/{kind}/{metric}"][when]
            assert said == pytest.approx(found[metric].value, rel=1e-3)


def test_the_second_phase_goes_on_with_the_adapters_of_the_first(adapted, pretrained, metrics):
    assert str(checkpoints.open(adapted / "questions").base.path) == str(pretrained)
    end, begin = metrics(adapted / "documents")[4], metrics(adapted / "questions")[0]
    measured = [name for name in begin if name.startswith("eval/")]
    assert len(measured) == 9
    assert [begin[name] for name in measured] == pytest.approx([end[name] for name in measured], rel=1e-5)


def test_a_command_that_was_cut_off_in_its_second_phase_goes_on_there_to_the_same_bits(adapted, domain, tmp_path):
    shutil.copytree(adapted, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "questions" / "checkpoints" / "8")
    (tmp_path / "again" / "phases.json").unlink()
    argv = [word.replace(str(adapted), str(tmp_path / "again")) for word in domain(adapted)]
    assert main(argv) == 0
    for file in ("phases.json", "documents/metrics.jsonl"):
        assert (tmp_path / "again" / file).read_text() == (adapted / file).read_text()
    assert_same_bits(state_of(tmp_path / "again" / "questions"), state_of(adapted / "questions"))


def test_a_phase_that_is_stopped_ends_the_command(tmp_path, monkeypatch):
    begun = []

    def recipe(run):
        begun.append((run.workdir.name, run.config.init_from, run.config.model.preset))
        if run.workdir.name == "second":
            raise Interrupted("SIGTERM ended the run", 15)
        return Result(None, {})

    monkeypatch.setitem(RECIPES, "pretrain", RECIPES["pretrain"]._replace(train=recipe))
    config = base()
    config.model.preset, config.total_steps = "nano-test", 8
    config.data.mixture.text = {"source": "text.jsonl", "format": "auto", "weight": 1.0}
    with pytest.raises(Interrupted):
        phases.run({name: config.copy_and_resolve_references() for name in ("first", "second", "third")}, tmp_path, {})
    assert begun == [("first", None, "nano-test"), ("second", str(tmp_path / "first"), None)]


def test_of_a_grown_vocabulary_embedding_and_head_learn_first_and_then_everything(
    arguments_of, corpus, pretrained, tmp_path
):
    argv = arguments_of("vocabulary", tmp_path, "--config.total_steps=2", source=corpus / "text.jsonl")
    assert main(argv) == 0
    found = [state_of(path)["params"] for path in (pretrained, tmp_path / "embeddings", tmp_path / "everything")]
    leaves = [{path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)} for params in found]
    moved = [
        {name for name in before if np.any(before[name] != after[name])} for before, after in itertools.pairwise(leaves)
    ]
    assert moved == [{"embed/embedding"}, set(leaves[0])]
    assert not match(load_phases(argv[1].removeprefix("--config="))["embeddings"].optim.frozen, "head/kernel")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--config.phases.questions.recipe=sfft", "config.recipe: 'sfft' is none of pretrain, sft"),
        ("--config.phases.question.optim.lr=1.0", "the config has no phase question; did you mean questions?"),
        ("--config.data.heldout=0.0", "config.data.mixture.questions: weight 0 and nothing held out"),
    ],
)
def test_a_mistake_is_found_before_the_first_phase(change, message, domain, tmp_path, capsys):
    assert main([*domain(tmp_path), change]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_batch_of_a_phase_is_shown(domain, tmp_path, capsys):
    _, config, _, *overrides = domain(tmp_path)
    assert main(["data", "show", config, *overrides, "--phase=questions", "--rows=1"]) == 0
    assert "Which colour has the" in capsys.readouterr().out
    assert main(["data", "show", config, *overrides, "--phase=question"]) == 2
    assert "--phase=question: the config has documents, questions" in capsys.readouterr().err
