"""Which files of a repository on the Hugging Face Hub a model is read from; `data/hub.py` fetches them."""

import json
import re
from collections.abc import Callable, Sequence

from ..data.tokenizer import tokenizer_files
from ..errors import UserError
from .interop import generation_config, huggingface, meta, peft
from .interop.gguf_files import PART_NAME
from .interop.weight_files import INDEX, TORCH_INDEX, TORCH_WEIGHTS, WEIGHTS

STEP = re.compile(r"checkpoints/(?P<step>\d+)/.*", re.DOTALL)
"""Matches the files of a run's checkpoint in the run directory."""

META_PART = re.compile(r"consolidated\.\d+\.pth")
CARD = "README.md"
"""The model card, which names the model's licence."""

SHOWN = 5  # so many GGUF files are listed in an error message


def model_files(names: Sequence[str], asked: str | None, read: Callable[[str], bytes]) -> list[str]:
    """Chooses the files of a model, without those that no reader of camelid reads. See `data.hub.Choose`.

    A repository may hold adapters, a model in the format of Hugging Face or Meta, a run directory, of which the newest
    checkpoint is chosen, or GGUF files, of which the user has to name one.
    """
    if asked is not None:
        return _gguf_parts(names, asked)
    card = [name for name in names if name == CARD]
    if peft.CONFIG in names:
        weights = [file for file in (peft.WEIGHTS, peft.TORCH_WEIGHTS) if file in names][:1]
        return [peft.CONFIG, *weights, *tokenizer_files(names), *card]
    if huggingface.CONFIG in names and (weights := _weights(names, read)):
        more = [file for file in (generation_config.FILE,) if file in names]
        return [huggingface.CONFIG, *more, *weights, *tokenizer_files(names), *card]
    if meta.PARAMS in names and (weights := [name for name in names if META_PART.fullmatch(name)]):
        return [meta.PARAMS, *weights, *tokenizer_files(names), *card]
    if steps := {int(match["step"]) for name in names if (match := STEP.fullmatch(name))}:
        newest = f"checkpoints/{max(steps)}/"
        return [name for name in names if name.startswith((newest, "tokenizer/"))]
    files = sorted(name for name in names if name.endswith(".gguf"))
    listed = ", ".join(files[:SHOWN]) + (f" and {len(files) - SHOWN} more" if files[SHOWN:] else "")
    if files:
        raise UserError(f"has GGUF files: name one after the repository, OWNER/NAME/FILE: {listed}")
    raise UserError("has no model that camelid reads (a folder of Hugging Face, Meta or PEFT, a GGUF file, or a run)")


def _gguf_parts(names: Sequence[str], asked: str) -> list[str]:
    """The GGUF file that a user named; if it is a part of a split model, all parts."""
    if not asked.endswith(".gguf"):
        raise UserError(f"has {asked}, which is no model in itself: name the repository, a folder or a .gguf file")
    part = PART_NAME.fullmatch(asked)
    if part is None:
        return [asked]
    kin = re.compile(rf"{re.escape(part['stem'])}-\d{{5}}-of-{part['count']}\.gguf")
    return [name for name in names if kin.fullmatch(name)]


def _weights(names: Sequence[str], read: Callable[[str], bytes]) -> list[str]:
    """The files of the tensors that `weight_files` will look for: a single file, or an index and those it names."""
    for single, index in ((WEIGHTS, INDEX), (TORCH_WEIGHTS, TORCH_INDEX)):
        alone = [file for file in (single,) if file in names]
        if index in names:
            named = [file for file in _files_of_index(read(index)) if file in names and file not in alone]
            return [index, *named, *alone]
        if alone:
            return alone
    return []


def _files_of_index(index: bytes) -> list[str]:
    """The files that an index names; [] for an index that cannot be read, which its reader then refuses."""
    try:
        return sorted({str(file) for file in json.loads(index)["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
