"""The leaf that somebody means by a name that no leaf has: "lr" and "learning_rate" mean "optim.lr".

Names are compared without "config." in front. What decides, in this order: an equal last part, a last part that begins
with the given words, the table of synonyms, and closeness of spelling.
"""

import difflib
from collections.abc import Iterable

SYNONYMS: dict[str, tuple[str, ...]] = {
    "lr": ("optim.lr",),
    "learning_rate": ("optim.lr",),
    "max_lr": ("optim.lr",),
    "peak_lr": ("optim.lr",),
    "min_lr": ("schedule.final",),
    "min_lr_ratio": ("schedule.final",),
    "optimizer": ("optim.name",),
    "optimiser": ("optim.name",),
    "optim": ("optim.name",),
    "beta1": ("optim.b1",),
    "beta2": ("optim.b2",),
    "betas": ("optim.b1", "optim.b2"),
    "adam_beta1": ("optim.b1",),
    "adam_beta2": ("optim.b2",),
    "adam_epsilon": ("optim.eps",),
    "epsilon": ("optim.eps",),
    "wd": ("optim.weight_decay",),
    "grad_clip": ("optim.clip_norm",),
    "max_grad_norm": ("optim.clip_norm",),
    "gradient_clip": ("optim.clip_norm",),
    "gradient_clip_val": ("optim.clip_norm",),
    "grad_accum": ("optim.accumulate",),
    "gradient_accumulation": ("optim.accumulate",),
    "gradient_accumulation_steps": ("optim.accumulate",),
    "grad_accum_steps": ("optim.accumulate",),
    "freeze": ("optim.frozen",),
    "scheduler": ("schedule.name",),
    "lr_scheduler": ("schedule.name",),
    "lr_scheduler_type": ("schedule.name",),
    "lr_schedule": ("schedule.name",),
    "warmup": ("schedule.warmup_percent", "schedule.warmup_steps"),
    "warmup_steps": ("schedule.warmup_steps",),
    "warmup_ratio": ("schedule.warmup_percent",),
    "lr_warmup_steps": ("schedule.warmup_steps",),
    "num_warmup_steps": ("schedule.warmup_steps",),
    "steps": ("total_steps",),
    "max_steps": ("total_steps",),
    "num_steps": ("total_steps",),
    "train_steps": ("total_steps",),
    "iterations": ("total_steps",),
    "max_iters": ("total_steps",),
    "epochs": ("total_epochs",),
    "num_epochs": ("total_epochs",),
    "num_train_epochs": ("total_epochs",),
    "tokens": ("total_tokens",),
    "batch_size": ("data.batch_size",),
    "train_batch_size": ("data.batch_size",),
    "per_device_train_batch_size": ("data.batch_size",),
    "per_device_batch_size": ("data.batch_size",),
    "global_batch_size": ("data.batch_size",),
    "micro_batch_size": ("data.batch_size", "optim.accumulate"),
    "bs": ("data.batch_size",),
    "max_length": ("data.seq_len", "data.max_prompt_tokens"),
    "max_seq_length": ("data.seq_len", "data.max_prompt_tokens"),
    "max_seq_len": ("data.seq_len", "data.max_prompt_tokens"),
    "seq_length": ("data.seq_len", "data.max_prompt_tokens"),
    "sequence_length": ("data.seq_len", "data.max_prompt_tokens"),
    "block_size": ("data.seq_len", "data.max_prompt_tokens"),
    "context_length": ("data.seq_len", "model.max_len"),
    "max_position_embeddings": ("model.max_len",),
    "max_prompt_length": ("data.max_prompt_tokens",),
    "max_completion_length": ("rollout.max_tokens",),
    "max_tokens": ("rollout.max_tokens",),
    "max_new_tokens": ("rollout.max_tokens",),
    "num_generations": ("rollout.n",),
    "group_size": ("rollout.n",),
    "dataset": ("data.mixture",),
    "datasets": ("data.mixture",),
    "train_file": ("data.mixture",),
    "model_name_or_path": ("init_from",),
    "model_name": ("init_from",),
    "pretrained": ("init_from",),
    "checkpoint_path": ("init_from",),
    "chat_template": ("template",),
    "prompt_template": ("template",),
    "system_prompt": ("data.system",),
    "bf16": ("model.dtype",),
    "fp16": ("model.dtype",),
    "precision": ("model.dtype",),
    "mixed_precision": ("model.dtype",),
    "torch_dtype": ("model.dtype",),
    "gradient_checkpointing": ("model.remat",),
    "hidden_size": ("model.dim",),
    "d_model": ("model.dim",),
    "n_embd": ("model.dim",),
    "intermediate_size": ("model.ffn_dim",),
    "num_layers": ("model.n_layers",),
    "n_layer": ("model.n_layers",),
    "num_hidden_layers": ("model.n_layers",),
    "num_heads": ("model.n_heads",),
    "n_head": ("model.n_heads",),
    "num_attention_heads": ("model.n_heads",),
    "num_key_value_heads": ("model.n_kv_heads",),
    "rank": ("lora.targets",),
    "r": ("lora.targets",),
    "lora_r": ("lora.targets",),
    "lora_rank": ("lora.targets",),
    "target_modules": ("lora.targets",),
    "lora_alpha": ("lora.alpha",),
    "lora_dropout": ("lora.dropout",),
    "use_dora": ("lora.dora",),
    "use_rslora": ("lora.rank_stabilized",),
    "load_in_4bit": ("lora.quantize",),
    "load_in_8bit": ("lora.quantize",),
    "ema": ("ema_decay",),
    "log_every": ("log_steps",),
    "log_interval": ("log_steps",),
    "logging_steps": ("log_steps",),
    "eval_every": ("eval_steps",),
    "eval_interval": ("eval_steps",),
    "save_every": ("checkpoint.every_steps",),
    "save_steps": ("checkpoint.every_steps",),
    "save_interval": ("checkpoint.every_steps",),
    "save_total_limit": ("checkpoint.keep_last",),
    "early_stop": ("early_stopping.patience",),
    "early_stopping_patience": ("early_stopping.patience",),
    "wandb_project": ("wandb.project",),
    "run_name": ("wandb.name",),
    "kl_coef": ("kl.coef", "grpo.kl_coef"),
    "init_kl_coef": ("kl.coef", "grpo.kl_coef"),
    "cliprange": ("ppo.clip", "grpo.clip"),
    "clip_range": ("ppo.clip", "grpo.clip"),
    "clip_eps": ("ppo.clip", "grpo.clip"),
    "vf_coef": ("ppo.value_coef",),
    "ent_coef": ("ppo.entropy_coef",),
    "gae_lambda": ("ppo.lam",),
    "ppo_epochs": ("ppo.epochs",),
    "loss_type": ("dpo.kind", "loss"),
    "tensor_parallel": ("mesh.tensor",),
    "tp": ("mesh.tensor",),
}
"""{name in other projects: the leaves that it may be here}, the likeliest one first."""

UNITS = ("steps", "epochs", "tokens", "percent", "seconds")
"""The units of lengths of time, which are the ends of their leaves' names."""

CLOSE = 0.75
"""The smallest share of equal letters (`difflib`) of a name that is suggested for a misspelt one."""

CLOSE_END = 0.8
"""That share where only the last parts of two names are compared."""

CLOSE_BESIDE = 0.6
"""That share where the last parts of two names of the same section are compared."""


def did_you_mean_leaf(given: str, leaves: Iterable[str]) -> str:
    """The end of an error message: the leaf that somebody means by a dotted name, or "" where nothing is near.

    Args:
      given: the name, with "config." or without, as the suggestion then has it.
      leaves: dotted names of leaves and sections.
    """
    prefix = "config." if given.startswith("config.") else ""
    found = nearest_leaf(given, leaves)
    return f"; did you mean {prefix}{found}?" if found else ""


def nearest_leaf(given: str, leaves: Iterable[str], *, only_known: bool = False) -> str | None:
    """The dotted name, without "config.", of the leaf that somebody means; None where nothing is near.

    Args:
      given: the name, with "config." or without.
      leaves: dotted names of leaves and sections.
      only_known: whether a leaf is found by its own words and synonyms alone, and not by closeness of spelling.
    """
    given = given.removeprefix("config.").replace("-", "_")
    names = [each.removeprefix("config.") for each in leaves]
    last = given.rpartition(".")[2].lower()
    if not last:
        return None
    means = synonyms(last, names)
    section = given.rpartition(".")[0]
    there = [name for name in names if section and name.rpartition(".")[0] == section]
    equal = [name for name in names if name.rpartition(".")[2] == last]
    partly = [name for name in there if f"_{last}" in name.rpartition(".")[2]] if len(last) > 2 else []
    stem, _, unit = given.rpartition("_")
    units = [name for name in names if unit in UNITS and name in {f"{stem}_{each}" for each in UNITS}]
    begun = [name for name in names if len(last) > 2 and name.rpartition(".")[2].startswith(f"{last}_")]
    for found in (partly, [name for name in means if name in equal], equal, means[:1], units, begun):
        if found:
            return _closest(given, found)
    if only_known:
        return None
    others = [name for name in names if not given.startswith(f"{name}.")]
    beside = {name.rpartition(".")[2]: name for name in there}
    if whole := difflib.get_close_matches(given, others, n=1, cutoff=CLOSE):
        return whole[0]
    ends = {name.rpartition(".")[2]: name for name in reversed(others)}
    for parts, cutoff in ((ends, CLOSE_END), (beside, CLOSE_BESIDE)):
        if near := difflib.get_close_matches(last, parts, n=1, cutoff=cutoff):
            return parts[near[0]]
    return None


def synonyms(word: str, leaves: Iterable[str]) -> list[str]:
    """The leaves that a word of other projects means, of those that a config has or could have in a section that is
    None."""
    there = {name.removeprefix("config.") for name in leaves}
    meant = SYNONYMS.get("_".join(word.lower().replace("-", "_").split()), ())
    return [name for name in meant if name in there or name.rpartition(".")[0] in there]


def _closest(given: str, names: list[str]) -> str:
    """The name that is spelt most like another one; of equally close ones the first."""
    return max(names, key=lambda name: difflib.SequenceMatcher(None, given, name).ratio())
