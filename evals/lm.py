"""The model under test: one in memory, or one behind a server of OpenAI's protocol. Evaluations know only `LM`."""

import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from ..checkpoints import Checkpoint, scoring
from ..checkpoints.decoding import sampling_of, text_of
from ..checkpoints.language_model import LanguageModel
from ..checkpoints.runs import RunCheckpoint
from ..errors import UserError

Messages = Sequence[Mapping[str, str]]
Tokens = Sequence[int]

UNFILTERED = dict(top_k=-1, min_p=0.0, repetition_penalty=1.0)
"""Settings of a request that leave out no token, whatever the model recommends."""

WAITS = (1, 2, 4, 8, 16, 32)
"""Seconds before a request is sent again that a server refused because too many wait, or because it is about to end."""


class Likelihood(NamedTuple):
    """How likely a continuation is."""

    logp: float
    """Its log-probability, the sum over its tokens."""

    is_greedy: bool
    """Whether each of its tokens is the likeliest, so that greedy decoding would write it."""


class LM(Protocol):
    """A language model that evaluations ask.

    Attributes:
      name: its name in results.
      max_len: tokens of its context.
      begin: the ids that begin every text, [bos] or [].
      eos_id: the id that ends a text.
      prefix_id: the id that stands for an empty context: bos, else eos, as in lm-evaluation-harness.
    """

    name: str
    max_len: int
    begin: list[int]
    eos_id: int
    prefix_id: int

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The tokens of a text, without bos. special: whether spellings of control tokens become these tokens."""
        ...

    def decode(self, ids: Tokens) -> str:
        """The text of tokens."""
        ...

    def chat_ids(self, messages: Messages) -> list[int]:
        """The tokens of a conversation up to the beginning of the assistant's next turn."""
        ...

    def chat_pair(self, messages: Messages, answer: str) -> tuple[list[int], list[int]]:
        """The tokens of a conversation, and those of the assistant's answer, without the end of its turn."""
        ...

    def loglikelihoods(self, requests: Sequence[tuple[Tokens, Tokens]]) -> list[Likelihood]:
        """The likelihood of continuations. requests: (context, continuation) as token ids; neither is empty."""
        ...

    def generate(
        self,
        prompts: Sequence[Tokens],
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        top_p: float = 1.0,
        n: int = 1,
        seed: int = 0,
    ) -> list[list[str]]:
        """`n` continuations of each prompt, up to the end of the text, a stop string, or `max_tokens` tokens.

        No other filter is in force than those given, whatever the model recommends. What is sampled depends on the
        prompt and the seed alone, not on other prompts.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """What a result says about the model: its identity, tokenizer, template, and the tokens that end an answer."""
        ...


class LocalLM:
    """A language model in memory, as an `LM`.

    Args:
      model: the model. Its tokenizer must be there.
      batch_size: rows, or prompts, that are computed at a time; None: as many as fit 4,096 tokens on each device, or 64
        prompts.
    """

    def __init__(self, model: LanguageModel, batch_size: int | None = None):
        if model.tokenizer is None:
            raise UserError("the model has no tokenizer, so no text can be scored: give a checkpoint with one")
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size {batch_size}: give 1 or more")
        self.model, self._tokenizer, self._batch_size = model, model.tokenizer, batch_size
        self.name = "model in memory" if model.checkpoint is None else model.checkpoint.name
        self.max_len, self.eos_id = model.config.max_len, model.tokenizer.eos_id
        self.begin = [model.tokenizer.bos_id] if model.tokenizer.adds_bos else []
        self.prefix_id = self.eos_id if model.tokenizer.bos_id is None else model.tokenizer.bos_id

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return self._tokenizer.encode_special(text) if special else self._tokenizer.encode(text)

    def decode(self, ids: Tokens) -> str:
        return self._tokenizer.decode(ids)

    def chat_ids(self, messages: Messages) -> list[int]:
        return self.model.prompt(messages)

    def chat_pair(self, messages: Messages, answer: str) -> tuple[list[int], list[int]]:
        context = self.chat_ids(messages)
        whole = scoring.continued(self.model, [*messages, {"role": "assistant", "content": answer}])
        return context, whole[len(context) :]

    def loglikelihoods(self, requests: Sequence[tuple[Tokens, Tokens]]) -> list[Likelihood]:
        found = scoring.likelihoods(self.model, requests, batch_size=self._batch_size)
        return [Likelihood(float(each.logp.sum(dtype="float64")), bool(each.is_greedy.all())) for each in found]

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end an answer: eos, those that the model names, and those of its chat template."""
        template = self.model.template
        of_template = () if template is None else template.stop_ids(self._tokenizer)
        return tuple(sorted({self.eos_id, *self.model.generation.stop_ids, *of_template}))

    def generate(
        self,
        prompts: Sequence[Tokens],
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        top_p: float = 1.0,
        n: int = 1,
        seed: int = 0,
    ) -> list[list[str]]:
        how = dict(stop=stop, max_tokens=max_tokens, temperature=temperature, top_p=top_p, n=n)
        sampling = sampling_of(self._tokenizer, self.model.config.vocab_size, stop_ids=self.stop_ids, **how)
        answers = self.model.complete(prompts, sampling, seed=seed, batch_size=self._batch_size or 64)
        texts = [text_of(self._tokenizer, ids, sampling) for ids in answers]
        return [texts[i : i + n] for i in range(0, len(texts), n)]

    def describe(self) -> dict[str, Any]:
        model, template = self.model, self.model.template
        checkpoint = model.checkpoint
        return {
            "name": self.name,
            "step": model.step,
            "identity": None if checkpoint is None else checkpoint.identity,
            "weights": None if checkpoint is None else checkpoint.weights,
            "config_hash": _config_hash(checkpoint),
            "network": _network_hash(model),
            "dtype": model.config.dtype,
            "tokenizer": self._tokenizer.fingerprint,
            "template": template and {"name": template.name, "source": template.source},
            "bos": [self._tokenizer.piece(i) for i in self.begin],
            "stop_tokens": [self._tokenizer.piece(i) for i in self.stop_ids],
        }


class ServedLM:
    """A model behind a server of OpenAI's protocol that also has `/tokenize`, such as `camelid serve` or vLLM.

    Args:
      address: http://HOST:PORT; the ending /v1 may be there.
      name: the model's name; None takes the first that the server lists.
      key: the key that the server asks for; None takes the environment variable CAMELID_API_KEY.
      at_once: requests that are sent at the same time.
    """

    def __init__(self, address: str, name: str | None = None, key: str | None = None, at_once: int = 8):
        import httpx

        from ..serve.speakers import KEY

        key = key or os.environ.get(KEY)
        self.address, self._at_once = address.rstrip("/").removesuffix("/v1"), at_once
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=at_once)
        self._http = httpx.Client(base_url=self.address, headers=headers, timeout=600, limits=limits)
        try:
            listed = {str(each["id"]): each for each in self._ask("GET", "/v1/models")["data"]}
            if name is not None and name not in listed:
                raise UserError(f"{self.address} has no model {name!r}, only {', '.join(listed)}")
            self._model = name or next(iter(listed))
            self.max_len = int(listed[self._model].get("max_model_len") or 2048)
            special = self._ask("GET", f"/tokenizer_info?model={self._model}")
            plain, begun = self.encode("a"), self._tokenize(prompt="a", add_special_tokens=True)
            self.begin = begun[: len(begun) - len(plain)]
            self.eos_id = self.encode(special["eos_token"], special=True)[0]
            bos = special.get("bos_token")
            self.prefix_id = self.encode(bos, special=True)[0] if bos else self.eos_id
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, StopIteration) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{self.address} does not answer as `camelid serve` and vLLM do: is it the address?"
            ) from None
        self.name, self._stop_ids = f"{self._model} at {self.address}", special.get("stop_token_ids")

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        import httpx

        try:
            for wait in (*WAITS, None):
                response = self._http.request(method, path, json=body)
                if response.status_code not in (429, 503) or wait is None:
                    break
                time.sleep(wait)
            found = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise UserError(f"{self.address}{path}: {str(error) or type(error).__name__}") from None
        if response.status_code != 200:
            said = found.get("error", found) if isinstance(found, dict) else found
            said = said.get("message", said) if isinstance(said, dict) else said
            raise UserError(f"{self.address}{path} refused ({response.status_code}): {said}")
        return found

    def _tokenize(self, **body: Any) -> list[int]:
        return self._ask("POST", "/tokenize", {"model": self._model} | body)["tokens"]

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return self._tokenize(prompt=text, add_special_tokens=False, parse_special=special) if text else []

    def decode(self, ids: Tokens) -> str:
        return self._ask("POST", "/detokenize", {"model": self._model, "tokens": list(ids)})["prompt"]

    def chat_ids(self, messages: Messages) -> list[int]:
        return self._tokenize(messages=list(messages))

    def chat_pair(self, messages: Messages, answer: str) -> tuple[list[int], list[int]]:
        context = self.chat_ids(messages)
        whole = self.chat_ids(
            [*messages, {"role": "assistant", "content": answer}]
        )  # to the last word of the last turn
        return context, whole[len(context) :]

    def loglikelihoods(self, requests: Sequence[tuple[Tokens, Tokens]]) -> list[Likelihood]:
        def one(request: tuple[Tokens, Tokens]) -> Likelihood:
            context, continuation = request
            body = {"prompt": [*context, *continuation], "max_tokens": 0, "echo": True, "logprobs": 1}
            found = self._complete(body, lambda choices: _likelihood(choices[0]["logprobs"], len(context)))
            if found is None or found[1] != len(continuation):
                raise UserError(f"{self.address} sent no log-probability for each of {len(continuation)} tokens")
            return found[0]

        return self._each(one, requests)

    def generate(
        self,
        prompts: Sequence[Tokens],
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        top_p: float = 1.0,
        n: int = 1,
        seed: int = 0,
    ) -> list[list[str]]:
        how = dict(max_tokens=max_tokens, temperature=temperature, top_p=top_p, n=n, seed=seed) | UNFILTERED
        how |= {"stop": list(stop)} if stop else {}
        how |= {"stop_token_ids": self._stop_ids} if self._stop_ids else {}

        def texts(choices: Sequence[Mapping[str, Any]]) -> list[str]:
            return [str(choice["text"]) for choice in sorted(choices, key=lambda choice: choice["index"])]

        def one(prompt: Tokens) -> list[str]:
            found = self._complete({"prompt": list(prompt)} | how, texts)
            if found is None or len(found) != n:
                raise UserError(f"{self.address} sent other than {n} answers")
            return found

        return self._each(one, prompts)

    def _complete(self, body: Mapping[str, Any], read: Callable[[Any], Any]) -> Any:
        """What `read` finds in the choices of a completion; None where they are not of the protocol."""
        found = self._ask("POST", "/v1/completions", {"model": self._model, **body})
        try:
            return read(found["choices"])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            return None

    def _each(self, function, given: Sequence) -> list:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(self._at_once) as pool:
            return list(pool.map(function, given))

    def describe(self) -> dict[str, Any]:
        stops = self._stop_ids or [self.eos_id]
        return {"name": self.name, "max_len": self.max_len, "bos": self.begin, "stop_tokens": stops}


def _likelihood(logprobs: Mapping[str, Any], skipped: int) -> tuple[Likelihood, int]:
    """The likelihood of an echoed text after its first tokens, and the number of tokens that it is of."""
    own = [float(x) for x in logprobs["token_logprobs"][skipped:]]
    best = [max(float(x) for x in each.values()) for each in logprobs["top_logprobs"][skipped:]]
    if not all(math.isfinite(x) and x <= 1e-3 for x in own):
        raise ValueError("these are no log-probabilities")
    return Likelihood(sum(own), all(x >= top for x, top in zip(own, best, strict=True))), len(own)


def as_lm(model: LanguageModel | LM, batch_size: int | None = None) -> LM:
    """The `LM` of a loaded model; another `LM` as it is."""
    return LocalLM(model, batch_size) if isinstance(model, LanguageModel) else model


def encode_pair(lm: LM, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The tokens of a context and of its continuation, as they are in the whole text.

    Spaces at the end of the context belong to the continuation, because tokens begin with them. An empty context is
    `prefix_id`. lm-evaluation-harness cuts texts so too.
    """
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    if not context:
        return [lm.prefix_id], lm.encode(continuation)
    first, whole = lm.encode(context), lm.encode(context + continuation)
    return [*lm.begin, *first], whole[len(first) :]


def _config_hash(checkpoint: Checkpoint | None) -> str | None:
    """The hash of the config of a run; None for another checkpoint."""
    if not isinstance(checkpoint, RunCheckpoint):
        return None
    return hashlib.sha256(json.dumps(checkpoint.manifest["config"], sort_keys=True).encode()).hexdigest()[:16]


def _network_hash(model: LanguageModel) -> str:
    """The hash of what is computed beside the parameters: the network's config, and how its matrices are stored."""
    leaves, tree = jax.tree.flatten(model.params)
    about = [str(model.config), str(tree), [str(leaf.dtype) for leaf in leaves]]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
