"""Many answers to each prompt, and what becomes of them: preference pairs, or the best of n, to be tuned on (RAFT)."""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from ..data.errors import UserError
from ..data.prompts import read_prompts
from ..data.samples import Sample
from ..model.decode import pad_prompts
from ..model.sampling import Sampling
from ..train.bundle import Llama
from . import scalar
from .rewards import find_function, load_model

Judge = Callable[[Sequence[Sample], Sequence[Sequence[list[int]]]], list[list[float]]]
"""judge(prompts, the answers' tokens of each) -> the answers' scores."""


class Answers(NamedTuple):
    """A prompt's record, as rewards see it, and the answers to it with their scores: texts that differ."""

    record: dict
    texts: list[str]
    scores: list[float]


def sample_answers(
    llama: Llama,
    source: str,
    reward: str,
    *,
    prompts: int,
    n: int,
    max_tokens: int,
    format: str = "auto",
    split: str | None = "train",
    heldout: float = 0.01,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
) -> list[Answers]:
    """`n` answers to each of the first `prompts` prompts of a source; those that say the same are kept once.

    reward: "package.module:function" as in `rewards`, or the path of a reward model. An answer that does not end within
    `max_tokens` is scored like any other.
    """
    tokenizer, template = llama.tokenizer, llama.template
    if tokenizer is None or template is None:
        raise UserError("answers need a model with tokenizer and chat template: tune it with the recipe `sft`")
    room = llama.config.max_len - max_tokens
    samples = read_prompts(
        source,
        format=format,
        tokenizer=tokenizer,
        template=template,
        max_tokens=room,
        split=split,
        heldout=heldout,
        limit=prompts,
    ).samples
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, n=n, stop_ids=template.stop_ids(tokenizer))
    tokens = llama.complete([s.arrays["tokens"].tolist() for s in samples], sampling, seed=seed, batch_size=batch_size)
    groups = [_distinct(tokens[i * n : (i + 1) * n], tokenizer) for i in range(len(samples))]
    judge = _function_judge(reward, tokenizer) if ":" in reward else _model_judge(reward, llama)
    scores = judge(samples, [list(group.values()) for group in groups])
    return [Answers(s.record, list(g), x) for s, g, x in zip(samples, groups, scores, strict=True)]


def _distinct(answers: Sequence[list[int]], tokenizer) -> dict[str, list[int]]:
    """Tokens by text, the first of each."""
    found: dict[str, list[int]] = {}
    for tokens in answers:
        found.setdefault(tokenizer.decode(tokens).strip(), tokens)
    return found


def _function_judge(name: str, tokenizer) -> Judge:
    function = find_function(name, "--reward")

    def judge(samples, answers):
        return [
            [float(function(sample.record, tokenizer.decode(tokens).strip())) for tokens in group]
            for sample, group in zip(samples, answers, strict=True)
        ]

    return judge


def _model_judge(path: str, llama: Llama, batch_size: int = 64) -> Judge:
    model, params = load_model(path, llama.tokenizer, llama.mesh, llama.config.dtype)
    score = jax.jit(lambda params, tokens, lengths: scalar.combine(scalar.last_scores(model, params, tokens, lengths)))

    def judge(samples, answers):
        rows = [s.arrays["tokens"].tolist() + a for s, group in zip(samples, answers, strict=True) for a in group]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        scores = np.zeros(len(rows))
        with jax.set_mesh(llama.mesh):
            for first in range(0, len(order), batch_size):
                chosen = order[first : first + batch_size]
                filled = chosen + chosen[-1:] * (batch_size - len(chosen))
                tokens_RT, lengths_R = pad_prompts([rows[i] for i in filled])
                scores[chosen] = np.asarray(score(params, tokens_RT, lengths_R))[: len(chosen)]
        ends = np.cumsum([len(group) for group in answers])
        return [part.tolist() for part in np.split(scores, ends[:-1])]

    return judge


def pairs_of(answers: Iterable[Answers], *, noise: float, seed: int = 0, per_prompt: int = 1) -> Iterator[dict]:
    """Preference records: two answers to a prompt with different scores, the better one chosen.

    Of a prompt's pairs `per_prompt` are drawn at random. A share `noise` of all pairs, by a hash of the pair and the
    seed, is labelled the wrong way round: `meta.flipped` says so, and the margin is negative there.
    """
    for record, texts, scores in answers:
        prompt = record["messages"][-1]["content"]
        rng = random.Random(f"{seed}/{prompt}")
        ranked = sorted(zip(scores, texts, strict=True), reverse=True)
        possible = [(a, b) for i, a in enumerate(ranked) for b in ranked[i + 1 :] if a[0] > b[0] and a[1]]
        for better, worse in rng.sample(possible, min(per_prompt, len(possible))):
            digest = blake2b(f"{seed}/{prompt}/{better[1]}/{worse[1]}".encode(), digest_size=8).digest()
            flipped = int.from_bytes(digest) < noise * 2**64 and worse[1] != ""
            chosen, rejected = (worse, better) if flipped else (better, worse)
            yield {
                "kind": "preference",
                "messages": record["messages"],
                "chosen": [{"role": "assistant", "content": chosen[1]}],
                "rejected": [{"role": "assistant", "content": rejected[1]}],
                "margin": chosen[0] - rejected[0],
                "meta": record["meta"] | {"flipped": flipped},
            }


def best_of(answers: Iterable[Answers]) -> Iterator[dict]:
    """Chat records of each prompt with its best answer, the first of equals (RAFT, arXiv:2304.06767, algorithm 1)."""
    for record, texts, scores in answers:
        best = texts[int(np.argmax(scores))]
        if best:
            messages = [*record["messages"], {"role": "assistant", "content": best}]
            yield {"kind": "chat", "messages": messages, "meta": record["meta"] | {"score": max(scores)}}


def write(records: Iterable[dict], path: epath.PathLike) -> int:
    """Writes records as JSON lines, all of them or no file; returns how many."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    if not lines:
        raise UserError(f"{path}: nothing to write: no prompt has two answers of different scores; raise --temperature")
    partial = path.with_suffix(".partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(path)
    return len(lines)
