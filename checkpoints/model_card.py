"""Writes the model card of an export: README.md, with the header that the Hugging Face Hub reads.

The card says where the model comes from (`lineage.py`), how it is used, what was measured, and which licences its parts
have. Paths are cut to their last part, because a card is published. A licence stands in the header only if those of all
parts are recorded and are the same one.
"""

import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from etils import epath

from ..data import hub, licences
from ..data.licences import Terms
from .adapters import AdapterCheckpoint
from .checkpoint import Checkpoint
from .lineage import Lineage, Stage, lineage_of

FILE = "README.md"
TEMPLATE = epath.Path(__file__).parent / "model_card.md.jinja"

ON_HUB = {
    "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC-BY-NC-3.0", "CC-BY-NC-4.0",
    "CC-BY-NC-SA-3.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0", "CC-BY-NC-ND-4.0", "MIT", "Apache-2.0", "BSD-2-Clause",
    "BSD-3-Clause", "CDLA-Permissive-1.0", "CDLA-Permissive-2.0", "CDLA-Sharing-1.0", "GPL-2.0", "GPL-3.0", "AGPL-3.0",
    "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma",
}  # fmt: skip
"""Licences that the Hub knows by their name in lower case (huggingface.co/docs/hub/repositories-licenses)."""

HUB_NAMES = {"ODC-By-1.0": "odc-by", "ODbL-1.0": "odbl", "PDDL-1.0": "pddl", "GFDL-1.3": "gfdl"}
"""Licences that the Hub knows by another name."""

RECIPES = {
    "pretrain": "pretraining on text",
    "sft": "supervised tuning",
    "reward": "training of a reward model",
    "dpo": "preference optimisation",
    "ppo": "reinforcement learning with PPO",
    "grpo": "reinforcement learning with GRPO",
    "raft": "tuning on its own best answers (RAFT)",
}
LANGUAGE = re.compile(r"[a-z]{2,3}")
"""Matches the codes of languages that the Hub accepts (ISO 639)."""


def model_card(
    found: Checkpoint, name: str, *, adapters: bool = False, base_name: str | None = None, dtype: str | None = None
) -> str:
    """The model card of an export.

    Args:
      found: the checkpoint that is exported.
      name: the name of the export.
      adapters: whether only adapters are exported, in PEFT's format.
      base_name: the name of the adapters' base, as their config has it.
      dtype: dtype of the exported parameters; None for that of the checkpoint.
    """
    lineage = lineage_of(found)
    parts = _parts(lineage)
    base = lineage.root.name if lineage.root and lineage.root.on_hub else None
    if adapters:
        base = base_name if base_name and hub.name_of(base_name) is not None else None
    config, merged = found.config, isinstance(found, AdapterCheckpoint) and not adapters
    facts = [
        ("architecture", f"{config.family}, {config.n_layers} layers of width {config.dim:,}"),
        ("parameters", f"{config.n_params:,}" + (", with the adapters merged into them" if merged else "")),
        ("stored as", dtype or config.param_dtype),
        ("vocabulary", f"{config.vocab_size:,} tokens"),
        ("context", f"{config.max_len:,} tokens"),
    ]
    if isinstance(found, AdapterCheckpoint):
        facts.append(("adapters", _adapters(found)))
    if found.generation.sampling():
        said = ", ".join(f"{field} {value:g}" for field, value in found.generation.sampling().items())
        facts.append(("recommended sampling", said))
    environment = jinja2.Environment(autoescape=False, keep_trailing_newline=True)
    environment.filters |= {"cell": _cell, "code": lambda text: text.replace("`", "'").replace("|", "/")}
    text = environment.from_string(TEMPLATE.read_text()).render(
        header={key: _yaml(value) for key, value in header(found, lineage, base, adapters=adapters).items()},
        name=_plain(name),
        summary=_summary(lineage, base, adapters),
        adapters=adapters,
        chat=found.template and _plain(found.template.name),
        facts=facts,
        root=_root_sentence(lineage),
        stages=[_stage(stage) for stage in lineage.stages],
        data=[
            (f"{number}", data.name, data.location, f"{data.weight:g}", _licences_of(data.card))
            for number, stage in enumerate(lineage.stages, 1)
            for data in stage.data
        ],
        metrics=_metrics(lineage),
        licence=_licence_sentence(parts),
        duties=_duties(parts),
        context=config.max_len,
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def header(found: Checkpoint, lineage: Lineage, base: str | None, *, adapters: bool) -> dict[str, Any]:
    """The fields of the card's header.

    Args:
      found: the checkpoint.
      lineage: where it comes from.
      base: the name of the model that it was tuned or converted from, on the Hub or in an adapter config.
      adapters: whether only adapters are exported.
    """
    recipes = list(dict.fromkeys(str(stage.config.get("recipe")) for stage in lineage.stages))
    fields: dict[str, Any] = {}
    if (licence := licence_of(lineage)) is not None:
        named = HUB_NAMES.get(licence, licence.lower() if licence in ON_HUB else None)
        fields |= {"license": named} if named else {"license": "other", "license_name": licence.lower()}
    if languages := _languages(lineage):
        fields["language"] = languages
    fields["library_name"] = "peft" if adapters else "transformers"
    fields["pipeline_tag"] = "text-generation"
    if base is not None:
        fields["base_model"] = base
        if lineage.stages or adapters:
            fields["base_model_relation"] = "adapter" if adapters else "finetune"
    lora = ["lora"] if isinstance(found, AdapterCheckpoint) else []
    talks = ["conversational"] if found.template is not None else []
    fields["tags"] = ["camelid", *recipes, *lora, *talks]
    return fields


def licence_of(lineage: Lineage) -> str | None:
    """The licence of a model all of whose parts have that one licence on record; None otherwise."""
    names = {(term.licence.name if term.licence else term.name) for term in _parts(lineage)}
    licence = names.pop() if len(names) == 1 else None
    return None if licence in (None, "own") else licence


def gguf_fields(found: Checkpoint) -> dict[str, Any]:
    """What a GGUF file's metadata says of where a model comes from: the fields `general.*` of llama.cpp."""
    lineage = lineage_of(found)
    base = lineage.root.name if lineage.root and lineage.root.on_hub else None
    said = header(found, lineage, base, adapters=False)
    fields: dict[str, Any] = {"general.description": _summary(lineage, base, False), "general.tags": said["tags"]}
    if "license" in said:
        fields["general.license"] = said.get("license_name", said["license"])
    if "language" in said:
        fields["general.languages"] = said["language"]
    if base is not None:
        owner, _, short = base.partition("/")
        fields |= {
            "general.base_model.count": 1,
            "general.base_model.0.name": short,
            "general.base_model.0.organization": owner,
            "general.base_model.0.repo_url": f"https://huggingface.co/{base}",
        }
        if lineage.root.commit:
            fields["general.base_model.0.version"] = lineage.root.commit
    return fields


# Sentences ------------------------------------------------------------------------------------------------------------


def _summary(lineage: Lineage, base: str | None, adapters: bool) -> str:
    """What the model is, in one sentence."""
    what = "Low-rank adapters of a language model" if adapters else "A language model"
    root = base or (lineage.root and lineage.root.name)
    link = f"[{root}](https://huggingface.co/{root})" if lineage.root and lineage.root.on_hub else root and _plain(root)
    names = [str(stage.config.get("recipe")) for stage in lineage.stages]
    ways = [RECIPES.get(name, f"the recipe {name}") for name in names]
    if not ways:
        return f"{what}, converted{f' from {link}' if link else ''} by camelid."
    made = " and ".join(filter(None, (", ".join(ways[:-1]), ways[-1])))
    return f"{what}, made{f' from {link}' if link else ' from random parameters'} by camelid: {_plain(made)}."


def _adapters(found: AdapterCheckpoint) -> str:
    ranks = sorted({rank for _, rank in found.lora.targets if rank})
    kind = "DoRA" if found.lora.dora else "rsLoRA" if found.lora.rank_stabilized else "LoRA"
    said = f"{kind} of rank {', '.join(map(str, ranks))}, alpha {found.lora.alpha:g}"
    return said + (f", on a base quantised as {found.quantize}" if isinstance(found.quantize, str) else "")


def _root_sentence(lineage: Lineage) -> str:
    root = lineage.root
    if root is None:
        return "The first run started from random parameters."
    commit = f" at commit `{root.commit}`" if root.commit else ""
    link = f"[{root.name}](https://huggingface.co/{root.name})" if root.on_hub else f"`{_plain(root.name)}`"
    if not lineage.stages:
        return f"It was converted from {link}{commit}; how that model was trained is not recorded here."
    return f"The first run started from {link}{commit}."


def _stage(stage: Stage) -> dict[str, Any]:
    """A run as the template needs it: title, text and step."""
    config, said = stage.config, [f"{stage.step:,} steps"]
    data, optim = config.get("data") or {}, config.get("optim") or {}
    rows, length = data.get("batch_size"), data.get("seq_len")
    if rows:
        said.append(f"{rows:,} rows a step" + (f" of at most {length:,} tokens" if length else ""))
    if optim.get("name"):
        said.append(f"{optim['name']} with learning rate {optim['lr']:g}")
    schedule = (config.get("schedule") or {}).get("name")
    if schedule:
        said.append(f"schedule {schedule}")
    if (config.get("lora") or {}).get("targets"):
        said.append("low-rank adapters only")
    if config.get("ema_decay") is not None:
        said.append(f"a moving average of the parameters with decay {config['ema_decay']:g}")
    said += [f"seed {config.get('seed')}", *_machine(stage.record)]
    versions = ", ".join(f"{name} {version}" for name, version in stage.versions.items())
    title = RECIPES.get(str(config.get("recipe")), str(config.get("recipe")))
    return {"title": title, "text": _plain("; ".join(said)) + f" ({versions}).", "step": stage.step}


def _machine(record: Mapping[str, Any]) -> list[str]:
    """Devices and hours of a run, from its run.json."""
    try:
        devices = record["attempts"][-1]["devices"]
        hours = sum(record["seconds"].values()) / 3600
        return [f"{devices['count']} × {devices['kind']}, {hours:.3g} hours"]
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return []


def _metrics(lineage: Lineage) -> list[tuple[str, str]]:
    last: Mapping[str, float] = lineage.stages[-1].metrics if lineage.stages else {}
    return [(name.removeprefix("eval/"), f"{value:.6g}") for name, value in sorted(last.items())]


# Licences and languages -----------------------------------------------------------------------------------------------


def _parts(lineage: Lineage) -> list[Terms]:
    """The licence of the root and of each source, and the terms of each teacher, as far as they are recorded."""
    found = [] if lineage.root is None else [Terms(lineage.root.name, lineage.root.licence)]
    for stage in lineage.stages:
        for data in stage.data:
            found += [Terms(data.name, None)] if data.card is None else licences.terms_in(data.name, data.card)
    return list(dict.fromkeys(found))


def _licences_of(card: Any) -> str:
    if card is None:
        return "not recorded"
    return ", ".join(dict.fromkeys(term.name or "not recorded" for term in licences.terms_in("", card)))


def _licence_sentence(parts: Sequence[Terms]) -> str:
    if not parts:
        return "The licence of the model is for its authors to choose."
    known = [f"{_plain(part.holder)}: {_plain(part.name)}" for part in parts if part.name is not None]
    unknown = [_plain(part.holder) for part in parts if part.name is None]
    said = [f"Recorded for the parts of the model: {', '.join(known)}."] if known else []
    if unknown:
        said.append(f"No licence is recorded for {', '.join(unknown)}: find out before you publish the model.")
    return " ".join(said)


def _duties(parts: Sequence[Terms]) -> list[str]:
    """What the recorded licences ask for, a line for each."""
    words = {
        "attribution": "Name the authors",
        "share_alike": "Give adaptations one of these licences",
        "non_commercial": "No commercial use",
        "no_derivatives": "No adapted material",
        "model_name": "Begin the name of the model with",
        "notice": "Show the words",
        "use_policy": "Pass on the policy",
        "training": "Do not train",
    }
    known = [part for part in parts if part.licence is not None]
    return [
        _plain(f"{words[kind]} {each}" if each.startswith("(") else f"{words[kind]}: {each}")
        for kind, all_ in licences.duties(known).items()
        if kind in words
        for each in all_
    ]


def _languages(lineage: Lineage) -> list[str]:
    """Codes of the languages in the datasets with cards, the most frequent first."""
    rows: dict[str, int] = {}
    for card in (data.card for stage in lineage.stages for data in stage.data):
        for language, count in (card.languages if card is not None else {}).items():
            if LANGUAGE.fullmatch(language):
                rows[language] = rows.get(language, 0) + count.rows
    return sorted(rows, key=lambda language: (-rows[language], language))


# Text -----------------------------------------------------------------------------------------------------------------


def _yaml(value: Any) -> str:
    """A value of the header, after its colon. JSON is YAML; words that mean themselves need no quotation marks."""
    if isinstance(value, list):
        return "".join(f"\n-{_yaml(each)}" for each in value)
    is_word = re.fullmatch(r"[A-Za-z][\w./-]*", value, re.ASCII) and value.lower() not in _YAML_WORDS
    return f" {value}" if is_word else " " + json.dumps(value, ensure_ascii=False)


_YAML_WORDS = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")  # "no" is also Norwegian


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _cell(text: str) -> str:
    """Text in a cell of a table."""
    return _plain(str(text)) or " "
