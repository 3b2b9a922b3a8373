"""Log-probabilities of given answers: `LanguageModel.score`."""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..errors import UserError
from ..model import decode, llama
from ..model.config import LlamaConfig
from ..model.logprobs import token_logprobs

if TYPE_CHECKING:
    from .language_model import LanguageModel

Prompt = str | Sequence[Mapping[str, str]]


def score(
    model: "LanguageModel", prompts: Sequence[Prompt], answers: Sequence[str], *, chat: bool, batch_size: int
) -> list[Float[np.ndarray, " T"]]:
    """`LanguageModel.score`. Batches have rows of like length, padded to a power of two, so that few are compiled."""
    if len(prompts) != len(answers):
        raise UserError(f"{len(prompts)} prompts and {len(answers)} answers: give an answer to each prompt")
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size}: give 1 or more")
    pairs = [(_chat if chat else _text)(model, *pair) for pair in zip(prompts, answers, strict=True)]
    for number, (tokens, first) in enumerate(pairs, 1):
        if not 0 < first < len(tokens) or len(tokens) > model.config.max_len:
            said = f"answer {number}: prompt and answer have {first} and {len(tokens) - first} tokens"
            most = f"at most the context of {model.config.max_len:,} together"
            raise UserError(f"{said}; give one or more of each, {most}")
    found: list[Any] = [None] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]))
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        tokens_BT, lengths_B = decode.pad_prompts([pairs[i][0] for i in chosen])
        tokens_BT = np.pad(tokens_BT, ((0, batch_size - len(chosen)), (0, 0)))
        with jax.set_mesh(model.mesh):
            logp_BT = np.asarray(_next_token_logprobs(model.config, model.params, tokens_BT))
        for row_T, length, i in zip(logp_BT, lengths_B, chosen, strict=False):
            found[i] = row_T[pairs[i][1] - 1 : length - 1]
    return found


def _text(model: "LanguageModel", prompt: str, answer: str) -> tuple[list[int], int]:
    """The tokens of a text with its continuation, and the place of the continuation's first token."""
    tokenizer = model._tokenizer()
    begin = [*([tokenizer.bos_id] if tokenizer.adds_bos else []), *tokenizer.encode(prompt)]
    return begin + tokenizer.encode(answer, continues=bool(prompt)), len(begin)


def _chat(model: "LanguageModel", prompt: Prompt, answer: str) -> tuple[list[int], int]:
    """The tokens of a conversation with the assistant's next turn, and the place of that turn's first token."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    begun = len(model.prompt(messages))
    told = [*messages, {"role": "assistant", "content": answer}]
    encoded = model._template().encode(told, model._tokenizer())
    trained = np.flatnonzero(encoded.mask)
    return encoded.tokens[: int(trained[-1]) + 1].tolist(), int(trained[trained >= begun][0])


@functools.partial(jax.jit, static_argnums=0)
def _next_token_logprobs(config: LlamaConfig, params: llama.Params, tokens_BT: Int[Array, "B T"]) -> jax.Array:
    """Log-probability of the token after each position; of no meaning at the last."""
    batch = {"tokens": tokens_BT, "targets": jnp.roll(tokens_BT, -1, axis=1), "segment_ids": jnp.ones_like(tokens_BT)}
    batch["positions"] = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    return token_logprobs(llama.build(config), params, batch).logp
