"""Speculative decoding: the target's tokens and distribution whatever the draft, and what answers do not depend on."""

import dataclasses
import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from camelid.model import decode, speculative, storage
from camelid.model.config import LlamaConfig
from camelid.model.decode import pad_prompts, prompt_ids
from camelid.model.llama import Model, build
from camelid.model.sampling import Sampling, reshape_distribution, row_sampling
from camelid.model.sharding import make_mesh, shardings
from camelid.model.speculative import SpeculativeGeneration, generate, stream
from camelid.model.stopping import stops_of

NANO = dict(vocab_size=512, dim=64, n_layers=1, n_heads=4, n_kv_heads=2, ffn_dim=192, tied=True)  # a layer of nano-test
TINY = dict(vocab_size=96, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64)
SMALL = dict(vocab_size=96, dim=16, n_layers=1, n_heads=2, ffn_dim=32)
KEY = jax.random.key(7)


@functools.cache
def random_model(seed: int = 0, scale: float = 2.0, /, **shape):
    model = build(LlamaConfig.from_dict(shape))
    params = jax.jit(model.init)(jax.random.key(seed))
    return model, jax.tree.map(lambda x: x * scale, params)  # away from the uniform distribution of a fresh model


def near(params, noise: float):
    """The parameters with noise: a draft that agrees with them now and then."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    noisy = [x + noise * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, noisy)


def some_prompts(vocab: int, *lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(sum(lengths))
    return [rng.integers(1, vocab, length).tolist() for length in lengths]


def run(pair, prompts, sampling, k=3, **options) -> SpeculativeGeneration:
    tokens_BP, lengths_B = pad_prompts(prompts)
    return jax.device_get(generate(*pair, tokens_BP, lengths_B, KEY, sampling, k, **options))


def run_alone(target, params, prompts, sampling) -> decode.Generation:
    tokens_BP, lengths_B = pad_prompts(prompts)
    return jax.device_get(decode.generate(target, params, tokens_BP, lengths_B, KEY, sampling))


@functools.cache
def greedy_with_stops():
    """Prompts, a sampling whose stop tokens end some answers, and what the target says without a draft."""
    target, params = random_model(**NANO)
    prompts = some_prompts(512, 3, 32, 17, 9, 1)
    free = run_alone(target, params, prompts, Sampling(max_tokens=24, temperature=0)).tokens
    stops = (int(free[0, 0, 11]), int(free[1, 0, 0]), int(free[2, 0, 6]))
    sampling = Sampling(max_tokens=24, temperature=0, stop_ids=stops, pad_id=511)
    return prompts, sampling, run_alone(target, params, prompts, sampling)


def assert_same_answers(got: decode.Generation, want: decode.Generation) -> None:
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_array_equal(got.lengths, want.lengths)
    np.testing.assert_array_equal(got.stopped, want.stopped)
    np.testing.assert_allclose(got.logprobs, want.logprobs, atol=1e-4)
    np.testing.assert_allclose(got.sampling_logprobs, want.sampling_logprobs, atol=1e-4)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_greedy_answers_are_the_targets_own_whatever_the_draft(k):
    target, params = random_model(**NANO)
    _, other = random_model(1, **NANO)
    prompts, sampling, want = greedy_with_stops()
    assert want.stopped.any() and not want.stopped.all() and want.lengths.min() == 1
    accepted = {}
    for name, draft in {"other": other, "near": near(params, 0.03), "itself": params}.items():
        out = run((target, params, target, draft), prompts, sampling, k)
        assert_same_answers(out.answer, want)
        accepted[name] = out.accepted.sum() / out.proposed.sum()
    assert accepted["other"] < accepted["near"] < accepted["itself"]
    np.testing.assert_array_equal(out.passes, -(-(want.lengths - 1) // (k + 1)))  # of the last draft, the target itself


def test_a_draft_of_another_shape_counts_what_it_proposed():
    target, params = random_model(**NANO)
    small, small_params = random_model(1, **(SMALL | dict(vocab_size=512)))
    prompts, sampling, want = greedy_with_stops()
    out = run((target, params, small, small_params), prompts, sampling)
    assert_same_answers(out.answer, want)
    # A pass gives one token besides the proposals that are kept, but for the last, which a kept one may end.
    assert np.isin(out.passes + out.accepted - (want.lengths - 1), (0, 1)).all()
    full_passes = np.minimum(out.passes, (24 - want.lengths) // 3)
    assert (3 * full_passes <= out.proposed).all() and (out.proposed <= 3 * out.passes).all()


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_a_draft_in_codes_proposes_the_same_to_one_row_as_to_many(kind):
    """One row meets the codes as they are, and of tokens that come together each alone."""
    target, params = random_model(**NANO)
    codes = storage.quantize(params, storage.rules_of(kind))
    prompts, sampling, want = greedy_with_stops()
    many = run((target, params, target, codes), prompts, sampling)
    assert_same_answers(many.answer, want)
    alone = run((target, params, target, codes), prompts[1:2], sampling)
    np.testing.assert_array_equal(alone.answer.tokens[0], want.tokens[1])
    for count in ("passes", "proposed", "accepted"):
        np.testing.assert_array_equal(getattr(alone, count)[0], getattr(many, count)[1])


# One program serves the next tests.
SAMPLING = Sampling(max_tokens=12, n=2, temperature=0.9, top_k=30, top_p=0.95, min_p=0.01, repetition_penalty=1.3)
PROMPTS = some_prompts(96, 9, 3, 21, 5)


def test_a_draft_that_is_the_target_draws_what_the_target_draws_alone():
    target, params = random_model(**TINY)
    out = run((target, params, target, params), PROMPTS, SAMPLING)
    assert_same_answers(out.answer, run_alone(target, params, PROMPTS, SAMPLING))
    assert (out.passes == 3).all() and (out.accepted == out.proposed).all()


def test_log_probabilities_are_those_of_a_full_forward_pass():
    target, params = random_model(**TINY)
    out = run((target, params, target, near(params, 0.05)), PROMPTS, SAMPLING)
    assert 0 < out.accepted.sum() < out.proposed.sum()
    for n in range(2):
        answer = out.answer.tokens[0, n].tolist()
        logits_TV = np.asarray(target.apply(params, np.array([PROMPTS[0] + answer])))[0, len(PROMPTS[0]) - 1 : -1]
        seen_TV = np.array([np.isin(np.arange(96), PROMPTS[0] + answer[:t]) for t in range(12)])
        rows, _ = row_sampling([SAMPLING] * 12, 96)
        reshaped_TV = reshape_distribution(rows, jnp.array(logits_TV), jnp.array(seen_TV))
        for got, logits in ((out.answer.logprobs, logits_TV), (out.answer.sampling_logprobs, reshaped_TV)):
            want = np.asarray(jax.nn.log_softmax(logits, axis=-1))[np.arange(12), answer]
            np.testing.assert_allclose(got[0, n], want, atol=1e-4)


def test_answers_are_the_same_on_a_mesh():
    target, params = random_model(**TINY)
    draft = near(params, 0.05)
    want = run((target, params, target, draft), PROMPTS, SAMPLING)
    mesh = make_mesh(dict(data=2, fsdp=2, tensor=2))
    sharded = [jax.device_put(tree, shardings(tree, mesh)) for tree in (params, draft)]
    with jax.set_mesh(mesh):
        got = run((target, sharded[0], target, sharded[1]), PROMPTS, SAMPLING)
    assert_same_answers(got.answer, want.answer)
    np.testing.assert_array_equal(got.accepted, want.accepted)


def test_answers_do_not_depend_on_batch_padding_or_number_of_samples():
    target, params = random_model(**TINY)
    pair = (target, params, target, near(params, 0.05))
    many = run(pair, PROMPTS, SAMPLING)
    assert len({tuple(row) for row in many.answer.tokens.reshape(-1, 12).tolist()}) == 8
    assert len(set(many.passes.flat)) > 1  # rows advance by different numbers of tokens
    for b, prompt in enumerate(PROMPTS):
        wide_1P = np.full((1, 50), 77, np.int32)  # another padding, of another width
        wide_1P[0, : len(prompt)] = prompt
        alone = generate(*pair, wide_1P, np.array([len(prompt)]), KEY, dataclasses.replace(SAMPLING, n=1), 3)
        np.testing.assert_array_equal(alone.answer.tokens[0, 0], many.answer.tokens[b, 0])
        np.testing.assert_allclose(alone.answer.logprobs[0, 0], many.answer.logprobs[b, 0], atol=1e-4)
        for count in ("passes", "proposed", "accepted"):
            assert getattr(alone, count)[0, 0] == getattr(many, count)[b, 0]


# The distribution. A vocabulary of 8 and answers of 3 tokens: 512 answers, whose probabilities are known.

VOCAB, MANY = 8, 20_000
PROMPT = [3, 1, 6]


@functools.cache
def small_pair(**changes):
    target, params = random_model(
        2, 1.5, **(dict(vocab_size=VOCAB, dim=16, n_layers=1, n_heads=2, ffn_dim=16) | changes)
    )
    return target, params, target, near(params, 0.07)


def draw_many(pair, sampling: Sampling, k: int) -> SpeculativeGeneration:
    return jax.device_get(generate(*pair, np.array([PROMPT]), np.array([3]), KEY, sampling, k))


def next_probs(model: Model, params, sampling: Sampling) -> list[np.ndarray]:
    """The probabilities of the next token after each answer of 0, 1 and 2 tokens, in the order of counting."""
    tokens_RT = np.array([[*PROMPT, *pair] for pair in itertools.product(range(VOCAB), repeat=2)], np.int32)
    logits_RTV = jax.jit(model.apply)(params, tokens_RT)
    probs = []
    for length in range(3):
        rows = slice(None, None, VOCAB ** (2 - length))  # one of those that begin with each answer of this length
        seen_RV = (tokens_RT[rows, : 3 + length, None] == np.arange(VOCAB)).any(axis=1)
        of_rows, _ = row_sampling([sampling] * len(seen_RV), VOCAB)
        reshaped_RV = reshape_distribution(of_rows, logits_RTV[rows, 2 + length], jnp.array(seen_RV))
        probs.append(np.asarray(jax.nn.softmax(reshaped_RV, axis=-1), np.float64))
    return probs


def p_value_of_answers(pair, sampling: Sampling, k: int) -> float:
    """Of a chi-squared test of all answers of three tokens against the target's distribution."""
    first_1V, second_RV, third_RV = next_probs(*pair[:2], sampling)
    probs = ((first_1V.T * second_RV).reshape(-1, 1) * third_RV).reshape(-1)
    out = draw_many(pair, sampling, k)
    counts = np.bincount(out.answer.tokens[0] @ np.array([VOCAB**2, VOCAB, 1]), minlength=VOCAB**3)
    assert counts[probs == 0].sum() == 0
    rare = probs * MANY < 5
    observed, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, probs * MANY))
    if expected[-1] < 5:
        observed, expected = observed[:-1], expected[:-1]
    return stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), df=len(observed) - 1)


PLAIN = Sampling(max_tokens=3, n=MANY)
SHAPES_OF_DISTRIBUTIONS = {
    "plain": (PLAIN, 2),
    "temperature and top_p": (Sampling(max_tokens=3, n=MANY, temperature=0.7, top_p=0.9), 2),
    "penalty and top_k": (Sampling(max_tokens=3, n=MANY, repetition_penalty=1.5, top_k=6), 1),
}


@pytest.mark.parametrize("case", SHAPES_OF_DISTRIBUTIONS)
def test_answers_have_exactly_the_targets_distribution(case):
    assert p_value_of_answers(small_pair(), *SHAPES_OF_DISTRIBUTIONS[case]) > 1e-4


WRONG_RULES = {
    "every proposal is kept": ("accepts", lambda uniform, p, q: jnp.ones(p.shape, bool)),
    "a rejected one is replaced from p": ("residual", lambda p, q: p),
}


@pytest.mark.parametrize("rule", WRONG_RULES)
def test_wrong_rules_fail_that_test(rule, monkeypatch):
    name, wrong = WRONG_RULES[rule]
    monkeypatch.setattr(speculative, name, wrong)
    # Configs of their own: nothing that was compiled before is found, and nothing wrong is left behind.
    norm_eps = 2e-5 + 1e-6 * [*WRONG_RULES].index(rule)
    assert p_value_of_answers(small_pair(norm_eps=norm_eps), PLAIN, 2) < 1e-12


def test_the_first_proposal_is_accepted_as_often_as_the_distributions_overlap():
    pair = small_pair()
    out = draw_many(pair, PLAIN, 2)
    p, q = (next_probs(*pair[i : i + 2], PLAIN)[1] for i in (0, 2))
    overlap = np.minimum(p, q).sum(axis=1)  # by the first token, which is the target's
    assert overlap.min() > 0.1 and overlap.max() < 0.9
    kept = out.passes[0] == 1  # with a rejected first proposal, two passes are needed for the two tokens left
    tried = np.bincount(out.answer.tokens[0, :, 0], minlength=VOCAB)
    accepted = np.bincount(out.answer.tokens[0, :, 0], kept, minlength=VOCAB)
    deviations = (accepted - tried * overlap) / np.sqrt(tried * overlap * (1 - overlap))
    assert tried.min() > 100 and np.abs(deviations).max() < 4


def test_a_stream_yields_what_generate_gives():
    target, params = random_model(**TINY)
    pair = (target, params, target, near(params, 0.05))
    sampling = Sampling(max_tokens=12, stop_ids=tuple(range(20)))
    lengths = set()
    for prompt in PROMPTS:
        answer = run(pair, [prompt], sampling).answer
        assert list(stream(*pair, prompt, KEY, sampling, 3)) == answer.tokens[0, 0, : answer.lengths[0, 0]].tolist()
        lengths.add(int(answer.lengths[0, 0]))
    assert len(lengths) > 1


def test_the_loop_ends_with_the_last_answer(monkeypatch):
    calls = []
    original = speculative._judge

    def counted(*args):
        jax.debug.callback(lambda: calls.append(1))
        return original(*args)

    monkeypatch.setattr(speculative, "_judge", counted)
    target, params = random_model(**SMALL, norm_eps=1.1e-5)  # a config of its own: nothing compiled before is found
    prompts = some_prompts(96, 4, 11)
    free = run_alone(target, params, prompts, Sampling(max_tokens=40, temperature=0)).tokens
    sampling = Sampling(max_tokens=40, temperature=0, stop_ids=(int(free[0, 0, 6]), int(free[1, 0, 3])))
    out = run((target, params, target, near(params, 0.05)), prompts, sampling)
    jax.effects_barrier()
    assert len(calls) == out.passes.max() < 10


def test_generate_runs_inside_another_compiled_function():
    target, params = random_model(**TINY)
    tokens_BP, lengths_B = pad_prompts(PROMPTS)

    def both(params, *args):
        return generate(target, params, target, params, *args[:2], KEY, SAMPLING, 3, *args[2:])

    got = jax.jit(both)(params, tokens_BP, lengths_B, prompt_ids(tokens_BP, lengths_B))
    assert_same_answers(jax.device_get(got.answer), run_alone(target, params, PROMPTS, SAMPLING))
    with pytest.raises(ValueError, match="prompt_ids_B"):
        jax.jit(both)(params, tokens_BP, lengths_B)


def test_the_loops_copy_neither_weights_nor_cache():
    config = LlamaConfig.from_dict(TINY | dict(dim=48, n_heads=6, n_kv_heads=3, head_dim=8, tied=True))
    tokens_BP, lengths_B = pad_prompts(some_prompts(96, 9, 9, 9))
    weights, sampling = (build(config).abstract_params,) * 2, Sampling(max_tokens=8, temperature=0)
    request = decode.make_request(config, weights, tokens_BP, lengths_B, KEY, sampling, None, None)
    sizes = speculative.Sizes(n=1, max_tokens=8, k=2, by_blocks=False)
    begin = jax.jit(speculative._start, static_argnums=(0, 1))
    decoders, state = begin.eval_shape((config, config), sizes, weights, *request.arrays)

    @jax.jit
    def go_on(decoders, tables, state):
        one_round = functools.partial(speculative._one_round, 2, decoders, tables)
        return jax.lax.while_loop(lambda state: jnp.any(state.rows.running_R), one_round, state)

    text = go_on.lower(decoders, request.arrays[-2], state).compile().as_text()
    computations = dict(re.findall(r"^%([\w.-]+) \(.*?\{\n(.*?)^\}", text, re.DOTALL | re.MULTILINE))
    bodies = [computations[name] for name in re.findall(r"body=%([\w.-]+)", text)]
    results = [result for body in bodies for result in re.findall(r"%(\S+) = \w+\[([\d,]+)\]", body)]
    one_cache = 3 * 8 * (32 + 8 + 2)  # smaller than any matrix, larger than any activation
    large = [name for name, shape in results if math.prod(map(int, shape.split(","))) >= one_cache]
    assert large, "the loops were not found"
    assert [name for name in large if "copy" in name or "transpose" in name] == []


LETTERS = [bytes(97 + i % 3 for i in range(first, first + length)) for length in (1, 2, 3, 0) for first in range(24)]


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_stop_strings_limits_and_ids_without_a_token_are_those_of_the_target_alone(noise):
    target, params = random_model(**TINY)
    pair = target, params, target, near(params, noise)
    prompts, limits_B = some_prompts(96, 3, 32, 17, 9), np.array([24, 5, 0, 24])
    sampling = Sampling(
        max_tokens=24, temperature=0, stops=stops_of([b"bcabc", b"cca"], LETTERS, 96), unused=((90, 128), (3, 9))
    )
    tokens_BP, lengths_B = pad_prompts(prompts)
    want = decode.generate(target, params, tokens_BP, lengths_B, KEY, sampling, limits_B=limits_B)
    got = run(pair, prompts, sampling, limits_B=limits_B)
    assert_same_answers(got.answer, jax.device_get(want))
    assert want.stopped.any() and want.lengths.max() > 2
    assert not np.isin(want.tokens, [*range(90, 96), *range(3, 9)]).any()
    b = int(np.argmax(np.asarray(want.stopped[:, 0])))
    limit = int(limits_B[b])
    assert list(stream(*pair, prompts[b], KEY, sampling, 3, limit)) == want.tokens[b, 0, : want.lengths[b, 0]].tolist()


def test_what_cannot_be_is_refused():
    target, params = random_model(**TINY)
    other, other_params = random_model(**(TINY | dict(vocab_size=64)))
    tokens_BP, lengths_B = pad_prompts([[1, 2]])
    with pytest.raises(ValueError, match="96 tokens, the draft's 64"):
        generate(target, params, other, other_params, tokens_BP, lengths_B, KEY, Sampling())
    with pytest.raises(ValueError, match="k = 0"):
        generate(target, params, target, params, tokens_BP, lengths_B, KEY, Sampling(), 0)
    with pytest.raises(ValueError, match="empty"):
        generate(target, params, target, params, tokens_BP, np.array([0]), KEY, Sampling())
    with pytest.raises(ValueError, match="one answer"):
        next(stream(target, params, target, params, [1], KEY, Sampling(n=2)))
