"""The model card of an export: what its header says to the Hub, and what stands in it of runs, data and licences."""

import dataclasses
import json

import gguf
import pytest

import camelid
from camelid import checkpoints
from camelid.checkpoints import convert, lineage, model_card
from camelid.checkpoints.lineage import Data, Lineage, Root, Stage
from camelid.data.cards import Card, CardSource, Count
from camelid.tests.checkpoints.interop import folders

VERSIONS = {"camelid": "0.1.0"}


def dataset(licence, language="en", teacher=None, terms=None) -> Card:
    source = CardSource("there", "f", 3, Count(3, 9), licence, teacher, terms)
    languages = {language: Count(3, 9), "other": Count(1, 1)}
    return Card("d", "tokens", None, {"train": Count(3, 9)}, languages, {"web": source}, {}, {}, "c")


def of(*cards, root=None) -> Lineage:
    config = {"recipe": "sft", "seed": 0}
    data = [Data(f"d{i}", "file.jsonl", 1.0, card) for i, card in enumerate(cards)]
    return Lineage([Stage(config, 5, {}, data, VERSIONS, {})], root)


def hub_root(licence):
    return Root("lab/plain", True, "c0ffee", licence)


@pytest.mark.parametrize(
    ("found", "licence"),
    [
        (of(dataset("MIT"), dataset("mit")), "MIT"),
        (of(dataset("Apache-2.0"), root=hub_root("apache-2.0")), "Apache-2.0"),
        (of(dataset("MIT"), dataset("CC-BY-4.0")), None),
        (of(dataset("MIT"), None), None),
        (of(dataset("MIT"), root=hub_root(None)), None),
        (of(dataset("own")), None),
        (of(dataset("MIT", teacher="gpt-4", terms="openai-terms")), None),
    ],
)
def test_a_licence_stands_in_the_header_only_if_all_parts_have_that_one(found, licence):
    assert model_card.licence_of(found) == licence


def test_the_card_of_an_export_is_read_by_the_hubs_library_and_says_how_the_model_was_trained(tuned, tmp_path):
    from huggingface_hub import ModelCard

    convert.to_huggingface(tuned, tmp_path / "a model|<b>")
    text = (tmp_path / "a model|<b>" / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["camelid", "pretrain", "sft", "conversational"],
    }
    assert "# a model\\|&lt;b&gt;\n" in text
    first, second = text.index("1. **pretraining on text**: 24 steps"), text.index("2. **supervised tuning**: 24 steps")
    assert first < second and "started from random parameters" in text
    assert "| 2 | chat | chat.jsonl | 1 | not recorded |" in text and str(tuned) not in text
    for name, value in checkpoints.open(tuned).manifest["metrics"].items():
        assert f"| `{name.removeprefix('eval/')}` | {value:.6g} |" in text
    assert "No licence is recorded for text, chat" in text and "at most 256 tokens" in text
    assert camelid.load(tmp_path / "a model|<b>").config.max_len == 256


def test_a_gguf_file_says_in_its_metadata_what_a_card_says(tuned, tmp_path):
    convert.to_gguf(tuned, tmp_path / "file.gguf")
    fields = gguf.GGUFReader(tmp_path / "file.gguf").fields
    assert fields["general.tags"].contents() == ["camelid", "pretrain", "sft", "conversational"]
    assert "pretraining on text and supervised tuning" in fields["general.description"].contents()


def test_what_a_converted_model_was_is_said_with_the_licence_of_its_card(tmp_path):
    from huggingface_hub import ModelCard

    source = folders.write_folder(tmp_path / "source", folders.TINY)
    (source / "README.md").write_text("---\ntags:\n- x\nlicense: cc-by-4.0\n---\nlicense: mit")
    (source / "generation_config.json").write_text(json.dumps({"temperature": 0.7, "top_p": 0.9}))
    convert.to_camelid(source, tmp_path / "run")
    convert.to_huggingface(tmp_path / "run", tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "cc-by-4.0" and "base_model" not in card.data.to_dict()
    assert "converted from source by camelid" in card.text and "temperature 0.7, top_p 0.9" in card.text.replace(
        "\\", ""
    )
    assert "Name the authors (CC-BY-4.0)" in card.text.replace("\\", "") and "No evaluation is recorded" in card.text


def test_a_header_names_base_languages_and_licence_as_the_hub_writes_them(tuned, tmp_path):
    from huggingface_hub import ModelCard

    found = checkpoints.open(tuned)
    chain = of(dataset("ODC-By-1.0", "no"), dataset("ODC-By-1.0", "zh"), root=hub_root("odc-by"))
    fields = model_card.header(found, chain, "lab/plain", adapters=False)
    lines = "\n".join(f"{name}:{model_card._yaml(value)}" for name, value in fields.items())
    said = ModelCard(f"---\n{lines}\n---\n").data
    assert said.license == "odc-by" and said.language == ["no", "zh"]
    assert (said.base_model, said["base_model_relation"]) == ("lab/plain", "finetune")
    other = model_card.header(found, of(dataset("LicenseRef-House")), None, adapters=False)
    assert (other["license"], other["license_name"]) == ("other", "licenseref-house")


def test_a_dataset_that_changed_since_the_run_gives_no_licence(tmp_path):
    card = dataclasses.replace(dataset("MIT"), files={"train/part-00000-of-00001.jsonl": [0, "00000000"]})
    card.write(tmp_path)
    entry = {"source": str(tmp_path), "weight": 1.0}
    assert lineage._data("d", entry, {"datasets": {"d": card.hash}}).card == card
    assert lineage._data("d", entry, {"datasets": {"d": "another"}}).card is None


def test_runs_that_name_each_other_end_the_lineage(tuned, monkeypatch):
    monkeypatch.setattr(lineage, "MOST_RUNS", 1)
    found = lineage.lineage_of(checkpoints.open(tuned))
    assert len(found.stages) == 1 and found.root is not None
