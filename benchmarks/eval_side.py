"""One side of `eval_parity.py` and `eval_speed.py`: lm-evaluation-harness with its Hugging Face backend, or with ours.

It reads a request as JSON from each line of input and prints what it found. The Hugging Face side runs in its own
environment with torch, transformers and lm_eval, and imports nothing of camelid.
"""

import argparse
import contextlib
import json
import sys
import time
from typing import Any


def huggingface(path: str, folder: str, dtype: str):
    """run(tasks=, batch=, chat=) -> metrics and answers, by lm-evaluation-harness' Hugging Face backend."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(path, device="cpu", dtype=dtype)

    def run(tasks: list[str], batch: int, chat: bool) -> dict[str, Any]:
        model.batch_size_per_gpu = batch
        manager = TaskManager(include_path=folder, include_defaults=False)
        found = simple_evaluate(
            model,
            tasks=tasks,
            task_manager=manager,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            bootstrap_iters=0,
        )
        answers = {
            f"{name}/{each['doc_id']}": [answer for resps in each["resps"] for answer in resps]
            for name in tasks
            for each in found["samples"][name]
        }
        metrics = {
            f"{key.replace(',none', '')}/{name}": value
            for name in tasks
            for key, value in found["results"][name].items()
            if "," in key and "_stderr" not in key
        }
        return {"metrics": metrics, "answers": answers}

    return run


def camelid(path: str, folder: str, dtype: str):
    """run(tasks=, batch=, chat=, mesh=, cache=, stop=) -> metrics and answers, by our model in the harness.

    path: a checkpoint, or the address of a server. stop: number of batches after which the run is broken off.
    """
    from camelid import load
    from camelid.evals.harness import run_tasks
    from camelid.evals.kept import AnswerFile, KeptLM
    from camelid.evals.lm import ServedLM, as_lm
    from camelid.model.sharding import make_mesh

    loaded: dict[int, Any] = {}

    def model_on(devices: int):
        if devices not in loaded:
            import jax

            mesh = make_mesh({"data": devices}, jax.local_devices()[:devices])
            loaded[devices] = ServedLM(path) if path.startswith("http") else load(path, mesh=mesh, dtype=dtype)
        return loaded[devices]

    def run(
        tasks: list[str], batch: int, chat: bool, mesh: int = 1, cache: str | None = None, stop: int = 0
    ) -> dict[str, Any]:
        batches = 0

        def report(*_) -> None:
            nonlocal batches
            batches += 1
            if batches == stop:
                raise KeyboardInterrupt

        lm = KeptLM(as_lm(model_on(mesh), batch), cache and AnswerFile(cache), report)
        with contextlib.suppress(KeyboardInterrupt):
            found = run_tasks(lm, tasks, include=[folder], chat=chat)
            metrics = {name: each.value for name, each in found.metrics().items()}
            answers = {
                item.id: each if isinstance(each := item.shown["answer"], list) else [each]
                for item in found.items
                if item.shown
            }
            return {"metrics": metrics, "answers": answers, "batches": batches}
        return {"batches": batches}

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=("huggingface", "camelid"))
    parser.add_argument("path")
    parser.add_argument("folder", help="folder of tasks")
    parser.add_argument("--dtype", default="float32", help="dtype of the computation (default: float32)")
    arguments = parser.parse_args()
    make = {"huggingface": huggingface, "camelid": camelid}[arguments.backend]
    run = make(arguments.path, arguments.folder, arguments.dtype)
    for line in sys.stdin:
        begin = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):
            found = run(**json.loads(line))
        print(json.dumps(found | {"seconds": time.perf_counter() - begin}), flush=True)


if __name__ == "__main__":
    main()
