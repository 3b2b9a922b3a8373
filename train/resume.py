"""Which settings a run may change when it resumes: the manifest of its checkpoint against that of the command."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from ..checkpoints import manifest
from ..errors import UserError
from ..settings.sections import with_defaults

MAY_CHANGE = tuple(
    map(
        re.compile,
        (
            # What is told and kept, and when.
            r"log_\w+|eval_\w+|evals\..*|eval_rewards\..*|checkpoint\..*|wandb\..*|profile\..*|data\.heldout_prompts",
            # What stops a run.
            r"watch\..*|guard\.max_streak|early_stopping\..*",
            # Where and in how many parts it is computed: the same numbers but for their rounding.
            r"mesh\..*|partition_rules|model\.(attention|remat|unroll)|optim\.accumulate|rollout\.score_parts",
            r"(reward\.sources\.\w+|cost\.source)\.(limit|timeout_seconds)",
            # Where things lie whose content is compared: `IDENTITIES`.
            r"(data|ptx)\.cache_dir|(data|ptx)\.mixture\.\w+\.source|(reward\.sources\.\w+|cost\.source)\.model",
            r"init_from|init_weights|critic\.init_from|tokenizer|template|data\.(on_error|max_record_bytes)",
            # What is compared before the run.
            r"data\.(use|licences)",
            # The length, which is compared in steps; and the other phases of the config.
            r"total_\w+|phases(\..*)?",
        ),
    )
)
"""Regular expressions of the leaves that may differ. Every other leaf decides what is trained."""

COMPARED = {"init_from": "start", "critic.init_from": "critic"}
"""Leaves that are paths, with the manifest entry that identifies their content. Manifests of older versions may lack
the entry; the path itself must then stay."""

OPEN_SECTIONS = re.compile(
    r"((data|ptx)\.mixture|reward\.sources|cost\.source|model\.rope_scaling|evals|eval_rewards)\..*"
)
"""Leaves of sections in which users choose the names. A new leaf there was added by the user; elsewhere it came with a
version of camelid."""

IDENTITIES = {
    "tokenizer": "another tokenizer",
    "template": "another chat template",
    "data_fingerprint": "other data (files of config.data.mixture changed or were renamed, or are read in another way)",
    "start": "another model at config.init_from",
    "critic": "another model at config.critic.init_from",
    "frozen": "another frozen model",
    "frozen_weights": "another kind of parameters of a frozen model",
    "adapter": "another base of its adapters, or other adapters",
}
"""Manifest entries that must be the same, and what is said where they differ."""


DATA_SETTINGS = re.compile(r"config\.(seed|data|ptx)\b")
"""Sentences about settings that the fingerprint of the data depends on."""

FORMER_NAMES = {
    "judges": "eval_rewards",
    "normalise": "calibrate",
    "data.sides": "data.answers_per_prompt",
    "grpo.drop_even": "grpo.drop_equal_groups",
    "cost.first": "cost.multiplier_init",
    "cost.most": "cost.multiplier_max",
}
"""Leaves and sections of configs by their former names, with the names that they have now."""

FORMER_LEAVES = {"wandb": "wandb.name"}
"""Leaves of configs in whose place a section stands now, with the leaf of the section that means the same."""

FORMER_FUNCTIONS = {
    "camelid.data.primer:reward": "primer",
    "camelid.data.tasks.walks:reward": "walks",
    "camelid.data.tasks.safe_sums:reward": "safe_sums",
    "camelid.data.tasks.safe_sums:cost": "safe_sums:cost",
    "camelid.evals.sentiment:gold": "reviews",
    "camelid.evals.sentiment:proxy": "reviews:proxy",
}
"""Reward functions of older configs, with the tasks that replace them."""


class Changes(NamedTuple):
    """Sentences about differences between two manifests."""

    refused: list[str]
    """Differences that change what is trained."""

    told: list[str]
    """Differences that do not."""


def check(path: epath.Path, saved: Mapping[str, Any], given: Mapping[str, Any], kind: type) -> list[str]:
    """Sentences of what differs from the run so far and may differ.

    Args:
      path: the checkpoint that the run is resumed from.
      saved: the checkpoint's manifest.
      given: the manifest of the run.
      kind: the class of the run's config.

    Raises:
      UserError: something differs that decides what is trained; the message names each leaf with both values.
    """
    if not saved["config"]:
        raise UserError(f"{path}: no run but a converted model; name it with config.init_from, and another --workdir")
    changes = compare(saved, given, kind)
    if changes.refused:
        raise UserError(
            f"{path}: this run cannot resume with these changes: {'; '.join(changes.refused)}. Give the former values, "
            "or start over in another --workdir"
        )
    return changes.told


def compare(saved: Mapping[str, Any], given: Mapping[str, Any], kind: type) -> Changes:
    """The differences between the manifest of a checkpoint and that of a run which is resumed from it. kind: the class
    of the run's config."""
    given = json.loads(json.dumps(given))  # tuples come back from a checkpoint as lists
    changes = Changes([], [])
    if "frozen_weights" in given:  # versions before did not choose
        saved = {"frozen_weights": dict.fromkeys(given["frozen_weights"], "params")} | dict(saved)
    old, new = (_normal_leaves(manifest["config"], kind) for manifest in (saved, given))
    for leaf in dict.fromkeys([*old, *new]):
        if leaf.partition(".")[0] == "phases" or leaf.startswith("total_") or _came_with_a_version(leaf, old, new):
            continue
        if leaf in old and leaf in new and old[leaf] == new[leaf]:
            continue
        may = any(rule.fullmatch(leaf) for rule in MAY_CHANGE) and COMPARED.get(leaf, "config") in saved
        sentence = f"config.{leaf} was {_shown(old, leaf)} and is {_shown(new, leaf)}"
        (changes.told if may else changes.refused).append(sentence)
    before, now = saved.get("code") or {}, given.get("code") or {}
    for name in before.keys() & now.keys():
        if before[name] != now[name]:
            changes.told.append(f"the code of {name} is not that of the run so far")
    if manifest.same_tokenizer(saved.get("tokenizer"), given.get("tokenizer")):
        saved = dict(saved) | {"tokenizer": given.get("tokenizer")}
    for name, meaning in IDENTITIES.items():
        if name == "data_fingerprint" and any(map(DATA_SETTINGS.match, changes.refused)):
            continue  # it depends on the settings that have been named
        difference = _difference(saved.get(name), given.get(name)) if name in saved else None
        if difference is not None:
            changes.refused.append(f"there is {meaning} ({difference})")
    if "start" not in saved and (given.get("start") or {}).get("weights") == "ema":
        changes.refused.append("it began from the params of config.init_from: set config.init_weights=params")
    before, now = saved["total_steps"], given["total_steps"]
    if now < before:
        changes.refused.append(f"the run was {before} steps long and is {now}: it can only be made longer")
    elif now > before:
        changes.told.append(
            f"{before} steps become {now}, and from here on the learning rate has the schedule of {now}"
        )
    return changes


def _leaves(section: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _normal_leaves(config: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """The leaves of a config by the names that they have now, with the defaults of those that it leaves out."""
    renamed: dict[str, Any] = {}
    for leaf, value in itertools.starmap(_renamed, _leaves(config)):
        *sections, last = leaf.split(".")
        within = renamed
        for section in sections:
            within = within.setdefault(section, {})
        within[last] = value
    return dict(_leaves(with_defaults(renamed, kind)))


def _renamed(leaf: str, value: Any) -> tuple[str, Any]:
    """A leaf of an older config by the name and value that it has now."""
    leaf = FORMER_LEAVES.get(leaf, leaf)
    for former, name in FORMER_NAMES.items():
        if leaf == former or leaf.startswith(f"{former}."):
            leaf = name + leaf.removeprefix(former)
    if leaf.endswith(".function") and value in FORMER_FUNCTIONS:
        return f"{leaf.removesuffix('function')}task", FORMER_FUNCTIONS[value]
    return leaf, value


def _came_with_a_version(leaf: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether only one of two configs knows a leaf because the versions that wrote them know different ones: neither
    did its author name it, nor did a section take the place of a value."""
    if (leaf in old and leaf in new) or OPEN_SECTIONS.fullmatch(leaf):
        return False
    other = new if leaf in old else old
    parts = leaf.split(".")
    above = any(".".join(parts[:end]) in other for end in range(1, len(parts)))
    return not above and not any(name.startswith(f"{leaf}.") for name in other)


def _shown(config: Mapping[str, Any], leaf: str) -> str:
    return repr(config[leaf]) if leaf in config else "not there"


def _difference(saved: Any, given: Any) -> str | None:
    """The first part in which two entries of manifests differ, None where they say the same.

    Of what has hashes the path is not compared: it may have been moved. What a run took from a checkpoint (weights) was
    always its params before manifests said it.
    """
    if isinstance(saved, dict) and isinstance(given, dict):
        saved = ({"weights": "params"} if "weights" in given else {}) | saved
        names = [name for name in {**saved, **given} if name != "path" or "identity" not in saved]
        found = {name: _difference(saved.get(name), given.get(name)) for name in names}
        return next((f"{name}: {difference}" for name, difference in found.items() if difference is not None), None)
    if _is_identity(saved) and _is_identity(given):
        both_hashed = len(saved) > 2 and len(given) > 2
        old, new = (saved[1:], given[1:]) if both_hashed else (_of_run(saved)[:2], _of_run(given)[:2])
        pairs = itertools.zip_longest(old, new)
        return next((f"{_short(a)} before, {_short(b)} now" for a, b in pairs if a != b), None)
    return None if saved == given else f"{_short(saved)} before, {_short(given)} now"


def _is_identity(entry: Any) -> bool:
    """Whether an entry is [path, step or None, hashes ...], as `Checkpoint.identity` is."""
    if not isinstance(entry, list) or len(entry) < 2:
        return False
    return isinstance(entry[0], str) and (entry[1] is None or isinstance(entry[1], int))


def _of_run(identity: list) -> list:
    """An identity whose path is that of the run, though it may have been given as that of a checkpoint."""
    return [identity[0].removesuffix(f"/checkpoints/{identity[1]}"), *identity[1:]]


def _short(value: Any) -> str:
    text = re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1", " ".join(str(value).split()))
    return text if len(text) <= 100 else f"{text[:97]}..."
