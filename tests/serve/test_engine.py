"""The engine: the same bits in any company, what is read once, and that rows come free."""

import dataclasses
import functools
import threading

import jax
import numpy as np
import pytest

from camelid.checkpoints.language_model import LanguageModel
from camelid.errors import UserError
from camelid.model import decode, llama, storage
from camelid.model.config import LlamaConfig
from camelid.model.sampling import Sampling
from camelid.model.sharding import make_mesh, shardings
from camelid.model.stopping import stops_of
from camelid.serve.engine import Engine
from camelid.serve.prefixes import Prefixes
from camelid.serve.requests import Busy, Ended, Request, State

V = 96
CONFIG = LlamaConfig.from_dict(
    dict(vocab_size=V, dim=32, n_layers=2, n_heads=8, n_kv_heads=4, ffn_dim=64, max_len=64, tied=False)
)
STOPS = stops_of([b"ab"], [bytes([97 + i % 26]) for i in range(V)], V)
SETTINGS = [
    Sampling(max_tokens=12, temperature=0),
    Sampling(max_tokens=12),
    Sampling(max_tokens=9, temperature=0.7, top_p=0.8),
    Sampling(max_tokens=9, temperature=1.3, top_k=20, min_p=0.01, repetition_penalty=1.2),
    Sampling(max_tokens=20, stop_ids=(3, 5, 8, 13, 21, 34, 55, 89), stops=STOPS),
    Sampling(max_tokens=5, temperature=0.9, n=3),
]


def language_model(axes=None, quantize=None, **changes) -> LanguageModel:
    mesh = make_mesh(axes or {}, jax.devices()[: int(np.prod(list((axes or {"data": 1}).values())))])
    model = llama.build(CONFIG.replace(**changes))
    params = jax.tree.map(lambda x: 2 * x, jax.jit(model.init)(jax.random.key(0)))
    if quantize is not None:
        params = storage.quantize(params, storage.rules_of(quantize))
    return LanguageModel(model, jax.device_put(params, shardings(params, mesh)), None, None, mesh)


@functools.cache
def some_requests(count: int = 18) -> list[Request]:
    rng = np.random.default_rng(0)
    shared = rng.integers(1, V, 40).tolist()
    found = []
    for i in range(count):
        own = rng.integers(1, V, rng.integers(1, 30)).tolist()
        prompt = shared[: rng.integers(8, 40)] + own[:9] if i % 3 == 0 else own
        bias = {7: 2.0, 9: -100.0} if i % 5 == 1 else {}
        found.append(
            Request(prompt, SETTINGS[i % len(SETTINGS)], seed=i, top=i % 4, bias=bias, score_prompt=i % 4 == 0)
        )
    return found


@pytest.fixture(scope="module")
def model():
    return language_model()


@pytest.fixture(scope="module")
def engine(model):
    with Engine(model, rows=4, chunk=8) as found:
        yield found


def bits(answers):
    return [(answer.tokens, answer.prompt, answer.finish_reason) for answer in answers]


@pytest.fixture(scope="module")
def alone(engine):
    """What each request gets when nothing else is answered."""
    return [bits(engine.generate([request])[0]) for request in some_requests()]


def test_answers_are_the_same_bits_in_any_company_and_with_any_prefix(model, engine, alone):
    requests = some_requests()
    assert [bits(answers) for answers in engine.generate(requests)] == alone  # of which the prefixes are kept
    with Engine(model, rows=4, chunk=8, blocks=3) as other:
        order = np.random.default_rng(1).permutation(len(requests)).tolist()
        submitted = {i: other.submit(requests[i]) for i in order}
        for i in order[::4]:  # neighbours that leave in the middle
            other.submit(dataclasses.replace(requests[i], seed=99))[0].cancel()
        assert {i: bits([a.wait() for a in answers]) for i, answers in submitted.items()} == dict(enumerate(alone))


@pytest.mark.parametrize("how", [{}, dict(axes={"data": 1, "tensor": 4}), dict(cache="int8")], ids=str)
def test_answers_that_make_room_for_others_go_on_with_the_same_bits(how, alone):
    requests = [request for request in some_requests() if request.sampling.n == 1][:8]
    with Engine(language_model(**how), rows=2, chunk=8, patience=0.0) as other:
        single = [bits(other.generate([request])[0]) for request in requests]
        assert [bits(answers) for answers in other.generate(requests)] == single
        assert other.preemptions > len(requests)
        if not how:
            assert single == [alone[some_requests().index(request)] for request in requests]
        first = other.submit(Request([1], Sampling(max_tokens=60, temperature=0)))[0]
        more = [other.submit(Request([i], Sampling(max_tokens=3)))[0] for i in range(2, 6)]
        while first.state != State.WAITING or not first.tokens:
            pass
        first.cancel()
        assert first.wait().finish_reason == "cancelled" and [len(answer.wait().tokens) for answer in more] == [3] * 4
        assert other.running == other.waiting == 0


def test_answers_are_those_of_generate(model, alone):
    for request, answers in zip(some_requests(), alone, strict=True):
        if request.bias:
            continue
        tokens, lengths = decode.pad_prompts([request.prompt])
        found = jax.device_get(
            decode.generate(model.model, model.params, tokens, lengths, jax.random.key(request.seed), request.sampling)
        )
        for sample, (told, _, reason) in enumerate(answers):
            length = found.lengths[0, sample]
            assert [token.id for token in told] == found.tokens[0, sample, :length].tolist()
            logprobs = [token.logprob for token in told]
            np.testing.assert_allclose(logprobs, found.logprobs[0, sample, :length], atol=2e-4)
            assert reason == ("stop" if found.stopped[0, sample] else "length")


def test_prompts_get_the_log_probabilities_of_the_network(model, alone):
    for request, answers in zip(some_requests(), alone, strict=True):
        if not request.score_prompt:
            assert answers[0][1] == []
            continue
        logits_TV = model.logits(np.array([request.prompt]))[0]
        logp_TV = np.asarray(jax.nn.log_softmax(logits_TV))
        scored = answers[0][1]
        assert [each.id for each in scored] == list(request.prompt) and scored[0].logprob is None
        expected = [logp_TV[i, token] for i, token in enumerate(request.prompt[1:])]
        np.testing.assert_allclose([each.logprob for each in scored[1:]], expected, atol=2e-4)
        for i, each in enumerate(scored[1:]):
            best = np.sort(logp_TV[i])[::-1][: request.top]
            np.testing.assert_allclose([logprob for _, logprob in each.top], best, atol=2e-4)


def test_log_probabilities_of_tokens_are_the_models_without_bias_and_among_the_likeliest(alone):
    for request, answers in zip(some_requests(), alone, strict=True):
        for token in answers[0][0]:
            assert len(token.top) == request.top
            assert [logprob for _, logprob in token.top] == sorted((x for _, x in token.top), reverse=True)
            same = [logprob for i, logprob in token.top if i == token.id]
            assert same in ([], [token.logprob])
        if request.bias:
            assert 9 not in [token.id for token in answers[0][0]]


def test_nothing_compiles_after_the_start(engine):
    compiled = []

    def listen(event, *_, **__):
        compiled.extend([event] if event == "/jax/core/compile/backend_compile_duration" else [])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        rng = np.random.default_rng(2)
        requests = [
            Request(
                rng.integers(1, V, rng.integers(1, 50)).tolist(),
                Sampling(
                    max_tokens=int(rng.integers(1, 10)),
                    temperature=float(rng.choice([0.0, 0.3, 1.0, 1.7])),
                    top_k=int(rng.choice([0, 3])),
                    top_p=float(rng.choice([0.5, 1.0])),
                    min_p=float(rng.choice([0.0, 0.1])),
                    repetition_penalty=float(rng.choice([1.0, 1.5])),
                    stop_ids=tuple(range(int(rng.integers(0, 20)))),
                    stops=STOPS if rng.random() < 0.3 else None,
                    n=int(rng.integers(1, 4)),
                ),
                seed=int(rng.integers(2**32)),
                top=int(rng.integers(0, 20)),
                score_prompt=bool(rng.random() < 0.3),
                bias={3: 1.0} if rng.random() < 0.3 else {},
            )
            for _ in range(30)
        ]
        engine.generate(requests)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


def test_without_exactness_an_answer_alone_has_a_program_of_its_own_and_the_same_tokens(model, alone):
    with Engine(model, rows=4, chunk=8, exact=False) as other:
        names = []
        call = other._device._call
        other._device._call = lambda name, *arguments: names.append(name) or call(name, *arguments)
        single = [other.generate([request])[0] for request in some_requests()]
        assert names.count("forward alone") > names.count("forward") > 0  # which several answers to a prompt take
        together = other.generate(some_requests())
    for found in (single, together):
        for answers, expected in zip(found, alone, strict=True):
            for answer, (tokens, _, reason) in zip(answers, expected, strict=True):
                assert [token.id for token in answer.tokens] == [token.id for token in tokens]
                told, known = ([token.logprob for token in each] for each in (answer.tokens, tokens))
                np.testing.assert_allclose(told, known, atol=1e-4)
                assert answer.finish_reason == reason


class Recorder:
    """What an engine asks of the device, in order."""

    def __init__(self, engine, monkeypatch):
        self.calls = []
        for name in ("read", "forward", "copy", "restore", "keep", "stop"):
            real = getattr(engine._device, name)
            monkeypatch.setattr(engine._device, name, functools.partial(self._note, name, real))

    def _note(self, name, real, *arguments):
        self.calls.append(name)
        return real(*arguments)


def test_answers_to_one_prompt_share_its_reading_and_a_later_turn_pays_for_its_own_tokens(engine, monkeypatch):
    prompt = np.random.default_rng(3).integers(1, V, 30).tolist()
    recorded = Recorder(engine, monkeypatch)
    answers = engine.generate([Request(prompt, Sampling(max_tokens=3, n=4), seed=1)])[0]
    assert (recorded.calls.count("read"), recorded.calls.count("copy")) == (4, 3)  # 29 tokens in chunks of 8
    assert [answer.cached for answer in answers] == [0, 29, 29, 29]
    recorded.calls.clear()
    more = engine.generate([Request([*prompt, *[5] * 10], Sampling(max_tokens=3))])[0][0]
    assert more.cached == 24 and recorded.calls.count("read") == 2 and recorded.calls.count("restore") == 1


def test_answers_wait_for_one_chunk_of_another_prompt_at_most(engine, monkeypatch):
    recorded = Recorder(engine, monkeypatch)
    first = engine.submit(Request([1, 2, 3], Sampling(max_tokens=40, temperature=0)))[0]
    next(iter(first))
    engine.submit(Request(np.random.default_rng(4).integers(1, V, 60).tolist(), Sampling(max_tokens=2)))[0].wait()
    first.wait()
    between = "".join({"read": "r", "forward": "s"}.get(name, "") for name in recorded.calls)
    assert "rr" not in between[between.index("s") :] and between.count("r") >= 8


@pytest.mark.parametrize("state", [State.WAITING, State.READING, State.WRITING])
def test_an_answer_that_is_cancelled_frees_its_row_in_every_state(engine, state, monkeypatch):
    reached, go_on = threading.Event(), threading.Event()
    turn = engine._turn

    def watched():
        if answer is not None and answer.state == state and not reached.is_set():
            reached.set()
            go_on.wait(20)
        turn()

    answer = None
    others = (
        [engine.submit(Request([7 + i], Sampling(max_tokens=50)))[0] for i in range(4)]
        if state == State.WAITING
        else []
    )
    monkeypatch.setattr(engine, "_turn", watched)
    answer = engine.submit(Request([*range(1, 40)], Sampling(max_tokens=20)))[0]
    assert reached.wait(20)
    written = len(answer.tokens)
    answer.cancel()
    go_on.set()
    assert answer.wait().finish_reason == "cancelled" and len(answer.tokens) == written
    for other in others:
        other.wait()
    assert engine.running == engine.waiting == 0


def test_an_answer_that_waits_behind_others_is_cancelled_before_they_have_a_row(model):
    with Engine(model, rows=1, chunk=8) as small:
        first, second, third = (
            small.submit(Request([i], Sampling(max_tokens=50, temperature=0)))[0] for i in (1, 2, 3)
        )
        third.cancel()
        assert third.wait().finish_reason == "cancelled" and third.tokens == []
        assert second.state == State.WAITING and len(first.tokens) < 50
        assert [len(answer.wait().tokens) for answer in (first, second)] == [50, 50]


def test_followers_of_a_cancelled_answer_read_the_prompt_themselves(engine, alone):
    request = dataclasses.replace(some_requests()[5], prompt=[*range(3, 50)])
    expected = bits(engine.generate([request])[0])
    for _ in range(3):
        answers = engine.submit(request)
        answers[0].cancel()
        assert bits([answer.wait() for answer in answers[1:]]) == expected[1:]


def test_more_than_may_wait_are_refused(model):
    with Engine(model, rows=1, chunk=8, most_waiting=2) as small:
        with pytest.raises(Busy, match="of at most 2"):
            for _ in range(5):
                small.submit(Request([1], Sampling(max_tokens=60)))
        assert small.waiting <= 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(prompt=[]), "prompt is empty"),
        (dict(prompt=[1] * 64), "64 tokens, and the context of 64 has no room"),
        (dict(prompt=[1, V]), f"token id {V}"),
        (dict(bias={-1: 0.0}), "token id -1"),
        (dict(seed=2**32), "seed 4294967296"),
        (dict(top=21), "21 likeliest tokens"),
    ],
)
def test_requests_that_do_not_fit_are_refused(engine, changes, message):
    with pytest.raises(UserError, match=message):
        engine.submit(dataclasses.replace(Request([1], Sampling()), **changes))


def test_an_answer_ends_with_the_context(engine):
    answer = engine.generate([Request([*range(1, 61)], Sampling(max_tokens=100, temperature=0))])[0][0]
    assert (len(answer.tokens), answer.finish_reason) == (4, "length")


def test_an_engine_that_fails_says_so_to_all(model, monkeypatch):
    with Engine(model, rows=1, chunk=8) as broken:
        monkeypatch.setattr(broken._device, "forward", lambda *_: 1 / 0)
        answers = [broken.submit(Request([1], Sampling(max_tokens=3)))[0] for _ in range(3)]
        for answer in answers:
            with pytest.raises(ZeroDivisionError):
                answer.wait()
        with pytest.raises(Ended, match="engine has failed: division by zero"):
            broken.submit(Request([1], Sampling()))


@pytest.mark.parametrize(
    "how",
    [
        dict(axes={"data": 1, "tensor": 4}),
        dict(cache="int8"),
        *(dict(quantize=kind) for kind in ("int8", "int4", "nf4")),
    ],
    ids=str,
)
def test_meshes_codes_and_caches_of_codes_change_nothing_of_it(how):
    requests = some_requests()[:6]
    model = language_model(**how)
    with Engine(model, rows=3, chunk=8) as other:
        single = [bits(other.generate([request])[0]) for request in requests]
        assert [bits(answers) for answers in other.generate(requests)] == single
    for request, answers in zip(requests, single, strict=True):
        if not request.bias and "cache" not in how:
            batch = decode.pad_prompts([request.prompt])
            with jax.set_mesh(model.mesh):
                key = jax.random.key(request.seed)
                found = decode.generate(model.model, model.params, *batch, key, request.sampling)
            told = [token.id for token in answers[0][0]]
            assert told == np.asarray(found.tokens)[0, 0, : len(told)].tolist()


def test_blocks_are_found_by_all_tokens_before_them_and_the_longest_unused_go_first():
    prefixes = Prefixes(blocks=3, size=2)
    assert prefixes.add([1, 2, 3, 4, 5]) == [(0, 0), (1, 1)]
    assert prefixes.find([1, 2, 3, 4, 9]) == [0, 1] and prefixes.find([9, 9, 3, 4]) == [] and prefixes.find([1]) == []
    assert prefixes.add([7, 7]) == [(0, 2)] and len(prefixes) == 3
    prefixes.find([1, 2])  # [3, 4] behind it is now the longest unused
    assert prefixes.add([8, 8]) == [(0, 1)]
    assert prefixes.find([1, 2, 3, 4]) == [0] and prefixes.find([7, 7]) == [2] and prefixes.find([8, 8]) == [1]
    assert [number for number, _ in prefixes.add([*range(20)])] == [0, 1, 2]  # as many as there are places
    assert Prefixes(blocks=0, size=2).add([1, 2]) == []
