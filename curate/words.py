"""Words of a text in any language, for rules of quality, n-grams and ROUGE.

Spaced languages are split as Unicode's UAX #29 does for letters and numbers: "don't" and "3.14" are a word each,
"well-known" is two. Chinese is segmented by jieba. Scripts without spaces for which no segmenter is here (Japanese,
Thai, Lao, Khmer, Burmese, Tibetan) are split into characters with their marks.
"""

import functools
import re
import sys
import unicodedata

from ..errors import UserError

HAN = "\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Chinese characters, as ranges of a regular expression's character class."""

UNSPACED = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9d"
"""Letters and marks of other scripts that put no spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, kana."""

CHINESE = {"zh", "yue", "wuu", "cmn", "lzh"}
"""Codes of languages that are written in Chinese characters alone."""

UNSEGMENTED = {"ja", "th", "lo", "km", "my", "bo", "dz"}
"""Codes of languages that put no spaces between words, and whose words are characters here."""


def is_chinese(language: str) -> bool:
    """Whether a code such as "zh" or "zh-TW" names Chinese."""
    return _primary(language) in CHINESE


def is_unsegmented(language: str) -> bool:
    """Whether the words of a language, such as Japanese and Thai, are single characters here."""
    return _primary(language) in UNSEGMENTED


def _primary(language: str) -> str:
    """The first part of a code: "zh" of "zh-TW"."""
    return re.split("[-_]", language.lower())[0]


def split(text: str, language: str = "", *, punctuation: bool = False) -> list[str]:
    """The words of a text, in order and as they are written.

    Args:
      text: any text; Latin words in a Chinese text are words too.
      language: a code such as "en" or "zh-CN". Chinese characters are segmented by jieba where it names Chinese, and
        are a word each elsewhere.
      punctuation: whether each punctuation mark and symbol is a word too. The points of an ellipsis are one.

    Raises UserError where jieba is needed and not installed.
    """
    found = (_with_punctuation() if punctuation else _pattern()).findall(text)
    if not is_chinese(language):
        return [part for word in found for part in (word if _is_han(word) else (word,))]
    cut = segmenter().lcut
    words = []
    for word in found:
        if len(word) > 1 and _is_han(word):
            words += cut(word, HMM=False)
        else:
            words.append(word)
    return words


def _is_han(word: str) -> bool:
    """Whether a match is a run of Chinese characters. They begin at U+2E80, and no other match begins so."""
    return word[0] >= "\u2e80" and _han().match(word) is not None


@functools.cache
def segmenter():
    """jieba's segmenter with the dictionary of the package.

    jieba would read any newer `jieba.cache` in the folder for temporary files, such as that of another version, so the
    dictionary is read here. The segmenter runs without its hidden Markov model, which is faster: names that are not in
    the dictionary become characters.
    """
    try:
        import jieba
    except ModuleNotFoundError:
        raise UserError("words of Chinese texts need jieba: pip install 'camelid[curate]'") from None
    segmenter = jieba.Tokenizer()
    segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
    segmenter.initialized = True
    return segmenter


@functools.cache
def _han() -> re.Pattern:
    return re.compile(f"[{HAN}]")


def _source() -> str:
    """A regular expression of runs of Chinese characters, characters of unspaced scripts, and words."""
    marks = _ranges({"Mn", "Mc", "Me"})
    letter = rf"[^\W{HAN}{UNSPACED}]"
    word = rf"{letter}(?:{letter}|[{marks}\u200c\u200d])*"
    word = rf"{word}(?:(?:['’](?=[^\W\d])|(?<=\d)[.,](?=\d)){word})*"
    return rf"[{HAN}]+|(?=[{UNSPACED}])\w[{marks}]*|{word}"


@functools.cache
def _pattern() -> re.Pattern:
    return re.compile(_source())


@functools.cache
def _with_punctuation() -> re.Pattern:
    return re.compile(rf"{_source()}|\.{{2,}}|…+|[^\w\s]")


def _ranges(categories: set[str]) -> str:
    """The characters up to U+1FFFF of some Unicode categories, as ranges of a character class."""
    found: list[list[int]] = []
    for code in range(min(0x20000, sys.maxunicode)):
        if unicodedata.category(chr(code)) in categories:
            if found and found[-1][1] == code - 1:
                found[-1][1] = code
            else:
                found.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in found)
