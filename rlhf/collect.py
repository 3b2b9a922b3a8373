"""Many answers to each prompt, and what becomes of them: preference pairs, or the best of n, to be tuned on (RAFT)."""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from .. import tasks
from ..checkpoints.decoding import sampling_of, strings_of, text_of
from ..checkpoints.language_model import Llama
from ..data.checksums import write_whole
from ..data.prompts import read_prompts, spread
from ..data.samples import Sample
from ..data.sources import Report
from ..errors import UserError
from ..model.decode import pad_prompts
from ..train.adapters import Bases
from . import scalar
from .rewards import function_of, load_model, scores_of


class Answers(NamedTuple):
    """A prompt's sample (data.prompts), the answers to it as texts and tokens, and their scores."""

    prompt: Sample
    texts: list[str]
    tokens: list[list[int]]
    scores: list[float]


Judge = Callable[[Sequence[Answers]], list[list[float]]]
"""judge(answers) -> their scores, prompt by prompt."""


def sample_answers(
    llama: Llama,
    source: str,
    reward: str,
    *,
    prompts: int,
    n: int,
    max_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    keep_repeated: bool = False,
    evenly: bool = False,
    stop: str | Sequence[str] = (),
    report: Report | None = None,
    **reading,
) -> list[Answers]:
    """`n` answers to each of the first `prompts` prompts of a source; those that say the same are kept once, or each.

    evenly: of all its prompts take so many at even distances, which are those that evaluations take.
    reward: a task's score or "package.module:function" as in `rewards`, or the path of a reward model. An answer that
    does not end within `max_tokens` is scored like any other. stop: strings before which an answer's text ends, beside
    those of the model.
    report: counts what was read and left out. reading: `format`, `split`, `heldout`, `on_error` and `max_record_bytes`,
    as `sources.read` takes them.
    """
    tokenizer, template = llama.tokenizer, llama.template
    if tokenizer is None or template is None:
        raise UserError("answers need a model with tokenizer and chat template: tune it with the recipe `sft`")
    judge = judge_of(llama, reward)  # before answers are drawn, which takes long
    room = llama.config.max_len - max_tokens
    if room < 1:
        raise UserError(f"max_tokens {max_tokens}: the context of {llama.config.max_len} leaves none for a prompt")
    found = read_prompts(
        source,
        tokenizer=tokenizer,
        template=template,
        max_tokens=room,
        limit=None if evenly else prompts,
        **reading,
    )
    if report is not None:
        report.add(found.counts, found.skipped)
    samples = spread(found.samples, prompts)
    sampling = sampling_of(
        tokenizer,
        llama.config.vocab_size,
        stop_ids=(*template.stop_ids(tokenizer), *llama.generation.stop_ids),
        stop=strings_of(stop, llama.generation),
        max_tokens=max_tokens,
        temperature=temperature,
        n=n,
    )
    tokens = llama.complete([s.arrays["tokens"].tolist() for s in samples], sampling, seed=seed, batch_size=batch_size)
    answers = []
    for i, sample in enumerate(samples):
        group = [(text_of(tokenizer, ids, sampling).strip(), ids) for ids in tokens[i * n : (i + 1) * n]]
        if not keep_repeated:
            group = [pair for place, pair in enumerate(group) if pair[0] not in dict(group[:place])]
        answers.append(Answers(sample, *map(list, zip(*group, strict=True)), scores=[]))
    scores = judge(answers)
    return [found._replace(scores=x) for found, x in zip(answers, scores, strict=True)]


def judge_of(llama: Llama, reward: str) -> Judge:
    """The judge of a reward that is given as in `sample_answers`."""
    is_task = reward.partition(":")[0] in tasks.NAMES
    if is_task or ":" in reward:
        return _function_judge(reward, function_of({"task" if is_task else "function": reward}, "--reward"))
    return _model_judge(reward, llama)


def score_again(llama: Llama, reward: str, answers: Sequence[Answers]) -> list[list[float]]:
    """What a reward, given as in `sample_answers`, makes of these answers."""
    return judge_of(llama, reward)(answers)


def _function_judge(name: str, function: tasks.Score) -> Judge:
    def judge(answers):
        return [scores_of(name, function, [a.prompt.record] * len(a.texts), a.texts).tolist() for a in answers]

    return judge


def _model_judge(path: str, llama: Llama, batch_size: int = 64) -> Judge:
    model, params = load_model(path, llama.tokenizer, Bases(llama.mesh), llama.config.dtype)
    score = jax.jit(lambda params, tokens, lengths: scalar.combine(scalar.last_scores(model, params, tokens, lengths)))

    def judge(answers):
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

    return judge


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
