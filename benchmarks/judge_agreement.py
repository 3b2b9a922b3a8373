"""Measures how far a reward model can be trusted as a judge, where the true score of every answer is known.

The tuned and the PPO model of a finished `make quickstart` answer held-out prompts of the primer, in English and
Chinese. The quickstart's reward model compares their answers in pairs, with controls, and the primer scores the same
answers (the gold score). Printed are how often the judge prefers the answer that the primer scores higher, and the win
rate of PPO by both, with 95% intervals clustered by question. The workdir gets the questions, the answers and the
judgments of both, which `camelid judge report judgments.jsonl --gold=gold.jsonl` reads.

    .venv/bin/python benchmarks/judge_agreement.py --quickstart=runs/quickstart --workdir=runs/judge_agreement
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from camelid import load, load_reward, tasks
from camelid.checkpoints import open as open_checkpoint
from camelid.data.prompts import prompt_of
from camelid.evals import intervals
from camelid.evals.answers import Answer, ask_questions, write_records
from camelid.evals.grading import CONTROL, ScoringJudge, cases_of
from camelid.evals.judgments import Judgment
from camelid.evals.questions import Question
from camelid.serve.journal import Journal
from camelid.serve.local import Local
from camelid.tasks.groups import group_of

TASK = tasks.find("primer")
MODELS = ("sft", "ppo")


def records(per_group: int) -> dict[str, Mapping]:
    """The first held-out records of each skill in each language, by the id of the question."""
    found: dict[str, list[Mapping]] = {}
    for record in TASK.records("chat", "heldout"):
        found.setdefault(group_of(TASK.GROUPS, record), []).append(record)
    return {f"{group}/{i}": each for group, part in found.items() for i, each in enumerate(islice(part, per_group))}


def question_of(id: str, record: Mapping) -> Question:
    """The question that a record asks; its category is the skill."""
    messages, reference = prompt_of(record)
    [turn] = [message["content"] for message in messages]
    return Question(id, (turn,), record["meta"]["skill"], (reference,), record["meta"]["language"])


def answers_of(path: Path, questions: Sequence[Question], temperature: float, workdir: Path) -> dict[str, Answer]:
    """A model's answers by the id of the question; the journal keeps them for the next call."""
    with Journal(workdir / f"{path.name}.journal") as journal:
        identity = open_checkpoint(path).identity[1:]
        asker = Local(load(path), path.name, identity, journal=journal, batch_size=64)
        answers = ask_questions(questions, asker, temperature=temperature, max_tokens=48, seed=0)
    write_records(answers, workdir / f"{path.name}.jsonl")
    return {answer.question_id: answer for answer in answers}


def agreement(pairs: Iterable[tuple[Judgment, Judgment]]) -> str:
    """How often the judge prefers the answer with the higher gold score; a tie of the judge counts as half.

    Pairs whose gold scores are equal tell nothing and are left out.
    """
    told = [(judged, gold) for judged, gold in pairs if gold.winner != "tie"]
    if not told:
        return "– (no pair with different gold scores)"
    values = [0.5 if judged.winner == "tie" else float(judged.winner == gold.winner) for judged, gold in told]
    return shown(values, [judged.question for judged, _ in told])


def wins(judgments: Iterable[Judgment], model: str) -> tuple[list[float], list[str]]:
    """For each pair 1 if a model wins, 0.5 for a tie and 0 if it loses; and the question."""
    told = [each for each in judgments if model in each.models]
    won = [0.5 if each.winner == "tie" else float(each.models["ab".index(each.winner)] == model) for each in told]
    return won, [each.question for each in told]


def shown(values: Sequence[float], clusters: Sequence[str]) -> str:
    """A mean with its interval, in percent, and the number of questions."""
    found = intervals.mean(values, clusters)
    return f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%}; {found.clusters} questions)"


def report(judged: Sequence[Judgment], gold: Sequence[Judgment]) -> None:
    """Prints the tables in Markdown."""
    pairs = list(zip(judged, gold, strict=True))
    between = [pair for pair in pairs if set(pair[0].models) == set(MODELS)]
    print("\n| the judge prefers the answer with the higher gold score | share |\n| --- | --- |")
    print(f"| all pairs of {' and '.join(MODELS)} | {agreement(between)} |")
    for field, place in (("language", 1), ("skill", 0)):
        for name in TASK.GROUPS[field]:
            print(f"| {name} | {agreement(p for p in between if p[0].question.split('/')[place] == name)} |")
    print("\n| win rate | by the reward model | by the gold score |\n| --- | --- | --- |")
    equal = [pair for pair in between if pair[1].winner == "tie"]
    print(f"| ppo over sft | {' | '.join(shown(*wins(side, 'ppo')) for side in zip(*between, strict=True))} |")
    print(f"| where the gold scores are equal | {shown(*wins([pair[0] for pair in equal], 'ppo'))} | 50% |")
    for model in MODELS:
        for control in (f"{CONTROL}null", f"{CONTROL}verbose:{model}", f"{CONTROL}identical:{model}"):
            chosen = [pair for pair in pairs if set(pair[0].models) == {control, model}]
            rates = [shown(*wins(side, control)) for side in zip(*chosen, strict=True)]
            print(f"| {control} over {model} | {' | '.join(rates)} |")
    (by_judge, clusters), (by_gold, _) = (wins(side, "ppo") for side in zip(*between, strict=True))
    apart = intervals.difference(by_judge, by_gold, clusters)
    print(f"\nThe judge's win rate of ppo less the gold one: {apart} ({intervals.in_words(apart)})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quickstart", type=Path, required=True, help="folder of a finished `make quickstart`")
    parser.add_argument("--workdir", type=Path, required=True, help="folder for questions, answers and judgments")
    parser.add_argument(
        "--per_group", type=int, default=50, help="prompts of each skill in each language (default: 50)"
    )
    parser.add_argument("--temperature", type=float, default=0.7, help="temperature of the answers (default: 0.7)")
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)

    found = records(args.per_group)
    questions = [question_of(id, record) for id, record in found.items()]
    lines = [json.dumps(vars(question) | {"question_id": question.id}, ensure_ascii=False) for question in questions]
    (args.workdir / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    answers = {name: answers_of(args.quickstart / name, questions, args.temperature, args.workdir) for name in MODELS}
    print("| mean gold score | |\n| --- | --- |")
    for name, each in answers.items():
        scores = [TASK.reward({"messages": prompt_of(found[id])[0]}, each[id].turns[0]) for id in found]
        print(f"| {name} | {intervals.mean(scores)} |")

    def gold(prompts: Sequence[Sequence[Mapping[str, str]]], said: Sequence[str]) -> list[float]:
        return [TASK.reward({"messages": prompt}, text) for prompt, text in zip(prompts, said, strict=True)]

    cases = cases_of(questions, answers, pairs=True)
    judged = ScoringJudge(load_reward(args.quickstart / "reward").score, "reward").judge(cases)
    true = ScoringJudge(gold, "gold").judge(cases)
    write_records(judged, args.workdir / "judgments.jsonl")
    write_records(true, args.workdir / "gold.jsonl")
    report(judged, true)


if __name__ == "__main__":
    main()
