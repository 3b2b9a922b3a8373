"""Low-rank adapters of a run: the section `config.lora`, and what it describes."""

from dataclasses import dataclass
from typing import Annotated

from ..errors import UserError
from ..model import storage
from ..model.lora import INITS, Lora
from ..model.storage import MATRICES
from ..settings.leaves import OneOf, Only, Positive, Range, Regex, Unset, Whole


@dataclass(frozen=True)
class LoraSettings:
    """The section `config.lora`: adapters on a frozen base. Checkpoints of the run hold the adapters alone."""

    targets: Annotated[list[tuple[Regex, Whole]] | None, Unset("no adapters")] = None
    """(regex over parameter paths, rank), such as [(r"layers/(attention|mlp)/.*", 16)]. None: no adapters."""

    alpha: Annotated[Positive, Only("targets", default=16.0)] = 16.0
    """Scale of an adapter's product: alpha / rank."""

    rank_stabilized: Annotated[bool, Only("targets", default=False)] = False
    """Whether the scale is alpha / sqrt(rank) instead (rsLoRA, arXiv:2312.03732)."""

    dora: Annotated[bool, Only("targets", default=False)] = False
    """Whether a magnitude for each output is trained too (DoRA, arXiv:2402.09353)."""

    init: Annotated[str, OneOf(*INITS), Only("targets", default="zero")] = "zero"
    """Initial values: zero (no change at first), or pissa, the base's principal components (arXiv:2404.02948)."""

    quantize: Annotated[
        Annotated[str, OneOf(*MATRICES)] | list[tuple[Regex, str | None]] | None,
        Only("targets"),
        Unset("no quantisation"),
    ] = None
    """How the base is stored in memory: int8, int4, nf4 (QLoRA), stored (as a GGUF file has it), or a list of
    (regex, kind). None: as it is."""

    dropout: Annotated[float, Range(least=0, below=1), Only("targets", default=0.0)] = 0.0
    """Share of the adapters' inputs that is dropped."""

    whole: Annotated[list[Regex] | None, Only("targets")] = None
    """Regexes over paths of parameters that are trained whole beside the adapters."""

    def adapters(self) -> Lora | None:
        """The adapters; None where the section has no targets."""
        if self.targets is None:
            return None
        try:
            return Lora(
                targets=self.targets,
                alpha=self.alpha,
                rank_stabilized=self.rank_stabilized,
                dora=self.dora,
                init=self.init,
                whole=self.whole or (),
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"config.lora: {error}") from None

    def base_storage(self) -> storage.Rules | None:
        """How the base is stored in memory, as rules for each matrix; None: as it is."""
        try:
            return storage.rules_of(self.quantize)
        except ValueError as error:
            raise UserError(f"config.lora.quantize: {error}") from None
