"""Prompts of a run, how answers to them are drawn, and text beside them."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from ..checkpoints.decoding import sampling_of as drawn_by
from ..checkpoints.decoding import strings_of
from ..data.cache import build_cache
from ..data.mixture import Batch, EvalPass, Mixture, Shapes
from ..data.packed import PackedRows
from ..data.prompts import PromptEncoder, heldout_prompts
from ..data.samples import read_samples
from ..data.sources import Source
from ..data.templates import ChatTemplate
from ..data.text import TextEncoder
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from ..model.sampling import Sampling
from ..settings.leaves import Count, NotNegative, Path
from ..train.batches import BatchSize, MixtureEntry, Packing, ReadingSettings, RowLength, sources_of
from ..train.run import Run


@dataclass(frozen=True)
class PromptDataSettings(ReadingSettings):
    """The section `config.data` of prompts that the policy answers. `batch_size` counts prompts."""

    batch_size: BatchSize = 64
    """Prompts of a step."""

    max_prompt_tokens: RowLength = 128
    """Longer prompts are left out and counted."""

    heldout_prompts: Count = 64
    """Held-out prompts that an evaluation answers."""


@dataclass(frozen=True)
class PtxSettings:
    """The section `config.ptx`: text in every minibatch, so that the policy forgets less (InstructGPT's PPO-ptx,
    arXiv:2203.02155, section 3.5)."""

    coef: NotNegative = 0.0
    """Weight of the text's mean loss per token. InstructGPT: 27.8, of a sum over the tokens of a sequence."""

    mixture: dict[str, MixtureEntry] = field(default_factory=dict)
    """The sources of the text by their names."""

    batch_size: BatchSize = 64
    """Rows of text in a step, a multiple of `data.batch_size`."""

    seq_len: RowLength = 128
    """Tokens of a row of text."""

    packing: Packing = "best_fit"
    """How samples fill rows, as in `config.data` of pretraining."""

    cache_dir: Path = "~/.cache/camelid"
    """Folder of the token caches."""

    def check(self, where: str) -> None:
        if bool(self.coef) != bool(self.mixture):
            raise UserError(f"{where}: give both a coef above 0 and a mixture of text, or neither")


def sampling_of(
    run: Run, where: str, *, max_tokens: int, temperature: float, n: int = 1, stop: Sequence[str] = ()
) -> Sampling:
    """How the run's model draws answers. The ends of answers that `config.init_from` names end them too.

    Args:
      run: the run.
      where: the dotted name of the section with these settings, for messages.
      max_tokens: the most tokens of an answer.
      temperature: divisor of the logits.
      n: answers to each prompt.
      stop: strings that end an answer.
    """
    said, tokenizer = run.generation, run.tokenizer
    try:
        return drawn_by(
            tokenizer,
            run.model.config.vocab_size,
            stop_ids=(*run.need_template().stop_ids(tokenizer), *said.stop_ids),
            stop=strings_of(stop, said),
            max_tokens=max_tokens,
            temperature=temperature,
            n=n,
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def prompts_of(
    settings: PromptDataSettings, tokenizer: Tokenizer, template: ChatTemplate, seed: int
) -> tuple[Mixture, EvalPass | None]:
    """The prompts of `config.data.mixture` to learn on, and `heldout_prompts` held-out ones; None where none are."""
    sources = sources_of(settings.mixture, settings)
    encoder = PromptEncoder(tokenizer, template, settings.max_prompt_tokens)
    train = functools.partial(read_samples, split="train", encoder=encoder)
    batches = Mixture(sources, train, settings.batch_size, seed)
    if not settings.heldout:
        return batches, None
    return batches, EvalPass(heldout_prompts(sources, settings.heldout_prompts, encoder), settings.batch_size)


class MixedBatches:
    """Prompts with rows of text beside them, k for each prompt: the arrays "mix/..." of [B, k, T]."""

    def __init__(self, prompts: Mixture, text: Mixture):
        self.prompts, self.text = prompts, text
        self.batch_size, self.length = prompts.batch_size, prompts.length
        self.each = text.batch_size // prompts.batch_size
        self.fingerprint = f"{prompts.fingerprint}+{text.fingerprint}"
        self.steps_per_epoch = prompts.steps_per_epoch

    def rows(self, step: int, rows: slice) -> Batch:
        chosen = range(self.batch_size)[rows]
        text = self.text.rows(step, slice(chosen.start * self.each, chosen.stop * self.each))
        mixed = {f"mix/{name}": x.reshape(len(chosen), self.each, -1) for name, x in text.items()}
        return self.prompts.rows(step, rows) | mixed

    @property
    def shapes(self) -> Shapes:
        """Shape and dtype of each array of a batch."""
        text = {
            f"mix/{name}": ((self.batch_size, self.each, shape[1]), dtype)
            for name, (shape, dtype) in self.text.shapes.items()
        }
        return self.prompts.shapes | text

    def epochs(self, step: int) -> dict[str, float]:
        """How many times each source has been passed over by `step` steps."""
        return self.prompts.epochs(step) | {f"mix/{name}": n for name, n in self.text.epochs(step).items()}


def add_text(
    settings: PtxSettings,
    reading: PromptDataSettings,
    prompts: Mixture,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    seed: int,
) -> Mixture | MixedBatches:
    """The prompts, with the text of `config.ptx.mixture` beside them where it names any.

    Args:
      settings: `config.ptx`.
      reading: `config.data`, which says how records are read.
      prompts: the batches of prompts.
      tokenizer: of the run.
      template: of the run, for conversations in the mixture.
      seed: of the run.
    """
    if not settings.mixture:
        return prompts
    if settings.batch_size % prompts.batch_size:
        raise UserError(
            f"config.ptx.batch_size {settings.batch_size} is not a multiple of config.data.batch_size "
            f"{prompts.batch_size}: each prompt has as many rows of text beside it"
        )
    encoder = TextEncoder(tokenizer, template)

    def rows(source: Source) -> PackedRows:
        return PackedRows(build_cache(source, "train", encoder, settings.cache_dir), settings.seq_len, settings.packing)

    return MixedBatches(prompts, Mixture(sources_of(settings.mixture, reading), rows, settings.batch_size, seed))


def split_text(batch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A batch's prompts, and its rows of text as [rows, T]."""
    mix = {name.removeprefix("mix/"): x for name, x in batch.items() if name.startswith("mix/")}
    prompts = {name: x for name, x in batch.items() if not name.startswith("mix/")}
    return prompts, {name: x.reshape(-1, x.shape[-1]) for name, x in mix.items()}


def check_rows(config: Any, mesh: jax.sharding.Mesh, minibatches: int, kept: int = 1) -> None:
    """Raises UserError if devices, minibatches and their parts do not divide a step's answers evenly.

    Args:
      config: an `answer_task.AnswerConfig`.
      mesh: the devices.
      minibatches: updates in a pass over a step's answers.
      kept: one answer of this many is learnt from.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if mesh.shape["context"] > 1:
        raise UserError("config.mesh.context: answers are decoded whole; give a mesh whose context is 1")
    answers = config.data.batch_size * config.rollout.n
    factors = f"minibatches x {'config.rollout.n x ' if kept > 1 else ''}config.optim.accumulate"
    for what, parts in (
        (factors, minibatches * kept * config.optim.accumulate),
        ("config.rollout.score_parts", config.rollout.score_parts),
    ):
        if parts < 1 or answers % (parts * devices):
            raise UserError(
                f"config.data.batch_size x config.rollout.n = {answers} answers are not a multiple of {what} = {parts} "
                f"times data x fsdp = {devices} devices"
            )
    if config.data.batch_size % devices:
        raise UserError(f"config.data.batch_size {config.data.batch_size} is not a multiple of {devices} devices")
