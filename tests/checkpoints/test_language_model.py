"""Texts from a model: where they end, what room each prompt has, what is never drawn, and who decides how they are."""

import dataclasses
import io
import os
import re
import types

import jax
import numpy as np
import pytest

from camelid.checkpoints import language_model
from camelid.checkpoints.interop.generation_config import GenerationDefaults
from camelid.checkpoints.language_model import LanguageModel, PromptTooLong
from camelid.data.templates import load_template
from camelid.data.tokenizer import Tokenizer
from camelid.errors import TooLong, UserError
from camelid.launch.cli import main
from camelid.model.config import LlamaConfig
from camelid.model.llama import build
from camelid.model.sampling import Sampling
from camelid.model.sharding import make_mesh
from camelid.train.run import Run

ROWS, CONTEXT = 384, 96  # of the embedding: 32 more than there are tokens
PROMPTS = ["the red fox", "the blue whale sees 3", "the"]


@pytest.fixture(scope="module")
def llama(corpus) -> LanguageModel:
    """A random network, which likes tokens that one could type, and better still ids that stand for no token."""
    model = build(LlamaConfig.preset("nano-test", vocab_size=ROWS, max_len=CONTEXT, tied=False))
    params = jax.tree.map(lambda x: x * 3, jax.jit(model.init)(jax.random.key(0)))
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    liked = [2.0 if re.fullmatch(rb"[ -~]+", data) else 0.0 for data in tokenizer.token_bytes]
    params["head"]["kernel"] *= np.array([liked + [4.0] * (ROWS - len(liked))], np.float32)
    mesh = make_mesh({}, jax.local_devices()[:1])
    return LanguageModel(model, params, tokenizer, load_template("chatml"), mesh)


def readable(text: str) -> str:
    """Two characters of an answer that one could type, not the first ones."""
    return re.search(r"(?<=..)[ -~]{2}", text, re.DOTALL)[0]


@pytest.fixture
def command(llama, monkeypatch):
    """command(*arguments): the exit code of a command for this model."""
    monkeypatch.setattr(language_model, "load", lambda *args, **kwargs: llama)
    return lambda name, *arguments: main([name, "RUN", *arguments])


def with_defaults(llama: LanguageModel, **said) -> LanguageModel:
    own = (llama.model, llama.params, llama.tokenizer, llama.template, llama.mesh)
    return LanguageModel(*own, generation=GenerationDefaults(**said))


def test_a_model_says_in_a_line_what_it_is(llama, pretrained):
    assert repr(llama) == f"<LanguageModel: {llama.config.family}, {llama.config.n_params:,} parameters>"
    assert f"{pretrained}, step 24, " in repr(language_model.load(pretrained))


def test_no_id_without_a_token_is_drawn_by_any_way_of_decoding(llama):
    tokens = [[1, *llama.tokenizer.encode(prompt)] for prompt in PROMPTS]
    ends = (llama.tokenizer.eos_id,)
    for sampling in (Sampling(max_tokens=16, n=2, stop_ids=ends), Sampling(max_tokens=6, temperature=0, stop_ids=ends)):
        answers = llama.complete(tokens, sampling, seed=1)
        assert len(answers) == 3 * sampling.n and max(map(max, answers)) < 352
    wrong = np.asarray(llama.logits(np.array([tokens[0]])))[0, -1].argmax()
    assert wrong >= 352  # which the network would say


def test_texts_end_before_a_stop_string_told_at_once_or_in_pieces(llama):
    how = dict(max_tokens=16, temperature=1.0, seed=3)
    free = llama.generate(PROMPTS, n=2, **how)
    stop = [readable(free[1]), readable(free[4])]
    cut = [min((text[: text.find(s)] for s in stop if s in text), key=len, default=text) for text in free]
    assert cut != free and any(a == b for a, b in zip(cut, free, strict=True))
    assert llama.generate(PROMPTS, n=2, stop=stop, **how) == cut

    free = llama.chat("the red fox", **how)
    stop = readable(free)
    pieces = list(llama.stream_chat("the red fox", stop=stop, **how))
    assert "".join(pieces).strip() == free[: free.find(stop)].strip()
    assert len(pieces) < 16  # no more was drawn


def test_each_prompt_has_the_room_that_it_leaves(llama):
    how = dict(max_tokens=80, temperature=1.0, seed=1)
    long, full = "fox " * 20, "fox " * 120
    alone = llama.generate(PROMPTS[0], **how)
    with pytest.warns(PromptTooLong, match=r"the context of 96 tokens has no room .* prompt 3 \(\d+ tokens\)"):
        answers = llama.generate([PROMPTS[0], long, full], **how)
    assert answers[0] == alone[0] and answers[1] and answers[2] == ""
    tokens = [[1, *llama.tokenizer.encode(text)] for text in (PROMPTS[0], long)]
    lengths = [len(answer) for answer in llama.complete(tokens, Sampling(max_tokens=80, stop_ids=(2,)))]
    assert lengths == [80, CONTEXT - len(tokens[1])]
    with pytest.raises(TooLong, match=r"has no room for an answer to the prompt \(\d+ tokens\): shorten it"):
        llama.generate(full, **how)
    with pytest.raises(UserError, match="has no room for an answer to the prompt"):
        next(llama.stream_chat(full, **how))
    assert llama.generate([]) == []


def test_what_the_model_recommends_holds_where_the_caller_says_nothing(llama):
    plain = dict(max_tokens=6, temperature=0.0, repetition_penalty=1.3)
    model = with_defaults(llama, **plain)
    assert model.generate("the") == llama.generate("the", **plain)
    own = dict(max_tokens=4, repetition_penalty=1.0)
    assert model.generate(PROMPTS, **own) == llama.generate(PROMPTS, temperature=0.0, **own)
    text = llama.generate("the", **plain)[0]
    stop = readable(text)
    assert with_defaults(llama, stop=(stop,), **plain).generate("the") == [text[: text.find(stop)]]
    first = llama.complete([[1, *llama.tokenizer.encode("the")]], Sampling(stop_ids=(2,), **plain))[0]
    ended = with_defaults(llama, stop_ids=(first[2],), **plain)
    assert ended.generate("the") == [llama.tokenizer.decode(first[: first.index(first[2])])]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(max_tokens=-3), "max_tokens -3: give 1 or more"),
        (dict(max_tokens=2.5), "max_tokens 2.5: give a whole number"),
        (dict(top_p=2.0), "top_p 2.0: give more than 0"),
        (dict(temperature=float("nan")), "temperature nan: give a number"),
        (dict(temperature=float("inf")), "temperature inf: give a number"),
        (dict(n=0), "n 0: give 1 or more"),
        (dict(stop=""), "a stop string is empty"),
        (dict(stop=["a", 3]), "stop has 3, which is not a string: give strings"),
        (dict(stop=7), "stop has 7, which is not a string: give strings"),
        (dict(stop="x" * 600), "stop strings of 600 bytes: give at most 512"),
        (dict(stop="\udcff"), "cannot be written in UTF-8"),
        (dict(seed=-1), "seed -1: give 0 to 4294967295"),
        (dict(seed=2**64), "seed 18446744073709551616"),
        (dict(batch_size=0), "batch_size 0: give 1 or more"),
    ],
    ids=str,
)
def test_a_mistake_in_what_is_asked_for_is_said_in_a_line(llama, given, said):
    with pytest.raises(UserError, match=said):
        llama.generate("the", **given)
    if "batch_size" not in given and "n" not in given:
        with pytest.raises(UserError, match=said):
            next(llama.stream_chat("the", **given))


@pytest.mark.parametrize(
    "flag",
    [
        "--max_tokens=-3",
        "--top_p=2",
        "--top_k=-1",
        "--min_p=1.5",
        "--temperature=nan",
        "--repetition_penalty=0",
        "--n=0",
        "--seed=-1",
        "--stop=",
    ],
)
def test_a_mistake_on_the_command_line_is_said_before_a_model_is_loaded(command, flag, capsys, monkeypatch):
    monkeypatch.setattr(language_model, "load", lambda *args, **kwargs: pytest.fail("loaded"))
    assert command("generate", "the", flag) == 2
    if flag != "--n=0":
        assert command("chat", flag) == 2
    errors = capsys.readouterr().err.splitlines()
    assert all(line.startswith(f"camelid: {flag.split('=')[0]}") for line in errors) and errors


def test_the_command_line_reaches_the_model_and_tells_what_it_recommends(llama, command, monkeypatch, capsys):
    flags = ["--max_tokens=16", "--temperature=0.8", "--min_p=0.05", "--repetition_penalty=1.2", "--seed=3"]
    how = dict(max_tokens=16, temperature=0.8, min_p=0.05, repetition_penalty=1.2, seed=3)
    stop = readable(llama.generate("the red fox", **how)[0])
    assert command("generate", "the red fox", *flags, f"--stop={stop}", "--stop=zzz") == 0
    assert capsys.readouterr().out == llama.generate("the red fox", stop=[stop, "zzz"], **how)[0] + "\n"

    recommended = with_defaults(llama, temperature=0.0, max_tokens=4, stop=("zzz",))
    monkeypatch.setattr(language_model, "load", lambda *args, **kwargs: recommended)
    assert command("generate", "the red fox", "--max_tokens=6") == 0
    said = capsys.readouterr()
    assert said.err == "camelid: as the model recommends: temperature 0.0, stop 'zzz'\n"
    assert said.out == llama.generate("the red fox", max_tokens=6, temperature=0.0)[0] + "\n"


def test_a_prompt_without_room_is_told_and_the_others_are_answered(command, capsys):
    assert command("generate", "the", "fox " * 120, "--max_tokens=4", "--temperature=0") == 1
    said = capsys.readouterr()
    assert said.out.splitlines()[::2] == ["==> prompt 1 <==", "==> prompt 2 <=="] and said.out.endswith("<==\n\n")
    assert said.err.startswith("camelid: the context of 96 tokens has no room for an answer to prompt 2 (")
    assert len(said.err.splitlines()) == 1


def test_a_reader_who_has_gone_is_one_line(command, capsys, monkeypatch, tmp_path):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

        def fileno(self):
            return where

    with (tmp_path / "pipe").open("w") as pipe:
        where = os.dup(pipe.fileno())
    monkeypatch.setattr("sys.stdout", Gone())
    assert command("generate", "the", "--max_tokens=4", "--temperature=0") == 1
    os.close(where)
    assert capsys.readouterr().err.splitlines() == ["camelid: standard output was closed before all of it was written"]


def test_chat_needs_a_template_before_it_asks_for_anything(pretrained, capsys):
    assert main(["chat", str(pretrained)]) == 2
    assert f"{pretrained} is a model without a chat template: give --template=NAME" in capsys.readouterr().err


def test_chat_says_that_its_input_is_closed(command, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    assert command("chat") == 2
    assert capsys.readouterr().err == "camelid: chat reads messages from standard input, which is closed\n"


def test_a_run_says_what_the_model_it_began_with_said_of_the_tokens_that_both_have(llama):
    said = GenerationDefaults(stop_ids=(5, 9), temperature=0.6)
    other = types.SimpleNamespace(fingerprint="other", piece=lambda i: "?" if i == 9 else llama.tokenizer.piece(i))
    start = types.SimpleNamespace(generation=said, tokenizer=llama.tokenizer)

    def generation(start, tokenizer):
        run = Run(types.SimpleNamespace(partition_rules=None), "unused", mesh=None)
        run.start, run.tokenizer = start, tokenizer
        return run.generation

    assert generation(start, llama.tokenizer) == said
    assert generation(start, other) == dataclasses.replace(said, stop_ids=(5,))
    assert generation(None, other) == GenerationDefaults()


def test_answers_are_scored_by_the_log_probabilities_of_their_tokens(llama):
    tokenizer, prompts, answers = llama.tokenizer, ["the red", "a blue owl", "the"], [" fox sees", " sees 狐狸", " bee"]
    found = llama.score(prompts, answers, batch_size=2)
    for prompt, answer, logp_T in zip(prompts, answers, found, strict=True):
        begin = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        own = tokenizer.encode(answer, continues=True)
        logits_TV = jax.nn.log_softmax(llama.logits(np.array([begin + own]))[0])
        expected = [logits_TV[len(begin) + i - 1, token] for i, token in enumerate(own)]
        np.testing.assert_allclose(logp_T, expected, rtol=1e-4)
    (turn,) = llama.score(["Which colour?"], ["It is red."], chat=True)
    conversation = [{"role": "user", "content": "Which colour?"}, {"role": "assistant", "content": "It is red."}]
    encoded = llama.template.encode(conversation, tokenizer)
    logits_TV = jax.nn.log_softmax(llama.logits(encoded.tokens[None])[0])
    places = np.flatnonzero(encoded.mask)
    np.testing.assert_allclose(turn, [logits_TV[i - 1, encoded.tokens[i]] for i in places], rtol=1e-4)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: m.score(["a"], []), "1 prompts and 0 answers"),
        (lambda m: m.score(["a"], [""]), "answer 1: prompt and answer have . and 0 tokens"),
        (lambda m: m.score(["a"], ["b " * 500]), "at most the context of"),
        (lambda m: m.logits(np.array([1, 2])), r"int64 \[2\]: give integers with axes"),
        (lambda m: m.logits(np.array([[1.0]])), r"float64 \[1, 1\]: give integers"),
        (lambda m: m.logits(np.array([[1, ROWS]])), f"token id {ROWS}: give 0 to {ROWS - 1}"),
        (lambda m: m.logits(np.array([[-1]])), "token id -1"),
    ],
)
def test_what_cannot_be_scored_is_told(llama, ask, message):
    with pytest.raises(UserError, match=message):
        ask(llama)


def test_logits_of_any_length_compile_few_programs(llama):
    whole = np.asarray(llama.logits(np.arange(20)[None] + 5))
    np.testing.assert_allclose(llama.logits(np.arange(17)[None] + 5), whole[:, :17], rtol=1e-3, atol=1e-3)
    assert llama._apply._cache_size() <= 4
