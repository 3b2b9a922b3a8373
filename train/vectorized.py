"""Several runs of pretraining or tuning in one compiled program: seeds, and scalar hyperparameters.

The members of a program have the same settings but for the leaves in `vectorized_settings.SCALARS`, which the program
takes as arguments. Each member has its own data order, its own parameters and its own run directory, which is that of
an ordinary run: it can be resumed alone as well.

On accelerators the program computes all members at once (`jax.vmap`), since a small network alone leaves most of a
device idle. On CPUs it computes one member after the other: there, batched matrix products take longer than single
ones (`benchmarks/vmap_gain.py`).
"""

import contextlib
import copy
import operator
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from ..checkpoints.heldout_loss import heldout_loss
from ..errors import UserError
from ..model.sharding import BATCH, compile_platform
from .batches import check_rows, data_of, data_tables
from .lengths import Lengths, lengths_of
from .loop import Evaluation, check_streak, signals
from .losses import loss_of
from .network import Network, with_base, without_base
from .run import Run
from .run_config import RunConfig, SupervisedConfig
from .state import State
from .vectorized_member import Around, Member, advance
from .vectorized_settings import Scalars, scalars_of, with_scalars

RECIPES = ("pretrain", "sft")
"""Recipes whose runs may be members of a program."""

Batch = Mapping[str, jax.Array]
Update = Callable[[Scalars, State, Batch], tuple[State, dict[str, jax.Array]]]
"""update(scalars, state, batch) -> (the next state, metrics) of one member, with whole networks."""

Step = Callable[[Sequence[Member]], None]
"""step(members) takes a step of each of these members."""


def train(
    runs: Sequence[Run[SupervisedConfig]],
    around: Around = lambda number: contextlib.nullcontext(),
    *,
    absent: Container[int] = (),
    vmap: bool | None = None,
) -> list[Exception | None]:
    """Trains runs in one program. A run that fails or ends early leaves the others going.

    Args:
      runs: the members.
      around: around(number of a member) -> a context around what is done for this member alone.
      absent: numbers of members that keep their place and are not trained. A program that computes all members at once
        resumes bit for bit where it has as many members as before, each in its place.
      vmap: whether all members are computed at once. Default: on accelerators.

    Returns:
      What ended each run: what its own `train` would have raised; None for one that is complete, or absent.

    Raises:
      UserError: the configs belong to different programs, or to none of several runs.
    """
    if jax.process_count() > 1:
        raise UserError("runs share a program within one process: leave --distributed out")
    for run in runs:
        check(run.config)
    scalars = scalars_of([run.config for run in runs])
    first = next(run for number, run in enumerate(runs) if number not in absent)
    config, model = first.config, first.model
    with jax.set_mesh(first.mesh), signals():  # one signal ends all runs
        # Data: the same rows for all members, each in the order of its own seed.
        data, tokenizer = config.data, first.tokenizer
        template = first.need_template() if config.recipe == "sft" else first.template
        check_rows(data.batch_size, data.seq_len, config.optim.accumulate, first.mesh, model.config.max_len)
        first.check_rules()
        batches, heldout = data_of(data, tokenizer, template, config.seed)
        orders = {run.config.seed: batches.in_order_of(run.config.seed) for run in runs}
        rows = NamedSharding(first.mesh, PartitionSpec(BATCH, "context"))

        # Networks: which of their parameters learn is what config.optim.frozen, config.lora and config.lisa say.
        lengths = lengths_of(config, batches)
        networks = _networks([first if number in absent else run for number, run in enumerate(runs)], lengths)

        # Loss and step: those of a single run, in whose config arguments of the program stand in place of scalars.
        def update(scalars: Scalars, state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
            run = copy.copy(first)
            run.config = with_scalars(config, scalars)
            network = run.network(networks[0].initial, lengths, lisa=config.lisa)
            return run.update(network, loss_of(model, run.config))(state, batch)

        at_once = compile_platform() != "cpu" if vmap is None else vmap
        step = (_all_at_once if at_once else _one_by_one)(networks, update, scalars)

        # Evaluations: the loss on what was held out of each source, and what config.evals names.
        trained = model.config.trained_len
        borders = [trained] if trained is not None and trained < batches.length else []  # of a stretched context
        measure = heldout_loss(model, heldout, tokenizer, rows, config.eval_batches, borders)
        evaluations = [Evaluation("heldout", lengths.evaluate, measure)] if heldout else []
        evaluations += first.further_evaluations(lengths, first.language_model)

        # Loops: those of single runs. All of them wait for a step, which the program takes for all that go on.
        members = [Member(number, run, around) for number, run in enumerate(runs) if number not in absent]
        with contextlib.ExitStack() as leaving:
            for member in members:
                leaving.push(member.abandon)
                member.begin(
                    networks[member.number],
                    orders[member.run.config.seed],
                    rows,
                    lengths,
                    evaluations=evaluations,
                    check=check_streak(member.run.config.guard.max_streak),
                    flops_per_token=model.config.flops_per_token(batches.length),
                    tables=data_tables(batches, heldout),
                )
            while going := advance(members):
                with jax.transfer_guard("disallow"):
                    step(going)
        errors = {member.number: member.error for member in members}
        return [errors.get(number) for number in range(len(runs))]


def check(config: RunConfig) -> None:
    """Raises UserError for settings that runs of one program cannot have."""
    if config.recipe not in RECIPES:
        raise UserError(f"config.recipe = {config.recipe!r}: only runs of {' and '.join(RECIPES)} can share a program")
    if config.optim.offload:
        raise UserError("config.optim.offload = True: runs that share a program keep their moments on the device")
    if config.profile.at_step is not None:
        raise UserError(f"config.profile.at_step = {config.profile.at_step}: trace a run that has its program alone")
    if config.wandb.project is not None:
        raise UserError(
            f"config.wandb.project = {config.wandb.project!r}: a process reports one run to Weights & Biases, and runs "
            "that share a program share their process; leave it None"
        )


def _networks(runs: Sequence[Run], lengths: Lengths) -> list[Network]:
    """The network of each run. Runs that start from the same parameters have one in common."""
    made: dict[tuple, Network] = {}
    found = []
    for run in runs:
        run.frozen = runs[0].frozen
        begins = run.config.init_from, None if run.adapters is None else run.config.seed  # which makes the adapters
        if begins not in made:
            made[begins] = run.network(run.initial(run.model.init, run.start), lengths, lisa=run.config.lisa)
        found.append(made[begins])
    return found


def _one_by_one(networks: Sequence[Network], update: Update, scalars: Scalars) -> Step:
    """A program of one member, which is called for each of them."""
    given = [_on_devices({name: x[k] for name, x in scalars.items()}, network) for k, network in enumerate(networks)]

    def program(base: Any, scalars: Scalars, state: State, batch: Batch) -> tuple[State, dict]:
        state, metrics = update(scalars, with_base(state, base), batch)
        return without_base(state, base), metrics

    compiled = networks[0].jit_step(program, (networks[0].shardings, None))

    def step(members: Sequence[Member]) -> None:
        for member in members:
            k, loop = member.number, member.loop
            loop.state, loop.metrics = compiled(networks[k].base, given[k], loop.state, member.batch)

    return step


def _all_at_once(networks: Sequence[Network], update: Update, scalars: Scalars) -> Step:
    """A program of all members. In the place of one that has ended it computes something that nobody reads."""
    bases, given = [network.base for network in networks], _on_devices(scalars, networks[0])
    shared = all(jax.tree.all(jax.tree.map(operator.is_, base, bases[0])) for base in bases)
    numbers = range(len(networks))

    def program(bases: list, scalars: Scalars, states: list[State], batches: list[Batch]) -> list[tuple[State, dict]]:
        def one(base: Any, scalars: Scalars, state: State, batch: Batch) -> tuple[State, dict]:
            state, metrics = update(scalars, with_base(state, base), batch)
            return without_base(state, base), metrics

        base, axis = (bases[0], None) if shared else (_stacked(bases), 0)
        found = jax.vmap(one, in_axes=(axis, 0, 0, 0))(base, scalars, _stacked(states), _stacked(batches))
        return [jax.tree.map(lambda x: x[k], found) for k in numbers]  # noqa: B023

    places = [(network.shardings, None) for network in networks]
    compiled = networks[0].jit_step(program, places)
    spare: dict[int, State] = {}  # by the numbers of members that have ended

    def step(members: Sequence[Member]) -> None:
        by_number = {member.number: member for member in members}
        for k in numbers:
            if k not in by_number and k not in spare:
                spare[k] = _zeros(networks[k])
        states = [by_number[k].loop.state if k in by_number else spare[k] for k in numbers]
        batches = [by_number.get(k, members[0]).batch for k in numbers]
        for k, (state, metrics) in enumerate(compiled(bases[:1] if shared else bases, given, states, batches)):
            if k in by_number:
                by_number[k].loop.state, by_number[k].loop.metrics = state, metrics
            else:
                spare[k] = state

    return step


def _stacked(trees: Sequence[Any]) -> Any:
    """Trees of arrays as one, whose arrays have a leading axis of the members."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _zeros(network: Network) -> State:
    """A state of zeros."""
    with jax.transfer_guard("allow"):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), network.abstract_state)


def _on_devices(scalars: Scalars, network: Network) -> Any:
    """Scalars on all devices of a network."""
    return jax.device_put(scalars, NamedSharding(network.mesh, PartitionSpec()))
