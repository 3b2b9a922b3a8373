"""Opens a model on disk, whatever its format: `checkpoints.open(path)` returns a `Checkpoint`.

checkpoint = checkpoints.open("runs/sft")     # a run directory, one checkpoint of a run, RUN@best or RUN@500
checkpoint = checkpoints.open("model.gguf")   # or a folder in the format of Hugging Face, Meta or PEFT
checkpoint = checkpoints.open("owner/name")   # or a model on the Hugging Face Hub
checkpoint.config, checkpoint.tokenizer, checkpoint.template
params = checkpoint.load_params(abstract)     # in the shapes, dtypes and shardings of `abstract`
"""

from etils import epath

from ..data import hub
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from . import proof, reading
from .adapters import AdapterCheckpoint, PEFTAdapters, RunAdapters
from .checkpoint import Checkpoint
from .foreign import ForeignCheckpoint, GGUFCheckpoint, HuggingFaceCheckpoint, MetaCheckpoint
from .hub_files import model_files
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


def open(
    path: epath.PathLike,
    weights: str | None = None,
    *,
    base: epath.PathLike | None = None,
    step: int | str | None = None,
) -> Checkpoint:
    """Opens the model at a path; arrays stay on disk until they are read.

    Args:
      path: a run directory (its latest checkpoint is opened), RUN@best, RUN@STEP, one checkpoint, a GGUF file, a folder
        in the format of Hugging Face, Meta or PEFT, or the name of a model on the Hugging Face Hub (`data/hub.py`).
      weights: "params" for the parameters of the last step, "ema" for their moving average. None takes the moving
        average if the run kept one.
      base: path of the base model for adapters at `path`; None takes the base that the adapters name.
      step: which checkpoint of the run at `path` is opened: that of a step, such as 500, or "best", the one that
        `config.checkpoint.best` keeps. None takes the latest one.

    Raises:
      UserError: the path holds no model or a damaged one, the run has no checkpoint of the step, there is no moving
        average to read, or `base` was given for a checkpoint that holds no adapters.
    """
    path = reading.at_step(path, step)
    found = _open(hub.local_path(path, model_files), weights, base)
    if weights is not None:
        _ = found.weights  # raises here, at opening, where the run kept no moving average
    return found


def _open(path: epath.PathLike, weights: str | None, base: epath.PathLike | None) -> Checkpoint:
    """Opens a path with the class of its format; the arguments are those of `open`."""
    where = epath.Path(path).expanduser()
    if peft.is_folder(where):
        return PEFTAdapters(path, open, weights, base)
    foreign = next((kind for is_one, kind in FOREIGN if is_one(where)), None)
    folder = reading.find(path) if foreign is None else None
    if folder is not None and "adapter" in reading.manifest_of(folder):
        return RunAdapters(path, folder, open, weights, base)
    if base is not None:
        raise UserError(f"{path} is a whole model, and --base is for adapters only: leave --base out")
    return RunCheckpoint(path, folder, weights) if foreign is None else foreign(path, weights)


def is_foreign(path: epath.PathLike) -> bool:
    """Whether a path holds a checkpoint in another format than camelid's; nothing is opened."""
    where = epath.Path(path).expanduser()
    return peft.is_folder(where) or any(is_one(where) for is_one, _ in FOREIGN)


def open_tokenizer(path: epath.PathLike) -> Tokenizer:
    """Loads the tokenizer at a path: a tokenizer's file or folder, or a model that has one.

    Raises:
      UserError: the path holds neither a tokenizer nor a model with one.
    """
    hub.refuse_address(path)
    where = epath.Path(path).expanduser()
    on_hub = hub.name_of(path) is not None
    if on_hub and where.suffix == ".gguf":
        path = where = hub.local_path(path, model_files)
    elif on_hub:
        return Tokenizer.load(path)
    is_run = (where / "checkpoints").exists() or (where / proof.ORBAX_FILE).exists() or bool(reading.run_and_step(path))
    if not (is_run or is_foreign(path)):
        return Tokenizer.load(where)
    tokenizer = open(path).tokenizer
    if tokenizer is None:
        raise UserError(f"{path} is a model without a tokenizer: give the path of a tokenizer")
    return tokenizer
