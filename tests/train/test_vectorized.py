"""Several runs in one program against the same runs alone."""

import contextlib
import dataclasses
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from camelid.checkpoints import language_model
from camelid.errors import UserError
from camelid.launch.cli import main
from camelid.launch.recipes import read_config, run_of
from camelid.settings.config_files import load_phases
from camelid.tests.conftest import CONFIG
from camelid.train import vectorized
from camelid.train.loop import Interrupted, TrainingStopped
from camelid.train.optimizer import OptimSettings, make_optimizer, make_schedule
from camelid.train.run_record import read_record
from camelid.train.vectorized_settings import program_of, scalars_of, with_scalars

OTHER = {
    "seed": 3,
    "optim.lr": 3e-3,
    "optim.weight_decay": 0.0,
    "optim.clip_norm": 0.3,
    "schedule.final": 0.5,
    "guard.spike_sigma": 5.0,
    "guard.warmup_steps": 7,
    "z_loss": 1e-3,
}
"""Leaves in which the second member differs from the fixture `pretrained`."""


@pytest.fixture(scope="module", autouse=True)
def keep_programs(tmp_path_factory):
    """A program that is compiled a second time is read from a folder."""
    settings = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.5,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is settings:
            yield


@pytest.fixture(scope="module")
def config(corpus):
    """config(**leaves): the config of a tiny run with other leaves."""

    def load(**leaves):
        return load_phases(f"{CONFIG}:root={corpus}", flags(leaves))[""]

    return load


def flags(leaves: dict) -> list[str]:
    return [f"--config.{name}={value}" for name, value in leaves.items()]


def params(workdir: Path) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(language_model.load(workdir).params)]


@pytest.fixture(scope="module")
def together(one_device, config, tmp_path_factory) -> Path:
    """A folder with the runs "same", which is that of `pretrained`, and "other", which were computed at once."""
    folder = tmp_path_factory.mktemp("together")
    assert vectorized.train(pair(config, folder), vmap=True) == [None, None]
    return folder


def pair(config, folder: Path) -> list:
    return [run_of(config(**leaves), folder / name, {}) for name, leaves in (("same", {}), ("other", OTHER))]


@pytest.fixture(scope="module")
def alone(one_device, arguments, tmp_path_factory) -> Path:
    """The run "other" by itself."""
    workdir = tmp_path_factory.mktemp("alone")
    assert main([*arguments("pretrain", workdir), *flags(OTHER)]) == 0
    return workdir


def test_members_computed_at_once_equal_single_runs_to_rounding(together, pretrained, alone, metrics):
    check_equal(together / "same", pretrained, metrics)
    check_equal(together / "other", alone, metrics)
    record = read_record(together / "other")
    assert record.status == "finished" and record.attempts[-1].to_step == 24
    assert (together / "other" / "config.json").exists() and list((together / "other" / "tensorboard").iterdir())


def check_equal(run: Path, single: Path, metrics) -> None:
    """Losses and gradients of all steps within 1e-5 of their size, parameters at the end within 2e-5."""
    found, expected = metrics(run), metrics(single)
    assert found.keys() == expected.keys() == set(range(25))
    for step, line in expected.items():
        assert found[step].keys() == line.keys()
        for metric in {"train/loss", "train/grad_norm", "train/lr", "eval/heldout/text/loss"} & line.keys():
            assert found[step][metric] == pytest.approx(line[metric], rel=1e-5), (step, metric)
    for a, b in zip(params(run), params(single), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_members_that_are_cut_off_resume_bit_for_bit(together, config, tmp_path):
    """One of them at first keeps its place without being trained: the program computes its place all the same."""
    calls = []

    def kill(number):
        calls.append(number)
        if len(calls) == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return contextlib.nullcontext()

    ended = vectorized.train(pair(config, tmp_path), kill, absent={0}, vmap=True)
    assert ended[0] is None and isinstance(ended[1], Interrupted)
    assert read_record(tmp_path / "other").status == "interrupted" and not (tmp_path / "same").exists()
    assert vectorized.train(pair(config, tmp_path), vmap=True) == [None, None]
    assert 0 < read_record(tmp_path / "other").attempts[-1].from_step < 24
    for name in ("same", "other"):
        for a, b in zip(params(tmp_path / name), params(together / name), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("adamw", {"b1": (0.9, 0.8), "b2": (0.95, 0.9), "eps": (1e-8, 1e-5)}),
        ("adamw8bit", {"b1": (0.9, 0.8), "b2": (0.95, 0.9), "eps": (1e-8, 1e-5)}),
        ("lion", {"b1": (0.9, 0.8), "b2": (0.99, 0.9)}),
        ("adafactor", {"decay_rate": (0.8, 0.5), "eps": (1e-30, 1e-8), "clipping_threshold": (1.0, 2.0)}),
        ("muon", {"momentum": (0.95, 0.8), "b2": (0.95, 0.9), "eps": (1e-8, 1e-5)}),
    ],
)
def test_every_scalar_of_an_optimizer_may_differ(name, arguments):
    """Two steps with members' scalars equal steps whose settings have them as constants."""
    rng = np.random.default_rng(0)
    params = {
        "embed": {"embedding": rng.normal(size=(16, 8)).astype(np.float32)},
        "layers": {"mlp": {"gate": rng.normal(size=(2, 8, 24)).astype(np.float32)}},
    }
    grads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
    common = {"lr": (0.1, 0.02), "weight_decay": (0.1, 0.0), "clip_norm": (1.0, 0.3)}
    scalars = {each: np.array(values, np.float32) for each, values in (arguments | common).items()}

    def steps(scalars):
        settings = dataclasses.replace(OptimSettings(name=name), **scalars)
        schedule = make_schedule(name="cosine", lr=settings.lr, total_steps=4, warmup_steps=1, final=0.1)
        optimizer = make_optimizer(params, settings, schedule)
        moved, state = params, optimizer.init(params)
        for count in range(2):
            fits = optimizer.finite(grads, state, moved, count)
            moved, state, _ = optimizer.move(grads, state, moved, jax.random.key(0))
        return moved, fits

    together, fits = jax.jit(jax.vmap(steps))(scalars)
    assert fits.all()
    alone, _ = jax.jit(lambda: steps({each: float(values[1]) for each, values in scalars.items()}))()
    for both, one in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(both[1], one, rtol=1e-4, atol=1e-6)
        assert np.max(np.abs(both[1] - both[0])) > 1e-3


def test_a_member_that_fails_or_stops_early_leaves_the_others_as_they_are_alone(
    one_device, pretrained, config, metrics, tmp_path
):
    """Here members are computed one by one."""
    leaves = [
        {},
        {"seed": 4, "optim.lr": 100.0, "guard.max_streak": 2, "guard.spike_sigma": 1e-6, "guard.warmup_steps": 1},
        {"optim.lr": 1e-12, "early_stopping.metric": "eval/heldout/text/loss", "early_stopping.patience": 1},
        {},
    ]
    runs = [run_of(config(**each), tmp_path / str(number), {}) for number, each in enumerate(leaves)]
    (tmp_path / "3").write_text("a file where the run directory should be")
    ended = vectorized.train(runs, vmap=False)
    assert ended[0] is None and read_record(tmp_path / "0").status == "finished"
    assert isinstance(ended[1], TrainingStopped) and "2 steps in a row were skipped" in str(ended[1])
    assert ended[2] is None and read_record(tmp_path / "2").status == "stopped early"
    assert isinstance(ended[3], OSError)
    assert max(metrics(tmp_path / "2")) == 12
    check_equal(tmp_path / "0", pretrained, metrics)


def test_what_would_be_another_program_is_refused_with_its_leaf(config):
    one = read_config(config())
    for leaf, value in {
        "optim.accumulate": 2,
        "data.seq_len": 32,
        "optim.clip_norm": None,
        "optim.name": "lion",
    }.items():
        other = read_config(config(**{leaf: value}))
        assert program_of(one) != program_of(other)
        with pytest.raises(UserError, match=rf"config.{leaf} = .* and .*: runs of one program have the same value"):
            scalars_of([one, one, other])
    same = [read_config(config(**{leaf: value})) for leaf, value in OTHER.items()]
    assert {program_of(each) for each in same} == {program_of(one)}
    for leaf, value in {"early_stopping.metric": "eval/a/loss", "optim.b2": 0.99}.items():
        assert program_of(read_config(config(**{leaf: value}))) == program_of(one)
    scalars = scalars_of([one, *same])
    assert scalars.keys() == OTHER.keys() and all(len(values) == len(OTHER) + 1 for values in scalars.values())
    changed = with_scalars(one, {name: scalars[name][1 + k] for k, name in enumerate(OTHER)})
    assert (changed.seed, changed.optim.clip_norm, changed.optim.b1) == (3, np.float32(0.3), None)


@pytest.mark.parametrize(
    ("leaves", "words"),
    [
        ({"optim.offload": True}, "moments on the device"),
        ({"profile.at_step": 3}, "trace a run that has its program alone"),
        ({"wandb.project": "nano"}, "one run to Weights & Biases"),
    ],
)
def test_settings_of_a_process_are_refused(config, leaves, words):
    with pytest.raises(UserError, match=words):
        vectorized.check(read_config(config(**leaves)))
