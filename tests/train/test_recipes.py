"""Both recipes from end to end through the command line: what they reach, what they store, and users' mistakes."""

import functools
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from camelid.checkpoints import language_model
from camelid.launch.cli import main
from camelid.launch.recipes import read_config
from camelid.model.logprobs import next_token_loss
from camelid.model.sharding import AXES, BATCH, PARTITION_RULES, make_mesh
from camelid.settings.config_files import load_config
from camelid.train import batches as data_batches
from camelid.train.lengths import lengths_of
from camelid.train.run import Run, mesh_of
from camelid.train.state import state_of, state_shardings
from camelid.train.trainable import Trainable
from camelid.train.update import make_update


def config_of(arguments, recipe="pretrain", **kwargs) -> str:
    return arguments(recipe, "unused", **kwargs)[1].removeprefix("--config=")


@pytest.fixture
def settings(arguments):
    """settings(recipe, init_from=None): the config of a tiny run as recipes see it."""

    return lambda recipe, **kwargs: read_config(load_config(config_of(arguments, recipe, **kwargs)))


def data_of(settings):
    run = Run(settings, "unused", mesh_of(settings.mesh))
    template = run.need_template() if settings.recipe == "sft" else None
    return run, data_batches.data_of(settings.data, run.tokenizer, template, settings.seed)


def heldout_loss(model, batches) -> float:
    """Mean loss over the trained tokens of `batches`, each segment alone, from whole logits in float64."""
    segments = []
    for batch in (batches[step] for step in range(len(batches))):
        for row, ids in enumerate(batch["segment_ids"]):
            for segment in range(1, ids.max() + 1):
                here = ids == segment
                segments.append([batch[name][row, here] for name in ("tokens", "targets", "loss_mask")])
    padded = np.zeros((3, len(segments), batches.length), np.float32)
    for i, segment in enumerate(segments):
        padded[:, i, : len(segment[0])] = segment
    tokens, targets, mask = padded[0].astype(int), padded[1].astype(int), padded[2]
    logits = np.asarray(model.logits(tokens), np.float64)
    top = logits.max(-1, keepdims=True)
    log_z = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
    nll = log_z - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return float((nll * mask).sum() / mask.sum())


def test_both_recipes_lower_training_and_heldout_loss(pretrained, tuned, metrics):
    for workdir, source in (pretrained, "text"), (tuned, "chat"):
        lines = metrics(workdir)
        assert list(lines) == list(range(25))
        losses = [lines[step]["train/loss"] for step in range(1, 25)]
        assert 5.0 < losses[0] < 8.0  # ln 352 = 5.9
        assert np.mean(losses[-4:]) < 0.2 * losses[0]
        heldout = [lines[step][f"eval/heldout/{source}/loss"] for step in (0, 12, 24)]
        assert heldout[2] < heldout[1] < 2.0 < heldout[0]
        assert lines[24][f"eval/heldout/{source}/perplexity"] == pytest.approx(np.exp(heldout[2]))


@pytest.mark.parametrize("recipe", ["pretrain", "sft"])
def test_the_checkpoint_alone_gives_the_reported_heldout_loss(recipe, pretrained, tuned, settings, metrics):
    """Of a run with a moving average, as the second, that is what is read when nothing is asked for."""
    workdir, source = {"pretrain": (pretrained, "text"), "sft": (tuned, "chat")}[recipe]
    model = language_model.load(workdir)
    assert model.step == 24
    _, (_, heldout) = data_of(settings(recipe, init_from=pretrained if recipe == "sft" else None))
    assert len(heldout[source]) < 16  # the run reads all of it
    reported = metrics(workdir)[24][f"eval/heldout/{source}/loss"]
    assert heldout_loss(model, heldout[source]) == pytest.approx(reported, rel=1e-4)
    if recipe == "sft":
        assert heldout_loss(language_model.load(workdir, weights="params"), heldout[source]) != pytest.approx(
            reported, rel=1e-3
        )


def test_tuning_starts_from_the_parameters_of_init_from(settings, pretrained, tmp_path):
    chosen = settings("sft", init_from=pretrained)
    run, (batches, _) = data_of(chosen)
    with jax.set_mesh(run.mesh):
        network = run.network(run.initial(run.model.init, run.start), lengths_of(chosen, batches))
        state = network.first_state(seed=0)
    stored = language_model.load(pretrained)
    assert run.model.config == stored.config
    assert run.tokenizer.fingerprint == stored.tokenizer.fingerprint
    for part in ("params", "ema"):
        jax.tree.map(np.testing.assert_array_equal, state[part], stored.params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves((state["opt_state"], state["step"], state["guard"])))


def test_a_checkpoint_brings_tokenizer_and_template_and_answers(tuned, pretrained):
    model = language_model.load(tuned)
    assert model.template.name == "chatml"
    answer = model.chat("Which colour has the red fox number 7?", max_tokens=24, temperature=0.0)
    assert answer.startswith("It is ")
    assert language_model.load(pretrained).template is None


def test_where_no_template_is_named_it_is_that_of_the_start(arguments, pretrained, tuned):
    for start, name in ((pretrained, None), (tuned, "chatml")):
        chosen = read_config(load_config(config_of(arguments, "sft", init_from=start), ["--config.template=None"]))
        found = Run(chosen, "unused", mesh=None).template
        assert (found and found.name) == name


def test_a_run_whose_steps_keep_failing_stops_with_one_line_and_exit_code_1(arguments, tmp_path, capsys):
    overrides = ["--config.z_loss=1e38", "--config.guard.max_streak=2"]  # the loss overflows
    assert main([*arguments("pretrain", tmp_path), *overrides]) == 1
    begun, *_, compiled, said = capsys.readouterr().err.splitlines()  # a slow machine tells that it still compiles
    assert begun.startswith("camelid: 24 steps") and compiled.startswith("camelid: compiling, once: ")
    assert said.startswith("camelid: step 1: 2 steps in a row were skipped (loss inf")


# Meshes


@pytest.fixture(scope="module")
def losses_on(arguments):
    """losses_on(axes): the losses of 20 steps of pretraining on a mesh, from the same parameters and data."""
    settings = read_config(load_config(config_of(arguments), ["--config.data.batch_size=8"]))
    run, (batches, _) = data_of(settings)
    model = run.model
    network = run.network(run.initial(model.init, None), lengths_of(settings, batches))
    optimizer, schedule = network.optimizer, network.schedule
    update = make_update(next_token_loss(model, z_loss=1e-4), optimizer, schedule)
    first = state_of(jax.jit(model.init)(jax.random.key(0)), optimizer, Trainable(), ema=False)
    first = jax.tree.map(np.asarray, first)

    @functools.cache
    def run(**axes) -> list[float]:
        mesh = make_mesh(axes, jax.devices()[: math.prod(axes.values())])
        where = state_shardings(first, mesh, PARTITION_RULES)
        rows = NamedSharding(mesh, PartitionSpec(BATCH, "context"))
        losses = []
        with jax.set_mesh(mesh):
            step_fn = jax.jit(update, donate_argnums=0, out_shardings=(where, None))
            state = jax.device_put(first, where)
            for step in range(20):
                state, metrics = step_fn(state, jax.device_put(batches[step], rows))
                losses.append(float(metrics["loss"]))
        return losses

    return run


@pytest.mark.parametrize("sizes", ["8x1x1x1", "1x8x1x1", "2x2x2x1", "1x2x2x2"])
def test_twenty_losses_are_those_of_one_device_on_any_mesh(sizes, losses_on):
    alone, spread = losses_on(), losses_on(**dict(zip(AXES, map(int, sizes.split("x")), strict=True)))
    assert alone[-1] < 0.2 * alone[0]
    np.testing.assert_allclose(spread, alone, rtol=0, atol=1e-5)


# Users' mistakes


def mistake(argv, capsys) -> str:
    """What the command says on standard error: one line."""
    capsys.readouterr()
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("camelid: ") and said.count("\n") == 1, said
    return said


PRETRAIN_MISTAKES = {
    "an unknown key": ("--config.optim.lrr=1", "there is no config.optim.lrr; did you mean config.optim.lr?"),
    "a value of another type": ("--config.optim.lr=fast", "config.optim.lr is of type float, such as 0.01"),
    "no tokenizer there": ("--config.tokenizer=/nowhere", "/nowhere"),
    "no tokenizer at all": ("--config.tokenizer=None", "config.tokenizer: give the path of one"),
    "no such source": ("--config.data.mixture.text.source=/nowhere/*.jsonl", "/nowhere/*.jsonl"),
    "no such format": ("--config.data.mixture.text.format=alpca", "'alpca'"),
    "conversations as text": ("--config.data.mixture.text.format=alpaca", "text.jsonl:1"),
    "no preset": ("--config.model.preset=None", "set one of config.model.preset and config.init_from"),
    "an unknown preset": ("--config.model.preset=nano-tset", "did you mean nano-test?"),
    "an unknown dtype": ("--config.model.dtype=float23", "config.model.dtype: 'float23' is none of float32, bfloat16"),
    "an unknown attention": ("--config.model.attention=flash", "config.model.attention: 'flash' is none of auto"),
    "an unknown remat": ("--config.model.remat=som", "config.model.remat: 'som' is none of none"),
    "an unknown name to keep": (
        "--config.model.remat=attention,som",
        "config.model.remat: 'attention,som' is none of none, dots, attention, full, offload, or several of query, ",
    ),
    "a mesh that does not fit": ("--config.mesh.tensor=3", "does not fit 8 device(s)"),
    "a mesh that does not divide": ("--config.mesh.tensor=8", "layers/attention/k (2, 64, 2, 16): mesh axis 'tensor'"),
    "rows that do not divide": ("--config.data.batch_size=12", "config.data.batch_size 12 is not a multiple of"),
    "parts that do not divide": ("--config.optim.accumulate=3", "config.optim.accumulate = 3"),
    "no length": (
        "--config.total_steps=None",
        "set one of config.total_steps, config.total_epochs, config.total_tokens",
    ),
    "never to report": ("--config.log_steps=0", "config.log_steps = 0: give a whole number from 1 up"),
    "an unknown optimiser": ("--config.optim.name=adam", "config.optim.name: 'adam' is none of adamw"),
    "another optimiser's argument": ("--config.optim.momentum=0.9", "does nothing where config.optim.name is 'adamw'"),
    "an unknown schedule": ("--config.schedule.name=cos", "config.schedule.name: 'cos' is none of cosine"),
    "rules that leave parameters out": ("--config.optim.frozen=[('embed/.*',True)]", "config.optim.frozen: no pattern"),
    "nothing to train": ("--config.optim.frozen=[('.*',True)]", "freezes every parameter"),
    "rules that leave leaves out": ("--config.partition_rules=[('embed/.*',())]", "no pattern of ['embed/.*'] matches"),
    "a trace after the end": ("--config.profile.at_step=24", "config.profile.at_step 24: the run has the steps 0 to"),
    "an unknown recipe": ("--config.recipe=pretain", "config.recipe: 'pretain' is none of pretrain, sft"),
    "no such run to start from": ("--config.init_from=/nowhere", "/nowhere: no such checkpoint or run directory"),
}


MISFITS = {
    "--config.optim.accumulate=3": "config.optim.accumulate = 3",
    "--config.optim.frozen=[('.*',True)]": "freezes every parameter",
    "--config.optim.frozen=[('embed/.*',False)]": "config.optim.frozen: no pattern",
    "--config.optim.frozen=[('embd/embedding',True),('.*',False)]": "'embd/embedding' matches no parameter; did you",
    "--config.optim.lr_multipliers=[('lm_head',0.5),('.*',1.0)]": "config.optim.lr_multipliers: 'lm_head' matches no",
    "--config.optim.decay=[('embed/.*',False)]": "config.optim.decay: no pattern of",
    "--config.partition_rules=[('.*',['fdsp'])]": "give a list of (a regular expression, a list of items, each one of",
}


@pytest.mark.parametrize("override", MISFITS)
def test_what_does_not_fit_the_network_is_said_before_data_are_read(override, arguments, tmp_path, capsys):
    nowhere = "--config.data.mixture.text.source=/nowhere.jsonl"
    assert MISFITS[override] in mistake([*arguments("pretrain", tmp_path), nowhere, override], capsys)


@pytest.mark.parametrize("name", PRETRAIN_MISTAKES)
def test_a_mistake_in_pretraining_is_one_line_and_exit_code_2(name, arguments, tmp_path, capsys):
    override, message = PRETRAIN_MISTAKES[name]
    overrides = [override]
    if name == "no such run to start from":
        overrides.append("--config.model.preset=None")
    assert message in mistake([*arguments("pretrain", tmp_path), *overrides], capsys)


def test_a_mistake_in_tuning_is_one_line_and_exit_code_2(arguments, pretrained, tmp_path, capsys):
    for override, message in {
        "--config.template=None": "config.template: name one (chatml, llama2, ...)",
        "--config.template=chatlm": "chatlm",
        "--config.model.n_kv_heads=1": "config.model: n_kv_heads = 1: layers/attention/k is (2, 64, 2, 16) in",
        "--config.model.preset=nano-test": "set one of config.model.preset and config.init_from",
    }.items():
        assert message in mistake([*arguments("sft", tmp_path, init_from=pretrained), override], capsys)


def test_a_config_file_that_is_not_there_is_one_line_with_the_nearest_name(arguments, tmp_path, capsys):
    argv = [word.replace("tiny.py", "tinny.py") for word in arguments("pretrain", tmp_path)]
    said = mistake(argv, capsys)
    assert "tinny.py: no such config file; did you mean" in said and "tiny.py?" in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c.data.sequence_len = 32", "nothing reads config.data.sequence_len; did you mean config.data.seq_len?"),
        ("c.checkpoint.every_step = 3", "config.checkpoint.every_step; did you mean config.checkpoint.every_steps?"),
        (
            "c.optim.weight_decy = 0.1",
            "nothing reads config.optim.weight_decy; did you mean config.optim.weight_decay?",
        ),
        (
            "c.evals.primmer = {}",
            "or a function package.module:name or file.py:name; did you mean primer?",
        ),
        ("c.evals.walks = {'per_grup': 2}", "config.evals.walks.per_grup; did you mean config.evals.walks.per_group?"),
    ],
)
def test_a_leaf_that_nothing_reads_stops_the_run_before_its_first_step(line, message, arguments, tmp_path, capsys):
    original = config_of(arguments)
    file, _, values = original.partition(":")
    changed = tmp_path / "changed.py"
    changed.write_text(Path(file).read_text("utf-8").replace("    return c", f"    {line}\n    return c"), "utf-8")
    argv = ["train", f"--config={changed}:{values}", f"--workdir={tmp_path / 'run'}"]
    assert message in mistake(argv, capsys)
    assert not (tmp_path / "run").exists()


def test_a_bad_record_is_named_by_file_and_line(arguments, corpus, tmp_path, capsys):
    good = (corpus / "text.jsonl").read_text("utf-8").splitlines()[:4]
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join([*good, json.dumps({"txt": "a typo"})]), "utf-8")
    argv = [*arguments("pretrain", tmp_path / "run"), f"--config.data.mixture.text.source={bad}"]
    assert f"{bad}:5" in mistake(argv, capsys)
