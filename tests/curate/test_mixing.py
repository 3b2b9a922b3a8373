"""Mixtures of datasets: which rows they have, what their cards say, and which licences they refuse."""

import os
import shutil
from pathlib import Path

import pytest

from camelid.curate.ledger.mixing import Part, check_conflicts, mix
from camelid.data.cards import card_of, read_card
from camelid.data.sources import Source, read
from camelid.errors import UserError

from .datasets import contents, lines, make


def pairs(name, count, start=0):
    return [(f"question {n} of {name}?", f"answer {n}") for n in range(start, start + count)]


@pytest.fixture
def folders(tmp_path):
    """Three datasets: two share four conversations, one of which is held out in the second."""
    shared = pairs("all", 4)
    make(tmp_path / "chats", shared + pairs("chats", 30), licence="cc-by-4.0", teacher="gpt-4")
    make(tmp_path / "faq", shared[:1] + pairs("faq", 9) + shared[1:], source="faq", heldout=2)
    make(tmp_path / "chinese", [("你好?", "你好。")] * 1 + pairs("zh", 5), source="zh", write_as="alpaca")
    return tmp_path


def parts(folders, *weights, names=("chats", "faq", "chinese")):
    return [Part(folders / name, weight) for name, weight in zip(names, weights or [None] * 3, strict=False)]


def test_a_mixture_has_each_content_once_with_its_id_and_what_was_found_out_about_it(folders):
    card, _ = mix(parts(folders), folders / "mix")
    train, heldout = lines(folders / "mix"), lines(folders / "mix", "heldout")
    given = [
        line
        for name in ("chats", "faq", "chinese")
        for kind in ("train", "heldout")
        for line in lines(folders / name, kind)
        if (folders / name / kind).exists()
    ]
    asked = lambda line: line["messages"][0]["content"] if "messages" in line else line["instruction"]  # noqa: E731
    questions = [asked(line) for line in train + heldout]
    assert sorted(questions) == sorted({asked(line) for line in given})
    assert {line["id"] for line in train + heldout} <= {line["id"] for line in given}
    assert [line["id"] for line in train] == sorted(line["id"] for line in train)
    by_id = {line["id"]: line for line in given}
    for line in train + heldout:
        before = by_id[line["id"]]["meta"]
        assert line["meta"] == before | {"source": f"{line['meta']['source'].partition('/')[0]}/{before['source']}"}
    assert card.splits["train"].rows == len(train) and card.splits["heldout"].rows == len(heldout) == 2


def test_a_held_out_row_stays_held_out_and_its_repeat_is_not_trained_on(folders):
    mix(parts(folders), folders / "mix")
    question = "question 0 of all?"
    assert question in [line["messages"][0]["content"] for line in lines(folders / "mix", "heldout")]
    assert question not in [line["messages"][0]["content"] for line in lines(folders / "mix")]
    (repeat,) = [
        line for line in lines(folders / "mix", "rejected") if "faq" in line["detail"] and line["source"] == "chats/web"
    ][:1]
    assert (repeat["step"], repeat["reason"]) == ("mix", "repeated")


def test_every_row_of_the_datasets_is_in_the_mixture_or_rejected_with_a_reason(folders):
    card, _ = mix(parts(folders, 1, 1, 2), folders / "mix")
    counts = card.steps["mix"].rejected
    rejected = lines(folders / "mix", "rejected")
    assert {reason: sum(line["reason"] == reason for line in rejected) for reason in counts} == counts
    kept = sum(count.rows for count in card.splits.values())
    assert kept + len(rejected) == 34 + 13 + 6
    assert sum(source.kept.rows for source in card.sources.values()) == kept
    assert "record" not in rejected[0]


def test_weights_keep_as_many_rows_as_exist_in_their_proportions(folders):
    card, _ = mix(parts(folders, 1.5, 0.5), folders / "mix")
    of = {
        name: sum(line["meta"]["source"].startswith(name) for line in lines(folders / "mix"))
        for name in ("chats", "faq")
    }
    assert of["chats"] == 3 * of["faq"]
    left = [line for line in lines(folders / "mix", "rejected") if line["reason"] == "weight"]
    distinct = 34 + 13 - 4 - 2  # without repeats and held-out rows
    assert sum(of.values()) + len(left) == distinct
    assert card.steps["mix"].settings["weights"] == {"chats": 1.5, "faq": 0.5}


def test_a_weight_by_which_no_row_of_a_dataset_is_kept_is_refused(folders):
    with pytest.raises(UserError, match=r"faq would have none of its 9 training rows: .* of 1 stands for 0\.032 rows"):
        mix(parts(folders, 1000, 1), folders / "mix")
    assert not (folders / "mix/card.json").exists()


def test_folders_whose_names_are_not_utf8_are_mixed(folders):
    try:
        other = (folders / "faq").rename(os.fsdecode(os.fsencode(folders) + b"/faq\xff"))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    card, _ = mix([Part(folders / "chats"), Part(other)], Path(os.fsdecode(os.fsencode(folders) + b"/m\xfe")))
    assert card.name == r"m\xfe" and set(card.parents) == {"chats", r"faq\xff"}
    assert read_card(card.parents[r"faq\xff"].location) == card.parents[r"faq\xff"].card


def test_two_mixtures_of_the_same_datasets_have_the_same_bytes(folders):
    mix(parts(folders, 2, 1, 1), folders / "mix", shards=2)
    before = contents(folders / "mix")
    shutil.rmtree(folders / "mix")
    mix(parts(folders, 2, 1, 1), folders / "mix", shards=2)
    assert contents(folders / "mix") == before
    assert sum("train/" in name for name in before) == 2


def test_the_rows_do_not_depend_on_the_order_of_the_datasets(folders):
    mix(parts(folders), folders / "mix")
    mix(parts(folders)[::-1], folders / "other")
    assert lines(folders / "mix") == lines(folders / "other")


def test_of_one_id_with_two_contents_the_first_dataset_keeps_it(tmp_path):
    make(tmp_path / "old", pairs("x", 5))
    make(tmp_path / "new", pairs("x", 5))
    path = tmp_path / "new/train/part-00000-of-00001.jsonl"
    changed = path.read_bytes().replace(b"answer 3", b"ANSWER 3")
    path.write_bytes(changed)
    card = read_card(tmp_path / "new")
    from camelid.data.checksums import checksum

    card.files["train/part-00000-of-00001.jsonl"] = checksum(path)
    card.write(tmp_path / "new")
    card, _ = mix([Part(tmp_path / "new"), Part(tmp_path / "old")], tmp_path / "mix")
    assert card.steps["mix"].rejected == {"repeated": 4, "same_id": 1, "weight": 0}
    assert "ANSWER 3" in [line["messages"][1]["content"] for line in lines(tmp_path / "mix")]


def test_the_card_holds_the_cards_of_the_datasets_and_their_sources_terms(folders):
    card, _ = mix(parts(folders), folders / "mix")
    assert {name: parent.card for name, parent in card.parents.items()} == {
        name: read_card(folders / name) for name in ("chats", "faq", "chinese")
    }
    source = card.sources["chats/web"]
    assert (source.licence, source.teacher, source.terms) == ("cc-by-4.0", "gpt-4", "openai-terms")


def test_data_reads_a_mixture_and_a_mixture_can_be_mixed_again(folders):
    mix(parts(folders, names=("chats", "faq")), folders / "mix")
    assert len(list(read(Source(str(folders / "mix"))))) == len(lines(folders / "mix"))
    card, _ = mix([Part(folders / "mix"), Part(folders / "chinese")], folders / "more")
    assert set(card.sources) == {"mix/chats/web", "mix/faq/faq", "chinese/zh"}
    assert card_of(str(folders / "more"))[1] == card
    assert len(lines(folders / "more")) == len(lines(folders / "mix")) + 6


@pytest.mark.parametrize(
    ("licences", "use", "said"),
    [
        (
            ("CC-BY-SA-4.0", "GPL-2.0"),
            "research",
            "CC-BY-SA-4.0 of one/web asks for .*GPL-2.0 of two/web.*=share_alike",
        ),
        (("CC-BY-SA-4.0", "CC-BY-NC-4.0"), "research", "CC-BY-NC-4.0 of two/web is non-commercial"),
        (("MIT", "CC-BY-ND-4.0"), "research", "CC-BY-ND-4.0 of two/web allows no adapted material.*=no_derivatives"),
        (("MIT", "CC-BY-NC-4.0"), "commercial", "CC-BY-NC-4.0 of two/web excludes commercial use"),
        (("MIT", None), "research", "no licence is recorded for two/web.*record the licence.*=unknown"),
        (
            ("MIT", "aapche-2.0"),
            "research",
            "aapche-2.0 of two/web is not in the table of licences; did you mean apache-2.0",
        ),
    ],
)
def test_licences_that_exclude_each_other_are_refused_unless_told(tmp_path, licences, use, said):
    for name, licence in zip(("one", "two"), licences, strict=True):
        make(tmp_path / name, pairs(name, 3), licence=licence)
    both = [Part(tmp_path / "one"), Part(tmp_path / "two")]
    with pytest.raises(UserError, match=said) as error:
        mix(both, tmp_path / "mix", use=use)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "mix").exists()
    kind = str(error.value).rpartition("--allow_conflicts=")[2].split()[0]
    assert check_conflicts(both, use, [kind])
    card, _ = mix(both, tmp_path / "mix", use=use, allow=[kind])
    assert card.splits["train"].rows == 6
    assert card.steps["mix"].settings["allow_conflicts"] == [kind]


def test_a_teachers_terms_are_compared_with_the_use(tmp_path):
    make(tmp_path / "one", pairs("one", 3), teacher="gpt-4")
    make(tmp_path / "two", pairs("two", 3))
    both = [Part(tmp_path / "one"), Part(tmp_path / "two")]
    assert check_conflicts(both, "research", []) == []
    with pytest.raises(UserError, match=r"openai-terms of one/web \(teacher gpt-4\) excludes training"):
        check_conflicts(both, "commercial", [])


def test_a_dataset_whose_files_changed_is_not_mixed(folders):
    path = folders / "faq/train/part-00000-of-00001.jsonl"
    path.write_bytes(path.read_bytes().replace(b"answer 3", b"Answer 3"))
    with pytest.raises(UserError, match=r"faq: train/part-00000-of-00001\.jsonl has other bytes"):
        mix(parts(folders), folders / "mix")


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (lambda f: [Part(f / "faq")], "at least two datasets"),
        (lambda f: [Part(f / "faq"), Part(f / "sub/../faq")], "two datasets are called faq"),
        (lambda f: [Part(f / "faq", 1.0), Part(f / "chats")], "a weight to every dataset or to none"),
        (lambda f: [Part(f / "faq", 1.0), Part(f / "chats", 0.0)], "weight of chats is 0"),
        (lambda f: [Part(f / "faq", 1.0), Part(f / "copy/faq2", 1.0)], "has no training row that is not in the others"),
        (lambda f: [Part(f / "faq"), Part(f / "mix")], "is one of the datasets|has no card"),
        (lambda f: [Part(f / "faq"), Part(f / "nowhere")], r"nowhere has no card\.json"),
    ],
)
def test_what_cannot_be_mixed_is_one_line(folders, chosen, said):
    (folders / "sub").mkdir()
    shutil.copytree(folders / "faq", folders / "copy/faq2")
    with pytest.raises(UserError, match=said):
        mix(chosen(folders), folders / "mix")
