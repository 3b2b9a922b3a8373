"""Adds rows to the embedding and the head of a checkpoint in another format while it is read."""

import functools

import numpy as np

from .tensors import Index, TensorSource


def with_rows(source: TensorSource, rows: int) -> TensorSource:
    """A source whose embedding and head have at least `rows` rows; added rows are the float32 mean of the stored ones.

    A new token thus starts with average probability and as an average input, as in Alpaca's and transformers' code.
    """
    if rows <= source.config.vocab_size:
        return source
    own = source.config.vocab_size
    names = {source.naming.names[path] for path in ("embed/embedding", "head/kernel")}

    @functools.cache
    def mean(name: str) -> np.ndarray:
        return np.asarray(source.read(name, (slice(None), slice(None))), np.float32).mean(0)

    def read(name: str, index: Index) -> np.ndarray:
        if name not in names:
            return source.read(name, index)
        start, stop, _ = index[0].indices(rows)
        columns = index[1] if len(index) > 1 else slice(None)
        found = source.read(name, (slice(min(start, own), min(stop, own)), columns))
        more = max(stop, own) - max(start, own)
        if not more:
            return found
        return np.concatenate([found, np.broadcast_to(mean(name)[columns], (more, found.shape[1])).astype(found.dtype)])

    def stored(name: str):
        return None if name in names else source.stored(name)

    return source._replace(config=source.config.replace(vocab_size=rows), read=read, stored=stored)
