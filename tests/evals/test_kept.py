"""Answers that are kept in a file, and asked of a model once."""

import pytest

from camelid.errors import UserError
from camelid.evals import kept
from camelid.evals.kept import AnswerFile, KeptLM
from camelid.evals.lm import Likelihood


class Counting:
    """Stands for a model, and counts what it is asked."""

    name = "counting"

    def __init__(self, identity="x"):
        self.identity, self.asked = identity, []

    def describe(self):
        return {"name": self.name, "identity": self.identity}

    def loglikelihoods(self, requests):
        self.asked += requests
        return [Likelihood(-float(sum(context)), len(end) > 1) for context, end in requests]

    def generate(self, prompts, *, n, **settings):
        self.asked += prompts
        return [[f"{prompt} {i} {settings}" for i in range(n)] for prompt in prompts]


PAIRS = [([1, 2], [3]), ([1], [2, 3]), ([1, 2], [3]), ([4, 5, 6], [7])]


def test_requests_are_asked_once_and_those_in_the_file_never(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "BATCH_LIKELIHOODS", 2)
    told = []
    first = KeptLM(Counting(), AnswerFile(tmp_path / "a" / "kept.sqlite"), lambda *each: told.append(each))
    found = first.loglikelihoods(PAIRS)
    assert found == Counting().loglikelihoods(PAIRS)
    assert len(first.asked) == 3 and told == [("likelihoods", 2, 3), ("likelihoods", 3, 3)]
    again = KeptLM(Counting(), AnswerFile(tmp_path / "a" / "kept.sqlite"))
    assert again.loglikelihoods([*PAIRS, ([9], [9])]) == [*found, Likelihood(-9.0, False)]
    assert again.asked == [((9,), (9,))]
    other = KeptLM(Counting("y"), AnswerFile(tmp_path / "a" / "kept.sqlite"))
    assert other.loglikelihoods(PAIRS) == found and len(other.asked) == 3


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "BATCH_ANSWERS", 2)
    path, prompts = tmp_path / "kept.sqlite", [[1], [2, 2], [3, 3, 3], [4]]

    def end(*told):
        raise KeyboardInterrupt

    killed = KeptLM(Counting(), AnswerFile(path), end)
    with pytest.raises(KeyboardInterrupt):
        killed.generate(prompts, seed=1)
    again = KeptLM(Counting(), AnswerFile(path))
    assert again.generate(prompts, seed=1) == KeptLM(Counting(), None).generate(prompts, seed=1)
    assert (killed.asked, again.asked) == ([(3, 3, 3), (2, 2)], [(1,), (4,)])
    assert again.generate(prompts, seed=2) != again.generate(prompts, seed=1)
    assert len(again.generate(prompts, n=3, seed=1)[0]) == 3


def test_another_file_is_refused_and_so_is_a_model_without_a_checkpoint(tmp_path):
    (tmp_path / "notes.txt").write_text("these are no answers, but notes of somebody" * 9)
    with pytest.raises(UserError, match=r"notes.txt cannot keep answers"):
        AnswerFile(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="has no identity: its answers cannot be kept"):
        KeptLM(Counting(None), AnswerFile(tmp_path / "kept.sqlite"))
    KeptLM(Counting(None), None)
