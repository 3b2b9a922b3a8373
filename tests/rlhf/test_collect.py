"""Answers of a model, scored, and the pairs and best answers they become."""

import json
import re
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest

from camelid.checkpoints import language_model
from camelid.data.samples import Sample, read_samples
from camelid.data.sources import Source, read
from camelid.errors import UserError
from camelid.launch.cli import main
from camelid.rlhf import best_of_n
from camelid.rlhf.collect import DrawSettings, ScoredAnswers, best_of, pairs_of, prompt_encoder, sample_answers, write


def longest(record, answer):
    """A reward: how long the answer is."""
    assert record["messages"][-1]["role"] == "user"
    return len(answer)


def nothing(records, answers):
    """A reward by which no two answers differ."""
    return [0.0] * len(answers)


def answers(*texts_and_scores):
    record = {"messages": [{"role": "user", "content": "1?"}], "reference": None, "meta": {"id": 7}}
    texts, scores = map(list, zip(*texts_and_scores, strict=True))
    return ScoredAnswers(Sample(record, {}), texts, [[1]] * len(texts), scores)


def test_a_pair_is_the_better_and_the_worse_answer_and_how_far_they_are_apart():
    [pair] = pairs_of([answers(("a", 0.25), ("b", 1.0))])
    assert pair == {
        "kind": "preference",
        "messages": [{"role": "user", "content": "1?"}],
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": [{"role": "assistant", "content": "a"}],
        "margin": 0.75,
        "meta": {"id": 7},
    }


def test_only_answers_of_different_scores_are_paired_and_none_that_says_nothing_is_chosen():
    assert list(pairs_of([answers(("a", 1.0), ("b", 1.0)), answers(("", 1.0), ("b", 0.0)), answers(("c", 0.0))])) == []
    four = answers(("a", 0.0), ("b", 0.5), ("c", 0.5), ("d", 1.0))
    found = list(pairs_of([four], per_prompt=9))
    sides = {(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in found}
    assert sides == {("d", "a"), ("d", "b"), ("d", "c"), ("b", "a"), ("c", "a")} and len(found) == 5
    assert len(list(pairs_of([four], per_prompt=2))) == 2
    [pair] = (p for p in pairs_of([four], per_prompt=9, others=5) if p["chosen"][0]["content"] == "b")
    assert pair["meta"] == {"id": 7, "others": []}
    for pair in pairs_of([four], per_prompt=9, others=1):
        assert len(pair["meta"]["others"]) == (pair["chosen"][0]["content"] == "d")


def test_the_best_answer_becomes_a_conversation():
    [record] = best_of([answers(("a", 0.25), ("b", 1.0), ("c", 1.0)), answers(("", 2.0))])
    assert record["messages"][-1] == {"role": "assistant", "content": "b"}
    assert record["kind"] == "chat" and record["meta"] == {"id": 7, "score": 1.0}


def test_answers_are_drawn_scored_and_kept_once(tuned, corpus, monkeypatch):
    llama = language_model.load(tuned)
    settings = DrawSettings(n=5, max_tokens=6, seed=3)
    prompts = read_samples(Source(str(corpus / "chat.jsonl")), "train", prompt_encoder(llama, 6), limit=6)
    name = f"{__name__}:longest"
    functions = {name: longest}
    monkeypatch.setattr("camelid.rlhf.reward_functions.find", lambda found, where: functions[found])
    found = sample_answers(llama, prompts, name, settings)
    every = sample_answers(llama, prompts, name, settings, keep_repeated=True)
    assert len(found) == len(every) == 6
    for distinct, group in zip(found, every, strict=True):
        assert len(group.texts) == 5 and distinct.texts == list(dict.fromkeys(group.texts))
        assert distinct.scores == [float(len(text)) for text in distinct.texts]
        assert [llama.tokenizer.decode(ids).strip() for ids in distinct.tokens] == distinct.texts
    assert len({tuple(group.texts) for group in every}) == 6


def test_the_command_writes_pairs_that_the_reader_reads(tuned, corpus, tmp_path, capsys):
    arguments = [str(tuned), f"--source={corpus / 'chat.jsonl'}", "--prompts=40", "--n=3", "--max_tokens=8"]
    reward = f"--reward={__name__}:nothing"
    assert main(["data", "collect", *arguments, reward, f"--output={tmp_path / 'none.jsonl'}"]) == 2
    assert "nothing to write" in capsys.readouterr().err and not (tmp_path / "none.jsonl").exists()
    best = tmp_path / "best.jsonl"
    lines = (corpus / "chat.jsonl").read_text("utf-8").splitlines()[:60]
    (tmp_path / "bad.jsonl").write_text("\n".join(["no json", *lines[:9], *lines]), "utf-8")
    arguments[1:2] = [f"--source={tmp_path}/bad.jsonl", "--on_error=skip"]
    assert main(["data", "collect", *arguments, reward, "--keep=best", f"--output={best}"]) == 0
    records = list(read(Source(str(best))))
    assert records and all(record["kind"] == "chat" for record in records)
    said = capsys.readouterr().out
    assert re.search(rf"^{len(records)} records of \d+ prompts in {best}$", said, re.MULTILINE)
    assert re.search(r"^repeated prompts, left out: [1-9]\d*$", said, re.MULTILINE)
    assert f"1 left out:\n  {tmp_path}/bad.jsonl:1: invalid JSON" in said
    assert len(best.read_text().splitlines()) == len([json.loads(line) for line in best.read_text().splitlines()])


def test_nothing_is_left_behind_where_there_is_nothing_to_write(tmp_path):
    with pytest.raises(UserError, match="nothing to write"):
        write([], tmp_path / "a.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_best_of_n_is_the_mean_over_all_choices_of_n():
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(2, 3, 6))

    for n in range(1, 7):
        chosen = [
            np.mean([gold[b, max(group, key=lambda i: proxy[b, i])] for group in combinations(range(6), n)])
            for b in range(3)
        ]
        assert best_of_n.best_of_n(proxy, gold, n) == pytest.approx(np.mean(chosen))
    with pytest.raises(ValueError, match="give an n from 1 to 6"):
        best_of_n.best_of_n(proxy, gold, 7)
    assert best_of_n.kl_of_best_of_n(1) == 0 and best_of_n.kl_of_best_of_n(4) == pytest.approx(np.log(4) - 0.75)
    points = best_of_n.curve(proxy, gold, (1, 6))
    assert points[0]["gold"] == pytest.approx(gold.mean()) and points[1]["proxy"] == pytest.approx(proxy.max(1).mean())


def test_a_reward_that_is_none_is_said_before_any_answer_is_drawn():
    model = SimpleNamespace(tokenizer="t", template="t")  # which could not answer
    with pytest.raises(UserError, match="--reward: 'typo:f' is no function"):
        sample_answers(model, SimpleNamespace(samples=[]), "typo:f", DrawSettings(n=1, max_tokens=4))


def test_prompts_need_a_template_and_room(tuned):
    llama = language_model.load(tuned)
    with pytest.raises(UserError, match="leaves no room for a prompt"):
        prompt_encoder(llama, llama.config.max_len)
    llama.template = None
    with pytest.raises(UserError, match="no tokenizer or no chat template: tune it"):
        prompt_encoder(llama, 4)
