"""The critics of a PPO run: what each state is worth, in reward and, with a cost model, in cost.

A critic is a network of its own, which starts from the reward model or from the policy, or one more head on the policy.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Float

from ..data.errors import UserError
from ..model import llama
from ..model.config import LlamaConfig
from ..train import checkpoints
from ..train import setup as train_setup
from ..train.optimizer import each_part, split_frozen
from ..train.settings import Settings
from . import scalar
from .rollout import Rollout, states_before


class Critic(NamedTuple):
    """label: the group of its metrics. model: its network, None for a head on the policy. start: path of the model
    that it starts from."""

    label: str
    model: scalar.ScalarModel | None
    start: str

    def values(self, params: Any, rows: Rollout, states_RMD: Float[Array, "R M D"]) -> Float[Array, "R M"]:
        """The value of the state before each token; `states_RMD` are the policy's."""
        if self.model is None:
            return scalar.read_head(params["score"], states_RMD)[..., 0]
        values_RT1 = self.model.apply(params, rows.tokens_RT, rows.segment_ids_RT, rows.positions_RT)
        return states_before(values_RT1, rows.mask_RM.shape[1])[..., 0]


def critics_of(settings: Settings, *, with_cost: bool) -> dict[str, Critic]:
    """The critics by their name in the parameters, as `config.critic` says."""
    section = settings.critic
    shared, start = section.shared, section.init_from or settings.init_from
    if shared and section.init_from is not None:
        raise UserError(
            "config.critic: one that is a head on the policy (shared) starts from the policy, init_from=None"
        )

    def make(label: str) -> Critic:
        model = None if shared else scalar.build(_config_of(settings, start))
        return Critic(label, model, start)

    return {"critic": make("value")} | ({"cost_critic": make("cost_value")} if with_cost else {})


def _config_of(settings: Settings, path: str) -> LlamaConfig:
    """The network in a checkpoint, to be executed as the policy is."""
    execution = ("dtype", "param_dtype", "attention", "remat")
    return train_setup.stored_model(path).replace(**{name: settings.model[name] for name in execution})


def initialiser(model: llama.Model, critics: Mapping[str, Critic]) -> Callable[[jax.Array], Any]:
    """The function from a key to random parameters {"policy", critics...}."""

    def init(key: jax.Array) -> dict[str, Any]:
        params = {"policy": model.init(key)}
        for number, (name, critic) in enumerate(critics.items(), 1):
            own = jax.random.fold_in(key, number)
            params[name] = critic.model.init(own) if critic.model else {"score": scalar.init_head(own, model.config)}
        return params

    return init


def loader(settings: Settings, model: llama.Model, critics: Mapping[str, Critic]) -> Callable[[Any], Any]:
    """The function from the parameters' shapes and shardings to those that the run starts from.

    The policy is `config.init_from`; so is a critic's trunk, or that of `config.critic.init_from`, whose head it takes
    over where that is a scalar model. A fresh head is random.
    """
    start, key = settings.init_from, jax.random.key(settings.seed)

    def load(abstract: Mapping[str, Any]) -> dict[str, Any]:
        params = {"policy": checkpoints.load_params(start, abstract["policy"])}
        for number, (name, critic) in enumerate(critics.items(), 1):
            if critic.model is not None and checkpoints.read_manifest(critic.start).get("kind") == "scalar":
                params[name] = scalar.load(critic.start, abstract[name])
                continue
            trunk = scalar.load_trunk(critic.start, abstract[name]) if critic.model else {}
            head = scalar.init_head(jax.random.fold_in(key, number), model.config)
            where = jax.tree.map(lambda x: x.sharding, abstract[name]["score"])
            params[name] = trunk | {"score": jax.device_put(head, where)}
        return params

    return load


def optimizer_of(
    settings: Settings,
    init: Callable[[jax.Array], Any],
    lengths: train_setup.Lengths,
    batches: Any,
    *,
    updates: int,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """One optimiser for the policy and one for each critic, all as `config.optim` says, critics at `config.critic.lr`.

    Each clips its own gradient. updates: how many a step of the run makes. The schedule given is the policy's.
    """
    params = jax.eval_shape(init, jax.random.key(0))
    trainable, _ = split_frozen(params, train_setup.frozen_of(settings))
    parts, schedules = {}, {}
    for name, part in trainable.items():
        lr = None if name == "policy" else settings.critic.lr
        parts[name], schedules[name] = train_setup.optimizer_of(
            settings, part, lengths, batches, lr=lr, updates=updates
        )
    return each_part(parts), schedules["policy"]
