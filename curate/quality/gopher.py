"""The step `gopher`: the quality rules of Gopher's MassiveText (arXiv:2112.11446, appendix A1.1).

Numbers are those of datatrove's GopherQualityFilter for the same words. What differs: words are those of `words.split`,
"……" is one ellipsis, and the stop words of a language are only asked of texts in it.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ...settings.leaves import NotNegative, Share, Unset, Whole
from .. import words
from .rules import Number, Quality, Rule, tables, tokens

OFF = Unset("no such rule")


@dataclass(frozen=True)
class GopherLimits:
    """Thresholds of the rules, for documents; None switches a rule off."""

    min_doc_words: Annotated[Whole | None, OFF] = 50
    """The least number of words with a letter or digit."""

    max_doc_words: Annotated[Whole | None, OFF] = 100_000
    """The largest number of words with a letter or digit."""

    min_avg_word_length: Annotated[NotNegative | None, OFF] = 3.0
    """The least mean length of words, in characters. Japanese, Thai and others without segmenter have no such rule."""

    max_avg_word_length: Annotated[NotNegative | None, OFF] = 10.0
    """The largest mean length of words, in characters."""

    max_symbol_word_ratio: Annotated[NotNegative | None, OFF] = 0.1
    """The largest ratio of "#" to words, and of ellipses to words; punctuation marks count as words here."""

    max_bullet_lines_ratio: Annotated[Share | None, OFF] = 0.9
    """The largest share of lines that begin with a bullet point."""

    max_ellipsis_lines_ratio: Annotated[Share | None, OFF] = 0.3
    """The largest share of lines that end with an ellipsis."""

    min_alpha_words_ratio: Annotated[Share | None, OFF] = 0.8
    """The least share of words with a letter; punctuation marks count as words here."""

    min_stop_words: Annotated[Whole | None, OFF] = 2
    """The least number of different stop words."""

    stop_words: Annotated[list[str] | None, Unset("the list of the language in quality.toml")] = None
    """Stop words, as they are written in lower case."""


CHINESE = GopherLimits(min_avg_word_length=None, max_avg_word_length=3.5, min_alpha_words_ratio=0.5)
"""Thresholds for Chinese, whose words have one or two characters. Classical and traditional Chinese is split into
single characters, so that there is no least length. More of its words are punctuation marks than in English."""


@dataclass(frozen=True)
class Gopher(Quality, GopherLimits):
    """Rejects texts by their length, words, symbols, bullet points, ellipses and stop words.

    Columns: gopher_words, gopher_mean_word_length, gopher_hash_ratio, gopher_ellipsis_ratio, gopher_bullet_lines,
    gopher_ellipsis_lines, gopher_alpha_words, gopher_stop_words.
    """

    rules: ClassVar = (
        Rule("gopher_short_doc", "gopher_words", "min_doc_words", is_least=True),
        Rule("gopher_long_doc", "gopher_words", "max_doc_words"),
        Rule("gopher_below_avg_threshold", "gopher_mean_word_length", "min_avg_word_length", is_least=True),
        Rule("gopher_above_avg_threshold", "gopher_mean_word_length", "max_avg_word_length"),
        Rule("gopher_too_many_hashes", "gopher_hash_ratio", "max_symbol_word_ratio"),
        Rule("gopher_too_many_ellipsis", "gopher_ellipsis_ratio", "max_symbol_word_ratio"),
        Rule("gopher_too_many_bullets", "gopher_bullet_lines", "max_bullet_lines_ratio"),
        Rule("gopher_too_many_end_ellipsis", "gopher_ellipsis_lines", "max_ellipsis_lines_ratio"),
        Rule("gopher_below_alpha_threshold", "gopher_alpha_words", "min_alpha_words_ratio", is_least=True),
        Rule("gopher_too_few_stop_words", "gopher_stop_words", "min_stop_words", is_least=True),
    )
    reasons: ClassVar = tuple(rule.reason for rule in rules)
    prefix: ClassVar = "gopher"

    zh: GopherLimits = CHINESE
    """Thresholds for Chinese."""

    def measure(self, text: str, language: str) -> dict[str, Number]:
        """The columns of a text. A text without words or lines has zeros."""
        found = tokens(text, language)
        plain = [word for word in found if word[0].isalnum() or any(map(str.isalnum, word))]
        count, lines = max(1, len(found)), text.splitlines() or [""]
        bullets = tuple(tables()["bullets"]["zh" if words.is_chinese(language) else "en"])
        measured = dict(
            gopher_words=len(plain),
            gopher_hash_ratio=text.count("#") / count,
            gopher_ellipsis_ratio=(text.count("...") + text.replace("……", "…").count("…")) / count,
            gopher_bullet_lines=sum(line.lstrip().startswith(bullets) for line in lines) / len(lines),
            gopher_ellipsis_lines=ellipsis_lines(lines, language),
            gopher_alpha_words=sum(any(map(str.isalpha, word)) for word in found) / count,
        )
        if not words.is_unsegmented(language):
            measured["gopher_mean_word_length"] = sum(map(len, plain)) / max(1, len(plain))
        if (stop_words := self.stop_words_of(language)) is not None:
            measured["gopher_stop_words"] = len(stop_words.intersection(found))
        return measured

    def stop_words_of(self, language: str) -> set[str] | None:
        """The stop words for a language; None where there is no list."""
        given = self.limits(language).stop_words
        known = tables()["stop_words"].get("zh" if words.is_chinese(language) else language.partition("-")[0].lower())
        return set(given) if given is not None else None if known is None else set(known)


def ellipsis_lines(lines: list[str], language: str) -> float:
    """The share of lines that end with an ellipsis, as if they were cut.

    In Chinese "……" ends a sentence, and a comment or story may end with "..." for effect: neither these lines nor the
    last line count.
    """
    ended = [line.rstrip().endswith(("...", "…")) for line in lines]
    if words.is_chinese(language):
        ended = [end and not line.rstrip().endswith("……") for end, line in zip(ended[:-1], lines, strict=False)]
    return sum(ended) / len(lines)
