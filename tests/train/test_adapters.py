"""Runs that train adapters: what they keep, what they share, where they go on."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import camelid
from camelid import checkpoints
from camelid.checkpoints import reading
from camelid.checkpoints.convert import to_gguf, to_peft
from camelid.checkpoints.language_model import LanguageModel
from camelid.errors import UserError
from camelid.launch.cli import main
from camelid.launch.recipes import read_config
from camelid.model import llama, storage
from camelid.model.sharding import map_rules
from camelid.model.weights import is_weight, join, without
from camelid.settings.config_files import load_config
from camelid.tests import tiny_lora
from camelid.tests.train.test_resume import assert_same_bits, state_of
from camelid.tests.train.test_state import by_path
from camelid.train.network import InitialParams, together
from camelid.train.run import Run, mesh_of

pytestmark = pytest.mark.usefixtures("one_device")
SHORT = ["--config.total_steps=12", "--config.checkpoint.every_steps=6"]
UNMEASURED = "--config.data.heldout=0.0"
SPLIT = {"lora": ["--config.mesh.fsdp=2"], "nf4": ["--config.mesh.fsdp=2", "--config.mesh.tensor=2"]}
TOKENS = np.random.default_rng(0).integers(0, 352, (2, 24))


def test_rules_are_for_each_of_several_networks_or_for_the_one_whose_name_they_begin_with(arguments, tmp_path):
    settings = load_config(arguments("pretrain", tmp_path)[1].removeprefix("--config="))
    settings.optim.frozen = [("embed/.*", True), ("critic/norm/.*", True), (".*", False)]
    one = {"embed": {"embedding": jnp.zeros(3)}, "norm": {"scale": jnp.zeros(3)}}
    both = {"policy": one, "critic": one}

    def rules_of(settings):
        initial = InitialParams(lambda key: both, names=tuple(both))
        return Run(read_config(settings), tmp_path, mesh=None)._frozen_rules(both, initial)

    rules = rules_of(settings)
    frozen = by_path(jax.tree.map(jnp.float32, map_rules(rules, both)))
    assert {path for path, value in frozen.items() if value} == {
        "policy/embed/embedding", "critic/embed/embedding", "critic/norm/scale"
    }  # fmt: skip
    for setting, pattern, value in (
        ("frozen", "polcy/embed/.*", True),
        ("lr_multipliers", "policy/embed/.*", 0.5),
        ("decay", "embed", True),
    ):
        settings.optim[setting] = [(pattern, value), (".*", value)]
        with pytest.raises(UserError, match=rf"config\.optim\.{setting}: '{pattern[:5]}.*' matches no parameter"):
            rules_of(settings)
        settings.optim[setting] = None


def test_several_networks_without_a_checkpoint_start_at_random_and_differ():
    draw = InitialParams(lambda key: jax.random.normal(key, (3,)))
    initial = together({"policy": draw, "critic": draw})
    assert initial.load is None
    drawn = initial.init(jax.random.key(0))
    assert jnp.all(drawn["policy"] != drawn["critic"])


def command(arguments, workdir, start, lora, *further) -> list[str]:
    line = arguments("sft", workdir, init_from=start)
    line[1] += f",lora={lora}"
    return [*line, *SHORT, *([] if lora == "lora" else [UNMEASURED]), *further]


@pytest.fixture(scope="module")
def runs(arguments, pretrained, tmp_path_factory):
    """runs(lora): the directory of a finished run with those adapters."""
    made = {}

    def run(lora):
        if lora not in made:
            workdir = tmp_path_factory.mktemp(lora)
            assert main(command(arguments, workdir, pretrained, lora, *SPLIT.get(lora, []))) == 0
            made[lora] = workdir
        return made[lora]

    return run


@pytest.mark.parametrize("lora", tiny_lora.OPTIONS)
def test_adapters_learn_and_checkpoints_hold_them_alone(lora, runs, metrics, pretrained):
    found = metrics(runs(lora))
    losses = [found[step]["train/loss"] for step in sorted(found) if "train/loss" in found[step]]
    assert np.mean(losses[-4:]) < losses[0] - 1.0
    state = state_of(runs(lora))
    paths = {jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in jax.tree_util.tree_leaves_with_path(state)}
    held = {path.removeprefix("params/") for path in paths if path.startswith("params/")}
    parts = (
        {"a", "b", "gain"} | ({"magnitude"} if lora == "dora" else set()) | ({"a0", "b0"} if lora == "pissa" else set())
    )
    adapters = {f"layers/attention/{m}/{p}" for m in "qkvo" for p in parts} | {
        f"layers/mlp/{m}/{p}" for m in ("gate", "up", "down") for p in parts
    }
    norms = {"norm/scale", "layers/attention_norm/scale", "layers/mlp_norm/scale"} if lora == "int8" else set()
    assert held == adapters | norms
    assert {path.removeprefix("ema/") for path in paths if path.startswith("ema/")} == held
    assert not any(path.endswith(("gain", "a0", "b0")) for path in paths if path.startswith("opt_state/"))


@pytest.mark.parametrize("lora", ["lora", "pissa", "nf4"])
def test_what_a_run_gives_is_its_base_with_its_adapters(lora, runs, pretrained):
    base = camelid.load(pretrained)
    own = state_of(runs(lora))["ema"]
    stays = base.params
    if lora == "nf4":
        stays = jax.jit(lambda params: storage.quantize(params, storage.MATRICES["nf4"]))(stays)
    expected = jax.jit(base.model.apply)(join(own, stays), jnp.asarray(TOKENS))
    loaded = camelid.load(runs(lora))
    assert not any(is_weight(x) for x in jax.tree.leaves(loaded.params, is_leaf=is_weight))
    np.testing.assert_allclose(loaded.logits(TOKENS), expected, rtol=1e-3, atol=1e-3)
    kept = camelid.load(runs(lora), quantize="nf4" if lora == "nf4" else None)
    np.testing.assert_allclose(kept.logits(TOKENS), expected, rtol=1e-3, atol=1e-3)
    assert np.abs(loaded.logits(TOKENS) - base.logits(TOKENS)).max() > 1.0


def test_many_adapters_stand_on_one_base(runs, pretrained, tmp_path):
    base = camelid.load(pretrained)
    plain = base.logits(TOKENS)
    to_peft(runs("lora"), tmp_path / "peft", base_name="some/hub-id")
    for path in (runs("lora"), tmp_path / "peft", runs("dora"), runs("int8")):  # the last with norms of its own
        own = path.parent == tmp_path
        adapted, merged = base.with_adapters(path), camelid.load(path, base=pretrained if own else None)
        if path != runs("int8"):  # which were trained on another base than this one
            np.testing.assert_allclose(adapted.logits(TOKENS), merged.logits(TOKENS), rtol=1e-3, atol=1e-3)
        q = adapted.params["layers"]["attention"]["q"]
        assert q["base"] is base.params["layers"]["attention"]["q"]
        assert adapted.template.name == merged.template.name
    trained = adapted.params["norm"]["scale"]
    np.testing.assert_array_equal(trained, merged.params["norm"]["scale"])
    np.testing.assert_array_equal(base.logits(TOKENS), plain)
    halves = camelid.load(pretrained, dtype="bfloat16")
    q = halves.with_adapters(runs("lora")).params["layers"]["attention"]["q"]
    assert q["base"].dtype == jnp.bfloat16 and q["a"].dtype == jnp.float32
    coded = camelid.load(pretrained, quantize="int8").with_adapters(runs("int8"))
    np.testing.assert_allclose(coded.logits(TOKENS), merged.logits(TOKENS), rtol=1e-3, atol=1e-3)


def test_options_of_load_for_other_kinds_of_checkpoints_are_refused(runs, pretrained, tmp_path):
    with pytest.raises(UserError, match=r"holds a whole network, and base=.* is for adapters: leave base out"):
        camelid.load(pretrained, base="/nowhere")
    for path in (pretrained, runs("lora")):
        with pytest.raises(UserError, match='quantize="stored" keeps the codes of a GGUF file, and this is none'):
            camelid.load(path, quantize="stored")
    to_gguf(pretrained, tmp_path / "a.gguf", encoding="Q8_0")
    kept = camelid.load(tmp_path / "a.gguf", quantize="stored").params["layers"]["attention"]["q"]
    assert kept["int8"].dtype == jnp.int8


def test_adapters_are_put_on_nothing_that_they_do_not_fit(runs, pretrained):
    base = camelid.load(pretrained)
    with pytest.raises(UserError, match="holds a whole network, not adapters"):
        base.with_adapters(pretrained)
    other = llama.build(base.config.replace(ffn_dim=base.config.ffn_dim * 2))
    wider = LanguageModel(other, other.init(jax.random.key(0)), base.tokenizer, base.template, base.mesh)
    with pytest.raises(UserError, match="whose matrices have other shapes"):
        wider.with_adapters(runs("lora"))


def test_a_run_that_lost_its_last_checkpoint_ends_with_the_same_bits(runs, arguments, pretrained, tmp_path):
    """With what is not stored: the base that pissa took its adapters from, the numbers that dropout draws."""
    shutil.copytree(runs("pissa"), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
    assert main(command(arguments, tmp_path / "run", pretrained, "pissa")) == 0
    assert_same_bits(state_of(tmp_path / "run"), state_of(runs("pissa")))


def test_a_run_goes_on_only_on_the_base_that_it_began_with(runs, arguments, tuned, tmp_path, capsys):
    shutil.copytree(runs("lora"), tmp_path / "run")
    assert main(command(arguments, tmp_path / "run", tuned, "lora")) == 2
    assert "there is another model at config.init_from" in capsys.readouterr().err


def test_the_next_run_goes_on_with_the_same_adapters_or_from_the_merged_model(runs, arguments, pretrained, tmp_path):
    once = ("--config.total_steps=1", "--config.optim.lr=0.0", UNMEASURED)
    assert main(command(arguments, tmp_path / "on", runs("lora"), "lora", *once)) == 0
    assert str(checkpoints.open(tmp_path / "on").base.path) == str(pretrained)
    assert main(command(arguments, tmp_path / "whole", runs("lora"), "", *once)) == 0
    whole = state_of(tmp_path / "whole")["params"]
    assert whole["layers"]["attention"]["q"].shape == (2, 64, 4, 16)
    merged = camelid.load(runs("lora")).logits(TOKENS)
    for run in ("whole", "on"):
        np.testing.assert_allclose(camelid.load(tmp_path / run).logits(TOKENS), merged, rtol=1e-3, atol=1e-3)


def test_other_adapters_than_those_of_the_start_are_refused(runs, arguments, tmp_path, capsys):
    assert main(command(arguments, tmp_path / "run", runs("lora"), "dora")) == 2
    assert "give the same, or convert it first" in capsys.readouterr().err


def test_networks_of_a_run_share_their_base(runs, arguments, tmp_path):
    settings = read_config(load_config(command(arguments, tmp_path, runs("lora"), "lora")[1].removeprefix("--config=")))
    run = Run(settings, tmp_path, mesh_of(settings.mesh))
    with jax.set_mesh(run.mesh):
        model = run.model
        first, second = (run.initial(model.init, run.start).load_base() for _ in range(2))
        reference = run.reference()
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert one is other
    assert reference["layers"]["mlp"]["up"]["base"] is first["layers"]["mlp"]["up"]
    merged = camelid.load(runs("lora")).logits(TOKENS)
    np.testing.assert_allclose(jax.jit(model.apply)(reference, jnp.asarray(TOKENS)), merged, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ("lora.dropout=0.1", "config.lora.dropout = 0.1 does nothing where config.lora.targets is None"),
        ("lora.quantize=int8", "set config.lora.targets too"),
        ("lora.quantize=int3", "config.lora.quantize = 'int3': give one of int8, int4, nf4, stored"),
    ],
)
def test_adapters_that_cannot_be_are_one_line_and_exit_code_2(
    changes, message, arguments, pretrained, tmp_path, capsys
):
    assert main(command(arguments, tmp_path, pretrained, "", f"--config.{changes}")) == 2
    assert message in capsys.readouterr().err


def test_adapters_need_a_model_to_be_put_on(arguments, tmp_path, capsys):
    line = arguments("pretrain", tmp_path)
    line[1] += ",lora=lora"
    assert main(line) == 2
    assert "adapters need config.init_from" in capsys.readouterr().err


def test_peft_folders_are_written_and_read_back(runs, pretrained, tmp_path, capsys):
    line = ["convert", str(runs("pissa")), str(tmp_path / "peft"), "--to=peft"]
    assert main(line) == 2, "PEFT cannot load a run"
    message = f"PEFT cannot load its base {pretrained}: give --base_name, a hub's id or a folder"
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert main([*line, f"--base_name={pretrained}"]) == 0
    expected = camelid.load(runs("pissa")).logits(TOKENS)
    found = camelid.load(tmp_path / "peft")
    np.testing.assert_allclose(found.logits(TOKENS), expected, rtol=1e-3, atol=1e-3)
    assert found.chat("Which colour has the red fox?") == camelid.load(runs("pissa")).chat(
        "Which colour has the red fox?"
    )
    assert [file["name"] for file in checkpoints.open(tmp_path / "peft").description["files"]] == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_adapters_that_name_a_hubs_id_are_put_on_a_base_by_hand(runs, pretrained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "peft"
    assert main(["convert", str(runs("lora")), str(folder), "--to=peft", "--base_name=meta-llama/Llama-2-7b"]) == 0
    assert (
        json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "meta-llama/Llama-2-7b"
    )
    for line in (["convert", str(folder), str(tmp_path / "run")], ["generate", str(folder), "a"]):
        assert main(line) == 2
        said = capsys.readouterr().err
        assert "names the base 'meta-llama/Llama-2-7b'" in said and "Or give --base=PATH" in said
        assert not (tmp_path / "run").exists()
    expected = camelid.load(runs("lora"))
    for output in ("run", "a.gguf", "their"):
        more = ["--to=huggingface"] if output == "their" else []
        assert main(["convert", str(folder), str(tmp_path / output), f"--base={pretrained}", *more]) == 0
        found = camelid.load(tmp_path / output)
        np.testing.assert_allclose(found.logits(TOKENS), expected.logits(TOKENS), rtol=1e-3, atol=1e-3)
    described = reading.read_manifest(tmp_path / "run")["origin"]
    assert described["format"] == "peft" and described["base"]["path"] == str(pretrained)
    capsys.readouterr()
    assert main(["generate", str(folder), "the red fox", f"--base={pretrained}", "--temperature=0"]) == 0
    assert capsys.readouterr().out == expected.generate("the red fox", temperature=0, max_tokens=128)[0] + "\n"
    assert main(["convert", str(folder), str(tmp_path / "no"), "--base=nowhere"]) == 2
    assert "base nowhere: no such path" in capsys.readouterr().err
    assert main(["convert", str(pretrained), str(tmp_path / "no"), f"--base={pretrained}"]) == 2
    assert "is a whole model, and --base is for adapters only" in capsys.readouterr().err


@pytest.mark.parametrize("lora", ["dora", "int8", "nf4"])
def test_a_converted_run_is_merged(lora, runs, tmp_path):
    assert main(["convert", str(runs(lora)), str(tmp_path / "whole")]) == 0
    stored = reading.read_manifest(tmp_path / "whole")
    assert "adapter" not in stored
    found, expected = (camelid.load(path).params for path in (tmp_path / "whole", runs(lora)))
    assert jax.tree.structure(found) == jax.tree.structure(expected) and without(found, found) == {}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
