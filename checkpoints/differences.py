"""Publishes tuned weights as their difference from the base weights, as Alpaca and Vicuna did.

A difference of bits subtracts the bits of the numbers as integers. Unlike a difference of floats, it restores the tuned
weights bit for bit. Its manifest holds the SHA-256 of the base weights and of the tuned weights.

A difference of floats is a folder in Hugging Face's format: tuned minus base, as Alpaca and Vicuna published it. Rows
of tokens that the base lacks are compared with the mean of the base's rows, as in Alpaca's code, or with zeros, as in
FastChat's. The restored weights are checked by the sum of all parameters, Alpaca's integrity check (weight_diff.py in
tatsu-lab/stanford_alpaca). camelid writes this sum into `difference.json`.
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
"""What rows of tokens that the base lacks are compared with: the mean of the base's rows, or zeros."""


def make(
    base: epath.PathLike, tuned: epath.PathLike, output: epath.PathLike, *, floats: bool = False, added: str = "mean"
) -> float | None:
    """Writes the difference of two models, with the tokenizer and the template of the tuned one.

    The tuned vocabulary may be longer, for example by a padding token.

    Args:
      base: path of the base model.
      tuned: path of the tuned model.
      output: a new path: a run directory for a difference of bits, a folder for one of floats.
      floats: whether to write a difference of floats in Hugging Face's format.
      added: one of `ADDED`; for differences of floats.

    Returns:
      The sum of all tuned parameters for a difference of floats, else None.

    Raises:
      UserError: the two models are different networks.
    """
    with convert.new_output(output) as unfinished:
        old, new = checkpoints.open(base), checkpoints.open(tuned)
        found = convert.contents(new)
        if floats:
            return _make_floats(old, new, found, unfinished, added)
        described = {
            "kind": KIND,
            "base": {"path": old.name, "sha256": _sha256(_base_tensors(old, found.config))},
            "tuned": {"path": new.name, "sha256": _sha256(new.tensors())},
        }
        pairs = zip(_base_tensors(old, found.config), new.tensors(), strict=True)
        bits = (_bits(after) - _bits(before) for before, after in pairs)
        convert.write_camelid(unfinished, found._replace(values=bits), described, dtype=_integer(found.config))


def _make_floats(base: Checkpoint, tuned: Checkpoint, found: convert.Contents, output: epath.Path, added: str) -> float:
    """Writes a difference of floats of `tuned`, whose contents are `found`, and returns the sum of its parameters."""
    total = _RunningSum()
    pairs = zip(_base_tensors(base, found.config, added), total.over(found.values), strict=True)
    dtype = jnp.dtype(found.config.param_dtype)
    values = ((new.astype(np.float32) - old.astype(np.float32)).astype(dtype) for old, new in pairs)
    convert.write_huggingface(output, found._replace(values=values))
    if not math.isfinite(total.value):
        raise UserError(f"{tuned.name} holds infinite numbers or NaN: leave --floats out, for a difference of bits")
    record = {"base": base.name, "tuned": tuned.name, "added_rows": added, "sum_of_tuned": total.value}
    (output / FLOATS_FILE).write_text(json.dumps(record, indent=2))
    return total.value


def apply(
    base: epath.PathLike,
    difference: epath.PathLike,
    output: epath.PathLike,
    *,
    total: float | None = None,
    added: str | None = None,
) -> None:
    """Restores the tuned model from its base and a difference, and writes it as a run directory.

    Args:
      base: path of the base model.
      difference: path of what `make` wrote, or of a published difference of floats.
      output: a new run directory.
      total: expected sum of all parameters, for a difference of floats; None takes the sum in its `difference.json`,
        and without that file nothing is checked.
      added: one of `ADDED`, for a difference of floats; None takes the one in its `difference.json`, else "mean".

    Raises:
      UserError: `base` is not the base of the difference, or the restored weights are not the tuned ones.
    """
    with convert.new_output(output) as unfinished:
        old, found = checkpoints.open(base), checkpoints.open(difference)
        if not isinstance(found, RunCheckpoint):
            _apply_floats(old, found, unfinished, total, added)
            return
        if total is not None or added is not None:
            raise UserError(f"{difference} is a difference of bits, checked by SHA-256: leave --sum and --added out")
        bits = found.bits()
        if _sha256(_base_tensors(old, found.config)) != found.manifest["base"]["sha256"]:
            named = found.manifest["base"]["path"]
            raise UserError(f"{base} is not the base that {difference} was made from: give {named}")
        dtype = jnp.dtype(found.config.param_dtype)
        pairs = zip(_base_tensors(old, found.config), bits, strict=True)
        values = ((_bits(before) + change).view(dtype) for before, change in pairs)
        own = convert.Contents(found.config, found.tokenizer, found.template, values, found.generation)
        convert.write_camelid(unfinished, own, {"base": old.name})
        if _sha256(checkpoints.open(unfinished).tensors()) != found.manifest["tuned"]["sha256"]:
            raise UserError(f"{difference}: the restored weights are not the tuned ones; nothing was written")


def _apply_floats(
    base: Checkpoint, difference: Checkpoint, output: epath.Path, total: float | None, added: str | None
) -> None:
    """Restores a model from a difference of floats, and checks its sum; the arguments are those of `apply`."""
    record = _read_record(difference.path / FLOATS_FILE) if isinstance(difference, HuggingFaceCheckpoint) else {}
    total = record.get("sum_of_tuned") if total is None else total
    found, summed = convert.contents(difference), _RunningSum()
    pairs = zip(_base_tensors(base, found.config, added or record.get("added_rows", "mean")), found.values, strict=True)
    values = (old.astype(np.float32) + new.astype(np.float32) for old, new in pairs)
    dtype = jnp.dtype(found.config.param_dtype)
    rounded = (value.astype(dtype) for value in summed.over(values))
    convert.write_camelid(output, found._replace(values=rounded), {"base": base.name})
    if total is not None and not any(
        abs(value - total) <= _tolerance(found.config, total) for value in summed.all(found)
    ):
        raise UserError(
            f"{difference.name}: with the base {base.name} the parameters add up to {summed.value:.4f}, not to "
            f"{total:.4f}: give the right base, difference or --added"
        )


def _read_record(file: epath.Path) -> dict[str, Any]:
    """The content of a `difference.json`; {} if there is none. Raises UserError if it is malformed."""
    if not file.exists():
        return {}
    try:
        record = json.loads(file.read_text())
        if record["added_rows"] in ADDED and math.isfinite(record["sum_of_tuned"]):
            return record
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{file} is not in the form that camelid diff make writes: move it away, and give --sum")


def _tolerance(config: LlamaConfig, total: float) -> float:
    """How far the sum may be from `total`: others add in float32 in another order, and 16-bit differences round."""
    return max(0.05, (1e-6 if config.param_dtype == "float32" else 1e-3) * abs(total))


class _RunningSum:
    """The sum of all numbers of the arrays that pass through `over`."""

    def __init__(self):
        self.value = 0.0

    def over(self, values: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the arrays and adds up their numbers."""
        for value in values:
            self.value += float(np.sum(value, dtype=np.float64))
            yield value

    def all(self, found: convert.Contents) -> tuple[float, float]:
        """The sum, and the sum as transformers before 4.31 gave it, where each layer also stored rotary frequencies."""
        plain, _ = frequencies(found.config.replace(rope_scaling=None))
        return self.value, self.value + found.config.n_layers * float(np.sum(np.asarray(plain), dtype=np.float64))


def _base_tensors(base: Checkpoint, config: LlamaConfig, added: str | None = None) -> Iterator[np.ndarray]:
    """Yields the base's tensors in the shapes of a network that was tuned from it.

    Args:
      base: the base model.
      config: the tuned network, whose vocabulary may be longer.
      added: one of `ADDED`, which fills rows that the base lacks, with the tensors in float32. None fills them with
        zeros, with the tensors in the dtype of `config`.

    Raises:
      UserError: the two are different networks.
    """
    if added not in (None, *ADDED):
        raise UserError(f"added {added!r}: give one of {', '.join(ADDED)}")
    dtype = jnp.dtype(config.param_dtype if added is None else "float32")
    own = base.config
    same = own.replace(vocab_size=config.vocab_size, param_dtype=config.param_dtype)
    # These fields do not change the tensors: a run chooses them freely, or stretched them for a longer context.
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
        raise UserError(f"{base.name} is another network than the tuned model: {own} and {config}")

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
    """The unsigned integer dtype with the width of the parameters."""
    return np.dtype(f"uint{8 * jnp.dtype(config.param_dtype).itemsize}")


def _bits(value: np.ndarray) -> np.ndarray:
    """The bits of an array's numbers as unsigned integers."""
    return np.ascontiguousarray(value).view(np.dtype(f"uint{8 * value.dtype.itemsize}"))


def _sha256(values: Iterator[np.ndarray]) -> str:
    """The SHA-256 of the bytes of all arrays."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(np.ascontiguousarray(value).view(np.uint8))
    return digest.hexdigest()
