"""Sources of a few records: one is held out where that is possible, and batches repeat rows where there are too few."""

import numpy as np
import pytest

from camelid.data.templates import load_template
from camelid.data.tokenizer import Tokenizer
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.errors import UserError
from camelid.settings.length import Length
from camelid.train.batches import DataSettings, TextEntry, data_of, data_tables, report_data
from camelid.train.lengths import lengths_of


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_sentencepiece(["What is it? It is number user assistant 0123456789"] * 3, vocab_size=300, output_dir=folder)
    return Tokenizer.load(folder)


def data(folder, tokenizer, records, heldout=0.05, batch_size=8):
    path = folder / "faq.csv"
    path.write_text("question,answer\n" + "".join(f"What is {i}?,It is number {i}.\n" for i in range(records)))
    mixture = {"faq": TextEntry(str(path))}
    settings = DataSettings(mixture, batch_size, heldout, seq_len=128, packing="best_fit", cache_dir=str(folder / "c"))
    return data_of(settings, tokenizer, load_template("chatml"), seed=0)


class Config:
    """The lengths of a run."""

    total, log, eval = Length(4, "epochs", "c.total_epochs"), Length(5, "steps", "l"), Length(25, "percent", "e")


@pytest.mark.parametrize("records", [2, 3, 10])
def test_few_records_are_trained_on_and_at_least_one_is_held_out(tmp_path, tokenizer, records):
    batches, heldout = data(tmp_path, tokenizer, records)
    trained, measured = batches.summary()["faq"]["records"], heldout["faq"].summary()["records"]
    assert trained + measured == records and measured >= 1 and trained >= 1
    assert len(heldout["faq"]) == 1 and heldout["faq"][0]["tokens"].shape == (8, 128)
    rows = batches[0]
    assert rows["tokens"].shape == (8, 128) and rows["loss_mask"].any(axis=1).all()
    assert lengths_of(Config, batches).total >= 1 and batches.epochs(1)["faq"] == 8 / batches.summary()["faq"]["rows"]


def test_a_single_record_trains_if_nothing_is_held_out(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"heldout.*0 holds out nothing"):
        data(tmp_path, tokenizer, 1)
    batches, heldout = data(tmp_path, tokenizer, 1, heldout=0.0)
    assert not heldout and len(np.unique(batches[0]["tokens"], axis=0)) == 1
    assert lengths_of(Config, batches).total == 1


def test_the_report_of_the_data_has_a_row_for_each_source_and_no_column_of_zeros(tmp_path, tokenizer):
    batches, heldout = data(tmp_path, tokenizer, 10)
    (row,) = data_tables(batches, heldout)["data"]
    assert list(row)[:3] == ["source", "share of the batches (%)", "records"]
    counts = batches.summary()["faq"]
    assert (row["source"], row["records"], row["share of the batches (%)"]) == ("faq", str(counts["records"]), "100")
    assert row["trained tokens"] == f"{counts['trained']:,}" and 0 < float(row["fill of the rows (%)"]) <= 100
    assert row["held-out records"] == str(heldout["faq"].summary()["records"])
    assert not {"samples", "bad records", "samples cut", "held-out bad records"} & set(row)
    two = report_data(batches, heldout | {"other": heldout["faq"]})
    assert [each["source"] for each in two] == ["faq", "other"] and two[1]["records"] == ""
