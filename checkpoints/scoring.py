"""Log-probabilities of given tokens: `likelihoods` of any continuations, and `LanguageModel.score` of answers."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from ..data.packing import best_fit_decreasing
from ..errors import UserError
from ..model import llama
from ..model.attention import BRANCHES
from ..model.config import LlamaConfig
from ..model.linear import linear
from ..model.logprobs import CHUNK
from ..model.sharding import BATCH, compile_platform, on_host

if TYPE_CHECKING:
    from .language_model import LanguageModel

Prompt = str | Sequence[Mapping[str, str]]
Tokens = Sequence[int]

ROW = 512
"""Positions of a row that holds several texts. Longer texts have rows of a power of two."""

BATCH_TOKENS = 4096
"""Positions that a device computes at a time, where no number of rows is given."""


class Likelihoods(NamedTuple):
    """What the network says of the tokens of a continuation."""

    logp: Float[np.ndarray, " T"]
    """Their log-probabilities."""

    is_greedy: Bool[np.ndarray, " T"]
    """Whether each is the likeliest token at its place."""


def likelihoods(
    model: "LanguageModel",
    requests: Sequence[tuple[Tokens, Tokens]],
    *,
    batch_size: int | None = None,
    most: int | None = None,
) -> list[Likelihoods]:
    """The log-probabilities of continuations, each given its context.

    Texts share rows (`data.packing`), so that few shapes are compiled and little is padding. Equal contexts, such as
    those of the choices of a question, are computed once where attention is XLA's and without a window; continuations
    of one token share their context everywhere. The output head reads the positions of continuations only.

    Args:
      model: the model.
      requests: (context, continuation) as token ids; neither is empty.
      batch_size: rows that are computed at a time; None: 4,096 tokens on each device.
      most: the most tokens that the network may read of a request; None: its context.

    Raises:
      UserError: an empty context or continuation, or more tokens than `most`.
    """
    most = most or model.config.max_len
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size {batch_size}: give 1 or more")
    for number, (context, continuation) in enumerate(requests, 1):
        if not context or not continuation or len(context) + len(continuation) - 1 > most:
            said = f"answer {number}: prompt and answer have {len(context)} and {len(continuation)} tokens"
            raise UserError(f"{said}; give one or more of each, at most the context of {most:,} together")
    texts, asked = _texts(requests, shares=_shares_contexts(model.config))

    found: list[Likelihoods | None] = [None] * len(requests)
    pending = None
    for batch in _batches(model, texts, batch_size):
        queries = [
            (number, where + place, token)
            for text, where in batch.places
            for number, places in asked[text]
            for place, token in zip(places, requests[number][1], strict=True)
        ]
        scores = _dispatch(model, batch, queries)
        if pending is not None:  # read while the device computes this batch
            _collect(*pending, found)
        pending = queries, scores
    if pending is not None:
        _collect(*pending, found)
    return found


class _Text(NamedTuple):
    """A context with continuations, in one row."""

    tokens: list[int]
    branches: list[int]
    """Of each token, the continuation that it belongs to, from 1; 0 for the context."""
    positions: list[int]
    """Of each token, its position as if no other continuation were there."""


def _shares_contexts(config: LlamaConfig) -> bool:
    """Whether continuations of a context can share it. The kernels of TPUs and GPUs know no such mask."""
    is_xla = config.attention == "xla" or (config.attention == "auto" and compile_platform() == "cpu")
    return is_xla and config.window is None


def _texts(
    requests: Sequence[tuple[Tokens, Tokens]], *, shares: bool
) -> tuple[list[_Text], list[list[tuple[int, Sequence[int]]]]]:
    """The texts that requests need, and for each text its requests with the places from which their tokens are told.

    shares: whether continuations of several tokens share a context, as long as the text fits a row.
    """
    texts: list[_Text] = []
    asked: list[list[tuple[int, Sequence[int]]]] = []
    known: dict[tuple[int, ...], tuple[int, int]] = {}  # the text, and where the continuation begins in it
    open_texts: dict[tuple[int, ...], int] = {}
    for number, (context, continuation) in enumerate(requests):
        context, rest = tuple(context), tuple(continuation[:-1])
        if (key := (len(context), *context, *rest) if shares else (*context, *rest)) not in known:
            place = open_texts.get(context) if shares else None
            if place is None or (rest and len(texts[place].tokens) + len(rest) > ROW):
                place = len(texts)
                texts.append(_Text(list(context), [0] * len(context), list(range(len(context)))))
                asked.append([])
                open_texts[context] = place
            text = texts[place]
            known[key] = place, len(text.tokens)
            text.tokens.extend(rest)
            text.branches.extend([text.branches[-1] + 1 if shares else 0] * len(rest))
            text.positions.extend(range(len(context), len(context) + len(rest)))
        place, begin = known[key]
        if not shares:
            begin = len(context)
        asked[place].append((number, [len(context) - 1, *range(begin, begin + len(rest))]))
    return texts, asked


class _Batch(NamedTuple):
    """Rows of packed texts."""

    tokens: Int[np.ndarray, "B T"]
    segment_ids: Int[np.ndarray, "B T"]
    positions: Int[np.ndarray, "B T"]
    places: list[tuple[int, int]]
    """(text, index of its first token in the flattened batch)."""


def _batches(model: "LanguageModel", texts: Sequence[_Text], batch_size: int | None) -> Iterator[_Batch]:
    """Texts packed into rows of few lengths, the longest first."""
    lengths_N = np.array([len(text.tokens) for text in texts], np.int64)
    many = lengths_N.sum() > ROW
    width_N = np.array([ROW if many and n <= ROW else max(32, 1 << (int(n) - 1).bit_length()) for n in lengths_N])
    devices = model.mesh.shape["data"] * model.mesh.shape["fsdp"]
    for width in sorted(set(width_N.tolist()), reverse=True):
        chosen_M = np.flatnonzero(width_N == width)
        row_of_M = best_fit_decreasing(lengths_N[chosen_M], width)
        rows = int(row_of_M.max()) + 1
        size = batch_size or max(1, BATCH_TOKENS // width) * devices
        if rows <= 3 * size:  # a last batch that is nearly empty would weigh
            size = -(-rows // -(-rows // size))
        size = -(-size // devices) * devices
        by_row: list[list[int]] = [[] for _ in range(rows)]
        for text, row in zip(chosen_M.tolist(), row_of_M.tolist(), strict=True):
            by_row[row].append(text)
        for first in range(0, rows, size):
            yield _rows(texts, by_row[first : first + size], size, width)


def _rows(texts: Sequence[_Text], by_row: Sequence[Sequence[int]], size: int, width: int) -> _Batch:
    batch = _Batch(*(np.zeros((size, width), np.int32) for _ in range(3)), [])
    for row, those in enumerate(by_row):
        begin = 0
        for segment, text in enumerate(those, 1):
            tokens, branches, positions = texts[text]
            span = row, slice(begin, begin + len(tokens))
            batch.tokens[span], batch.positions[span] = tokens, positions
            batch.segment_ids[span] = segment + (np.array(branches, np.int32) << 16)
            batch.places.append((text, row * width + begin))
            begin += len(tokens)
    return batch


def _dispatch(model: "LanguageModel", batch: _Batch, queries: Sequence[tuple[int, int, int]]) -> tuple[Array, Array]:
    """Starts the computation of a batch, and of the queries (request, place in the flattened batch, token)."""
    count = max(CHUNK, 1 << (len(queries) - 1).bit_length())
    where_Q, token_Q = np.zeros((2, count), np.int32)
    _, where_Q[: len(queries)], token_Q[: len(queries)] = zip(*queries, strict=True)
    with jax.set_mesh(model.mesh):
        rows = NamedSharding(model.mesh, PartitionSpec(BATCH, "context"))
        arrays = (jax.device_put(x, rows) for x in batch[:3])
        shares = _shares_contexts(model.config)
        config = model.config.replace(attention=BRANCHES) if shares else model.config
        hidden_BTD = _hidden(config, model.params, *arrays)
        return _scores(model.params, hidden_BTD, where_Q, token_Q)


def _collect(queries: Sequence[tuple[int, int, int]], scores: tuple[Array, Array], found: list) -> None:
    """Puts the scores of a batch to the requests that asked for them."""
    logp_Q, is_greedy_Q = on_host(scores)
    begin = 0
    while begin < len(queries):
        number, end = queries[begin][0], begin + 1
        while end < len(queries) and queries[end][0] == number:
            end += 1
        found[number] = Likelihoods(logp_Q[begin:end], is_greedy_Q[begin:end])
        begin = end


@functools.partial(jax.jit, static_argnums=0)
def _hidden(
    config: LlamaConfig, params: llama.Params, tokens_BT, segment_ids_BT, positions_BT
) -> Float[Array, "B T D"]:
    return llama.build(config).hidden(params, tokens_BT, segment_ids_BT, positions_BT)


@jax.jit
def _scores(
    params: llama.Params, hidden_BTD: Float[Array, "B T D"], where_Q: Int[Array, " Q"], token_Q: Int[Array, " Q"]
) -> tuple[Float[Array, " Q"], Bool[Array, " Q"]]:
    """Log-probability of tokens at places of a flattened batch, and whether each is the likeliest."""
    kernel_DV = llama.output_kernel(params)
    hidden_QD = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])[where_Q]

    def chunk(_, given):
        hidden_qD, token_q = given
        logits_qV = linear(hidden_qD[None], kernel_DV, jnp.float32)[0]
        own_q = jnp.take_along_axis(logits_qV, token_q[:, None], axis=-1)[:, 0]
        return None, (own_q - jax.nn.logsumexp(logits_qV, axis=-1), own_q >= jnp.max(logits_qV, axis=-1))

    split = hidden_QD.reshape(-1, CHUNK, hidden_QD.shape[-1]), token_Q.reshape(-1, CHUNK)
    _, (logp, is_greedy) = jax.lax.scan(chunk, None, split)
    return logp.reshape(-1), is_greedy.reshape(-1)


def score(
    model: "LanguageModel", prompts: Sequence[Prompt], answers: Sequence[str], *, chat: bool, batch_size: int | None
) -> list[Float[np.ndarray, " T"]]:
    """`LanguageModel.score`."""
    if len(prompts) != len(answers):
        raise UserError(f"{len(prompts)} prompts and {len(answers)} answers: give an answer to each prompt")
    pairs = [(_chat if chat else _text)(model, *pair) for pair in zip(prompts, answers, strict=True)]
    return [each.logp for each in likelihoods(model, pairs, batch_size=batch_size)]


def _text(model: "LanguageModel", prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """The tokens of a text, and those of its continuation."""
    tokenizer = model._tokenizer()
    begin = [*([tokenizer.bos_id] if tokenizer.adds_bos else []), *tokenizer.encode(prompt)]
    return begin, tokenizer.encode(answer, continues=bool(prompt))


def _chat(model: "LanguageModel", prompt: Prompt, answer: str) -> tuple[list[int], list[int]]:
    """The tokens of a conversation, and those of the assistant's next turn."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    begun = len(model.prompt(messages))
    told = [*messages, {"role": "assistant", "content": answer}]
    encoded = model._template().encode(told, model._tokenizer())
    trained = np.flatnonzero(encoded.mask)
    first, end = int(trained[trained >= begun][0]), int(trained[-1]) + 1
    return encoded.tokens[:first].tolist(), encoded.tokens[first:end].tolist()


def continued(model: "LanguageModel", messages: Sequence[Mapping[str, str]]) -> list[int]:
    """The tokens of a conversation up to the last word of its last turn, which an answer goes on from."""
    if not messages[-1]["content"].strip():
        return model.prompt(messages[:-1])
    stop_ids = model._template().stop_ids(model._tokenizer())
    encoded = model._template().encode(messages, model._tokenizer())
    tokens = encoded.tokens[: int(np.flatnonzero(encoded.mask)[-1]) + 1].tolist()
    while tokens[-1] in stop_ids:
        tokens.pop()
    return tokens
