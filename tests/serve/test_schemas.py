"""Answers fit schemas of all kinds, as the package jsonschema reads them; `benchmarks/serving_schemas.py` asks more."""

import random

import pytest

pytest.importorskip("jsonschema", reason="jsonschema is not installed")

from camelid.benchmarks.serving_schemas import Asked, Bytes, ask, fault, make_schema, random_model
from camelid.serve.engine import Engine
from camelid.serve.grammar import Grammars


def test_answers_that_end_fit_their_schemas():
    rng, grammars = random.Random(7), Grammars(Bytes(), 257, [Bytes.eos_id])
    schemas = [make_schema(rng) for _ in range(24)]
    asked = [Asked(schema, grammars.of_schema(schema), seed) for seed, schema in enumerate(schemas)]
    with Engine(random_model(264), rows=8) as engine:
        answers, _ = ask(engine, [1], asked, [Bytes.eos_id], 200)
    ended = [
        (each.schema, answer) for each, answer in zip(asked, answers, strict=True) if answer.finish_reason == "stop"
    ]
    texts = [(schema, Bytes().decode([token.id for token in answer.tokens])) for schema, answer in ended]
    assert len(texts) > 8 and [why for schema, text in texts if (why := fault(schema, text))] == []


def test_a_text_that_does_not_fit_is_found():
    schema = {"type": "object", "properties": {"a": {"type": "string", "format": "date"}}, "required": ["a"]}
    assert fault(schema, '{"a": "2024-02-29"}') is None
    for text in ('{"a": "2023-02-29"}', '{"a": 1}', "{}", "{", '{"a": "x"'):
        assert fault(schema, text)
