"""What the task files of LLaMA's protocol need beyond YAML (arXiv:2302.13971, section 3).

lm-evaluation-harness imports this file when it loads one of the tasks.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from ..answer_metrics import exact
from ..code_execution import pass_at_k, run_programs

ANSWER_ONLY = "Answer:"
INVALID = "[invalid]"
"""What the library's regex filter gives for an answer that it cannot read."""


# Choices --------------------------------------------------------------------------------------------------------------


class AnswerOnly(ConfigurableTask):
    """A task with choices that also asks for the likelihood of each choice after "Answer:" alone.

    The library's own `acc_mutual_info` divides by the likelihood after nothing at all, which is another number.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__(config={name: value for name, value in config.items() if name != "class"})

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        asked = super().construct_requests(doc, ctx, **kwargs)
        alone = [(ANSWER_ONLY, request.arguments[1]) for request in asked]
        about = {"metadata": kwargs["metadata"]}
        return asked + [
            Instance(request_type="loglikelihood", doc=doc, arguments=pair, idx=len(asked) + i, **about)
            for i, pair in enumerate(alone)
        ]


def answer_only(choices: Sequence[str], gold: int, results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """The three accuracies of a question: by likelihood, per character, and against "Answer:" alone.

    results: (log-probability, is greedy) of each choice after the question, then of each after "Answer:".
    """
    logp_2C = np.array([logp for logp, _ in results])
    asked_C, alone_C = np.split(logp_2C, 2)
    sizes_C = np.array([len(choice) for choice in choices])
    found = {"acc": asked_C, "acc_norm": asked_C / sizes_C, "acc_answer_only": asked_C - alone_C}
    return {metric: float(np.argmax(values_C) == gold) for metric, values_C in found.items()}


def boolq(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """The accuracies of a BoolQ question."""
    return answer_only(("no", "yes"), doc["label"], results)


def openbookqa(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """The accuracies of an OpenBookQA question."""
    choices = doc["choices"]
    return answer_only(choices["text"], choices["label"].index(doc["answerKey"].strip()), results)


# Closed-book questions ------------------------------------------------------------------------------------------------


def natural_questions(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether an answer is one of those that Natural Questions lists."""
    return {"exact_match": exact(results[0], doc["answer"])}


def triviaqa(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether an answer is one of the aliases that TriviaQA lists."""
    return {"exact_match": exact(results[0], doc["answer"]["aliases"])}


# Majority voting ------------------------------------------------------------------------------------------------------


def majority(answers: Sequence[str]) -> str:
    """The most frequent answer, of equals the first; answers that could not be read have no vote."""
    votes = Counter(answer for answer in answers if answer != INVALID)
    return votes.most_common(1)[0][0] if votes else INVALID


def majorities(resps: Sequence[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[str]:
    """The majority of each document's answers (a filter of the library)."""
    return [majority([answer.replace(",", "") for answer in answers]) for answers in resps]


def math_majorities(resps: Sequence[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[str]:
    """Of each document's solutions the first whose final answer is that of the majority (a filter of the library)."""
    from lm_eval.tasks.minerva_math.utils import get_unnormalized_answer, normalize_final_answer

    def final(solution: str) -> str:
        answer = get_unnormalized_answer(solution)
        return INVALID if answer == "[invalidanswer]" else normalize_final_answer(answer)

    chosen = []
    for solutions in resps:
        answers = [final(solution) for solution in solutions]
        chosen.append(solutions[answers.index(majority(answers))])
    return chosen


# Programs -------------------------------------------------------------------------------------------------------------

TRIES = (1, 10, 80, 100)
"""k of pass@k, those for which there are samples enough."""


def keep_all(resps: Sequence[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """All samples of each document (a filter of the library)."""
    return [list(samples) for samples in resps]


def passed(programs: Sequence[str]) -> dict[str, float]:
    """pass@k of one problem's programs, by the unbiased estimator."""
    right = sum(outcome.passed for outcome in run_programs(programs))
    return {f"pass@{k}": pass_at_k(len(programs), right, k) for k in TRIES if k <= len(programs)}


def humaneval(doc: dict[str, Any], results: Sequence[Sequence[str]]) -> dict[str, float]:
    """pass@k of a HumanEval problem."""
    tests = f"{doc['test']}\ncheck({doc['entry_point']})\n"
    return passed([f"{doc['prompt']}{sample}\n{tests}" for sample in results[0]])


def mbpp(doc: dict[str, Any], results: Sequence[Sequence[str]]) -> dict[str, float]:
    """pass@k of an MBPP problem."""
    tests = "\n".join([doc.get("test_setup_code") or "", *doc["test_list"]])
    return passed([f"{_code(sample)}\n{tests}\n" for sample in results[0]])


def _code(sample: str) -> str:
    """The program in a sample: what a fence of Markdown holds, or all of it."""
    fenced = re.search(r"```(?:python)?\n(.*?)```", sample, re.DOTALL)
    return fenced.group(1) if fenced else sample


def mbpp_examples(dataset):
    """The problems 2, 3 and 4 of MBPP, the examples of Austin et al. (arXiv:2108.07732)."""
    return dataset.filter(lambda doc: doc["task_id"] in (2, 3, 4))
