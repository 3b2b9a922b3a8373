"""The task files of LLaMA's protocol, on local documents: prompts as in the paper, and its scores against loops."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

import camelid
from camelid.errors import UserError
from camelid.evals.lm import Likelihood, LocalLM, encode_pair
from camelid.tests.evals.small_model import write_model

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'camelid[eval]'")

import lm_eval

from camelid.evals.harness import OWN_TASKS, run_tasks
from camelid.evals.harness_tasks import llama

LIBRARY = Path(lm_eval.__file__).parent / "tasks"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


class Scripted:
    """A model that likes continuations as a function says, and answers from a list."""

    name, max_len, begin, eos_id, prefix_id = "scripted", 4096, (), 0, 0

    def __init__(self, answers: Sequence[str] = (), likes=lambda context, continuation: 0.0):
        self.answers, self.likes, self.prompts, self.settings = list(answers), likes, [], []

    def encode(self, text, *, special=False):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode()

    def loglikelihoods(self, requests):
        return [Likelihood(self.likes(*map(self.decode, request)), False) for request in requests]

    def generate(self, prompts, **how):
        self.prompts += map(self.decode, prompts)
        self.settings.append(how)
        return [[self.answers.pop(0) for _ in range(how["n"])] for _ in prompts]

    def describe(self):
        return {"name": self.name}


def localised(folder: Path, name: str, documents: Mapping[str, Sequence[Mapping]], kind: str = "task") -> dict:
    """Arguments of `run_tasks` for a task file of ours whose documents are local. documents: rows of each split."""
    files = {}
    for split, rows in documents.items():
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    local = {"include": str(OWN_TASKS / f"{name}.yaml"), kind: f"local_{name}", "dataset_path": "json"}
    local |= {"dataset_name": None, "dataset_kwargs": {"data_files": files}}
    (folder / "local.yaml").write_text(yaml.safe_dump(local))
    return {"tasks": [f"local_{name}"], "include": [folder]}


# Choices --------------------------------------------------------------------------------------------------------------

BOOLQ = [
    {"passage": f"The {animal} is {colour}. It sleeps.", "question": f"is the {animal} {asked}", "label": label}
    for animal, colour, asked, label in (
        ("fox", "red", "red", 1),
        ("owl", "white", "black", 0),
        ("bee", "yellow", "yellow", 1),
        ("wolf", "grey", "green", 0),
        ("wolf", "grey", "grey", 1),
    )
]


def test_boolq_divides_by_the_likelihood_after_answer_alone(tmp_path):
    lm = LocalLM(camelid.load(write_model(tmp_path / "model")))
    local = localised(tmp_path, "llama_boolq", {"train": BOOLQ[:1], "validation": BOOLQ})
    results = run_tasks(lm, **local)
    alone = np.array(
        [each.logp for each in lm.loglikelihoods([encode_pair(lm, "Answer:", x) for x in (" no", " yes")])]
    )
    for item, doc in zip(results.items, BOOLQ, strict=True):
        prompt = f"{doc['passage']}\nQuestion: {doc['question']}?\nAnswer:"
        assert item.shown["prompt"] == prompt
        asked = [each.logp for each in lm.loglikelihoods([encode_pair(lm, prompt, x) for x in (" no", " yes")])]
        assert item.scores["acc"] == float(np.argmax(asked) == doc["label"])
        assert item.scores["acc_norm"] == float(np.argmax(np.array(asked) / [2, 3]) == doc["label"])
        assert item.scores["acc_answer_only"] == float(np.argmax(asked - alone) == doc["label"])
    accuracy = results.metrics()["acc_answer_only/local_llama_boolq"]
    assert accuracy.n == 5 and accuracy.clusters == 4  # two questions about one passage


def test_the_librarys_mutual_information_is_not_that_of_the_paper(tmp_path):
    def likes(context: str, continuation: str) -> float:
        after = {"Answer:": {" no": -1.0, " yes": -5.0}, "\0": {" no": -5.0, " yes": -1.0}}
        return after.get(context, {" no": -2.0, " yes": -3.0})[continuation]

    local = localised(tmp_path, "llama_boolq", {"train": BOOLQ[:1], "validation": BOOLQ[:1]})
    assert run_tasks(Scripted(likes=likes), **local).items[0].scores["acc_answer_only"] == 1.0  # yes: -3 + 5 > -2 + 1
    task = yaml.safe_load((tmp_path / "local.yaml").read_text()) | {"task": "librarys"}
    plain = {"class": None, "process_results": None, "metric_list": [{"metric": "acc_mutual_info"}]}
    own = {
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "doc_to_text": "{{passage}}\nAnswer:",
        "doc_to_target": "label",
        "doc_to_choice": ["no", "yes"],
    }
    task = {
        key: value for key, value in (task | own | plain).items() if key not in ("class", "process_results", "include")
    }
    (tmp_path / "local.yaml").write_text(yaml.safe_dump(task))
    found = run_tasks(Scripted(likes=likes), ["librarys"], include=[tmp_path])
    assert found.items[0].scores["acc_mutual_info"] == 0.0  # after nothing at all: no


def test_openbookqa_has_four_choices_against_answer_alone(tmp_path):
    texts = ["the sun", "a rock", "an ice cube", "water"]
    doc = {"question_stem": "What warms the earth", "choices": {"text": texts, "label": list("ABCD")}, "answerKey": "C"}
    logp = (-4, -2, -7, -6), (-4, -2, -9, -5.5)
    given = {f" {text}": (asked, alone) for text, asked, alone in zip(texts, *logp, strict=True)}

    def likes(context: str, continuation: str) -> float:
        return float(given[continuation][context == "Answer:"])

    local = localised(tmp_path, "llama_openbookqa", {"train": [doc], "validation": [doc], "test": [doc]})
    (item,) = run_tasks(Scripted(likes=likes), **local).items
    assert item.shown["prompt"] == "Question: What warms the earth\nAnswer:"
    # -4 + 4, -2 + 2, -7 + 9, -6 + 5.5: the third; per character -4/7, -2/6, -7/11, -6/5: the second; plainly the second
    assert item.scores == {"acc_answer_only": 1.0, "acc": 0.0, "acc_norm": 0.0}


def test_race_compares_options_per_character_and_clusters_by_article(tmp_path):
    options = ["ab", "a longer option", "c", "d"]
    docs = [
        {
            "example_id": f"middle{n // 2}",
            "article": "A text.",
            "question": "Why?",
            "options": options,
            "answer": answer,
        }
        for n, answer in enumerate("BABA")
    ]
    local = localised(tmp_path, "llama_race_middle", {"test": docs})
    lm = Scripted(likes=lambda _, continuation: -(float(len(continuation)) ** 0.5))
    results = run_tasks(lm, **local)
    metrics = results.metrics()
    assert results.items[0].shown["prompt"] == "A text.\n\nQuestion: Why?\nAnswer:"
    assert (
        metrics["acc_norm/local_llama_race_middle"].value == 0.5 and metrics["acc/local_llama_race_middle"].value == 0
    )
    assert metrics["acc_norm/local_llama_race_middle"].clusters == 2


# Closed-book questions ------------------------------------------------------------------------------------------------


def test_natural_questions_has_the_papers_prompt_and_normalisation(tmp_path):
    asked = [{"question": "who sang the song", "answer": ["Frank Sinatra", "Celeste Holm"]}] * 3
    example = {"question": "where is it", "answer": ["Rome", "in Rome"]}
    local = localised(tmp_path, "llama_nq", {"train": [example], "validation": asked})
    lm = Scripted(["  the frank  sinatra"])  # greedy: asked once
    results = run_tasks(lm, **local, shots=1)
    assert lm.prompts == ["Answer these questions:\nQ: where is it?\nA: Rome\nQ: who sang the song?\nA:"]
    assert lm.settings[0]["stop"] == ["\n", ".", ","] and lm.settings[0]["temperature"] == 0
    assert [item.scores["exact_match"] for item in results.items] == [1.0] * 3


def test_triviaqa_takes_any_alias(tmp_path):
    answer = {"value": "House", "aliases": ["A House", "hut", "Cottage"]}
    docs = [{"question": f"In Scotland a bothy number {n} is a?", "answer": answer} for n in range(2)]
    local = localised(tmp_path, "llama_triviaqa", {"train": docs, "validation": docs})
    results = run_tasks(Scripted([" HUT!", " castle"]), **local)
    assert sorted(item.scores["exact_match"] for item in results.items) == [0.0, 1.0]
    assert results.items[0].shown["prompt"] == "Answer these questions:\nQ: In Scotland a bothy number 0 is a?\nA:"


# Majority voting ------------------------------------------------------------------------------------------------------


def test_a_majority_is_the_most_frequent_answer_that_could_be_read():
    assert llama.majority(["3", llama.INVALID, "4", "4", llama.INVALID, llama.INVALID]) == "4"
    assert llama.majority(["5", "6", "6", "5"]) == "5"
    assert llama.majority([llama.INVALID] * 3) == llama.INVALID


def test_gsm8k_votes_among_a_hundred_samples_and_among_the_first_forty(tmp_path):
    doc = {"question": "How many ducks?", "answer": "9 + 9 = 18\n#### 18"}
    local = localised(tmp_path, "llama_gsm8k_maj100", {"train": [doc], "test": [doc]}, kind="group")
    local["include"] = [LIBRARY / "gsm8k", tmp_path]
    answers = ["So 5 + 5. The answer is 10."] * 30 + ["no idea"] * 10 + ["9 + 9. The answer is $18."] * 60
    lm = Scripted(answers)
    (item,) = run_tasks(lm, **local).items
    assert item.scores == {"exact_match,maj@100": 1.0, "exact_match,maj@40": 0.0}
    assert {(how["temperature"], how["top_p"]) for how in lm.settings} == {(0.6, 0.95)} and not lm.answers
    assert lm.prompts[0].count("Q: ") == 9  # eight examples


def test_math_takes_the_solution_whose_answer_is_that_of_the_majority():
    pytest.importorskip("math_verify", reason="needs pip install 'lm-eval[math]'")
    said = "Final Answer: The final answer is ${}$. I hope it is correct."
    solutions = [
        said.format("3"),
        "I give up",
        said.format("\\frac12"),
        "So " + said.format("\\frac{1}{2}"),
        "??",
        "??",
    ]
    assert llama.math_majorities([solutions], [{}]) == [solutions[2]]


# Programs -------------------------------------------------------------------------------------------------------------

PROBLEM = {
    "task_id": "local/0",
    "prompt": 'def add(a, b):\n    """The sum."""\n',
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n    assert candidate(-1, 1) == 0\n",
    "entry_point": "add",
}


def test_humaneval_estimates_pass_at_k_from_samples_that_ran(tmp_path):
    local = localised(tmp_path, "llama_humaneval", {"test": [PROBLEM]})
    right, wrong = "    return a + b", "    return a - b"
    hostile = ["    import os\n    os._exit(0)", "    raise SystemExit", "    while True:\n        pass", "", "    ("]
    lm = Scripted([right, wrong, *hostile, right, wrong, right])
    with pytest.raises(UserError, match="--allow_code"):
        run_tasks(lm, **local)
    (item,) = run_tasks(lm, **local, allow_code=True).items
    assert item.scores == pytest.approx({"pass@1": 0.3, "pass@10": 1.0})
    assert lm.prompts == [PROBLEM["prompt"]] and lm.settings[0]["temperature"] == 0.1


def test_mbpp_has_three_examples_and_runs_its_tests(tmp_path):
    def problem(number: int) -> dict:
        tests = [f"assert plus(1, {n}) == {n + 1}" for n in range(3)]
        code = "def plus(a, b):\n    return a + b"
        return {"task_id": number, "text": f"Write problem {number}.", "code": code, "test_list": tests}

    local = localised(tmp_path, "llama_mbpp", {"test": [problem(11)], "prompt": [problem(n) for n in range(1, 11)]})
    answer = problem(11)["code"]
    lm = Scripted([answer, f"```python\n{answer}\n```", "def plus(a, b):\n    return 0", *["pass"] * 7])
    (item,) = run_tasks(lm, **local, allow_code=True).items
    assert item.scores["pass@1"] == pytest.approx(0.2)
    (prompt,) = lm.prompts
    assert [f"problem {n}." in prompt for n in (1, 2, 3, 4, 5, 11)] == [False, True, True, True, False, True]
    assert prompt.count("[DONE]") == 3 and prompt.endswith("assert plus(1, 2) == 3\n[BEGIN]\n")


# Files ----------------------------------------------------------------------------------------------------------------


def test_groups_name_tasks_that_the_library_has():
    from lm_eval.tasks._index import TaskIndex

    folders = ["piqa", "siqa", "hellaswag", "winogrande", "arc", "gsm8k", "minerva_math", "mmlu/default", "crows_pairs"]
    there = TaskIndex.build([OWN_TASKS, *(LIBRARY / each for each in [*folders, "winogender", "truthfulqa"])])
    groups = [entry for name, entry in there.items() if name.startswith("llama_") and "group" in (entry.cfg or {})]
    assert len(groups) >= 7
    for group in groups:
        members = [each["task"] if isinstance(each, dict) else each for each in group.cfg["task"]]
        assert members and set(members) <= there.keys(), group.name


def test_samples_and_temperatures_are_those_of_the_paper():
    from lm_eval.tasks._yaml_loader import load_yaml

    def of(name: str) -> tuple[int, float]:
        config = load_yaml(OWN_TASKS / f"llama_{name}.yaml")
        return config["repeats"], config["generation_kwargs"]["temperature"]

    assert of("gsm8k_maj100") == (100, 0.6) and of("math_maj256") == (256, 0.6)
    assert of("humaneval")[1] == of("mbpp")[1] == 0.1 and of("humaneval_100")[1] == of("mbpp_80")[1] == 0.8
    assert of("humaneval_100")[0] >= 100 and of("mbpp_80")[0] >= 80
