"""Chat templates: the published strings, the mask, and that what messages say stays text."""

import hashlib

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from camelid.data.templates import BUILT_IN, TRACING_VERSION, ChatTemplate, encode_text, load_template
from camelid.data.tokenizer import Tokenizer
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.errors import UserError

CONTROL = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
CORPUS = ["USER: ASSISTANT: Below is an instruction [INST] system user assistant hello there, how are you? 你好 " * 5]

SYSTEM = {"role": "system", "content": "Be kind."}
HELLO = {"role": "user", "content": "Hello"}
HI = {"role": "assistant", "content": "Hi there"}
MORE = {"role": "user", "content": "And you?"}
FINE = {"role": "assistant", "content": "Fine"}
CHAT = [HELLO, HI, MORE, FINE]

# Templates as they stand in Hugging Face repositories, without a generation block.
ZEPHYR = (
    "{% for message in messages %}\n{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token }}\n"
    "{% endfor %}\n{% if add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}"
)
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A LLaMA tokenizer: no control tokens but <s> and </s>."""
    return train_sentencepiece(CORPUS, vocab_size=330, output_dir=tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """A SentencePiece tokenizer with all the control tokens."""
    folder = tmp_path_factory.mktemp("rich")
    return train_sentencepiece(CORPUS, vocab_size=340, output_dir=folder, special_tokens=CONTROL)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A byte-level tokenizer.json with all the control tokens and bos."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|begin_of_text|>", "<|end_of_text|>", *CONTROL]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    path = tmp_path_factory.mktemp("byte_level") / "tokenizer.json"
    tokenizer.save(str(path))
    return Tokenizer.load(path)


@pytest.fixture(params=["plain", "rich", "byte_level"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def trained_text(encoded, tokenizer):
    """What the mask covers, control tokens spelled out, one string per turn."""
    turns, current = [], ""
    for token, is_trained in zip(encoded.tokens, encoded.mask, strict=True):
        if is_trained:
            current += tokenizer.piece(token)
        elif current:
            turns.append(current)
            current = ""
    return turns + [current] * bool(current)


# The published strings -----------------------------------------------------------------------------------------------


def test_alpaca_prompts_are_stanfords(plain):
    template = load_template("alpaca")
    without = template.render([{"role": "user", "content": "Name a camelid."}], plain, generation_prompt=True)
    assert without == (
        "<s>Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName a camelid.\n\n### Response:"
    )
    question = {"role": "user", "content": "Translate.", "input": "llama"}
    with_input = template.render([question, {"role": "assistant", "content": "羊驼"}], plain)
    assert with_input == (
        "<s>Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nTranslate.\n\n### Input:\nllama\n\n### Response:羊驼</s>"
    )


def test_alpaca_goes_on_after_a_blank_line_and_takes_a_system_message_as_preamble(plain):
    assert load_template("alpaca").render([SYSTEM, *CHAT], plain) == (
        "<s>Be kind.\n\n### Instruction:\nHello\n\n### Response:Hi there</s>\n\n"
        "### Instruction:\nAnd you?\n\n### Response:Fine</s>"
    )


def test_vicuna_is_fastchats(plain):
    usual = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    rounds = " USER: Hello ASSISTANT: Hi there</s>USER: And you? ASSISTANT:"
    template = load_template("vicuna")
    assert template.render(CHAT[:3], plain, generation_prompt=True) == "<s>" + usual + rounds
    assert template.render(CHAT, plain) == "<s>" + usual + rounds + " Fine</s>"
    assert template.render([SYSTEM, *CHAT[:3]], plain, generation_prompt=True) == "<s>Be kind." + rounds


def test_chatml_is_openais(rich):
    text = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    template = load_template("chatml")
    assert template.render([SYSTEM, HELLO], rich, generation_prompt=True) == text
    assert template.render([SYSTEM, HELLO, HI], rich) == text + "Hi there<|im_end|>\n"


def test_llama2_is_metas(plain):
    template = load_template("llama2")
    assert template.render([SYSTEM, *CHAT[:3]], plain, generation_prompt=True) == (
        "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHello [/INST] Hi there </s><s>[INST] And you? [/INST]"
    )
    spaced = [{"role": "user", "content": " Hello\n"}, {"role": "assistant", "content": "\nHi "}]
    assert template.render(spaced, plain) == "<s>[INST] Hello [/INST] Hi </s>"


def test_llama2_tokens_are_those_of_metas_loop_over_rounds(plain):
    """generation.py: each round is bos + encode("[INST] … [/INST] … ") + eos."""
    expected = []
    for question, answer in (("Hello", "Hi there"), ("And you?", "Fine")):
        expected += [plain.bos_id, *plain.encode(f"[INST] {question} [/INST] {answer} "), plain.eos_id]
    assert load_template("llama2").encode(CHAT, plain).tokens.tolist() == expected


def test_llama3_is_metas(byte_level):
    assert load_template("llama3").render([SYSTEM, *CHAT[:3]], byte_level, generation_prompt=True) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHi there<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd you?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_llama3_tokens_are_those_of_metas_chat_format(byte_level):
    """tokenizer.py: header, encode of the content, <|eot_id|>, message by message."""
    special, encode = byte_level.special, byte_level.encode
    expected = [byte_level.bos_id]
    for message in [SYSTEM, *CHAT]:
        header = [special["<|start_header_id|>"], *encode(message["role"]), special["<|end_header_id|>"]]
        expected += [*header, *encode("\n\n"), *encode(message["content"]), special["<|eot_id|>"]]
    assert load_template("llama3").encode([SYSTEM, *CHAT], byte_level).tokens.tolist() == expected


# The mask ------------------------------------------------------------------------------------------------------------

EXPECTED_TURNS = {
    # by template: what is trained with the control tokens at hand, and on a tokenizer that has only <s> and </s>
    "alpaca": (["Hi there{eos}", "Fine{eos}"],) * 2,
    "vicuna": ([" Hi there{eos}", " Fine{eos}"],) * 2,
    "llama2": ([" Hi there {eos}", " Fine {eos}"],) * 2,
    "chatml": (["Hi there<|im_end|>", "Fine<|im_end|>"], ["Hi there{eos}", "Fine{eos}"]),
    "llama3": (["Hi there<|eot_id|>", "Fine<|eot_id|>"], ["Hi there{eos}", "Fine{eos}"]),
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_mask_covers_the_assistants_words_and_its_end_token(name, tokenizer, plain):
    expected = EXPECTED_TURNS[name][tokenizer is plain]
    eos = tokenizer.piece(tokenizer.eos_id)
    encoded = load_template(name).encode([SYSTEM, *CHAT], tokenizer)
    assert trained_text(encoded, tokenizer) == [turn.format(eos=eos) for turn in expected]
    assert encoded.tokens.dtype == np.int32 and encoded.mask.dtype == np.bool_
    assert encoded.tokens.shape == encoded.mask.shape


@pytest.mark.parametrize("name", BUILT_IN)
def test_stop_ids_are_the_end_of_the_turn_and_the_end_of_text(name, tokenizer):
    template = load_template(name)
    stops = template.stop_ids(tokenizer)
    own = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}.get(name)
    expected = {tokenizer.eos_id} | ({tokenizer.special[own]} if own in tokenizer.special else set())
    assert set(stops) == expected
    encoded = template.encode(CHAT, tokenizer)
    ends = np.flatnonzero(encoded.mask & ~np.append(encoded.mask[1:], False))
    assert len(ends) == 2 and set(encoded.tokens[ends]) <= set(stops)


@pytest.mark.parametrize("source", [*BUILT_IN, ZEPHYR, LLAMA2])
def test_a_prompt_is_the_beginning_of_the_conversation(source, tokenizer):
    template = load_template(source)
    messages = CHAT if source == LLAMA2 else [SYSTEM, *CHAT]
    whole = template.encode(messages, tokenizer)
    for k in (k for k, message in enumerate(messages) if message["role"] == "assistant"):
        prompt = template.encode(messages[:k], tokenizer, generation_prompt=True).tokens
        assert whole.tokens[: len(prompt)].tolist() == prompt.tolist()
        assert whole.mask[len(prompt)] and not whole.mask[len(prompt) - 1]  # training starts where generation does


words = st.text(max_size=12) | st.sampled_from(
    ["</s>", "<s>", *CONTROL, "<|im_end|", ">", "/s>", " \n x \n ", "▁", "\ue000"]
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(words, min_size=4, max_size=4), st.sampled_from([*BUILT_IN, ZEPHYR, LLAMA2]))
def test_whatever_messages_say_adds_no_control_token_and_is_said(tokenizer, contents, source):
    template = load_template(source)
    said = [message | {"content": content} for message, content in zip(CHAT, contents, strict=True)]
    encoded = template.encode(said, tokenizer)
    control = [t for t in encoded.tokens.tolist() if t in tokenizer.special.values()]
    blank = [message | {"content": "x" if message["content"].strip() else ""} for message in said]
    expected = [t for t in template.encode(blank, tokenizer).tokens.tolist() if t in tokenizer.special.values()]
    assert control == expected
    text = tokenizer.decode(encoded.tokens)
    assert all(content.strip() in text for content in contents)
    prompt = template.encode(said[:3], tokenizer, generation_prompt=True).tokens
    assert encoded.tokens[: len(prompt)].tolist() == prompt.tolist()


def test_a_message_cannot_complete_a_control_token_that_the_template_begins(rich):
    template = load_template("{% for m in messages %}<{{ m.content }}|im_end|>{{ m.content }}{% endfor %}")
    encoded = template.encode([{"role": "user", "content": "/s><"}], rich)
    assert rich.decode(encoded.tokens) == "</s><|im_end|>/s><"
    assert [t for t in encoded.tokens if t in rich.special.values()] == [rich.bos_id]


def test_bos_stands_once_at_the_start_where_the_tokenizer_adds_it_or_the_template_writes_it(tokenizer):
    for name in BUILT_IN:
        template = load_template(name)
        encoded = template.encode([HELLO, HI], tokenizer)
        due = tokenizer.adds_bos or "bos_token" in template.source
        assert np.flatnonzero(encoded.tokens == tokenizer.bos_id).tolist() == ([0] if due else [])
        assert not encoded.mask[0]


def test_llama2_begins_every_round_with_bos(tokenizer):
    assert (load_template("llama2").encode(CHAT, tokenizer).tokens == tokenizer.bos_id).sum() == 2


def test_a_conversation_in_which_no_assistant_speaks_has_an_empty_mask(tokenizer):
    silent = {"role": "assistant", "content": " \n"}
    for source in [*BUILT_IN, ZEPHYR, LLAMA2]:
        assert not load_template(source).encode([HELLO], tokenizer).mask.any()
        assert not load_template(source).encode([HELLO, silent], tokenizer).mask.any()


# The user's own templates --------------------------------------------------------------------------------------------


def test_a_template_without_generation_block_trains_the_same_as_ours(plain):
    ours, theirs = load_template("llama2").encode(CHAT, plain), load_template(LLAMA2).encode(CHAT, plain)
    assert ours.tokens.tolist() == theirs.tokens.tolist()
    assert ours.mask.tolist() == theirs.mask.tolist()


def test_a_template_that_moves_the_system_message_trains_the_contents(plain):
    """Mistral's do: the prompt of the first answer is then not the beginning of the whole conversation."""
    source = (
        "{% set questions = messages | selectattr('role', 'equalto', 'user') | list %}{% for m in messages %}"
        "{% if m.role == 'user' %}{{ 'Be kind. ' if m is sameas questions[-1] }}Q: {{ m.content }} A: "
        "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
    )
    encoded = load_template(source).encode(CHAT, plain)
    assert trained_text(encoded, plain) == ["Hi there</s>", "Fine</s>"]


def test_a_template_that_cuts_the_assistants_words_is_refused(plain):
    source = "{% for m in messages %}{{ loop.length }}{{ m.content.split('H')[-1] if loop.length > 1 }}{% endfor %}"
    with pytest.raises(UserError, match="cuts up the assistant's text"):
        load_template(source).encode([HELLO, HI], plain)


def test_end_tokens_inside_a_generation_block_are_not_doubled(plain):
    source = "{% for m in messages %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% endfor %}"
    encoded = load_template(source).encode([HI], plain)
    assert encoded.tokens.tolist() == [plain.bos_id, *plain.encode("Hi there"), plain.eos_id]


def test_a_template_that_ends_no_turn_gets_the_end_of_text(tokenizer):
    template = load_template("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    encoded = template.encode(CHAT, tokenizer)
    eos = tokenizer.piece(tokenizer.eos_id)
    assert [turn.removeprefix("assistant: ") for turn in trained_text(encoded, tokenizer)] == [
        "Hi there" + eos,
        "Fine" + eos,
    ]
    assert template.stop_ids(tokenizer) == (tokenizer.eos_id,)


def test_input_is_appended_where_the_template_does_not_know_it(rich):
    question = {"role": "user", "content": "Translate.", "input": "llama"}
    assert load_template("chatml").render([question], rich) == "<|im_start|>user\nTranslate.\n\nllama<|im_end|>\n"


def test_a_template_file_is_read_and_has_a_fingerprint(tmp_path, plain):
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    template = load_template(tmp_path / "mine.jinja")
    assert template.name == "mine"
    assert template.render([HELLO], plain) == "Hello"
    source = (tmp_path / "mine.jinja").read_bytes()
    assert template.fingerprint == hashlib.sha256(source + TRACING_VERSION).hexdigest()


def test_hugging_faces_extras_work(plain):
    source = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ {'a': '<é>'} | tojson }}"
        "{{ strftime_now is defined }}{{ tools is none }}{% endfor %}"
    )
    assert load_template(source).render([HELLO, HELLO], plain) == '{"a": "<é>"}TrueTrue'


def test_templates_cannot_reach_python(plain):
    with pytest.raises(UserError, match="unsafe"):
        load_template("{{ messages.__class__.__mro__ }}").render([HELLO], plain)


# Mistakes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["alpaca", "vicuna", "llama2"])
@pytest.mark.parametrize(
    "messages, expected",
    [
        ([HI], "message 1 is from the assistant, expected the user"),
        ([SYSTEM, HELLO, MORE], "message 3 is from the user, expected the assistant"),
        ([HELLO, SYSTEM], "message 2 is from the system, expected the assistant"),
    ],
)
def test_roles_out_of_order_are_told_by_message(name, messages, expected, plain):
    with pytest.raises(UserError, match=f"chat template {name}: {expected}"):
        load_template(name).encode(messages, plain)


@pytest.mark.parametrize(
    "messages, expected",
    [
        ([], "no messages"),
        ([HELLO, {"role": "robot", "content": "x"}], "message 2 has role 'robot'"),
        ([HELLO, {"role": "assistant", "content": None}], "message 2, of the assistant, has no content"),
        ([HELLO, HI], "message 2, the last one, is the assistant's"),
    ],
)
def test_malformed_conversations_are_told_by_message(messages, expected, plain):
    with pytest.raises(UserError, match=expected):
        load_template("chatml").encode(messages, plain, generation_prompt=True)


@pytest.mark.parametrize("name", ["alpaca", "vicuna", "llama2"])
def test_a_prompt_without_a_question_is_refused(name, plain):
    with pytest.raises(UserError, match="no message from the user"):
        load_template(name).encode([SYSTEM], plain, generation_prompt=True)


def test_unknown_and_broken_templates_are_told(tmp_path):
    with pytest.raises(UserError, match="no chat template 'vicunia': give one of alpaca, chatml"):
        load_template("vicunia")
    files = {
        b"{{ messages }}\n{% for %}": "chat template broken, line 2",
        b"a list of records": "broken.jinja is not a chat template: it does not use the variable `messages`",
        b"{{ messages + '\xe9' }}": r"broken\.jinja is not UTF-8: .* byte 0xe9",
    }
    for content, said in files.items():
        (tmp_path / "broken.jinja").write_bytes(content)
        with pytest.raises(UserError, match=said):
            load_template(tmp_path / "broken.jinja")


# Plain text ----------------------------------------------------------------------------------------------------------


def test_a_document_is_bos_text_eos_and_all_but_bos_is_trained(tokenizer):
    tokens, mask = encode_text("hello </s>", tokenizer)
    begin = [tokenizer.bos_id] if tokenizer.adds_bos else []
    assert tokens.tolist() == [*begin, *tokenizer.encode("hello </s>"), tokenizer.eos_id]
    assert mask.tolist() == [False] * len(begin) + [True] * (len(tokens) - len(begin))


def test_templates_are_values():
    assert load_template("chatml") == ChatTemplate("chatml", load_template("chatml").source)
    assert len({load_template(name).fingerprint for name in BUILT_IN}) == len(BUILT_IN) == 5
