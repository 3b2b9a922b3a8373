"""Perplexity of a source against the model's own logits, one document at a time."""

import json

import numpy as np
import pytest

import camelid
from camelid.data.sources import Source
from camelid.errors import UserError
from camelid.evals.items import metrics_of
from camelid.evals.perplexity import of_cache, perplexity, text_cache
from camelid.launch.cli import main


def test_perplexity_is_that_of_the_logits_of_each_document(pretrained, tmp_path):
    m = camelid.load(pretrained)
    documents = ["the red fox sees 0 red foxs.", "the blue whale sees 0 blue whales.", "owl " * 30]
    source = tmp_path / "text.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in documents))
    losses, positions, characters = [], [], 0
    for text in documents:
        characters += len(text)
        tokens = [m.tokenizer.bos_id, *m.tokenizer.encode(text), m.tokenizer.eos_id]
        for start in range(0, len(tokens) - 1, 1000):
            part = np.array([tokens[start : start + 1001]])
            logits = np.asarray(m.logits(part[:, :-1]), np.float64)[0]
            logits -= logits.max(-1, keepdims=True)
            logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            losses += [-logp[i, token] for i, token in enumerate(part[0, 1:])]
            positions += range(len(part[0]) - 1)
    cache = text_cache(m, Source(str(source)), cache_dir=tmp_path / "cache")
    items = of_cache(m, cache, seq_len=1000, batch_size=8, borders=(10, 25))
    found = {name: each.value for name, each in metrics_of(items).items()}
    assert [item.id for item in items] == ["1", "2", "3"]
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    bits = np.sum(losses) / np.log(2)
    assert found["bits_per_character"] == found["bits_per_byte"] == pytest.approx(bits / characters, rel=1e-5)
    for start, stop in ((0, 10), (10, 25), (25, 1000)):
        here = [loss for loss, position in zip(losses, positions, strict=True) if start <= position < stop]
        assert found[f"perplexity/{start}-{stop}"] == pytest.approx(np.exp(np.mean(here)), rel=1e-5)
    for borders, says in {(25, 10): "give ascending positions", (10, 1000): "between 0 and seq_len = 1000"}.items():
        with pytest.raises(UserError, match=says):
            of_cache(m, cache, seq_len=1000, borders=borders)
    with pytest.raises(UserError, match="no sample reaches border 900; the longest has"):
        of_cache(m, cache, seq_len=1000, borders=[900])


def test_bytes_are_those_of_the_text_whatever_the_tokenizer_begins_it_with(pretrained, tmp_path):
    m, texts = camelid.load(pretrained), ["Hi 0", "你好", "owl " * 30]
    source = tmp_path / "text.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    found = perplexity(m, source=str(source), cache_dir=str(tmp_path / "cache"))
    assert [item.scores["bits_per_byte"][1] for item in found] == [len(text.encode()) for text in texts]
    assert [item.scores["bits_per_character"][1] for item in found] == [len(text) for text in texts]


def test_only_the_assistant_s_turns_count_and_bytes_are_not_characters(tuned, tmp_path):
    m = camelid.load(tuned)
    turns = [("Which?", "It is red."), ("哪?", "红色")]
    lines = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in turns]
    source = tmp_path / "chat.jsonl"
    source.write_text("\n".join(json.dumps(line) for line in lines))
    items = perplexity(m, source=str(source), cache_dir=str(tmp_path / "cache"))
    for item, (question, answer) in zip(items, turns, strict=True):
        (expected,) = m.score([question], [answer], chat=True)
        nats, tokens = item.scores["loss"]
        assert nats == pytest.approx(-expected.sum(), rel=1e-4) and tokens == len(expected)
    assert items[1].scores["bits_per_byte"][1] > items[1].scores["bits_per_character"][1]


def test_a_model_without_a_tokenizer_is_refused(pretrained):
    m = camelid.load(pretrained)
    m.tokenizer = None
    with pytest.raises(UserError, match="the model has no tokenizer"):
        text_cache(m, Source("x.txt"))


def test_rows_longer_than_the_context_are_refused_on_the_command_line(pretrained, tmp_path, capsys):
    source = tmp_path / "text.jsonl"
    source.write_text('{"text": "the red fox sees"}\n')
    assert main(["eval", str(pretrained), f"--source={source}", "--seq_len=300"]) == 2
    assert "seq_len is 300, more than the model's context of 256 tokens" in capsys.readouterr().err
