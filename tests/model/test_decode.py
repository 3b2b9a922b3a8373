"""Cached decoding against full forward passes, stops, and what answers may not depend on."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from camelid.model import decode, decoder
from camelid.model.config import LlamaConfig
from camelid.model.decode import (
    Generation,
    _generate,
    generate,
    generate_batch,
    make_request,
    pad_prompts,
    prompt_ids,
    stream,
)
from camelid.model.llama import build
from camelid.model.rows import empty_rows, insert, make_decoder, prefill, prompt_keys, step
from camelid.model.sampling import Sampling, reshape_distribution, row_sampling
from camelid.model.sharding import make_mesh, shardings
from camelid.model.stopping import stops_of

TINY = dict(vocab_size=96, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64, tied=True)
KEY = jax.random.key(7)


@functools.cache
def tiny(**changes):
    model = build(LlamaConfig.from_dict(TINY | changes))
    params = jax.jit(model.init)(jax.random.key(0))
    return model, jax.tree.map(lambda x: x * 2, params)  # away from the uniform distribution of a fresh model


def some_prompts(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(sum(lengths))
    return [rng.integers(1, TINY["vocab_size"], length).tolist() for length in lengths]


def run(model, params, prompts, sampling, **options) -> Generation:
    tokens_BP, lengths_B = pad_prompts(prompts)
    return jax.device_get(generate(model, params, tokens_BP, lengths_B, KEY, sampling, **options))


def chosen_log_probs(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return logits[np.arange(len(tokens)), tokens] - np.log(np.exp(logits.astype(np.float64)).sum(axis=-1))


def full_logits(model, params, prompt, answer) -> np.ndarray:
    """Logits of each answer token from one uncached pass over prompt and answer."""
    tokens_1T = np.zeros((1, 64), np.int32)  # what comes later is not seen: one shape, compiled once
    tokens_1T[0, : len(prompt) + len(answer)] = [*prompt, *answer]
    return np.asarray(apply_of(model.config)(params, tokens_1T))[0, len(prompt) - 1 :][: len(answer)]


@functools.cache
def apply_of(config: LlamaConfig):
    return jax.jit(build(config).apply)


@pytest.mark.parametrize(
    ("shape", "lengths"),
    [
        (dict(), (3, 32, 17)),
        (dict(tied=False, n_kv_heads=4), (5,)),
        (dict(n_kv_heads=1, head_dim=16), (40, 2)),
    ],
    ids=str,
)
def test_cached_decoding_equals_a_full_forward_pass(shape, lengths):
    model, params = tiny(**shape)
    prompts = some_prompts(*lengths)
    out = run(model, params, prompts, Sampling(max_tokens=9, n=2))
    for b, prompt in enumerate(prompts):
        logits = full_logits(model, params, prompt, out.tokens[b, 0])
        np.testing.assert_allclose(out.logprobs[b, 0], chosen_log_probs(logits, out.tokens[b, 0]), atol=1e-4)


def test_greedy_decoding_takes_the_likeliest_of_a_full_forward_pass():
    model, params = tiny()
    prompts = some_prompts(6, 2)
    out = run(model, params, prompts, Sampling(max_tokens=9, temperature=0))
    for b, prompt in enumerate(prompts):
        logits = full_logits(model, params, prompt, out.tokens[b, 0])
        np.testing.assert_array_equal(out.tokens[b, 0], logits.argmax(axis=-1))
        np.testing.assert_allclose(out.logprobs[b, 0], chosen_log_probs(logits, out.tokens[b, 0]), atol=1e-4)


def test_sampling_log_probabilities_follow_the_prompt_and_the_answer_so_far():
    model, params = tiny()
    sampling = Sampling(max_tokens=12, temperature=0.8, top_k=30, top_p=0.9, min_p=0.01, repetition_penalty=1.5)
    (prompt,) = some_prompts(6)
    out = run(model, params, [prompt], sampling)
    answer = out.tokens[0, 0].tolist()
    logits = full_logits(model, params, prompt, answer)
    seen_TV = np.array([np.isin(np.arange(TINY["vocab_size"]), prompt + answer[:t]) for t in range(12)])
    rows, _ = row_sampling([sampling] * 12, TINY["vocab_size"])
    reshaped_TV = np.asarray(reshape_distribution(rows, jnp.array(logits), jnp.array(seen_TV)))
    np.testing.assert_allclose(out.sampling_logprobs[0, 0], chosen_log_probs(reshaped_TV, answer), atol=1e-4)
    assert np.abs(out.logprobs - out.sampling_logprobs).max() > 0.1


def test_an_answer_ends_with_its_first_stop_token_and_is_padded_after_it():
    model, params = tiny()
    prompts = some_prompts(3, 32, 17)
    free = run(model, params, prompts, Sampling(max_tokens=9, n=2))
    stops = tuple({int(free.tokens[0, 0, 4]), int(free.tokens[1, 1, 0])})
    out = run(model, params, prompts, Sampling(max_tokens=9, n=2, stop_ids=stops, pad_id=95))
    for index in np.ndindex(3, 2):
        hits = np.flatnonzero(np.isin(free.tokens[index], stops))
        length = hits[0] + 1 if len(hits) else 9
        assert out.lengths[index] == length
        assert out.stopped[index] == (len(hits) > 0)
        np.testing.assert_array_equal(out.tokens[index][:length], free.tokens[index][:length])
        np.testing.assert_array_equal(out.tokens[index][length:], 95)
        np.testing.assert_allclose(out.logprobs[index][:length], free.logprobs[index][:length], atol=1e-5)
        assert not out.logprobs[index][length:].any() and not out.sampling_logprobs[index][length:].any()
    assert out.lengths[1, 1] == 1 and out.stopped[1, 1]


def test_the_loop_ends_with_the_last_answer(monkeypatch):
    calls = []
    original = decoder.Decoder.__call__

    def counted(self, *args):
        jax.debug.callback(lambda: calls.append(1))
        return original(self, *args)

    monkeypatch.setattr(decoder.Decoder, "__call__", counted)
    model, params = tiny(norm_eps=1.1e-5)  # a config of its own: nothing compiled before is found
    prompts = some_prompts(4, 11)
    free = run(model, params, prompts, Sampling(max_tokens=40))
    jax.effects_barrier()
    assert len(calls) == 39
    calls.clear()
    stops = tuple({int(free.tokens[0, 0, 6]), int(free.tokens[1, 0, 3])})
    out = run(model, params, prompts, Sampling(max_tokens=40, stop_ids=stops))
    jax.effects_barrier()
    assert len(calls) == out.lengths.max() - 1 < 10


def test_answers_do_not_depend_on_batch_padding_or_number_of_samples():
    model, params = tiny()
    prompts = some_prompts(9, 3, 21)
    many = run(model, params, prompts, Sampling(max_tokens=10, n=8))
    assert len({tuple(row) for row in many.tokens.reshape(-1, 10).tolist()}) == 24
    for b, prompt in enumerate(prompts):
        wide_1P = np.full((1, 50), 77, np.int32)  # another padding, of another width
        wide_1P[0, : len(prompt)] = prompt
        alone = generate(model, params, wide_1P, np.array([len(prompt)]), KEY, Sampling(max_tokens=10))
        np.testing.assert_array_equal(alone.tokens[0, 0], many.tokens[b, 0])
        np.testing.assert_allclose(alone.logprobs[0, 0], many.logprobs[b, 0], atol=1e-4)


def test_keys_and_prompt_ids_change_the_answers():
    model, params = tiny()
    tokens_BP, lengths_B = pad_prompts(some_prompts(9) * 2)
    sampling = Sampling(max_tokens=10)
    same = generate(model, params, tokens_BP, lengths_B, KEY, sampling)
    told = generate(model, params, tokens_BP, lengths_B, KEY, sampling, np.array([1, 2], np.uint32))
    other = generate(model, params, tokens_BP, lengths_B, jax.random.key(8), sampling)
    np.testing.assert_array_equal(same.tokens[0], same.tokens[1])
    assert (told.tokens[0] != told.tokens[1]).any()
    assert (same.tokens != other.tokens).any()


MESHES = [dict(data=8), dict(data=2, fsdp=2, tensor=2), dict(data=2, fsdp=2, context=2)]


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_answers_are_the_same_on_every_mesh(axes):
    model, params = tiny(tied=False)
    prompts = some_prompts(9, 3, 21, 5)
    sampling = Sampling(max_tokens=8, n=2, top_p=0.95, repetition_penalty=1.1)
    want = run(model, params, prompts, sampling)
    mesh = make_mesh(axes)
    sharded = jax.device_put(params, shardings(params, mesh))
    with jax.set_mesh(mesh):
        got = run(model, sharded, prompts, sampling)
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_allclose(got.logprobs, want.logprobs, atol=1e-4)
    np.testing.assert_allclose(got.sampling_logprobs, want.sampling_logprobs, atol=1e-4)


def test_a_stream_yields_what_generate_gives_up_to_the_stop():
    model, params = tiny()
    (prompt,) = some_prompts(13)
    free = run(model, params, [prompt], Sampling(max_tokens=12)).tokens[0, 0].tolist()
    stop = free[7]
    stopped = list(stream(model, params, prompt, KEY, Sampling(max_tokens=12, stop_ids=(stop,))))
    assert stopped == free[: free.index(stop) + 1]


LETTERS = [bytes(97 + i % 3 for i in range(first, first + length)) for length in (1, 2, 3, 0) for first in range(24)]
"""What each of the 96 tokens writes: one to three of the letters a, b and c, or nothing."""


def slow_end(tokens, strings) -> int | None:
    """How many tokens there are when a string is complete in their text."""
    texts = (b"".join(LETTERS[i] for i in tokens[: t + 1]) for t in range(len(tokens)))
    return next((t + 1 for t, text in enumerate(texts) if any(string in text for string in strings)), None)


def test_an_answer_ends_with_the_token_that_completes_a_stop_string():
    model, params = tiny()
    prompts, strings = some_prompts(3, 32, 17), [b"bcab", b"ccc"]
    free = run(model, params, prompts, Sampling(max_tokens=9, n=2))
    sampling = Sampling(max_tokens=9, n=2, stops=stops_of(strings, LETTERS, 96))
    out = run(model, params, prompts, sampling)
    ends = [slow_end(free.tokens[index], strings) for index in np.ndindex(3, 2)]
    assert None in ends and set(ends) - {None, 1, 9}
    for index, end in zip(np.ndindex(3, 2), ends, strict=True):
        length = end or 9
        assert (out.lengths[index], out.stopped[index]) == (length, end is not None)
        np.testing.assert_array_equal(out.tokens[index][:length], free.tokens[index][:length])
        np.testing.assert_allclose(out.sampling_logprobs[index][:length], free.sampling_logprobs[index][:length], 1e-5)
        assert not out.tokens[index][length:].any()
    streamed = stream(model, params, prompts[0], KEY, dataclasses.replace(sampling, n=1))
    assert list(streamed) == out.tokens[0, 0, : out.lengths[0, 0]].tolist()
    at_its_limit = stream(model, params, prompts[0], KEY, dataclasses.replace(sampling, n=1), limit=2)
    assert list(at_its_limit) == out.tokens[0, 0, :2].tolist()
    compiled_before = programs()._cache_size()
    other = run(model, params, prompts, dataclasses.replace(sampling, stops=stops_of([b"a"], LETTERS, 96)))
    assert programs()._cache_size() == compiled_before  # other strings are no other program
    ends = [slow_end(free.tokens[index], [b"a"]) or 9 for index in np.ndindex(3, 2)]
    assert other.lengths.ravel().tolist() == ends


def programs():
    """What `generate` compiles, for all shapes."""
    return decode.compiled(_generate, (), static_argnums=(0, 1))


ANOTHER = [
    dict(temperature=0.7),
    dict(top_k=5),
    dict(top_p=0.8),
    dict(min_p=0.1),
    dict(repetition_penalty=1.4),
    dict(stop_ids=(3, 5, 8)),
    dict(pad_id=9),
    dict(temperature=1.2, top_k=20, top_p=0.95, min_p=0.02, repetition_penalty=1.1, stop_ids=(1, 2)),
]


def test_no_setting_of_a_sampling_compiles_another_program():
    model, params = tiny()
    prompts, steps = some_prompts(3, 32), decode.compiled(step, (), donate_argnums=2)

    def answers_of(**changes):
        sampling = Sampling(**(dict(max_tokens=9) | changes))
        out = run(model, params, prompts, sampling)
        streamed = list(stream(model, params, prompts[0], KEY, sampling))
        assert streamed == out.tokens[0, 0, : out.lengths[0, 0]].tolist()
        return out.tokens.tobytes() + out.sampling_logprobs.tobytes()

    different = {answers_of(), answers_of(temperature=0), answers_of(top_k=3)}  # three programs, by what they leave out
    before = programs()._cache_size(), steps._cache_size()
    different |= {answers_of(**changes) for changes in ANOTHER}
    run(model, params, prompts, Sampling(max_tokens=9), limits_B=np.array([2, 5]))
    run(model, params, prompts, [Sampling(max_tokens=9), Sampling(max_tokens=4, temperature=0)])
    assert (programs()._cache_size(), steps._cache_size()) == before
    assert len(different) >= 9  # the settings were not ignored: but for pad_id and stop ids that were not drawn


def test_prompts_with_settings_and_keys_of_their_own_get_the_answers_that_each_gets_alone():
    model, params = tiny()
    prompts = some_prompts(9, 3, 21, 5, 17)
    strings = stops_of([b"bcab"], LETTERS, 96), stops_of([b"ca", b"bb"], LETTERS, 96)
    settings = [
        Sampling(max_tokens=20, stops=strings[0]),
        Sampling(max_tokens=20, temperature=0, repetition_penalty=1.3),
        Sampling(max_tokens=12, temperature=0.8, top_k=10, stop_ids=tuple(range(20))),
        Sampling(max_tokens=20, top_p=0.7, stops=strings[1]),
        Sampling(max_tokens=3, min_p=0.05),
    ]
    keys = [jax.random.key(seed) for seed in (1, 2, 3, 4, 5)]
    tokens_BP, lengths_B = pad_prompts(prompts)
    together = jax.device_get(generate(model, params, tokens_BP, lengths_B, jnp.stack(keys), settings))
    assert together.stopped.any() and len(set(together.lengths.flat)) > 2
    for b, (prompt, key, sampling) in enumerate(zip(prompts, keys, settings, strict=True)):
        alone = generate(model, params, *pad_prompts([prompt]), key, sampling)
        length = int(alone.lengths[0, 0])
        assert (together.lengths[b, 0], together.stopped[b, 0]) == (length, alone.stopped[0, 0])
        np.testing.assert_array_equal(together.tokens[b, 0, :length], alone.tokens[0, 0, :length])
        for name in ("logprobs", "sampling_logprobs"):
            got, want = (getattr(out, name) for out in (together, alone))
            np.testing.assert_allclose(got[b, 0, :length], want[0, 0, :length], atol=1e-4)


@pytest.mark.parametrize("changes", [dict(), dict(cache="int8", window=6)], ids=str)
def test_requests_that_join_and_leave_between_steps_get_the_tokens_of_generate(changes):
    model, params = tiny(**changes)
    prompts = some_prompts(9, 3, 30, 5)
    settings = [Sampling(max_tokens=m, top_p=0.9, temperature=t) for m, t in ((11, 1.0), (4, 0.7), (9, 0.0), (6, 1.3))]
    network = make_decoder(model.config, 2, False, params)
    rows_of_all, tables = row_sampling(settings, 96, for_any=True)
    read = jax.jit(prefill, static_argnames=("slots",))
    put, advance = jax.jit(insert, donate_argnums=0), jax.jit(step, donate_argnums=2)
    compiled_before = put._cache_size(), advance._cache_size()

    def join(i: int):
        tokens_1P, lengths_1 = pad_prompts([prompts[i]])
        keys_1 = prompt_keys(KEY, prompt_ids(tokens_1P, lengths_1))
        own = jax.tree.map(lambda x: x[i : i + 1], rows_of_all)
        return read(params, network, tables, tokens_1P, lengths_1, keys_1, own, slots=tokens_1P.shape[1])

    rows = empty_rows(join(0)[0], 2, 48)  # two places for four requests
    assert not rows.running_R.any()
    waiting, places, said = [0, 1, 2, 3], [None, None], {}
    while waiting or any(place is not None for place in places):
        for place, request in enumerate(places):
            if request is None and waiting:
                places[place] = waiting.pop(0)
                new, drawn = join(places[place])
                rows, said[places[place]] = put(rows, new, place), drawn.tokens_RT[0].tolist()
        rows, drawn = advance(network, tables, rows)
        for place, request in enumerate(places):
            if request is not None:
                said[request] += drawn.tokens_RT[place, : int(drawn.counts_R[place])].tolist()
                places[place] = request if rows.running_R[place] else None
    assert (put._cache_size(), advance._cache_size()) == tuple(size + 1 for size in compiled_before)
    for i, (prompt, sampling) in enumerate(zip(prompts, settings, strict=True)):
        alone = generate(model, params, *pad_prompts([prompt]), KEY, sampling)
        assert said[i] == alone.tokens[0, 0].tolist()


def test_each_row_ends_at_its_own_limit_and_changes_no_other():
    model, params = tiny()
    prompts, limits_B = some_prompts(3, 32, 17), np.array([9, 0, 4])
    free = run(model, params, prompts, Sampling(max_tokens=9, n=2))
    out = run(model, params, prompts, Sampling(max_tokens=9, n=2), limits_B=limits_B)
    np.testing.assert_array_equal(out.lengths, [[9, 9], [0, 0], [4, 4]])
    assert not out.stopped.any()
    for b, limit in enumerate(limits_B):
        np.testing.assert_array_equal(out.tokens[b, :, :limit], free.tokens[b, :, :limit])
        assert not out.tokens[b, :, limit:].any() and not out.logprobs[b, :, limit:].any()


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_ids_without_a_token_are_never_drawn(temperature):
    model, params = tiny()
    (prompt,) = some_prompts(6)
    sampling = Sampling(max_tokens=16, temperature=temperature, unused=((3, 40), (90, 128)))  # of 96 rows
    out = run(model, params, [prompt], sampling)
    logits = full_logits(model, params, prompt, out.tokens[0, 0])
    is_unused = np.isin(np.arange(96), [*range(3, 40), *range(90, 96)])
    left = np.where(is_unused, -np.inf, logits)
    np.testing.assert_allclose(out.logprobs[0, 0], chosen_log_probs(logits, out.tokens[0, 0]), atol=1e-4)
    if temperature == 0:
        np.testing.assert_array_equal(out.tokens[0, 0], left.argmax(axis=-1))
        assert is_unused[logits.argmax(axis=-1)].any()
    else:
        assert not is_unused[out.tokens[0, 0]].any()
        want = chosen_log_probs(left / temperature, out.tokens[0, 0])
        np.testing.assert_allclose(out.sampling_logprobs[0, 0], want, atol=1e-4)


def test_many_prompts_come_back_in_their_order():
    model, params = tiny()
    prompts = some_prompts(40, 3, 9, 33, 12)
    sampling = Sampling(max_tokens=6, n=2, stop_ids=(5, 6, 7))
    answers = generate_batch(functools.partial(generate, model, params), prompts, sampling, seed=7, batch_size=2)
    on_mesh = generate_batch(
        functools.partial(generate, model, params), prompts, sampling, seed=7, batch_size=3, mesh=make_mesh({"data": 8})
    )
    assert answers == on_mesh
    out = run(model, params, prompts, sampling)
    for b, i in np.ndindex(5, 2):
        assert answers[b][i] == out.tokens[b, i, : out.lengths[b, i]].tolist()


def test_a_caller_on_the_mesh_and_one_beside_it_share_a_program():
    model, params = tiny(vocab_size=80)
    mesh, sampling, prompts = make_mesh({"data": 8}), Sampling(max_tokens=5, temperature=0.0), some_prompts(4, 9)
    draw = functools.partial(generate_batch, functools.partial(generate, model, params), prompts, sampling, mesh=mesh)
    with jax.set_mesh(mesh):
        answers = draw(batch_size=8)
    before = programs()._cache_size()
    assert draw(batch_size=8) == answers
    assert programs()._cache_size() == before


def test_generate_runs_inside_another_compiled_function():
    model, params = tiny()
    tokens_BP, lengths_B = pad_prompts(some_prompts(9, 3))
    sampling = Sampling(max_tokens=6)
    ids = prompt_ids(tokens_BP, lengths_B)
    want = generate(model, params, tokens_BP, lengths_B, KEY, sampling)
    got = jax.jit(lambda p, *args: generate(model, p, *args[:2], KEY, sampling, args[2]))(
        params, tokens_BP, lengths_B, ids
    )
    np.testing.assert_array_equal(got.tokens, want.tokens)
    with pytest.raises(ValueError, match="prompt_ids_B"):
        jax.jit(lambda p, *args: generate(model, p, *args, KEY, sampling))(params, tokens_BP, lengths_B)


def test_bfloat16_stays_near_its_own_full_pass():
    model, params = tiny(dtype="bfloat16")
    (prompt,) = some_prompts(9)
    out = run(model, params, [prompt], Sampling(max_tokens=8))
    answer = out.tokens[0, 0]
    logits = full_logits(model, params, prompt, answer)
    np.testing.assert_allclose(out.logprobs[0, 0], chosen_log_probs(logits, answer), atol=0.1)


@pytest.mark.parametrize("kind", [None, "int8"])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_loop_copies_neither_weights_nor_cache(rows, kind):
    config = LlamaConfig.from_dict(TINY | dict(dim=48, n_heads=6, n_kv_heads=3, head_dim=8, cache=kind))
    tokens_BP, lengths_B = pad_prompts(some_prompts(*[9] * rows))
    params = build(config).abstract_params
    request = make_request(config, params, tokens_BP, lengths_B, KEY, Sampling(max_tokens=8, temperature=0), None, None)
    lowered = jax.jit(_generate, static_argnums=(0, 1)).lower(config, request.sizes(()), params, *request.arrays)
    text = lowered.compile().as_text()
    computations = dict(re.findall(r"^%([\w.-]+) \(.*?\{\n(.*?)^\}", text, re.DOTALL | re.MULTILINE))
    body = max((computations[name] for name in re.findall(r"body=%([\w.-]+)", text)), key=len)
    results = re.findall(r"%(\S+) = \w+\[([\d,]+)\]", body)
    one_cache = 3 * 8 * (32 + 8)  # smaller than any matrix, larger than any activation
    large = [name for name, shape in results if math.prod(map(int, shape.split(","))) >= one_cache]
    assert large, "the loop was not found"
    assert [name for name in large if "copy" in name or "transpose" in name] == []


def test_settings_that_do_not_fit_together_are_refused():
    model, params = tiny()
    batch = pad_prompts(some_prompts(3, 4))
    with pytest.raises(ValueError, match="3 settings for 2 prompts"):
        generate(model, params, *batch, KEY, [Sampling()] * 3)
    with pytest.raises(ValueError, match="sampling n"):
        generate(model, params, *batch, KEY, [Sampling(n=1), Sampling(n=2)])


def test_an_empty_prompt_is_refused():
    model, params = tiny()
    with pytest.raises(ValueError, match="empty"):
        pad_prompts([[1], []])
    with pytest.raises(ValueError, match="empty"):
        generate(model, params, np.zeros((1, 4), np.int32), np.array([0]), KEY, Sampling(max_tokens=2))
