"""The manifest of a checkpoint: the metadata beside its arrays (config, tokenizer, chat template, versions)."""

import importlib.metadata
import json

import ml_collections

from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..settings.functions import code_of


def describe(
    config: ml_collections.ConfigDict, *, tokenizer=None, template=None, data_fingerprint: str | None = None
) -> dict:
    """The manifest of a run's checkpoints, without the step, which `Checkpoints.save` adds.

    Args:
      config: the run's whole config.
      tokenizer: the run's tokenizer, or None.
      template: the run's chat template, or None.
      data_fingerprint: the hash of the training data; None where a run has no data.

    Returns:
      A dict that JSON can hold.
    """
    return {
        "config": json.loads(config.to_json()),
        "code": code_of(config),
        "tokenizer": describe_tokenizer(tokenizer),
        "template": describe_template(template),
        "data_fingerprint": data_fingerprint,
        "versions": {name: importlib.metadata.version(name) for name in ("camelid", "jax", "flax")},
    }


def describe_tokenizer(tokenizer: Tokenizer | None) -> dict | None:
    """A manifest's record of a tokenizer: its hash, the hash of its model file, whether it adds bos; None for none."""
    if tokenizer is None:
        return None
    return {
        "fingerprint": tokenizer.fingerprint,
        "model_file": tokenizer.model_fingerprint,
        "adds_bos": tokenizer.adds_bos,
    }


def describe_template(template: ChatTemplate | None) -> dict[str, str] | None:
    """A manifest's record of a chat template: its name and its jinja source."""
    return template and {"name": template.name, "source": template.source}


def same_tokenizer(saved: dict | None, described: dict | None) -> bool:
    """Whether the tokenizer record `saved` in a manifest matches the record `described`.

    Manifests of older versions hold only the hash of the model file, so only that hash is compared.
    """
    if saved is None or described is None or "adds_bos" in saved:
        return saved == described
    return saved["fingerprint"] == described["model_file"]
