"""Batches and their way onto the devices: pure in (seed, step), exact in what they hold."""

import contextlib
import hashlib
import itertools
import threading
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from camelid.data.mixture import EvalPass, Mixture, drawn, integer_weights
from camelid.data.packed_rows import PackedRows
from camelid.data.prefetch import prefetch
from camelid.data.samples import Sample, Samples
from camelid.data.sources import Source
from camelid.data.tally import Tally
from camelid.data.token_cache import TokenCache
from camelid.errors import UserError

LENGTH = 32


def memory_cache(samples, fingerprint="ab12"):
    """A token cache of (tokens, mask) samples that was never on disk."""
    tokens = np.concatenate([tokens for tokens, _ in samples]).astype(np.uint16)
    mask = np.concatenate([mask for _, mask in samples])
    starts = np.cumsum([0, *(len(tokens) for tokens, _ in samples)])
    first = np.array([mask[1:].argmax() for _, mask in samples])
    counts = {"samples": len(samples)}
    return TokenCache(Path(), fingerprint, {"counts": counts}, tokens, np.packbits(mask), starts, first)


def random_samples(n, seed=0, longest=LENGTH + 1, low=1):
    """Samples of 2 to `longest` distinct tokens from `low` upwards, each with some trained on."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(n):
        size = int(rng.integers(2, longest + 1))
        mask = rng.random(size) < 0.5
        mask[-1] = True
        samples.append((np.arange(low, low + size), mask))
        low += size
    return samples


def batches_of(*caches, packing="best_fit", batch_size=4, seed=1, weights=None, length=LENGTH):
    sources = {
        Source("", name=f"source{i}", weight=weight): cache
        for i, (cache, weight) in enumerate(zip(caches, weights or [1] * len(caches), strict=True))
    }
    return Mixture(list(sources), lambda source: PackedRows(sources[source], length, packing), batch_size, seed)


def segments(batch):
    """Slowly: (tokens, targets, mask, positions) of each segment of each row, as tuples."""
    for row in range(len(batch["tokens"])):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            at = np.flatnonzero(batch["segment_ids"][row] == segment)
            yield tuple(tuple(batch[n][row, at].tolist()) for n in ("tokens", "targets", "loss_mask", "positions"))


def one_epoch(batches, epoch=0):
    """All rows of an epoch of a one-source mixture of one row per batch."""
    rows = batches.summary()["source0"]["rows"]
    return [batches[step] for step in range(epoch * rows, (epoch + 1) * rows)]


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_each_conversation_stands_whole_and_once_in_an_epoch(epoch):
    samples = random_samples(100)
    batches = batches_of(memory_cache(samples), batch_size=1)
    seen = Counter(s for batch in one_epoch(batches, epoch) for s in segments(batch))
    expected = Counter(
        (tuple(t[:-1].tolist()), tuple(t[1:].tolist()), tuple(m[1:].astype(float)), tuple(range(len(t) - 1)))
        for t, m in samples
    )
    assert seen == expected


@pytest.mark.parametrize("epoch", [0, 3])
def test_each_token_but_the_first_of_a_document_is_a_target_once_in_an_epoch(epoch):
    samples = random_samples(20, longest=150)
    batches = batches_of(memory_cache(samples), batch_size=1, packing="contiguous")
    seen = Counter()
    for batch in one_epoch(batches, epoch):
        for tokens, targets, mask, positions in segments(batch):
            assert targets[:-1] == tokens[1:]
            assert positions == tuple(range(len(tokens)))
            seen.update(zip(tokens, targets, mask, strict=True))
    assert seen == Counter((t[i], t[i + 1], float(m[i + 1])) for t, m in samples for i in range(len(t) - 1))


@pytest.mark.parametrize("packing", ["contiguous", "best_fit"])
def test_padding_is_at_the_end_of_a_row_and_all_zeros(packing):
    for batch in one_epoch(batches_of(memory_cache(random_samples(50)), batch_size=1, packing=packing)):
        padding = batch["segment_ids"] == 0
        assert (np.diff(padding.astype(int)) >= 0).all()
        assert all((array[padding] == 0).all() for array in batch.values())


@pytest.mark.parametrize("packing", ["contiguous", "best_fit"])
def test_masks_add_up_to_the_trained_tokens(packing):
    samples = random_samples(80)
    batches = batches_of(memory_cache(samples), batch_size=1, packing=packing)
    total = sum(batch["loss_mask"].sum() for batch in one_epoch(batches))
    assert total == sum(mask[1:].sum() for _, mask in samples)


def test_a_conversation_longer_than_a_row_keeps_its_head_and_is_counted():
    samples = [(np.arange(1, 60), np.ones(59, bool)), (np.arange(60, 120), np.arange(60) > 50)]
    batches = batches_of(memory_cache(samples), batch_size=1)
    ((tokens, targets, mask, _),) = segments(batches[0])
    assert tokens == tuple(range(1, LENGTH + 1))
    assert targets == tuple(range(2, LENGTH + 2))
    assert sum(mask) == LENGTH
    summary = batches.summary()["source0"]
    assert (summary["truncated"], summary["left_out"], summary["rows"]) == (1, 1, 1)


@pytest.mark.parametrize("packing", ["contiguous", "best_fit"])
def test_a_step_is_the_same_in_any_object_and_order(packing):
    caches = [memory_cache(random_samples(n, seed=n), fingerprint=str(n)) for n in (30, 7, 50)]
    make = lambda: batches_of(*caches, weights=[0.7, 0.2, 0.1], packing=packing)  # noqa: E731
    forward, scattered = make(), make()
    expected = [forward[step] for step in range(60)]
    for step in np.random.default_rng(0).permutation(60).tolist():
        assert_same(scattered[step], expected[step])
    assert_same(make()[59], expected[59])  # what a resumed run sees
    assert forward.fingerprint == scattered.fingerprint


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_rows_of_all_hosts_are_the_batch(hosts):
    batches = batches_of(memory_cache(random_samples(40)), memory_cache(random_samples(30, 1), "cd"), batch_size=8)
    each = 8 // hosts
    for step in (0, 9):
        parts = [batches.rows(step, slice(h * each, (h + 1) * each)) for h in range(hosts)]
        assert_same({name: np.concatenate([p[name] for p in parts]) for name in parts[0]}, batches[step])


def test_epochs_differ_and_seeds_differ():
    cache = memory_cache(random_samples(60))
    batches = batches_of(cache, batch_size=1)
    rows = batches.summary()["source0"]["rows"]
    assert any((batches[s]["tokens"] != batches[s + rows]["tokens"]).any() for s in range(rows))
    assert (batches_of(cache, seed=2)[0]["tokens"] != batches_of(cache, seed=3)[0]["tokens"]).any()


def test_a_mixture_draws_by_weight_and_counts_epochs_exactly():
    sizes, weights = (40, 25, 10), [0.67, 0.285, 0.045]
    caches = [memory_cache(random_samples(n, n, low=1 + 10_000 * i), fingerprint=str(i)) for i, n in enumerate(sizes)]
    batches = batches_of(*caches, weights=weights, batch_size=5)
    rows = [summary["rows"] for summary in batches.summary().values()]
    assert [summary["share"] for summary in batches.summary().values()] == weights
    given = np.zeros(3)
    for step in range(400):
        assert list(batches.epochs(step).values()) == [g / r for g, r in zip(given, rows, strict=True)]
        for token in batches[step]["tokens"][:, 0]:
            given[(token - 1) // 10_000] += 1
        assert (abs(given - 5 * (step + 1) * np.array(weights)) < 3).all()
    np.testing.assert_allclose(given, 2000 * np.array(weights))
    assert batches.steps_per_epoch == sum(rows) / 5


@pytest.mark.parametrize("weights", [[1], [1, 1], [67, 15, 4.5, 4.5, 4.5, 2.5, 2], [0.1, 0.2, 0.7]])
def test_drawing_gives_one_row_at_a_time_and_exact_shares(weights):
    whole = integer_weights(weights)
    counts = [drawn(n, whole) for n in range(3 * sum(whole) + 1)]
    for n, (before, after) in enumerate(itertools.pairwise(counts)):
        assert sum(before) == n
        assert sorted(a - b for a, b in zip(after, before, strict=True)) == [0] * (len(whole) - 1) + [1]
    assert counts[-1] == [3 * weight for weight in whole]
    assert np.allclose(np.array(whole) / sum(whole), np.array(weights) / sum(weights))


def test_weights_become_whole_numbers_without_rounding():
    assert integer_weights([0.67, 0.33]) == [67, 33]
    assert integer_weights([67, 15, 4.5, 4.5, 4.5, 2.5, 2]) == [134, 30, 9, 9, 9, 5, 4]


def test_whatever_changes_the_batches_changes_the_fingerprint():
    a, b = memory_cache(random_samples(9)), memory_cache(random_samples(9, 1), "cd")
    prints = [
        batches_of(a).fingerprint,
        batches_of(b).fingerprint,
        batches_of(a, seed=2).fingerprint,
        batches_of(a, batch_size=8).fingerprint,
        batches_of(a, length=64).fingerprint,
        batches_of(a, packing="contiguous").fingerprint,
        batches_of(a, b).fingerprint,
        batches_of(b, a).fingerprint,
        batches_of(a, b, weights=[1, 2]).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert batches_of(a, b, weights=[1, 2]).fingerprint == batches_of(a, b, weights=[0.5, 1]).fingerprint


def first_batches(batches):
    """A hash of the first 12 batches."""
    digest = hashlib.sha256()
    for step in range(12):
        for name, array in batches[step].items():
            digest.update(name.encode() + array.tobytes())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize(
    "packing,digest,fingerprint",  # written down before mixtures of text and of samples became one
    [
        ("contiguous", "aec8508931d70e4d", "ce4d6ae06dda9a7a"),
        ("best_fit", "c323a6d75326b88f", "38a68f21137366dc"),
        ("fewest_cuts", "8bcce5259ba52ef7", "e55133a2cb9f1a78"),
    ],
)
def test_packed_batches_of_a_seed_never_change(packing, digest, fingerprint):
    def cache(n):
        numbers = [np.arange(i, i + 2 + 7 * i % 58) for i in range(n)]
        return memory_cache([(x % 1000, (x % 3 < 2) | (x == x[-1])) for x in numbers], f"{n:x}")

    batches = batches_of(cache(30), cache(17), weights=[0.7, 0.3], packing=packing)
    assert (first_batches(batches), batches.fingerprint[:16]) == (digest, fingerprint)


def test_batches_of_samples_of_a_seed_never_change():
    def samples(source):
        arrays = [{"tokens": np.arange(1, 2 + i, dtype=np.int32), "lengths": np.int32(1 + i)} for i in range(9)]
        found = [Sample({"id": i, "meta": {"text": "文"}}, row) for i, row in enumerate(arrays)]
        shapes = {"tokens": ((9,), np.int32), "lengths": ((), np.int32)}
        return Samples(found[: {"a": 9, "b": 5}[source.name]], shapes, Tally())

    batches = Mixture([Source("", "a", weight=2), Source("", "b")], samples, batch_size=4, seed=1)
    assert (first_batches(batches), batches.fingerprint[:16]) == ("09718ce2012ccdce", "e05e53a6d1c94ac8")


def test_mistakes_in_a_mixture_are_one_clear_line():
    for sources, message in (
        ([], "the mixture has no source"),
        ([Source("x", name="a"), Source("y", name="a")], "two sources of the mixture are named 'a'"),
        ([Source("x", name="a", weight=0)], "source 'a' has weight 0"),
        ([Source("x", name="a", weight=float("nan"))], "source 'a' has weight nan"),
    ):
        with pytest.raises(UserError, match=message):  # before anything is read
            Mixture(sources, read=None, batch_size=1, seed=0)


def test_evaluation_sees_each_sample_once_and_pads_the_last_batch():
    samples = random_samples(33, longest=3 * LENGTH)
    batches = EvalPass(PackedRows(memory_cache(samples), LENGTH, "fewest_cuts"), batch_size=4)
    rows = batches.summary()["rows"]
    assert rows % 4, "the test wants a last batch that is not full"
    assert len(batches) == rows // 4 + 1
    seen = Counter(target for batch in batches for _, targets, _, _ in segments(batch) for target in targets)
    assert seen == Counter(token for tokens, _ in samples for token in tokens[1:].tolist())
    pieces = sum(-(-(len(tokens) - 1) // LENGTH) for tokens, _ in samples)
    assert sum(1 for batch in batches for _ in segments(batch)) == pieces, "a sample that fits into a row is cut"
    last = batches[-1]
    assert all(array.shape == (4, LENGTH) for array in last.values())
    assert not any(array[rows % 4 :].any() for array in last.values())
    assert_same(batches.rows(0, slice(1, 3)), {name: array[1:3] for name, array in batches[0].items()})
    with pytest.raises(IndexError):
        batches[len(batches)]


def test_arrays_have_the_contracts_types():
    batch = batches_of(memory_cache(random_samples(5)))[0]
    assert {name: array.dtype.name for name, array in batch.items()} == {
        "tokens": "int32",
        "targets": "int32",
        "loss_mask": "float32",
        "segment_ids": "int32",
        "positions": "int32",
    }


@pytest.fixture
def sharding():
    mesh = jax.make_mesh((4, 2), ("data", "context"), axis_types=(AxisType.Auto,) * 2)
    return NamedSharding(mesh, P("data", "context"))


class Recorded:
    """Batches that note which rows were asked for."""

    def __init__(self, batches, delay=0.0):
        self.batches, self.delay, self.asked = batches, delay, []
        self.shapes = batches.shapes

    def rows(self, step, rows):
        self.asked.append((step, rows.start, rows.stop))
        if step == 13:
            raise UserError("step 13 is unlucky")
        time.sleep(self.delay)
        return self.batches.rows(step, rows)


def test_prefetch_hands_out_global_arrays_and_reads_each_row_once(sharding):
    batches = Recorded(batches_of(memory_cache(random_samples(60)), batch_size=8))
    handed_out = list(prefetch(batches, 2, 6, sharding))
    assert [step for step, _ in handed_out] == [2, 3, 4, 5]
    for step, batch in handed_out:
        assert all(array.sharding == sharding for array in batch.values())
        assert_same(jax.device_get(batch), batches.batches[step])
    assert batches.asked == [(s, r, r + 2) for s in range(2, 6) for r in (0, 2, 4, 6)]
    assert list(prefetch(batches, 4, 4, sharding)) == []


def test_prefetch_reads_ahead_and_counts_the_wait(sharding):
    batches = Recorded(batches_of(memory_cache(random_samples(60)), batch_size=8), delay=0.05)
    loaded = prefetch(batches, 0, 3, sharding, size=2)
    next(loaded)
    assert loaded.waited >= 0.2  # four reads
    time.sleep(1)
    assert {step for step, _, _ in batches.asked} == {0, 1, 2}
    before = loaded.waited
    next(loaded)
    assert loaded.waited - before < 0.2


def test_prefetch_raises_what_reading_raised_and_stops(sharding):
    loaded = prefetch(Recorded(batches_of(memory_cache(random_samples(60)), batch_size=8)), 12, 20, sharding)
    assert next(loaded)[0] == 12
    with pytest.raises(UserError) as caught:
        next(loaded)
    assert str(caught.value) == "step 13 is unlucky"
    assert list(loaded) == []


def test_prefetch_ends_its_thread_when_closed(sharding):
    batches = Recorded(batches_of(memory_cache(random_samples(60)), batch_size=8))
    before = set(threading.enumerate())
    with contextlib.closing(prefetch(batches, 0, 10**9, sharding)) as loaded:
        next(loaded)
        (thread,) = set(threading.enumerate()) - before
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert list(loaded) == []
