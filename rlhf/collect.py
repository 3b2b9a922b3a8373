"""Many answers to each prompt, and what becomes of them: preference pairs, or the best of n, to be tuned on (RAFT)."""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from .. import tasks
from ..checkpoints import open as open_checkpoint
from ..checkpoints.decoding import sampling_of, strings_of, text_of
from ..checkpoints.language_model import LanguageModel
from ..data.checksums import write_whole
from ..data.prompts import PromptEncoder
from ..data.samples import Sample, Samples
from ..errors import UserError
from ..model.decode import pad_prompts
from ..train.network import FrozenWeights
from . import rewards, scalar
from .rewards import load_model, scores_of


class Answers(NamedTuple):
    """Answers to one prompt."""

    prompt: Sample  # as `data.prompts` encodes it
    texts: list[str]
    tokens: list[list[int]]
    scores: list[float]


Scorer = Callable[[Sequence[Answers]], list[list[float]]]
"""scorer(answers) -> their scores, prompt by prompt."""


class Drawing(NamedTuple):
    """How answers are drawn."""

    n: int  # answers to each prompt
    max_tokens: int  # most tokens of an answer
    temperature: float = 1.0
    stop: Sequence[str] = ()  # strings before which the text of an answer ends, beside those of the model
    seed: int = 0
    batch_size: int = 64  # answers that are decoded at a time


def prompt_encoder(llama: LanguageModel, max_tokens: int) -> PromptEncoder:
    """The encoder of prompts that leave room for `max_tokens` tokens of an answer in the context of a model.

    Raises UserError for a model without a tokenizer or a chat template, and where there is no room for a prompt.
    """
    if llama.tokenizer is None or llama.template is None:
        raise UserError("answers need a model with tokenizer and chat template: tune it with the recipe `sft`")
    room = llama.config.max_len - max_tokens
    if room < 1:
        raise UserError(f"max_tokens {max_tokens}: the context of {llama.config.max_len} leaves none for a prompt")
    return PromptEncoder(llama.tokenizer, llama.template, room)


def sample_answers(
    llama: LanguageModel, prompts: Samples, reward: str, drawing: Drawing, *, keep_repeated: bool = False
) -> list[Answers]:
    """Answers of a model to each prompt, and their scores.

    Args:
      llama: the model.
      prompts: encoded by `prompt_encoder`.
      reward: "package.module:function" as in `rewards`, or the path of a reward model. An answer that does not end
        within `drawing.max_tokens` is scored like any other.
      drawing: how answers are drawn.
      keep_repeated: whether answers to a prompt that say the same are all kept; else the first of them is.
    """
    scorer = scorer_of(llama, reward)  # before answers are drawn, which takes long
    tokenizer, n = llama.tokenizer, drawing.n
    sampling = sampling_of(
        tokenizer,
        llama.config.vocab_size,
        stop_ids=(*llama.template.stop_ids(tokenizer), *llama.generation.stop_ids),
        stop=strings_of(drawing.stop, llama.generation),
        max_tokens=drawing.max_tokens,
        temperature=drawing.temperature,
        n=n,
    )
    asked = [sample.arrays["tokens"].tolist() for sample in prompts.samples]
    tokens = llama.complete(asked, sampling, seed=drawing.seed, batch_size=drawing.batch_size)
    answers = []
    for i, sample in enumerate(prompts.samples):
        group = [(text_of(tokenizer, ids, sampling).strip(), ids) for ids in tokens[i * n : (i + 1) * n]]
        if not keep_repeated:
            group = [pair for place, pair in enumerate(group) if pair[0] not in dict(group[:place])]
        answers.append(Answers(sample, *map(list, zip(*group, strict=True)), scores=[]))
    scores = scorer(answers)
    return [found._replace(scores=x) for found, x in zip(answers, scores, strict=True)]


def scorer_of(llama: LanguageModel, reward: str) -> Scorer:
    """The scorer of a reward that is given as in `sample_answers`."""
    is_task = reward.partition(":")[0] in tasks.NAMES
    if is_task or ":" in reward:
        source = rewards.Scorer(**{"task" if is_task else "function": reward})
        return _function_scorer(reward, source.find("--reward"))
    return _model_scorer(reward, llama)


def score_again(llama: LanguageModel, reward: str, answers: Sequence[Answers]) -> list[list[float]]:
    """What a reward, given as in `sample_answers`, makes of these answers."""
    return scorer_of(llama, reward)(answers)


def _function_scorer(name: str, function: tasks.Score) -> Scorer:
    def scorer(answers):
        return [scores_of(name, function, [a.prompt.record] * len(a.texts), a.texts).tolist() for a in answers]

    return scorer


def _model_scorer(path: str, llama: LanguageModel, batch_size: int = 64) -> Scorer:
    model, params = load_model(open_checkpoint(path), llama.tokenizer, FrozenWeights(llama.mesh), llama.config.dtype)
    score = jax.jit(lambda params, tokens, lengths: scalar.combine(scalar.last_scores(model, params, tokens, lengths)))

    def scorer(answers):
        rows = [a.prompt.arrays["tokens"].tolist() + ids for a in answers for ids in a.tokens]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        scores = np.zeros(len(rows))
        with jax.set_mesh(llama.mesh):
            for first in range(0, len(order), batch_size):
                chosen = order[first : first + batch_size]
                filled = chosen + chosen[-1:] * (batch_size - len(chosen))
                tokens_RT, lengths_R = pad_prompts([rows[i] for i in filled])
                scores[chosen] = np.asarray(score(params, tokens_RT, lengths_R))[: len(chosen)]
        ends = np.cumsum([len(a.tokens) for a in answers])
        return [part.tolist() for part in np.split(scores, ends[:-1])]

    return scorer


def pairs_of(answers: Iterable[Answers], *, seed: int = 0, per_prompt: int = 1, others: int = 0) -> Iterator[dict]:
    """Preference records: two answers to a prompt with different scores, the better one chosen.

    Of a prompt's pairs `per_prompt` are drawn at random. Up to `others` further answers that score less than the chosen
    one stand in "others".
    """
    for found in answers:
        record = found.prompt.record
        rng = random.Random(f"{seed}/{record['messages'][-1]['content']}")
        ranked = sorted(zip(found.scores, found.texts, strict=True), reverse=True)
        possible = [(a, b) for i, a in enumerate(ranked) for b in ranked[i + 1 :] if a[0] > b[0] and a[1]]
        for better, worse in rng.sample(possible, min(per_prompt, len(possible))):
            yield {
                "kind": "preference",
                "messages": record["messages"],
                "chosen": [{"role": "assistant", "content": better[1]}],
                "rejected": [{"role": "assistant", "content": worse[1]}],
                "margin": better[0] - worse[0],
                "meta": record["meta"] | _others(better, worse, ranked, others),
                **_around(record),
            }


def _others(better: tuple, worse: tuple, ranked: list[tuple], most: int) -> dict[str, list[str]]:
    """{"others": further texts that score less than the better one}; {} where none is asked for."""
    found = [text for score, text in ranked if score < better[0] and text not in (worse[1], "")]
    return {"others": found[:most]} if most else {}


def best_of(answers: Iterable[Answers]) -> Iterator[dict]:
    """Chat records of each prompt with its best answer, the first of equals (RAFT, arXiv:2304.06767, algorithm 1)."""
    for found in answers:
        record, best = found.prompt.record, found.texts[int(np.argmax(found.scores))]
        if best:
            messages = [*record["messages"], {"role": "assistant", "content": best}]
            meta = record["meta"] | {"score": max(found.scores)}
            yield {"kind": "chat", "messages": messages, "meta": meta, **_around(record)}


def _around(record: Mapping) -> dict[str, list]:
    """What a prompt's record gives to the template beside its messages."""
    return {name: record[name] for name in ("tools", "documents") if name in record}


def write(
    records: Iterable[dict], path: epath.PathLike, hint: str = "draw more answers, or at a higher temperature"
) -> int:
    """Writes records as JSON lines, all of them or no file; returns how many. hint: what to do where there are none."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    if not lines:
        raise UserError(
            f"{path}: nothing to write: no prompt has answers of different scores, or all are empty; {hint}"
        )
    write_whole(path, "\n".join(lines) + "\n")
    return len(lines)
