"""What every model on disk has in common, whatever its format."""

import abc
import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from etils import epath

from ..data.templates import ChatTemplate
from ..data.tokenizer import HUGGINGFACE_FILE, SENTENCEPIECE_FILE, Tokenizer
from ..errors import UserError
from ..model.config import LlamaConfig
from ..model.storage import Rules
from .console import tell
from .interop import tensors
from .interop.generation_config import GenerationDefaults
from .interop.headers import is_named
from .paths import absolute_path, file_record

WEIGHTS = ("params", "ema")
"""The kinds of parameters that a run keeps: those of its last step, and their moving average."""

OTHER_DTYPES = {
    "float16": "give --dtype=bfloat16 or float32",
    "bfloat16": "give --dtype=float32",
    "float32": "leave --dtype out",
}


class Checkpoint(abc.ABC):
    """A model on disk, opened by `checkpoints.open`.

    Its files are read when something of them is asked for, and once. Arrays stay on disk until `load_params` or
    `tensors` reads them.
    """

    format: ClassVar[str]
    """camelid, huggingface, meta, gguf or peft."""
    name: str
    """The path as it was given, for messages."""
    path: epath.Path
    """The absolute path, which means the same wherever a later run is started from."""
    config: LlamaConfig
    """The network."""
    tokenizer: Tokenizer | None
    """The tokenizer that belongs to the model; None where it has none."""
    template: ChatTemplate | None
    """The chat template that belongs to the model; None where it has none."""
    generation: GenerationDefaults
    """What the model says of how its answers are drawn, and of what ends them."""
    kind: str | None = None
    """None for a language model, "scalar" for a reward or cost model, "difference" for a difference of two models."""
    heads: int = 1
    """How many numbers a scalar model gives."""
    step: int | None = None
    """The step of the run that wrote the checkpoint; None for other formats."""

    def __init__(self, path: epath.PathLike, weights: str | None = None):
        self.name = str(path)
        self.path = absolute_path(path)
        self._asked = weights
        if weights is not None and weights not in WEIGHTS:
            raise UserError(f"weights {weights!r}: give params or ema")

    @property
    def keeps_average(self) -> bool:
        """Whether the checkpoint holds a moving average of its parameters beside them."""
        return False

    @functools.cached_property
    def weights(self) -> str:
        """Which parameters are read: "params" or "ema", as asked for at opening; by default the moving average where
        there is one, which is what the run's evaluations measured. The choice is told."""
        if not self.keeps_average:
            if self._asked == "ema":
                raise UserError(f"{self.name} has no 'ema', only params: its run kept no moving average")
            return "params"
        chosen = self._asked or "ema"
        words = {"ema": "the moving average of its parameters (ema)"}
        words["params"] = "the parameters of its last step (params)"
        other = next(name for name in WEIGHTS if name != chosen)
        _tell_once(f"{self.name}: {words[chosen]}, not {words[other]}")
        return chosen

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        """What a model that is made from this one says of it: path, format, and the name, size and SHA-256 of each
        file, all of which is read for that."""
        return {"path": str(self.path), "format": self.format, "files": [file_record(file) for file in self._files()]}

    @functools.cached_property
    def identity(self) -> list:
        """[path, step, hash, ...]: equal for two checkpoints only if they hold the same parameters."""
        return [str(self.path), None, *(file["sha256"] for file in self.description["files"])]

    def _files(self) -> Iterable[epath.Path]:
        """The files whose hashes identify the checkpoint; none for a run, which its step and checksums identify."""
        return ()

    @abc.abstractmethod
    def load_params(self, abstract: Any, *, some: bool = False, quantize: Rules | None = None) -> Any:
        """The parameters in the shapes, dtypes and shardings of `abstract`, a tree of `jax.ShapeDtypeStruct`.

        some: the checkpoint may hold more than what is asked for. quantize: how matrices are stored in memory, as
        `model.storage.quantize` takes it. Raises UserError with the paths that differ where the checkpoint holds other
        parameters.
        """

    @abc.abstractmethod
    def matrix(self, path: str, layer: int | None) -> np.ndarray:
        """One parameter by its path, or one layer of a stack of them."""

    @abc.abstractmethod
    def _tensors(self) -> Iterator[np.ndarray]:
        """Every parameter, a layer at a time, in the order of `tensors.places` and the dtype of the file."""

    def tensors(self, dtype: str | None = None) -> Iterator[np.ndarray]:
        """Every parameter, a layer at a time, in the order of `interop.tensors.places(config, HUGGING_FACE)`.

        dtype: default, that of `config.param_dtype`. Raises UserError for a number that the dtype cannot hold.
        """
        dtype = jnp.dtype(dtype or self.config.param_dtype)
        places = tensors.places(self.config, tensors.HUGGING_FACE)
        for place, value in zip(places, self._tensors(), strict=True):
            yield value if value.dtype == dtype else _cast(value, dtype, f"{self.name}: {place.name}")


def _cast(value: np.ndarray, dtype: Any, where: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = value.astype(dtype)
    if not np.isfinite(cast.astype(np.float32)).all():
        raise UserError(f"{where} {excess(value)}, which {dtype.name} cannot hold: {OTHER_DTYPES[dtype.name]}")
    return cast


def excess(value: np.ndarray) -> str:
    """What a tensor has that a narrower type cannot hold, in words."""
    value = value.astype(np.float32)
    if count := int((~np.isfinite(value)).sum()):
        return f"already has {count:,} number(s) that are infinite or no number"
    return f"reaches {np.abs(value).max():.6g}"


def check_rows(tokenizer: Tokenizer | None, rows: int, name: str, remedy: str) -> None:
    """Raises UserError where a tokenizer has ids for which an embedding of `rows` rows has none.

    name: of the model, for the message. remedy: what adds rows, with `{}` in place of their number.
    """
    ids = tokenizer.vocab_size if tokenizer is not None else 0
    if ids <= rows:
        return
    pieces = [tokenizer.piece(i) for i in range(rows, ids) if tokenizer.piece(i)]
    named = ", ".join(map(repr, pieces[:3])) + (", ..." if pieces[3:] else "")
    raise UserError(
        f"{name}: the tokenizer has {ids:,} ids, the embedding {rows:,} rows, none for {named}: {remedy.format(ids)} "
        "adds rows, each the mean of the others"
    )


def tokenizer_in(folder: epath.Path) -> Tokenizer | None:
    """The tokenizer of a folder; None where it has no file of one."""
    files = (folder / HUGGINGFACE_FILE, folder / SENTENCEPIECE_FILE)
    return Tokenizer.load(folder) if any(map(is_named, files)) else None


def template_of(tokenizer: Tokenizer | None, name: str) -> ChatTemplate | None:
    """The chat template that a tokenizer's files bring along; None where they bring none."""
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
