"""What of a network a run trains, and what it stands on: everything, or low-rank adapters on a base that stays.

Without `config.lora` a run's state holds the whole network. With it the state, and so every checkpoint, holds the
adapters alone; the base is read from `config.init_from` when the run starts or goes on, and networks that start from
the same path share it in memory. A step joins both, and takes them apart again (`fit.compile_update`).
"""

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from ..checkpoints import origin
from ..errors import UserError
from ..model import lora, storage
from ..model.lora import Lora
from ..model.sharding import PARTITION_RULES, match, path_name, shardings
from ..model.weights import is_weight, join, without
from .optimizer import Rules, by_rules, split_frozen
from .randomness import purpose_key
from .settings import Settings, did_you_mean

RULES = ("frozen", "decay", "lr_multipliers")
"""The lists of `config.optim` whose rules are for parameters by their paths."""


class Part(NamedTuple):
    """One network of a run.

    init(key): all its parameters, random, adapters with them. load(abstract): those that the state holds, from the
    path that it starts from; None where it starts at random. base: the rest, which stays as it is.
    """

    init: Callable[[jax.Array], Any]
    load: Callable[[Any], Any] | None
    base: dict[str, Any]


class Bases:
    """The parameters that several networks of a run stand on: one array in memory for each, whoever asks."""

    def __init__(self, mesh: jax.sharding.Mesh, partition_rules: Rules | None = None):
        self._mesh, self._rules = mesh, partition_rules or PARTITION_RULES
        self._known: dict[str, dict[str, jax.Array]] = {}

    def place(self, abstract: Any) -> Any:
        """Shapes with the shardings of the run. Raises UserError where a mesh axis does not divide an array's."""
        try:
            where = shardings(abstract, self._mesh, self._rules)
        except ValueError as error:
            raise UserError(str(error)) from None
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, where)

    def load(self, path: epath.PathLike, abstract: Any, quantize: storage.Rules | None, weights: str) -> Any:
        """The parameters at a path that `abstract` names, read unless they are there. quantize: how they are stored.
        weights: "params" or "ema"."""
        known = self._known.setdefault(f"{origin.absolute(path)} {weights} {json.dumps(quantize)}", {})
        named = {path_name(key_path): leaf for key_path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
        if named.keys() - known.keys():
            read = origin.load_params(path, self.place(abstract), name=weights, some=True, quantize=quantize)
            for key_path, leaf in jax.tree_util.tree_leaves_with_path(read, is_leaf=is_weight):
                known.setdefault(path_name(key_path), leaf)
        return jax.tree_util.tree_map_with_path(lambda key_path, _: known[path_name(key_path)], abstract)

    def load_whole(self, path: epath.PathLike, abstract: Any, weights: str) -> Any:
        """All parameters at a path, its adapters on the base that they were trained on. weights: "params" or "ema"."""
        adapter = origin.stored_adapter(path)
        if adapter is None:
            return origin.load_params(path, self.place(abstract), name=weights)
        base = self.load(adapter.path, lora.base_of(adapter.lora, abstract), adapter.quantize, adapter.weights)
        return join(origin.load_adapters(path, self.place(abstract), name=weights), base)


class Adapters:
    """`config.lora` of a run, and the bases that its networks share."""

    def __init__(self, settings: Settings, mesh: jax.sharding.Mesh, *, may_drop: bool = False):
        section = dict(settings.lora.items())
        self.dropout = section.pop("dropout")
        try:
            self.quantize = storage.rules_of(section.pop("quantize"))
        except ValueError as error:
            raise UserError(f"config.lora.quantize: {error}") from None
        self.bases = Bases(mesh, settings.partition_rules)
        self._rules: dict[str, Rules] = {name: settings.optim[name] or () for name in RULES}
        self._seed, self._start, self._weights = settings.seed, settings.init_from, settings.get("init_weights")
        self.lora: Lora | None = None
        if section["targets"] is None:
            if self.dropout or section["whole"] or self.quantize:
                raise UserError("config.lora: dropout, whole and quantize need targets, which name adapted matrices")
            return
        if self.dropout and not may_drop:
            raise UserError("config.lora.dropout: tokens are scored as they were drawn here; set it to 0")
        if self._start is None:
            raise UserError("config.lora: adapters need config.init_from, the model that they are put on")
        try:
            self.lora = Lora(**section | {"whole": section["whole"] or ()})
        except (TypeError, ValueError) as error:
            raise UserError(f"config.lora: {error}") from None

    def part(
        self,
        init: Callable[[jax.Array], Any],
        path: epath.PathLike | None,
        load: Callable[[Any], Any] | None,
        fresh_head: Callable[[Any], Any] | None = None,
    ) -> Part:
        """The network that `init(key)` makes at random and that starts from `path`.

        load(abstract) reads all of it, where there are no adapters. fresh_head(abstract) makes the head for numbers
        that a language model at `path` does not have. A path that was itself trained with adapters must have had the
        same: the run goes on with them.
        """
        if self.lora is None:
            return Part(init, load, {})
        plain = self.bases.place(jax.eval_shape(init, jax.random.key(0)))
        earlier = origin.stored_adapter(path)
        if earlier is not None and earlier.lora != self.lora:
            raise UserError(f"config.lora: {path} has adapters of {earlier.lora}; give the same, or convert it first")
        stays = self._base_of(plain)
        weights = self.weights_of(path)
        on, taken = (path, weights) if earlier is None else (earlier.path, earlier.weights)
        base = self.bases.load(on, stays, self.quantize, taken)
        stored = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), base)

        def adapted(key: jax.Array) -> Any:
            own = without(init(key), stays)
            blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), stored)
            return lora.adapt(self.lora, join(own, blank), plain, key)

        def load_own(abstract: Any) -> Any:
            whole = without(plain, stays)
            has_head = origin.read_manifest(path).get("kind") == "scalar"
            head = {"score": fresh_head(whole.pop("score"))} if "score" in whole and not has_head else {}
            if earlier is not None:
                return origin.load_adapters(path, plain, name=weights, score=head.get("score"))
            whole = head | (origin.load_params(path, whole, name=weights, some=True) if whole else {})
            where = jax.tree.map(lambda x: x.sharding, without(abstract, base))
            key = jax.random.key(self._seed)
            # A fresh adapter may depend on its matrix, so these are made from the base.
            fresh = jax.jit(
                lambda base, whole: without(lora.adapt(self.lora, join(whole, base), plain, key), base),
                out_shardings=where,
            )
            return fresh(base, whole)

        return Part(adapted, load_own, base)

    def reference(self, init: Callable[[jax.Array], Any]) -> Any:
        """The network at `config.init_from` before it learns, on the base that the run's own network stands on."""
        plain = self.bases.place(jax.eval_shape(init, jax.random.key(0)))
        earlier = origin.stored_adapter(self._start)
        if earlier is not None:
            return self.bases.load_whole(self._start, plain, self.weights_of(self._start))
        return self.bases.load(self._start, plain, self.quantize, self.weights_of(self._start))

    def weights_of(self, path: epath.PathLike) -> str:
        """Which parameters of a model that a network starts from are taken; `config.init_weights` is of `init_from`."""
        return origin.choose_weights(path, self._weights if path == self._start else None)

    def frozen(self, everything: Any, base: Any, networks: Sequence[str] = ()) -> Rules:
        """Which parameters do not learn: with adapters a rule for each one, else what `config.optim.frozen` says.

        networks: the names of those that `everything` holds, where it holds several: a rule is for each of them, or
        begins with a name. Raises UserError for a rule of `config.optim` that is for no parameter.
        """
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(everything)]
        within = f"(?:(?:{'|'.join(networks)})/)?" if networks else ""
        own_names = [re.sub(f"^{within}", "", name) for name in names]
        for setting, rules in self._rules.items():
            for pattern, _ in rules:
                there = [*own_names, *names] if setting == "frozen" else own_names
                if not any(re.fullmatch(pattern, name) for name in there):
                    near = did_you_mean(pattern, there) or f"; there are {', '.join(dict.fromkeys(there))}"
                    raise UserError(f"config.optim.{setting}: {pattern!r} matches no parameter{near}")
        frozen = [(f"{within}(?:{rule})", x) for rule, x in self._rules["frozen"]] or [(r".*", False)]
        if self.lora is None:
            return frozen
        own = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(without(everything, base))}
        fixed = {name for name in own if name.endswith(tuple(f"/{part}" for part in lora.FIXED))}
        return [(re.escape(n), n not in own or n in fixed or match(frozen, n)) for n in names]

    def check(self, params: Any) -> None:
        """Raises UserError for rules that do not fit a network of the shapes `params`, before it has adapters."""
        if self.lora is not None:
            self._base_of(params)
            return
        trainable, _ = split_frozen(params, self.frozen(params, {}))
        for setting in ("decay", "lr_multipliers"):
            if self._rules[setting]:
                by_rules(setting, self._rules[setting], trainable)

    def _base_of(self, params: Any) -> Any:
        try:
            return lora.base_of(self.lora, params)
        except ValueError as error:
            raise UserError(f"config.{error}") from None

    def perturb(self) -> Callable[[Any, jax.Array], Any] | None:
        """The dropout of adapters' inputs, anew at every pass, as `state.make_update` takes it."""
        if not self.dropout:
            return None
        key = purpose_key(self._seed, "lora dropout")
        return lambda params, number: lora.with_dropout(params, jax.random.fold_in(key, number), self.dropout)

    def manifest(self) -> dict[str, Any]:
        """What a run's checkpoints say of the base that they stand on; {} where they hold whole networks."""
        if self.lora is None:
            return {}
        earlier = origin.stored_adapter(self._start)
        weights = self.weights_of(self._start)
        path, weights = (self._start, weights) if earlier is None else (earlier.path, earlier.weights)
        described = {"path": origin.absolute(path), "identity": origin.identity(path), "weights": weights}
        return {"adapter": described | {"lora": dataclasses.asdict(self.lora), "quantize": self.quantize}}
