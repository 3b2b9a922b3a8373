"""Of nearly equal rows, the one with the smallest id stays; a brute force over all pairs says the same."""

import itertools
import random
import re
import unicodedata

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH

from camelid.curate.duplicates import near as near_duplicates
from camelid.curate.duplicates.minhash import Banding, band_keys, banding
from camelid.curate.duplicates.near import NearDuplicates
from camelid.curate.duplicates.shingles import ShingleSets, shingle_sets
from camelid.errors import UserError
from camelid.settings.sections import read

from .partitions import rejected, text_row

SYLLABLES = [a + b for a in "bcdfghjklmnprstvwz" for b in "aeiou"]
WORDS = sorted({"".join(random.Random(n).choices(SYLLABLES, k=1 + n % 4)) for n in range(3000)})
HAN = [chr(point) for point in range(0x4E00, 0x4E00 + 2500)]


def sets_of(text):
    """The sets of shingles of a text by words and by characters, made with regular expressions and Python's sets."""
    text = unicodedata.normalize("NFKC", text).casefold()
    units = re.findall(r"[㐀-鿿]|[^\W_㐀-鿿]+|[😀-🙏+=]", text)
    letters = "".join(units)
    by_words = {tuple(units[n : n + 5]) for n in range(len(units) - 4)} if len(units) >= 20 else set()
    by_characters = {letters[n : n + 3] for n in range(max(len(letters) - 2, 1))} if 0 < len(units) < 40 else set()
    return by_words, by_characters


def jaccard(one, other):
    kind = 0 if one[0] and other[0] else 1
    both = one[kind] | other[kind]
    return len(one[kind] & other[kind]) / len(both) if one[kind] and other[kind] else 0.0


def brute_force(rows, threshold):
    """The kept row that each rejected row is near to, by comparing it with every row that was kept before."""
    kept, near = [], {}
    for row in sorted(rows, key=lambda row: row.id):
        mine = sets_of(row.record["text"])
        first = next((id for id, theirs in kept if jaccard(mine, theirs) >= threshold), None)
        if first is None:
            kept.append((row.id, mine))
        else:
            near[row.id] = first
    return near


def changed(units, draw, edits):
    """The units with some of them replaced, added or left out."""
    units = list(units)
    for _ in range(edits):
        place = draw.randrange(len(units))
        pool = HAN if units[0] in HAN else WORDS
        units[place : place + draw.choice((1, 1, 0))] = draw.choice(([draw.choice(pool)], [draw.choice(pool)], []))
    return units


def texts(count, seed, least=5, most=120):
    """Groups of texts of which some are near duplicates of each other, others nearly so; English and Chinese."""
    draw = random.Random(seed)
    for number in range(count):
        chinese = number % 2
        units = draw.choices(HAN if chinese else WORDS, k=draw.randint(least, most))
        for edits in (0, 1, 1, 2, 4):
            yield ("" if chinese else " ").join(changed(units, draw, edits * len(units) // 40 + (edits > 1)))


def kept_id(rejection):
    return rejection.detail.split()[-1]


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_what_is_rejected_equals_brute_force_in_any_partitions(threshold, tmp_path):
    rows = [text_row(f"{number:04d}", text) for number, text in enumerate(texts(80, 1))]
    random.Random(2).shuffle(rows)
    step = NearDuplicates(threshold=threshold, permutations=300)  # so many that no pair is missed
    expected = brute_force(rows, threshold)
    assert 50 < len(expected) < 350
    for count in (1, 6):
        found = rejected(step, rows, tmp_path, count)
        assert {id: kept_id(why) for id, why in found.items()} == expected
        for id, why in found.items():
            pair = [sets_of(row.record["text"]) for row in rows if row.id in (id, kept_id(why))]
            assert float(why.detail.split()[2]) == pytest.approx(jaccard(*pair), abs=6e-4)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "ids, gone",
    [("abc", {"b": "a"}), ("cba", {"b": "a"}), ("bac", {"b": "a", "c": "a"}), ("acb", {"c": "a"})],
)
def test_of_a_chain_those_stay_that_are_not_near_to_one_with_a_smaller_id(ids, gone, tmp_path):
    units = random.Random(3).sample(WORDS, 116)
    chain = [" ".join(units[start : start + 100]) for start in (0, 8, 16)]
    first, second, third = map(sets_of, chain)
    assert min(jaccard(first, second), jaccard(second, third)) >= 0.8 > jaccard(first, third)
    rows = [text_row(id, text) for id, text in zip(ids, chain, strict=True)]
    assert {id: kept_id(why) for id, why in rejected(NearDuplicates(), rows, tmp_path).items()} == gone


@pytest.mark.parametrize("chinese", [False, True], ids=["English", "Chinese"])
@pytest.mark.parametrize("least, most", [(5, 10), (15, 25), (60, 150)])
def test_planted_pairs_are_found_and_lookalikes_stay(chinese, least, most, tmp_path):
    draw, rows, near, alike = random.Random(least), [], set(), set()
    while len(near) < 100 or len(alike) < 100:
        units = draw.choices(HAN if chinese else WORDS, k=draw.randint(least, most) * (2 if chinese else 1))
        blank = "" if chinese else " "
        one, other = blank.join(units), blank.join(changed(units, draw, draw.randint(1, 1 + len(units) // 20)))
        if not chinese and most <= 10:  # a letter, as another word leaves too little in common
            place = draw.randrange(len(one))
            other = one[:place] + draw.choice("xyq") + one[place + 1 :]
        likeness = jaccard(sets_of(one), sets_of(other))
        group = near if 0.8 <= likeness <= 0.95 else alike if 0.6 <= likeness <= 0.78 else None
        if group is not None and len(group) < 100:
            group.add(f"{len(rows):04d}")
            rows += [text_row(f"{len(rows):04d}", one), text_row(f"{len(rows):04d}x", other)]
    found = {kept_id(why) for why in rejected(NearDuplicates(), rows, tmp_path).values()}
    assert len(found & near) >= 97
    assert not found & alike


def test_texts_on_both_sides_of_the_short_limit_are_compared(tmp_path):
    units = random.Random(4).sample([word for word in WORDS if len(word) > 5], 20)
    rows = [text_row("a", " ".join(units)), text_row("b", " ".join(units[:-1]))]
    assert list(rejected(NearDuplicates(), rows, tmp_path)) == ["b"]


def test_texts_without_letters_or_symbols_are_never_near(tmp_path):
    rows = [text_row("a", "..."), text_row("b", "..."), text_row("c", ""), text_row("d", "😀"), text_row("e", "😀!")]
    assert list(rejected(NearDuplicates(), rows, tmp_path)) == ["e"]
    assert rejected(NearDuplicates(), [], tmp_path) == {}


def test_the_sets_are_those_of_pythons_own_sets():
    cases = ["", "!?", "Hi", "a_b c", "ＡＢ 你好😀, World!", "naïve", "今天 天气很好", *texts(20, 5), "x " * 50]
    for found, expected in zip(shingle_sets(cases, 5, 3, 20), zip(*map(sets_of, cases), strict=True), strict=True):
        ends = np.cumsum(found.sizes)
        hashes = [set(part.tolist()) for part in np.split(found.hashes, ends[:-1])]
        assert found.sizes.tolist() == [len(each) for each in hashes] == [len(each) for each in expected]
        for a, b in itertools.combinations(range(len(cases)), 2):
            assert len(hashes[a] & hashes[b]) == len(expected[a] & expected[b])


def test_sets_share_a_key_as_often_as_the_theory_says_and_datasketch_does():
    draw, pairs, jaccards = random.Random(6), [], []
    while len(pairs) < 800:
        common, apart = draw.randint(5, 60), draw.randint(1, 25)
        numbers = draw.sample(range(1, 2**48), common + apart)
        cut = common + draw.randint(0, apart)
        pairs.append((numbers[:cut], numbers[:common] + numbers[cut:]))
        jaccards.append(common / (common + apart))
    shape = Banding(20, 6)
    hashes = [np.sort(np.array(each, np.uint64)) for pair in pairs for each in pair]
    sets = ShingleSets(np.concatenate(hashes), np.array([len(each) for each in hashes]))
    keys = band_keys(sets, shape, 0)
    shared = (keys[:, ::2] == keys[:, 1::2]).any(0)
    expected = sum(map(shape.recall, jaccards))
    spread = sum(shape.recall(j) * (1 - shape.recall(j)) for j in jaccards) ** 0.5
    assert abs(shared.sum() - expected) < 4 * spread
    theirs = 0
    for pair in pairs:
        one, other = (MinHash(120, hashfunc=lambda number: number & 0xFFFFFFFF) for _ in pair)
        one.update_batch(pair[0]), other.update_batch(pair[1])
        index = MinHashLSH(num_perm=120, params=(20, 6))
        index.insert("one", one)
        theirs += bool(index.query(other))
    assert abs(shared.sum() - theirs) < 6 * spread


def test_sets_with_another_salt_share_no_key():
    sets = shingle_sets(list(texts(20, 7)), 5, 3, 20)[1]
    assert not set(band_keys(sets, Banding(20, 6), 0).ravel()) & set(band_keys(sets, Banding(20, 6), 1).ravel())


@pytest.mark.parametrize("alike", ["identical", "lookalikes"])
def test_a_row_is_compared_with_few_others_even_if_all_share_a_band(alike, monkeypatch, tmp_path):
    draw, compared = random.Random(8), []
    template = draw.sample(WORDS, 60)
    if alike == "identical":
        lines = [" ".join(template)] * 1000
    else:  # any two have a Jaccard index of about 0.6, and so a band in common now and then
        lines = [" ".join([*template[:45], *draw.sample(WORDS, 15)]) for _ in range(1000)]
    jaccards = near_duplicates._Sets.jaccards

    def counted(self, row, others, least):
        compared.append(len(others))
        return jaccards(self, row, others, least)

    monkeypatch.setattr(near_duplicates._Sets, "jaccards", counted)
    rows = [text_row(f"{number:04d}", line) for number, line in enumerate(lines)]
    found = rejected(NearDuplicates(most=20), rows, tmp_path)
    if alike == "identical":
        assert set(map(kept_id, found.values())) == {"0000"} and len(found) == 999
        assert compared == [1] * 999
    else:
        assert not found
        assert max(compared) == 20


def test_bands_find_nearly_all_pairs_at_the_threshold():
    assert banding(120, 0.8) == (20, 6)
    assert banding(120, 0.8).recall(0.8) == pytest.approx(0.99771, abs=1e-5)  # 1 - (1 - 0.8^6)^20
    assert banding(3, 0.5) is None


def test_settings_that_do_not_fit_together_are_refused():
    with pytest.raises(UserError, match=r"step.near.short = 3: give step.near.words = 5 or more"):
        read({"short": 3}, NearDuplicates, "step.near")
    with pytest.raises(UserError, match=r"step.near.permutations: 3 values find fewer than 99% of pairs at 0.5"):
        read({"permutations": 3, "threshold": 0.5}, NearDuplicates, "step.near")
