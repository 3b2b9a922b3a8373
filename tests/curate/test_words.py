"""Words of texts in spaced languages, in Chinese, and in other scripts without spaces."""

import builtins
import json
import re
import tempfile
from pathlib import Path

import pytest

from camelid.curate import words
from camelid.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "Don't split well-known 3.14, 1,000 things… O’Neil!", "Don't split well known 3.14 1,000 things O’Neil"),
        ("en", "'quoted' e.g. snake_case x=1.", "quoted e g snake_case x 1"),
        ("fr", "L'été déjà naïve", "L'été déjà naïve"),
        ("fr", "e\u0301te\u0301 fini", "e\u0301te\u0301 fini"),
        ("hi", "नमस्ते दुनिया", "नमस्ते दुनिया"),
        ("ko", "한국어 문장입니다.", "한국어 문장입니다"),
        ("ja", "東京タワーへ", "東 京 タ ワ ー へ"),
        ("th", "สวัสดีครับ", "ส วั ส ดี ค รั บ"),
        ("zh", "我在南京市长江大桥用Python3写了100行代码。", "我 在 南京市 长江大桥 用 Python3 写 了 100 行 代码"),
        ("zh-CN", "今天天气不错", "今天天气 不错"),
        ("en", "The word 你好 means hello", "The word 你 好 means hello"),
        ("", "𠀀𠀁 ok", "𠀀 𠀁 ok"),
        ("zh", "", ""),
    ],
)
def test_words_of_each_script(language, text, expected):
    assert words.split(text, language) == expected.split()


def test_punctuation_marks_are_words_only_if_asked():
    assert words.split("Hi, you… 你好！", "zh", punctuation=True) == ["Hi", ",", "you", "…", "你好", "！"]


def test_nothing_but_space_and_punctuation_is_lost():
    text = "Ein Text—mit Zeichen: 你好, 한국어; 123 कि ไทย 😀 a\u0301"
    for language in ("en", "zh"):
        assert "".join(words.split(text, language, punctuation=True)) == "".join(text.split())


def test_a_dictionary_left_in_the_folder_for_temporary_files_changes_nothing(tmp_path, monkeypatch):
    import jieba

    before = words.split("南京市长江大桥", "zh")
    assert before == ["南京市", "长江大桥"]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "jieba.cache").write_bytes(b"not a dictionary")
    jieba.add_word("南京市长")
    words.segmenter.cache_clear()
    assert words.split("南京市长江大桥", "zh") == before
    jieba.del_word("南京市长")


def test_a_missing_jieba_is_one_line(monkeypatch):
    real = builtins.__import__

    def without_jieba(name, *rest):
        if name == "jieba":
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    words.segmenter.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without_jieba)
    with pytest.raises(UserError, match=r"pip install 'camelid\[curate\]'"):
        words.split("你好吗", "zh")


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
def test_words_of_real_chinese_answers_are_those_of_jieba():
    import jieba

    segmenter, compared = jieba.Tokenizer(), 0
    for record in json.loads((SHARED / "alpaca_zh_demo.json").read_text()):
        text = record["output"]
        if re.search("[A-Za-z0-9][一-鿿]", text):
            continue  # words of the dictionary with letters in them, such as "T恤", are two here
        ours = [word for word in words.split(text, "zh") if "一" <= word[0] <= "鿿"]
        assert ours == [word for word in segmenter.lcut(text, HMM=False) if "一" <= word[0] <= "鿿"]
        compared += 1
    assert compared > 500
