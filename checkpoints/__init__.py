"""A model on disk is an object: `checkpoints.open(path)`, whatever its format.

checkpoint = checkpoints.open("runs/sft")     # a run, one of its checkpoints, or RUN@best
checkpoint = checkpoints.open("model.gguf")   # or a folder of Hugging Face's, Meta's or PEFT's
checkpoint.config, checkpoint.tokenizer, checkpoint.template
params = checkpoint.load_params(abstract)     # in the shapes and shardings that are asked for
"""

from etils import epath

from ..data.tokenizer import Tokenizer
from ..errors import UserError
from . import proof, reading
from .adapters import AdapterCheckpoint, PEFTAdapters, RunAdapters
from .checkpoint import Checkpoint
from .foreign import ForeignCheckpoint, GGUFCheckpoint, HuggingFaceCheckpoint, MetaCheckpoint
from .interop import gguf_files, huggingface, meta, peft
from .paths import absolute_path
from .runs import RunCheckpoint

__all__ = [
    "AdapterCheckpoint",
    "Checkpoint",
    "ForeignCheckpoint",
    "RunCheckpoint",
    "absolute_path",
    "is_foreign",
    "open",
    "open_tokenizer",
]

FOREIGN = ((gguf_files.is_file, GGUFCheckpoint), (huggingface.is_folder, HuggingFaceCheckpoint))
FOREIGN += ((meta.is_folder, MetaCheckpoint),)


def open(path: epath.PathLike, weights: str | None = None, *, base: epath.PathLike | None = None) -> Checkpoint:
    """The model at a path.

    Args:
      path: a run directory (its latest checkpoint), RUN@best, one checkpoint, a folder of Hugging Face's, Meta's or
        PEFT's, or a GGUF file.
      weights: "params", or "ema" for the moving average of a run that kept one. Default: "ema" where there is one.
      base: the model that adapters at `path` are put on, in place of the one that they name.

    Raises:
      UserError: no model at the path, a damaged one, or a `base` for a whole model.
    """
    found = _open(path, weights, base)
    if weights is not None:
        _ = found.weights  # refused here where the checkpoint has no moving average
    return found


def _open(path: epath.PathLike, weights: str | None, base: epath.PathLike | None) -> Checkpoint:
    where = epath.Path(path).expanduser()
    if peft.is_folder(where):
        return PEFTAdapters(path, open, weights, base)
    foreign = next((kind for is_one, kind in FOREIGN if is_one(where)), None)
    folder = reading.find(path) if foreign is None else None
    if folder is not None and "adapter" in reading.manifest_of(folder):
        return RunAdapters(path, folder, open, weights, base)
    if base is not None:
        raise UserError(f"{path}: a whole model and no adapters, which alone are put on a base: leave --base out")
    return RunCheckpoint(path, folder, weights) if foreign is None else foreign(path, weights)


def is_foreign(path: epath.PathLike) -> bool:
    """Whether there is a checkpoint of a format that is not camelid's at a path, without opening it."""
    where = epath.Path(path).expanduser()
    return peft.is_folder(where) or any(is_one(where) for is_one, _ in FOREIGN)


def open_tokenizer(path: epath.PathLike) -> Tokenizer:
    """The tokenizer of a tokenizer's own file or folder, or of a model. UserError where there is neither."""
    where = epath.Path(path).expanduser()
    is_run = (where / "checkpoints").exists() or (where / proof.ORBAX_FILE).exists()
    if not (is_run or is_foreign(path)):
        return Tokenizer.load(where)
    tokenizer = open(path).tokenizer
    if tokenizer is None:
        raise UserError(f"{path}: a model without a tokenizer")
    return tokenizer
