"""An index of the n-grams of evaluation sets, and the search for them in a text.

Of a text only letters and digits count: after Unicode's form NFKD, without case, accents, markup, punctuation and white
space. So a question is found again with other line breaks, list marks, thousands separators or full-width characters.
N-grams begin where words of the evaluation's text begin, but they are compared as runs of letters and digits.

Brown and others, "Language models are few-shot learners", 2020, appendix C, has n-grams of 13 words.

    index = Index.from_sets({"gsm8k": EvaluationSet("gsm8k_test.jsonl")}, Ngrams())
    for hit in index.hits(text):
        print(hit.set, hit.item, hit.ngram, hit.share)
"""

import functools
import html
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple
from urllib.parse import unquote

import numpy as np

from ...data.sources import Source, read
from ...errors import UserError
from ...settings.leaves import Count, Path, Range
from .evaluation_sets import EvaluationSet, Item, items_of
from .shingles import (
    LETTER,
    MARK,
    SINGLE,
    STEP,
    character_kinds,
    character_values,
    code_points,
    powers,
    searched,
    unit_starts,
)

ANCHORS = (24, 12)
"""Letters at the beginning of an n-gram that are looked up first. An n-gram is looked up by the longest that fits."""

LETTERS = 3
"""Least mean number of letters and digits in the words of an n-gram. One with more short words, as in code or sums, is
longer than `Ngrams.words`."""

_FILTER_BITS = np.uint64(22)
_INVERSE = np.uint64(pow(int(STEP), -1, 2**64))
_MARKUP = re.compile(
    r"""(?=[`!\[<\\\x1b]) (?:
        ``` [^\s`]*                             # the fence of a code block, with its language
      | !? \[ ([^\]\n]{0,300}) \] \( [^()\s]* \)  # a link or picture, of which the text stays
      | << [^<>]{0,300} >>                      # a calculation in GSM8K
      | </? [A-Za-z] [^<>\n]{0,300} >           # a tag of HTML
      | <!-- [\s\S]{0,300}? -->                 # a comment of HTML
      | \x1b \[ [\d;?]{0,30} [A-Za-z]           # a colour or another code of a terminal
      | \\ (?: begin | end ) \{ [^{}\n]* \}     # an environment of LaTeX
      | \\ ([A-Za-z]+)                          # a command of LaTeX
    )
    | ^ [ \t>]* (?: [-*+\u2022\u00b7] | \(? (?: \d{1,3} | [A-Za-z] ) [.)] | [\u4e00-\u5341]{1,3}\u3001 ) (?= \s )""",
    re.VERBOSE | re.MULTILINE,
)
_ESCAPE = re.compile(r"\\(?:[nrt\"'/]|u(?P<point>[0-9A-Fa-f]{4}))|(?P<bytes>(?:%[0-9A-Fa-f]{2})+)")
"""An escape of JSON or of a URL."""
_APOSTROPHE = re.compile(r"(?<=\w)['\u2019](?=\w)")


@dataclass(frozen=True)
class Ngrams:
    """Which n-grams of evaluation sets are looked for."""

    words: Count = 13
    """Length of an n-gram in words."""

    characters: Annotated[int, Range(least=ANCHORS[-1])] = 16
    """Length of an n-gram in characters of a script without spaces, such as Chinese. In mixed text, a word counts as
    much as characters / words such characters."""

    shortest: Count = 8
    """Words of the shortest question that is looked for within a text; in Chinese the same share of `characters`. A
    question of fewer words leaks only where it is a whole message, one of fewer than half as many words nowhere. A
    question of fewer than `words` words is looked for as a whole, an answer of so few words not at all."""

    common: Count = 10
    """An n-gram that more items of the evaluation sets have than this is common text, which does not count."""

    simplified: bool = False
    """Whether traditional Chinese characters equal their simplified forms (the package opencc)."""

    background: list[Path] = ()
    """Paths or globs of files whose n-grams are common text, which does not count."""

    def check(self, where: str) -> None:
        if self.shortest > self.words:
            raise UserError(f"{where}.shortest = {self.shortest}: give at most {where}.words = {self.words}")


class Hit(NamedTuple):
    """An item of an evaluation set that a text has n-grams of."""

    set: str
    """Name of the evaluation set."""

    item: str
    """File name and line or number of the item, such as "gsm8k_test.jsonl:7"."""

    ngram: str
    """The first n-gram that was found, in the words of the item."""

    share: float
    """Share of the n-grams of the item's question or answer that were found, the larger one of the two."""


class _Passage(NamedTuple):
    """A question or an answer of an item, with or without its markup."""

    item: int
    text: str  # one of those that `plain` returns


class _Letters:
    """The letters and digits of a text, with hashes of its parts."""

    def __init__(self, text: str):
        self._text_points = code_points(text)
        values, is_letter = _tables()
        self.chosen = is_letter[self._text_points]
        points = self._text_points[self.chosen]
        self.length = len(points)
        weights, self.inverse = _weights(max(self.length, 1024).bit_length())
        self.sums = np.zeros(self.length + 1, np.uint64)
        np.cumsum(values[points] * weights[: self.length], out=self.sums[1:])

    def hashes(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """A hash of 64 bits of the letters from each start up to each end. It is the same wherever they stand."""
        return (self.sums[ends] - self.sums[starts]) * self.inverse[starts]

    def windows(self, length: int) -> np.ndarray:
        """The hashes of all runs of `length` letters."""
        count = max(self.length - length + 1, 0)
        return (self.sums[length : length + count] - self.sums[:count]) * self.inverse[:count]

    def units(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each unit starts among the letters, and whether it is a single character of a script without spaces."""
        kinds = character_kinds()[self._text_points]
        kinds = np.where(self.chosen | (kinds == MARK), kinds, 0)
        starts = unit_starts(kinds)
        place = (np.cumsum(self.chosen) - self.chosen)[starts]
        return np.append(place, self.length), kinds[starts] == SINGLE


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """The hash of each code point, and whether it is a letter or digit."""
    kinds = character_kinds()
    return character_values(np.arange(len(kinds))), (kinds == LETTER) | (kinds == SINGLE)


@functools.cache
def _weights(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The powers of STEP up to 2^bits, and their inverses modulo 2^64."""
    inverse = np.full(2**bits, _INVERSE)
    inverse[0] = 1
    return powers(2**bits), np.multiply.accumulate(inverse)


def plain(text: str, simplified: bool = False) -> list[str]:
    """A text in Unicode's form NFKD without case, and once more without markup of Markdown, HTML and LaTeX, if it has
    any. What looks like markup need not be, such as a number before a full stop at the beginning of a line.

    Args:
      text: the text.
      simplified: whether traditional Chinese characters become simplified ones. Raises UserError without opencc.
    """
    text = unicodedata.normalize("NFKD", html.unescape(text) if "&" in text else text)
    if simplified and not text.isascii():
        text = _converter().convert(text)
    bare, count = _MARKUP.subn(_kept, text)
    return [text.casefold(), bare.casefold()] if count else [text.casefold()]


@functools.cache
def _converter():
    """OpenCC's converter from traditional to simplified Chinese."""
    try:
        import opencc
    except ModuleNotFoundError:
        raise UserError("ngrams.simplified=True needs opencc: pip install 'camelid[curate]'") from None
    return opencc.OpenCC("t2s")


def _unescaped(text: str) -> str:
    """A text with escapes of JSON and URLs, such as \\n and %20 between words, as what they stand for."""
    if "\\" not in text and "%" not in text:
        return text
    return _ESCAPE.sub(_meant, text)


def _meant(escape: re.Match) -> str:
    """What an escape stands for; a blank for those of white space and signs."""
    if escape["bytes"]:
        return unquote(escape["bytes"])
    return chr(int(escape["point"], 16)) if escape["point"] else " "


def _kept(markup: re.Match) -> str:
    """What stays of markup: the text of a link, and Greek letters, which LaTeX names."""
    if markup[2]:
        try:
            return unicodedata.lookup(f"GREEK SMALL LETTER {markup[2]}")
        except KeyError:
            return " "
    return markup[1] or " "


class Index:
    """The n-grams of evaluation sets."""

    def __init__(self, items: Iterable[Item], settings: Ngrams):
        """An index of items, without common text.

        Args:
          items: questions with answers.
          settings: which n-grams are looked for.
        """
        self.items: list[tuple[str, str]] = []
        self._simplified = settings.simplified
        self._passages: list[_Passage] = []
        self._whole: dict[int, list[int]] = defaultdict(list)  # hash of a short question: its passages
        columns = []
        for item in items:
            self.items.append((item.set, item.place))
            texts = [(text, True) for text in item.questions] + [(text, False) for text in item.answers]
            for text, as_a_whole in texts:
                for form in plain(_APOSTROPHE.sub("", text), settings.simplified):
                    columns.append(self._ngrams_of(form, as_a_whole, settings))
                    as_a_whole |= len(columns[-1][0]) > 0  # an answer that is short only without its markup
        self._build(*(np.concatenate(column) for column in zip(*columns, strict=True)))
        item_of = np.array([passage.item for passage in self._passages], np.int64)
        pairs = np.unique(np.stack([self._ngram_of, item_of[self._passage_of]]), axis=1)
        self._leave_out(np.flatnonzero(np.bincount(pairs[0], minlength=len(self._hashes)) > settings.common))
        self._whole = {key: found for key, found in self._whole.items() if len({*item_of[found]}) <= settings.common}
        for place in settings.background:
            for record in read(Source(place)):
                self._leave_out_found(searched(record))
        self._sizes = np.bincount(self._passage_of[self._is_used[self._ngram_of]], minlength=len(self._passages))

    @classmethod
    def from_sets(cls, sets: Mapping[str, EvaluationSet], settings: Ngrams) -> "Index":
        """The index of evaluation sets in files, by name. Raises UserError for files that cannot be read, and for a
        record without a question."""
        return cls((item for name, one in sets.items() for item in items_of(name, one)), settings)

    def hits(self, *texts: str) -> list[Hit]:
        """The items that have n-grams in the texts: of largest share first, then by name of the set and the item.

        Args:
          texts: the texts of a row (`shingles.searched`). N-grams do not reach from one into the next.
        """
        found: dict[int, dict[int, int]] = defaultdict(dict)  # by passage: the n-grams, with where they start in it
        whole = set()
        for letters in self._letters(texts):
            whole.update(self._whole.get(_whole_hash(letters), ()))
            for ngram in sorted(set(self._find(letters).tolist())):
                for place in range(self._postings[ngram], self._postings[ngram + 1]):
                    found[int(self._passage_of[place])][ngram] = int(self._start_of[place])
        best: dict[int, tuple[float, str]] = {}
        for passage in sorted(found.keys() | whole):
            item, text = self._passages[passage]
            share, ngram = 1.0, text
            if passage in found:
                share = len(found[passage]) / int(self._sizes[passage])
                first = min(found[passage], key=found[passage].get)
                ngram = _words(text, found[passage][first], int(self._lengths[first]))
            if share > best.get(item, (0.0, ""))[0]:
                best[item] = share, ngram
        hits = [Hit(*self.items[item], " ".join(ngram.split()), share) for item, (share, ngram) in best.items()]
        return sorted(hits, key=lambda hit: (-hit.share, hit.set, hit.item))

    @property
    def unchecked(self) -> list[tuple[str, str]]:
        """Set and place of the items that no text can be found to leak: all that they have is common or too short."""
        used = {self._passages[passage].item for passage in np.flatnonzero(self._sizes).tolist()}
        used |= {self._passages[passage].item for passages in self._whole.values() for passage in passages}
        return [item for number, item in enumerate(self.items) if number not in used]

    def _ngrams_of(self, text: str, as_a_whole: bool, settings: Ngrams) -> tuple[np.ndarray, ...]:
        """The n-grams of a passage, which is added to the index: hash, anchor, length, start and passage of each.

        Args:
          text: the passage.
          as_a_whole: whether it is looked for as a whole if it is shorter than an n-gram.
          settings: which n-grams are looked for.
        """
        letters = _Letters(text)
        starts, singles = letters.units()
        passage, none = len(self._passages), (*2 * [np.zeros(0, np.uint64)], *3 * [np.zeros(0, np.int64)])
        self._passages.append(_Passage(len(self.items) - 1, text))
        full = settings.words * settings.characters  # of the units, and of LETTERS for each of them
        sizes = [np.where(singles, settings.words, settings.characters)]
        sizes.append(np.where(singles, settings.words, settings.characters * np.diff(starts) / LETTERS))
        sums = [np.append(0, np.cumsum(size)) for size in sizes]
        whole = min(each[-1] for each in sums)
        if whole < full:
            shortest = settings.shortest * settings.characters
            if not as_a_whole or 2 * whole < shortest:
                return none
            if whole < shortest or letters.length < ANCHORS[-1]:
                self._whole[_whole_hash(letters)].append(passage)
                return none
            first, last = np.array([0]), np.array([len(starts) - 1])
        else:
            last = np.max([np.searchsorted(each, each[:-1] + full - 1e-6) for each in sums], axis=0)
            first = np.flatnonzero(last < len(starts))
            last = last[first]
        begin, end = starts[first], starts[last]
        fits = end - begin >= ANCHORS[-1]
        begin, end = begin[fits], end[fits]
        lengths = end - begin
        anchor = np.select([lengths >= length for length in ANCHORS], ANCHORS)
        hashes, anchors = letters.hashes(begin, end), letters.hashes(begin, begin + anchor)
        return hashes, anchors, lengths, begin, np.full(len(begin), passage)

    def _build(self, hashes: np.ndarray, anchors: np.ndarray, lengths, starts, passages) -> None:
        """Makes the tables that the search uses, from the n-grams of all passages, some of them more than once."""
        order = np.lexsort((passages, hashes))
        hashes, passages = hashes[order], passages[order]
        is_new = np.concatenate([[True], hashes[1:] != hashes[:-1]])[: len(hashes)]
        again = np.zeros(len(hashes), bool)  # an n-gram that stands twice in a passage
        again[1:] = ~is_new[1:] & (passages[1:] == passages[:-1])
        number = np.cumsum(is_new) - 1
        self._hashes, self._lengths = hashes[is_new], lengths[order][is_new]
        self._ngram_of, self._passage_of, self._start_of = number[~again], passages[~again], starts[order][~again]
        self._postings = np.searchsorted(self._ngram_of, np.arange(len(self._hashes) + 1))
        self._is_used = np.ones(len(self._hashes), bool)
        self._tables, anchors = [], anchors[order][is_new]
        for longer, length in zip((2**62, *ANCHORS), ANCHORS, strict=False):
            ngrams = np.flatnonzero((self._lengths >= length) & (self._lengths < longer))
            ngrams = ngrams[np.argsort(anchors[ngrams], kind="stable")]
            filter_ = np.zeros(1 << int(_FILTER_BITS), bool)
            filter_[anchors[ngrams] >> (np.uint64(64) - _FILTER_BITS)] = True
            self._tables.append((length, anchors[ngrams], ngrams, filter_))

    def _letters(self, texts: Iterable[str]) -> Iterator[_Letters]:
        """The letters of each text, with and without its markup and its escapes."""
        for text in texts:
            for written in dict.fromkeys([text, _unescaped(text)]):
                yield from map(_Letters, plain(written, self._simplified))

    def _find(self, letters: _Letters) -> np.ndarray:
        """The numbers of the n-grams in a text, in no order, some of them more than once."""
        found = []
        for length, anchors, ngrams, filter_ in self._tables:
            windows = letters.windows(length)
            place = np.flatnonzero(filter_[windows >> (np.uint64(64) - _FILTER_BITS)])
            low = np.searchsorted(anchors, windows[place])
            begins = anchors[np.minimum(low, len(anchors) - 1)] == windows[place] if len(anchors) else low > 0
            place, low = place[begins], low[begins]
            if not place.size:
                continue
            counts = np.searchsorted(anchors, windows[place], "right") - low
            which = np.arange(counts.sum()) + np.repeat(low - np.cumsum(counts) + counts, counts)
            ngram, start = ngrams[which], np.repeat(place, counts)
            end = start + self._lengths[ngram]
            inside = (end <= letters.length) & self._is_used[ngram]
            ngram, start, end = ngram[inside], start[inside], end[inside]
            found.append(ngram[letters.hashes(start, end) == self._hashes[ngram]])
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def _leave_out(self, ngrams: np.ndarray) -> None:
        self._is_used[ngrams] = False

    def _leave_out_found(self, texts: Iterable[str]) -> None:
        """Leaves out the n-grams and short questions that texts of a background corpus have."""
        for letters in self._letters(texts):
            self._leave_out(self._find(letters))
            self._whole.pop(_whole_hash(letters), None)


def _whole_hash(letters: _Letters) -> int:
    return int(letters.sums[letters.length])


def _words(text: str, start: int, length: int) -> str:
    """The part of a passage that begins at a letter and has a number of letters."""
    chosen = np.flatnonzero(_Letters(text).chosen)
    return text[chosen[start] : chosen[start + length - 1] + 1]
