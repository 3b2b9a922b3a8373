"""The plan of a server: its memory against that of a server that is there, and the largest number of slots."""

import dataclasses
import re

import jax
import pytest

from camelid.checkpoints.language_model import LanguageModel
from camelid.launch.cli import main
from camelid.launch.plans import serving
from camelid.launch.plans.serving import Served, ServingPlan, largest, lines, serving_plan
from camelid.launch.plans.topologies import topology
from camelid.model import llama
from camelid.model.config import LlamaConfig
from camelid.model.sharding import make_mesh, shardings
from camelid.serve.programs import Programs
from camelid.train.chips import CHIPS

CONFIG = LlamaConfig.preset("nano-test").replace(n_layers=1, unroll=1)
GIB = 2**30


def on_first(tree) -> int:
    """Bytes of a tree's arrays on the first device, without random keys."""
    first, leaves = jax.devices()[0], jax.tree.leaves(tree)
    return sum(
        shard.data.nbytes
        for leaf in leaves
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        for shard in leaf.addressable_shards
        if shard.device == first
    )


def test_the_memory_of_a_plan_is_that_of_a_server():
    mesh, model = make_mesh({"tensor": 2}, jax.devices()[:2]), llama.build(CONFIG)
    params = jax.jit(model.init, out_shardings=shardings(model.abstract_params, mesh))(jax.random.key(0))
    plan = serving_plan(Served(CONFIG, rows=2, max_len=60, chunk=16, kept_chunks=3), topology("cpu:2"), {"tensor": 2})
    assert plan.served.length == 64
    with jax.set_mesh(mesh):
        how = dict(rows=2, length=64, chunk=16, blocks=3, adapters=(), alone=False)
        server = Programs(LanguageModel(model, params, None, None, mesh), **how)
    assert plan.loaded == on_first(params)
    assert plan.decoder == on_first(server._decoder)
    assert plan.rows == on_first([server._rows, server._no_offsets])
    assert plan.kept == on_first(server._blocks)
    for name, size in plan.programs.items():
        memory = server.programs[name].call.memory_analysis()
        assert size == memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes, name
    assert plan.fits is None and plan.tokens_per_second(1.0) is None  # no datasheet says what a CPU has


def planned(rows: int, kept_chunks: int | None = None, step: float = 0.01) -> ServingPlan:
    """A plan in which a row takes 0.5 GiB, its chunks as much, and a step `step` GiB for each row."""
    chip = CHIPS["rtx4090"]
    where = topology("cpu:1")._replace(chip=chip, name="rtx4090:1x1")
    kept = rows * 0.5 if kept_chunks is None else 1.0
    return ServingPlan(
        Served(CONFIG, rows=rows, kept_chunks=kept_chunks),
        where,
        {"data": 1},
        *(int(size * GIB) for size in (4.0, 4.0, 3.5, rows * 0.5, kept, 1.0)),
        {"read": GIB, "forward": int(rows * step * GIB), "draw": 0},
    )


@pytest.mark.parametrize(("kept_chunks", "rows"), [(None, 14), (3, 27)])
def test_the_largest_number_of_slots_is_the_last_one_that_fits(monkeypatch, kept_chunks, rows):
    monkeypatch.setattr(serving, "serving_plan", lambda served, *_: planned(served.rows, served.kept_chunks))
    found = largest(planned(8, kept_chunks))
    assert found.served.rows == rows and found.fits
    assert not planned(rows + 1, kept_chunks).fits


def test_programs_of_more_slots_that_need_more_than_their_share_lower_the_number(monkeypatch):
    more = lambda served, *_: planned(served.rows, step=0.01 * (1 + served.rows))  # noqa: E731
    monkeypatch.setattr(serving, "serving_plan", more)
    found = largest(planned(2))
    assert found.fits and found.served.rows < 14


def test_programs_of_more_slots_that_need_less_than_their_share_raise_the_number(monkeypatch):
    less = lambda served, *_: planned(served.rows, step=2.0 / served.rows)  # noqa: E731
    monkeypatch.setattr(serving, "serving_plan", less)
    found = largest(planned(2, step=1.0))
    assert found.fits and not planned(int(1.05 * found.served.rows) + 1, step=2.0 / found.served.rows).fits
    assert found.served.rows == 13 and serving._most_rows(planned(2, step=1.0)) == 7


def test_a_plan_that_fits_has_no_fewer_slots_than_it_says(monkeypatch):
    jumps = lambda served, *_: planned(served.rows, step=0.01 if served.rows <= 13 else 9.0)  # noqa: E731
    monkeypatch.setattr(serving, "serving_plan", jumps)
    for rows in range(8, 14):
        assert largest(planned(rows)).served.rows == 13


def test_a_decoder_that_cannot_be_made_has_no_slots(monkeypatch):
    monkeypatch.setattr(serving, "serving_plan", lambda *_: pytest.fail("no number of slots helps"))
    assert largest(dataclasses.replace(planned(8), starting=30 * GIB)) is None


def test_a_model_that_leaves_no_memory_has_no_slots(monkeypatch):
    monkeypatch.setattr(serving, "serving_plan", lambda *_: pytest.fail("nothing is left to compile for"))
    assert largest(dataclasses.replace(planned(8), loaded=30 * GIB)) is None


def test_a_step_reads_all_weights_and_the_filled_part_of_the_rows():
    plan, chip = planned(8), CHIPS["rtx4090"]
    bandwidth = chip.hbm_bandwidth
    assert plan.tokens_per_second(0.0) == pytest.approx(8 * bandwidth / (3.5 * GIB))
    assert plan.tokens_per_second(0.5) == pytest.approx(8 * bandwidth / ((3.5 + 2.0) * GIB))


def test_many_slots_of_short_answers_are_bound_by_products():
    chip, weights = CHIPS["rtx4090"], CONFIG.n_params - CONFIG.dim * 3  # without norms; the embedding is the head too
    many = dataclasses.replace(planned(100_000_000), rows=0)
    assert many.tokens_per_second(0.0) == pytest.approx(chip.flops_bf16 / (2 * weights), rel=0.01)


def test_the_report_tells_the_largest_number_of_slots_its_speed_and_its_price():
    text = "\n".join(lines(planned(8), planned(14), price=0.4))
    assert re.search(r"largest number of slots of 256 tokens +14, with a peak of 23\.\d\d$", text, re.MULTILINE)
    assert "8 slots, short answers" in text and "14 slots, full slots" in text
    speed = planned(14).tokens_per_second(0.0)
    assert f"{speed:,.0f}, at 0.4 an hour {0.4 / speed / 3600 * 1e6:,.3g} a million" in text
    assert "none fits" in "\n".join(lines(planned(8), None))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give --config=NAME to plan a run, or --serve=MODEL to plan a server"),
        (["--config=sft/primer", "--slots=4"], "--slots=4 does nothing without --serve"),
        (["--serve=nano-test", "--count_only"], "--count_only does nothing without --config"),
        (["--serve=nano-test", "--chunk=3"], "--chunk 3: give a power of two"),
        (["--serve=nano-test", "--max_len=512"], "--max_len 512: give 2 to the model's context of 256 tokens"),
        (["--serve=nano-test", "--mesh.tensor=16"], "--mesh of 16 devices: cpu:1 has 1"),
    ],
)
def test_options_that_do_not_fit_are_one_line(capsys, words, said):
    assert main(["plan", "--topology=cpu:1", *words]) == 2
    assert said in capsys.readouterr().err
