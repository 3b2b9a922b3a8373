"""Licences and teachers' terms: the table, what a mixture asks for, and which duties exclude each other."""

import itertools
import tomllib
from importlib import resources

import pytest

from camelid.curate.settings import read_config
from camelid.data.cards import Card, CardSource, Count, Parent
from camelid.data.licences import (
    CONFLICTS,
    Terms,
    check_name,
    conflicts,
    duties,
    find,
    terms_in,
    terms_of,
    with_origins,
)
from camelid.errors import UserError

TABLE = tomllib.loads((resources.files("camelid.data") / "licences.toml").read_text("utf-8"))


def kinds(*names, use="research"):
    """The kinds of conflicts of a mixture of sources with these licences."""
    return {each.kind for each in conflicts([Terms(f"d/{n}", name) for n, name in enumerate(names)], use)}


def test_every_entry_of_the_table_can_be_found_and_points_into_it():
    for name, entry in TABLE["licences"].items():
        assert find(name).name == name
        assert all(find(alias).name == name for alias in entry.get("aliases", ()))
        assert entry["source"]
        assert all(find(other) for other in entry.get("share_alike", ()))
    assert all(find(each["terms"]) for each in TABLE["teachers"])


def test_no_name_stands_for_two_licences():
    names = [n.lower() for name, entry in TABLE["licences"].items() for n in (name, *entry.get("aliases", ()))]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("cc-by-nc-4.0", "CC-BY-NC-4.0"),
        ("Apache 2.0", "Apache-2.0"),
        ("apache-2.0", "Apache-2.0"),
        ("odc-by", "ODC-By-1.0"),
        ("llama3.1-community", "llama3.1"),
        ("mit", "MIT"),
        ("gpl_3.0", "GPL-3.0"),
    ],
)
def test_the_usual_names_on_dataset_cards_are_known(name, licence):
    assert find(name).name == licence


def test_a_misspelt_licence_is_one_line_with_the_nearest_name():
    with pytest.raises(UserError, match=r"config\.sources\.a\.licence: .*'apache-2\.1'.*did you mean apache-2\.0"):
        check_name("apache-2.1", "config.sources.a.licence")
    check_name("cc-by-4.0", "config.sources.a.licence")
    check_name("LicenseRef-Statistics-2.0", "config.sources.a.licence")


@pytest.mark.parametrize(
    ("teacher", "terms"),
    [
        ("gpt-4o-mini", "openai-terms"),
        ("text-davinci-003", "openai-terms"),
        ("openai/gpt-oss-20b", "Apache-2.0"),
        ("claude-3-5-sonnet", "anthropic-terms"),
        ("models/gemini-2.0-flash", "gemini-terms"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama2"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama3"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3.1"),
        ("meta-llama/Llama-3.3-70B-Instruct", "llama3.3"),
        ("Qwen/Qwen2.5-72B-Instruct", "qwen"),
        ("Qwen/Qwen2.5-3B-Instruct", "qwen-research"),
        ("Qwen/Qwen2.5-7B-Instruct", "Apache-2.0"),
        ("google/gemma-2-9b-it", "gemma"),
        ("deepseek-ai/DeepSeek-R1", "MIT"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "llama3.1"),
        ("deepseek-ai/DeepSeek-V2-Chat", "deepseek"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "Apache-2.0"),
        ("mistralai/Mistral-Large-Instruct-2407", "mistral-research"),
        ("/models/SmolLM2-135M-Instruct.Q4_1.gguf", "Apache-2.0"),
        ("a model nobody knows", None),
        (None, None),
    ],
)
def test_the_terms_of_a_teacher_follow_from_its_name(teacher, terms):
    assert terms_of(teacher) == terms


# The chart of licences whose works can be combined, creativecommons.org/faq: True where an adaptation may be made.
CHART = {
    ("CC0-1.0", "CC-BY-SA-4.0"): True,
    ("CC-BY-4.0", "CC-BY-SA-4.0"): True,
    ("CC-BY-4.0", "CC-BY-NC-4.0"): True,
    ("CC-BY-4.0", "CC-BY-NC-SA-4.0"): True,
    ("CC-BY-4.0", "CC-BY-ND-4.0"): False,
    ("CC-BY-SA-4.0", "CC-BY-SA-4.0"): True,
    ("CC-BY-SA-4.0", "CC-BY-NC-4.0"): False,
    ("CC-BY-SA-4.0", "CC-BY-NC-SA-4.0"): False,
    ("CC-BY-NC-4.0", "CC-BY-NC-SA-4.0"): True,
    ("CC-BY-NC-SA-4.0", "CC-BY-NC-SA-4.0"): True,
    ("CC-BY-NC-4.0", "CC-BY-NC-ND-4.0"): False,
}


@pytest.mark.parametrize(("pair", "allowed"), CHART.items())
def test_creative_commons_works_combine_as_its_chart_says(pair, allowed):
    assert (kinds(*pair) == set()) is allowed
    assert (kinds(*reversed(pair)) == set()) is allowed


def test_versions_of_share_alike_licences_meet_in_the_later_one():
    assert not kinds("CC-BY-SA-3.0", "CC-BY-SA-4.0")
    assert not kinds("GPL-2.0-or-later", "AGPL-3.0")
    assert kinds("GPL-2.0", "GPL-3.0") == {"share_alike"}
    assert kinds("CC-BY-SA-3.0", "CC-BY-SA-4.0", "GPL-3.0") == {"share_alike"}


def test_a_use_meets_non_commercial_licences_and_terms_on_training():
    names = ("CC-BY-NC-4.0", "openai-terms", "llama2")
    assert kinds(*names) == set()
    assert kinds(*names, use="commercial") == {"non_commercial", "training"}
    assert kinds("llama3.1", "MIT", use="commercial") == set()


def test_conflicts_name_licences_and_sources_and_only_known_kinds():
    terms = [Terms("chats/web", "CC-BY-SA-4.0"), Terms("faq/pages", "cc-by-nc-4.0"), Terms("faq/more", None)]
    found = {each.kind: each.message for each in conflicts(terms, "commercial")}
    assert set(found) <= set(CONFLICTS)
    assert "CC-BY-SA-4.0 of chats/web" in found["share_alike"]
    assert "CC-BY-NC-4.0 of faq/pages is non-commercial" in found["share_alike"]
    assert found["unknown"] == "no licence is recorded for faq/more"
    assert found["non_commercial"] == "CC-BY-NC-4.0 of faq/pages excludes commercial use"


def test_the_order_of_sources_does_not_matter():
    names = ["CC-BY-SA-4.0", "CC-BY-NC-4.0", "openai-terms", "MIT", None]
    for use in ("research", "commercial"):
        assert len({frozenset(kinds(*order, use=use)) for order in itertools.permutations(names)}) == 1


def test_the_duties_of_a_mixture_are_those_of_all_of_its_licences():
    found = duties([Terms("a", "llama3.1"), Terms("b", "qwen"), Terms("c", "CC-BY-4.0"), Terms("d", "x-1.0")])
    assert found["attribution"] == ["(llama3.1, qwen, CC-BY-4.0)"]
    assert found["model_name"] == ["Llama (llama3.1)"]
    assert found["notice"] == ["Built with Llama (llama3.1)", "Built with Qwen (qwen)"]
    assert found["unknown"] == ["d: x-1.0"]
    assert "training" not in found


def card(sources, parents=None):
    count = Count(1, 1)
    return Card("x", "characters", None, {"train": count}, {}, sources, {}, {}, "", parents=parents or {})


def source(licence, teacher=None, terms=None, rows=1):
    return CardSource("here", "", rows, Count(rows, rows), licence, teacher, terms)


def test_terms_are_those_of_sources_and_teachers_through_all_parents():
    one = card({"web": source("CC-BY-NC-4.0", "gpt-4", "openai-terms"), "none": source("GPL-3.0", rows=0)})
    two = card({"clean": source(None)}, {"clean": Parent("one", one)})
    mixed = card({"two/clean": source(None), "faq": source(None, "a model")}, {"two": Parent("two", two)})
    assert terms_in("mix", mixed) == [
        Terms("mix/two/clean/web", "CC-BY-NC-4.0"),
        Terms("mix/two/clean/web (teacher gpt-4)", "openai-terms"),
        Terms("mix/faq", None),
        Terms("mix/faq (teacher a model)", None),
    ]
    assert kinds(*(terms.name for terms in terms_in("mix", mixed))) == {"unknown"}
    assert "no terms are recorded for mix/faq (teacher a model)" in [
        c.message for c in conflicts(terms_in("mix", mixed), "research")
    ]


def test_a_card_gets_its_teachers_terms_and_its_parents_cards(tmp_path):
    one = card({"web": source("MIT")})
    one = Card(**{**vars(one), "files": {"train/a.jsonl": [0, "00000000"]}})
    (tmp_path / "one/train").mkdir(parents=True)
    one.write(tmp_path / "one")
    child = with_origins(card({"a": CardSource(str(tmp_path / "one"), "", 1, Count(1, 1), None, "gpt-4")}))
    assert child.sources["a"].terms == "openai-terms"
    assert child.parents == {"a": Parent(str(tmp_path / "one"), one)}
    assert with_origins(child) == child


def test_a_config_with_a_misspelt_licence_is_refused_before_anything_is_read():
    config = {"sources": {"a": {"source": "nowhere.jsonl", "licence": "cc-by-nc4.0"}}, "steps": ["parse"]}
    with pytest.raises(UserError, match=r"config\.sources\.a\.licence: .*did you mean cc-by-nc-4\.0"):
        read_config(config)
    config["sources"]["a"]["licence"] = "cc-by-nc-4.0"
    assert read_config(config).sources["a"].licence == "cc-by-nc-4.0"
