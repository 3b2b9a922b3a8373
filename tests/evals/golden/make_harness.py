"""Makes harness.json: what lm-evaluation-harness' Hugging Face backend finds for a small random model.

Run by hand, `python make_harness.py REFERENCE/bin/python`, where REFERENCE is an environment with torch, transformers,
accelerate and lm_eval. Stored are the answers to each document and the metrics, as texts and in the chat template.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from camelid.benchmarks.eval_parity import CHAT, measured
from camelid.benchmarks.eval_tasks import write_tasks
from camelid.tests.evals.small_model import write_model

FILE = Path(__file__).with_name("harness.json")
DOCUMENTS = 9


def rounded(value):
    if isinstance(value, float):
        return round(value, 7)
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return {name: rounded(each) for name, each in value.items()} if isinstance(value, dict) else value


def main() -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        names = write_tasks(Path(folder), DOCUMENTS)
        model = write_model(Path(folder) / "model")
        requests = [{"tasks": names, "batch": 4, "chat": False}, {"tasks": CHAT, "batch": 4, "chat": True}]
        found = measured(sys.argv[1], "huggingface", str(model), folder, requests)
    kept = {
        kind: {"metrics": each["metrics"], "answers": each["answers"]}
        for kind, each in zip(("text", "chat"), found, strict=True)
    }
    FILE.write_text(json.dumps(rounded(kept), ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
