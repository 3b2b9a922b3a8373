"""The gold score of a model on the primer's held-out prompts: per skill, per language, and over all."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from ..checkpoints.language_model import Llama
from ..tasks import primer
from ..train.leaves import Count, NotNegative, Whole

UNFILTERED = dict(top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)  # whatever the model recommends


def gold(
    llama: Llama, *, per_skill: Count = 20, max_tokens: Count = 48, temperature: NotNegative = 0.0, shown: Whole = 1
) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Answers `per_skill` held-out prompts of each skill in each language and scores them.

    Returns mean scores in [0, 1] under "all", each language, each skill and "skill/language", and `shown` samples of
    each skill and language as rows.
    """
    records = [r for language in primer.LANGUAGES for r in primer.heldout_prompts(per_skill, language)]
    prompts = [r["messages"][0]["content"] for r in records]
    answers = llama.chat_batch(prompts, max_tokens=max_tokens, temperature=temperature, **UNFILTERED)
    scores = [primer.score(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return _means(records, scores), _samples(records, prompts, answers, scores, shown)


def _means(records: Sequence[Mapping], scores: Sequence[float]) -> dict[str, float]:
    groups = defaultdict(list)
    for record, score in zip(records, scores, strict=True):
        skill, language = record["meta"]["skill"], record["meta"]["language"]
        for name in ("all", language, skill, f"{skill}/{language}"):
            groups[name].append(score)
    return {name: sum(values) / len(values) for name, values in groups.items()}


def _samples(records, prompts, answers, scores, shown: int) -> list[dict[str, str]]:
    rows, count = [], defaultdict(int)
    for record, prompt, answer, score in zip(records, prompts, answers, scores, strict=True):
        key = (record["meta"]["skill"], record["meta"]["language"])
        count[key] += 1
        if count[key] <= shown:
            rows.append({"skill": key[0], "prompt": prompt, "answer": answer, "gold": f"{score:.2f}"})
    return rows


gold.metrics = (
    "all",
    *primer.LANGUAGES,
    *primer.SKILLS,
    *(f"{skill}/{language}" for skill in primer.SKILLS for language in primer.LANGUAGES),
)
"""The names of the metrics that it gives, by which a run may watch them."""
