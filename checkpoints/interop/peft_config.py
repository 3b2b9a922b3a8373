"""Reads PEFT's `adapter_config.json`: checks it, and finds which modules it adapts, at which rank and scale.

Names of modules are transformers', without PEFT's prefix: `model.layers.0.self_attn.q_proj`. Patterns match them as in
PEFT 0.21.
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from .headers import read_json, shown

CONFIG = "adapter_config.json"

UNSUPPORTED: dict[str, tuple] = {
    "bias": ("none", "all", "lora_only"),  # all three can be read: trained biases are tensors of the file
    "lora_bias": (False, None),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
}
"""Fields that ask for methods that camelid does not have, with their values that are accepted, the default first."""

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that change the base weights; such adapters cannot be loaded onto the original base."""

MEANINGLESS = (
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "peft_version", "auto_mapping"),
    *(
        "inference_mode",
        "fan_in_fan_out",
        "lora_dropout",
        "runtime_config",
        "megatron_config",
        "megatron_core",
        "qalora_group_size",
    ),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "init_lora_weights"),
)
"""Fields that do not change what trained adapters compute."""

LISTS = (list, str, type(None))
TYPES: dict[str, tuple[type, ...]] = {
    "r": (int,),
    "lora_alpha": (int, float),
    "use_rslora": (bool, type(None)),
    "use_dora": (bool, type(None)),
    "ensure_weight_tying": (bool, type(None)),
    "target_modules": LISTS,
    "exclude_modules": LISTS,
    "modules_to_save": (list, type(None)),
    "layers_to_transform": (list, int, type(None)),
    "layers_pattern": LISTS,
    "rank_pattern": (dict, type(None)),
    "alpha_pattern": (dict, type(None)),
    "trainable_token_indices": (list, dict, type(None)),
}
"""Fields that are read, and their types."""

REPEATS = 6
"""The largest number of repeats in a pattern; each multiplies the time to find that a name does not match."""

MOST_NAMES = 2_000
"""The largest number of names or patterns in a field; each is compared with each module of the network."""

LINEAR = r"model\.layers\.\d+\..*_proj"
"""Matches the modules that "all-linear" means in a LLaMA: all but the output head."""


class AdapterConfig:
    """The adapters that an `adapter_config.json` asks for, by module."""

    def __init__(self, file: epath.Path, fields: Mapping[str, Any]):
        """Checks the content `fields` of `file`. Raises ValueError for a field with a wrong value."""
        self.file, self.fields = file, fields
        self.rank_stabilized = bool(fields.get("use_rslora"))
        self.dora = bool(fields.get("use_dora"))
        self._check()
        self.alpha = float(fields.get("lora_alpha", 8))
        self._ranks = self._patterns("rank_pattern")
        self._alphas = self._patterns("alpha_pattern")

    def refuse(self, message: str) -> ValueError:
        """The error for this file, to be raised by the caller."""
        return ValueError(f"{self.file}: {message}")

    def _check(self) -> None:
        fields = self.fields
        for name, kinds in TYPES.items():
            value = fields.get(name)
            if name in fields and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
                raise self.refuse(f"{name} is {shown(value)}")
            if isinstance(value, list | dict) and len(value) > MOST_NAMES and name != "trainable_token_indices":
                raise self.refuse(f"{name} lists {len(value):,} names: give at most {MOST_NAMES:,}")
        for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
            if isinstance(fields.get(name), list) and not all(isinstance(x, str) for x in fields[name]):
                raise self.refuse(f"{name} is {shown(fields[name])}: names of modules are strings")
        layers = fields.get("layers_to_transform")
        if isinstance(layers, list) and not all(type(x) is int for x in layers):
            raise self.refuse(f"layers_to_transform is {shown(layers)}: layers are integers")
        for name, value in (("r", fields.get("r", 8)), ("lora_alpha", fields.get("lora_alpha", 8))):
            if not _is_positive(value):
                raise self.refuse(f"{name} is {shown(value)}: give a number over 0")

    def _patterns(self, name: str) -> list[tuple[re.Pattern, float]]:
        found = []
        for pattern, value in (self.fields.get(name) or {}).items():
            if not _is_positive(value) or (name == "rank_pattern" and type(value) is not int):
                raise self.refuse(f"{name} says {shown(value)} for {shown(pattern)}: give a number over 0")
            found.append((self._pattern(rf"(.*\.)?({pattern})", name), value))
        return found

    def _pattern(self, pattern: str, name: str) -> re.Pattern:
        """Compiles a pattern of the field `name`.

        Raises:
          ValueError: it is no regular expression, or could take endless time on a name that it does not match.
        """
        try:
            found = _compiled(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise self.refuse(f"{name} has {shown(pattern)}, which is no regular expression ({error})") from None
        if found is None:
            raise self.refuse(
                f"{name} has {shown(pattern)}, which has more repeats than names of modules need: simplify it"
            )
        return found

    def targets(self, module: str) -> bool:
        """Whether a module has adapters."""
        fields = self.fields
        if self._is_listed("exclude_modules", module):
            return False
        for saved in fields.get("modules_to_save") or []:
            if self._pattern(rf"(^|.*\.){saved}($|\..*)", "modules_to_save").match(module):
                return False
        if fields.get("target_modules") == "all-linear":
            return re.fullmatch(LINEAR, module) is not None
        if not self._is_listed("target_modules", module):
            return False
        return not isinstance(fields["target_modules"], list) or self._is_in_chosen_layers(module)

    def _is_listed(self, name: str, module: str) -> bool:
        listed = self.fields.get(name)
        if isinstance(listed, str):
            return bool(listed) and self._pattern(listed, name).fullmatch(module) is not None
        return any(module == end or module.endswith(f".{end}") for end in listed or [])

    def _is_in_chosen_layers(self, module: str) -> bool:
        layers = self.fields.get("layers_to_transform")
        if layers is None or layers == []:
            return True
        patterns = self.fields.get("layers_pattern") or r"[^.]*"
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            found = self._pattern(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", "layers_pattern").match(module)
            if found:
                return int(found["idx"]) in (layers if isinstance(layers, list) else [layers])
        return False

    def is_saved(self, module: str) -> bool:
        """Whether a module was trained whole."""
        return any(module.endswith(end) for end in self.fields.get("modules_to_save") or [])

    def rank(self, module: str) -> int:
        """The rank of a module's adapter."""
        return int(next((r for pattern, r in self._ranks if pattern.fullmatch(module)), self.fields.get("r", 8)))

    def scale(self, module: str) -> float:
        """The factor of the product of a module's two adapter matrices."""
        alpha = next((a for pattern, a in self._alphas if pattern.fullmatch(module)), self.alpha)
        rank = self.rank(module)
        return alpha / (rank**0.5 if self.rank_stabilized else rank)

    def new_tokens(self) -> list[int]:
        """The ids whose rows of the embedding were trained, where not the whole embedding was."""
        said = self.fields.get("trainable_token_indices") or []
        if isinstance(said, dict):
            if set(said) - {"embed_tokens"}:
                raise self.refuse(f"trainable_token_indices is {shown(said)}; camelid reads only embed_tokens")
            said = said["embed_tokens"]
        if not isinstance(said, list) or not all(type(i) is int and i >= 0 for i in said) or len({*said}) < len(said):
            raise self.refuse(f"trainable_token_indices is {shown(said)}: give a list of ids")
        return said


@functools.lru_cache(maxsize=4 * MOST_NAMES)
def _compiled(pattern: str) -> re.Pattern | None:
    """Compiles a pattern; None if matching could take endless time: repeated groups, back references, many repeats."""
    bare = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "x", pattern)
    if re.search(r"\)[*+{]", bare) or re.search(r"\\[1-9]|\(\?P=", pattern):
        return None
    return re.compile(pattern) if len(re.findall(r"[*+{]", bare)) <= REPEATS and len(pattern) < 10_000 else None


def _is_positive(value: Any) -> bool:
    """Whether a value is a finite number above 0 (and below 1e9)."""
    return type(value) in (int, float) and 0 < value < 1e9 and math.isfinite(value)


def read(path: epath.Path) -> AdapterConfig:
    """Reads the adapter config in a folder. Raises ValueError for another method than LoRA or an unsupported field."""
    file = path / CONFIG
    fields = dict(read_json(file))
    if fields.get("peft_type") != "LORA":
        raise ValueError(f"{file}: peft_type is {shown(fields.get('peft_type'))}; camelid reads only LORA")
    for name, allowed in UNSUPPORTED.items():
        if fields.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{file}: {name} is {shown(fields[name])}; camelid reads only {allowed[0]!r}")
    begin = fields.get("init_lora_weights")
    if str(begin).lower().startswith(CHANGES_BASE):
        raise ValueError(
            f"{file}: init_lora_weights is {shown(begin)}, which changed the base weights, so the adapters do not fit "
            "the original base: save them again with path_initial_model_for_weight_conversion"
        )
    known = {*UNSUPPORTED, *MEANINGLESS, *TYPES}
    if unknown := [name for name, value in fields.items() if name not in known and value not in (None, False, [], {})]:
        raise ValueError(f"{file}: {unknown[0]:.200} is {shown(fields[unknown[0]])}, and camelid knows no such field")
    return AdapterConfig(file, fields)
