"""The critics of a PPO run: what each state is worth, in reward and, with a cost model, in cost.

A critic is a network of its own, which starts from the reward model or from the policy, or one more head on the policy.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Float

from ..checkpoints import origin
from ..data.tokenizer import Tokenizer
from ..model import llama
from ..model.config import LlamaConfig
from ..train import setup as train_setup
from ..train.adapters import Adapters, Part
from ..train.by_layer import Optimizer
from ..train.optimizer import each_part
from ..train.settings import Settings
from . import scalar
from .rewards import check_tokenizer
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


def critics_of(settings: Settings, tokenizer: Tokenizer, *, with_cost: bool) -> dict[str, Critic]:
    """The critics by their name in the parameters, as `config.critic` says. tokenizer: the policy's."""
    section = settings.critic
    shared, start = section.shared, section.init_from or settings.init_from

    def make(label: str) -> Critic:
        model = None if shared else scalar.build(_config_of(settings, start))
        return Critic(label, model, start)

    critics = {"critic": make("value")} | ({"cost_critic": make("cost_value")} if with_cost else {})
    if start != settings.init_from:
        check_tokenizer(start, tokenizer)
    return critics


def _config_of(settings: Settings, path: str) -> LlamaConfig:
    """The network in a checkpoint, to be executed as the policy is."""
    execution = ("dtype", "param_dtype", "attention", "remat")
    return origin.load_config(path).replace(**{name: settings.model[name] for name in execution})


def initialiser(model: llama.Model, critics: Mapping[str, Critic]) -> Callable[[jax.Array], Any]:
    """The function from a key to random parameters {"policy", critics...}."""
    return _together({"policy": model.init} | {name: _init_of(c, model.config) for name, c in critics.items()})


def _init_of(critic: Critic, config: LlamaConfig) -> Callable[[jax.Array], Any]:
    return critic.model.init if critic.model else lambda key: {"score": scalar.init_head(key, config)}


def _together(inits: Mapping[str, Callable[[jax.Array], Any]]) -> Callable[[jax.Array], Any]:
    return lambda key: {name: init(jax.random.fold_in(key, i)) for i, (name, init) in enumerate(inits.items())}


def parts_of(settings: Settings, model: llama.Model, critics: Mapping[str, Critic], adapters: Adapters) -> Part:
    """The policy and the critics as one network, {"policy", critics...}: how it begins, and what it stands on.

    The policy starts from `config.init_from`, and so does a critic's trunk, or from `config.critic.init_from`. Of a
    scalar model there it takes over the head too; a fresh head is random.
    """
    start, key = settings.init_from, jax.random.key(settings.seed)
    parts = {"policy": adapters.part(model.init, start, train_setup.loader(settings))}
    for number, (name, critic) in enumerate(critics.items(), 1):
        parts[name] = _part_of(critic, model.config, jax.random.fold_in(key, number), adapters)

    def load(abstract: Mapping[str, Any]) -> dict[str, Any]:
        return {name: part.load(abstract[name]) for name, part in parts.items()}

    bases = {name: part.base for name, part in parts.items() if part.base}
    return Part(_together({name: part.init for name, part in parts.items()}), load, bases)


def _part_of(critic: Critic, config: LlamaConfig, key: jax.Array, adapters: Adapters) -> Part:
    def fresh_head(abstract: Any) -> Any:
        return jax.device_put(scalar.init_head(key, config), jax.tree.map(lambda x: x.sharding, abstract))

    if critic.model is None:
        return Part(_init_of(critic, config), lambda abstract: {"score": fresh_head(abstract["score"])}, {})

    def load(abstract: Any) -> Any:
        weights = adapters.weights_of(critic.start)
        if origin.read_manifest(critic.start).get("kind") == "scalar":
            return origin.load_params(critic.start, abstract, name=weights)
        return scalar.load_trunk(critic.start, abstract, weights) | {"score": fresh_head(abstract["score"])}

    return adapters.part(critic.model.init, critic.start, load, fresh_head)


def optimizer_of(
    settings: Settings,
    trainable: Mapping[str, Any],
    lengths: train_setup.Lengths,
    batches: Any,
    *,
    updates: int,
) -> tuple[Optimizer, optax.Schedule]:
    """One optimiser for the policy and one for each critic, all as `config.optim` says, critics at `config.critic.lr`.

    trainable: what learns of each, shapes suffice. Each clips its own gradient. updates: how many a step of the run
    makes. The schedule given is the policy's.
    """
    parts, schedules = {}, {}
    for name, part in trainable.items():
        lr = None if name == "policy" else settings.critic.lr
        parts[name], schedules[name] = train_setup.optimizer_of(
            settings, part, lengths, batches, lr=lr, updates=updates
        )
    return each_part(parts), schedules["policy"]
