"""The cards of the datasets that a run trains on: what their licences ask for together, and which datasets they are."""

import functools
from collections.abc import Mapping
from typing import Any

from ..data.cards import Card, card_of
from ..data.console import tell, warn
from ..data.licences import conflicts, terms_in
from ..errors import UserError

_tell_once, _warn_once = functools.cache(tell), functools.cache(warn)


def cards_of(locations: Mapping[str, str]) -> dict[str, Card]:
    """The cards of the sources that are datasets with one, by the names of the sources. locations: by name."""
    found = {name: card_of(location) for name, location in locations.items()}
    return {name: there[1] for name, there in found.items() if there is not None}


def check_licences(locations: Mapping[str, str], use: str, refuse: bool) -> None:
    """Compares the licences in the cards of a mixture's datasets with each other and with the use of the model.

    Licences that are not known, and sources without a card beside datasets with one, are told.

    Args:
      locations: the locations of the sources that are trained on, by name.
      use: what the trained model is for, one of `data.licences.USES`.
      refuse: whether a conflict ends the run; if not, it is told.

    Raises:
      UserError: there is a conflict and `refuse` is True.
    """
    cards = cards_of(locations)
    if not cards:
        return
    if without := [name for name in locations if name not in cards]:
        _tell_once(f"config.data.mixture: no card says under which licence the data of {', '.join(without)} are")
    for kind, message in conflicts([terms for name in cards for terms in terms_in(name, cards[name])], use):
        if refuse and kind != "unknown":
            raise UserError(
                f"config.data.mixture: {message} (use: {use}); leave one of these datasets out, state another use with "
                "config.data.use, or set config.data.licences=tell to train nevertheless"
            )
        _warn_once(f"config.data.mixture: {message}")


def trained_datasets(config: Any) -> dict[str, str]:
    """The hash of the card of each dataset that a run's config trains on, by the name of its source."""
    return {name: card.hash for name, card in cards_of(trained_locations(config)).items()}


def trained_locations(config: Any) -> dict[str, str]:
    """The location of each source that a run's config trains on, by name."""
    entries = {name: entry for part in ("data", "ptx") for name, entry in _mixture(config, part).items()}
    return {name: entry.source for name, entry in entries.items() if entry.weight}


def _mixture(config: Any, part: str) -> Mapping[str, Any]:
    """The sources of `config.data` or `config.ptx` by name; none where a recipe has no such section."""
    return getattr(getattr(config, part, None), "mixture", {})
