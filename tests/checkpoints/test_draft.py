"""A draft model beside a model: the same greedy answers, told as they come or at once."""

import jax
import numpy as np
import pytest

import camelid
from camelid.checkpoints.language_model import LanguageModel
from camelid.errors import UserError
from camelid.launch.cli import main
from camelid.model import llama

PROMPTS = ["the red fox", "the blue whale sees", "the"]


def test_a_draft_changes_no_greedy_answer(pretrained, capsys):
    plain = camelid.load(pretrained)
    sampling = dict(max_tokens=12, temperature=0.0)
    expected = plain.generate(PROMPTS, **sampling)

    # A draft that is wrong now and then: the model itself, moved a little.
    noise = lambda x: x + 0.6 * np.asarray(x).std() * jax.random.normal(jax.random.key(0), x.shape)  # noqa: E731
    wrong = LanguageModel(plain.model, jax.tree.map(noise, plain.params), plain.tokenizer, None, plain.mesh)
    assisted = camelid.load(pretrained).assist(wrong, 3)
    assert assisted.generate(PROMPTS, **sampling) == expected
    assert 0 < assisted.draft.accepted < 3 * assisted.draft.passes

    flags = [f"--draft={pretrained}", "--draft_tokens=2", "--max_tokens=12", "--temperature=0"]
    assert main(["generate", str(pretrained), *PROMPTS, *flags]) == 0
    said = capsys.readouterr()
    assert said.out == "".join(f"==> prompt {i} <==\n{text}\n" for i, text in enumerate(expected, 1))
    assert "of 2 proposals accepted a pass" in said.err


def test_a_draft_changes_no_answer_that_is_streamed(tuned):
    plain, assisted = camelid.load(tuned), camelid.load(tuned)
    assisted.assist(plain, 2)
    sampling = dict(max_tokens=10, temperature=0.0)
    expected = "".join(plain.stream_chat("a red fox", **sampling))
    assert "".join(assisted.stream_chat("a red fox", **sampling)) == expected
    # A draft that is the model itself loses no token: one comes before the first pass, then up to 3 a pass.
    passes = assisted.draft.passes
    assert passes > 0 and 2 * passes - 2 <= assisted.draft.accepted <= 2 * passes
    assert str(assisted.draft).endswith("of 2 proposals accepted a pass")


def test_a_draft_of_other_tokens_is_refused(pretrained):
    plain = camelid.load(pretrained)
    other = camelid.load(pretrained)
    other.tokenizer._meaning = lambda i: "x" if i == 300 else plain.tokenizer._meaning(i)
    with pytest.raises(UserError, match=r"the model's own vocabulary: token 300 is .* in .* and .* in "):
        plain.assist(other)
    smaller = llama.build(plain.config.replace(vocab_size=400))
    with pytest.raises(UserError, match="the model has 352, the draft 400"):
        plain.assist(LanguageModel(smaller, smaller.abstract_params, plain.tokenizer, None, plain.mesh))
    with pytest.raises(UserError, match="0 tokens at a time: give 1 or more"):
        plain.assist(plain, 0)
