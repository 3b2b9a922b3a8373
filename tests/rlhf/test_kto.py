"""KTO from single answers with labels: what is read, the point of reference, the loss, and what is refused.

The network here is a table: the next token's logits are those of the token before it.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from camelid.data.labelled_answers import AnswerEncoder
from camelid.data.mixture import EvalPass, Mixture
from camelid.data.samples import read_samples
from camelid.data.sources import Source
from camelid.data.templates import load_template
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.errors import UserError
from camelid.rlhf import dpo, kto
from camelid.rlhf.pair_batches import PairDataSettings
from camelid.tests.rlhf.test_dpo import HYPER, MODEL, POLICY, REFERENCE, T, sigmoid, slow_logp
from camelid.train.batches import MixtureEntry

TRL = [
    {"prompt": "question 1", "completion": "good", "label": True},
    {"prompt": [{"role": "user", "content": "question 2"}], "completion": [{"role": "assistant", "content": "bad"}]}
    | {"label": False},
    {"instruction": "question 3", "output": "", "kto_tag": False},
    {"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2", "weight": 1}]}
    | {"label": True, "system": "good"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    words = ["USER: ASSISTANT: system user assistant question good bad 1 2 3 " * 9]
    return train_sentencepiece(
        words, vocab_size=300, output_dir=tmp_path_factory.mktemp("t"), special_tokens=["<|im_start|>", "<|im_end|>"]
    )


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def read(source, tokenizer):
    encoder = AnswerEncoder(tokenizer, load_template("chatml"), length=64)
    return EvalPass(read_samples(Source(source), None, encoder), batch_size=4)


def test_each_answer_is_read_with_its_label_and_its_stop_token(tmp_path, tokenizer):
    answers = read(write(tmp_path / "a.jsonl", TRL), tokenizer)
    batch = answers[0]
    assert batch["desirable"].tolist() == [[1.0], [0.0], [0.0], [1.0]]
    said = [
        tokenizer.decode(tokens[mask > 0][:-1].tolist()).strip()
        for tokens, mask in zip(batch["tokens"][:, 0], batch["answer_mask"][:, 0], strict=True)
    ]
    assert said == ["good", "bad", "", "2"]
    ends = batch["tokens"][np.arange(4), 0, batch["lengths"][:, 0] - 1]
    assert set(ends.tolist()) == {tokenizer.special["<|im_end|>"]}
    assert "system" in tokenizer.decode(batch["tokens"][3, 0].tolist())
    assert [record["label"] for record in answers.records] == [True, False, False, True]


def test_the_answer_is_all_that_follows_the_last_question(tmp_path, tokenizer):
    turns = [("user", "1"), ("assistant", "good"), ("user", "2"), ("assistant", "3"), ("assistant", "bad")]
    record = {"messages": [{"role": role, "content": words} for role, words in turns], "label": False}
    batch = read(write(tmp_path / "a.jsonl", [record]), tokenizer)[0]
    mask = batch["answer_mask"][0, 0] > 0
    text = "".join(tokenizer.piece(t) if m else "\0" for t, m in zip(batch["tokens"][0, 0], mask, strict=True)).strip(
        "|"
    )
    assert text.replace("▁", "").replace("\0", "").split("<|im_end|>") == ["3", "bad", ""]


def test_records_that_give_no_label_or_no_room_are_refused_or_counted(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"jsonl:1: the chat record has no label: give each answer a `label`"):
        read(write(tmp_path / "a.jsonl", [{"prompt": "1", "completion": "2"}]), tokenizer)
    unsure = {"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "good", "train": False}]}
    with pytest.raises(UserError, match="jsonl:1: an answer labelled good has train false"):
        read(write(tmp_path / "a.jsonl", [unsure | {"label": True}]), tokenizer)
    assert read(write(tmp_path / "a.jsonl", [unsure | {"label": False}]), tokenizer).records[0]["label"] is False
    long = TRL[0] | {"completion": "good " * 99}
    source = Source(write(tmp_path / "b.jsonl", [long, *TRL]), "a")
    encoder = AnswerEncoder(tokenizer, load_template("chatml"), length=64)
    batches = Mixture([source], lambda source: read_samples(source, None, encoder), batch_size=2, seed=0)
    assert batches.summary()["a"]["too_long"] == 1 and batches.summary()["a"]["samples"] == 4
    assert batches[7].keys() == batches.shapes.keys()
    assert {name: (x.shape, x.dtype) for name, x in batches[7].items()} == {
        name: (shape, np.dtype(dtype)) for name, (shape, dtype) in batches.shapes.items()
    }
    assert len(read_samples(source, None, encoder, limit=2)) == 2


# The point of reference ----------------------------------------------------------------------------------------------

PROMPTS = [[1, 2, 3], [4], [4], [1, 2, 3], [1, 2], [4]]
ANSWERS = [[5, 6, 11], [7, 11], [1, 11], [2, 4, 6, 8, 11], [9, 11], [10, 11]]
LABELS = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]


def batch(prompts=PROMPTS, answers=ANSWERS, filler=7):
    B = len(prompts)
    tokens, mask = np.full((B, 1, T), filler, np.int32), np.zeros((B, 1, T), np.float32)
    lengths = np.array([[len(p) + len(a)] for p, a in zip(prompts, answers, strict=True)], np.int32)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens[row, 0, : lengths[row, 0]] = prompt + answer
        mask[row, 0, len(prompt) : lengths[row, 0]] = 1.0
    return {"tokens": tokens, "answer_mask": mask, "lengths": lengths, "desirable": np.float32(LABELS)[:B, None]}


def partner(row, prompts):
    """The next row, going round, that asks something else."""
    return next(
        j % len(prompts) for j in range(row + 1, row + len(prompts)) if prompts[j % len(prompts)] != prompts[row]
    )


def test_no_answer_stands_behind_its_own_prompt_though_the_batch_repeats_it():
    found, weights = jax.jit(kto.mismatch_answers)(batch())
    assert weights.tolist() == [1.0] * 6
    for row, prompt in enumerate(PROMPTS):
        other = partner(row, PROMPTS)
        expected = (prompt + ANSWERS[other])[:T]
        assert found["tokens"][row, 0, : len(expected)].tolist() == expected
        assert found["lengths"][row, 0] == len(expected)
    assert [partner(row, PROMPTS) for row in range(6)] == [1, 3, 3, 4, 5, 0]


def test_a_batch_of_one_prompt_has_no_point_of_reference():
    alike = batch([[1, 2]] * 3, ANSWERS[:3])
    assert kto.mismatch_answers(alike)[1].tolist() == [0.0] * 3
    prepared = jax.jit(dpo.make_prepare(MODEL, dataclasses.replace(HYPER, kind="kto")))(POLICY, REFERENCE, alike)
    assert prepared["kl"].tolist() == [0.0] * 3


@pytest.mark.parametrize("policy,reference", [(POLICY, REFERENCE), (REFERENCE, POLICY)])
def test_the_loss_of_labelled_answers_is_the_paper_s(policy, reference):
    hyper = dataclasses.replace(HYPER, kind="kto")
    prepared = jax.jit(dpo.make_prepare(MODEL, hyper))(policy, reference, batch())
    gaps = [
        slow_logp(policy, p, ANSWERS[j][: T - len(p)]) - slow_logp(reference, p, ANSWERS[j][: T - len(p)])
        for p, j in ((p, partner(row, PROMPTS)) for row, p in enumerate(PROMPTS))
    ]
    kl = max(np.mean(gaps), 0.0)
    np.testing.assert_allclose(prepared["kl"], np.full(6, kl), rtol=1e-4)
    losses = []
    for prompt, answer, label in zip(PROMPTS, ANSWERS, LABELS, strict=True):
        reward = hyper.beta * (slow_logp(policy, prompt, answer) - slow_logp(reference, prompt, answer))
        point = hyper.beta * kl
        losses.append(1 - sigmoid(reward - point) if label else 0.7 * (1 - sigmoid(point - reward)))
    total, rows, stats = jax.jit(dpo.make_loss(MODEL, hyper))(policy, prepared)
    assert rows == 6
    assert float(total) == pytest.approx(sum(losses), rel=1e-4)
    good = [slow_logp(policy, p, a) for p, a, label in zip(PROMPTS, ANSWERS, LABELS, strict=True) if label]
    assert float(stats["logps/chosen"]) / 6 == pytest.approx(np.mean(good), rel=1e-4)


def test_held_out_answers_are_measured_by_label():
    found = kto.label_metrics(np.array([1.0, 3.0, 1.0, 0.0]), np.array([True, True, False, False]))
    assert found == {"reward/good": 2.0, "reward/bad": 0.5, "auc": 0.875}
    assert kto.label_metrics(np.array([1.0, 3.0]), np.array([True, True])) == {"reward/good": 2.0}


# What is refused -----------------------------------------------------------------------------------------------------


def settings(batch_size, **paths):
    mixture = {name: MixtureEntry(str(path), 1.0) for name, path in paths.items()}
    return PairDataSettings(mixture, batch_size, heldout=0.0)


def test_kto_reads_pairs_or_single_answers_and_needs_other_prompts_in_a_batch(tmp_path):
    single = write(tmp_path / "single.jsonl", TRL)
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "1", "chosen": "2", "rejected": "3"}])
    assert kto.is_labelled(settings(2, a=single)) and not kto.is_labelled(settings(2, a=pairs))
    with pytest.raises(UserError, match=r"config\.data\.mixture: a holds labelled answers and b pairs"):
        kto.is_labelled(settings(2, a=single, b=pairs))
