"""Perplexity and bits per byte of any source, by document. Of conversations only the assistant's turns count."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np

from ..checkpoints import scoring
from ..checkpoints.language_model import LanguageModel
from ..data.console import tell
from ..data.json_values import MAX_RECORD_BYTES
from ..data.packing import cut
from ..data.sources import Source, fingerprint
from ..data.text_encoder import TextEncoder
from ..data.token_cache import TokenCache, build_cache
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from ..settings.leaves import Count, OneOf, Only, Path, Range, Unset
from .items import Item

PIECES = 4096
"""Pieces of documents that are computed before any is reported."""


def perplexity(
    model: LanguageModel,
    *,
    source: Path,
    split: Annotated[str | None, OneOf("train", "heldout")] = None,
    heldout: Annotated[float, Range(least=0, most=1), Only("split", default=0.01)] = 0.01,
    format: str = "auto",
    on_error: Annotated[str, OneOf("raise", "skip")] = "raise",
    max_record_bytes: Count = MAX_RECORD_BYTES,
    columns: Annotated[dict[str, str] | None, Unset("the fields' own names")] = None,
    seq_len: Annotated[int | None, Range(least=2), Unset("512 or the model's shorter context")] = None,
    borders: list[Count] = (),
    batch_size: Annotated[Count | None, Unset("4,096 tokens on each device")] = None,
    cache_dir: Path = "~/.cache/camelid",
) -> list[Item]:
    """Measures how well a model predicts text.

    Args:
      model: the model.
      source: files, a dataset or a task (`data.sources`).
      split: part of the source; default: all of it.
      heldout: with `split`, the share that is held out.
      format: format of the records.
      on_error: whether a bad record ends the evaluation or is left out.
      max_record_bytes: largest size of a record.
      columns: the column of the records for each field of the format (`data/columns.py`).
      seq_len: the most tokens that predict a token; longer documents are cut into pieces.
      borders: positions that divide a piece into ranges, each with a perplexity of its own. (2048, 4096) gives
        "perplexity/0-2048", "perplexity/2048-4096" and "perplexity/4096-8192": how well a token is predicted with that
        much text before it.
      batch_size: rows that are computed at a time.
      cache_dir: folder for tokenised texts.

    Returns:
      An item for each document: "loss" in nats per token, from which "perplexity" follows, "bits_per_byte" and
      "bits_per_character", which tokenizers that cut text differently have in common.

    Raises:
      UserError: a source that cannot be read, borders that do not ascend or that no document reaches, or a model
        without a tokenizer.
    """
    context = model.config.max_len
    if seq_len is not None and seq_len > context:
        raise UserError(
            f"seq_len is {seq_len}, more than the model's context of {context:,} tokens: give that or less, or stretch "
            f"the context, as by --rope=yarn:{seq_len}"
        )
    reading = dict(format=format, on_error=on_error, max_record_bytes=max_record_bytes, columns=columns or {})
    cache = text_cache(model, Source(source, heldout=heldout, **reading), split, cache_dir)
    if cache.tally.skipped:
        problems = "; ".join(cache.tally.problems)
        tell(f"{cache.tally.read:,} records read, {cache.tally.skipped:,} left out: {problems}")
    return of_cache(model, cache, seq_len=seq_len, borders=borders, batch_size=batch_size)


def asked_of(model: LanguageModel, settings: dict[str, Any]) -> dict[str, Any]:
    """What settings mean for a model, for the hash of results: the length of rows, and the content of the source."""
    about = {name: settings[name] for name in ("format", "on_error", "max_record_bytes", "heldout")}
    about["columns"] = settings["columns"] or {}
    return {
        "seq_len": settings["seq_len"] or min(512, model.config.max_len),
        "source": fingerprint(Source(settings["source"], **about)),
    }


perplexity.asked_of = asked_of


def text_cache(
    model: LanguageModel, source: Source, split: str | None = None, cache_dir: str = "~/.cache/camelid"
) -> TokenCache:
    """The token cache of a source for a model's tokenizer and chat template.

    Args:
      model: the model.
      source: the source.
      split: "train", "heldout", or None for the whole source.
      cache_dir: folder for token caches.

    Raises:
      UserError: the model has no tokenizer, or an error of `build_cache`.
    """
    if model.tokenizer is None:
        raise UserError("the model has no tokenizer, so text cannot be scored: give a checkpoint with one")
    return build_cache(source, split, TextEncoder(model.tokenizer, model.template), cache_dir)


def of_cache(
    model: LanguageModel,
    cache: TokenCache,
    *,
    seq_len: int | None = None,
    borders: Sequence[int] = (),
    batch_size: int | None = None,
) -> list[Item]:
    """`perplexity` of the documents of a token cache."""
    seq_len = seq_len or min(512, model.config.max_len)
    if any(left >= right for left, right in itertools.pairwise([0, *borders, seq_len])):
        raise UserError(f"borders are {list(borders)}: give ascending positions between 0 and seq_len = {seq_len}")
    if borders and (longest := int(cache.pairs.max())) <= borders[-1]:
        problem = f"no sample reaches border {borders[-1]}"
        raise UserError(f"{problem}; the longest has {longest + 1} tokens: give borders below {longest}")
    prefix = int(model.tokenizer.drops_first_space)  # the space that the tokenizer puts before a text
    lengths_2V = np.array([model.tokenizer.characters, [len(data) for data in model.tokenizer.token_bytes]], np.float64)
    ranges = list(itertools.pairwise([0, *borders, seq_len])) if borders else []
    sums = np.zeros((len(cache), 4 + 2 * len(ranges)))  # nats, tokens, characters, bytes; nats and tokens of ranges
    for pieces in _groups(_pieces(cache, seq_len, model.tokenizer)):
        requests = [(piece.tokens[:1], piece.tokens[1:]) for piece in pieces]
        found = scoring.likelihoods(model, requests, batch_size=batch_size, most=seq_len)
        for piece, each in zip(pieces, found, strict=True):
            nats_T = -each.logp.astype(np.float64) * piece.mask
            lengths_2T = lengths_2V[:, piece.tokens[1:]] * piece.mask
            if piece.begins_text and prefix:
                lengths_2T[:, 0] = np.maximum(lengths_2T[:, 0] - prefix, 0)
            per_token = [nats_T, piece.mask, *lengths_2T]
            of_ranges = [x[begin:end] for begin, end in ranges for x in (nats_T, piece.mask)]
            sums[piece.document] += [x.sum() for x in (*per_token, *of_ranges)]
    return [_item(document, row.tolist(), ranges) for document, row in enumerate(sums) if row[1]]


class _Piece(NamedTuple):
    """A document, or as much of it as is read at a time."""

    document: int
    tokens: list[int]
    mask: np.ndarray
    """1 for each token after the first that counts, else 0."""
    begins_text: bool
    """Whether the second token is the first one of a text."""


def _pieces(cache: TokenCache, seq_len: int, tokenizer: Tokenizer) -> Iterator[_Piece]:
    """Documents as pieces of at most `seq_len` tokens that are read.

    Every token of a text is predicted, its first one after bos, or where the tokenizer begins texts with none after the
    token that ends them, as lm-evaluation-harness has it.
    """
    for document, first, count in zip(*(x.tolist() for x in cut(cache.pairs, seq_len)), strict=True):
        start = int(cache.starts[document]) + first
        stop = start + count + 1
        tokens, mask = cache.tokens[start:stop].tolist(), np.asarray(cache.mask(start + 1, stop), np.float64)
        begun = tokenizer.adds_bos and tokens[0] == tokenizer.bos_id
        is_text = not first and bool(mask[0] if begun else cache.mask(start, start + 1)[0])
        if is_text and not begun:
            tokens, mask = [tokenizer.eos_id, *tokens], np.concatenate([[1.0], mask])
            if len(tokens) > seq_len + 1:  # a piece of its own for the first token, which costs no other its context
                yield _Piece(document, tokens[:2], mask[:1], True)
                tokens, mask, is_text = tokens[1:], mask[1:], False
        yield _Piece(document, tokens, mask, is_text)


def _groups(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    while group := list(itertools.islice(pieces, PIECES)):
        yield group


def _item(document: int, sums: Sequence[float], ranges: Sequence[tuple[int, int]]) -> Item:
    nats, tokens, characters, size = sums[:4]
    bits = nats / math.log(2)
    scores = {"loss": (nats, tokens), "bits_per_byte": (bits, size), "bits_per_character": (bits, characters)}
    for place, (begin, end) in enumerate(ranges):
        nats, tokens = sums[4 + 2 * place : 6 + 2 * place]
        if tokens:
            scores[f"loss/{begin}-{end}"] = (nats, tokens)
    return Item(str(document + 1), scores)
