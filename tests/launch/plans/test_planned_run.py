"""A recipe runs over shapes: what it compiles is the program of training, and nothing is read."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import pytest

from camelid.errors import UserError
from camelid.evals.registry import Evaluations
from camelid.launch import recipes
from camelid.launch.cli import main
from camelid.launch.plans import check, memory, search
from camelid.launch.plans.plan import plan, plan_phases
from camelid.launch.plans.planned_run import PlannedRun, Program
from camelid.launch.plans.report import lines, to_json
from camelid.launch.plans.search import candidates, with_settings
from camelid.launch.plans.stand_ins import tokenizer_of
from camelid.launch.plans.topologies import local, topology
from camelid.launch.recipes import read_config, recipe_of
from camelid.model.config import LlamaConfig
from camelid.settings.config_files import load_phases
from camelid.train.chips import CHIPS
from camelid.train.network import Network
from camelid.train.run import mesh_of

TINY = LlamaConfig.preset("nano-test", max_len=2048)
SMALL = ["--config.model.attention=xla", "--config.model.unroll=1"]
RECIPES = {
    "pretrain/primer": ["--config.model.preset=nano-test"],
    "sft/primer": [],
    "sft/lora:init_from=gone,source=none.json": [],
    "sft/lora:init_from=gone,source=none.json,quantize=nf4": [],
    "reward/primer": [],
    "dpo/primer": [],
    "dpo/primer kto": ["--config.dpo.kind=kto"],
    "grpo/primer": [],
    "raft/primer": [],
    "ppo/primer": [],
    "ppo/colossalchat:text=none.jsonl": [],
}


def traced(name: str, overrides=()):
    """What a step of a shipped config consists of, with checkpoints that are not there."""
    (config,) = load_phases(name.split()[0], [*SMALL, *overrides]).values()
    settings = read_config(config)
    mesh = mesh_of(settings.mesh, jax.devices())
    run = PlannedRun(settings, mesh, TINY, chain=False)
    return run, run.plan(recipe_of(config).train)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_planned_without_data_tokenizer_or_weights(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, step = traced(name, RECIPES[name])
    assert [program.name for program in step.programs][-1] == "step"
    assert step.flops_per_token > 0 and step.tokens > 0
    leaves = jax.tree.leaves(step.programs[-1].arguments["state"])
    assert leaves and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert list(tmp_path.iterdir()) == []


class Lowered(Exception):
    """Ends a run at its first step, with the text of its program."""


def test_a_planned_step_is_the_step_of_training(tmp_path, monkeypatch):
    tokenizer_of(300).save(tmp_path / "tokenizer")
    overrides = [f"--config.tokenizer={tmp_path}/tokenizer", "--config.model.preset=nano-test", "--config.evals={}"]
    overrides += ["--config.total_steps=1", "--config.data.heldout=0"]

    def ends(network, update, *frozen):
        def step(state, batch):
            raise Lowered(network._jit(update).lower(network.base, frozen, state, batch).as_text())

        return step

    with monkeypatch.context() as patched, pytest.raises(Lowered) as trained:
        patched.setattr(Network, "compile", ends)
        (config,) = load_phases("pretrain/primer", [*SMALL, *overrides]).values()
        recipes.train(config, tmp_path / "run", Evaluations())
    run, step = traced("pretrain/primer", overrides)
    with run.on_mesh():
        assert step.programs[0].traced.lower().as_text() == str(trained.value)


def tiny_plan(*overrides, compiles=True):
    (config,) = load_phases("pretrain/primer", ["--config.model.preset=nano-test", *SMALL, *overrides]).values()
    return plan(config, topology("cpu:8"), compiles=compiles)


def test_a_plan_counts_what_a_device_holds_and_every_collective_along_its_axis():
    found = tiny_plan("--config.mesh.data=2", "--config.mesh.fsdp=4", "--config.data.batch_size=16")
    n = found.architecture.n_params
    assert found.mesh == {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}
    norms = 4 * found.architecture.dim * (2 * found.architecture.n_layers + 1)  # whole on every device
    assert found.memory.stays["parameters"] == pytest.approx((4 * n - norms) / 4 + norms)
    assert found.memory.stays["optimiser state"] == pytest.approx(2 * found.memory.stays["parameters"], abs=64)
    assert found.memory.peak > sum(found.memory.stays.values()) and found.fits is None
    axes = {counted.collective.axes for counted in found.programs[0].collectives}
    assert ("fsdp",) in axes and axes <= {("data",), ("fsdp",), ("data", "fsdp")}
    assert found.tokens == 16 * 128 and found.model_flops < found.hardware_flops
    assert "\n".join(lines(found)) and json.dumps(to_json(found))


def test_counting_alone_compiles_nothing_and_gives_the_same_work():
    counted = tiny_plan(compiles=False)
    assert counted.memory.programs == () and counted.programs[0].collectives == ()
    (config,) = load_phases("pretrain/primer", ["--config.model.preset=nano-test", *SMALL]).values()
    remat = plan(with_settings(config, {"model.remat": "full"}), topology("cpu:8"), compiles=False)
    assert remat.model_flops == counted.model_flops and remat.hardware_flops > 1.2 * counted.hardware_flops


def of_capacity(plan, capacity):
    chip = dataclasses.replace(CHIPS["h100"], hbm_usable=int(capacity))
    return dataclasses.replace(plan, topology=plan.topology._replace(chip=chip))


def test_counting_alone_says_that_a_step_does_not_fit_but_never_that_it_does():
    counted = tiny_plan(compiles=False)
    stays = sum(counted.memory.stays.values())
    assert of_capacity(counted, 2 * stays).fits is None
    small = of_capacity(counted, stays / 2)
    assert small.fits is False and "  does not fit" in lines(small)
    assert "in all" in "\n".join(lines(small)) and "compiled" not in "\n".join(lines(small)).replace("(modelled)", "")


def test_counting_alone_says_that_the_backward_pass_hardly_fits():
    counted = tiny_plan(compiles=False)
    beside = "what is kept for the backward pass does not fit beside that, as modelled"
    room = sum(counted.memory.stays.values()) + counted.saved_activations
    assert beside in "\n".join(lines(of_capacity(counted, room - 1)))
    assert beside not in "\n".join(lines(of_capacity(counted, room)))
    assert beside not in "\n".join(lines(of_capacity(counted, sum(counted.memory.stays.values()) / 2)))  # nor the state


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded by 4.75G.", 22.5),
        ("Ran out of memory on HBM, the total memory required for HLO temporaries (70.35G) exceeds", 73.35),
        ("Out of memory while trying to allocate 2.5GiB.", 2.5),
        ("It does not say", None),
    ],
)
def test_the_peak_of_a_step_that_the_compiler_refuses_is_what_it_names_with_what_stays(message, needed):
    found = memory._needed(message, 3 * 2**30, own=2**30)
    assert found == (None if needed is None else pytest.approx(needed * 2**30))


class Compiled:
    """A compiled program that takes as many bytes as its name has letters."""

    output_shardings = None

    def __init__(self, name):
        self.name = name

    def memory_analysis(self):
        size = {f"{each}_size_in_bytes": 0 for each in ("output", "alias", "host_temp")}
        return SimpleNamespace(**size, temp_size_in_bytes=len(self.name))

    def as_text(self):
        return "HloModule none\n\nENTRY %main (x: f32[]) -> f32[] {\n  ROOT %x = f32[] parameter(0)\n}\n"


@pytest.mark.parametrize("refused", ["rollout", "step", None])
def test_a_step_of_two_programs_does_not_fit_where_one_of_them_is_refused(refused, monkeypatch):
    def compiled(program):
        if program.name == refused:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: it does not say how much")
        return Compiled(program.name)

    monkeypatch.setattr(Program, "compiled", property(compiled))
    (config,) = load_phases("ppo/primer", SMALL).values()
    found = of_capacity(plan(config, topology("cpu:8"), architecture=TINY), 2**40)
    assert found.fits is (refused is None)
    text = "\n".join(lines(found))
    assert ("not told by the compiler" in text) == ("does not fit" in text) == (refused is not None)
    assert (to_json(found)["compiled"]["peak"] is None) == (refused is not None)
    if refused is None:
        rollout, step = found.memory.programs
        assert rollout.inputs == 0 < step.inputs  # the scored answers
        assert found.memory.peak == sum(found.memory.stays.values()) + len("step") + step.inputs


def test_a_reward_model_has_no_head_over_the_vocabulary_to_count():
    (config,) = load_phases("reward/primer", SMALL).values()
    found = plan(config, topology("cpu:8"), architecture=TINY, compiles=False)
    assert 0.7 * found.hardware_flops < found.model_flops < found.hardware_flops


def test_a_step_with_a_rollout_has_no_time_and_no_price():
    (config,) = load_phases("ppo/primer", SMALL).values()
    found = of_capacity(plan(config, topology("cpu:8"), architecture=TINY, compiles=False), 2**40)
    assert not found.is_counted and found.hardware_flops > 0
    assert (found.model_flops, found.seconds, found.mfu(1.0)) == (None, None, None)
    text = "\n".join(lines(found, price=2.0))
    assert "time of a step: unknown" in text and "price of the run: unknown" in text and "model FLOPs" not in text
    assert to_json(found)["counted"]["not_counted"]


def test_a_machine_whose_peak_is_not_known_has_no_roofline():
    found = tiny_plan()
    assert found.roofline_seconds is None and "time of a step" not in "\n".join(lines(found))


def test_a_phase_starts_from_the_network_of_the_phase_before(tmp_path):
    short, long = (load_phases("pretrain/primer", ["--config.model.preset=nano-test", *SMALL]) for _ in range(2))
    phases = {"first": short[""], "second": long[""]}
    first, second = plan_phases(phases, topology("cpu:8"), compiles=False)
    assert (first.phase, second.phase) == ("first", "second") and first.architecture == second.architecture


def test_a_search_estimates_less_memory_for_more_parts_and_keeps_what_is_fixed():
    (config,) = load_phases(
        "pretrain/primer", ["--config.model.preset=nano-test", "--config.mesh.data=1", *SMALL]
    ).values()
    own = dataclasses.replace(CHIPS["h100"], platform="cpu")
    devices = topology("cpu:8")._replace(chip=own)
    options = dict(architecture=None, policies=("full",))
    found = candidates(config, devices, fixed=("mesh.tensor", "mesh.data"), **options)
    assert found == sorted(found, key=lambda each: each.seconds)
    assert {each.settings["mesh.tensor"] for each in found} == {1} == {each.settings["mesh.data"] for each in found}
    assert {each.settings["model.remat"] for each in found} == {config.model.remat, "full"}
    alike = [each for each in found if each.settings["model.remat"] == "full"]
    memory = {each.settings["optim.accumulate"]: each.memory for each in alike}
    assert memory[1] > memory[2]
    small = dataclasses.replace(own, hbm_bytes=int(memory[2]) + 1, hbm_usable=None)
    fitting = candidates(config, devices._replace(chip=small), fixed=("mesh.tensor", "mesh.data"), **options)
    assert fitting and all(each.memory <= memory[2] + 1 for each in fitting)


@pytest.mark.parametrize(("own", "other"), [("auto", "xla"), ("xla", "auto")])
def test_a_search_compiles_the_best_settings_with_another_attention_kernel(own, other):
    words = ["--config.model.preset=nano-test", *SMALL, f"--config.model.attention={own}"]
    (config,) = load_phases("pretrain/primer", words).values()
    devices = topology("cpu:8")
    devices = devices._replace(chip=dataclasses.replace(CHIPS["h100"], platform="cpu"))
    fixed = [name for name in search.LEAVES if name != search.KERNEL]
    kernels = [
        [each.candidate.settings.get(search.KERNEL) for each in search.search(config, devices, fixed=kept, most=1)]
        for kept in (fixed, search.LEAVES)
    ]
    assert kernels == [[None, other], [None]]


def test_settings_that_do_not_fit_after_all_do_not_count(monkeypatch):
    (config,) = load_phases("pretrain/primer", ["--config.model.preset=nano-test", *SMALL]).values()
    devices = topology("cpu:8")
    devices = devices._replace(chip=dataclasses.replace(CHIPS["h100"], platform="cpu"))
    fitting = iter([True, False, False, True, True])  # of the config's own settings first
    own = tiny_plan(compiles=False)

    def planned(config, candidates, **options):
        for each in candidates:
            size = sum(own.memory.stays.values()) * (2 if next(fitting) else 0.5)
            yield search.Found(each, of_capacity(own, size))

    monkeypatch.setattr(search, "_planned", planned)
    found = list(search.search(config, devices, fixed=[search.KERNEL], most=2))
    assert [each.plan.fits for each in found] == [None, False, False, None, None]
    assert found[0].candidate.settings == {}


def test_a_search_passes_over_settings_that_the_recipe_refuses():
    (config,) = load_phases("pretrain/primer", ["--config.model.preset=nano-test", *SMALL]).values()
    tried = [search.Candidate({"optim.accumulate": parts}, 0.0, 0.0) for parts in (3, 2)]  # 32 rows on 8 devices
    found = list(search._planned(config, tried, topology=topology("cpu:8"), compiles=False))
    assert [each.candidate for each in found] == tried[1:]


def test_the_command_says_what_to_mend(capsys, tmp_path):
    assert main(["plan", "--config=sft/alpaca", f"--config.init_from={tmp_path}/gone", "--topology=cpu:8"]) == 2
    assert "to plan without it, give `camelid plan` its --architecture, such as llama-7b" in capsys.readouterr().err
    assert main(["plan", "--config=sft/alpaca", "--topology=cpu:8", "--architecture=llama-8b"]) == 2
    assert "--architecture: " in capsys.readouterr().err
    assert main(["plan", "--config=pretrain/primer", "--topology=cpu:8", "--search"]) == 2
    assert "--search: the datasheet of" in capsys.readouterr().err
    for price in ("-1", "nan", "inf"):
        assert main(["plan", "--config=pretrain/primer", "--topology=cpu:8", f"--price={price}"]) == 2
        assert f"--price {price}: give a finite number above 0" in capsys.readouterr().err
    assert main(["plan", "--config=pretrain/llama:size=8b", "--topology=cpu:8"]) == 2
    assert "size=8b: give one of 7b, 13b, 33b, 65b" in capsys.readouterr().err
    assert main(["plan", "--config=pretrain/primer", "--topology=cpu:8", "--price=1", "--count_only"]) == 2
    assert "--count_only tells no time" in capsys.readouterr().err


def test_a_run_that_does_not_fit_is_refused_with_the_nearest_settings_that_do(monkeypatch):
    (config,) = load_phases("pretrain/primer", ["--config.model.preset=nano-test", *SMALL]).values()
    needed = plan(config.copy_and_resolve_references(), local()).memory.peak
    there = local()
    chip = dataclasses.replace(there.chip, hbm_bytes=needed - 1, hbm_usable=needed - 1)
    monkeypatch.setattr(check, "local", lambda: there._replace(chip=chip))
    with pytest.raises(UserError, match=r"a step needs .* GiB on a device, which has .*: with --config\.\S+ it needs"):
        check.check_fits({"": config})
