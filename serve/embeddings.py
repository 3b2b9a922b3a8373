"""OpenAI's embeddings: a vector of length 1 for each text, pooled from the states that the output head reads."""

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field

from ..model.sampling import Sampling
from .completions import Job, Served, prompts_of
from .protocol import WHOLE, ApiError, Strict, Text
from .requests import Answer, Request

Pooling = Literal["mean", "last"]


class EmbeddingsRequest(Strict):
    """The body of `POST /v1/embeddings`."""

    model: Text | None = None
    input: Text | list[Text] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1), WHOLE] | None = None
    user: Text | None = None


def embeddings_requests(served: Served, body: EmbeddingsRequest) -> list[Request]:
    """The engine's request for each text. Raises ApiError for what does not fit."""
    prompts, width = prompts_of(served, body.input, "input"), served.model.config.dim
    if body.dimensions not in (None, width):
        said = f"dimensions {body.dimensions}: embeddings of {served.name} have {width}; leave it out"
        raise ApiError(400, said, param="dimensions")
    return [Request(each, Sampling(max_tokens=1), embed=True, adapter=served.adapter) for each in prompts]


def embedding_of(answer: Answer, pooling: Pooling) -> Float[np.ndarray, " D"]:
    """The embedding of a text: float32, of length 1.

    Args:
      answer: the engine's answer to a request with `embed`, once it has ended.
      pooling: "mean" of the states over all tokens of the text, or the "last" token's state.
    """
    pooled_D = answer.hidden.sum_D / len(answer.request.prompt) if pooling == "mean" else answer.hidden.last_D
    return pooled_D / np.linalg.norm(pooled_D)


class Embeddings:
    """The objects of a list of embeddings."""

    def __init__(self, job: Job, body: EmbeddingsRequest, pooling: Pooling):
        self.job, self._body, self._pooling = job, body, pooling

    async def whole(self) -> dict[str, Any]:
        """The list."""
        async for _ in self.job.pieces():
            pass
        data = [
            {"object": "embedding", "index": i, "embedding": self._encoded(answer)}
            for i, answer in enumerate(self.job.answers)
        ]
        usage = self.job.usage()
        told = {name: usage[name] for name in ("prompt_tokens", "total_tokens")}
        return {"object": "list", "data": data, "model": self.job.served.name, "usage": told}

    def _encoded(self, answer: Answer) -> Sequence[float] | str:
        embedding_D = embedding_of(answer, self._pooling)
        if self._body.encoding_format == "float":
            return embedding_D.tolist()
        return base64.b64encode(embedding_D.astype("<f4").tobytes()).decode()
