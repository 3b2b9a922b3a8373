"""The critics of a PPO run: what each state is worth, in reward and, with a cost model, in cost.

A critic is a network of its own, which starts from the reward model or from the policy, or one more head on the policy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
from jaxtyping import Array, Float

from ..checkpoints import Checkpoint
from ..errors import UserError
from ..model.config import LlamaConfig
from ..settings.leaves import Path, Range, Whole
from ..train.network import Init, InitialParams, together
from ..train.run import Run
from . import scalar
from .rewards import check_tokenizer
from .rollout import Rollout, states_before


@dataclass(frozen=True)
class CriticSettings:
    """The section `config.critic`."""

    shared: bool = False
    """Whether the critic is a head on the policy, instead of a network of its own."""

    init_from: Path | None = None
    """Checkpoint that the critic starts from: the reward model in OpenAI's and InstructGPT's runs. None: that of
    `config.init_from`."""

    lr: Annotated[float, Range(least=0, most=100)] = 1e-5
    """The highest learning rate of the critic."""

    first_steps: Whole = 0
    """Steps at the start in which only the critic learns."""

    def check(self, where: str) -> None:
        if self.shared and self.init_from is not None:
            raise UserError(
                f"{where}: one that is a head on the policy (shared) starts from the policy: init_from=None"
            )


class Critic(NamedTuple):
    """A function from states to values."""

    label: str
    """The group of its metrics."""
    model: scalar.ScalarModel | None
    """Its network; None for a head on the policy."""
    start: Checkpoint
    """The model that it starts from."""

    def values(self, params: Any, rows: Rollout, states_RMD: Float[Array, "R M D"]) -> Float[Array, "R M"]:
        """The value of the state before each token; `states_RMD` are the policy's."""
        if self.model is None:
            return scalar.read_head(params["score"], states_RMD)[..., 0]
        values_RT1 = self.model.apply(params, rows.tokens_RT, rows.segment_ids_RT, rows.positions_RT)
        return states_before(values_RT1, rows.mask_RM.shape[1])[..., 0]


def critics_of(run: Run, settings: CriticSettings, *, with_cost: bool) -> dict[str, Critic]:
    """The critics by their name in the parameters, as `config.critic` says."""
    start = run.start
    if settings.init_from is not None and settings.init_from != run.config.init_from:
        start = run.open(settings.init_from)
        check_tokenizer(start, run.tokenizer)
    execution = {name: getattr(run.config.model, name) for name in ("dtype", "param_dtype", "attention", "remat")}

    def make(label: str) -> Critic:
        return Critic(label, None if settings.shared else scalar.build(start.config.replace(**execution)), start)

    return {"critic": make("value")} | ({"cost_critic": make("cost_value")} if with_cost else {})


def initial_params(run: Run, critics: Mapping[str, Critic]) -> InitialParams:
    """Where policy and critics start, as one tree {"policy", critics...}.

    The policy starts from `config.init_from`, and so does a critic's trunk, or from `config.critic.init_from`. Of a
    scalar model there it takes over the head too; a fresh head is random.
    """
    starts, key = {"policy": run.initial(run.model.init, run.start)}, jax.random.key(run.config.seed)
    for number, (name, critic) in enumerate(critics.items(), 1):
        starts[name] = _initial(run, critic, jax.random.fold_in(key, number))
    return together(starts)


def _initial(run: Run, critic: Critic, key: jax.Array) -> InitialParams:
    config = run.model.config
    fresh_head = scalar.head_maker(key, config)
    if critic.model is None:
        return InitialParams(init_of(critic, config), lambda abstract: {"score": fresh_head(abstract["score"])})
    is_scalar = critic.start.kind == "scalar"
    load = critic.start.load_params if is_scalar else scalar.trunk_loader(critic.start, fresh_head)
    return run.initial(init_of(critic, config), critic.start, load=load, fresh_head=fresh_head)


def init_of(critic: Critic, config: LlamaConfig) -> Init:
    """The function from a key to a critic's random parameters. config: of the policy."""
    return critic.model.init if critic.model else lambda key: {"score": scalar.init_head(key, config)}
