"""Tuned weights without the base that they were tuned from: the form in which Alpaca and Vicuna published theirs.

A difference holds for every number tuned minus base, of their bits as integers: unlike a difference of floats it gives
the tuned weights back bit for bit. It says by SHA-256 what it goes on and what has to come out.

Differences of floats are folders of Hugging Face's, as Alpaca and Vicuna published them: tuned minus base in floats.
Rows of tokens that the base lacks are compared with the mean of the base's rows, as Alpaca's code initialises them, or
with zeros, as FastChat's does. What comes out is checked by the sum of all its parameters, Alpaca's integrity check
(weight_diff.py in tatsu-lab/stanford_alpaca); one that is written here says it in `difference.json`.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from .. import checkpoints
from ..errors import UserError
from ..model.config import LlamaConfig
from ..model.rope import frequencies
from . import convert
from .checkpoint import Checkpoint
from .foreign import HuggingFaceCheckpoint
from .interop import tensors
from .runs import RunCheckpoint

KIND = "difference"
FLOATS_FILE = "difference.json"
ADDED = ("mean", "zero")
"""What rows of further tokens may be compared with."""


def make(
    base: epath.PathLike, tuned: epath.PathLike, output: epath.PathLike, *, floats: bool = False, added: str = "mean"
) -> float | None:
    """Writes the difference of two models, with the tuned one's tokenizer and template: as a run directory, or of
    floats as a folder of Hugging Face's, whose sum it returns. added: one of `ADDED`, of floats.

    Vocabularies may differ in length, as where a padding token was added. Raises UserError for other networks.
    """
    with convert.whole(output) as unfinished:
        old, new = checkpoints.open(base), checkpoints.open(tuned)
        found = convert.contents(new)
        if floats:
            return _make_floats(old, new, found, unfinished, added)
        described = {
            "kind": KIND,
            "base": {"path": old.name, "sha256": _sha256(_like(old, found.config))},
            "tuned": {"path": new.name, "sha256": _sha256(new.tensors())},
        }
        pairs = zip(_like(old, found.config), new.tensors(), strict=True)
        bits = (_bits(after) - _bits(before) for before, after in pairs)
        convert.write_camelid(unfinished, found._replace(values=bits), described, dtype=_integer(found.config))


def _make_floats(base: Checkpoint, tuned: Checkpoint, found: convert.Contents, output: epath.Path, added: str) -> float:
    total = _Sum()
    pairs = zip(_like(base, found.config, added), total.over(found.values), strict=True)
    dtype = jnp.dtype(found.config.param_dtype)
    values = ((new.astype(np.float32) - old.astype(np.float32)).astype(dtype) for old, new in pairs)
    convert.write_huggingface(output, found._replace(values=values))
    if not math.isfinite(total.value):
        raise UserError(f"{tuned.name}: holds numbers that are infinite or no number; a difference of bits takes them")
    said = {"base": base.name, "tuned": tuned.name, "added_rows": added, "sum_of_tuned": total.value}
    (output / FLOATS_FILE).write_text(json.dumps(said, indent=2))
    return total.value


def apply(
    base: epath.PathLike,
    difference: epath.PathLike,
    output: epath.PathLike,
    *,
    total: float | None = None,
    added: str | None = None,
) -> None:
    """Writes the tuned model, as a run directory.

    total: the sum of all parameters that has to come out of a difference of floats (None: what it says itself, or
    anything). added: one of `ADDED` (None: what it says itself, or "mean"). Raises UserError where the base is not the
    one that a difference was made from, or where what comes out is not what went in.
    """
    with convert.whole(output) as unfinished:
        old, found = checkpoints.open(base), checkpoints.open(difference)
        if not isinstance(found, RunCheckpoint):
            _apply_floats(old, found, unfinished, total, added)
            return
        if total is not None or added is not None:
            raise UserError(f"{difference}: a difference of bits, which knows what comes out: leave sum and added out")
        bits = found.bits()
        if _sha256(_like(old, found.config)) != found.manifest["base"]["sha256"]:
            named = found.manifest["base"]["path"]
            raise UserError(f"{base}: not the base that {difference} was made from, which was {named}")
        dtype = jnp.dtype(found.config.param_dtype)
        pairs = zip(_like(old, found.config), bits, strict=True)
        values = ((_bits(before) + change).view(dtype) for before, change in pairs)
        own = convert.Contents(found.config, found.tokenizer, found.template, values, found.generation)
        convert.write_camelid(unfinished, own, {"base": old.name})
        if _sha256(checkpoints.open(unfinished).tensors()) != found.manifest["tuned"]["sha256"]:
            raise UserError(f"{difference}: what came out is not what went in; nothing is left of it")


def _apply_floats(
    base: Checkpoint, difference: Checkpoint, output: epath.Path, total: float | None, added: str | None
) -> None:
    said = _read_said(difference.path / FLOATS_FILE) if isinstance(difference, HuggingFaceCheckpoint) else {}
    total = said.get("sum_of_tuned") if total is None else total
    found, summed = convert.contents(difference), _Sum()
    pairs = zip(_like(base, found.config, added or said.get("added_rows", "mean")), found.values, strict=True)
    values = (old.astype(np.float32) + new.astype(np.float32) for old, new in pairs)
    dtype = jnp.dtype(found.config.param_dtype)
    rounded = (value.astype(dtype) for value in summed.over(values))
    convert.write_camelid(output, found._replace(values=rounded), {"base": base.name})
    if total is not None and not any(
        abs(value - total) <= _tolerance(found.config, total) for value in summed.all(found)
    ):
        raise UserError(
            f"{difference.name}: on {base.name} the parameters add up to {summed.value:.4f}, and not to {total:.4f}: "
            "another base, another difference, or rows of further tokens that begin otherwise (--added)"
        )


def _read_said(file: epath.Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        said = json.loads(file.read_text())
        if said["added_rows"] in ADDED and math.isfinite(said["sum_of_tuned"]):
            return said
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{file}: not what camelid diff make writes: move it away, and give --sum")


def _tolerance(config: LlamaConfig, total: float) -> float:
    """How far sums may be apart: by the order of additions in float32 of what others summed, and by the rounding of a
    difference to 16 bits."""
    return max(0.05, (1e-6 if config.param_dtype == "float32" else 1e-3) * abs(total))


class _Sum:
    """The sum of all numbers that went by."""

    def __init__(self):
        self.value = 0.0

    def over(self, values: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for value in values:
            self.value += float(np.sum(value, dtype=np.float64))
            yield value

    def all(self, found: convert.Contents) -> tuple[float, float]:
        """The sum, and that of transformers before 4.31, whose networks held their rotary frequencies in each layer."""
        plain, _ = frequencies(found.config.replace(rope_scaling=None))
        return self.value, self.value + found.config.n_layers * float(np.sum(np.asarray(plain), dtype=np.float64))


def _like(base: Checkpoint, config: LlamaConfig, added: str | None = None) -> Iterator[np.ndarray]:
    """The base's tensors in the dtype of a network that was made from it, zeros for further tokens. added: in float32,
    and of further tokens what it says, zeros or the mean of all rows that the base has."""
    if added not in (None, *ADDED):
        raise UserError(f"rows of further tokens {added!r}: give one of {', '.join(ADDED)}")
    dtype = jnp.dtype(config.param_dtype if added is None else "float32")
    own = base.config
    same = own.replace(vocab_size=config.vocab_size, param_dtype=config.param_dtype)
    # What a run may choose freely, and what was stretched for a longer context, has no part in the tensors.
    rest = dict(
        dtype=config.dtype,
        attention=config.attention,
        remat=config.remat,
        unroll=config.unroll,
        max_len=config.max_len,
        rope_scaling=config.rope_scaling,
        family=config.family,
    )
    if own.vocab_size > config.vocab_size or same.replace(**rest) != config:
        raise UserError(f"{base.name}: another network than the tuned one: {own} and {config}")

    def like(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        further = [(0, wanted - length) for wanted, length in zip(shape, value.shape, strict=True)]
        longer = np.pad(value.astype(dtype, copy=False), further)
        if added == "mean" and value.shape != shape:
            axis = next(axis for axis, (_, more) in enumerate(further) if more)
            mean = np.mean(value.astype(np.float32), axis=axis, keepdims=True, dtype=np.float64)
            longer[(slice(None),) * axis + (slice(value.shape[axis], None),)] = mean
        return longer

    places = tensors.places(config, tensors.HUGGING_FACE)
    return (like(value, place.shape) for place, value in zip(places, base.tensors(), strict=True))


def _integer(config: LlamaConfig) -> np.dtype:
    return np.dtype(f"uint{8 * jnp.dtype(config.param_dtype).itemsize}")


def _bits(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value).view(np.dtype(f"uint{8 * value.dtype.itemsize}"))


def _sha256(values: Iterator[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(np.ascontiguousarray(value).view(np.uint8))
    return digest.hexdigest()
