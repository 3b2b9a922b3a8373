"""Licences of datasets: what each asks for, what a mixture asks for, and which duties exclude each other.

The table `licences.toml` records published texts. Nothing here is legal advice: it says what is recorded.

A row carries the licence of its source, and the terms of the teacher that wrote it. A mixture carries the duties of all
its rows together. A conflict is a duty that cannot be met in the mixture, or for the use that is stated.
"""

import functools
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import resources
from typing import NamedTuple

from ..errors import UserError, check_choice, did_you_mean
from .cards import Card, Parent, card_of

USES = ("research", "commercial")
"""What a model or dataset may be made for."""

CONFLICTS = ("share_alike", "no_derivatives", "non_commercial", "training", "unknown")
"""Kinds of conflicts: see `conflicts`."""


@dataclass(frozen=True)
class Licence:
    """What a licence, or the terms of a service, ask for."""

    name: str
    """SPDX name, or the usual name on cards of datasets where SPDX has none."""

    title: str
    """Full name."""

    source: str
    """Where the text was read, with the section and the version."""

    aliases: tuple[str, ...] = ()
    """Other names."""

    attribution: bool = False
    """Whether the authors have to be named."""

    share_alike: tuple[str, ...] = ()
    """Names of the licences of which adaptations have to have one; () if they may have any."""

    non_commercial: bool = False
    """Whether commercial use is excluded."""

    no_derivatives: bool = False
    """Whether adapted material must not be shared."""

    model_name: str = ""
    """How the name of a distributed model that was trained on the material has to begin; "" for any name."""

    notice: str = ""
    """Words that have to be shown; "" for none."""

    use_policy: str = ""
    """Name of a policy on use that has to be passed on; "" for none."""

    training: str = ""
    """Models that must not be trained on the material; "" for no restriction."""


class Terms(NamedTuple):
    """The licence of one source, or the terms of its teacher."""

    holder: str
    """Dataset and source, such as "mixed/chats", with the teacher if these are its terms."""

    name: str | None
    """Name of the licence as it was recorded; None if none was."""

    @property
    def licence(self) -> Licence | None:
        """The licence; None if it is unknown."""
        return find(self.name)


class Conflict(NamedTuple):
    """A duty that cannot be met."""

    kind: str
    """One of `CONFLICTS`."""

    message: str
    """Which licences of which sources stand against what."""


@functools.cache
def _table() -> tuple[dict[str, Licence], list[tuple[re.Pattern, str]]]:
    """The licences by each of their names, as `_normal` writes it, and the terms of teachers by patterns."""
    found = tomllib.loads((resources.files(__package__) / "licences.toml").read_text("utf-8"))
    by_name = {}
    for name, fields in found["licences"].items():
        lists = {key: tuple(fields.pop(key, ())) for key in ("aliases", "share_alike")}
        licence = Licence(name, **fields, **lists)
        by_name |= {_normal(each): licence for each in (name, *licence.aliases)}
    return by_name, [(re.compile(each["pattern"]), each["terms"]) for each in found["teachers"]]


def _normal(name: str) -> str:
    return re.sub(r"[\s_]+", "-", name.strip().lower())


def find(name: str | None) -> Licence | None:
    """The licence of a name or alias, in letters of any case; None if the table has none of it."""
    return None if name is None else _table()[0].get(_normal(name))


def check_name(name: str | None, where: str) -> None:
    """Raises UserError, which begins with `where`, for a name that the table does not have; None is none.

    A name "LicenseRef-..." (SPDX's form for licences outside its list) is recorded; its duties are unknown."""
    if name is not None and find(name) is None and not re.fullmatch(r"LicenseRef-[A-Za-z0-9.-]+", name):
        near = did_you_mean(_normal(name), _table()[0])
        raise UserError(
            f"{where}: the licence {name!r} is not in data/licences.toml{near}; give a name of that table, own "
            "for your own data, LicenseRef-NAME for another licence, whose duties stay unknown, or leave it out"
        )


def terms_of(teacher: str | None) -> str | None:
    """The name of the terms for a model's output, from the model's name or path; None if they are unknown."""
    if teacher is None:
        return None
    return next((terms for pattern, terms in _table()[1] if pattern.search(teacher.lower())), None)


def with_origins(card: Card) -> Card:
    """The card with the terms of its teachers, and the cards of the datasets among its sources, where it lacks them."""
    sources = {n: replace(s, terms=s.terms or terms_of(s.teacher)) for n, s in card.sources.items()}
    there = {n: card_of(s.location) for n, s in card.sources.items() if card.parent_of(n) is None}
    parents = {n: Parent(str(found[0]), found[1]) for n, found in there.items() if found}
    return replace(card, sources=sources, parents={**card.parents, **parents})


def terms_in(name: str, card: Card) -> list[Terms]:
    """The licence of each source of a dataset, and the terms of each teacher, through all datasets it was made from.

    A source with neither a licence nor a parent has the name None. Sources without rows in the dataset do not count.
    name: the dataset's name, for `Terms.holder`.
    """
    found = []
    for source_name, source in card.sources.items():
        if not source.kept.rows:
            continue
        holder, parent = f"{name}/{source_name}", card.parent_of(source_name)
        if source.licence is not None or parent is None:
            found.append(Terms(holder, source.licence))
        if source.teacher is not None:
            found.append(Terms(f"{holder} (teacher {source.teacher})", source.terms))
        if parent is not None:
            found += terms_in(holder, parent.card)
    return found


def duties(terms: Iterable[Terms]) -> dict[str, list[str]]:
    """The duties of a mixture, by kind: the union of those of its terms, each with the licences that ask for it."""
    found: dict[str, dict[str, list[str]]] = {}

    def add(kind: str, what: str, licence: Licence) -> None:
        names = found.setdefault(kind, {}).setdefault(what, [])
        if licence.name not in names:
            names.append(licence.name)

    for each in terms:
        if (licence := each.licence) is None:
            found.setdefault("unknown", {}).setdefault(f"{each.holder}: {each.name or 'no licence recorded'}", [])
            continue
        for kind in ("attribution", "non_commercial", "no_derivatives"):
            if getattr(licence, kind):
                add(kind, "", licence)
        for kind in ("model_name", "notice", "use_policy", "training"):
            if what := getattr(licence, kind):
                add(kind, what, licence)
        if licence.share_alike:
            add("share_alike", " or ".join(licence.share_alike), licence)
    return {
        kind: [" ".join(filter(None, (what, f"({', '.join(names)})" if names else ""))) for what, names in all_.items()]
        for kind, all_ in found.items()
    }


def conflicts(terms: Iterable[Terms], use: str) -> list[Conflict]:
    """The duties of a mixture that cannot be met.

    share_alike: no licence meets the share-alike duties of all sources; or one that is not to be restricted further
    meets non-commercial material (creativecommons.org/faq, chart of licences that can be combined). no_derivatives: a
    mixture is a derivative. non_commercial, training: for commercial use. unknown: a licence or a teacher's terms are
    not recorded, or not in the table.

    Args:
      terms: the terms of all sources (`terms_in`).
      use: one of `USES`.
    """
    check_choice("use", use, USES)
    terms = list(dict.fromkeys(terms))
    known = {each: licence for each in terms if (licence := each.licence) is not None}
    found = [Conflict("unknown", _unknown(each)) for each in terms if each not in known]
    for each, licence in known.items():
        if licence.no_derivatives:
            found.append(Conflict("no_derivatives", f"{_said(each)} allows no adapted material, such as a mixture"))
        if licence.non_commercial and use == "commercial":
            found.append(Conflict("non_commercial", f"{_said(each)} excludes commercial use"))
        if licence.training and use == "commercial":
            found.append(Conflict("training", f"{_said(each)} excludes training {licence.training}"))
    alike = {each: licence for each, licence in known.items() if licence.share_alike}
    limited = {each: licence for each, licence in known.items() if licence.non_commercial}
    together = set.intersection(*(set(licence.share_alike) for licence in alike.values())) if alike else set()
    if alike and not together:
        sides = {licence.name: f"{_said(each)} asks for {_or(licence)}" for each, licence in alike.items()}
        found.append(Conflict("share_alike", f"{', '.join(sides.values())}: no licence meets all of them"))
    elif alike and limited and not any((meets := find(name)) and meets.non_commercial for name in together):
        one, other = next(iter(alike)), next(iter(limited))
        wanted = _or(alike[one])
        found.append(Conflict("share_alike", f"{_said(one)} asks for {wanted}, but {_said(other)} is non-commercial"))
    return found


def _or(licence: Licence) -> str:
    return " or ".join(licence.share_alike)


def _said(terms: Terms) -> str:
    return f"{terms.licence.name} of {terms.holder}"


def _unknown(terms: Terms) -> str:
    if terms.name is None:
        return f"no {'terms are' if '(teacher ' in terms.holder else 'licence is'} recorded for {terms.holder}"
    near = did_you_mean(_normal(terms.name), _table()[0])
    return f"{terms.name} of {terms.holder} is not in the table of licences{near}"
