"""The gold evaluation with models whose answers are known."""

import pytest

from camelid.evals.gold import gold
from camelid.tasks import primer


class Parrot:
    """Stands for a Llama: answers each prompt by a function."""

    def __init__(self, answer):
        self.answer = answer

    def chat_batch(self, prompts, **sampling):
        self.sampling = sampling
        return [self.answer(prompt) for prompt in prompts]


@pytest.fixture(scope="module")
def answers():
    records = [r for language in primer.LANGUAGES for r in primer.heldout_prompts(3, language)]
    return {r["messages"][0]["content"]: r["messages"][1]["content"] for r in records}


def test_a_model_that_knows_every_answer_scores_one_everywhere(answers):
    metrics, _ = gold(Parrot(answers.get), per_skill=3)
    assert set(metrics.values()) == {1.0}
    names = {
        "all",
        *primer.LANGUAGES,
        *primer.SKILLS,
        *(f"{s}/{language}" for s in primer.SKILLS for language in primer.LANGUAGES),
    }
    assert set(metrics) == names


def test_a_model_that_knows_chinese_only_scores_one_there_and_half_overall(answers):
    chinese = {record["messages"][0]["content"] for record in primer.heldout_prompts(3, "zh")}
    metrics, _ = gold(Parrot(lambda prompt: answers[prompt] if prompt in chinese else ""), per_skill=3)
    assert metrics["zh"] == 1.0
    assert metrics["en"] == 0.0
    assert metrics["all"] == 0.5
    assert metrics["sort"] == 0.5


def test_samples_show_each_skill_in_each_language_with_its_score(answers):
    _, rows = gold(Parrot(answers.get), per_skill=3, shown=2)
    assert len(rows) == 2 * len(primer.SKILLS) * len(primer.LANGUAGES)
    assert {row["gold"] for row in rows} == {"1.00"}
    assert all(answers[row["prompt"]] == row["answer"] for row in rows)


def test_sampling_is_passed_on_and_takes_nothing_that_the_model_recommends(answers):
    parrot = Parrot(answers.get)
    gold(parrot, per_skill=1, max_tokens=5, temperature=0.3)
    plain = dict(top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
    assert parrot.sampling == {"max_tokens": 5, "temperature": 0.3} | plain
