"""CPU seconds in which instructions are filtered by ROUGE-L, and the speed-up over comparing all pairs.

python -m camelid.benchmarks.curate_rouge --count=50000 FILE... [--nearest] [--pairs] [--brute=2000] [--seed=0]

FILES hold seed tasks or Alpaca records (`camelid.curate.teachers.seeds`), English or Chinese. Candidates are their
instructions and variations of them: words are replaced by words of other instructions, left out, or exchanged, in
shares from 5% to 90%, so that some fall on either side of the threshold. `--nearest` also finds the most similar text
of each one.
`--pairs` compares every candidate with every kept one in C++ (pip install rapidfuzz), `--brute` the first candidates by
rouge-score's own table; both check that the kept lists are equal.
"""

import argparse
import random
import resource
import time

from rouge_score.rouge_scorer import _score_lcs

from camelid.curate.teachers.novelty import Novelty
from camelid.curate.teachers.rouge import f_measure, rouge_words
from camelid.curate.teachers.seeds import read_seeds

THRESHOLD = 0.7


def candidates(originals: list[list[str]], count: int, seed: int) -> list[list[str]]:
    """The originals in random order, and then variations of them until there are `count`."""
    rng = random.Random(seed)
    found = rng.sample(originals, min(count, len(originals)))
    while len(found) < count:
        words, others, share = list(rng.choice(originals)), rng.choice(originals), rng.uniform(0.05, 0.9)
        varied = []
        for word in words:
            if rng.random() >= share:
                varied.append(word)
            elif others and rng.random() < 0.8:
                varied.append(rng.choice(others))
        if rng.random() < 0.3 and len(varied) > 2:
            i = rng.randrange(len(varied) - 1)
            varied[i : i + 2] = varied[i + 1], varied[i]
        if rng.random() < 0.3:
            varied += rng.sample(others, min(len(others), rng.randrange(6)))
        found.append(varied)
    return found


def brute_force(texts: list[list[str]]) -> list[int]:
    """The numbers of the texts that are kept, by rouge-score's table of every pair."""
    kept: list[int] = []
    for number, text in enumerate(texts):
        if all(_score_lcs(texts[other], text).fmeasure <= THRESHOLD for other in kept):
            kept.append(number)
    return kept


def all_pairs(texts: list[list[str]], block: int = 500) -> list[int]:
    """The numbers of the texts that are kept, by the common subsequence of every pair, as rapidfuzz finds it."""
    import numpy as np
    from rapidfuzz.distance import LCSseq
    from rapidfuzz.process import cdist

    letters: dict[str, str] = {}
    strings = ["".join(letters.setdefault(word, chr(0x10000 + len(letters))) for word in text) for text in texts]
    kept: list[int] = []

    def similar(common: int, a: int, b: int) -> bool:
        return f_measure(common, a, b) > THRESHOLD

    for begin in range(0, len(texts), block):
        queries = strings[begin : begin + block]
        lengths_Q = np.array([[len(text)] for text in texts[begin : begin + block]])
        found_Q = np.zeros(len(queries), bool)
        if kept:
            common_QK = cdist(queries, [strings[i] for i in kept], scorer=LCSseq.similarity, dtype=np.uint16)
            lengths_K = np.array([len(texts[i]) for i in kept])
            near_QK = common_QK * 2.0 / np.maximum(lengths_Q + lengths_K[None], 1) > THRESHOLD - 1e-6
            for q, k in zip(*np.nonzero(near_QK), strict=True):
                found_Q[q] |= similar(int(common_QK[q, k]), len(texts[begin + q]), len(texts[kept[k]]))
        new: list[int] = []
        for q in np.flatnonzero(~found_Q).tolist():
            number = begin + q
            others = ((LCSseq.similarity(strings[i], strings[number]), len(texts[i])) for i in new)
            if not any(similar(common, length, len(texts[number])) for common, length in others):
                new.append(number)
        kept += new
    return kept


def kept_by(texts: list[list[str]], nearest: bool) -> list[int]:
    """The numbers of the texts that are kept by `Novelty`. nearest: whether the most similar text is found as well."""
    novelty, kept = Novelty(THRESHOLD), []
    for number, text in enumerate(texts):
        if nearest:
            similar = novelty.nearest(text)
            is_new = similar is None or similar.score <= THRESHOLD
            if is_new:
                novelty.keep(text)
        else:
            is_new = novelty.add(text) is None
        if is_new:
            kept.append(number)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--brute", type=int, default=0)
    parser.add_argument("--nearest", action="store_true")
    parser.add_argument("--pairs", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    originals = [rouge_words(seed.instruction) for path in args.files for seed in read_seeds(path)]
    texts = candidates([words for words in originals if words], args.count, args.seed)
    words = sum(map(len, texts)) / len(texts)
    begin = time.process_time()
    kept = kept_by(texts, args.nearest)
    seconds = time.process_time() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    told = f"{len(kept):,} kept in {seconds:.1f} CPU seconds, peak {peak:.0f} MiB"
    print(f"{len(texts):,} candidates of {words:.1f} words: {told}")
    if args.pairs:
        compare("all pairs in C++", all_pairs, texts, kept, seconds)
    if args.brute:
        few = texts[: args.brute]
        begin = time.process_time()
        got = kept_by(few, args.nearest)
        compare("all pairs by rouge-score", brute_force, few, got, time.process_time() - begin)


def compare(name: str, reference, texts: list[list[str]], kept: list[int], seconds: float) -> None:
    """Prints the seconds of a reference, and whether it keeps the same texts."""
    begin = time.process_time()
    expected = reference(texts)
    slow = time.process_time() - begin
    equal = "equal" if kept == expected else "DIFFERENT"
    told = f"{name} {slow:.1f} CPU seconds, index {seconds:.2f}, {slow / seconds:.0f} times as fast"
    print(f"{len(texts):,} candidates, {len(expected):,} kept: {told}, {equal}")


if __name__ == "__main__":
    main()
