"""Metrics that follow from items."""

import math

import pytest

from camelid.evals.items import Item, in_training, metrics_of


def test_metrics_are_means_over_all_groups_and_subjects():
    items = [
        Item("1", {"acc": 1.0}, groups=("", "en"), subject="law"),
        Item("2", {"acc": 0.0}, groups=("", "zh"), subject="law"),
        Item("3", {"acc": 1.0}, groups=("", "zh"), subject="art"),
    ]
    found = {name: each.value for name, each in metrics_of(items).items()}
    assert found == pytest.approx(
        {"acc": 2 / 3, "acc/en": 1.0, "acc/law": 0.5, "acc/zh": 0.5, "acc/art": 1.0, "acc/macro": 0.75}
    )


def test_a_ratio_weighs_documents_by_their_length_and_gives_the_perplexity():
    items = [Item("1", {"loss": (10.0, 10)}), Item("2", {"loss": (60.0, 20)})]
    found = metrics_of(items)
    assert found["loss"].value == pytest.approx(70 / 30)
    assert found["perplexity"].value == pytest.approx(math.exp(70 / 30))
    assert found["perplexity"].low == pytest.approx(math.exp(found["loss"].low))


def test_a_run_gets_numbers_and_the_samples():
    def evaluate(model, *, shift: float = 0.0):
        return [Item(str(i), {"acc": i + shift}, shown={"n": i}, sample=i == 1) for i in range(3)]

    evaluate.metrics = ["acc"]
    run = in_training(evaluate, "own:evaluate")
    assert run.metrics == ["acc"]
    assert run(None, shift=1.0) == ({"acc": 2.0}, [{"n": "1"}])
