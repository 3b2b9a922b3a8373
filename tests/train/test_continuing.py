"""What a run may change when it goes on: every leaf of every shipped config is one thing or the other."""

import copy
import re
from pathlib import Path

import ml_collections
import pytest

import camelid
from camelid.checkpoints.manifest import describe
from camelid.configs.base import base
from camelid.configs.preferences import dpo_base, reward_base
from camelid.configs.rl import grpo_base, ppo_base, raft_base
from camelid.errors import UserError
from camelid.launch.recipes import read_config
from camelid.rlhf.grpo import GRPOConfig
from camelid.rlhf.ppo import PPOConfig
from camelid.rlhf.reward import RewardConfig
from camelid.settings.config_files import load_phases
from camelid.settings.length import Length
from camelid.settings.sections import read, to_config
from camelid.tests.launch.test_checks import GIVEN
from camelid.train import resume
from camelid.train.lengths import CheckpointSettings, lengths_of, saving_of
from camelid.train.resume import FORMER_NAMES, MAY_CHANGE
from camelid.train.run_config import SupervisedConfig

START = {"identity": ["/runs/base", 24, "aa"], "weights": "params"}


def manifest(config=None, **more):
    found = describe(config if config is not None else base(), data_fingerprint="data")
    return found | {"total_steps": 100, "start": START} | more


def compare(saved, given, kind=SupervisedConfig):
    return resume.compare(saved, given, kind)


def check(path, saved, given):
    return resume.check(path, saved, given, SupervisedConfig)


def changed(**leaves):
    config = base()
    with config.unlocked():
        config.update_from_flattened_dict(leaves)
    return manifest(config)


@pytest.mark.parametrize(
    ("leaf", "value", "said"),
    [
        ("optim.lr", 1e-3, "config.optim.lr was 0.0003 and is 0.001"),
        ("optim.clip_norm", None, "config.optim.clip_norm was 1.0 and is None"),
        ("seed", 1, "config.seed was 0 and is 1"),
        ("guard.spike_sigma", 5.0, "config.guard.spike_sigma was 10.0 and is 5.0"),
        ("schedule.final", 0.0, "config.schedule.final was 0.1 and is 0.0"),
        ("model.dtype", "bfloat16", "config.model.dtype was 'float32' and is 'bfloat16'"),
        ("optim.frozen", [("embed/.*", True)], "config.optim.frozen was None and is [['embed/.*', True]]"),
    ],
)
def test_a_leaf_that_changes_what_is_trained_is_refused_with_its_old_and_new_value(leaf, value, said):
    changes = compare(manifest(), changed(**{leaf: value}))
    assert changes.refused == [said] and changes.told == []
    with pytest.raises(UserError, match=re.escape(f"/run: this run cannot resume with these changes: {said}. Give")):
        check("/run", manifest(), changed(**{leaf: value}))


def test_a_leaf_that_does_not_is_told():
    given = changed(log_steps=5, **{"mesh.fsdp": 4, "data.cache_dir": "/there", "checkpoint.keep_last": 9})
    changes = compare(manifest(), given)
    assert changes.refused == []
    assert sorted(changes.told) == [
        "config.checkpoint.keep_last was 2 and is 9",
        "config.data.cache_dir was '~/.cache/camelid' and is '/there'",
        "config.log_steps was 20 and is 5",
        "config.mesh.fsdp was -1 and is 4",
    ]


def test_the_same_config_differs_in_nothing_whatever_form_a_number_has():
    given = changed(**{"optim.weight_decay": 0.1, "optim.clip_norm": 1})
    assert compare(manifest(), manifest()) == compare(manifest(), given) == ([], [])


def test_a_run_may_become_longer_which_moves_its_schedule_and_not_shorter():
    longer = compare(manifest(), manifest(total_steps=200))
    assert longer.refused == [] and "100 steps become 200" in longer.told[0] and "schedule of 200" in longer.told[0]
    shorter = compare(manifest(), manifest(total_steps=50))
    assert shorter.refused == ["the run was 100 steps long and is 50: it can only be made longer"]


def test_other_data_another_tokenizer_and_another_start_are_refused():
    for name, value, said in (
        ("data_fingerprint", "more", "other data .* \\(data before, more now\\)"),
        ("tokenizer", {"fingerprint": "b"}, "another tokenizer \\(None before"),
        ("start", START | {"identity": ["/runs/base", 48, "bb"]}, "another model at config.init_from .*24 before, 48"),
        ("start", START | {"identity": ["/runs/base", 24, "bb"]}, "another model .*aa before, bb now"),
        ("start", START | {"weights": "ema"}, "another model .*weights: params before, ema now"),
    ):
        [refused] = compare(manifest(), manifest(**{name: value})).refused
        assert re.search(said, refused), refused


def test_a_model_that_was_moved_is_the_same_where_hashes_say_so():
    for path in ("/runs/base/checkpoints/24", "/elsewhere/base"):
        given = manifest(
            start=START | {"identity": [path, 24, "aa"]}, adapter={"path": path, "identity": [path, 24, "aa"]}
        )
        saved = manifest(adapter={"path": "/runs/base", "identity": ["/runs/base", 24, "aa"]})
        assert compare(saved, given) == ([], [])
    for path, refused in (("/runs/base/checkpoints/24", 0), ("/elsewhere/base", 1)):
        saved = manifest(start=START | {"identity": ["/runs/base", 24]})
        assert len(compare(saved, manifest(start=START | {"identity": [path, 24, "aa"]})).refused) == refused


def test_a_critic_s_start_is_compared_by_its_content():
    def started(path, *hashes):
        config = ppo_base()
        config.critic.init_from = path
        return manifest(config, critic=path and [path, 3, *hashes])

    assert compare(started("/runs/reward", "aa"), started("/elsewhere", "aa")).refused == []
    for other in (started("/runs/reward", "bb"), started(None)):
        [refused] = compare(started("/runs/reward", "aa"), other).refused
        assert "another model at config.critic.init_from" in refused
    before = started("/runs/reward", "aa")
    del before["critic"]  # versions before did not say it
    assert compare(before, started("/runs/reward", "aa")) == ([], [])
    assert "config.critic.init_from was" in compare(before, started("/elsewhere", "aa")).refused[0]


def test_checkpoints_of_versions_before_go_on():
    """Without newer leaves, hashes of checkpoints, and with what was then taken of a run with a moving average."""
    old = manifest(frozen={"reference": ["/runs/base", 24]})
    del old["config"]["checkpoint"]["best"], old["config"]["init_weights"], old["start"]
    assert compare(old, manifest(frozen={"reference": ["/runs/base", 24, "aa"]})) == ([], [])
    frozen = dict(frozen={"reference": ["/runs/base", 25, "aa"]})
    assert "another frozen model (reference: 24 before, 25 now)" in compare(old, manifest(**frozen)).refused[0]
    average = manifest(start=START | {"weights": "ema"}, frozen=old["frozen"])
    assert compare(old, average).refused == [
        "it began from the params of config.init_from: set config.init_weights=params"
    ]


def test_a_function_that_has_become_a_task_is_the_same_reward():
    def rewarded(source):
        config = copy.deepcopy(manifest()["config"]) | {"reward": {"sources": {"own": source}}}
        return manifest() | {"config": config}

    before = rewarded({"function": "camelid.data.tasks.safe_sums:cost", "weight": 1.0})
    assert compare(before, rewarded({"task": "safe_sums:cost", "weight": 1.0})) == ([], [])
    assert len(compare(before, rewarded({"task": "walks", "weight": 1.0})).refused) == 1


def test_other_data_are_named_unless_a_setting_that_changes_them_is():
    other = {"data_fingerprint": "other"}
    assert len(compare(manifest(), changed(**{"optim.lr": 1e-3}) | other).refused) == 2
    assert compare(manifest(), changed(seed=1) | other).refused == ["config.seed was 0 and is 1"]


def test_a_run_whose_config_has_former_names_goes_on():
    """Configs of versions before name leaves otherwise, and leave out what was a default then as now."""
    given = ppo_base()
    given.reward.sources = {"own": {"task": "walks", "weight": 1.0, "pessimism": 0.0}}
    given.eval_rewards = {"gold": {"task": "primer"}}
    new = manifest(given)
    old = copy.deepcopy(new)
    old["config"]["judges"] = {"gold": {"task": "primer"}}
    old["config"]["cost"] = {"source": None, "threshold": 0.0, "first": 1.0, "lr": 0.1, "most": 10.0}
    old["config"]["reward"]["sources"] = {"own": {"task": "walks"}}
    del old["config"]["eval_rewards"], old["config"]["log_tokens"]
    assert compare(old, new, PPOConfig) == ([], [])
    old["config"]["cost"]["first"] = 2.0
    refused = ["config.cost.multiplier_init was 2.0 and is 1.0"]
    assert compare(old, new, PPOConfig).refused == refused
    kinds = {"reward": RewardConfig(), "grpo": GRPOConfig(), "ppo": PPOConfig()}
    there = {leaf for kind in kinds.values() for leaf in _names(to_config(kind).to_dict())}
    for former, name in FORMER_NAMES.items():
        assert not any(leaf.startswith(former) for leaf in there), former
        assert any(leaf == name or leaf.startswith(f"{name}.") for leaf in there), name


def test_what_a_user_adds_or_takes_out_is_no_newer_leaf():
    source = {"source": "a.jsonl", "format": "auto", "weight": 1.0}
    one, two = base(), base()
    one.data.mixture = {"a": source}
    two.data.mixture = {"a": source, "b": source}
    two.model.rope_scaling = {"kind": "yarn"}
    refused = " ".join(compare(manifest(one), manifest(two)).refused)
    assert "config.data.mixture.b.weight was not there and is 1.0" in refused
    assert "config.model.rope_scaling.kind was not there and is 'yarn'" in refused
    assert "config.data.mixture.b.weight was 1.0 and is not there" in " ".join(
        compare(manifest(two), manifest(one)).refused
    )


def test_a_converted_model_is_nothing_to_go_on_from():
    with pytest.raises(UserError, match=r"no run but a converted model; name it with config\.init_from"):
        check("/run", manifest(ml_collections.ConfigDict()), manifest())


def test_every_rule_of_what_may_change_meets_a_leaf_that_there_is():
    configs = [make() for make in (base, reward_base, dpo_base, ppo_base, grpo_base, raft_base)]
    leaves = {leaf for config in configs for leaf in _names(config.to_dict())}
    leaves |= {"data.mixture.a.source", "ptx.mixture.a.source", "reward.sources.a.model", "reward.sources.a.limit"}
    leaves |= {"cost.source.model", "evals.primer.per_group", "eval_rewards.a.weight", "phases.a"}
    for rule in MAY_CHANGE:
        for part in rule.pattern.split("|") if "(" not in rule.pattern else [rule.pattern]:
            assert any(re.fullmatch(part, leaf) for leaf in leaves), part
    assert not any(
        rule.fullmatch(leaf) for rule in MAY_CHANGE for leaf in leaves if leaf.startswith(("optim.l", "ppo."))
    )


def _names(section, path=""):
    for name, value in section.items():
        yield from _names(value, f"{path}{name}.") if isinstance(value, dict) and value else [f"{path}{name}"]


# How much a kill may take


class Epochs:
    batch_size, length = 8, 64

    def __init__(self, steps):
        self.steps_per_epoch = steps


CONFIGS = sorted(  # `configs/curate/` describes datasets, not runs
    path
    for path in (Path(camelid.__file__).parent / "configs").glob("*/*.py")
    if path.name != "__init__.py" and path.parent.name != "curate"
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_shipped_recipe_can_lose_more_than_a_tenth_of_a_run(path):
    name = f"{path.parent.name}/{path.name}"
    for config in load_phases(f"{path}:{GIVEN[name]}" if name in GIVEN else str(path)).values():
        for steps in (3, 10, 11, 19, 250, 9999):  # of an epoch
            lengths = lengths_of(read_config(config), Epochs(steps))
            saving = saving_of(read_config(config).checkpoint, lengths)
            assert saving["every_steps"] <= max(1, lengths.total / 10), (lengths, saving)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, 10),
        (Length(7, "steps"), 7),
        (Length(25.0, "percent"), 25),
        (Length(0.5, "epochs"), 10),
        (Length(512, "tokens"), 1),
    ],
)
def test_the_cadence_is_a_length_of_time_like_others(given, expected):
    lengths = lengths_of(SupervisedConfig(total=Length(100, "steps")), Epochs(20))
    assert saving_of(CheckpointSettings(given), lengths)["every_steps"] == expected
    assert saving_of(CheckpointSettings(given, temporary_seconds=60), lengths)["temporary_seconds"] == 60


@pytest.mark.parametrize("best", ["eval/loss", ("eval/loss",), ("eval/loss", "lowest"), (3, "min")])
def test_the_best_is_a_metric_and_a_direction(best):
    checkpoint = base().checkpoint
    with checkpoint.ignore_type():
        checkpoint.best = best
    with pytest.raises(UserError, match=r"config\.checkpoint\.best"):
        read(checkpoint, CheckpointSettings, "config.checkpoint")
