"""What a run says about the licences of its datasets, and how its manifest names them."""

import pytest

from camelid.configs.base import base
from camelid.data.cards import read_card
from camelid.errors import UserError
from camelid.launch.recipes import read_config
from camelid.tests.curate.datasets import make
from camelid.train import ledger
from camelid.train.batches import sources_of
from camelid.train.ledger import trained_datasets

PAIRS = [("How many?", "Seven."), ("Which one?", "The red one.")]


@pytest.fixture
def config(tmp_path):
    """config(licences by name, other leaves of config.data): the settings of a run on datasets with these licences;
    one called plain has no card."""
    ledger._tell_once.cache_clear()
    ledger._warn_once.cache_clear()

    def read(licences_of, **leaves):
        config = base()
        config.model.preset, config.total_steps = "nano-test", 4
        config.data.mixture = {}
        for name, licence in licences_of.items():
            if not (tmp_path / name).exists():
                make(tmp_path / name, PAIRS, licence=licence)
            if name == "plain":
                (tmp_path / name / "card.json").unlink(missing_ok=True)
            entry = {
                "source": str(tmp_path / name),
                "format": "auto",
                "weight": float(name != "unused"),
                "columns": None,
            }
            config.data.mixture[name] = entry
        config.data.update(leaves)
        return read_config(config)

    return read


def sources(settings):
    return sources_of(settings.data.mixture, settings.data)


def test_datasets_whose_licences_exclude_each_other_are_not_trained_on_unless_told(config, capsys):
    both = {"one": "CC-BY-SA-4.0", "two": "CC-BY-NC-4.0"}
    with pytest.raises(
        UserError, match=r"config\.data\.mixture: CC-BY-SA-4\.0 of one/web .* config\.data\.licences=tell"
    ):
        sources(config(both))
    for _ in range(2):
        assert [source.name for source in sources(config(both, licences="tell"))] == ["one", "two"]
    assert capsys.readouterr().err.count("CC-BY-SA-4.0 of one/web") == 1


def test_the_use_of_the_model_is_compared(config):
    assert sources(config({"one": "CC-BY-NC-4.0"}))
    with pytest.raises(UserError, match=r"excludes commercial use \(use: commercial\).*config\.data\.use"):
        sources(config({"one": "CC-BY-NC-4.0"}, use="commercial"))


def test_a_source_that_is_only_evaluated_does_not_count(config):
    assert sources(config({"one": "CC-BY-SA-4.0", "unused": "CC-BY-NC-4.0"}))


def test_unknown_licences_and_sources_without_a_card_are_told_once_and_trained_on(config, capsys):
    for _ in range(2):
        sources(config({"one": "MIT", "two": None, "plain": None}))
    said = capsys.readouterr().err
    assert said.count("no licence is recorded for two/web") == 1
    assert said.count("no card says under which licence the data of plain are") == 1


def test_a_run_without_cards_says_nothing(config, capsys):
    sources(config({"plain": None}))
    assert capsys.readouterr().err == ""


def test_the_manifest_names_the_cards_of_what_is_trained_on(config, tmp_path):
    settings = config({"one": "MIT", "plain": None, "unused": "MIT"})
    assert trained_datasets(settings) == {"one": read_card(tmp_path / "one").hash}
