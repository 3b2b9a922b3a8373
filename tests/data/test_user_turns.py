"""A user's turn begins and ends as a chat template writes it, with any tokenizer."""

import pytest

from camelid.data.stop_strings import cut
from camelid.data.templates import BUILT_IN, ChatTemplate, load_template
from camelid.data.user_turns import user_turn
from camelid.errors import UserError
from camelid.tests.data.test_templates import byte_level, plain, rich, tokenizer  # noqa: F401

SAID = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2."}]
SYSTEM = {"role": "system", "content": "Sums."}


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("before", [[], [SYSTEM], SAID, [SYSTEM, *SAID]], ids=len)
def test_what_a_user_says_follows_the_prefix_and_what_ends_it_follows_the_words(name, before, tokenizer):  # noqa: F811
    template = load_template(name)
    turn = user_turn(template, tokenizer, before)
    for words in ("Is it red?", "Name the sum of 2 and 3.", "你好"):
        said = [*before, {"role": "user", "content": words}]
        whole = template.encode(said, tokenizer, generation_prompt=True).tokens.tolist()
        assert whole[: len(turn.prefix)] == turn.prefix
        after = whole[len(turn.prefix) :]
        if turn.stop_ids:
            end = after.index(turn.stop_ids[0])
        else:
            end = next(i for i in range(len(after) + 1) if turn.stop[0] in tokenizer.decode(after[:i]))
        assert cut(tokenizer.decode(after[:end]), turn.stop).strip() == words


def test_a_control_token_ends_the_turn_where_the_tokenizer_has_it_and_else_its_spelling(plain, byte_level):  # noqa: F811
    chatml = load_template("chatml")
    assert user_turn(chatml, byte_level).stop_ids == (byte_level.special["<|im_end|>"],)
    assert user_turn(chatml, plain).stop[0].startswith("<|im_end|>") and user_turn(chatml, plain).stop_ids == ()
    assert user_turn(load_template("vicuna"), byte_level)[1:] == ((), ("ASSISTANT:",))


def test_a_template_that_leaves_the_words_out_is_refused(plain):  # noqa: F811
    template = ChatTemplate("silent", "{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% endfor %}<s>")
    with pytest.raises(UserError, match="silent"):
        user_turn(template, plain)
