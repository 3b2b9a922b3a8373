"""A change of the parameters after the last step of a run, such as calibrating a reward model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .network import Network
from .state import State

UNFINISHED = "unfinished"
"""Entry of the last checkpoint with the parameters that `Finish` replaced."""


class Finish(NamedTuple):
    """A change of the parameters, and of their moving average, after the last step and before they are saved.

    The last checkpoint keeps the entries that were replaced, so that a run which is made longer resumes from them.
    """

    names: tuple[str, ...]
    """Names of the entries that change, such as ("score",)."""

    run: Callable[[Any], Any]
    """run(parameters of a whole network) -> the parameters with other entries `names`."""

    def shelve(self, state: State) -> State:
        """The entries `names` of a state, or of its shapes."""
        return {kind: {name: state[kind][name] for name in self.names} for kind in ("params", "ema") if kind in state}

    def apply(self, network: Network, state: State) -> State:
        """The last state with changed parameters, and with the entries that were replaced under `UNFINISHED`."""
        whole = network.whole(state)
        new = {kind: {**state[kind], **_only(self.run(whole[kind]), self.names)} for kind in self.shelve(state)}
        return state | new | {UNFINISHED: self.shelve(state)}


def _only(tree: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: tree[name] for name in names}
