"""The loop of a run, from its latest checkpoint to its end."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from ..checkpoints import AdapterCheckpoint, reading
from ..checkpoints.manifest import describe
from ..checkpoints.saving import Checkpoints, keep_tokenizer
from ..data.console import tell
from ..errors import UserError
from ..model.sharding import mesh_words
from ..settings.sections import to_config
from . import resume
from .finish import UNFINISHED, Finish
from .ledger import trained_datasets
from .lengths import Lengths, saving_of
from .loop import Check, Evaluation, Finished, Loop, profiler
from .means import Means
from .network import Network
from .report import HEADLINE, Reporter
from .state import State
from .stopping import EarlyStopping

if TYPE_CHECKING:
    from .run import Run


@contextlib.contextmanager
def run_loop(
    run: "Run",
    network: Network,
    batches: Any,
    sharding: jax.sharding.Sharding,
    lengths: Lengths,
    *,
    evaluations: Sequence[Evaluation],
    check: Check,
    flops_per_token: float,
    manifest: Mapping[str, Any] | None = None,
    tables: Mapping[str, Sequence[Mapping[str, str]]] | None = None,
    headline: Mapping[str, str] = HEADLINE,
    finish: Finish | None = None,
) -> Iterator[Loop | Finished]:
    """The loop from a run's latest checkpoint to its end, which `Run.loop` is. A complete run has no steps left.

    After the loop, `loop.state` is the last state, with whole networks.

    Args:
      run: the run.
      network: the network that is trained.
      batches: batches by step, as `data.prefetch` takes them.
      sharding: the sharding of batches.
      lengths: the lengths of the run.
      evaluations: evaluations of whole networks.
      check: sees all metrics and may stop the run.
      flops_per_token: model FLOPs of a step per token, for the reports.
      manifest: further entries of the manifests of checkpoints.
      tables: tables to show at the start, by name.
      headline: metrics of the progress line, with their labels.
      finish: changes the parameters after the last step.

    Raises:
      UserError: settings that do not fit.
      loop.TrainingStopped: the run cannot go on.
    """
    config, total = run.config, lengths.total
    _check_settings(run, lengths, evaluations)
    saving = saving_of(config.checkpoint, lengths)
    described = _describe(run, batches, lengths) | dict(manifest or {})
    means, stopping = Means(), EarlyStopping(config.early_stopping)
    counted = {"report": means, "early_stopping": stopping} | ({"check": check} if hasattr(check, "counters") else {})

    with run.recorded() as recording, Checkpoints(run.workdir, **saving) as saved:
        begun = _latest(saved, described, type(config))
        if begun is not None:
            for name, counters in begun.manifest.get("counters", {}).items():
                if name in counted and name != "early_stopping":
                    counted[name].restore(counters)
            stopping.restore(begun.manifest.get("counters", {}).get("early_stopping", {}), longer=begun.longer)
        complete = begun is not None and (begun.step >= total or stopping.ended)
        state = None if begun is None else _restore(saved, begun, network.abstract_state, finish, complete)
        if complete:
            ended = f"stopped early at step {begun.step} of {total}" if begun.step < total else f"{total} steps"
            also = f"; changes have no effect any more: {'; '.join(begun.changes)}" if begun.changes else ""
            tell(f"{run.workdir}: already complete, {ended}; nothing was done{also}")
            recording.discard("stopped early" if begun.step < total else "finished")
            yield Finished(network.whole(state))
            return
        if begun is not None:
            changed = f" with changes: {'; '.join(begun.changes)}" if begun.changes else ""
            tell(f"resuming from step {begun.step}{changed}")
        else:
            state = network.first_state(config.seed)
        step = int(state["step"])
        keep_tokenizer(run.workdir, run.tokenizer)
        mesh = dict(run.mesh.shape)
        recording.begin(to_config(config), mesh, step, begun and begun.manifest.get("attempt"), total)
        passes = ", ".join(f"{name} {times:.3g}" for name, times in batches.epochs(total).items())
        work = f"{total - step:,} steps of {batches.batch_size:,} rows on {mesh_words(mesh)}"
        tell(f"{work}; passes over the sources in the run: {passes}")
        with Reporter(run.workdir, total, start_step=step, headline=headline, config=config) as reporter:
            for name, rows in (tables or {}).items() if not step else ():
                reporter.text(0, name, rows)
            with Loop(
                state,
                batches,
                sharding,
                lengths,
                evaluations=[e._replace(run=_on_base(e.run, network)) for e in evaluations],
                check=functools.reduce(_also_gives, _watched(run), check),
                reporter=reporter,
                checkpoints=saved,
                manifest=described,
                flops_per_token=flops_per_token,
                profiler=profiler(run.workdir / "profile", config.profile),
                finish=finish and functools.partial(finish.apply, network),
                stopping=stopping,
                clock=recording.clock,
                means=means,
                missed=begun.manifest.get("missed", ()) if begun is not None else (),
                notes=lambda: {
                    "attempt": recording.described(),
                    "counters": {name: dict(each.counters) for name, each in counted.items()},
                },
            ) as loop:
                del state  # it is donated
                yield loop
        loop.state.pop(UNFINISHED, None)
        loop.state = network.whole(loop.state)
        done = recording.clock.step
        if loop.ended_early:
            recording.stopped_early(stopping.words())
            tell(f"stopped early at step {done} of {total}: {stopping.words()}")
        if jax.process_index() == 0:
            kept = f", the best in checkpoints/{saved.best()}" if saved.best() is not None else ""
            print(f"step {done}: checkpoints, metrics and samples are in {run.workdir}{kept}", flush=True)


class _Begun(NamedTuple):
    """The newest whole checkpoint of a run."""

    step: int
    """The step from which the run resumes."""

    manifest: Mapping[str, Any]
    """Its manifest."""

    changes: list[str]
    """Sentences of what differs from the run so far and may differ."""

    longer: bool
    """Whether the run is longer now than it was then."""


def _latest(saved: Checkpoints, described: Mapping[str, Any], kind: type) -> _Begun | None:
    """The newest whole checkpoint; None where there is none. Raises UserError where settings differ that a run must not
    change."""
    step = saved.latest()
    if step is None:
        return None
    before = reading.manifest_of(saved.path(step))
    changes = resume.check(saved.path(step), before, described, kind)
    longer = before["total_steps"] < described["total_steps"]
    if step > before["total_steps"] and longer:  # versions before gave what `finish` made a step of its own
        step = before["total_steps"]
        before = reading.manifest_of(saved.path(step))
    return _Begun(step, before, changes, longer)


def _restore(saved: Checkpoints, begun: _Begun, abstract: State, finish: Finish | None, complete: bool) -> State:
    """The state of a checkpoint. For a finished run that goes on, it is the state before `finish`."""
    step = begun.step
    with_shelf = finish is not None and saved.holds(step, UNFINISHED)
    state = saved.restore(abstract | ({UNFINISHED: finish.shelve(abstract)} if with_shelf else {}), step)
    shelf = state.pop(UNFINISHED, {})
    if not complete:
        return state | {kind: state[kind] | entries for kind, entries in shelf.items()}
    if finish is not None and not shelf and step == begun.manifest["total_steps"]:
        path = saved.path(step)
        raise UserError(f"{path}: a version before was cut off just before the end: make the run a step longer")
    return state


def _describe(run: "Run", batches: Any, lengths: Lengths) -> dict[str, Any]:
    """The manifest of the run's checkpoints."""
    tokenizer, template, start = run.tokenizer, run.template, run.start
    said = dict(tokenizer=tokenizer, template=template, data_fingerprint=batches.fingerprint)
    described = describe(to_config(run.config), **said)
    described |= {"model": dataclasses.asdict(run.model.config), "generation": run.generation.to_dict()}
    described |= {"total_steps": lengths.total, "start": None, "datasets": trained_datasets(run.config)}
    if start is not None:
        described["start"] = {"identity": start.identity, "weights": start.weights}
    if run.adapters is not None:
        base = start.base if isinstance(start, AdapterCheckpoint) else start
        described["adapter"] = {
            "path": base.address,
            "identity": base.identity,
            "weights": base.weights,
            "lora": dataclasses.asdict(run.adapters),
            "quantize": run.quantize,
        }
    return described


def _watched(run: "Run") -> list[tuple[str, str]]:
    """The settings that name a metric of an evaluation, with the metric."""
    best, stopping = run.config.checkpoint.best, run.config.early_stopping.metric
    found = [] if best is None else [("config.checkpoint.best", best[0])]
    return found + ([] if stopping is None else [("config.early_stopping.metric", stopping)])


def _check_settings(run: "Run", lengths: Lengths, evaluations: Sequence[Evaluation]) -> None:
    """Raises UserError for settings that do not fit the run's length or its evaluations."""
    first_traced = run.config.profile.at_step
    if first_traced is not None and first_traced >= lengths.total:
        raise UserError(f"config.profile.at_step {first_traced}: the run has the steps 0 to {lengths.total - 1}")
    for setting, metric in _watched(run):
        if not evaluations:
            raise UserError(f"{setting}: this run has no evaluations, so none gives {metric!r}")
        if not any(metric.startswith(f"eval/{each.name}/") for each in evaluations):
            there = ", ".join(f"eval/{each.name}/..." for each in evaluations)
            raise UserError(f"{setting}: no evaluation gives {metric!r}; there are {there}")


def _also_gives(check: Check, watched: tuple[str, str]) -> Check:
    """A check that calls `check`, and refuses the evaluation that a setting names if its metric is not among what it
    gives. Other evaluations may have schedules of their own."""
    setting, metric = watched
    evaluation = "/".join(metric.split("/")[:2]) + "/"

    def both(step: int, metrics: Mapping[str, float]) -> None:
        check(step, metrics)
        evaluated = [name for name in metrics if name.startswith(evaluation)]
        if evaluated and metric not in metrics:
            there = ", ".join(evaluated)
            raise UserError(f"{setting}: no evaluation gives {metric!r}; there are {there}")

    return both


def _on_base(run: Callable, network: Network) -> Callable:
    """An evaluation of a state's parameters, made of an evaluation of whole networks."""
    return lambda params: run(network.whole({"params": params})["params"])
