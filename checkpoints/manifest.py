"""What a checkpoint says of itself beside its arrays: the config, the tokenizer, the chat template, versions."""

import importlib.metadata
import json

import ml_collections

from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer


def describe(
    config: ml_collections.ConfigDict, *, tokenizer=None, template=None, data_fingerprint: str | None = None
) -> dict:
    """The manifest of a run: JSON-able, without the step, which `Checkpoints.save` adds."""
    return {
        "config": json.loads(config.to_json()),
        "tokenizer": describe_tokenizer(tokenizer),
        "template": describe_template(template),
        "data_fingerprint": data_fingerprint,
        "versions": {name: importlib.metadata.version(name) for name in ("camelid", "jax", "flax")},
    }


def describe_tokenizer(tokenizer: Tokenizer | None) -> dict | None:
    """What a manifest says of a tokenizer."""
    if tokenizer is None:
        return None
    return {
        "fingerprint": tokenizer.fingerprint,
        "model_file": tokenizer.model_fingerprint,
        "adds_bos": tokenizer.adds_bos,
    }


def describe_template(template: ChatTemplate | None) -> dict[str, str] | None:
    """What a manifest says of a chat template."""
    return template and {"name": template.name, "source": template.source}


def same_tokenizer(saved: dict | None, described: dict | None) -> bool:
    """Whether a manifest means this tokenizer. Older ones say the hash of the model file and nothing else."""
    if saved is None or described is None or "adds_bos" in saved:
        return saved == described
    return saved["fingerprint"] == described["model_file"]
