"""A loaded language model with its tokenizer and chat template, ready to generate text.

m = camelid.load("runs/quickstart/sft")
print(m.chat([{"role": "user", "content": "Who lives in the lighthouse?"}]))
"""

import dataclasses
import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int

from .. import checkpoints
from ..data.stop_strings import StopFilter
from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..errors import TooLong, UserError
from ..model import decode, llama, lora, speculative, storage
from ..model.config import LlamaConfig, RopeKind
from ..model.sampling import Sampling
from ..model.sharding import make_mesh, placed, shardings
from ..model.storage import Rules
from ..model.weights import join, without
from . import scoring
from .adapters import AdapterCheckpoint
from .checkpoint import check_rows, user_errors
from .decoding import sampling_of, strings_of, text_of
from .draft import Draft
from .foreign import ForeignCheckpoint, GGUFCheckpoint
from .interop.generation_config import GenerationDefaults
from .reading import at_step

Messages = Sequence[Mapping[str, str]]


class PromptTooLong(UserWarning):
    """Warns that some prompts fill the model's context; their answers are empty, the others are complete."""


class LanguageModel:
    """A language model in memory.

    Attributes:
      model: the network's pure functions.
      params: its parameters, a plain nested dict of arrays.
      tokenizer: its tokenizer, or None.
      template: its chat template, or None.
      mesh: the devices that hold the parameters.
      step: the training step of the parameters; None if unknown.
      generation: the model's stop ids and strings, and its sampling settings; each holds where a caller of `generate`,
        `chat`, `chat_batch` or `stream_chat` does not give that field, as in transformers and vLLM.
      draft: the draft model for speculative decoding, or None (see `assist`).
      checkpoint: the checkpoint that `load` read it from; None for a model that was made otherwise.
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
        checkpoint: checkpoints.Checkpoint | None = None,
    ):
        self.model = model
        self.params = params
        self.tokenizer = tokenizer
        self.template = template
        self.mesh = mesh
        self.step = step
        self.generation = generation or GenerationDefaults()
        self.draft: Draft | None = None
        self.checkpoint = checkpoint
        self._apply = jax.jit(model.apply)

    def __repr__(self) -> str:
        known = [self.checkpoint and self.checkpoint.name, self.step is not None and f"step {self.step}"]
        about = [*filter(None, known), self.config.family, f"{self.config.n_params:,} parameters"]
        return f"<LanguageModel: {', '.join(about)}>"

    @property
    def config(self) -> LlamaConfig:
        return self.model.config

    def assist(self, draft: "LanguageModel", k: int = 4) -> "LanguageModel":
        """Makes this model decode speculatively with a draft model (`model.speculative`).

        Greedy answers stay the same, sampled ones keep their distribution. Decoding is faster only if the draft is much
        smaller and often right.

        Args:
          draft: the draft model.
          k: number of tokens that it proposes per pass of this model.

        Returns:
          This model.

        Raises:
          UserError: the vocabularies differ, or `k` is below 1.
        """
        if difference := self._tokenizer().difference(draft._tokenizer()):
            raise UserError(f"a draft needs the model's own vocabulary: {difference}")
        if self.config.vocab_size != draft.config.vocab_size:
            rows = f"the model has {self.config.vocab_size:,}, the draft {draft.config.vocab_size:,}"
            raise UserError(f"a draft needs an embedding with the model's number of rows: {rows}")
        if k < 1:
            raise UserError(f"a draft proposes {k} tokens at a time: give 1 or more")
        self.draft = Draft(draft, k)
        return self

    def with_adapters(self, path: epath.PathLike) -> "LanguageModel":
        """A new model: this one's arrays, shared, with the adapters of a run or a PEFT folder beside them.

        The base that the adapters name is not read, and this model may be quantised.

        Args:
          path: a run of camelid's that trained adapters, or a folder in PEFT's format.

        Raises:
          UserError: there are no adapters at the path, or their matrices have other shapes.
        """
        found = checkpoints.open(path)
        if not isinstance(found, AdapterCheckpoint):
            raise UserError(
                f"{path} holds a whole network, not adapters: give the path of a run or PEFT folder of adapters"
            )
        abstract = placed(self.model.abstract_params, shardings(self.model.abstract_params, self.mesh))
        put, own = found.load_onto(abstract, self.config, self._matrix)
        trained_whole = without(abstract, lora.base_of(put, abstract))
        params = join(own, without(self.params, trained_whole))
        template = found.own_template or self.template
        tokenizer = self.tokenizer or found.own_tokenizer
        return LanguageModel(
            self.model, params, tokenizer, template, self.mesh, generation=self.generation, checkpoint=found
        )

    def _matrix(self, path: str, layer: int | None) -> np.ndarray:
        """One of this model's matrices by its path, or one layer of it, merged and decoded into one array."""
        found = functools.reduce(lambda tree, name: tree[name], path.split("/"), self.params)
        if layer is not None:
            found = jax.tree.map(lambda x: x[layer : layer + 1], found)
        whole = np.asarray(storage.plain_matrix(found, path))
        return whole if layer is None else whole[0]

    def logits(self, tokens: Int[np.ndarray, "B T"]) -> Float[Array, "B T V"]:
        """Float32 logits of the next token at each position.

        Rows are padded to a power of two, so that few lengths are compiled. Raises UserError for anything but rows of
        token ids of the network.
        """
        tokens_BT = np.asarray(tokens)
        if tokens_BT.ndim != 2 or not tokens_BT.size or not np.issubdtype(tokens_BT.dtype, np.integer):
            raise UserError(f"tokens {tokens_BT.dtype} {list(tokens_BT.shape)}: give integers with axes [batch, time]")
        vocab, T = self.config.vocab_size, tokens_BT.shape[1]
        if tokens_BT.min() < 0 or tokens_BT.max() >= vocab:
            wrong = tokens_BT[(tokens_BT < 0) | (tokens_BT >= vocab)][0]
            raise UserError(f"token id {wrong}: give 0 to {vocab - 1}")
        padded_BT = np.zeros((len(tokens_BT), max(16, 1 << (T - 1).bit_length())), np.int32)
        padded_BT[:, :T] = tokens_BT
        with jax.set_mesh(self.mesh):
            return self._apply(self.params, padded_BT)[:, :T]

    def score(
        self,
        prompts: Sequence[str | Messages],
        answers: Sequence[str],
        *,
        chat: bool = False,
        batch_size: int | None = None,
    ) -> list[Float[np.ndarray, " T"]]:
        """Log-probabilities of the tokens of answers, each given its prompt; their sum is that of the whole answer.

        Args:
          prompts: texts that the answers go on from; with `chat` conversations, or strings for one user turn.
          answers: an answer to each prompt.
          chat: whether the chat template is used; the end of the assistant's turn is then a token of the answer.
          batch_size: number of rows that are scored together; None: as many as hold 4,096 tokens on each device.

        Returns:
          Float32 arrays with an entry for each of an answer's tokens, in the order of the answers.

        Raises:
          UserError: an answer has no token, a prompt none before it, or the two exceed the context.
        """
        return scoring.score(self, prompts, answers, chat=chat, batch_size=batch_size)

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        seed: int = 0,
        batch_size: int = 64,
        stop: str | Sequence[str] = (),
        **sampling: Any,
    ) -> list[str]:
        """Continues texts, without a chat template, up to the end-of-text token.

        Args:
          prompts: one text or several.
          seed: seed of the sampling.
          batch_size: number of prompts that are decoded together.
          stop: strings before which a continuation ends.
          **sampling: fields of `model.sampling.Sampling` (max_tokens, temperature, top_k, top_p, ..., n).

        Returns:
          The continuations in the order of the prompts; with n > 1, the n continuations of a prompt in a row. A prompt
          that fills the context gets empty ones and a warning (PromptTooLong).

        Raises:
          UserError: a prompt is empty, all prompts fill the context, or a setting is out of range.
        """
        tokenizer = self._tokenizer()
        prompts = [prompts] if isinstance(prompts, str) else prompts
        begin = [tokenizer.bos_id] if tokenizer.adds_bos else []
        tokens = [begin + tokenizer.encode(prompt) for prompt in prompts]
        if [] in tokens:
            raise UserError(f"prompt {tokens.index([]) + 1} is empty, and the tokenizer adds no bos token: give a text")
        chosen = self._sampling((tokenizer.eos_id,), stop, sampling)
        return self._texts(tokens, chosen, seed=seed, batch_size=batch_size)

    def chat(self, messages: str | Messages, *, seed: int = 0, stop: str | Sequence[str] = (), **sampling: Any) -> str:
        """The assistant's next turn in a conversation.

        Args:
          messages: {"role", "content"} dicts, or a string for one user turn.
          seed: seed of the sampling.
          stop: strings before which the answer ends.
          **sampling: fields of `model.sampling.Sampling`.
        """
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
        """The assistant's next turn in each of many conversations.

        Args:
          conversations: lists of {"role", "content"} dicts, or strings for one user turn.
          seed: seed of the sampling.
          batch_size: number of conversations that are decoded together.
          stop: strings before which an answer ends.
          **sampling: fields of `model.sampling.Sampling`.

        Returns:
          The answers in the order of the conversations; with n > 1, the n answers to one in a row.
        """
        tokens = [self.prompt(messages) for messages in conversations]
        chosen = self._sampling(self._template().stop_ids(self._tokenizer()), stop, sampling)
        return [text.strip() for text in self._texts(tokens, chosen, seed=seed, batch_size=batch_size)]

    def stream_chat(
        self, messages: str | Messages, *, seed: int = 0, stop: str | Sequence[str] = (), **sampling: Any
    ) -> Iterator[str]:
        """Yields the assistant's next turn in pieces of whole characters, as soon as they cannot begin a stop string.

        Args:
          messages: {"role", "content"} dicts, or a string for one user turn.
          seed: seed of the sampling.
          stop: strings before which the answer ends.
          **sampling: fields of `model.sampling.Sampling`.
        """
        tokenizer = self._tokenizer()
        prompt = self.prompt(messages)
        chosen = self._sampling(self._template().stop_ids(tokenizer), stop, sampling)
        chosen, (room,) = self._within_context([prompt], chosen)
        decoder, text_filter = tokenizer.stream(), StopFilter(strings_of(stop, self.generation))
        tokens = self._stream(prompt, _key(seed), chosen, room)
        while True:
            with jax.set_mesh(self.mesh):  # not around the yield, where the caller's code runs
                token = next(tokens, None)
            if token is None:
                break
            if token not in chosen.stop_ids:  # a stop id may have a text, which is not part of the answer
                yield text_filter.push(decoder.push(token))
        yield text_filter.push(decoder.flush()) + text_filter.flush()

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seed: int | Sequence[int] = 0,
        batch_size: int = 64,
    ) -> list[list[int]]:
        """Continues prompts of token ids.

        Args:
          prompts: the token ids of each prompt.
          sampling: the sampling settings.
          seed: seed of the sampling, one for all prompts or one for each. Equal prompts with one seed have equal
            continuations.
          batch_size: number of prompts that are decoded together.

        Returns:
          The token ids of `sampling.n` continuations for each prompt, in order, including those of a stop string. A
          prompt that fills the context gets empty ones and a warning (PromptTooLong).

        Raises:
          UserError: all prompts fill the context, or the seed or the batch size is out of range.
        """
        for each in seed if isinstance(seed, Sequence) else [seed]:
            _key(each)
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
            seed=[seed[i] for i in answered] if isinstance(seed, Sequence) else seed,
            batch_size=max(min(batch_size, len(answered)), 1),
            mesh=self.mesh,
            limits=[limits[i] for i in answered],
        )
        answers: list[list[list[int]]] = [[[] for _ in range(sampling.n)] for _ in prompts]
        for i, samples in zip(answered, found, strict=True):
            answers[i] = samples
        return [answer for samples in answers for answer in samples]

    def _sampling(self, stop_ids: Sequence[int], stop: str | Sequence[str], given: Mapping[str, Any]) -> Sampling:
        """The sampling settings of a call.

        Args:
          stop_ids: ids that end an answer, unless `given` has its own "stop_ids".
          stop: strings that end an answer.
          given: the caller's fields of `Sampling`; None leaves a field to the model's recommendation.
        """
        own = dict(stop_ids=given.get("stop_ids", (*stop_ids, *self.generation.stop_ids)))
        fields = self.generation.sampling() | {name: value for name, value in given.items() if value is not None}
        strings = strings_of(stop, self.generation)
        return sampling_of(self._tokenizer(), self.config.vocab_size, stop=strings, **(fields | own))

    def _texts(self, prompts: Sequence[Sequence[int]], sampling: Sampling, **how: int) -> list[str]:
        """The texts of `complete`, without what ended them."""
        return [text_of(self._tokenizer(), ids, sampling) for ids in self.complete(prompts, sampling, **how)]

    def _answer(self, tokens_BP, lengths_B, key, sampling: Sampling, limits_B) -> decode.Generation:
        """Generates one batch of answers, with the draft if there is one; arguments as of `decode.generate`."""
        if self.draft is None:
            return decode.generate(self.model, self.params, tokens_BP, lengths_B, key, sampling, limits_B=limits_B)
        draft = self.draft
        networks = (self.model, self.params, draft.llama.model, draft.llama.params)
        result = speculative.generate(*networks, tokens_BP, lengths_B, key, sampling, draft.k, limits_B=limits_B)
        draft.count(result)
        return result.answer

    def _stream(self, prompt: Sequence[int], key: jax.Array, sampling: Sampling, limit: int) -> Iterator[int]:
        """Yields the tokens of an answer, with the draft if there is one; arguments as of `decode.stream`."""
        if self.draft is None:
            yield from decode.stream(self.model, self.params, prompt, key, sampling, limit)
            return
        draft = self.draft.llama
        networks = (self.model, self.params, draft.model, draft.params)
        self.draft.count((yield from speculative.stream(*networks, prompt, key, sampling, self.draft.k, limit)))

    def prompt(self, messages: str | Messages) -> list[int]:
        """The token ids of a conversation, up to the beginning of the assistant's next turn."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self._template().encode(messages, self._tokenizer(), generation_prompt=True).tokens.tolist()

    def _within_context(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> tuple[Sampling, list[int]]:
        """Limits the length of answers to the model's context.

        Returns:
          `sampling` with the length of the compiled loop: the longest answer rounded up to a power of two, so that a
          growing conversation compiles few loops. And the largest number of tokens in the answer to each prompt.
        """
        context = self.config.max_len
        limits = [min(sampling.max_tokens, max(context - len(prompt), 0)) for prompt in prompts]
        names = ["the prompt"] if len(prompts) == 1 else [f"prompt {i}" for i in range(1, len(prompts) + 1)]
        sizes = [f"{name} ({len(prompt):,} tokens)" for name, prompt in zip(names, prompts, strict=True)]
        if full := [size for size, limit in zip(sizes, limits, strict=True) if not limit]:
            said = f"the context of {context:,} tokens has no room for an answer to {', '.join(full)}: shorten it"
            if not any(limits):
                raise TooLong(said)
            warnings.warn(f"{said}; the others are answered", PromptTooLong, stacklevel=4)
        most = max(limits, default=1)
        return dataclasses.replace(sampling, max_tokens=min(sampling.max_tokens, 1 << (most - 1).bit_length())), limits

    def _tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises UserError if there is none."""
        if self.tokenizer is None:
            raise UserError("this model has no tokenizer: give token ids to `logits` or `complete`")
        return self.tokenizer

    def _template(self) -> ChatTemplate:
        """The chat template. Raises UserError if there is none."""
        if self.template is None:
            raise UserError(
                "this model has no chat template: give one by --template (in Python, set `template`), use `generate`, "
                "or tune the model with `camelid train`"
            )
        return self.template


def load(
    path: epath.PathLike,
    *,
    step: int | str | None = None,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str | None = None,
    weights: str | None = None,
    quantize: str | Rules | None = None,
    cache: str | None = None,
    rope: tuple[RopeKind, int] | None = None,
    base: epath.PathLike | None = None,
    vocab_size: int | None = None,
) -> LanguageModel:
    """Loads a language model from disk.

    Args:
      path: a run directory (its latest checkpoint), RUN@best, RUN@STEP, one checkpoint, a GGUF file, a folder in the
        format of Hugging Face, Meta or PEFT, or the name of a model on the Hugging Face Hub.
      step: a step of the run at `path`, such as 500, or "best" (`config.checkpoint.best`); default: the latest one.
      mesh: devices for the parameters; default: one device.
      dtype: dtype of parameters and computation; default: as trained or stored.
      weights: "params" for the parameters of the last step, "ema" for their moving average. Default: the moving average
        if the run kept one, because its evaluations measured it.
      quantize: "int8", "int4" or "nf4" quantises all matrices, "stored" keeps a GGUF file's own codes; or rules as
        `model.storage.quantize` takes them.
      cache: "int8" stores keys and values in 8 bits while decoding.
      rope: a rotary scaling and the context in tokens that it stretches to, such as ("yarn", 8192).
      base: path of the base model for adapters at `path`; default: the base that they name.
      vocab_size: number of rows of embedding and head, for files in other formats whose tokenizer has more ids than
        rows; each added row is the mean of the others.

    Raises:
      UserError: the path holds no language model, the run has no checkpoint of the step, or an option does not fit.
    """
    path = at_step(path, step)
    if base is not None:
        if weights is not None:
            raise UserError(
                f"weights={weights!r} is for a run, and base for adapters on another model: give only one of the two"
            )
        if not isinstance(checkpoints.open(path), AdapterCheckpoint):
            raise UserError(f"{path} holds a whole network, and base={base} is for adapters: leave base out")
        found = load(base, mesh=mesh, dtype=dtype, quantize=quantize, cache=cache, rope=rope)
        return found.with_adapters(path)
    found = checkpoints.open(path, weights)
    if found.kind == "scalar":
        raise UserError(
            f"{path} is a reward or cost model, not a language model: name it in config.reward.sources, or as --judge "
            "of `camelid judge grade`"
        )
    if quantize == storage.STORED and not isinstance(_whole(found), GGUFCheckpoint):
        raise UserError(
            f'{path}: quantize="stored" keeps the codes of a GGUF file, and this is none: give int8, int4 or nf4, or '
            "leave quantize out"
        )
    config = found.config
    if dtype is not None:
        config = config.replace(dtype=dtype, param_dtype=dtype)
    if vocab_size is not None and (vocab_size < config.vocab_size or not isinstance(found, ForeignCheckpoint)):
        raise UserError(
            f"{path}: vocab_size {vocab_size:,} can only add to the {config.vocab_size:,} rows of a file in another "
            "format; `camelid convert --vocab_size` adds rows to a run"
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
    params = found.load_params(placed(model.abstract_params, shardings(model.abstract_params, mesh)), quantize=rules)
    about = dict(step=found.step, generation=found.generation, checkpoint=found)
    return LanguageModel(model, params, found.tokenizer, found.template, mesh, **about)


def _whole(found: checkpoints.Checkpoint) -> checkpoints.Checkpoint:
    """The checkpoint that holds the whole network: of adapters their base."""
    return _whole(found.base) if isinstance(found, AdapterCheckpoint) else found


def _key(seed: int) -> jax.Array:
    """The random key of a seed. Raises UserError if the seed is out of range."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed}: give 0 to {2**32 - 1}")
    return jax.random.key(seed)
