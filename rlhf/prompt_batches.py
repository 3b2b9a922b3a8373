"""Batches of prompts, how answers to them are drawn, and rows of pretraining text that travel with them."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jaxtyping import Array

from ..checkpoints.decoding import sampling_of as drawn_by
from ..checkpoints.decoding import strings_of
from ..data.mixture import Batch, EvalPass, Mixture, Shapes
from ..data.packed_rows import PackedRows
from ..data.prompts import PromptEncoder, heldout_prompts
from ..data.samples import read_samples
from ..data.sources import Source
from ..data.templates import ChatTemplate
from ..data.text_encoder import TextEncoder
from ..data.token_cache import build_cache
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from ..model.sampling import Sampling
from ..settings.leaves import Count, NotNegative, Path
from ..train.batches import BatchSize, MixtureEntry, Packing, ReadingSettings, RowLength, check_system, sources_of
from ..train.run import Run


@dataclass(frozen=True)
class PromptDataSettings(ReadingSettings):
    """The section `config.data` of prompts that the policy answers."""

    batch_size: BatchSize = 64
    """Number of prompts of a step."""

    max_prompt_tokens: RowLength = 128
    """The most tokens of a prompt. A longer prompt is left out and counted."""

    heldout_prompts: Count = 64
    """Number of held-out prompts that an evaluation answers."""


@dataclass(frozen=True)
class PtxSettings:
    """The section `config.ptx`: pretraining text in every minibatch, so that the policy forgets less (InstructGPT's
    PPO-ptx, arXiv:2203.02155, section 3.5)."""

    coef: NotNegative = 0.0
    """Weight of the text's mean loss per token. InstructGPT's 27.8 weighs a sum over the tokens of a sequence."""

    mixture: dict[str, MixtureEntry] = field(default_factory=dict)
    """The sources of the text by their names."""

    batch_size: BatchSize = 64
    """Number of rows of text in a step, a multiple of `data.batch_size`."""

    seq_len: RowLength = 128
    """Number of tokens of a row of text."""

    packing: Packing = "best_fit"
    """How samples fill rows: contiguous cuts at every border, best_fit keeps samples whole, fewest_cuts cuts only those
    that are longer than a row."""

    cache_dir: Path = "~/.cache/camelid"
    """Folder of the token caches."""

    def check(self, where: str) -> None:
        if bool(self.coef) != bool(self.mixture):
            raise UserError(
                f"{where}: set both coef above 0 and mixture, or neither; coef is {self.coef:g} and mixture has "
                f"{len(self.mixture)} sources"
            )


def sampling_of(
    run: Run, where: str, *, max_tokens: int, temperature: float, n: int = 1, stop: Sequence[str] = ()
) -> Sampling:
    """The `Sampling` of a run's model. Answers end at the stop tokens and strings of `config.init_from` and at `stop`.

    Args:
      run: the run.
      where: dotted name of the config's section with these settings, for messages.
      max_tokens: the most tokens of an answer.
      temperature: divisor of the logits.
      n: number of answers to each prompt.
      stop: strings that end an answer.
    """
    generation, tokenizer = run.generation, run.tokenizer
    try:
        return drawn_by(
            tokenizer,
            run.model.config.vocab_size,
            stop_ids=(*run.need_template().stop_ids(tokenizer), *generation.stop_ids),
            stop=strings_of(stop, generation),
            max_tokens=max_tokens,
            temperature=temperature,
            n=n,
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def prompts_of(
    settings: PromptDataSettings, tokenizer: Tokenizer, template: ChatTemplate, seed: int
) -> tuple[Mixture, EvalPass | None]:
    """Endless batches of the training prompts of `config.data.mixture`, and one pass over held-out prompts.

    Args:
      settings: `config.data`. Its `heldout_prompts` is the number of held-out prompts.
      tokenizer: the run's tokenizer.
      template: the run's chat template.
      seed: seed of the order of prompts.

    Returns:
      The training batches, and the pass; None if nothing is held out.
    """
    check_system(settings.system, template, tokenizer)
    sources = sources_of(settings.mixture, settings)
    encoder = PromptEncoder(tokenizer, template, settings.max_prompt_tokens)
    train = functools.partial(read_samples, split="train", encoder=encoder)
    batches = Mixture(sources, train, settings.batch_size, seed)
    if not settings.heldout:
        return batches, None
    return batches, EvalPass(heldout_prompts(sources, settings.heldout_prompts, encoder), settings.batch_size)


class MixedBatches:
    """Batches of prompts with k rows of text for each prompt, in arrays "mix/<name>" [B, k, T].

    Text has the leading axis of the prompts so that both are split in the same way over hosts and devices.
    """

    def __init__(self, prompts: Mixture, text: Mixture):
        self.prompts, self.text = prompts, text
        self.batch_size, self.length = prompts.batch_size, prompts.length
        self.rows_per_prompt = text.batch_size // prompts.batch_size
        self.fingerprint = f"{prompts.fingerprint}+{text.fingerprint}"
        self.steps_per_epoch = prompts.steps_per_epoch

    def rows(self, step: int, rows: slice) -> Batch:
        """The given rows of the batch of a step: prompts, and the text of each."""
        chosen, k = range(self.batch_size)[rows], self.rows_per_prompt
        text = self.text.rows(step, slice(chosen.start * k, chosen.stop * k))
        mixed = {f"mix/{name}": x.reshape(len(chosen), k, -1) for name, x in text.items()}
        return self.prompts.rows(step, rows) | mixed

    @property
    def shapes(self) -> Shapes:
        """Shape and dtype of each array of a batch."""
        text = {
            f"mix/{name}": ((self.batch_size, self.rows_per_prompt, shape[1]), dtype)
            for name, (shape, dtype) in self.text.shapes.items()
        }
        return self.prompts.shapes | text

    def epochs(self, step: int) -> dict[str, float]:
        """The number of passes over each source in `step` steps."""
        return self.prompts.epochs(step) | {f"mix/{name}": n for name, n in self.text.epochs(step).items()}


def text_batches_of(
    reading: PromptDataSettings, tokenizer: Tokenizer, template: ChatTemplate, seed: int, *, settings: PtxSettings
) -> Mixture:
    """Endless batches of the text of `config.ptx.mixture`.

    Args:
      reading: `config.data`, whose rules for bad records hold for the text too.
      tokenizer: the run's tokenizer.
      template: the run's chat template, for conversations in the mixture.
      seed: seed of the order of rows.
      settings: `config.ptx`.
    """
    encoder = TextEncoder(tokenizer, template)

    def rows(source: Source) -> PackedRows:
        return PackedRows(build_cache(source, "train", encoder, settings.cache_dir), settings.seq_len, settings.packing)

    return Mixture(sources_of(settings.mixture, reading), rows, settings.batch_size, seed)


def add_text(run: Run, settings: PtxSettings, prompts: Mixture) -> Mixture | MixedBatches:
    """Adds rows of the text of `config.ptx.mixture` to batches of prompts; without a mixture they stay unchanged."""
    if not settings.mixture:
        return prompts
    if settings.batch_size % prompts.batch_size:
        raise UserError(
            f"config.ptx.batch_size = {settings.batch_size}: give a multiple of config.data.batch_size = "
            f"{prompts.batch_size}, so that each prompt goes with the same number of rows of text"
        )
    return MixedBatches(prompts, run.read(text_batches_of, settings=settings))


def split_text(batch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a batch into its prompts and its text, arrays [B, k, T]; {} without text."""
    text = {name.removeprefix("mix/"): x for name, x in batch.items() if name.startswith("mix/")}
    return {name: x for name, x in batch.items() if not name.startswith("mix/")}, text


def text_rows(text: Mapping[str, Array]) -> dict[str, Array]:
    """The text of a batch as rows [B k, T]."""
    return {name: x.reshape(-1, x.shape[-1]) for name, x in text.items()}


def check_rows(config: Any, mesh: jax.sharding.Mesh, minibatches: int, kept: int = 1) -> None:
    """Raises UserError unless a step's answers divide evenly over devices, minibatches and parts.

    Args:
      config: an `answer_task.AnswerConfig`.
      mesh: the devices.
      minibatches: number of minibatches of an epoch.
      kept: one of this many answers is learnt from: `config.rollout.n` in RAFT.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if mesh.shape["context"] > 1:
        raise UserError(
            f"config.mesh.context = {mesh.shape['context']}: decoding cannot split rows over devices; set it to 1"
        )
    answers = config.data.batch_size * config.rollout.n
    factors = f"minibatches x {'config.rollout.n x ' if kept > 1 else ''}config.optim.accumulate"
    for what, parts in (
        (factors, minibatches * kept * config.optim.accumulate),
        ("config.rollout.score_parts", config.rollout.score_parts),
    ):
        if parts < 1 or answers % (parts * devices):
            raise UserError(
                f"config.data.batch_size x config.rollout.n = {answers} answers are not a multiple of {what} = {parts} "
                f"times mesh data x fsdp = {devices} devices: change one of them"
            )
    if config.data.batch_size % devices:
        raise UserError(
            f"config.data.batch_size = {config.data.batch_size}: give a multiple of the {devices} devices of mesh "
            "data x fsdp"
        )
