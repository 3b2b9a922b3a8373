"""Printed rows: tokens, segments and mask, with and without colour."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from camelid.data.show import render_rows
from camelid.data.tokenizer_training import train_sentencepiece


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = ["one two three four one two three four"] * 20
    return train_sentencepiece(texts, vocab_size=290, output_dir=folder, special_tokens=["<|im_end|>"])


def pack(tokenizer, segments, length):
    """One packed row of (tokens, trained) segments, by a plain loop."""
    row = {name: np.zeros(length, np.int32) for name in ("tokens", "targets", "segment_ids", "positions")}
    row["loss_mask"] = np.zeros(length, np.float32)
    at = 0
    for number, (tokens, trained) in enumerate(segments, 1):
        for k, token in enumerate(tokens):
            row["tokens"][at], row["segment_ids"][at], row["positions"][at] = token, number, k
            if k + 1 < len(tokens):
                row["targets"][at], row["loss_mask"][at] = tokens[k + 1], trained[k + 1]
            at += 1
    return {name: values[None] for name, values in row.items()}


def printed(renderable, colour=False):
    console = Console(file=io.StringIO(), width=200, force_terminal=colour, color_system="standard" if colour else None)
    console.print(renderable)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def batch(tokenizer):
    question, answer = tokenizer.encode("one two"), [*tokenizer.encode(" three\n[four]", continues=True)]
    first = [tokenizer.bos_id, *question, *answer, tokenizer.special["<|im_end|>"]]
    trained = [False] * (1 + len(question)) + [True] * (len(answer) + 1)
    second = [tokenizer.bos_id, *tokenizer.encode("龘\x1b\t"), tokenizer.eos_id]
    return pack(tokenizer, [(first, trained), (second, [False] * len(second))], length=40)


def test_without_colour_trained_tokens_stand_in_brackets(batch, tokenizer):
    text = printed(render_rows(batch, tokenizer))
    assert "1: <s> one two⟦ three⏎\n[four]<|im_end|>⟧" in text
    assert text.count("⟦") == text.count("⟧") == 2  # the legend has the other pair


def test_bytes_control_characters_and_tabs_are_visible(batch, tokenizer):
    assert "2: <s> <0xE9><0xBE><0x98><0x1B>⇥</s>" in printed(render_rows(batch, tokenizer))


def test_counts_are_those_of_the_batch(batch, tokenizer):
    used, trained = (batch["segment_ids"] > 0).sum(), batch["loss_mask"].sum()
    expected = f"row 0: {used} tokens, {trained:.0f} trained, {40 - used} padding, 2 segments"
    assert expected in printed(render_rows(batch, tokenizer))


def test_with_colour_trained_tokens_are_bold_and_segments_differ(batch, tokenizer):
    text = printed(render_rows(batch, tokenizer), colour=True)
    assert re.search(r"\x1b\[1;(4;)?7;36m three", text)  # bold, reversed, cyan
    assert re.search(r"\x1b\[4;36m one", text)
    assert re.search(r"\x1b\[33m<s>", text)  # the second segment is yellow


def test_positions_are_written_on_demand(batch, tokenizer):
    assert "₀" not in printed(render_rows(batch, tokenizer))
    assert "1: <s>₀ one₁ two₂" in printed(render_rows(batch, tokenizer, positions=True))


def test_a_target_that_lies_in_another_row_is_shown(tokenizer):
    tokens = tokenizer.encode("one two three")
    batch = pack(tokenizer, [(tokens, [True] * len(tokens))], length=len(tokens))
    batch["targets"][0, -1], batch["loss_mask"][0, -1] = tokenizer.eos_id, 1
    text = printed(render_rows(batch, tokenizer))
    assert "1:  one⟦ two three⟧→⟦</s>⟧" in text


def test_every_row_is_shown(batch, tokenizer):
    text = printed(render_rows({name: np.repeat(values, 3, axis=0) for name, values in batch.items()}, tokenizer))
    assert text.count("⟦ three") == 3
    assert "row 2:" in text
