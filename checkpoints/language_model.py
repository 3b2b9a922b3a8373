"""A trained model with what it takes to use it: the two-line form of people's evaluation scripts.

m = camelid.load("runs/quickstart/sft")
print(m.chat([{"role": "user", "content": "Who lives in the lighthouse?"}]))
"""

import dataclasses
import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int

from .. import checkpoints
from ..data.stop_strings import StopFilter
from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from ..model import decode, llama, lora, speculative, storage
from ..model.config import LlamaConfig, RopeKind
from ..model.sampling import Sampling
from ..model.sharding import PARTITION_RULES, make_mesh, shardings
from ..model.storage import Rules
from ..model.weights import join, without
from .adapters import AdapterCheckpoint
from .checkpoint import check_rows, user_errors
from .decoding import sampling_of, strings_of, text_of
from .foreign import ForeignCheckpoint
from .interop.generation_config import GenerationDefaults

Messages = Sequence[Mapping[str, str]]


class PromptTooLong(UserWarning):
    """Of some prompts that fill the model's context: they have an empty answer, the others theirs."""


@dataclasses.dataclass
class Draft:
    """A small model that proposes `k` tokens at a time for a large one, and what has come of it: the passes of the
    large one, and how many proposals stand in answers."""

    llama: "LanguageModel"
    k: int = 4
    passes: int = 0
    accepted: int = 0

    def count(self, result: speculative.SpeculativeGeneration) -> None:
        self.passes += int(result.passes.sum())
        self.accepted += int(result.accepted.sum())

    def __str__(self) -> str:
        return f"{self.accepted / max(self.passes, 1):.2f} of {self.k} proposals accepted a pass"


class LanguageModel:
    """config, params (a plain nested dict), tokenizer and template (None where the source has none), mesh, step.

    generation: what ends its answers beside tokenizer and template, and how they are drawn where the caller of
    `generate`, `chat`, `chat_batch` and `stream_chat` does not say: field by field, as in transformers and vLLM.
    draft: where `assist` has given one, the model that speeds up decoding.
    """

    def __init__(
        self,
        model: llama.Model,
        params: llama.Params,
        tokenizer: Tokenizer | None,
        template: ChatTemplate | None,
        mesh: jax.sharding.Mesh,
        step: int | None = None,
        generation: GenerationDefaults | None = None,
    ):
        self.model = model
        self.params = params
        self.tokenizer = tokenizer
        self.template = template
        self.mesh = mesh
        self.step = step
        self.generation = generation or GenerationDefaults()
        self.draft: Draft | None = None
        self._apply = jax.jit(model.apply)

    @property
    def config(self) -> LlamaConfig:
        return self.model.config

    def assist(self, draft: "LanguageModel", k: int = 4) -> "LanguageModel":
        """This model, which from now on decodes speculatively (`model.speculative`): the same answers, or others of the
        same distribution, and faster where `draft` is much smaller and often right. k: its proposals a pass.

        Raises UserError where an id stands for different tokens in the two models.
        """
        if difference := self._tokenizer().difference(draft._tokenizer()):
            raise UserError(f"a draft needs the model's own vocabulary: {difference}")
        if self.config.vocab_size != draft.config.vocab_size:
            rows = f"{self.config.vocab_size:,} rows here, {draft.config.vocab_size:,} in the draft"
            raise UserError(f"a draft needs an embedding of as many rows as the model's: {rows}")
        if k < 1:
            raise UserError(f"a draft proposes 1 token or more at a time, not {k}")
        self.draft = Draft(draft, k)
        return self

    def with_adapters(self, path: epath.PathLike) -> "LanguageModel":
        """This model with the adapters of a run or of a PEFT folder, on the same arrays: many can stand on one base.

        The base is what it is here, quantised or not, whatever base they name. Raises UserError where `path` has no
        adapters, or some for a network of other shapes.
        """
        found = checkpoints.open(path)
        if not isinstance(found, AdapterCheckpoint):
            raise UserError(f"{path} holds whole networks and no adapters: camelid.load reads it")
        abstract = _placed(self.model, self.mesh)
        put, own = found.load_onto(abstract, self.config, self._matrix)
        trained_whole = without(abstract, lora.base_of(put, abstract))
        params = join(own, without(self.params, trained_whole))
        template = found.own_template or self.template
        tokenizer = self.tokenizer or found.own_tokenizer
        return LanguageModel(self.model, params, tokenizer, template, self.mesh, generation=self.generation)

    def _matrix(self, path: str, layer: int | None) -> np.ndarray:
        """One of this model's matrices, or one layer of it, as one array."""
        found = functools.reduce(lambda tree, name: tree[name], path.split("/"), self.params)
        if layer is not None:
            found = jax.tree.map(lambda x: x[layer : layer + 1], found)
        whole = np.asarray(storage.plain_matrix(found, path))
        return whole if layer is None else whole[0]

    def logits(self, tokens: Int[np.ndarray, "B T"]) -> Float[Array, "B T V"]:
        """Float32 logits of the token after each position."""
        with jax.set_mesh(self.mesh):
            return self._apply(self.params, jnp.asarray(tokens, jnp.int32))

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        seed: int = 0,
        batch_size: int = 64,
        stop: str | Sequence[str] = (),
        **sampling: Any,
    ) -> list[str]:
        """Continuations of raw text, without a chat template.

        stop: strings before which an answer ends. sampling: fields of `model.sampling.Sampling` (max_tokens,
        temperature, top_k, top_p, ..., n). The end-of-text token stops. With n > 1 the n continuations of a prompt
        stand together. A prompt that fills the context has empty ones, and a warning (PromptTooLong); where all do,
        UserError is raised.
        """
        tokenizer = self._tokenizer()
        prompts = [prompts] if isinstance(prompts, str) else prompts
        begin = [tokenizer.bos_id] if tokenizer.adds_bos else []
        tokens = [begin + tokenizer.encode(prompt) for prompt in prompts]
        if [] in tokens:
            raise UserError(f"prompt {tokens.index([]) + 1} is empty, and this tokenizer has no token to begin with")
        chosen = self._sampling((tokenizer.eos_id,), stop, sampling)
        return self._texts(tokens, chosen, seed=seed, batch_size=batch_size)

    def chat(self, messages: str | Messages, *, seed: int = 0, stop: str | Sequence[str] = (), **sampling: Any) -> str:
        """The assistant's next turn; a string is a conversation of one user turn. Sampling as in `generate`."""
        return self.chat_batch([messages], seed=seed, stop=stop, **sampling)[0]

    def chat_batch(
        self,
        conversations: Sequence[str | Messages],
        *,
        seed: int = 0,
        batch_size: int = 64,
        stop: str | Sequence[str] = (),
        **sampling: Any,
    ) -> list[str]:
        """`chat` for many conversations at once; with n > 1 the n answers to one stand together."""
        tokens = [self.prompt(messages) for messages in conversations]
        chosen = self._sampling(self._template().stop_ids(self._tokenizer()), stop, sampling)
        return [text.strip() for text in self._texts(tokens, chosen, seed=seed, batch_size=batch_size)]

    def stream_chat(
        self, messages: str | Messages, *, seed: int = 0, stop: str | Sequence[str] = (), **sampling: Any
    ) -> Iterator[str]:
        """`chat` piece by piece, as soon as whole characters are there that begin no stop string."""
        tokenizer = self._tokenizer()
        prompt = self.prompt(messages)
        chosen = self._sampling(self._template().stop_ids(tokenizer), stop, sampling)
        chosen, (room,) = self._within_context([prompt], chosen)
        decoder, told = tokenizer.stream(), StopFilter(strings_of(stop, self.generation))
        tokens = self._stream(prompt, _key(seed), chosen, room)
        while True:
            with jax.set_mesh(self.mesh):  # not around the yield, where the caller's code runs
                token = next(tokens, None)
            if token is None:
                break
            if token not in chosen.stop_ids:  # which may write something
                yield told.push(decoder.push(token))
        yield told.push(decoder.flush()) + told.flush()

    def complete(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seed: int = 0, batch_size: int = 64
    ) -> list[list[int]]:
        """Token continuations of token prompts, in order, `sampling.n` for each, ending at the model's context.

        The tokens that a stop string was written with are among them. A prompt that fills the context has empty ones;
        see `generate`.
        """
        _key(seed)
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: give 1 or more")
        if self.tokenizer is not None and not sampling.unused:
            sampling = dataclasses.replace(sampling, unused=self.tokenizer.unused(self.config.vocab_size))
        sampling, limits = self._within_context(prompts, sampling)
        answered = [i for i, limit in enumerate(limits) if limit]
        found = decode.generate_batch(
            self._answer,
            [prompts[i] for i in answered],
            sampling,
            seed=seed,
            batch_size=max(min(batch_size, len(answered)), 1),
            mesh=self.mesh,
            limits=[limits[i] for i in answered],
        )
        answers: list[list[list[int]]] = [[[] for _ in range(sampling.n)] for _ in prompts]
        for i, samples in zip(answered, found, strict=True):
            answers[i] = samples
        return [answer for samples in answers for answer in samples]

    def _sampling(self, stop_ids: Sequence[int], stop: str | Sequence[str], given: Mapping[str, Any]) -> Sampling:
        """How a text is answered. Stop ids among `given` are all that there are."""
        own = dict(stop_ids=given.get("stop_ids", (*stop_ids, *self.generation.stop_ids)))
        fields = self.generation.sampling() | {name: value for name, value in given.items() if value is not None}
        strings = strings_of(stop, self.generation)
        return sampling_of(self._tokenizer(), self.config.vocab_size, stop=strings, **(fields | own))

    def _texts(self, prompts: Sequence[Sequence[int]], sampling: Sampling, **how: int) -> list[str]:
        return [text_of(self._tokenizer(), ids, sampling) for ids in self.complete(prompts, sampling, **how)]

    def _answer(self, tokens_BP, lengths_B, key, sampling: Sampling, limits_B) -> decode.Generation:
        if self.draft is None:
            return decode.generate(self.model, self.params, tokens_BP, lengths_B, key, sampling, limits_B=limits_B)
        draft = self.draft
        networks = (self.model, self.params, draft.llama.model, draft.llama.params)
        result = speculative.generate(*networks, tokens_BP, lengths_B, key, sampling, draft.k, limits_B=limits_B)
        draft.count(result)
        return result.answer

    def _stream(self, prompt: Sequence[int], key: jax.Array, sampling: Sampling, limit: int) -> Iterator[int]:
        if self.draft is None:
            yield from decode.stream(self.model, self.params, prompt, key, sampling, limit)
            return
        draft = self.draft.llama
        networks = (self.model, self.params, draft.model, draft.params)
        self.draft.count((yield from speculative.stream(*networks, prompt, key, sampling, self.draft.k, limit)))

    def prompt(self, messages: str | Messages) -> list[int]:
        """The tokens that a conversation makes, up to where the assistant is to speak."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self._template().encode(messages, self._tokenizer(), generation_prompt=True).tokens.tolist()

    def _within_context(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> tuple[Sampling, list[int]]:
        """The most tokens of an answer to each prompt, and `sampling` with those of the compiled loop: no more than
        a power of two that suffices, so that few loops are compiled while a conversation fills the context."""
        context = self.config.max_len
        limits = [min(sampling.max_tokens, max(context - len(prompt), 0)) for prompt in prompts]
        names = ["the prompt"] if len(prompts) == 1 else [f"prompt {i}" for i in range(1, len(prompts) + 1)]
        sizes = [f"{name} ({len(prompt):,} tokens)" for name, prompt in zip(names, prompts, strict=True)]
        if full := [size for size, limit in zip(sizes, limits, strict=True) if not limit]:
            said = f"the context of {context:,} tokens leaves no room for an answer to {', '.join(full)}: shorten it"
            if not any(limits):
                raise UserError(said)
            warnings.warn(f"{said}; the others are answered", PromptTooLong, stacklevel=4)
        most = max(limits, default=1)
        return dataclasses.replace(sampling, max_tokens=min(sampling.max_tokens, 1 << (most - 1).bit_length())), limits

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UserError("this model came without a tokenizer: give tokens to `logits` or `complete`")
        return self.tokenizer

    def _template(self) -> ChatTemplate:
        if self.template is None:
            raise UserError(
                "this model came without a chat template: name one by --template (in Python, set `template`), use "
                "`generate`, or tune it with `camelid train`"
            )
        return self.template


def load(
    path: epath.PathLike,
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str | None = None,
    weights: str | None = None,
    quantize: str | Rules | None = None,
    cache: str | None = None,
    rope: tuple[RopeKind, int] | None = None,
    base: epath.PathLike | None = None,
    vocab_size: int | None = None,
) -> LanguageModel:
    """The model of a run directory (its latest checkpoint; with RUN@best the best), of one checkpoint, or of somebody
    else's files: a folder of Hugging Face's or Meta's, a GGUF file, or a PEFT folder whose base is at hand.

    mesh: default, one device. dtype: of parameters and computation; default, as trained or stored. weights: "params",
    or "ema" for the moving average of a run that kept one; default, what its evaluations measured: "ema" where there is
    one. quantize: "int8", "int4" or "nf4" for matrices of that kind,
    "stored" for those that a GGUF file has, or rules as `model.storage.quantize` takes them. cache: "int8" for keys
    and values of 8 bits while decoding. rope: a rotary scaling and the tokens that it stretches the trained context
    to, such as ("yarn", 8192). base: the model that the adapters at `path` are put on, in place of the one that they
    name. vocab_size: rows of embedding and head, more than somebody else's files have, as where a tokenizer has ids
    that were never given one: the new ones are the mean of the others. Raises UserError for a path that holds no model.
    """
    if base is not None:
        if weights is not None:
            raise UserError(f"weights={weights!r} is of a run, and base of adapters on another model: give one of them")
        found = load(base, mesh=mesh, dtype=dtype, quantize=quantize, cache=cache, rope=rope)
        return found.with_adapters(path)
    found = checkpoints.open(path, weights)
    if found.kind == "scalar":
        raise UserError(f"{path}: a reward or cost model, which gives numbers; config.reward.sources is its place")
    config = found.config
    if dtype is not None:
        config = config.replace(dtype=dtype, param_dtype=dtype)
    if vocab_size is not None and (vocab_size < config.vocab_size or not isinstance(found, ForeignCheckpoint)):
        raise UserError(
            f"{path}: vocab_size {vocab_size:,}: rows are added to somebody else's files alone, and none taken away; "
            f"there are {config.vocab_size:,}. `camelid convert --vocab_size` adds rows to a run"
        )
    config = config.replace(vocab_size=vocab_size or config.vocab_size)
    remedy = "load(..., vocab_size={0}) or `camelid convert --vocab_size={0}`"
    check_rows(found.tokenizer, config.vocab_size, str(path), remedy)
    with user_errors():
        rules, config = storage.rules_of(quantize), config.replace(cache=cache)
        if rope is not None:
            config = config.stretched(rope[0], max_len=rope[1])
    mesh = mesh if mesh is not None else make_mesh({}, jax.local_devices()[:1])
    model = llama.build(config)
    params = found.load_params(_placed(model, mesh), quantize=rules)
    return LanguageModel(
        model, params, found.tokenizer, found.template, mesh, step=found.step, generation=found.generation
    )


def _key(seed: int) -> jax.Array:
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed}: give 0 to {2**32 - 1}")
    return jax.random.key(seed)


def _placed(model: llama.Model, mesh: jax.sharding.Mesh) -> llama.Params:
    """Shapes of the parameters, and where they lie."""
    where = shardings(model.abstract_params, mesh, PARTITION_RULES)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), model.abstract_params, where)
