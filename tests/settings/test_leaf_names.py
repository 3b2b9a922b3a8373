"""Which leaf a name means that no leaf has."""

import pytest

from camelid.launch.config_listing import listing_of
from camelid.settings.leaf_names import SYNONYMS, did_you_mean_leaf
from camelid.settings.meanings import NAME

CONFIGS = ("sft/primer", "ppo/primer", "grpo/primer", "dpo/primer")


@pytest.fixture(scope="module")
def leaves() -> dict[str, list[str]]:
    """The leaves and sections of configs by the config's name."""
    return {name: [leaf for leaf in listing_of(name).leaves if NAME not in leaf] for name in CONFIGS}


def test_every_synonym_means_leaves_that_there_are(leaves):
    there = {leaf.removeprefix("config.") for each in leaves.values() for leaf in each}
    for word, meant in SYNONYMS.items():
        assert meant and set(meant) <= there, word


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ("lr", "optim.lr"),
        ("optim.learning_rate", "optim.lr"),
        ("learning-rate", "optim.lr"),
        ("warmup", "schedule.warmup_percent"),
        ("optim.warmup_steps", "schedule.warmup_steps"),
        ("optim.betas", "optim.b1"),
        ("max_steps", "total_steps"),
        ("batch", "data.batch_size"),
        ("lora_r", "lora.targets"),
        ("max_seq_length", "data.seq_len"),
        ("model.layers", "model.n_layers"),
        ("dim", "model.dim"),
        ("seeed", "seed"),
        ("early_stopping.patiense", "early_stopping.patience"),
        ("optim.nane", "optim.name"),
        ("lisa.period_seconds", "lisa.period_steps"),
        ("data.mixtur.primer.weight", "data.mixture.primer.weight"),
        ("evals.other", None),
        ("zzz", None),
        ("", None),
    ],
)
def test_the_last_part_decides_then_synonyms_then_spelling_and_far_names_mean_nothing(leaves, given, means):
    said = did_you_mean_leaf(f"config.{given}", leaves["sft/primer"])
    assert said == (f"; did you mean config.{means}?" if means else "")


def test_a_synonym_means_the_leaf_that_the_config_has(leaves):
    found = {name: did_you_mean_leaf("config.cliprange", leaves[name]) for name in CONFIGS}
    assert found["ppo/primer"] == "; did you mean config.ppo.clip?"
    assert found["grpo/primer"] == "; did you mean config.grpo.clip?"
    assert did_you_mean_leaf("lora_alpha", ["lora"]) == "; did you mean lora.alpha?"
