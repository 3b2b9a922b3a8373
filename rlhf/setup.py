"""Prompts of a run, how answers to them are drawn, and text beside them."""

from collections.abc import Mapping
from typing import Any

import jax

from ..checkpoints.decoding import sampling_of as drawn_by
from ..checkpoints.decoding import strings_of
from ..data.batches import Batch, Batches, Part, Shapes
from ..data.cache import build_cache
from ..data.prompts import PromptBatches, heldout_prompts, prompt_shapes
from ..data.samples import SamplePass, SourcePart
from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from ..model.sampling import Sampling
from ..train.run import Run
from ..train.settings import Settings


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


def prompts_of(
    settings: Settings, tokenizer: Tokenizer, template: ChatTemplate
) -> tuple[PromptBatches, SamplePass | None]:
    """The prompts of `config.data.mixture` to learn on, and `config.data.heldout_prompts` held-out ones."""
    data = settings.data
    parts = [SourcePart(name, s.source, s.format, s.weight) for name, s in data.mixture.items()]
    common = dict(
        tokenizer=tokenizer,
        template=template,
        max_tokens=data.max_prompt_tokens,
        heldout=data.heldout,
        on_error=data.on_error,
        max_record_bytes=data.max_record_bytes,
    )
    batches = PromptBatches(parts, **common, batch_size=data.batch_size, seed=settings.seed)
    if not data.heldout:
        return batches, None
    found = heldout_prompts(parts, data.heldout_prompts, **common)
    return batches, SamplePass(found, row_shapes=prompt_shapes(data.max_prompt_tokens), batch_size=data.batch_size)


class MixedBatches:
    """Prompts with rows of text beside them, k for each prompt: the arrays "mix/..." of [B, k, T]."""

    def __init__(self, prompts: PromptBatches, text: Batches):
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
    settings: Settings, prompts: PromptBatches, tokenizer: Tokenizer, template: ChatTemplate
) -> PromptBatches | MixedBatches:
    """The prompts, and where `config.ptx.coef` is above 0 the text of `config.ptx.mixture` beside them."""
    section = settings.ptx
    sources = dict(section.mixture.items())
    rows = dict(batch_size=section.batch_size, length=section.seq_len, packing=section.packing)
    cache_dir = section.cache_dir
    if bool(section.coef) != bool(sources):
        raise UserError("config.ptx: give both a coef above 0 and a mixture of text, or neither")
    if not sources:
        return prompts
    if section.batch_size % prompts.batch_size:
        raise UserError(
            f"config.ptx.batch_size {section.batch_size} is not a multiple of config.data.batch_size "
            f"{prompts.batch_size}: each prompt has as many rows of text beside it"
        )
    parts = []
    for name, source in sources.items():
        cache = build_cache(
            source.source,
            format=source.format,
            tokenizer=tokenizer,
            template=template,
            cache_dir=cache_dir,
            heldout=settings.data.heldout,
            on_error=settings.data.on_error,
            max_record_bytes=settings.data.max_record_bytes,
        )
        parts.append(Part(name, cache, source.weight))
    return MixedBatches(prompts, Batches(parts, **rows, seed=settings.seed))


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
