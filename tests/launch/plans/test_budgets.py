"""Budgets of small steps: what is kept in tests/budgets, and faults that a comparison with it must name."""

import dataclasses

import jax
import pytest
from jax.sharding import PartitionSpec

from camelid.launch.plans.budget import differences
from camelid.model.sharding import PARTITION_RULES
from camelid.tests.budget_entries import BUDGETS, ENTRIES
from camelid.tests.make_budgets import compiled, kept
from camelid.train import losses, pretrain
from camelid.train.network import Network

NAME = "small_pretrain"


def found(name: str, *overrides: str) -> list[str]:
    """The differences of a step, compiled with further overrides, from its budget."""
    entry = ENTRIES[name]
    return differences(name, kept(name), compiled(dataclasses.replace(entry, overrides=entry.overrides + overrides)))


def about(lines: list[str], *words: str) -> list[str]:
    return [line for line in lines if all(word in line for word in words)]


@pytest.mark.parametrize("name", [name for name in ENTRIES if name.startswith("small_")])
def test_a_step_is_within_its_budget(name):
    assert found(name) == []


def test_an_additional_gather_is_named(monkeypatch):
    def gathering(model, config):
        loss_fn = losses.loss_of(model, config)

        def loss(params, rows):
            mlp = params["layers"]["mlp"]
            up = jax.lax.with_sharding_constraint(mlp["up"], PartitionSpec())
            return loss_fn(params | {"layers": params["layers"] | {"mlp": mlp | {"up": up}}}, rows)

        return loss

    monkeypatch.setattr(pretrain, "loss_of", gathering)
    lines = found(NAME)
    assert about(lines, f"{NAME}: step: all-gather along fsdp for forward sharding_constraint 2 times, 1 in the budget")


def test_arrays_that_are_no_longer_donated_or_split_are_named(monkeypatch):
    donating = Network._jit
    monkeypatch.setattr(
        Network,
        "_jit",
        lambda self, update: jax.jit(donating(self, update).__wrapped__, out_shardings=(self.shardings, None)),
    )
    rules = [(r"layers/mlp/up", ()), *PARTITION_RULES]
    lines = found(NAME, f"--config.partition_rules={rules!r}")
    assert about(lines, f"{NAME}: step: params/layers/mlp/gate is not updated in place")
    assert about(lines, f"{NAME}: step: 0 bytes of the state updated in place")
    for leaf in ("params", "opt_state/1/mu", "opt_state/1/nu"):
        said = f"{NAME}: sharding: {leaf}/layers/mlp/up is split as (whole), in the budget (- fsdp tensor)"
        assert said in lines
    assert not about(lines, "sharding", "mlp/gate")


def test_every_budget_that_is_kept_is_of_a_step_that_is_compiled():
    assert {file.stem for file in BUDGETS.glob("*.json")} <= set(ENTRIES)
