"""Draws and scores many answers to each prompt, and makes preference pairs or best-of-n conversations of them."""

import dataclasses
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

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
from ..train.network import FrozenWeights
from . import rewards
from .reward_functions import RewardFunction, check_functions, score_all
from .reward_model import RewardModel
from .rewards import load_model

SCORED_TOGETHER = 64
"""Number of answers that a reward model, or a function reward(records, answers), scores at a time."""


class ScoredAnswers(NamedTuple):
    """The answers to one prompt, with their scores."""

    prompt: Sample
    """The prompt, encoded by `data.prompts`."""
    texts: list[str]
    """Text of each answer."""
    tokens: list[list[int]]
    """Token ids of each answer."""
    scores: list[float]
    """Score of each answer."""


ScoreFunction = Callable[[Sequence[ScoredAnswers]], list[list[float]]]
"""score(answers) -> the scores of the answers to each prompt."""


class DrawSettings(NamedTuple):
    """How answers are drawn."""

    n: int
    """Number of answers to each prompt."""
    max_tokens: int
    """The most tokens of an answer."""
    temperature: float = 1.0
    """Divisor of the logits."""
    stop: Sequence[str] = ()
    """Strings that end an answer, in addition to the model's own; its text ends before them."""
    seed: int = 0
    """Seed of the draws."""
    batch_size: int = 64
    """Number of answers that are decoded at a time."""


def prompt_encoder(llama: LanguageModel, max_tokens: int) -> PromptEncoder:
    """The encoder of prompts that leaves room for an answer of `max_tokens` tokens in the model's context.

    Raises UserError for a model without tokenizer or chat template, or if no room is left for a prompt.
    """
    if llama.tokenizer is None or llama.template is None:
        raise UserError("the model has no tokenizer or no chat template: tune it with the recipe `sft` first")
    room = llama.config.max_len - max_tokens
    if room < 1:
        raise UserError(
            f"max_tokens = {max_tokens} leaves no room for a prompt in the context of {llama.config.max_len} tokens; "
            "give less"
        )
    return PromptEncoder(llama.tokenizer, llama.template, room)


def sample_answers(
    llama: LanguageModel, prompts: Samples, reward: str, settings: DrawSettings, *, keep_repeated: bool = False
) -> list[ScoredAnswers]:
    """Draws answers of a model to each prompt, and scores them.

    Args:
      llama: the model.
      prompts: the prompts, encoded by `prompt_encoder`.
      reward: a task's score ("walks"), a function ("package.module:name" or "file.py:name", see `reward_functions`), or
        the path of a reward model. An answer that is cut at `settings.max_tokens` is scored like any other.
      settings: how answers are drawn.
      keep_repeated: whether answers to a prompt with the same text are all kept; otherwise the first of them is.
    """
    score = score_function(llama, reward, [s.record for s in prompts.samples])  # first: drawing answers takes long
    tokenizer, n = llama.tokenizer, settings.n
    sampling = sampling_of(
        tokenizer,
        llama.config.vocab_size,
        stop_ids=(*llama.template.stop_ids(tokenizer), *llama.generation.stop_ids),
        stop=strings_of(settings.stop, llama.generation),
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        n=n,
    )
    prompt_tokens = [sample.arrays["tokens"].tolist() for sample in prompts.samples]
    tokens = llama.complete(prompt_tokens, sampling, seed=settings.seed, batch_size=settings.batch_size)
    answers = []
    for i, sample in enumerate(prompts.samples):
        group = [(text_of(tokenizer, ids, sampling).strip(), ids) for ids in tokens[i * n : (i + 1) * n]]
        if not keep_repeated:
            group = [pair for place, pair in enumerate(group) if pair[0] not in dict(group[:place])]
        answers.append(ScoredAnswers(sample, *map(list, zip(*group, strict=True)), scores=[]))
    return [group._replace(scores=scores) for group, scores in zip(answers, score(answers), strict=True)]


def score_function(llama: LanguageModel, reward: str, records: Sequence[Mapping] = ()) -> ScoreFunction:
    """The function that scores answers by a reward.

    Args:
      llama: the model whose answers are scored.
      reward: a task's score, a function, or the path of a reward model.
      records: records of prompts, with which a function is tried (`reward_functions.check_functions`).
    """
    is_task = reward.partition(":")[0] in tasks.NAMES
    if not is_task and ":" not in reward:
        return _by_model(reward, llama)
    source = rewards.RewardSource(**{"task" if is_task else "function": reward})
    function = dataclasses.replace(source.find("--reward"), batch_size=SCORED_TOGETHER)
    check_functions({reward: function}, records)
    return _by_function(reward, function)


def score_again(llama: LanguageModel, reward: str, answers: Sequence[ScoredAnswers]) -> list[list[float]]:
    """Scores the answers to each prompt again, by a reward named as in `score_function`. llama: the answers' model."""
    return score_function(llama, reward)(answers)


def _by_function(name: str, function: RewardFunction) -> ScoreFunction:
    def score(answers):
        records, texts = [a.prompt.record for a in answers for _ in a.texts], [t for a in answers for t in a.texts]
        found = score_all({name: function}, records, texts)[name]
        return [part.tolist() for part in np.split(found, _ends([a.texts for a in answers]))]

    return score


def _by_model(path: str, llama: LanguageModel) -> ScoreFunction:
    found, frozen = open_checkpoint(path), FrozenWeights(llama.mesh)
    network = load_model(found, llama.tokenizer, frozen, llama.config.dtype)
    reward = RewardModel(*network, found.tokenizer, found.template, llama.mesh, found.step)

    def score(answers):
        rows = [a.prompt.arrays["tokens"].tolist() + ids for a in answers for ids in a.tokens]
        found = reward.score_tokens(rows, batch_size=SCORED_TOGETHER)
        return [part.tolist() for part in np.split(found, _ends([a.tokens for a in answers]))]

    return score


def _ends(groups: Sequence[Sequence]) -> np.ndarray:
    """Where each group but the last ends when all stand one after the other."""
    return np.cumsum([len(group) for group in groups])[:-1]


def pairs_of(
    answers: Iterable[ScoredAnswers], *, seed: int = 0, per_prompt: int = 1, others: int = 0
) -> Iterator[dict]:
    """Preference records: pairs of answers to a prompt with different scores, the better one chosen.

    Args:
      answers: the answers to each prompt.
      seed: seed of the choice of pairs.
      per_prompt: the most pairs of a prompt, drawn at random from all its pairs.
      others: the most further answers that score less than the chosen one, which the record keeps in meta["others"].
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
    """{"others": the first `most` further texts that score less than the better one}; {} for `most` 0."""
    found = [text for score, text in ranked if score < better[0] and text not in (worse[1], "")]
    return {"others": found[:most]} if most else {}


def best_of(answers: Iterable[ScoredAnswers]) -> Iterator[dict]:
    """A chat record of each prompt with its best answer (RAFT, arXiv:2304.06767, algorithm 1).

    Of equal scores the first answer is taken. A prompt whose best answer is empty is left out.
    """
    for found in answers:
        record, best = found.prompt.record, found.texts[int(np.argmax(found.scores))]
        if best:
            messages = [*record["messages"], {"role": "assistant", "content": best}]
            meta = record["meta"] | {"score": max(found.scores)}
            yield {"kind": "chat", "messages": messages, "meta": meta, **_around(record)}


def _around(record: Mapping) -> dict[str, list]:
    """The tools and documents of a prompt's record, which the template writes with the messages."""
    return {name: record[name] for name in ("tools", "documents") if name in record}


def write(
    records: Iterable[dict], path: epath.PathLike, hint: str = "draw more answers, or at a higher temperature"
) -> int:
    """Writes records as a file of JSON lines, and returns their number.

    Args:
      records: the records.
      path: the file; it appears only when it is complete.
      hint: what to do if there are no records, for the message of the UserError that this raises.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    if not lines:
        raise UserError(
            f"{path}: nothing to write: no prompt has answers of different scores, or all are empty; {hint}"
        )
    write_whole(path, "\n".join(lines) + "\n")
    return len(lines)
