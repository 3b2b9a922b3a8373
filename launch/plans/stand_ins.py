"""What stands in for files in a plan: a tokenizer of the right size, a checkpoint of the right shapes, and no data."""

import functools
import json
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
from tokenizers import Tokenizer as TokenizerFile
from tokenizers import decoders, models, pre_tokenizers

from ...checkpoints import Checkpoint
from ...checkpoints.interop.generation_config import GenerationDefaults
from ...data.mixture import Shapes
from ...data.templates import load_template
from ...data.tokenizer import Tokenizer
from ...model.config import LlamaConfig

STEPS_PER_EPOCH = 1000.0
"""Steps of a pass over data that are not there. The compiled step depends on it only through constants of the learning
rate."""


@functools.lru_cache(maxsize=4)
def tokenizer_of(vocab_size: int) -> Tokenizer:
    """A tokenizer with `vocab_size` ids that writes every text in bytes.

    A compiled step depends on the number of ids and on the ids that end an answer, not on the text of tokens.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<unk>", "<s>", "</s>", *letters, *(f"<planned_{i}>" for i in range(vocab_size))][:vocab_size]
    file = TokenizerFile(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    file.add_special_tokens(pieces[:3])
    file.pre_tokenizer, file.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    files = {"tokenizer.json": file.to_str().encode(), "tokenizer_config.json": json.dumps(names).encode()}
    return Tokenizer(files, "the tokenizer of a plan")


class PlannedCheckpoint(Checkpoint):
    """A checkpoint that is not on this machine. It has an architecture and no parameters."""

    format = "planned"

    def __init__(self, path: str, config: LlamaConfig, kind: str | None, heads: int = 1):
        super().__init__(path)
        self.config, self.kind, self.heads = config, kind, heads
        self.tokenizer, self.template = tokenizer_of(config.vocab_size), load_template("vicuna")
        self.generation = GenerationDefaults()

    def load_params(self, *_: Any, **__: Any) -> NoReturn:
        self._refuse()

    def matrix(self, *_: Any) -> np.ndarray:
        self._refuse()

    def _tensors(self) -> Iterator[np.ndarray]:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise RuntimeError(f"{self.name} is not on this machine, and a plan reads no parameters")


class PlannedBatches:
    """The batches of a run that reads no data: their shapes."""

    records = ()
    fingerprint = "planned"
    steps_per_epoch = STEPS_PER_EPOCH

    def __init__(self, batch_size: int, row_shapes: Shapes):
        """
        Args:
          batch_size: rows of a batch, over all hosts.
          row_shapes: shape and dtype of each array of one row.
        """
        self.batch_size = batch_size
        self.length = row_shapes["tokens"][0][-1]
        self.shapes: Shapes = {name: ((batch_size, *shape), dtype) for name, (shape, dtype) in row_shapes.items()}

    def summary(self) -> dict[str, Any]:
        """Counts by the names of sources: there are none."""
        return {}

    def skipped(self) -> dict[str, Any]:
        """Bad records by the names of sources: there are none."""
        return {}
