"""What happens to parameters after the last step of a run, such as calibrating a reward model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .network import Network
from .state import State

UNFINISHED = "unfinished"
"""Under this name a checkpoint keeps the parameters that `Finish` replaced."""


class Finish(NamedTuple):
    """What happens to the parameters, and to their moving average, after the last step and before they are saved.

    The checkpoint keeps what was replaced, so that a run which is made longer resumes from there.
    """

    names: tuple[str, ...]
    """The entries of the parameters that `run` replaces."""
    run: Callable[[Any], Any]
    """run(whole network) -> the network with other entries `names`."""

    def shelve(self, state: State) -> State:
        """The entries that `run` replaces, of a state or of its shapes."""
        return {kind: {name: state[kind][name] for name in self.names} for kind in ("params", "ema") if kind in state}

    def apply(self, network: Network, state: State) -> State:
        """The last state, with what was replaced under `UNFINISHED`."""
        whole = network.whole(state)
        new = {kind: {**state[kind], **_only(self.run(whole[kind]), self.names)} for kind in self.shelve(state)}
        return state | new | {UNFINISHED: self.shelve(state)}


def _only(tree: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: tree[name] for name in names}
