"""Tuned weights without the base that they were tuned from: the form in which Alpaca and Vicuna published theirs.

A difference holds for every number tuned minus base, of their bits as integers: unlike a difference of floats it gives
the tuned weights back bit for bit. It says by SHA-256 what it goes on and what has to come out. Differences of floats,
as folders of Hugging Face's, can be applied too; nothing in them says whether what comes out is right.
"""

import hashlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from etils import epath

from ..data.errors import UserError
from ..model.config import LlamaConfig
from ..model.interop import tensors
from . import checkpoints, convert, origin

KIND = "difference"


def make(base: epath.PathLike, tuned: epath.PathLike, output: epath.PathLike) -> None:
    """Writes the difference of two models, with the tuned one's tokenizer and template, as a run directory.

    Vocabularies may differ in length, as where a padding token was added. Raises UserError for other networks.
    """
    convert.check_new(output)
    found = convert.contents(tuned)
    described = {
        "kind": KIND,
        "base": {"path": str(base), "sha256": _sha256(_like(base, found.config))},
        "tuned": {"path": str(tuned), "sha256": _sha256(found.values)},
    }
    values = zip(_like(base, found.config), convert.contents(tuned).values, strict=True)
    bits = (_bits(new) - _bits(old) for old, new in values)
    convert.write_camelid(output, found._replace(values=bits), described, dtype=_integer(found.config))


def apply(base: epath.PathLike, difference: epath.PathLike, output: epath.PathLike) -> None:
    """Writes the tuned model, as a run directory.

    Raises UserError where the base is not the one that the difference was made from, or where what comes out is not
    what went in; of a difference of floats, whose numbers are added, neither is known.
    """
    output = convert.check_new(output)
    if origin.is_foreign(difference):
        found = convert.contents(difference)
        dtype = jnp.dtype(found.config.param_dtype)
        pairs = zip(_like(base, found.config), found.values, strict=True)
        summed = ((old.astype(np.float32) + new.astype(np.float32)).astype(dtype) for old, new in pairs)
        convert.write_camelid(output, found._replace(values=summed), {"base": str(base)})
        return
    manifest = checkpoints.read_manifest(difference)
    if manifest.get("kind") != KIND:
        raise UserError(f"{difference}: a whole model, and no difference of two")
    found = convert.difference_contents(difference)
    if _sha256(_like(base, found.config)) != manifest["base"]["sha256"]:
        raise UserError(f"{base}: not the base that {difference} was made from, which was {manifest['base']['path']}")
    dtype = jnp.dtype(found.config.param_dtype)
    pairs = zip(_like(base, found.config), found.values, strict=True)
    values = ((_bits(old) + new).view(dtype) for old, new in pairs)
    convert.write_camelid(output, found._replace(values=values), {"base": str(base)})
    if _sha256(convert.contents(output).values) != manifest["tuned"]["sha256"]:
        output.rmtree()
        raise UserError(f"{difference}: what came out is not what went in; {output} was taken away again")


def _like(base: epath.PathLike, config: LlamaConfig) -> Iterator[np.ndarray]:
    """The base's tensors in the dtype of a network that was made from it, zeros for further tokens."""
    found = convert.contents(base)
    same = found.config.replace(vocab_size=config.vocab_size, param_dtype=config.param_dtype)
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
    if found.config.vocab_size > config.vocab_size or same.replace(**rest) != config:
        raise UserError(f"{base}: another network than the tuned one: {found.config} and {config}")

    def like(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        further = [(0, wanted - length) for wanted, length in zip(shape, value.shape, strict=True)]
        return np.pad(value.astype(jnp.dtype(config.param_dtype), copy=False), further)

    places = tensors.places(config, tensors.HUGGING_FACE)
    return (like(value, place.shape) for place, value in zip(places, found.values, strict=True))


def _integer(config: LlamaConfig) -> np.dtype:
    return np.dtype(f"uint{8 * jnp.dtype(config.param_dtype).itemsize}")


def _bits(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value).view(np.dtype(f"uint{8 * value.dtype.itemsize}"))


def _sha256(values: Iterator[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(np.ascontiguousarray(value).view(np.uint8))
    return digest.hexdigest()
