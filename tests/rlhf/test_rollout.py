"""Rollouts row by row against a network in numpy, and what they must not depend on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from camelid.model.llama import output_kernel
from camelid.model.logprobs import head_kl, head_logprobs
from camelid.model.sampling import Sampling
from camelid.model.stopping import stops_of
from camelid.rlhf import rollout
from camelid.tests.rlhf.numpy_llama import STOPS, VOCAB, distributions, policy, prompts, real_tokens, sampling

LENGTHS = (3, 11, 7, 16, 1, 9, 12, 5)


@functools.cache
def roll_and_score(dtype="float32"):
    model, _ = policy(dtype)

    def both(params, batch, key):
        rows = rollout.roll_out(model, params, batch, key, sampling())
        return rows, rollout.score_answers(model, params, rows, sampling().temperature)

    return jax.jit(both)


@functools.cache
def rolled(dtype="float32", width=16, order=None, seed=3):
    """(batch, rollout, scores): answers to prompts of `LENGTHS` padded to `width`, the prompts in another order."""
    _, params = policy(dtype)
    batch = prompts(LENGTHS, width)
    if order is not None:
        batch = {name: x[list(order)] for name, x in batch.items()}
    return batch, *jax.device_get(roll_and_score(dtype)(params, batch, jax.random.key(seed)))


def test_a_row_is_its_prompt_ending_at_the_same_slot_and_its_answer_up_to_the_first_stop_token():
    batch, rows, _ = rolled()
    P, M, n = 16, 12, 2
    assert rows.tokens_RT.shape == (len(LENGTHS) * n, P + M)
    for r in range(len(LENGTHS) * n):
        length, answer = LENGTHS[r // n], rows.tokens_RT[r, P:]
        stops = [i for i, token in enumerate(answer) if token in STOPS]
        said = stops[0] + 1 if stops else M
        np.testing.assert_array_equal(rows.tokens_RT[r, P - length : P], batch["tokens"][r // n, :length])
        assert np.all(rows.tokens_RT[r, : P - length] == 0) and np.all(answer[said:] == 0)
        np.testing.assert_array_equal(rows.mask_RM[r], np.arange(M) < said)
        np.testing.assert_array_equal(
            rows.segment_ids_RT[r], [0] * (P - length) + [1] * (length + said) + [0] * (M - said)
        )
        np.testing.assert_array_equal(rows.positions_RT[r, P - length : P + said], np.arange(length + said))
        assert rows.stopped_R[r] == bool(stops)
        assert rows.index_R[r] == r // n
        assert np.all(rows.sampling_logprobs_RM[r, said:] == 0)
    np.testing.assert_array_equal(rows.lengths_R, rows.mask_RM.sum(axis=1))
    np.testing.assert_array_equal(rows.answers_RM, rows.tokens_RT[:, P:])
    # The cases there are: answers that end early, one that ends not at all, and no two to a prompt that are the same.
    assert rows.stopped_R.min() == 0 and rows.stopped_R.mean() > 0.3 and len(set(rows.lengths_R.tolist())) > 3
    assert not np.any(np.all(rows.tokens_RT[0::2] == rows.tokens_RT[1::2], axis=1))


def slow_scores(rows, temperature):
    """Log-probability and entropy of each answer's tokens, each row alone and without padding."""
    model, params = policy()
    for prompt, answer in real_tokens(rows):
        logp_TV = distributions(model.config, params, np.concatenate([prompt, answer]), temperature)
        before_mV = logp_TV[len(prompt) - 1 : -1]
        yield before_mV[np.arange(len(answer)), answer], -(np.exp(before_mV) * before_mV).sum(axis=-1)


def test_a_stop_string_ends_a_rollout_and_ids_without_a_token_have_no_share_in_scores():
    model, params = policy()
    token_bytes = [bytes([97 + i % 3, 97 + i // 3 % 3]) for i in range(VOCAB)]
    unused = ((VOCAB // 2, VOCAB),)
    chosen = dataclasses.replace(
        sampling(), stop_ids=(), stops=stops_of([b"aca", b"bb"], token_bytes, VOCAB), unused=unused
    )
    rollout.check_sampling(chosen)

    @jax.jit
    def both(params, batch, key):
        rows = rollout.roll_out(model, params, batch, key, chosen)
        states_RMD = rollout.answer_states(model, params, rows)
        scored = output_kernel(params), states_RMD, rows.answers_RM, chosen.temperature, unused
        kl_RM = head_kl(output_kernel(params), states_RMD, 2 * output_kernel(params), states_RMD, 1.0, unused)
        return rows, head_logprobs(*scored), kl_RM

    rows, scores, kl_RM = jax.device_get(both(params, prompts(LENGTHS, 16), jax.random.key(3)))
    ended = []
    for r, (prompt, answer) in enumerate(real_tokens(rows)):
        texts = [b"".join(token_bytes[i] for i in answer[:t]) for t in range(1, len(answer) + 1)]
        stops = [b"aca" in text or b"bb" in text for text in texts]
        assert not any(stops[:-1]) and stops[-1] == bool(rows.stopped_R[r])
        ended.append(stops[-1])
        all_TV = distributions(model.config, params, np.concatenate([prompt, answer]), chosen.temperature)
        left_TV = all_TV[:, : VOCAB // 2] - np.log(np.exp(all_TV[:, : VOCAB // 2]).sum(axis=-1, keepdims=True))
        before_mV = left_TV[len(prompt) - 1 : -1]
        logp, size = before_mV[np.arange(len(answer)), answer], len(answer)
        np.testing.assert_allclose(scores.logp[r, :size], logp, rtol=0, atol=5e-5)
        np.testing.assert_allclose(rows.sampling_logprobs_RM[r, :size], logp, rtol=0, atol=5e-5)
        entropy = -(np.exp(before_mV) * before_mV).sum(axis=-1)
        np.testing.assert_allclose(scores.entropy[r, :size], entropy, rtol=0, atol=5e-5)
        at_one, at_half = (
            before_mV * t - np.log(np.exp(before_mV * t).sum(axis=-1, keepdims=True)) for t in (0.7, 1.4)
        )  # logits of temperature 0.7, taken to 1 and to 1/2
        want = (np.exp(at_one) * (at_one - at_half)).sum(axis=-1)
        np.testing.assert_allclose(kl_RM[r, :size], want, rtol=1e-3, atol=5e-5)
    assert 0 < sum(ended) < len(ended)


def test_scores_are_those_of_each_row_alone_at_the_temperature_that_it_was_drawn_at():
    _, rows, scores = rolled()
    for r, (logp, entropy) in enumerate(slow_scores(rows, temperature=0.7)):
        np.testing.assert_allclose(scores.logp[r, : len(logp)], logp, rtol=0, atol=5e-5)
        np.testing.assert_allclose(scores.entropy[r, : len(logp)], entropy, rtol=0, atol=5e-5)
        np.testing.assert_allclose(rows.sampling_logprobs_RM[r, : len(logp)], logp, rtol=0, atol=5e-5)
    at_one = np.concatenate([logp for logp, _ in slow_scores(rows, temperature=1.0)])
    at_its_own = np.concatenate([logp for logp, _ in slow_scores(rows, temperature=0.7)])
    assert np.abs(at_one - at_its_own).mean() > 0.1  # another temperature would have been seen


@pytest.mark.parametrize(("dtype", "largest", "mean"), [("float32", 1e-4, 1e-5), ("bfloat16", 0.15, 0.03)])
def test_sampling_and_scoring_agree_on_the_log_probability_of_every_token(dtype, largest, mean):
    _, rows, scores = rolled(dtype)
    difference = np.abs(scores.logp - rows.sampling_logprobs_RM)[rows.mask_RM > 0]
    print(f"{dtype}: largest {difference.max():.3g}, mean {difference.mean():.3g}, {len(difference)} tokens")
    assert difference.max() < largest and difference.mean() < mean
    assert rows.sampling_logprobs_RM.dtype == scores.logp.dtype == np.float32


def test_answers_and_scores_do_not_depend_on_how_far_prompts_are_padded():
    (_, narrow, scores), (_, wide, wide_scores) = rolled(width=16), rolled(width=24)
    np.testing.assert_array_equal(narrow.tokens_RT, wide.tokens_RT[:, 8:])
    np.testing.assert_array_equal(narrow.segment_ids_RT, wide.segment_ids_RT[:, 8:])
    np.testing.assert_array_equal(narrow.positions_RT, wide.positions_RT[:, 8:])
    assert not np.any(wide.segment_ids_RT[:, :8])
    for name in ("mask_RM", "stopped_R", "index_R"):
        np.testing.assert_array_equal(getattr(narrow, name), getattr(wide, name))
    mask_RM = narrow.mask_RM
    np.testing.assert_allclose(scores.logp * mask_RM, wide_scores.logp * mask_RM, atol=2e-5)
    np.testing.assert_allclose(narrow.sampling_logprobs_RM, wide.sampling_logprobs_RM, atol=2e-5)


def test_answers_and_scores_go_with_their_prompts_wherever_those_stand_in_the_batch():
    order = (4, 2, 7, 0, 5, 3, 6, 1)
    (_, rows, scores), (_, moved, moved_scores) = rolled(), rolled(order=order)
    taken = np.concatenate([[2 * b, 2 * b + 1] for b in order])
    for name in ("tokens_RT", "segment_ids_RT", "positions_RT", "mask_RM", "stopped_R", "index_R"):
        np.testing.assert_array_equal(getattr(rows, name)[taken], getattr(moved, name))
    mask_RM = moved.mask_RM
    np.testing.assert_allclose(scores.logp[taken] * mask_RM, moved_scores.logp * mask_RM, atol=2e-5)


def test_another_key_gives_other_answers_and_the_same_key_the_same():
    (_, rows, _), (_, others, _) = rolled(), rolled(seed=4)
    assert np.all(np.any(rows.answers_RM != others.answers_RM, axis=1))
    again, _ = jax.device_get(roll_and_score()(policy()[1], prompts(LENGTHS, 16), jax.random.key(3)))
    jax.tree.map(np.testing.assert_array_equal, again, rows)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_rows_looked_at_in_parts_come_back_in_their_places(parts):
    _, rows, scores = rolled()
    model, params = policy()

    def score(part):
        assert part.tokens_RT.shape[0] == 16 // parts
        return rollout.score_answers(model, params, part, 0.7), part.index_R

    found, index_R = jax.jit(lambda rows: rollout.in_parts(score, rows, parts))(rows)
    np.testing.assert_array_equal(index_R, rows.index_R)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, scores)


def test_whole_rows_are_read_at_the_stop_token_and_states_before_each_token():
    _, rows, _ = rolled()
    slots_RT = jnp.broadcast_to(jnp.arange(28.0)[None], rows.tokens_RT.shape)
    last_R = np.array([np.flatnonzero(real)[-1] for real in rows.segment_ids_RT])
    np.testing.assert_array_equal(rollout.at_last_token(slots_RT, rows), last_R)
    stopped = rows.stopped_R > 0
    assert np.all(np.isin(rows.tokens_RT[np.arange(16), last_R][stopped], STOPS))
    before_RM1 = rollout.states_before(slots_RT[..., None], 12)
    np.testing.assert_array_equal(before_RM1[..., 0], np.broadcast_to(np.arange(15, 27), (16, 12)))


@pytest.mark.parametrize(
    "changed",
    [dict(top_k=4), dict(top_p=0.9), dict(min_p=0.1), dict(repetition_penalty=1.2), dict(temperature=0.0)],
    ids=str,
)
def test_ways_to_sample_that_no_update_can_follow_are_refused(changed):
    with pytest.raises(ValueError, match="whole distribution"):
        rollout.check_sampling(Sampling(max_tokens=8, stop_ids=STOPS, **changed))


def test_temperature_samples_and_stops_are_not_refused():
    rollout.check_sampling(Sampling(max_tokens=8, temperature=0.3, n=4, stop_ids=STOPS, pad_id=VOCAB - 1))
