"""The recipes from end to end through the command line: what they reach, what they store, and users' mistakes."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

import camelid
from camelid import checkpoints
from camelid.checkpoints import reading
from camelid.data.mixture import EvalPass
from camelid.data.prompts import PromptEncoder, heldout_prompts
from camelid.data.sources import Source
from camelid.errors import UserError
from camelid.launch.cli import main
from camelid.model.sampling import Sampling
from camelid.model.sharding import make_mesh
from camelid.rlhf import rewards
from camelid.rlhf.rollout import roll_out
from camelid.tests.rlhf.numpy_llama import hidden, real_tokens
from camelid.tests.train.test_resume import assert_same_bits, state_of
from camelid.train.network import FrozenWeights
from camelid.train.randomness import purpose_key

pytestmark = pytest.mark.usefixtures("one_device")


def column(metrics, workdir, name) -> list[float]:
    """A metric over the steps that have it."""
    return [line[name] for line in metrics(workdir).values() if name in line]


# Reward model


def test_a_reward_model_learns_which_answers_are_preferred(reward_run, metrics):
    losses, heldout = (column(metrics, reward_run, name) for name in ("train/loss", "eval/heldout/pairs/accuracy"))
    assert losses[0] == pytest.approx(math.log(2), abs=0.1) and losses[-1] < 0.05
    assert heldout[-1] > 0.95
    manifest = reading.read_manifest(reward_run)
    assert (manifest["kind"], manifest["heads"], manifest["objective"]) == ("scalar", 1, "reward")
    assert reading.find(reward_run).name == "12"


def scores_of_own_answers(run, llama) -> np.ndarray:
    """Scores, by the network in numpy, of the answers that the run draws to its held-out prompts at its end."""
    source = Source(reading.read_manifest(run)["config"]["data"]["mixture"]["pairs"]["source"], heldout=0.1)
    prompts = heldout_prompts([source], 32, PromptEncoder(llama.tokenizer, llama.template, max_tokens=48))
    batches = EvalPass(prompts, batch_size=16)
    sampling = Sampling(max_tokens=16, stop_ids=llama.template.stop_ids(llama.tokenizer))
    mesh = make_mesh({}, jax.devices()[:1])
    model, params = rewards.load_model(checkpoints.open(run), llama.tokenizer, FrozenWeights(mesh), "float32")
    head = jax.tree.map(lambda x: np.asarray(x, np.float64), params["score"])
    roll = jax.jit(lambda batch: roll_out(llama.model, llama.params, batch, purpose_key(0, "normalise"), sampling))
    scores = []
    for number in range(len(batches)):
        for prompt, answer in real_tokens(roll(batches[number]))[: batches.real(number)]:
            states_TD = hidden(model.config, params, np.concatenate([prompt, answer]))
            scores.append((states_TD[-1] @ head["kernel"] + head["bias"])[0])
    return np.array(scores)


def test_a_reward_model_s_scores_of_its_reference_s_own_answers_have_mean_0_and_deviation_1(reward_run, tuned):
    llama = camelid.load(tuned)
    scores = scores_of_own_answers(reward_run, llama)
    assert len(scores) == 32
    assert scores.mean() == pytest.approx(0.0, abs=1e-3)
    assert scores.std() == pytest.approx(1.0, abs=1e-3)
    assert len(np.unique(scores.round(3))) > 5


def test_a_finished_reward_run_that_is_made_longer_goes_on_from_the_head_before_its_scores_were_rescaled(
    reward_run, rl_arguments, tuned, tmp_path, capsys
):
    """To the same bits as if it had been long from the start; of a constant learning rate."""
    constant = ["--config.schedule.name=constant", "--config.schedule.warmup_percent=0.0", "--config.ema_decay=0.5"]
    for run, lengths in (("straight", [4]), ("longer", [2, 4])):
        for steps in lengths:
            argv = rl_arguments("reward", tmp_path / run, init_from=tuned)
            assert main([*argv, *constant, f"--config.total_steps={steps}", "--config.checkpoint.keep_last=9"]) == 0
    assert "resuming from step 2 with changes: 2 steps become 4" in capsys.readouterr().err
    straight, longer = (state_of(tmp_path / run) for run in ("straight", "longer"))
    assert_same_bits(longer, straight)
    finished = state_of(tmp_path / "longer" / "checkpoints" / "2")
    for kind in ("params", "ema"):
        gain = finished[kind]["score"]["kernel"] / finished["unfinished"][kind]["score"]["kernel"]
        assert gain.std() < 1e-4 and abs(gain.mean() - 1.0) > 1e-3


def test_a_reward_model_is_no_language_model_nor_the_other_way_round(reward_run, tuned):
    with pytest.raises(UserError, match="is a reward or cost model"):
        camelid.load(reward_run)
    with pytest.raises(UserError, match="comes from the recipe `reward`"):
        frozen = FrozenWeights(make_mesh({}, jax.devices()[:1]))
        rewards.load_model(checkpoints.open(tuned), camelid.load(tuned).tokenizer, frozen, "float32")


# Without a critic, without rewards

GRPO = {
    "grpo": [],
    "dapo": [
        "--config.grpo.aggregate=token",
        "--config.grpo.clip_high=0.28",
        "--config.grpo.drop_equal_groups=True",
        "--config.grpo.overlong=4",
        "--config.grpo.kl_coef=0.0",
    ],
    "rloo": [
        "--config.grpo.advantage=rloo",
        "--config.grpo.kl_in=reward",
        "--config.grpo.kl_estimator=k1",
        "--config.grpo.minibatches=2",
        "--config.optim.accumulate=2",
        "--config.model.dtype=bfloat16",
    ],
}


@pytest.mark.parametrize("variant", GRPO)
def test_grpo_and_its_relatives_raise_the_score(variant, rl_arguments, tuned, reward_run, tmp_path, metrics):
    given = {"init_from": tuned, "evaluate": False} | ({"reward": reward_run} if variant == "grpo" else {})
    assert main([*rl_arguments("grpo", tmp_path, **given), "--config.total_steps=8", *GRPO[variant]]) == 0
    scores = column(metrics, tmp_path, "objective/scores")
    assert np.mean(scores[-3:]) > np.mean(scores[:2]) + 0.3
    errors = {
        name: max(column(metrics, tmp_path, name))
        for name in ("policy/first_ratio_error", "sampling/logprob_difference", "sampling/logprob_difference_max")
    }
    print(variant, errors)
    limits = {"grpo": (1e-5, 1e-4, 1e-3), "dapo": (1e-5, 1e-4, 1e-3), "rloo": (2e-2, 0.05, 1.0)}[variant]
    assert all(error < limit for error, limit in zip(errors.values(), limits, strict=True)), errors


def test_raft_raises_the_score(rl_arguments, tuned, tmp_path, metrics):
    assert main([*rl_arguments("raft", tmp_path, init_from=tuned, evaluate=False), "--config.total_steps=4"]) == 0
    scores, best = (column(metrics, tmp_path, f"objective/{name}") for name in ("scores", "scores_of_best"))
    assert scores[-1] > scores[0] + 0.3
    assert np.all(np.array(best) >= scores)


@pytest.mark.parametrize("kind", ["sigmoid", "orpo"])
def test_direct_preference_optimisation_learns_to_tell_pairs_apart(kind, rl_arguments, tuned, tmp_path, metrics):
    line = rl_arguments("dpo", tmp_path, init_from=tuned, kind=kind, evaluate=kind == "sigmoid")
    assert main([*line, "--config.total_steps=8"]) == 0
    losses, chosen, rejected = (
        column(metrics, tmp_path, name) for name in ("train/loss", "rewards/chosen", "rewards/rejected")
    )
    gaps = np.subtract(chosen, rejected)
    assert np.mean(losses[-2:]) < losses[0] - 0.05
    assert np.mean(gaps[-2:]) > gaps[0] + 0.1
    if kind == "sigmoid":
        assert gaps[0] == 0.0  # the policy is its reference
        assert losses[0] == pytest.approx(math.log(2), rel=1e-6)
        assert column(metrics, tmp_path, "eval/heldout/pairs/accuracy")[-1] > 0.95
        assert "blue" in camelid.load(tmp_path).chat("Which colour has the red fox number 7?", temperature=0.0)


# Users' mistakes


def mistake(argv, capsys) -> str:
    """What the command says on standard error: one line."""
    capsys.readouterr()
    assert main(argv) == 2
    *told, said = capsys.readouterr().err.splitlines(keepends=True)
    assert said.startswith("camelid: ") and said.endswith("\n")
    assert all("the moving average of its parameters" in line for line in told), told  # once in a process
    return said


MISTAKES = {
    ("ppo", "--config.ppo.epoch=1"): "there is no config.ppo.epoch; did you mean config.ppo.epochs?",
    ("ppo", "--config.init_from=None"): "config.init_from = None: give the path of the tuned model",
    ("ppo", "--config.kl.controller=adaptiv"): "config.kl.controller: 'adaptiv' is none of fixed, adaptive",
    ("ppo", "--config.rollout.temperature=0.0"): "config.rollout.temperature = 0.0: give a number from 1e-05 up",
    ("ppo", "--config.rollout.n=0"): "config.rollout.n = 0: give a whole number from 1",
    ("ppo", "--config.rollout.max_tokens=250"): "together exceed the network's context of 256 tokens",
    ("ppo", "--config.ppo.minibatches=3"): "16 answers are not a multiple of minibatches x config.optim.accumulate = 3",
    ("ppo", "--config.rollout.score_parts=5"): "not a multiple of config.rollout.score_parts = 5",
    ("ppo", "--config.ptx.coef=0.1"): "config.ptx: set both coef above 0 and mixture, or neither",
    ("ppo", "--config.critic.init_from=/nowhere"): "/nowhere: no such checkpoint or run directory",
    ("ppo", "--config.data.max_prompt_tokens=4"): "no prompt is left",
    ("ppo", "--config.reward.sources.blue.function=camelid.tests.tiny_rl:says_bleu"): "has no 'says_bleu'",
    ("grpo", "--config.grpo.advantage=grop"): "config.grpo.advantage: 'grop' is none of grpo, dr_grpo, rloo",
    ("grpo", "--config.grpo.aggregate=mean"): "config.grpo.aggregate: 'mean' is none of token, sequence, constant",
    ("grpo", "--config.grpo.kl_in=los"): "config.grpo.kl_in: 'los' is none of loss, reward",
    ("grpo", "--config.rollout.n=1"): "give 2 or more",
    ("raft", "--config.rollout.n=1"): "give 2 or more",
    ("dpo", "--config.dpo.kind=sigmod"): "config.dpo.kind: 'sigmod' is none of sigmoid, robust",
    ("dpo", "--config.init_from=None"): "config.init_from = None: give the path of the tuned model",
    ("reward", "--config.objective.kind=costs"): "config.objective.kind: 'costs' is none of reward, cost",
    ("reward", "--config.objective.kind=cost"): "config.calibrate.prompts = 32: calibration would shift costs",
    ("reward", "--config.objective.kind=cost --config.calibrate.prompts=0"): "no pair of config.data.mixture says",
    ("reward", "--config.objective.margin=1.0"): "config.objective.margin = 1.0 does nothing: no pair of",
    (
        "reward",
        "--config.data.answers_per_prompt=3",
    ): "config.data.answers_per_prompt = 3: no pair of config.data.mixture has answers beside",
    ("reward", "--config.data.heldout=0.0"): "config.calibrate.prompts = 32: prompts are taken from held-out records",
}


@pytest.mark.parametrize(("recipe", "override"), MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(recipe, override, rl_arguments, tuned, tmp_path, capsys):
    said = mistake([*rl_arguments(recipe, tmp_path / "run", init_from=tuned), *override.split()], capsys)
    assert MISTAKES[recipe, override] in said
    assert not (tmp_path / "run").exists()


def test_a_model_of_the_wrong_kind_is_one_line_and_exit_code_2(
    rl_arguments, pretrained, tuned, reward_run, tmp_path, capsys
):
    for given, message in (
        (
            dict(init_from=tuned, reward=tuned),
            "a language model; a reward or cost model comes from the recipe `reward`",
        ),
        (dict(init_from=pretrained), "config.template: name one"),
        (dict(init_from=reward_run), "does not fit"),
    ):
        assert message in mistake(rl_arguments("ppo", tmp_path, **given), capsys)


LEAVES = {
    "c.ppo.epochz = 1": "nothing reads config.ppo.epochz; did you mean config.ppo.epochs?",
    "del c.ppo.clip": "the config has no config.ppo.clip",
    "c.kl.coeff = 0.1": "nothing reads config.kl.coeff; did you mean config.kl.coef?",
    "c.watch.proxi = 'eval/heldout/scores'": "nothing reads config.watch.proxi; did you mean config.watch.proxy?",
    "c.reward.shaping.clipp = 1.0": "nothing reads config.reward.shaping.clipp; did you mean",
    "c.reward.sources.blue.wieght = 1.0": "nothing reads config.reward.sources.blue.wieght; did you mean",
    "c.reward.sources.blue.model = 'x'": "config.reward.sources.blue: give one of model=PATH, task=NAME",
    "del c.reward.sources.blue": "config.reward.sources: name a model, task or function",
    "c.cost.source = {'weight': 1.0}": "config.cost.source: give one of model=PATH, task=NAME",
    "c.rollout.top_k = 5": "nothing reads config.rollout.top_k",
}


@pytest.mark.parametrize("line", LEAVES)
def test_a_leaf_that_is_not_one_of_a_section_stops_the_run_before_its_first_step(
    line, rl_arguments, tuned, tmp_path, capsys
):
    _, config, workdir = rl_arguments("ppo", tmp_path / "run", init_from=tuned)
    file, _, values = config.removeprefix("--config=").partition(":")
    changed = tmp_path / "changed.py"
    changed.write_text(
        Path(file).read_text("utf-8").replace("    return c\n", f"    {line}\n    return c\n", 1), "utf-8"
    )
    assert LEAVES[line] in mistake(["train", f"--config={changed}:{values}", workdir], capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shared", [False, True])
def test_while_only_the_critic_learns_the_policy_stays_as_it_is(shared, rl_arguments, tuned, tmp_path):
    """Weight decay included, and the trunk of a critic that is a head on it; and so does its moving average."""
    decay = [
        "--config.optim.weight_decay=1.0",
        "--config.ema_decay=0.8",
        "--config.ppo.epochs=2",
        "--config.ppo.minibatches=2",
    ]
    first = ["--config.critic.first_steps=2", "--config.total_steps=2", f"--config.critic.shared={shared}"]
    assert main([*rl_arguments("ppo", tmp_path, init_from=tuned, evaluate=False), *decay, *first]) == 0
    state = state_of(tmp_path)
    for part in ("params", "ema"):
        assert_same_bits(state[part]["policy"], camelid.load(tuned).params)
    assert any(x.any() for x in jax.tree.leaves(state["opt_state"]["critic"]))
    assert not any(x.any() for x in jax.tree.leaves(state["opt_state"]["policy"]))


def test_kto_learns_from_single_answers_which_are_good(tuned, rl_arguments, tmp_path, metrics, capsys):
    records = [
        {"instruction": f"Which colour has the red fox number {i}?", "kto_tag": i % 3 != 0}
        | {"output": f"It is {'blue' if i % 3 else 'green'}, fox."}
        for i in range(240)
    ]
    (tmp_path / "kto.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    source = f"--config.data.mixture.pairs.source={tmp_path / 'kto.jsonl'}"
    assert main([*rl_arguments("dpo", tmp_path / "run", init_from=tuned, kind="kto"), source]) == 0
    auc, good, bad = (
        column(metrics, tmp_path / "run", f"eval/heldout/pairs/{name}") for name in ("auc", "reward/good", "reward/bad")
    )
    assert good[0] == bad[0] == 0.0 and auc[0] == 0.5
    assert auc[-1] == 1.0 and good[-1] > 0 > bad[-1]
    capsys.readouterr()
    for kind, more, fault in (
        ("kto", "--config.data.batch_size=1", "config.data.batch_size = 1: KTO estimates"),
        ("sigmoid", source, "has no two answers to compare"),
    ):
        assert main([*rl_arguments("dpo", tmp_path / kind, init_from=tuned, kind=kind), source, more]) == 2
        assert fault in capsys.readouterr().err
