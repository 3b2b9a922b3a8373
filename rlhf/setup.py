"""Prompts of a run, how answers to them are drawn, and text beside them."""

import functools
from collections.abc import Mapping
from typing import Any

import jax

from ..checkpoints.decoding import sampling_of as drawn_by
from ..checkpoints.decoding import strings_of
from ..data.cache import build_cache
from ..data.mixture import Batch, EvalPass, Mixture, Shapes
from ..data.packed_rows import PackedRows
from ..data.prompts import PromptEncoder, heldout_prompts
from ..data.samples import SampleEncoder, read_samples
from ..data.sources import Source
from ..data.templates import ChatTemplate
from ..data.text_encoder import TextEncoder
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from ..model.sampling import Sampling
from ..train.run import Run
from ..train.settings import Settings
from ..train.setup import sources_of


def sampling_of(run: Run, section: str) -> Sampling:
    """How `config.<section>` says that answers are drawn: a number of tokens, a temperature, and, where it has them, n
    and strings that end an answer. What the model of `config.init_from` ends its answers with ends them too."""
    given, said, tokenizer = run.config[section], run.generation, run.tokenizer
    try:
        return drawn_by(
            tokenizer,
            run.model.config.vocab_size,
            stop_ids=(*run.need_template().stop_ids(tokenizer), *said.stop_ids),
            stop=strings_of(given.get("stop", ()), said),
            max_tokens=given.max_tokens,
            temperature=given.temperature,
            n=given.get("n", 1),
        )
    except UserError as error:
        raise UserError(f"config.{section}: {error}") from None


def prompts_of(settings: Settings, tokenizer: Tokenizer, template: ChatTemplate) -> tuple[Mixture, EvalPass | None]:
    """The prompts of `config.data.mixture` to learn on, and `config.data.heldout_prompts` held-out ones."""
    data = settings.data
    sources = sources_of(data.mixture, data)
    encoder = PromptEncoder(tokenizer, template, data.max_prompt_tokens)
    train = functools.partial(read_samples, split="train", encoder=encoder)
    batches = Mixture(sources, train, data.batch_size, settings.seed)
    if not data.heldout:
        return batches, None
    return batches, EvalPass(heldout_prompts(sources, data.heldout_prompts, encoder), data.batch_size)


def samples_of(
    settings: Settings, encoder: SampleEncoder, *, heldout: SampleEncoder
) -> tuple[Mixture, dict[str, EvalPass]]:
    """The samples of `config.data.mixture` to train on, and one pass over those that each source holds out.

    encoder: of the samples to train on, at most `config.data.max_pairs` of each source. heldout: of those held out.
    """
    data = settings.data
    sources = sources_of(data.mixture, data)
    train = functools.partial(read_samples, split="train", encoder=encoder, limit=data.max_pairs)
    batches = Mixture(sources, train, data.batch_size, settings.seed)
    measured = {source.name: read_samples(source, "heldout", heldout) for source in sources if source.heldout}
    return batches, {name: EvalPass(samples, data.batch_size) for name, samples in measured.items()}


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


def with_text(
    settings: Settings, prompts: Mixture, tokenizer: Tokenizer, template: ChatTemplate
) -> Mixture | MixedBatches:
    """The prompts, and where `config.ptx.coef` is above 0 the text of `config.ptx.mixture` beside them."""
    section, encoder = settings.ptx, TextEncoder(tokenizer, template)
    cache_dir, length, packing, batch_size = section.cache_dir, section.seq_len, section.packing, section.batch_size
    if bool(section.coef) != bool(section.mixture):
        raise UserError("config.ptx: give both a coef above 0 and a mixture of text, or neither")
    if not section.mixture:
        return prompts
    if batch_size % prompts.batch_size:
        raise UserError(
            f"config.ptx.batch_size {batch_size} is not a multiple of config.data.batch_size "
            f"{prompts.batch_size}: each prompt has as many rows of text beside it"
        )

    def rows(source: Source) -> PackedRows:
        return PackedRows(build_cache(source, "train", encoder, cache_dir), length, packing)

    sources = sources_of(section.mixture, settings.data)
    return MixedBatches(prompts, Mixture(sources, rows, batch_size, settings.seed))


def split_text(batch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A batch's prompts, and its rows of text as [rows, T]."""
    mix = {name.removeprefix("mix/"): x for name, x in batch.items() if name.startswith("mix/")}
    prompts = {name: x for name, x in batch.items() if not name.startswith("mix/")}
    return prompts, {name: x.reshape(-1, x.shape[-1]) for name, x in mix.items()}


def check_rows(settings: Settings, mesh: jax.sharding.Mesh, minibatches: int, kept: int = 1) -> None:
    """Raises UserError if devices, minibatches and their parts do not divide a step's answers evenly."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if mesh.shape["context"] > 1:
        raise UserError("config.mesh.context: answers are decoded whole; give a mesh whose context is 1")
    answers = settings.data.batch_size * settings.rollout.n
    factors = f"minibatches x {'config.rollout.n x ' if kept > 1 else ''}config.optim.accumulate"
    for what, parts in (
        (factors, minibatches * kept * settings.optim.accumulate),
        ("config.rollout.score_parts", settings.rollout.score_parts),
    ):
        if parts < 1 or answers % (parts * devices):
            raise UserError(
                f"config.data.batch_size x config.rollout.n = {answers} answers are not a multiple of {what} = {parts} "
                f"times data x fsdp = {devices} devices"
            )
    if settings.data.batch_size % devices:
        raise UserError(f"config.data.batch_size {settings.data.batch_size} is not a multiple of {devices} devices")
