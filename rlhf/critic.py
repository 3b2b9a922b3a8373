"""The critics of a PPO run: value functions of the reward and, with `config.cost`, of the cost.

A critic is a separate network, which starts from a reward model or from the policy, or one more head on the policy.
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
    """Whether the critic is a head on the policy instead of a separate network."""

    init_from: Path | None = None
    """Checkpoint that the critic starts from; OpenAI and InstructGPT take the reward model. None:
    `config.init_from`."""

    lr: Annotated[float, Range(least=0, most=100)] = 1e-5
    """Peak learning rate of the critic."""

    first_steps: Whole = 0
    """Steps at the start of the run in which only the critic learns: the policy stays as it is, weight decay
    included."""

    def check(self, where: str) -> None:
        if self.shared and self.init_from is not None:
            raise UserError(
                f"{where}.init_from = {self.init_from!r}: a shared critic is a head on the policy and starts from it; "
                f"set {where}.init_from=None or {where}.shared=False"
            )


class Critic(NamedTuple):
    """A value function: the expected return, in reward or in cost, of each state of an answer."""

    label: str
    """First part of the names of its metrics: "value" or "cost_value"."""
    model: scalar.ScalarModel | None
    """Network of the critic; None for a head on the policy."""
    start: Checkpoint
    """Checkpoint that the critic starts from."""

    def values(self, params: Any, rows: Rollout, states_RMD: Float[Array, "R M D"]) -> Float[Array, "R M"]:
        """The value of the state before each token of the answers.

        Args:
          params: the critic's parameters.
          rows: the rollouts.
          states_RMD: the policy's hidden states before each token, which a head on the policy reads.
        """
        if self.model is None:
            return scalar.read_head(params["score"], states_RMD)[..., 0]
        values_RT1 = self.model.apply(params, rows.tokens_RT, rows.segment_ids_RT, rows.positions_RT)
        return states_before(values_RT1, rows.mask_RM.shape[1])[..., 0]


def critics_of(run: Run, settings: CriticSettings, *, with_cost: bool) -> dict[str, Critic]:
    """The critics that `config.critic` describes, by their names in the parameters.

    Args:
      run: the run.
      settings: `config.critic`.
      with_cost: whether a second critic, "cost_critic", estimates costs.
    """
    start = run.start
    if settings.init_from is not None and settings.init_from != run.config.init_from:
        start = run.open(settings.init_from)
        check_tokenizer(start, run.tokenizer)
    execution = {name: getattr(run.config.model, name) for name in ("dtype", "param_dtype", "attention", "remat")}

    def make(label: str) -> Critic:
        return Critic(label, None if settings.shared else scalar.build(start.config.replace(**execution)), start)

    return {"critic": make("value")} | ({"cost_critic": make("cost_value")} if with_cost else {})


def initial_params(run: Run, critics: Mapping[str, Critic]) -> InitialParams:
    """The initial parameters of policy and critics, as one tree {"policy", <critic names>}.

    The policy starts from `config.init_from`, and a critic's trunk from its `start`. A critic that starts from a
    scalar model keeps that model's head; any other head is random.
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
    """The function from a random key to a critic's random parameters. config: the policy's, for a shared critic."""
    return critic.model.init if critic.model else lambda key: {"score": scalar.init_head(key, config)}
