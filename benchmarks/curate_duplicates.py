"""Measures the steps that remove duplicates and leaks: speed, memory, precision and recall.

    python -m camelid.benchmarks.curate_duplicates speed near_duplicates --rows=300000
    python -m camelid.benchmarks.curate_duplicates speed decontaminate --rows=100000 --kind=lookalikes --data=DATA
    python -m camelid.benchmarks.curate_duplicates planted --data=DATA
    python -m camelid.benchmarks.curate_duplicates leaks --data=DATA
    python -m camelid.benchmarks.curate_duplicates clean --data=DATA --rows=300000

DATA is a folder with `gsm8k_test.jsonl`, `mt_bench_questions.jsonl`, `vicuna_questions.jsonl`, `dpo_zh_demo.json`,
`c4_en.jsonl`, `alpaca_en_demo.json`, `alpaca_zh_demo.json`, `sharegpt_en.json`, `tinyshakespeare.txt` and
`tang_poems_zh.txt`.

`speed` makes rows of 8 to 80 words, of which every tenth is the row before it with another last word; or identical
rows; or rows made of one template, which are alike without being near duplicates. Two processes make and read them.
`planted` has pairs of texts whose Jaccard index is 0.8 to 0.95, and others of 0.6 to 0.78. `leaks` puts the questions
and answers of evaluation sets into other forms. `clean` looks for hits in rows that leak nothing.
"""

import argparse
import functools
import itertools
import json
import random
import re
import resource
import tempfile
import time
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from camelid.curate.duplicates.decontamination import Decontaminate
from camelid.curate.duplicates.evaluation_sets import EvaluationSet, items_of
from camelid.curate.duplicates.exact import ExactDuplicates
from camelid.curate.duplicates.near import NearDuplicates
from camelid.curate.duplicates.ngrams import Index, Ngrams
from camelid.curate.rows import Row

SYLLABLES = [a + b for a in "bcdfghjklmnprstvwz" for b in "aeiou"]
WORDS = sorted({"".join(random.Random(n).choices(SYLLABLES, k=1 + n % 4)) for n in range(40_000)})
HAN = [chr(point) for point in range(0x4E00, 0x4E00 + 2500)]
PER_KIND = 500
"""Planted pairs, and lookalikes, of each of four kinds of text."""


def made_text(kind: str, number: int) -> str:
    """The text of a row of the speed test, the same in every process."""
    draw = random.Random(number if number % 10 or kind != "mixed" else number - 1)
    if kind == "mixed":
        words = draw.choices(WORDS, k=draw.randint(8, 80))
        return " ".join(words if number % 10 else [*words[:-1], str(number)])
    words = random.Random(0).sample(WORDS, 40)
    if kind == "lookalikes":
        words = [*words[:30], *draw.sample(WORDS, 10)]
    return " ".join(words)


def made_rows(kind: str, start: int, end: int) -> Iterator[Row]:
    for number in range(start, end):
        yield Row(f"{number:020d}", {"kind": "text", "text": made_text(kind, number)}, "made", str(number))


@dataclass
class MadeRows:
    """The rows of a speed test, in the form that steps take them. Two processes make and read the partitions."""

    kind: str
    count: int
    folder: Path
    workers: int = 2

    def __iter__(self) -> Iterator[Row]:
        return made_rows(self.kind, 0, self.count)

    def map(self, function: Callable) -> Iterator:
        size = -(-self.count // 16)
        with ProcessPoolExecutor(self.workers) as pool:
            jobs = [
                pool.submit(_on_part, function, self.kind, start, min(start + size, self.count))
                for start in range(0, self.count, size)
            ]
            for job in jobs:
                yield job.result()


def _on_part(function: Callable, kind: str, start: int, end: int):
    return function(made_rows(kind, start, end))


@functools.cache
def _decontaminate(data: Path) -> Decontaminate:
    return Decontaminate(evaluation_sets(data))


def _leaking(data: Path, rows: Iterator[Row]) -> int:
    return sum(not isinstance(_decontaminate(data)(row), Row) for row in rows)


def _processor_seconds() -> float:
    users = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(user.ru_utime + user.ru_stime for user in users)


def speed(name: str, rows: int, kind: str, data: Path) -> None:
    """Prints the time and the memory of a step on made rows."""
    used = _processor_seconds()
    size = sum(len(row.record["text"]) for row in made_rows(kind, 0, rows))
    making = _processor_seconds() - used
    with tempfile.TemporaryDirectory() as folder:
        made = MadeRows(kind, rows, Path(folder))
        started, used = time.perf_counter(), _processor_seconds()
        if name == "decontaminate":
            gone = sum(made.map(functools.partial(_leaking, data)))
        else:
            step = {"near_duplicates": NearDuplicates, "exact_duplicates": ExactDuplicates}[name]()
            gone = sum(1 for _ in step.decide(made))
        seconds, used = time.perf_counter() - started, _processor_seconds() - used - making
    users = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    parent, child = (resource.getrusage(user).ru_maxrss / 1024 for user in users)
    print(f"{name}, {rows:,} rows ({kind}), {size / 1e6:.1f} MB, two processes: {gone:,} rejected")
    print(f"{seconds:.1f} s on the clock; {used:.1f} s of processors without making the rows, so ", end="")
    print(f"{2 * rows / used:,.0f} rows/s and {2 * size / 1e6 / used:.2f} MB/s on two cores")
    print(f"peak memory {parent:.0f} MB, of the largest worker {child:.0f} MB")


def sets_of(text: str) -> tuple[set, set]:
    """The sets of shingles by words and by characters, apart from the product's code."""
    units, previous = [], ""
    for character in unicodedata.normalize("NFKC", text).casefold():
        kind = "H" if "\u3400" <= character <= "\u9fff" else unicodedata.category(character)[0]
        if kind in "HS" or (kind in "LMN" and previous not in tuple("LMN")):
            units.append(character)
        elif kind in "LMN":
            units[-1] += character
        previous = kind
    letters = "".join(units)
    by_words = {tuple(units[n : n + 5]) for n in range(len(units) - 4)} if len(units) >= 20 else set()
    by_characters = {letters[n : n + 3] for n in range(max(len(letters) - 2, 1))} if 0 < len(units) < 40 else set()
    return by_words, by_characters


def jaccard(one: str, other: str) -> float:
    first, second = sets_of(one), sets_of(other)
    kind = 0 if first[0] and second[0] else 1
    both = first[kind] | second[kind]
    return len(first[kind] & second[kind]) / len(both) if first[kind] and second[kind] else 0.0


def alpaca(data: Path, language: str) -> list[str]:
    records = json.loads((data / f"alpaca_{language}_demo.json").read_text("utf-8"))
    return ["\n".join([record["instruction"], record["input"], record["output"]]) for record in records]


def base_text(kind: str, real: dict[str, list[str]], draw: random.Random) -> list[str]:
    """The units of a text: of made ones if it is short, else of a part of a real one after a made beginning."""
    if kind == "short English":
        return draw.choices(WORDS, k=draw.randint(5, 10))
    if kind == "short Chinese":
        return draw.choices(HAN, k=draw.randint(8, 24))
    units = draw.choice(real[kind])
    length, start = draw.randint(20, 300), draw.randrange(len(units))
    return [*draw.choices(WORDS if kind == "English" else HAN, k=10), *units[start : start + length]]


def changed(units: list[str], kind: str, draw: random.Random) -> list[str]:
    """The units with some of them replaced, added or left out; in short English, with other letters."""
    units = list(units)
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3, 4, 6, 8, 12))):
        place = draw.randrange(len(units))
        new = draw.choice(WORDS if "English" in kind else HAN)
        if kind == "short English":
            letter = draw.randrange(len(units[place]))
            units[place] = units[place][:letter] + draw.choice("abcdexyz") + units[place][letter + 1 :]
        else:
            units[place : place + draw.choice((1, 1, 0))] = draw.choice(([new], [new], [])) if len(units) > 4 else [new]
    return units


def planted(data: Path) -> None:
    """Prints how many planted near duplicates are found, and how many lookalikes are rejected."""
    draw = random.Random(1)
    english = [json.loads(line)["text"] for line in (data / "c4_en.jsonl").open(encoding="utf-8")]
    real = {
        "English": [text.split() for text in [*english, *alpaca(data, "en")] if len(text.split()) > 30],
        "Chinese": [re.findall(r"[㐀-鿿]|[^\s㐀-鿿]+", text) for text in alpaca(data, "zh") if len(text) > 100],
    }
    rows, pairs = [], []
    for kind in (*real, "short English", "short Chinese"):
        room = Counter({"near": PER_KIND, "alike": PER_KIND})
        while room.total():
            units = base_text(kind, real, draw)
            one, other = ((" " if "English" in kind else "").join(each) for each in (units, changed(units, kind, draw)))
            index = jaccard(one, other)
            group = "near" if 0.8 <= index <= 0.95 else "alike" if 0.6 <= index <= 0.78 else None
            if not group or not room[group]:
                continue
            room[group] -= 1
            number = len(pairs)
            rows += [(f"{number:06d}a", one), (f"{number:06d}b", other)]
            pairs.append((kind, group))
    with tempfile.TemporaryDirectory() as folder:
        made = MadeRows("", 0, Path(folder))
        made.map = lambda function: [function(Row(id, {"kind": "text", "text": text}, "s", "") for id, text in rows)]
        found = {id: why.detail.split()[-1] for id, why in NearDuplicates().decide(made)}
    text = dict(rows)
    right = sum(jaccard(text[id], text[kept]) >= 0.8 for id, kept in found.items())
    print(f"{len(rows):,} rows, {len(found):,} rejected, {right:,} of them near to the row that is named")
    for kind, group in itertools.product((*real, "short English", "short Chinese"), ("near", "alike")):
        numbers = [f"{n:06d}" for n, pair in enumerate(pairs) if pair == (kind, group)]
        hits = sum(bool({f"{n}a", f"{n}b"} & found.keys()) for n in numbers)
        print(f"  {kind}, {group}: of {len(numbers)} pairs {hits} lost a row")


def evaluation_sets(data: Path) -> dict[str, EvaluationSet]:
    files = ("gsm8k_test.jsonl", "mt_bench_questions.jsonl", "vicuna_questions.jsonl", "dpo_zh_demo.json")
    return {Path(file).stem: EvaluationSet(str(data / file)) for file in files}


def forms(data: Path) -> dict[str, Callable[[str], str]]:
    """Functions that put a text into another form, by name."""
    draw = random.Random(2)
    web = [json.loads(line)["text"] for line in (data / "c4_en.jsonl").open(encoding="utf-8")]
    marks = ["\n", "\n- ", "\n> ", "\r\n\r\n", "\n* ", "\n  12. "]
    styles = ["**{}**", "*{}*", "`{}`", "[{}](http://example.com/a)", *["{}"] * 6]

    def full_width(text: str) -> str:
        return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else "\u3000" if c == " " else c for c in text)

    def lines(text: str) -> str:
        return re.sub(r"((?:[^\s，。]+[ ，。]){4})", lambda found: found[0] + draw.choice(marks), text)

    def markdown(text: str) -> str:
        return "## Task\n\n" + re.sub(r"\w+", lambda found: draw.choice(styles).format(found[0]), text)

    def embedded(text: str) -> str:
        around = draw.choice(web)
        place = draw.randrange(len(around))
        return f"{around[:place]} {text} {around[place:]}"

    def punctuation(text: str) -> str:
        return text.translate(str.maketrans(",.?!'，。？！：", "，。？！’,.?!:"))

    return {
        "as it is": str,
        "capitals": str.upper,
        "full width": full_width,
        "punctuation": punctuation,
        "lines": lines,
        "Markdown": markdown,
        "LaTeX": lambda text: re.sub(r"\d+", lambda found: rf"$\mathbf{{{found[0]}}}$", text),
        "HTML": lambda text: f"<div><p>{text.replace('. ', '.<br/> ').replace('&', '&amp;')}</p></div>",
        "soft hyphens": "\u00ad".join,
        "in web text": embedded,
        "all together": lambda text: embedded(lines(markdown(punctuation(text)))),
    }


def leaks(data: Path) -> None:
    """Prints how many questions and answers are found in each form, of those that are long enough to be looked for."""
    sets = evaluation_sets(data)
    started = time.perf_counter()
    index = Index.from_sets(sets, Ngrams())
    print(f"index of {len(index.items):,} items: {time.perf_counter() - started:.1f} s")
    found, tried, short, changes = Counter(), Counter(), 0, forms(data)
    for item in itertools.chain.from_iterable(items_of(name, one) for name, one in sets.items()):
        for text in (*item.questions, *item.answers):
            if not _leaks(index, item, f"aaa {text} zzz"):
                short += 1
                continue
            for name, form in changes.items():
                is_found = _leaks(index, item, changed_text := form(text))
                tried[name] += 1
                found[name] += is_found
                if not is_found:
                    print(f"  missed, {name}: {changed_text!r}")
    print(f"{short} texts are too short to be looked for within others")
    for name in tried:
        print(f"  {name}: {found[name]:,} of {tried[name]:,} found")


def _leaks(index: Index, item, text: str) -> bool:
    return any((hit.set, hit.item) == (item.set, item.place) for hit in index.hits(text))


def clean_rows(data: Path, made: int) -> Iterator[tuple[str, str]]:
    """Pairs (origin, text) of real rows, and of as many made ones whose words follow each other as in real text."""
    web = [json.loads(line)["text"] for line in (data / "c4_en.jsonl").open(encoding="utf-8")]
    yield from (("c4", part) for text in web for part in text.split("\n") if part.strip())
    for language in ("en", "zh"):
        yield from ((f"alpaca {language}", text) for text in alpaca(data, language))
    chats = json.loads((data / "sharegpt_en.json").read_text("utf-8"))
    yield from (("sharegpt", turn["value"]) for chat in chats for turn in chat["conversations"])
    lines = (data / "tinyshakespeare.txt").read_text("utf-8").split("\n")
    yield from (("shakespeare", "\n".join(lines[n : n + 10])) for n in range(0, len(lines) - 10, 2))
    poems = (data / "tang_poems_zh.txt").read_text("utf-8").split("\n\n")
    yield from (("tang", poem) for poem in poems if poem.strip())
    english = [text.split() for text in [*web, *alpaca(data, "en")]]
    characters = [list(text) for text in alpaca(data, "zh")]
    for name, units, blank in (("made English", english, " "), ("made Chinese", characters, "")):
        follows = defaultdict(list)
        for text in units:
            for one, other in itertools.pairwise(text):
                follows[one].append(other)
        draw, starts = random.Random(3), list(follows)
        for _ in range(made // 2):
            text = [draw.choice(starts)]
            while len(text) < 40:
                text.append(draw.choice(follows.get(text[-1], starts)))
            yield name, blank.join(text)


def clean(data: Path, made: int) -> None:
    """Prints the false hits, with the upper end of their 95% confidence interval (Clopper and Pearson, one-sided)."""
    from scipy.stats import beta

    index = Index.from_sets(evaluation_sets(data), Ngrams())
    rows, hits, size, started = Counter(), Counter(), 0, time.perf_counter()
    for name, text in clean_rows(data, made):
        rows[name] += 1
        size += len(text.encode())
        if found := index.hits(text):
            hits[name] += 1
            print(f"  {name}: {found[0]}")
    seconds = time.perf_counter() - started
    for name in rows:
        print(f"  {name}: {hits[name]} hits in {rows[name]:,} rows")
    total, false = rows.total(), hits.total()
    bound = beta.ppf(0.95, false + 1, total - false)
    print(f"{false} hits in {total:,} rows, at most {bound:.2g} of all rows; {size / 1e6 / seconds:.1f} MB/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "planted", "leaks", "clean"])
    parser.add_argument("step", nargs="?", choices=["exact_duplicates", "near_duplicates", "decontaminate"])
    parser.add_argument("--rows", type=int, default=100_000, help="made rows (default: 100000)")
    parser.add_argument("--kind", choices=["mixed", "identical", "lookalikes"], default="mixed")
    parser.add_argument("--data", type=Path, help="the folder DATA")
    args = parser.parse_args()
    if args.what == "speed" and not args.step:
        parser.error("speed: name a step")
    if args.data is None and (args.what != "speed" or args.step == "decontaminate"):
        parser.error("give --data=DATA")
    if args.what == "speed":
        speed(args.step, args.rows, args.kind, args.data)
    elif args.what == "clean":
        clean(args.data, args.rows)
    else:
        {"planted": planted, "leaks": leaks}[args.what](args.data)


if __name__ == "__main__":
    main()
