"""Epochs of minibatches: which rows each update sees, when they end early, and what is told of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from camelid.rlhf.minibatches import minibatch_epochs, minibatch_order

KEY = jax.random.key(11)


@pytest.mark.parametrize(("rows", "epochs", "minibatches"), [(24, 3, 4), (8, 2, 1), (16, 1, 16)])
def test_every_row_comes_once_an_epoch_in_an_order_of_its_own(rows, epochs, minibatches):
    order = np.asarray(minibatch_order(KEY, rows, epochs, minibatches)).reshape(epochs, rows)
    for epoch in order:
        assert sorted(epoch) == list(range(rows))
        assert list(epoch) != list(range(rows))
    assert len({tuple(epoch) for epoch in order}) == epochs


def test_the_order_is_a_function_of_the_key():
    first, again = (np.asarray(minibatch_order(KEY, 32, 2, 4)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != np.asarray(minibatch_order(jax.random.key(12), 32, 2, 4)))
    np.testing.assert_array_equal(first[:4], np.asarray(minibatch_order(KEY, 32, 5, 4))[:4])  # however many follow


def state_of(rows=12, updates=6):
    return {
        "made": jnp.int32(0),
        "seen": jnp.zeros(rows, jnp.int32),
        "rows": jnp.full((updates, 3), -1),
        "text": jnp.full((updates, 2), -1),
    }


KLS = jnp.array([0.1, 0.2, 0.9, 0.1, 0.3, 0.2])


def update(state, batch, empty=(-1,)):
    """Writes down what it sees. Update n, from 0, has 7 tokens, or none if it is in `empty`; it reports n + 1, a KL of
    KLS[n] and a ratio off by (n + 1) / 10."""
    n, rows = state["made"], batch["rows"]["index"]
    number = jnp.float32(n + 1)
    text = batch["mix"]["line"] if "mix" in batch else jnp.full(2, -1)
    state = {
        "made": n + 1,
        "seen": state["seen"].at[rows].add(1),
        "rows": state["rows"].at[n].set(rows),
        "text": state["text"].at[n].set(text),
    }
    metrics = dict.fromkeys(("loss", "lr", "skipped", "param_norm"), number)
    metrics["tokens"] = jnp.where(jnp.isin(n, jnp.array(empty)), 0.0, 7.0)
    streak = jnp.where(n == 1, 2.0, 0.0)
    return state, metrics | {"streak": streak, "policy/approx_kl": KLS[n], "policy/ratio_error": number / 10}


def learnt(**options):
    rows = {"index": jnp.arange(12), "more": {"x": jnp.ones((12, 5))}}
    chosen = dict(epochs=3, minibatches=2) | options
    size = 12 // chosen["minibatches"]
    state = state_of() | {"rows": jnp.full((6, size), -1)}
    return jax.device_get(jax.jit(lambda state: minibatch_epochs(update, state, rows, KEY, **chosen))(state))


def test_all_epochs_see_every_row_and_metrics_are_means_over_updates_but_for_counters():
    state, metrics = learnt()
    np.testing.assert_array_equal(state["seen"], np.full(12, 3))
    np.testing.assert_array_equal(state["rows"], minibatch_order(KEY, 12, 3, 2))
    assert state["made"] == metrics["policy/updates"] == 6
    assert metrics["loss"] == pytest.approx(3.5)
    assert metrics["policy/approx_kl"] == pytest.approx(np.mean(KLS))
    assert metrics["lr"] == metrics["skipped"] == metrics["param_norm"] == 6.0
    assert metrics["streak"] == 2.0
    assert metrics["policy/ratio_error"] == pytest.approx(0.35)
    assert metrics["policy/first_ratio_error"] == pytest.approx(0.1)


def test_updates_without_a_token_are_no_part_of_the_means():
    rows = {"index": jnp.arange(12)}
    state, metrics = jax.device_get(
        minibatch_epochs(
            lambda *given: update(*given, empty=(0, 2)),
            state_of() | {"rows": jnp.full((6, 6), -1)},
            rows,
            KEY,
            epochs=2,
            minibatches=2,
        )
    )
    assert (state["made"], metrics["policy/updates"]) == (4, 2)
    assert metrics["loss"] == pytest.approx(3.0) and metrics["policy/first_ratio_error"] == pytest.approx(0.2)
    assert metrics["lr"] == 4.0
    _, metrics = minibatch_epochs(
        lambda *given: update(*given, empty=range(4)), state_of() | {"rows": jnp.full((6, 6), -1)}, rows, KEY,
        epochs=2, minibatches=2,
    )  # fmt: skip
    assert metrics["policy/updates"] == 0 and all(np.isfinite(x) for x in metrics.values())


def test_a_kl_above_its_target_is_the_last_update_that_is_made():
    state, metrics = learnt(target_kl=0.5)  # the third has 0.9
    assert state["made"] == metrics["policy/updates"] == 3
    np.testing.assert_array_equal(state["rows"][:3], minibatch_order(KEY, 12, 3, 2)[:3])
    assert np.all(state["rows"][3:] == -1)
    assert metrics["loss"] == pytest.approx(2.0)
    assert metrics["policy/approx_kl"] == pytest.approx(np.mean(KLS[:3]))
    assert metrics["lr"] == metrics["param_norm"] == 3.0
    assert metrics["policy/first_ratio_error"] == pytest.approx(0.1)


@pytest.mark.parametrize(("target", "made"), [(0.05, 1), (0.15, 2), (5.0, 6)])
def test_the_first_update_is_always_made_and_all_are_below_the_target(target, made):
    state, metrics = learnt(target_kl=target)
    assert state["made"] == metrics["policy/updates"] == made
    assert metrics["loss"] == pytest.approx(np.mean(np.arange(1, made + 1)))


def test_each_minibatch_has_its_share_of_the_text_the_same_one_in_every_epoch():
    state, _ = learnt(mix={"line": jnp.arange(4)})
    np.testing.assert_array_equal(state["text"], [[0, 1], [2, 3]] * 3)
    state, _ = learnt(mix={"line": jnp.arange(4)}, target_kl=0.5)
    np.testing.assert_array_equal(state["text"], [[0, 1], [2, 3], [0, 1], *[[-1, -1]] * 3])
