"""Small tasks of lm-evaluation-harness on local files, for `eval_parity.py`, `eval_speed.py` and the tests.

Their documents are the primer's questions (`tasks/primer`), so nothing is downloaded.
"""

import json
from pathlib import Path

import yaml

from camelid import tasks

COMMON = {"dataset_path": "json", "test_split": "test", "metadata": {"version": 1.0}}


def mean(*metrics: str, **settings) -> list[dict]:
    """The metric_list of means."""
    return [{"metric": each, "aggregation": "mean", "higher_is_better": True, **settings} for each in metrics]


TASKS = {
    "parity_choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "gold",
        "doc_to_choice": "{{choices}}",
        "num_fewshot": 2,
        "fewshot_split": "test",
        "fewshot_config": {"sampler": "first_n"},
        "metric_list": [
            *mean("acc", "acc_norm", "acc_bytes", "acc_mutual_info"),
            {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False},
        ],
        "data": "choices",
    },
    "parity_letters": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nAnswer:",
        "doc_to_target": "gold",
        "doc_to_choice": ["A", "B", "C"],
        "metric_list": mean("acc", "acc_norm"),
        "data": "choices",
    },
    "parity_prefix": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "gold",
        "doc_to_choice": "{{choices}}",
        "gen_prefix": "The answer is",
        "metric_list": mean("acc", "acc_norm"),
        "data": "choices",
    },
    "parity_cloze": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{question}}",
        "doc_to_target": " {{choices[gold]}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            *mean("acc"),
        ],
        "data": "choices",
    },
    "parity_texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [
            {"metric": name, "higher_is_better": False}
            for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")
        ],
        "data": "texts",
    },
    "parity_answers": {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{choices[gold]}}",
        "num_fewshot": 3,
        "fewshot_split": "test",
        "fewshot_config": {"sampler": "first_n"},
        "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 24, "do_sample": False},
        "filter_list": [
            {"name": "strict", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]},
            {
                "name": "first-word",
                "filter": [{"function": "regex", "regex_pattern": r"(\w+)"}, {"function": "take_first"}],
            },
        ],
        "metric_list": [
            *mean("exact_match", ignore_case=True),
            {"metric": "bleu", "aggregation": "bleu", "higher_is_better": True},
        ],
        "data": "choices",
    },
}


def documents(count: int) -> dict[str, list[dict]]:
    """Questions with three choices, and texts, `count` of each."""
    found, of_task = [], {}
    records = [record for record in tasks.find("primer").records("chat", "heldout") if len(record["messages"]) == 2]
    for record in records:
        references = of_task.setdefault(record["meta"]["task"], {})
        references[record["messages"][1]["content"]] = None
    for record in records[:: max(1, len(records) // (4 * count))]:
        question, right = (message["content"] for message in record["messages"])
        wrong = [answer for answer in of_task[record["meta"]["task"]] if answer != right][:2]
        if len(wrong) < 2 or len(found) == count:
            continue
        gold = len(found) % 3
        found.append({"question": question, "choices": [*wrong[:gold], right, *wrong[gold:]], "gold": gold})
    lines = [f"{each['question']} {each['choices'][each['gold']]}" for each in found]
    texts = [{"text": "\n".join(lines[i : i + 1 + i % 12])} for i in range(count)]
    return {"choices": found, "texts": texts}


def write_tasks(folder: Path, count: int) -> list[str]:
    """Writes the tasks and their documents into a folder. Returns the tasks' names."""
    for name, rows in documents(count).items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task in TASKS.items():
        rest = {field: value for field, value in task.items() if field != "data"}
        files = {"data_files": {"test": str(folder / f"{task['data']}.jsonl")}}
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump(COMMON | rest | {"task": name, "dataset_kwargs": files}, sort_keys=False)
        )
    return list(TASKS)
