"""The interface of a model on disk, which every checkpoint format implements."""

import abc
import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from etils import epath

from ..data import hub
from ..data.console import tell
from ..data.templates import ChatTemplate
from ..data.tokenizer import HUGGINGFACE_FILE, SENTENCEPIECE_FILE, Tokenizer
from ..errors import UserError
from ..model.config import LlamaConfig
from ..model.storage import Rules
from .interop import tensors
from .interop.generation_config import GenerationDefaults
from .interop.headers import exists_or_broken_link
from .paths import absolute_path, file_record

WEIGHTS = ("params", "ema")
"""The parameters that a run keeps: "params" are those of its last step, "ema" their moving average."""

OTHER_DTYPES = {
    "float16": "give --dtype=bfloat16 or float32",
    "bfloat16": "give --dtype=float32",
    "float32": "leave --dtype out",
}
"""What to type instead of a dtype that cannot hold the numbers of a checkpoint."""


class Checkpoint(abc.ABC):
    """A model on disk, opened by `checkpoints.open`.

    Each file is read once, on first use. Arrays stay on disk until `load_params` or `tensors` reads them.
    """

    format: ClassVar[str]
    """The name of the format: camelid, huggingface, meta, gguf or peft."""
    name: str
    """The path as the user gave it, or the name of a model on the Hugging Face Hub, for messages."""
    path: epath.Path
    """The absolute path, so that a run started from another directory finds the same files."""
    config: LlamaConfig
    """The configuration of the network."""
    tokenizer: Tokenizer | None
    """The tokenizer stored with the model; None if there is none."""
    template: ChatTemplate | None
    """The chat template stored with the model; None if there is none."""
    generation: GenerationDefaults
    """The model's recommended sampling settings, and the tokens and strings that end its answers."""
    kind: str | None = None
    """None for a language model, "scalar" for a reward or cost model, "difference" for a difference of two models."""
    heads: int = 1
    """The number of outputs of a scalar model."""
    step: int | None = None
    """The training step at which a run saved the checkpoint; None for other formats."""

    def __init__(self, path: epath.PathLike, weights: str | None = None):
        self.name = hub.shown(path)
        self.path = absolute_path(path)
        self._asked = weights
        if weights is not None and weights not in WEIGHTS:
            raise UserError(f"weights {weights!r}: give params or ema")

    @property
    def address(self) -> str:
        """What opens the checkpoint from any folder: its absolute path, or hf:owner/name@commit of one on the Hub."""
        found = hub.Snapshot.of(self.path)
        return str(self.path) if found is None else found.address

    @property
    def title(self) -> str:
        """The name of the model without its folder or owner, such as for its chat template."""
        found = hub.Snapshot.of(self.path)
        return epath.Path(self.path if found is None else found.name).name

    @property
    def keeps_average(self) -> bool:
        """Whether the checkpoint also holds a moving average of its parameters."""
        return False

    @functools.cached_property
    def weights(self) -> str:
        """The parameters that are read, "params" or "ema": the choice at opening, else the moving average if kept.

        The moving average is the default because the run's evaluations measured it. A line reports the choice.
        """
        if not self.keeps_average:
            if self._asked == "ema":
                raise UserError(f"{self.name} has no 'ema': its run kept no moving average; give weights params")
            return "params"
        chosen = self._asked or "ema"
        words = {"ema": "the moving average of its parameters (ema)"}
        words["params"] = "the parameters of its last step (params)"
        other = next(name for name in WEIGHTS if name != chosen)
        _tell_once(f"{self.name}: {words[chosen]}, not {words[other]}")
        return chosen

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        """The record of this checkpoint in the manifest of a model that is made from it.

        It has "path", which is the `address`, "format" and "files": name, size and SHA-256 of each file. Computing it
        reads every file.
        """
        return {"path": self.address, "format": self.format, "files": [file_record(file) for file in self._files()]}

    @functools.cached_property
    def identity(self) -> list:
        """[address, step, hash, ...]. Two checkpoints with equal step and hashes hold the same parameters."""
        return [self.address, None, *(file["sha256"] for file in self.description["files"])]

    def _files(self) -> Iterable[epath.Path]:
        """The files whose hashes identify the checkpoint; empty for a run, whose step and checksums identify it."""
        return ()

    @abc.abstractmethod
    def load_params(self, abstract: Any, *, some: bool = False, quantize: Rules | None = None) -> Any:
        """Loads the parameters onto the devices.

        Args:
          abstract: tree of `jax.ShapeDtypeStruct` with the shapes, dtypes and shardings to load.
          some: whether the checkpoint may hold parameters that `abstract` does not have.
          quantize: rules for how matrices are stored in memory, as `model.storage.quantize` takes them; None keeps
            arrays.

        Returns:
          The tree of arrays; a quantised matrix is a dict of its parts.

        Raises:
          UserError: the checkpoint holds other parameters; the message lists the paths that differ.
        """

    @abc.abstractmethod
    def matrix(self, path: str, layer: int | None) -> np.ndarray:
        """One parameter by its path ("layers/attention/q"); `layer` selects one layer of a stacked parameter."""

    @abc.abstractmethod
    def _tensors(self) -> Iterator[np.ndarray]:
        """Yields each parameter's array, without its name, in the order of `tensors.places` and in the file's dtype."""

    def tensors(self, dtype: str | None = None) -> Iterator[np.ndarray]:
        """Yields every parameter, a layer at a time, in the order of `interop.tensors.places(config, HUGGING_FACE)`.

        Args:
          dtype: of the yielded arrays; default: `config.param_dtype`.

        Raises:
          UserError: a number is too large for the dtype.
        """
        dtype = jnp.dtype(dtype or self.config.param_dtype)
        places = tensors.places(self.config, tensors.HUGGING_FACE)
        for place, value in zip(places, self._tensors(), strict=True):
            yield value if value.dtype == dtype else _cast(value, dtype, f"{self.name}: {place.name}")


def _cast(value: np.ndarray, dtype: Any, where: str) -> np.ndarray:
    """Casts a tensor. Raises UserError, with its name `where`, if a number is too large for the dtype."""
    with np.errstate(over="ignore"):
        cast = value.astype(dtype)
    if not np.isfinite(cast.astype(np.float32)).all():
        raise UserError(f"{where} {excess(value)}, which {dtype.name} cannot hold: {OTHER_DTYPES[dtype.name]}")
    return cast


def excess(value: np.ndarray) -> str:
    """Describes the numbers of a tensor that a narrower dtype cannot hold, for a message."""
    value = value.astype(np.float32)
    if count := int((~np.isfinite(value)).sum()):
        return f"already has {count:,} number(s) that are infinite or NaN"
    return f"reaches {np.abs(value).max():.6g}"


def check_rows(tokenizer: Tokenizer | None, rows: int, name: str, remedy: str) -> None:
    """Raises UserError if a tokenizer has ids beyond the rows of the embedding.

    Args:
      tokenizer: the tokenizer; None passes.
      rows: rows of the embedding.
      name: name of the model, for the message.
      remedy: the option or command that adds rows, with `{}` in place of their number.
    """
    ids = tokenizer.vocab_size if tokenizer is not None else 0
    if ids <= rows:
        return
    pieces = [tokenizer.piece(i) for i in range(rows, ids) if tokenizer.piece(i)]
    named = ", ".join(map(repr, pieces[:3])) + (", ..." if pieces[3:] else "")
    raise UserError(
        f"{name}: the tokenizer has {ids:,} ids, but the embedding has {rows:,} rows, none for {named}: "
        f"{remedy.format(ids)} adds rows, each the mean of the others"
    )


def tokenizer_in(folder: epath.Path) -> Tokenizer | None:
    """Loads the tokenizer in a folder; None if the folder has no tokenizer file."""
    files = (folder / HUGGINGFACE_FILE, folder / SENTENCEPIECE_FILE)
    return Tokenizer.load(folder) if any(map(exists_or_broken_link, files)) else None


def template_of(tokenizer: Tokenizer | None, name: str) -> ChatTemplate | None:
    """The chat template that a tokenizer's files contain, as a ChatTemplate with the name `name`; None without one."""
    if tokenizer is None or tokenizer.chat_template is None:
        return None
    return ChatTemplate(name, tokenizer.chat_template)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns a ValueError of model/ or interop/, which is about the user's files, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from None


_tell_once = functools.lru_cache(maxsize=1024)(tell)
