"""Whether answers fit their JSON schemas, and what a schema costs.

    JAX_PLATFORMS=cpu python benchmarks/serving_schemas.py --schemas=500
    JAX_PLATFORMS=cpu python benchmarks/serving_schemas.py --schemas=64 --model=model.gguf

Schemas are drawn from a seed: objects with required and optional fields, arrays, enums, constants, numbers with bounds,
strings with lengths, patterns and formats, `anyOf`, nesting, and `$ref` to `$defs`, also to themselves. Each is asked
once at temperature 1, `--rows` at a time. Answers that end by themselves are checked by the package jsonschema; the
others are cut at `--max_tokens`. Every batch of answers is written with schemas, without them to the same numbers of
tokens, and with them again; the ratio of the times is what schemas cost. The network is `nano-test` with random weights
and a token for each byte; with --model a model of yours.
"""

import argparse
import datetime
import json
import random
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jsonschema
import numpy as np

import camelid
from camelid.checkpoints.language_model import LanguageModel
from camelid.errors import UserError
from camelid.model import llama
from camelid.model.config import LlamaConfig
from camelid.model.sampling import Sampling
from camelid.model.sharding import make_mesh
from camelid.serve.engine import Engine
from camelid.serve.grammar import Grammar, Grammars
from camelid.serve.requests import Answer, Request

NAMES = (
    "id",
    "name",
    "colour",
    "price",
    "tags",
    "owner",
    "email",
    "created",
    "size",
    "address",
    "count",
    "note",
    "日期",
)
WORDS = ("red", "green", "small", "large", "open", "closed", "fox", "owl", "狐狸", 'a "quoted" word', "", "two\nlines")
PATTERNS = ("^[A-Z]{2}-[0-9]{3}$", "^#[0-9a-f]{6}$", "^(yes|no|maybe)$", "^[a-z]+(_[a-z]+)?$", "^\\d{1,3}(\\.\\d{2})?$")
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email")


def make_schema(rng: random.Random) -> dict[str, Any]:
    """A schema of an object, with definitions that its parts refer to."""
    pet = make_object(rng, 1, refs=[]) | {"title": "Pet"}
    tree = {"type": "object", "properties": {"value": make_string(rng), "next": {"$ref": "#/$defs/tree"}}}
    tree |= {"required": ["value"], "additionalProperties": False}
    refs = ["#/$defs/pet", "#/$defs/tree"]
    return make_object(rng, 3, refs) | {"$defs": {"pet": pet, "tree": tree}}


def make_object(rng: random.Random, depth: int, refs: Sequence[str]) -> dict[str, Any]:
    """A schema of an object whose values have at most `depth` levels."""
    names = rng.sample(NAMES, rng.randint(1, 5))
    properties = {name: make_value(rng, depth - 1, refs) for name in names}
    required = [name for name in names if rng.random() < 0.6]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def make_value(rng: random.Random, depth: int, refs: Sequence[str]) -> dict[str, Any]:
    """A schema of any value."""
    simple = (make_string, make_number, make_choice, lambda _: {"type": rng.choice(["boolean", "null"])})
    if depth <= 0 or rng.random() < 0.5:
        return rng.choice(simple)(rng)
    kind = rng.choice(("object", "array", "any", "null", *(["ref"] if refs else [])))
    if kind == "object":
        return make_object(rng, depth, refs)
    if kind == "ref":
        return {"$ref": rng.choice(refs)}
    if kind == "array":
        least = rng.randint(0, 2)
        limits = {"minItems": least, "maxItems": least + rng.randint(0, 3)}
        return {"type": "array", "items": make_value(rng, depth - 1, refs), **limits}
    parts = [make_value(rng, depth - 1, refs), {"type": "null"} if kind == "null" else make_string(rng)]
    return {"anyOf": parts}


def make_string(rng: random.Random) -> dict[str, Any]:
    """A schema of a string with limits of its length, a pattern or a format."""
    kind = rng.randrange(3)
    if kind == 0:
        return {"type": "string", "pattern": rng.choice(PATTERNS)}
    if kind == 1:
        return {"type": "string", "format": rng.choice(FORMATS)}
    least = rng.randint(0, 4)
    return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 12)}


def make_number(rng: random.Random) -> dict[str, Any]:
    """A schema of an integer or a number, with bounds or without."""
    kind, least = rng.choice(("integer", "number")), rng.randint(-1000, 1000)
    most = least + rng.randint(1, 3000)
    if kind == "number" and rng.random() < 0.5:
        least, most = least / 8, most / 8
    bounds = {rng.choice(("minimum", "exclusiveMinimum")): least, rng.choice(("maximum", "exclusiveMaximum")): most + 1}
    return {"type": kind} | {name: value for name, value in bounds.items() if rng.random() < 0.8}


def make_choice(rng: random.Random) -> dict[str, Any]:
    """A schema of some values."""
    if rng.random() < 0.3:
        return {"const": rng.choice((*WORDS, 7, None, {"a": [1, 2.5]}))}
    return {"enum": [*rng.sample(WORDS, rng.randint(1, 4)), *rng.sample([3, -1.5, None, True], rng.randint(0, 2))]}


class Bytes:
    """A tokenizer whose tokens are bytes, and one that ends answers."""

    token_bytes = [bytes([i]) for i in range(256)] + [b""]
    eos_id = 256

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")


class Asked(NamedTuple):
    """What a schema was asked from."""

    schema: dict[str, Any]
    grammar: Grammar
    seed: int


def random_model(max_len: int) -> LanguageModel:
    """A network with random weights and a row for each of the ids of `Bytes`."""
    model = llama.build(LlamaConfig.preset("nano-test", vocab_size=257, max_len=max_len))
    params = jax.jit(model.init)(jax.random.key(0))
    return LanguageModel(model, params, None, None, make_mesh({}, jax.local_devices()[:1]))


def fault(schema: dict[str, Any], text: str) -> str | None:
    """Why a text does not fit a schema; None if it fits."""
    try:
        jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator, format_checker=FORMAT_CHECKER)
    except (ValueError, jsonschema.ValidationError) as error:
        return str(error).splitlines()[0]
    return None


FORMAT_CHECKER = jsonschema.FormatChecker(jsonschema.Draft202012Validator.FORMAT_CHECKER.checkers)


@FORMAT_CHECKER.checks("date", raises=ValueError)
def is_date(text: object) -> bool:
    """Whether a value that is a text is a date. The year 0000 is one (RFC 3339), but Python's dates have none."""
    return not isinstance(text, str) or bool(datetime.date.fromisoformat(text.replace("0000-", "2000-", 1)))


def ask(engine: Engine, prompt: Sequence[int], batch: Sequence[Asked], ends: Sequence[int], max_tokens: int):
    """The answers to a batch with its schemas, and the seconds that they take."""
    sampling = Sampling(max_tokens=max_tokens, stop_ids=tuple(ends))
    requests = [Request(prompt, sampling, seed=each.seed, grammar=each.grammar) for each in batch]
    begin = time.perf_counter()
    answers = [answer for (answer,) in engine.generate(requests)]
    return answers, time.perf_counter() - begin


def ask_again(engine: Engine, answers: Sequence[Answer]) -> float:
    """The seconds that as many tokens take without schemas."""
    requests = [
        Request(answer.request.prompt, Sampling(max_tokens=len(answer.tokens)), answer.request.seed)
        for answer in answers
    ]
    begin = time.perf_counter()
    engine.generate(requests)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="path of a model (default: random weights)")
    parser.add_argument("--schemas", type=int, default=500, help="number of schemas (default: 500)")
    parser.add_argument("--rows", type=int, default=8, help="answers that are written at a time (default: 8)")
    parser.add_argument("--max_tokens", type=int, default=400, help="most tokens of an answer (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="seed of schemas and answers (default: 0)")
    args = parser.parse_args()

    model = random_model(args.max_tokens + 64) if args.model is None else camelid.load(args.model)
    tokenizer = Bytes() if args.model is None else model.tokenizer
    prompt, ends = tokenizer.encode("An example in JSON:"), [tokenizer.eos_id]
    grammars = Grammars(tokenizer, model.config.vocab_size, ends)
    rng, asked, refused, compiling = random.Random(args.seed), [], [], []
    for number in range(args.schemas):
        schema, begin = make_schema(rng), time.perf_counter()
        try:
            asked.append(Asked(schema, grammars.of_schema(schema), number))
        except UserError as error:
            refused.append(str(error))
        compiling.append(time.perf_counter() - begin)

    ended, faults, written, with_schema, without = 0, [], 0, [], []
    limit = min(args.max_tokens + 64, model.config.max_len)
    with Engine(model, rows=args.rows, max_len=limit) as engine:
        engine.generate([Request(prompt, Sampling(max_tokens=4))])
        for first in range(0, len(asked), args.rows):
            batch = asked[first : first + args.rows]
            answers, seconds = ask(engine, prompt, batch, ends, args.max_tokens)
            without.append(ask_again(engine, answers))
            again = ask(engine, prompt, batch, ends, args.max_tokens)[1]
            with_schema.append((seconds + again) / 2)
            written += sum(len(answer.tokens) for answer in answers)
            for each, answer in zip(batch, answers, strict=True):
                if answer.finish_reason == "stop":
                    ended += 1
                    text = tokenizer.decode([token.id for token in answer.tokens if token.id not in ends])
                    if (why := fault(each.schema, text)) is not None:
                        faults.append((each.schema, text, why))
    ratios = np.array(with_schema) / np.array(without)
    print(f"{len(asked)} schemas, {len(refused)} refused; making a grammar takes {np.median(compiling) * 1e3:.1f} ms")
    print(f"{ended} answers ended by themselves, {ended - len(faults)} of them fit; {len(asked) - ended} were cut")
    print(f"a batch with schemas takes {np.median(ratios):.3f} of its time without, {written:,} tokens")
    for reason in sorted(set(refused))[:5]:
        print("refused:", reason)
    for schema, text, why in faults[:5]:
        print("does not fit:", why, text, json.dumps(schema, ensure_ascii=False), sep="\n    ")


if __name__ == "__main__":
    main()
