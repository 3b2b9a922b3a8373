"""Personal data becomes placeholders; what looks like it stays."""

import copy
import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camelid.curate.personal_data.numbers import is_bank_card, is_identity_number, is_international
from camelid.curate.personal_data.step import KINDS, PersonalData
from camelid.curate.rows import Row
from camelid.curate.steps import make
from camelid.errors import UserError

from .planted_personal_data import LOOKALIKES, PERSONAL, SENTENCES, planted

SHARED = Path(__file__).parents[3] / "shared" / "data"
EACH = 60
MASK = PersonalData().mask


def row(record: dict) -> Row:
    return Row("a" * 20, record, "made", "made.jsonl, record 1")


@pytest.mark.parametrize("name", PERSONAL)
def test_planted_values_are_all_found_and_nothing_around_them_changes(name):
    kind, drawn = PERSONAL[name]
    for context in SENTENCES:
        draw = random.Random(f"{name} {context}")
        for _ in range(EACH):
            before, value, after = planted(draw, context, drawn)
            assert MASK(before + value + after) == f"{before}{getattr(PersonalData(), kind)}{after}", value


@pytest.mark.parametrize("name", LOOKALIKES)
def test_lookalikes_stay(name):
    for context in SENTENCES:
        draw = random.Random(f"{name} {context}")
        for _ in range(EACH):
            text = "".join(planted(draw, context, LOOKALIKES[name]))
            assert MASK(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "The result is 4212883012996.",
        "84834150134 - 6778576 = -16666579378",
        "<<175000-50000=125000>>",
        "In 1999-2003 and 2010 2020, 3.14159265358979",
        "第 1.2.3.4 节；升级到 10.2.3.4 版\n1.2.3.4 Introduction",
        "const MAX = 13800138000; f(13900139000) + arr[15912345678L]",
        "共 13800138000 元，约13912345678人",
        "0.13800138000 and 13800138000.5 and A13800138000",
        "see icon@2x.png, pkg@1.2.3, @user, a @ b, x@y.shape",
        "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
        "user:password@host is the form of https://user:${PASSWORD}@host/",
        "look at me dot com",
        "we reach 4155552671 users, the largest number is 4155552671, call 5551234 twice",
        "Basic information-about-everything12",
        "the numbers are 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16",
        "| 138 | 0013 | 8000 |",
        "x[2000::2], A::B::C, 12:30:45, 1:2:3",
        "assert@pytest.mark, self@cls.method, y = x@self.weight, a@b.todense, return@b.thing",
        "Python 3.11.7.1, Oracle Database 11.2.0.4, Microsoft Office 16.0.4266.1001, 驅動 8.2.3.4",
        "0030 31 32 33 34 35 36, 0049 1234 5678 9012, 007-123-4567, 0012 345",
        "phone: 01/02/2023, pH 7.4000000, contact 5551234, ph 1234567",
        "call 0123456789 times; dial 0123456789; the text 5551234567",
        "訂單號13800138000, 13800138000個",
        "an api key for 27ab, token abcdefghijklmnopqrstuvwxyz12, the key is q8Zr2LmT9xWv4Bn7Kc1D",
    ],
)
def test_what_only_looks_like_personal_data_stays(text):
    assert MASK(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("电话：13800138000。", "电话：<PHONE>。"),
        ("**138 0013 8000**", "**<PHONE>**"),
        ("<td>13800138000</td>", "<td><PHONE></td>"),
        ("１３８００１３８０００", "<PHONE>"),
        ("ｊｏｈｎ＠ｅｘａｍｐｌｅ．ｃｏｍ", "<EMAIL>"),
        ("（010）62781234", "<PHONE>"),
        ("call 138-0013-\n8000 now", "call <PHONE> now"),
        ("write to john@\nexample.org now", "write to <EMAIL> now"),
        ("4111 1111 1111\n1111", "<BANK_CARD>"),
        ("4111 1111 1111 1111 123", "<BANK_CARD> 123"),
        ("phone: 07911 123456; tel. 5551234", "phone: <PHONE>; tel. <PHONE>"),
        ("phone = 13800138000", "phone = <PHONE>"),
        ("张三(13800138000) and Bob (13800138000)", "张三(<PHONE>) and Bob (<PHONE>)"),
        ("tel:+1-212-555-0123", "tel:<PHONE>"),
        ("mailto:a.b@c.org?subject=x", "mailto:<EMAIL>?subject=x"),
        ("https://a.org/x?mail=a@b.org&phone=13800138000", "https://a.org/x?mail=<EMAIL>&phone=<PHONE>"),
        ("http://8.8.8.8:80/1.1.1.1 root@8.8.4.4", "http://<IP>:80/1.1.1.1 root@<IP>"),
        ("postgres://me:s3cret!@db.example.org/x", "postgres://me:<KEY>@db.example.org/x"),
        ("api_key = 'q8Zr2LmT9xWv4Bn7Kc1D'", "api_key = '<KEY>'"),
        ("Authorization: Bearer q8Zr2LmT9xWv4Bn7Kc1DpQ", "Authorization: Bearer <KEY>"),
        ("Authorization: Basic dXNlcjpwYXNzd29yZA==", "Authorization: Basic <KEY>"),
        ("传真:86-21-58765432", "传真:<PHONE>"),
        ("call me at 415 555 2671; John's number is 4155552671", "call me at <PHONE>; John's number is <PHONE>"),
        ("SSN 123456789, social security number: 123 45 6789", "SSN <SSN>, social security number: <SSN>"),
        ("IBAN GB82 WEST 1234 5698 7654 32 BIC ABCD", "IBAN <IBAN> BIC ABCD"),
        ("身份证号11010519491231002x", "身份证号<IDENTITY_NUMBER>"),
        ("DNS is 2001:4860:4860::8888.", "DNS is <IP>."),
        (
            "電話 02-2345-6789, 電話：0912-345-678；手機號碼：0912345678",
            "電話 <PHONE>, 電話：<PHONE>；手機號碼：<PHONE>",
        ),
        ("전화 010-1234-5678, 携帯：090-1234-5678", "전화 <PHONE>, 携帯：<PHONE>"),
        ("phone numbers: 5551234567, 5559876543 and 5550001111", "phone numbers: <PHONE>, <PHONE> and <PHONE>"),
        ("電話：02-2345-6789、03-2345-6789", "電話：<PHONE>、<PHONE>"),
        ("Tel.: 030/901820, Telefon: 030 901820", "Tel.: <PHONE>, Telefon: <PHONE>"),
        ("Tél : 01 23 45 67 89; teléfono 912 345 678", "Tél : <PHONE>; teléfono <PHONE>"),
        ("тел. 8 (495) 123-45-67", "тел. <PHONE>"),
        ("Ph: 9876543210, contact no. 9876543210", "Ph: <PHONE>, contact no. <PHONE>"),
        ("call me at 07911 123456 or dial 0800 123 4567", "call me at <PHONE> or dial <PHONE>"),
        ("text me on 5551234567", "text me on <PHONE>"),
        ("0049 30 901820, 0044-20-7946-0958", "<PHONE>, <PHONE>"),
        ("api-key q8Zr2LmT9xWv4Bn7Kc1D", "api-key <KEY>"),
        ("My API key is q8Zr2LmT9xWv4Bn7Kc1D.", "My API key is <KEY>."),
        ("密鑰為q8Zr2LmT9xWv4Bn7Kc1D", "密鑰為<KEY>"),
        ("mailto:john%40example.com?x=1", "mailto:<EMAIL>?x=1"),
        ("jøhn@example.com, john@münchen.de, почта@пример.рф", "<EMAIL>, <EMAIL>, <EMAIL>"),
        ("self@cloudhead.net", "<EMAIL>"),
    ],
)
def test_forms_of_personal_data(text, expected):
    assert MASK(text) == expected


def test_known_numbers_pass_their_checks():
    """The example of GB 11643, test numbers of card issuers, and numbers of them with a digit changed."""
    assert is_identity_number("11010519491231002X")
    assert not is_identity_number("110105194912310021")
    assert not is_identity_number("11010519490231002X")
    assert not is_identity_number("99010519491231002X")
    assert all(map(is_bank_card, ("4111111111111111", "5555555555554444", "378282246310005", "6011111111111117")))
    assert not any(map(is_bank_card, ("4111111111111112", "1234567812345670", "9780306406157", "0000000000000000")))
    assert all(map(is_international, ("+442079460958", "+8613800138000", "+12125550123")))
    assert not any(map(is_international, ("+10000000000", "+999123456789", "+4420", "+861280013800")))


def test_all_texts_of_a_record_are_masked_and_nothing_else():
    record = {
        "kind": "chat",
        "messages": [
            {"role": "user", "content": "I am a@b.org", "input": "call 13800138000"},
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": "a@b.org wrote",
                "tool_calls": [
                    {
                        "id": "13800138000",
                        "type": "function",
                        "function": {
                            "name": "send",
                            "arguments": {
                                "to": ["a@b.org"],
                                "phone": 13800138000,
                                "n": 13800138000,
                                "order_id": "13800138000",
                            },
                        },
                    },
                    {
                        "type": "function",
                        "function": {"name": "send", "arguments": '{"to": "a@b.org",  "phone": 13800138000}'},
                    },
                    {"type": "function", "function": {"name": "send", "arguments": '{"to":  "nobody"}'}},
                ],
            },
            {"role": "tool", "name": "a@b.org", "tool_call_id": "13800138000", "content": '{"mail": "a@b.org"}'},
            {"role": "assistant", "content": "done"},
        ],
        "tools": [{"type": "function", "function": {"name": "send", "description": "as in a@b.org"}}],
        "documents": [{"title": "a@b.org", "text": "13800138000"}],
        "meta": {"user": "a@b.org", "id": "13800138000", "score": 13800138000, "when": 1700000000},
    }
    before = copy.deepcopy(record)
    after = PersonalData()(row(record))
    assert record == before
    assert after.columns == {"personal_email": 7, "personal_phone": 4}
    messages = after.record["messages"]
    assert messages[0] == {"role": "user", "content": "I am <EMAIL>", "input": "call <PHONE>"}
    first, second, third = (call["function"]["arguments"] for call in messages[1]["tool_calls"])
    assert first == {"to": ["<EMAIL>"], "phone": "<PHONE>", "n": 13800138000, "order_id": "13800138000"}
    assert second == '{"to": "<EMAIL>", "phone": "<PHONE>"}'
    assert third == '{"to":  "nobody"}'
    assert messages[1]["tool_calls"][0]["id"] == messages[2]["tool_call_id"] == "13800138000"
    assert messages[2]["name"] == "a@b.org"
    assert messages[2]["content"] == '{"mail": "<EMAIL>"}'
    assert after.record["tools"] == before["tools"]
    assert after.record["documents"] == [{"title": "<EMAIL>", "text": "<PHONE>"}]
    assert after.record["meta"] == {"user": "<EMAIL>", "id": "13800138000", "score": 13800138000, "when": 1700000000}


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "text", "text": "a@b.org"},
        {
            "kind": "preference",
            "messages": [],
            "chosen": {"role": "assistant", "content": "a@b.org"},
            "rejected": [{"role": "assistant", "content": "x"}],
        },
        {"conversations": [{"from": "human", "value": "a@b.org"}]},
    ],
)
def test_records_of_all_kinds_and_raw_ones_are_masked(record):
    after = PersonalData()(row(record))
    assert "a@b.org" not in json.dumps(after.record)
    assert after.columns == {"personal_email": 1}


def test_a_row_without_personal_data_is_as_it_was():
    record = {"kind": "text", "text": "Nothing here, 你好。"}
    assert PersonalData()(row(record)) == row(record)


def test_the_same_value_has_the_same_number_in_all_of_a_row():
    record = {
        "kind": "chat",
        "messages": [
            {"role": "user", "content": "I am a@b.org, 138-0013-8000. My wife is c@d.org."},
            {"role": "assistant", "content": "Hello A@B.org! I call +86 13800138000 or c@d.org."},
        ],
    }
    step = PersonalData(number=True)
    user, assistant = (message["content"] for message in step(row(record)).record["messages"])
    assert user == "I am <EMAIL_1>, <PHONE_1>. My wife is <EMAIL_2>."
    assert assistant == "Hello <EMAIL_1>! I call <PHONE_1> or <EMAIL_2>."
    assert step(step(row(record))).record == step(row(record)).record
    assert step(row({"kind": "text", "text": "c@d.org"})).record["text"] == "<EMAIL_1>"


def test_placeholders_are_settings_and_none_leaves_a_kind():
    step = PersonalData(email="[mail]", phone=None)
    assert step.mask("a@b.org 13800138000") == "[mail] 13800138000"
    assert PersonalData(email="someone", number=True).mask("a@b.org") == "someone_1"
    nothing = PersonalData(**dict.fromkeys(KINDS))
    assert nothing.mask("a@b.org 13800138000 8.8.8.8") == "a@b.org 13800138000 8.8.8.8"


def test_addresses_of_nobody_and_addresses_in_words_are_options():
    text = "127.0.0.1, 192.168.0.1, ::1, fe80::1:2, 203.0.113.9, 2001:db8::1:2"
    assert MASK(text) == text
    assert PersonalData(reserved_ip=True).mask(text) == ", ".join(["<IP>"] * 6)
    spelled = "john at example dot com, john [at] example [dot] org, john.doe(at)gmail(dot)com"
    assert MASK(spelled) == spelled
    step = PersonalData(spelled_email=True)
    assert step.mask(spelled) == "<EMAIL>, <EMAIL>, <EMAIL>"
    for text in ("look at me dot com", "meet at noon. dot dot dot", "good at maths", "we are at home.com"):
        assert step.mask(text) == text


def test_settings_are_checked():
    with pytest.raises(UserError, match=r"config\.step\.personal_data\.email = ''"):
        make("personal_data", {"email": ""}, "config.step.personal_data")
    with pytest.raises(UserError, match=r"nothing reads config\.step\.personal_data\.mail; did you mean"):
        make("personal_data", {"mail": "<M>"}, "config.step.personal_data")


PIECES = [lambda d, drawn=drawn: drawn(d) for _, drawn in PERSONAL.values()]
PIECES += [lambda d, drawn=drawn: drawn(d) for drawn in LOOKALIKES.values()]
PIECES += [lambda d, part=part: part for part in ("<EMAIL>", "<PHONE_2>", " ", "\n", ",", "1", "-", "@", "：", "a")]


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 8), number=st.booleans())
def test_masking_twice_changes_no_more_than_masking_once(seed, count, number):
    draw = random.Random(seed)
    text = "".join(draw.choice(PIECES)(draw) for _ in range(count))
    step = PersonalData(number=number, reserved_ip=True, spelled_email=True)
    once = step.mask(text)
    assert step.mask(once) == once


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "1",
        "4111",
        "@",
        ".",
        "1 ",
        "1-",
        "a@",
        "a.",
        ":",
        "ab:",
        "+1",
        "(1)",
        "-----BEGIN PRIVATE KEY-----\n",
        "eyJ",
        "sk-",
        "http://",
        "a://b:",
        " at ",
        "glpat-",
        "DE89 ",
        "xoxb-1-",
        "１",
        "中1",
        "a@b.org ",
        "110105194912310021",
        "a%40",
        "ø@",
        "0049 30 ",
        "phone 1234567, ",
        "1234567, ",
        "/1",
    ],
)
def test_long_lines_take_time_in_proportion_to_their_length(unit):
    text = unit * (200_000 // len(unit))
    start = time.process_time()
    PersonalData(spelled_email=True).mask(text)
    assert time.process_time() - start < 3


def test_tokens_that_the_plugins_of_detect_secrets_find_are_found():
    from detect_secrets.plugins import github_token, gitlab_token, jwt, private_key, sendgrid, slack, stripe

    plugins = [github_token.GitHubTokenDetector(), gitlab_token.GitLabTokenDetector(), jwt.JwtTokenDetector()]
    plugins += [private_key.PrivateKeyDetector(), sendgrid.SendGridDetector(), slack.SlackDetector()]
    plugins += [stripe.StripeDetector()]
    draw, found = random.Random(0), Counter()
    for _ in range(200):
        text = PERSONAL["key"][1](draw)
        for plugin in plugins:
            if any(plugin.analyze_string(text)):
                found[plugin.secret_type] += 1
                assert MASK(text) == "<KEY>"
    assert len(found) == len(plugins)


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
def test_in_real_pages_only_mail_addresses_and_phone_numbers_are_masked():
    """Counted by reading all that is masked: 300 pages of C4 hold nothing else, 500 conversations nothing at all."""
    counts = Counter()
    for line in (SHARED / "c4_en.jsonl").read_text().splitlines():
        counts.update(PersonalData()(row({"kind": "text", "text": json.loads(line)["text"]})).columns)
    assert counts == {"personal_phone": 23, "personal_email": 7}
    conversations = json.loads((SHARED / "sharegpt_en.json").read_text())
    assert not any(PersonalData()(row(record)).columns for record in conversations)
