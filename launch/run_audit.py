"""What a training run was trained on: tokens by source, rows of its batches, and its datasets' cards then and now."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
from ml_collections import ConfigDict

from ..checkpoints import absolute_path
from ..checkpoints import open as open_checkpoint
from ..curate.duplicates.shingles import searched
from ..curate.ledger.audit import Report, Searched, licence_report, row_report, state_of
from ..curate.ledger.lineage import Line
from ..curate.rows import TRAIN
from ..data import sources
from ..data.licences import terms_in
from ..data.mixture import Mixture
from ..data.packed_rows import PackedRows
from ..data.sources import Record, Source
from ..data.token_cache import TokenCache
from ..errors import UserError
from ..train.batches import data_of
from ..train.ledger import cards_of, trained_locations
from ..train.run_config import SupervisedConfig
from .recipes import read_config


class RunAudit:
    """A training run's data, as its newest checkpoint names them.

    Attributes:
      path: the run's folder.
      manifest: the manifest of its newest checkpoint.
      config: its settings.
      cards: the cards of the datasets that it trains on, as they are now, by the name of the source.
    """

    def __init__(self, path: str):
        """Opens a run. Raises UserError if there is none at the path, or its config is of another version."""
        checkpoint = open_checkpoint(path)
        self.path, self.manifest = absolute_path(path), getattr(checkpoint, "manifest", None)
        if not (self.manifest or {}).get("config"):
            raise UserError(f"{path} is a model, but no training run of camelid: nothing says what it was trained on")
        self._checkpoint = checkpoint
        self.config = read_config(ConfigDict(self.manifest["config"]))
        self.cards = cards_of(trained_locations(self.config))
        self._batches: Mixture | None = None

    @property
    def batches(self) -> Mixture:
        """The training batches. Raises UserError if the data are not those that the run was trained on."""
        if self._batches is None:
            if not isinstance(self.config, SupervisedConfig):
                raise UserError(
                    f"{self.path} is a run of {self.config.recipe}: tokens by source and rows of batches are known of "
                    "pretrain and sft"
                )
            template = self._checkpoint.template
            self._batches, _ = data_of(self.config.data, self._checkpoint.tokenizer, template, self.config.seed)
        if self._batches.fingerprint != self.manifest["data_fingerprint"]:
            raise UserError(
                f"{self.path}: the files of config.data.mixture are not those that the run was trained on (the data's "
                "fingerprint differs), so nothing can be said about its rows: put the former files back"
            )
        return self._batches

    def report(self, use: str) -> Report:
        """The run's sources with their tokens, the datasets then and now, and what their licences ask for.

        "unknown" says why nothing is known about the tokens, such as changed files; None if they are known.
        """
        unknown, by_source = None, []
        try:
            by_source = self._sources()
        except UserError as problem:
            unknown = str(problem)
        terms = [terms for name, card in self.cards.items() for terms in terms_in(name, card)]
        return {
            "run": str(self.path),
            "recipe": self.config.recipe,
            "steps": self.manifest["step"],
            "total_steps": self.manifest["total_steps"],
            "sources": by_source,
            "unknown": unknown,
            "datasets": self._datasets(),
            **licence_report(terms, use),
        }

    def _sources(self) -> list[Report]:
        """Tokens, trained tokens and epochs of each source; of a dataset with a card, of each of its sources."""
        step, batches = self.manifest["step"], self.batches
        epochs, found = batches.epochs(step), []
        for number, (name, counts) in enumerate(batches.counts(step).items()):
            by_source = {"": counts.sum(1)}
            if name in self.cards:
                by_source = _grouped(counts, batches.parts[number].cache, batches.sources[number])
            for inner, (tokens, trained) in by_source.items():
                full = f"{name}/{inner}" if inner else name
                found.append({"source": full, "tokens": int(tokens), "trained": int(trained), "epochs": epochs[name]})
        total = sum(each["trained"] for each in found)
        return [each | {"share": each["trained"] / total if total else 0.0} for each in found]

    def _datasets(self) -> dict[str, Report]:
        """Of each dataset that the run's manifest names, and each that has a card now: then and now."""
        then, locations = self.manifest.get("datasets", {}), trained_locations(self.config)
        found = {}
        for name in {**then, **self.cards}:
            location = locations[name]
            state = state_of(location, then[name]) if name in then else "no card when the run began"
            found[name] = {"location": location, "card": then.get(name), "now": state}
        return found

    def row(self, step: int, row: int) -> list[Report]:
        """The records in one row of the batch of a training step, in their order.

        Args:
          step: the training step, counted from 0; it may lie ahead.
          row: the row of the batch.

        Raises:
          UserError: there is no such row, or the data are not those of the run.
        """
        batches = self.batches
        if step < 0 or not 0 <= row < batches.batch_size:
            raise UserError(f"--step={step} --row={row}: give a step from 0 up and a row below {batches.batch_size}")
        number, order, row_of_epoch = batches.origin(step, row)
        part, source = batches.parts[number], batches.sources[number]
        pieces = list(order.row(row_of_epoch))
        records = _records(part, source, [sample for sample, _, _ in pieces])
        found, at = [], 0
        for sample, first, count in pieces:
            where = {"source": source.name, "positions": [at, at + count], "first_token": first, "record": None}
            found.append(where | self._of(source.name, records[sample]))
            at += count
        return found

    def records(self) -> Iterator[Searched]:
        """The records that the run trains on. Raises UserError as `batches` does."""
        for source in self.batches.sources:
            for record in _read(source):
                yield Searched(record.where, TRAIN, searched(record))

    def _of(self, name: str, record: Record) -> Report:
        """Where a record was read; of a row of a dataset with a card, its way back."""
        meta = record.get("meta", {})
        if name not in self.cards or "id" not in meta or "source" not in meta:
            return {"record": record.where, "text": _start(record)}
        line = Line(record.where, {**record, "id": meta["id"], "meta": {k: v for k, v in meta.items() if k != "id"}})
        return {"record": record.where} | row_report(name, self.cards[name], "train", line)


def _start(record: Record) -> str:
    text = record["text"] if record["kind"] == "text" else "\n".join(m["content"] for m in record["messages"])
    return text[:300]


def _numbers(cache: TokenCache) -> np.ndarray:
    """Which record of the split each sample comes from. Raises UserError if an older version did not keep it."""
    if cache.numbers is not None:
        return cache.numbers
    if cache.info["counts"]["records"] == len(cache):
        return np.arange(len(cache))
    raise UserError(
        f"{cache.path} was made by an older version, which did not keep which records were left out: delete the folder "
        "and give the command again, which makes it anew"
    )


def _read(source: Source) -> Iterator[Record]:
    """The records of the training split, as a token cache reads them."""
    return sources.read(replace(source, heldout=sources.heldout_share(source)), "train")


def _records(part: PackedRows, source: Source, samples: list[int]) -> dict[int, Record]:
    """The records of some samples, by the number of the sample."""
    wanted = {int(_numbers(part.cache)[sample]): sample for sample in samples}
    read = islice(_read(source), max(wanted) + 1)
    return {wanted[number]: record for number, record in enumerate(read) if number in wanted}


def _grouped(counts: np.ndarray, cache: TokenCache, source: Source) -> dict[str, np.ndarray]:
    """Tokens and trained tokens by the source that each record names, int64 [2]. counts: int64 [2, samples]."""
    numbers, found = _numbers(cache), defaultdict(lambda: np.zeros(2, np.int64))
    sample = 0
    for number, record in enumerate(_read(source)):
        if sample < len(numbers) and numbers[sample] == number:
            found[record.get("meta", {}).get("source", "")] += counts[:, sample]
            sample += 1
    return dict(sorted(found.items()))
