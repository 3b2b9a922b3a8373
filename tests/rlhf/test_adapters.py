"""The line reward model, PPO and DPO with adapters on one base."""

import jax
import numpy as np
import pytest

import camelid
from camelid import checkpoints
from camelid.checkpoints import reading
from camelid.launch.cli import main
from camelid.model.sharding import make_mesh
from camelid.rlhf import rewards
from camelid.tests.train.test_resume import state_of
from camelid.train.network import FrozenWeights, Network

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def lora_reward(rl_arguments, tuned, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reward")
    assert main(rl_arguments("reward", workdir, init_from=tuned, lora="lora")) == 0
    return workdir


@pytest.fixture(scope="module")
def lora_ppo(rl_arguments, tuned, lora_reward, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("ppo")
    assert main(rl_arguments("ppo", workdir, init_from=tuned, reward=lora_reward, lora="lora")) == 0
    return workdir


def sizes(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_a_reward_model_of_adapters_ranks_pairs(lora_reward, metrics):
    found = metrics(lora_reward)
    assert max(m.get("eval/heldout/pairs/accuracy", 0) for m in found.values()) > 0.8
    own = state_of(lora_reward)["params"]
    assert set(own) == {"layers", "score"} and "base" not in own["layers"]["mlp"]["up"]


def test_policy_critics_and_reward_stand_on_one_base(lora_ppo, lora_reward, tuned):
    own = state_of(lora_ppo)["params"]
    assert set(own) == {"policy", "critic", "cost_critic"}
    assert set(own["policy"]) == {"layers"} and set(own["critic"]) == {"layers", "score"}
    whole = sizes(camelid.load(tuned).params)
    assert sizes(own) < whole  # three networks' adapters, of a network this small
    frozen = FrozenWeights(make_mesh({}, jax.devices()[:1]))
    tokenizer = camelid.load(tuned).tokenizer
    _, first = rewards.load_model(checkpoints.open(lora_reward), tokenizer, frozen, "float32")
    _, second = rewards.load_model(checkpoints.open(lora_reward), tokenizer, frozen, "float32")
    assert first["layers"]["mlp"]["up"]["base"] is second["layers"]["mlp"]["up"]["base"]


def test_ppo_with_adapters_keeps_its_invariants_and_learns(lora_ppo, metrics):
    found = metrics(lora_ppo)
    steps = [m for m in found.values() if "policy/first_ratio_error" in m]
    assert len(steps) == 9 and max(m["policy/first_ratio_error"] for m in steps) < 1e-4
    assert steps[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)  # a fresh adapter is the reference
    assert steps[-1]["objective/kl"] > 1e-3


def test_the_policy_of_adapters_is_loaded_merged(lora_ppo, tuned):
    policy, start = camelid.load(lora_ppo), camelid.load(tuned)
    assert jax.tree.structure(policy.params) == jax.tree.structure(start.params)
    tokens = np.arange(40).reshape(2, 20) % 352
    assert np.abs(policy.logits(tokens) - start.logits(tokens)).max() > 1e-3
    assert reading.read_manifest(lora_ppo)["adapter"]["path"] == str(tuned)


@pytest.mark.parametrize("recipe, lora, devices", [("dpo", "nf4", 1), ("grpo", "dora", 2)])
def test_other_recipes_take_adapters_too(recipe, lora, devices, rl_arguments, tuned, metrics, tmp_path):
    line = rl_arguments(recipe, tmp_path, init_from=tuned, lora=lora, evaluate=False)
    assert main([*line, "--config.total_steps=3", f"--config.mesh.fsdp={devices}"]) == 0
    assert len([m for m in metrics(tmp_path).values() if "train/loss" in m]) == 3
    state = state_of(tmp_path)["params"]
    assert "base" not in state.get("policy", state)["layers"]["mlp"]["up"]


def test_evaluations_of_held_out_prompts_run_the_program_of_the_steps(rl_arguments, tuned, tmp_path, monkeypatch):
    made, jit = [], Network._jit_read
    monkeypatch.setattr(Network, "_jit_read", lambda network, read: made.append(jit(network, read)) or made[-1])
    line = rl_arguments("grpo", tmp_path, init_from=tuned, lora="lora")
    assert main([*line, "--config.total_steps=2", "--config.mesh.fsdp=2", "--config.ema_decay=0.5"]) == 0
    assert [draw._cache_size() for draw in made] == [1]


def test_dropout_is_refused_where_tokens_are_scored_as_they_were_drawn(rl_arguments, tuned, tmp_path, capsys):
    assert main(rl_arguments("ppo", tmp_path, init_from=tuned, lora="pissa")) == 2
    assert "set it to 0" in capsys.readouterr().err
