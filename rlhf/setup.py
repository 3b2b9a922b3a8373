"""From a config to what every run on prompts needs: policy, reference, prompts, rewards; and its compiled step."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from ..checkpoints import origin
from ..checkpoints.decoding import sampling_of as drawn_by
from ..checkpoints.decoding import strings_of, text_of
from ..data.cache import build_cache
from ..data.mixture import Batch, EvalPass, Mixture, Shapes
from ..data.packed import PackedRows
from ..data.prompts import PromptEncoder, heldout_prompts
from ..data.samples import SampleEncoder, read_samples
from ..data.sources import Source
from ..data.templates import ChatTemplate
from ..data.text import TextEncoder
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from ..model import llama
from ..model.sampling import Sampling
from ..model.sharding import BATCH
from ..train import setup as train_setup
from ..train.adapters import Adapters
from ..train.leaves import read
from ..train.settings import Settings
from . import rewards, rollout


class Scene(NamedTuple):
    """What stands still while a policy learns from rewards.

    prompts: endless batches to learn on. heldout: those of evaluations. reference: the parameters of
    `config.init_from`, whatever the run has made of them since. graders reward answers; judges only score those of
    evaluations; reward_params and judge_params are those of the models among them. adapters: what networks learn with.
    """

    model: llama.Model
    tokenizer: Tokenizer
    template: ChatTemplate
    prompts: Mixture
    heldout: EvalPass | None
    sampling: Sampling
    reference: Any
    adapters: Adapters
    graders: rewards.Rewards
    reward_params: dict[str, Any]
    judges: rewards.Rewards
    judge_params: dict[str, Any]
    shaping: rewards.Shaping
    rows: NamedSharding


def scene_of(settings: Settings, mesh: jax.sharding.Mesh) -> Scene:
    """What `config.init_from`, `data`, `rollout` and `reward` describe. Raises UserError for what does not fit."""
    tokenizer, template = train_setup.tokenizer_of(settings), train_setup.template_of(settings)
    model = train_setup.model_of(settings, tokenizer)
    sampling = sampling_of(settings, "rollout", model, tokenizer, template)
    try:
        rollout.check_sampling(sampling)
    except ValueError as error:
        raise UserError(f"config.rollout: {error}") from None
    prompts, heldout = prompts_of(settings, tokenizer, template)
    if prompts.length + sampling.max_tokens > model.config.max_len:
        raise UserError(
            f"config.data.max_prompt_tokens {prompts.length} and config.rollout.max_tokens {sampling.max_tokens} are "
            f"more than the network's context of {model.config.max_len} tokens; shorten one"
        )
    adapters = Adapters(settings, mesh)
    load = functools.partial(rewards.load, tokenizer=tokenizer, bases=adapters.bases, dtype=model.config.dtype)
    graders, reward_params = load(settings.reward.sources, "config.reward.sources")
    judges, judge_params = load(settings.judges, "config.judges")
    return Scene(
        model=model,
        tokenizer=tokenizer,
        template=template,
        prompts=prompts,
        heldout=heldout,
        sampling=sampling,
        reference=load_reference(settings, model, adapters),
        adapters=adapters,
        graders=graders,
        reward_params=reward_params,
        judges=judges,
        judge_params=judge_params,
        shaping=read(settings.reward, "shaping", rewards.Shaping),
        rows=NamedSharding(mesh, PartitionSpec(BATCH)),
    )


def sampling_of(
    settings: Settings, section: str, model: llama.Model, tokenizer: Tokenizer, template: ChatTemplate
) -> Sampling:
    """How `config.<section>` says that answers are drawn: a number of tokens, a temperature, and, where it has them, n
    and strings that end an answer. What the model of `config.init_from` ends its answers with ends them too."""
    given, said = settings[section], train_setup.generation_of(settings, tokenizer)
    try:
        stop = strings_of(given.get("stop", ()), said)
        return drawn_by(
            tokenizer,
            model.config.vocab_size,
            stop_ids=(*template.stop_ids(tokenizer), *said.stop_ids),
            stop=stop,
            max_tokens=given.max_tokens,
            temperature=given.temperature,
            n=given.get("n", 1),
        )
    except UserError as error:
        raise UserError(f"config.{section}: {error}") from None


def prompts_of(settings: Settings, tokenizer: Tokenizer, template: ChatTemplate) -> tuple[Mixture, EvalPass | None]:
    """The prompts of `config.data.mixture` to learn on, and `config.data.heldout_prompts` held-out ones."""
    data = settings.data
    sources = train_setup.sources_of(data.mixture, data)
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
    sources = train_setup.sources_of(data.mixture, data)
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


def with_mix(settings: Settings, scene: Scene) -> Mixture | MixedBatches:
    """The prompts, and where `config.ptx.coef` is above 0 the text of `config.ptx.mixture` beside them."""
    section, encoder = settings.ptx, TextEncoder(scene.tokenizer, scene.template)
    cache_dir, length, packing, batch_size = section.cache_dir, section.seq_len, section.packing, section.batch_size
    if bool(section.coef) != bool(section.mixture):
        raise UserError("config.ptx: give both a coef above 0 and a mixture of text, or neither")
    if not section.mixture:
        return scene.prompts
    if batch_size % scene.prompts.batch_size:
        raise UserError(
            f"config.ptx.batch_size {batch_size} is not a multiple of config.data.batch_size "
            f"{scene.prompts.batch_size}: each prompt has as many rows of text beside it"
        )

    def rows(source: Source) -> PackedRows:
        return PackedRows(build_cache(source, "train", encoder, cache_dir), length, packing)

    sources = train_setup.sources_of(section.mixture, settings.data)
    return MixedBatches(scene.prompts, Mixture(sources, rows, batch_size, settings.seed))


def split_mix(batch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A batch's prompts, and its rows of text as [rows, T]."""
    mix = {name.removeprefix("mix/"): x for name, x in batch.items() if name.startswith("mix/")}
    prompts = {name: x for name, x in batch.items() if not name.startswith("mix/")}
    return prompts, {name: x.reshape(-1, x.shape[-1]) for name, x in mix.items()}


def load_reference(settings: Settings, model: llama.Model, adapters: Adapters) -> Any:
    """The frozen parameters of `config.init_from`, laid out as the policy's are. A policy with adapters shares them:
    the reference is what it stands on, with the adapters of `init_from` where that has some already.
    """
    if adapters.lora is not None:
        return adapters.reference(model.init)
    where = adapters.bases.place(model.abstract_params)
    return origin.load_params(settings.init_from, where, name=train_setup.weights_of(settings))


def check_rows(settings: Settings, mesh: jax.sharding.Mesh, minibatches: int) -> None:
    """Raises UserError if devices, minibatches and their parts do not divide a step's answers evenly."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if mesh.shape["context"] > 1:
        raise UserError("config.mesh.context: answers are decoded whole; give a mesh whose context is 1")
    answers = settings.data.batch_size * settings.rollout.n
    for what, parts in (
        ("minibatches x config.optim.accumulate", minibatches * settings.optim.accumulate),
        ("config.rollout.score_parts", settings.rollout.score_parts),
    ):
        if parts < 1 or answers % (parts * devices):
            raise UserError(
                f"config.data.batch_size x config.rollout.n = {answers} answers are not a multiple of {what} = {parts} "
                f"times data x fsdp = {devices} devices"
            )
    if settings.data.batch_size % devices:
        raise UserError(f"config.data.batch_size {settings.data.batch_size} is not a multiple of {devices} devices")


def host_scores(scene: Scene, records: Sequence[Mapping], *graders: rewards.Rewards) -> Callable | None:
    """The function that adds to an experience what the graders' Python functions say; None where there are none.

    records: those that the experience's `index` points to.
    """
    functions = [grader for grader in graders if grader.functions]
    if not functions:
        return None
    where = NamedSharding(scene.rows.mesh, PartitionSpec())

    def add(seen):
        texts, index = decode_answers(scene, seen.rows)
        scores = {}
        for grader in functions:
            scores |= grader.of_functions([records[i] for i in index], texts)
        return seen._replace(scores=seen.scores | jax.device_put(scores, where))

    return add


def decode_answers(scene: Scene, rows: rollout.Rollout) -> tuple[list[str], list[int]]:
    """The text of every answer, without what ended it, and the number of its prompt's record, on every host."""
    found = (rows.tokens_RT, rows.mask_RM, rows.index_R)
    if jax.process_count() == 1:
        tokens_RT, mask_RM, index_R = jax.device_get(found)
    else:
        tokens_RT, mask_RM, index_R = multihost_utils.process_allgather(found, tiled=True)
    answers = (row[-len(mask) :][mask > 0] for row, mask in zip(tokens_RT, mask_RM, strict=True))
    texts = [text_of(scene.tokenizer, answer.tolist(), scene.sampling).strip() for answer in answers]
    return texts, index_R.tolist()
