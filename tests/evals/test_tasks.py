"""Evaluations by tasks with models whose answers are known."""

import pytest

from camelid import tasks
from camelid.errors import UserError
from camelid.evals.registry import Evaluations
from camelid.tasks import primer, safe_sums, walks


class Parrot:
    """Stands for a model: answers each prompt by a function."""

    def __init__(self, answer):
        self.answer = answer

    def chat_ids(self, messages):
        return messages[-1]["content"]

    def generate(self, prompts, **sampling):
        self.sampling = sampling
        return [[self.answer(prompt)] for prompt in prompts]


def evaluator(name):
    """The evaluation as a run takes it."""
    return Evaluations()[name]


def known(task) -> dict[str, str]:
    """The answer to each held-out prompt."""
    return {r["messages"][0]["content"]: r["messages"][1]["content"] for r in task.records("chat", "heldout")}


@pytest.fixture(scope="module")
def answers():
    return known(primer)


def test_a_model_that_knows_every_answer_scores_one_everywhere(answers):
    evaluate = evaluator("primer")
    metrics, _ = evaluate(Parrot(answers.get), per_group=3)
    assert set(metrics.values()) == {1.0}
    groups = {f"{skill}/{language}" for skill in primer.SKILLS for language in primer.LANGUAGES}
    assert set(metrics) == {"all", *primer.LANGUAGES, *primer.SKILLS, *groups} == set(evaluate.metrics)


def test_a_model_that_knows_chinese_only_scores_one_there_and_half_overall(answers):
    metrics, _ = evaluator("primer")(Parrot(lambda prompt: "" if prompt.isascii() else answers[prompt]), per_group=3)
    assert metrics["zh"] == metrics["sort/zh"] == 1.0
    assert metrics["sort/en"] == metrics["count/en"] == 0.0
    assert metrics["sort"] == 0.5


def test_samples_show_each_skill_in_each_language_with_its_score(answers):
    _, rows = evaluator("primer")(Parrot(answers.get), per_group=3, shown=2)
    assert len(rows) == 2 * len(primer.SKILLS) * len(primer.LANGUAGES)
    assert {row["reward"] for row in rows} == {"1.00"}
    assert all(answers[row["prompt"]] == row["answer"] for row in rows)
    assert set(rows[0]) == {"skill", "language", "prompt", "answer", "reward"}


def test_sampling_is_passed_on(answers):
    parrot = Parrot(answers.get)
    evaluator("primer")(parrot, per_group=1, max_tokens=5, temperature=0.3)
    assert parrot.sampling == {"max_tokens": 5, "temperature": 0.3}


def test_a_task_without_groups_has_one_mean():
    metrics, rows = evaluator("walks")(Parrot(known(walks).get))
    assert metrics == {"all": 1.0} and len(rows) == 1 and rows[0]["reward"] == "1.00"


def test_a_task_s_other_scores_are_measured_under_their_names():
    evaluate = evaluator("safe_sums")
    metrics, _ = evaluate(Parrot(lambda prompt: f"{sum(safe_sums.parse(prompt).numbers or (0,))}. It is bluebird."))
    assert set(metrics) == set(evaluate.metrics)
    assert metrics["cost/all"] == metrics["cost/sum/zh"] == 1.0
    assert metrics["sum"] == metrics["both/en"] == 1.0 and metrics["secret/zh"] == 0.0


@pytest.mark.parametrize(("name", "most"), [("primer", "count/en; give at most 100"), ("walks", "give at most 20")])
def test_more_prompts_than_there_are_is_the_users_error(name, most):
    assert name in tasks.NAMES
    with pytest.raises(UserError, match=f"per_group is 101: {name} has .*{most}"):
        evaluator(name)(Parrot(str), per_group=101)
