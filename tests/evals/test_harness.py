"""lm-evaluation-harness with our models: its Hugging Face backend's numbers at any batch and mesh, served or resumed.

golden/harness.json holds that backend's answers (`golden/make_harness.py`), for a small random model.
"""

import json
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import jax
import pytest
import uvicorn
import yaml

import camelid
from camelid.benchmarks.eval_parity import CHAT
from camelid.benchmarks.eval_tasks import write_tasks
from camelid.errors import UserError
from camelid.evals.items import metrics_of
from camelid.evals.kept import AnswerFile, KeptLM
from camelid.evals.lm import LocalLM, ServedLM
from camelid.model.sharding import make_mesh
from camelid.serve.api import Server, make_app
from camelid.serve.completions import Served
from camelid.serve.engine import Engine
from camelid.tests.evals.golden.make_harness import DOCUMENTS, FILE
from camelid.tests.evals.small_model import write_model

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'camelid[eval]'")

from camelid.evals.harness import harness, run_tasks

GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tasks")


@pytest.fixture(scope="module")
def names(folder) -> list[str]:
    return write_tasks(folder, DOCUMENTS)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(path):
    return camelid.load(path)


@pytest.fixture(scope="module")
def found(model, names, folder):
    """All tasks with the default settings."""
    return run_tasks(model, names, include=[folder])


class Counted(LocalLM):
    """A model that counts what it is asked."""

    asked = 0

    def loglikelihoods(self, requests):
        self.asked += len(requests)
        return super().loglikelihoods(requests)

    def generate(self, prompts, **how):
        self.asked += len(prompts) * how["n"]
        return super().generate(prompts, **how)


def answers_of(results) -> dict:
    shown = {item.id: item.shown["answer"] for item in results.items if item.shown}
    return {name: answer if isinstance(answer, list) else [answer] for name, answer in shown.items()}


def assert_as_golden(results, kind: str, tasks: Sequence[str] | None = None) -> None:
    """Each log-probability to 1e-4, each text, and each metric, of all tasks or of some."""

    def some(found: dict) -> dict:
        return {name: each for name, each in found.items() if tasks is None or {*name.split("/")} & {*tasks}}

    wanted = {what: some(GOLDEN[kind][what]) for what in ("answers", "metrics")}
    answers = answers_of(results)
    assert answers.keys() == wanted["answers"].keys()
    for name, expected in wanted["answers"].items():
        for answer, other in zip(answers[name], expected, strict=True):
            if isinstance(other, str):
                assert answer == other, name
            elif isinstance(other, float):
                assert answer == pytest.approx(other, abs=1e-4, rel=1e-6), name
            else:
                assert answer[0] == pytest.approx(other[0], abs=1e-4, rel=1e-6) and answer[1] == other[1], name
    metrics = results.metrics()
    for name, value in wanted["metrics"].items():
        assert metrics[name].value == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_each_item_and_metric_is_that_of_the_hugging_face_backend(found):
    assert_as_golden(found, "text")


def test_in_the_chat_template_too(model, names, folder):
    assert_as_golden(run_tasks(model, CHAT, include=[folder], chat=True), "chat")


SOME = ["parity_letters", "parity_texts", "parity_answers"]


@pytest.mark.parametrize(("batch", "devices"), [(1, 1), (32, 1), (8, 8)])
def test_batch_and_mesh_change_no_metric(path, folder, names, found, batch, devices):
    mesh = make_mesh({"data": devices}, jax.devices()[:devices])
    other = run_tasks(camelid.load(path, mesh=mesh), SOME, include=[folder], batch_size=batch)
    assert_as_golden(other, "text", SOME)
    alike = [item.scores for item in found.items if item.groups[0] in ("parity_letters", "parity_answers")]
    assert [item.scores for item in other.items if item.groups[0] in ("parity_letters", "parity_answers")] == alike


@pytest.fixture(scope="module")
def address(model):
    """Where a server of the model listens."""
    listener = socket.create_server(("127.0.0.1", 0))
    served = Served("small", model, Engine(model, rows=4, chunk=16), {})
    running = uvicorn.Server(uvicorn.Config(make_app(Server({"small": served})), log_level="error"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    running.should_exit = True
    thread.join()


def test_our_server_gives_the_same(address, folder, names):
    lm = ServedLM(address)
    assert_as_golden(run_tasks(lm, SOME, include=[folder]), "text", SOME)
    assert_as_golden(run_tasks(lm, CHAT[:2], include=[folder], chat=True), "chat", CHAT[:2])


def test_a_broken_run_goes_on_where_it_was(path, names, folder, tmp_path, found, monkeypatch):
    monkeypatch.setattr("camelid.evals.kept.BATCH_LIKELIHOODS", 16)
    whole, file, batches = Counted(camelid.load(path)), AnswerFile(tmp_path / "kept.sqlite"), []

    def break_off(*told):
        batches.append(told)
        if len(batches) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tasks(KeptLM(whole, file, break_off), names, include=[folder])
    first, kept = whole.asked, KeptLM(whole, file)
    again = run_tasks(kept, names, include=[folder])
    assert first == 48 and answers_of(again) == answers_of(run_tasks(kept, names, include=[folder]))
    alone = Counted(camelid.load(path))
    run_tasks(KeptLM(alone, None), names, include=[folder])
    assert whole.asked == alone.asked  # nothing twice
    assert_as_golden(again, "text")


def test_documents_are_items_with_intervals(found):
    letters = [item for item in found.items if "parity_letters" in item.groups]
    accuracy = metrics_of(letters)["acc/parity_letters"]
    assert accuracy.n == accuracy.clusters == DOCUMENTS and accuracy.low < accuracy.value < accuracy.high
    assert letters[0].shown["choices"] == [" A", " B", " C"] and letters[0].shown["prompt"].endswith("Answer:")
    bits = found.metrics()["bits_per_byte/parity_texts"]
    assert bits.low < bits.value < bits.high and bits.n == DOCUMENTS
    assert found.tasks["parity_choices"]["shots"] == 2 and found.library.startswith("0.4")


def test_the_evaluation_of_a_run_has_the_metrics_that_are_no_means(model, folder, names):
    items = harness(model, tasks="parity_texts, parity_letters", include=str(folder), limit=3)
    metrics = metrics_of(items)
    assert metrics["acc/parity_letters"].n == 3 and metrics["byte_perplexity/parity_texts"].value > 1


def test_groups_weigh_documents_or_tasks_as_they_say(model, names, folder, tmp_path):
    lines = (folder / "choices.jsonl").read_text().splitlines()[:4]
    (tmp_path / "few.jsonl").write_text("\n".join(lines))
    task = yaml.safe_load((folder / "parity_letters.yaml").read_text())
    few = task | {"task": "few_letters", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "few.jsonl")}}}
    (tmp_path / "few_letters.yaml").write_text(yaml.safe_dump(few))
    for name, by_size in (("by_size", True), ("by_task", False)):
        aggregated = [{"metric": "acc", "weight_by_size": by_size}]
        group = {"group": name, "task": ["parity_letters", "few_letters"], "aggregate_metric_list": aggregated}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(group))
    for name, sizes in (("by_size", (DOCUMENTS, 4)), ("by_task", (1, 1))):
        results = run_tasks(model, [name], include=[folder, tmp_path])
        metrics = results.metrics()
        both = [metrics[f"acc/{task}"].value for task in ("parity_letters", "few_letters")]
        expected = sum(value * size for value, size in zip(both, sizes, strict=True)) / sum(sizes)
        assert both[0] != both[1] and metrics[f"acc/{name}"].value == pytest.approx(expected)
        assert (f"acc/{name}" in results.corpus) == (name == "by_task")


SAMPLED = {
    "task": "sampled",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "x",
    "repeats": 4,
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": True, "temperature": 1.0, "top_p": 0.9},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "filter_list": [{"name": "maj", "filter": [{"function": "majority_vote"}, {"function": "take_first"}]}],
    "metadata": {"version": 1.0},
}


def write_sampled(folder: Path, into: Path, **settings) -> list[Path]:
    files = {"dataset_kwargs": {"data_files": {"test": str(folder / "choices.jsonl")}}}
    into.joinpath("sampled.yaml").write_text(yaml.safe_dump(SAMPLED | files | settings))
    return [into]


def test_samples_differ_and_neither_batch_nor_restart_changes_them(path, folder, names, tmp_path, monkeypatch):
    include = write_sampled(folder, tmp_path)
    monkeypatch.setattr("camelid.evals.harness_model.BLOCK", 2)
    monkeypatch.setattr("camelid.evals.kept.BATCH_ANSWERS", 2)
    lm, file = Counted(camelid.load(path)), AnswerFile(tmp_path / "kept.sqlite")
    one = answers_of(run_tasks(lm, ["sampled"], include=include, limit=2))
    asked = lm.asked
    assert asked == 8 and all(len(set(texts)) > 2 for texts in one.values())
    with pytest.raises(KeyboardInterrupt):
        run_tasks(KeptLM(lm, file, _interrupt), ["sampled"], include=include, limit=2)
    assert answers_of(run_tasks(KeptLM(lm, file), ["sampled"], include=include, limit=2)) == one
    assert lm.asked == 2 * asked
    few = run_tasks(LocalLM(camelid.load(path), 1), ["sampled"], include=include, limit=1)
    assert answers_of(few)["sampled/0"] == one["sampled/0"]
    other = run_tasks(lm, ["sampled"], include=include, limit=1, seed=1)
    assert answers_of(other)["sampled/0"] != one["sampled/0"]


def _interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_beams": 4}, "num_beams=4: only until"),
        ({"do_sample": True}, "samples at temperature 0"),
        ({"max_gen_toks": 500}, "answers of 500 tokens, the model's context has 320"),
    ],
)
def test_a_generation_setting_that_cannot_hold_is_refused(model, folder, names, tmp_path, settings, said):
    include = write_sampled(folder, tmp_path, generation_kwargs={"until": ["\n"]} | settings)
    with pytest.raises(UserError, match=said):
        run_tasks(model, ["sampled"], include=include, limit=1)


def test_a_mistake_in_a_name_is_told(model, folder, names, tmp_path):
    with pytest.raises(UserError, match="no folder"):
        run_tasks(model, ["parity_letters"], include=[tmp_path / "none"])
    with pytest.raises(UserError, match="no tasks are given"):
        harness(model, tasks=" , ")
    missing = {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "none.jsonl")}}}
    (tmp_path / "sampled.yaml").write_text(yaml.safe_dump(SAMPLED | missing))
    with pytest.raises(UserError, match=r"sampled cannot be loaded: .*none.jsonl"):
        run_tasks(model, ["sampled"], include=[tmp_path])


def test_programs_run_only_if_that_is_allowed(model, folder, names, tmp_path):
    include = write_sampled(folder, tmp_path, unsafe_code=True)
    with pytest.raises(UserError, match=r"task sampled runs programs .* --allow_code"):
        run_tasks(model, ["sampled"], include=include, limit=1)
