"""Answers requests with a model in memory, in batches that do not depend on which of them have replies already."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..checkpoints.decoding import text_of
from ..errors import UserError
from .journal import Journal, Reply, Request, key_of

if TYPE_CHECKING:
    from ..checkpoints.language_model import LanguageModel


class Local:
    """Answers requests with a language model in memory. It is an `Asker`.

    Requests with equal settings share batches, in their order. A batch with a request that has no reply in the journal
    is computed whole, so that replies have the same bits whenever a command was interrupted.

    Args:
      model: the model, with a tokenizer and a chat template.
      name: its name.
      identity: what tells the parameters and how they are loaded from others, as JSON can hold it. Replies in the
        journal count for models of this identity alone.
      journal: where requests and replies are kept.
      batch_size: number of conversations that are decoded together.
      report: called with the number of replies so far and of requests after each batch.
    """

    def __init__(
        self,
        model: "LanguageModel",
        name: str,
        identity: Any,
        *,
        journal: Journal,
        batch_size: int = 16,
        report: Callable[[int, int], None] = lambda done, all: None,
    ):
        if model.tokenizer is None or model.template is None:
            raise UserError(f"{name} has no tokenizer or no chat template: give --template, or tune the model first")
        self.name, self._model, self._batch_size, self._report = name, model, batch_size, report
        self._journal, self._identity = journal, [name, identity, batch_size]

    def key(self, request: Request) -> str:
        """The key of a request in the journal."""
        return key_of(self._identity, request)

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies to requests, in their order.

        A conversation or a prompt that fills the context gets an empty reply with the finish reason "length". Besides
        fields of `model.sampling.Sampling`, settings may have `stop` and vLLM's `stop_token_ids`.

        Raises:
          UserError: a setting is not known or out of range, or a prompt has an id that is none of the model's tokens.
        """
        keys = [self.key(request) for request in requests]
        groups: dict[str, dict[str, Request]] = {}
        for key, request in zip(keys, requests, strict=True):
            settings = {**request.settings, "seed": request.settings.get("seed") or 0}
            of_prompts = request.prompt is not None
            groups.setdefault(json.dumps([of_prompts, settings], sort_keys=True), {})[key] = request
        done = 0
        for settings, group in groups.items():
            every = list(group)
            for begin in range(0, len(every), self._batch_size):
                batch = every[begin : begin + self._batch_size]
                if missing := {key: group[key] for key in batch if self._journal.reply(key) is None}:
                    self._journal.ask({key: request.body(self._identity) for key, request in missing.items()})
                    replies = self._answer([group[key] for key in batch], **json.loads(settings)[1])
                    self._journal.answer(dict(zip(batch, replies, strict=True)))
                done += len(batch)
                self._report(done, len(set(keys)))
        return [self._journal.reply(key) for key in keys]

    def _answer(self, requests: Sequence[Request], *, seed: int, **settings: Any) -> list[Reply]:
        """The replies to a batch of requests with equal settings: all with messages, or all with prompts."""
        model = self._model
        prompts = [model.prompt(r.messages) if r.prompt is None else self._checked(r.prompt) for r in requests]
        chats = requests[0].prompt is None
        ends = model.template.stop_ids(model.tokenizer) if chats else (model.tokenizer.eos_id,)
        ends = (*ends, *(settings.pop("stop_token_ids", None) or ()))
        try:
            sampling = model._sampling(ends, settings.pop("stop", ()), settings)
        except TypeError:
            raise UserError(f"{', '.join(settings)}: a model in memory does not know all of these settings") from None
        rooms = [min(sampling.max_tokens, model.config.max_len - len(prompt)) for prompt in prompts]
        fitting = [i for i, room in enumerate(rooms) if room > 0]
        replies = [Reply("", "length", len(prompt), 0) for prompt in prompts]
        seeds = [seed + requests[i].sample for i in fitting]
        answers = model.complete([prompts[i] for i in fitting], sampling, seed=seeds, batch_size=self._batch_size)
        for i, ids in zip(fitting, answers, strict=True):
            is_whole = len(ids) < rooms[i] or ids[-1] in sampling.stop_ids
            text = text_of(model.tokenizer, ids, sampling).strip()
            replies[i] = Reply(text, "stop" if is_whole else "length", len(prompts[i]), len(ids))
        return replies

    def _checked(self, prompt: Sequence[int]) -> list[int]:
        """The ids of a prompt. Raises UserError if one is no token of the model's."""
        size = self._model.config.vocab_size
        if wrong := [token for token in prompt if not 0 <= token < size]:
            raise UserError(f"a prompt has the token id {wrong[0]}: {self.name} has ids from 0 to {size - 1}")
        return list(prompt)
