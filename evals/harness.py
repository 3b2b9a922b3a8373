"""Tasks of lm-evaluation-harness: any checkpoint, or a model behind a server, on its YAML tasks and on one's own.

items = harness(model, tasks="piqa,arc_easy", limit=200)
metrics_of(items)["acc_norm/piqa"]

The library (`pip install 'camelid[eval]'`) builds prompts and scores answers. The model's side is `harness_model.py`.
The tasks of LLaMA's paper are in `harness_tasks/`. Each document becomes an item, so that metrics get clustered
standard errors, and two models can be compared on the same documents.
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import pathlib
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from ..checkpoints.language_model import LanguageModel
from ..errors import UserError, did_you_mean
from ..settings.leaves import Count, Path, Unset, Whole
from .harness_items import TaskResults, results_of
from .items import Item
from .lm import LM, as_lm


def _version() -> str:
    """The version of lm-evaluation-harness; "" where it is missing."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("lm_eval")
    return ""


OWN_TASKS = pathlib.Path(__file__).with_name("harness_tasks")
"""The task files of this project."""

SEED = 1234
"""The library's seed of examples and of numpy."""

BOOTSTRAP = 1000
"""Bootstrap samples for standard errors of metrics that are no means."""


def harness(
    model: LanguageModel | LM,
    *,
    tasks: str,
    shots: Annotated[Whole | None, Unset("the setting of each task")] = None,
    limit: Annotated[Count | None, Unset("all documents")] = None,
    include: Annotated[Path | None, Unset("the library's tasks and those of this project")] = None,
    chat: bool = False,
    max_tokens: Annotated[Count | None, Unset("the setting of each task")] = None,
    seed: Whole = 0,
    allow_code: bool = False,
    batch_size: Annotated[Count | None, Unset("4,096 tokens on each device")] = None,
) -> list[Item]:
    """Scores a model in tasks of lm-evaluation-harness: an evaluation by the name "harness".

    Args:
      model: the model.
      tasks: names of tasks, groups and tags, or paths of YAML files, with commas between them.
      shots: number of examples in each prompt; tasks that fix it at 0 keep that.
      limit: number of documents of each task, from the beginning.
      include: a folder of further YAML tasks.
      chat: whether prompts are conversations in the model's chat template.
      max_tokens: the most tokens of an answer.
      seed: seed of sampled answers.
      allow_code: whether programs that the model writes may be run (`code_execution.py`).
      batch_size: rows, or prompts, that are computed at a time.

    Returns:
      The items of `run_tasks`.

    Raises:
      UserError: an error of `run_tasks`.
    """
    return run_tasks(
        model,
        [name.strip() for name in tasks.split(",") if name.strip()],
        shots=shots,
        limit=limit,
        include=[include] if include else [],
        chat=chat,
        generation={"max_gen_toks": max_tokens} if max_tokens else None,
        seed=seed,
        allow_code=allow_code,
        batch_size=batch_size,
    ).items


harness.version = _version()  # part of the hash of results


def run_tasks(
    model: LanguageModel | LM,
    tasks: Sequence[str],
    *,
    shots: int | None = None,
    limit: int | None = None,
    include: Sequence[str | pathlib.Path] = (),
    chat: bool = False,
    system: str | None = None,
    generation: Mapping[str, Any] | None = None,
    allow_code: bool = False,
    batch_size: int | None = None,
    seed: int = 0,
) -> TaskResults:
    """Scores a model in tasks of lm-evaluation-harness.

    Args:
      model: the model.
      tasks: names of tasks, groups and tags, patterns such as "arc_*", or paths of YAML files.
      shots: number of examples in each prompt; tasks that fix it at 0 keep that. None: as each task has it.
      limit: number of documents of each task, from the beginning; None: all.
      include: folders of further YAML tasks. A name that is there twice means the last one.
      chat: whether prompts are conversations in the model's chat template, with examples as earlier turns.
      system: a system message, or with `chat=False` a text before each prompt.
      generation: settings for answers in place of the tasks' own, such as {"max_gen_toks": 64}.
      allow_code: whether programs that the model writes may be run (`code_execution.py`).
      batch_size: rows, or prompts, that are computed at a time.
      seed: seed of sampled answers. What else is random is fixed, as the library fixes it.

    Raises:
      UserError: lm-evaluation-harness is missing; there is no such task, or its data cannot be loaded; a task would run
        programs and `allow_code` is not given; or a prompt does not fit the model.
    """
    lm = as_lm(model, batch_size)
    with _quiet_library():
        from lm_eval import evaluator

        from .harness_model import HarnessModel

        manager = _manager(tasks, include)
        loaded = _load(manager, tasks, allow_code)
        for task in loaded["tasks"].values():
            _set(task, shots, generation)
        with _seeded():
            found = evaluator.evaluate(
                HarnessModel(lm, seed=seed),
                loaded,
                limit=limit,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
                system_instruction=system,
                confirm_run_unsafe_code=allow_code,
                bootstrap_iters=BOOTSTRAP,
            )
    return results_of(found, loaded, _version())


# The library ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _quiet_library() -> Iterator[None]:
    """lm_eval without its progress bars, its prints and its processes, which a program with JAX must not fork."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("tasks by name need lm-evaluation-harness: pip install 'camelid[eval]'")
    quiet = {"TQDM_DISABLE": "1", "DISABLE_MULTIPROC": "1", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
    before = {name: os.environ.get(name) for name in quiet}
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    os.environ |= quiet
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _manager(tasks: Sequence[str], include: Sequence[str | pathlib.Path]):
    """The library's index of tasks: without its own thousands, which take seconds to read, where none is asked for."""
    from lm_eval.tasks import TaskManager

    folders = [pathlib.Path(each).expanduser() for each in include]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"include: there is no folder {folder}; give one with YAML files of tasks")
    small = TaskManager(include_path=[OWN_TASKS, *folders], include_defaults=False)
    if all(_is_complete(small, name) for name in tasks):
        return small
    return TaskManager(include_path=[OWN_TASKS, *folders])


def _is_complete(manager, name: str) -> bool:
    """Whether an index has the task of this name, and of a group all its members."""
    entry = manager.task_index.get(name)
    members = (entry.cfg or {}).get("task") if entry is not None else None
    if not isinstance(members, list):
        return entry is not None
    return all(isinstance(member, str) and _is_complete(manager, member) for member in members)


def _load(manager, tasks: Sequence[str], allow_code: bool) -> dict[str, Any]:
    """The library's tasks and groups by name."""
    if not tasks:
        raise UserError("no tasks are given: name some, as in tasks=piqa,arc_easy")
    names = []
    for given in tasks:
        matching = [given] if pathlib.Path(given).suffix == ".yaml" else manager.match_tasks([given])
        if not matching:
            near = did_you_mean(given, manager.all_tasks) or "; `lm-eval ls tasks` lists the names"
            raise UserError(f"there is no task {given!r}{near}")
        names += matching
    try:
        loaded = manager.load(list(dict.fromkeys(names)))
    except Exception as error:  # of reading YAML, of the task's own code, of loading its data
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{', '.join(tasks)} cannot be loaded: {said}") from error
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            _check_code(name, task, allow_code)
    return loaded


def _check_code(name: str, task, allow_code: bool) -> None:
    """Raises UserError unless a task that runs programs may do so."""
    import lm_eval

    if not allow_code:
        raise UserError(f"task {name} runs programs that the model writes: allow it with --allow_code, or leave it out")
    source = pathlib.Path(str((task.config.metadata or {}).get("config_source", "")))
    if pathlib.Path(lm_eval.__file__).parent in source.parents:
        raise UserError(f"task {name} runs programs without limits: take llama_humaneval or llama_mbpp in its place")


def _set(task, shots: int | None, generation: Mapping[str, Any] | None) -> None:
    """Changes a task as the library's `simple_evaluate` does: examples, settings of answers, the examples' seed."""
    if generation and task.get_config("output_type") == "generate_until":
        task.set_config("generation_kwargs", dict(generation), update=True)
    fixed = task.get_config("num_fewshot")
    if shots is not None and fixed != 0:
        task.set_config("num_fewshot", shots)
    elif fixed is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(seed=SEED)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """The library's seeds of `random` and numpy, as `simple_evaluate` sets them; afterwards both are as before."""
    states = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(SEED)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
