"""Checkpoints in other formats than camelid's (Hugging Face, Meta, GGUF), which are read in place."""

import abc
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath

from ..data.tokenizer import SENTENCEPIECE_FILE, Tokenizer
from ..errors import UserError
from ..model.storage import Rules
from .checkpoint import Checkpoint, template_of, tokenizer_in, user_errors
from .interop import generation_config, gguf_files, huggingface, meta, tensors
from .interop.added_rows import with_rows
from .interop.generation_config import GenerationDefaults
from .interop.headers import exists_or_broken_link, missing_message
from .interop.tokenizer_gguf import tokenizer_files


class ForeignCheckpoint(Checkpoint):
    """A checkpoint in another format than camelid's."""

    source: tensors.TensorSource
    """The opened files: their config and tensors, which stay on disk."""

    def __init__(self, path: epath.PathLike, weights: str | None = None):
        super().__init__(path, weights)
        with user_errors():
            self._open(epath.Path(path).expanduser())
        self.config = self.source.config

    @abc.abstractmethod
    def _open(self, path: epath.Path) -> None:
        """Sets `source`, `tokenizer`, `template` and `generation` from the files at a path."""

    def _files(self) -> Iterable[epath.Path]:
        return self.source.files

    def load_params(self, abstract: Any, *, some: bool = False, quantize: Rules | None = None) -> Any:
        """Loads the parameters (see `Checkpoint.load_params`).

        `abstract` may have more rows of embedding and head than the file; each further row is the mean of the file's.
        """
        del some  # tensors that `abstract` does not have are never read
        with user_errors():
            return tensors.load_params(with_rows(self.source, _rows(abstract)), abstract, quantize)

    def matrix(self, path: str, layer: int | None) -> np.ndarray:
        places = {(place.path, place.layer): place for place in tensors.places(self.config, self.source.naming)}
        return self._read(places[path, layer])

    def _tensors(self) -> Iterator[np.ndarray]:
        return map(self._read, tensors.places(self.config, self.source.naming))

    def _read(self, place: tensors.Place) -> np.ndarray:
        return tensors.read_part(self.source, place, tuple(slice(None) for _ in place.shape))


class HuggingFaceCheckpoint(ForeignCheckpoint):
    """A folder in the format of transformers' `save_pretrained`."""

    format = "huggingface"

    def _open(self, path: epath.Path) -> None:
        self.source = huggingface.open_folder(path)
        self.tokenizer = tokenizer_in(path)
        self.template = template_of(self.tokenizer, self.title)
        self.generation = generation_config.read_folder(path, self.source.config.vocab_size)


class MetaCheckpoint(ForeignCheckpoint):
    """A folder in Meta's format: consolidated.*.pth and params.json.

    The tokenizer is in the folder itself or, as Meta published LLaMA 1, in the folder above.
    """

    format = "meta"

    def _open(self, path: epath.Path) -> None:
        self.source = meta.open_folder(path)
        files = [folder / SENTENCEPIECE_FILE for folder in (path, path.parent)]
        found = [file for file in files if exists_or_broken_link(file)]
        self.tokenizer = Tokenizer.load(found[0]) if found else None
        self.template, self.generation = None, GenerationDefaults()


class GGUFCheckpoint(ForeignCheckpoint):
    """A GGUF file, or one part of a model that is split into several."""

    format = "gguf"

    def _open(self, path: epath.Path) -> None:
        if not path.is_file():
            raise UserError(missing_message(path))
        self.source = gguf_files.open_file(path)
        fields = self.source.extra["fields"]
        has_none = fields.get("tokenizer.ggml.model", "none") in ("none", "no_vocab")  # llama.cpp's words
        self.tokenizer = None if has_none else Tokenizer(tokenizer_files(fields, str(path)), str(path))
        self.template = template_of(self.tokenizer, epath.Path(self.title).stem)
        self.generation = generation_config.read_gguf(fields, str(path), self.source.config.vocab_size)


def _rows(abstract: Any) -> int:
    """The vocabulary size that a tree of shapes asks for: rows of its embedding and head; 0 if it has neither."""
    table, head = abstract.get("embed", {}).get("embedding"), abstract.get("head", {}).get("kernel")
    return max(0 if table is None else table.shape[0], 0 if head is None else head.shape[-1])
