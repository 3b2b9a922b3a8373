"""The reward model's loss over sides, heads and weights, and how well its scores rank pairs, against loops."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from camelid.model.sharding import make_mesh
from camelid.rlhf.pair_batches import calibration_error, describe_ranking
from camelid.rlhf.reward import Objective, heldout_ranking, make_loss
from camelid.rlhf.scalar import ScalarModel

PLAIN = Objective(kind="reward", form="log_sigmoid", margin=0.0, centering=0.0, bootstrap=False)


def apply(params, tokens_RT, segment_ids_RT):
    """A position's score is its token times the head's slope; padding says nonsense."""
    scores_RTH = tokens_RT[..., None] * params["slope"][None, None]
    return jnp.where(segment_ids_RT[..., None] > 0, scores_RTH, 1e9)


def model(heads):
    return ScalarModel(None, heads, apply, None)


SLOPES = jnp.array([0.5, -0.2, 1.0])


def batch(B=6, T=5):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, T + 1, (B, 2)).astype(np.int32)
    return {
        "tokens": rng.integers(-3, 4, (B, 2, T)).astype(np.int32),
        "lengths": lengths,
        "margin": rng.random(B).astype(np.float32),
        "weight": np.array([1, 1, 0, 1, 1, 1], np.float32)[:B],
        "side_weight": np.ones((B, 2), np.float32),
        "safer": np.array([1, -1, 1, 0, 1, -1], np.float32)[:B],
        "safe": np.array([[1, -1], [0, 1], [1, 1], [0, 0], [-1, -1], [-1, 1]], np.float32)[:B],
        "index": np.arange(10, 10 + B, dtype=np.int32),
    }


def last_tokens(rows):
    """The token that each side ends with."""
    return np.array(
        [
            [row[n - 1] for row, n in zip(*sides, strict=True)]
            for sides in zip(rows["tokens"], rows["lengths"], strict=True)
        ]
    )


def slow_pair_loss(rows, pair, slope, objective):
    chosen, rejected = slope * last_tokens(rows)[pair]
    margin = objective.margin * rows["margin"][pair]
    return math.log1p(math.exp(-(chosen - rejected - margin))) + objective.centering * (chosen + rejected) ** 2


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    "changes", [dict(), dict(form="log_exp", margin=1.5), dict(centering=0.1, margin=0.5)], ids=str
)
def test_the_loss_is_the_mean_over_heads_and_real_pairs_however_they_are_walked_through(changes, parts):
    objective, rows = dataclasses.replace(PLAIN, **changes), batch()
    loss_fn = jax.jit(make_loss(model(3), objective, seed=0))
    found = [loss_fn({"slope": SLOPES}, {name: x[part::parts] for name, x in rows.items()}) for part in range(parts)]
    loss, weight = (float(sum(part[i] for part in found)) for i in (0, 1))
    assert weight == 5
    real = [0, 1, 3, 4, 5]
    expected = np.mean([[slow_pair_loss(rows, pair, float(slope), objective) for pair in real] for slope in SLOPES])
    assert loss / weight == pytest.approx(expected, rel=1e-5)
    right = [[np.sign(slope * (c - r)) / 2 + 0.5 for c, r in last_tokens(rows)[real]] for slope in SLOPES]
    assert float(sum(part[2]["accuracy"] for part in found)) / weight == pytest.approx(np.mean(right), rel=1e-5)


@pytest.mark.parametrize("form", ["log_sigmoid", "best_of_k"])
def test_a_chosen_answer_is_compared_with_each_other_one_or_with_all_at_once(form):
    rng = np.random.default_rng(3)
    tokens, there = rng.integers(-3, 4, (6, 4, 1)).astype(np.int32), np.array([4, 2, 3, 4, 4, 2])
    rows = batch() | {
        "tokens": tokens,
        "lengths": np.ones((6, 4), np.int32),
        "side_weight": (np.arange(4)[None] < there[:, None]).astype(np.float32),
    }
    loss_fn = make_loss(model(1), dataclasses.replace(PLAIN, form=form, margin=0.5), 0)
    found = [loss_fn({"slope": jnp.array([0.7])}, {name: x[part::2] for name, x in rows.items()}) for part in (0, 1)]
    loss, weight = (float(sum(part[i] for part in found)) for i in (0, 1))
    losses = []
    for pair in (0, 1, 3, 4, 5):  # not the one of weight 0
        scores = 0.7 * tokens[pair, : there[pair], 0]
        if form == "best_of_k":
            losses.append(-math.log(math.exp(scores[0]) / sum(math.exp(s) for s in scores)))
            continue
        margins = [0.5 * rows["margin"][pair], 0.0, 0.0]  # the data's is that of the first two
        losses += [math.log1p(math.exp(-(scores[0] - s - m))) for s, m in zip(scores[1:], margins, strict=False)]
    assert weight == len(losses)
    assert loss / weight == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_pair_that_only_fills_up_a_batch_changes_nothing():
    rows = batch()
    others = rows | {"tokens": rows["tokens"].copy()}
    others["tokens"][2] = 1000
    loss_fn = jax.jit(jax.value_and_grad(lambda p, rows: make_loss(model(3), PLAIN, 0)(p, rows)[0]))
    for a, b in zip(*(jax.tree.leaves(loss_fn({"slope": SLOPES}, x)) for x in (rows, others)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_heads_of_a_bootstrapped_ensemble_weigh_pairs_differently_and_each_pair_always_the_same():
    objective, heads = dataclasses.replace(PLAIN, bootstrap=True), 400
    loss_fn = jax.jit(jax.grad(lambda p, rows: make_loss(model(heads), objective, 7)(p, rows)[0]))
    params = {"slope": jnp.full(heads, 0.3)}
    rows = batch()
    rows["tokens"][:, 0], rows["tokens"][:, 1] = 2, 1  # a gap of one slope in every pair
    by_pair = []
    for pair in (0, 1):
        alone = {name: x[pair : pair + 1] for name, x in rows.items()}
        grads = np.asarray(loss_fn(params, alone)["slope"])
        by_pair.append(grads / (-(1 - 1 / (1 + math.exp(-0.3))) / heads))  # the weight of each head
    weights_PH = np.array(by_pair)
    assert weights_PH.min() >= 0 and abs(np.corrcoef(weights_PH)[0, 1]) < 0.2
    assert weights_PH.mean() == pytest.approx(1.0, abs=0.1) and weights_PH.std() == pytest.approx(1.0, abs=0.15)
    together = {name: x[[1, 0]] for name, x in rows.items()}
    grads = np.asarray(loss_fn(params, together)["slope"]) / (-(1 - 1 / (1 + math.exp(-0.3))) / heads)
    np.testing.assert_allclose(grads, weights_PH.sum(axis=0), rtol=1e-4)


def test_a_cost_model_s_loss_reads_the_labels_of_safety():
    rows = batch()
    loss, weight, stats = make_loss(model(1), dataclasses.replace(PLAIN, kind="cost"), 0)(
        {"slope": jnp.array([0.5])}, rows
    )
    costs, losses = 0.5 * last_tokens(rows), []
    for pair in (0, 1, 3, 4, 5):
        gap = (costs[pair, 1] - costs[pair, 0]) * rows["safer"][pair]
        ranked = math.log1p(math.exp(-gap)) * abs(rows["safer"][pair])
        signs = [math.log1p(math.exp(c * s)) * abs(s) for c, s in zip(costs[pair], rows["safe"][pair], strict=True)]
        losses.append(ranked + sum(signs))
    assert float(loss / weight) == pytest.approx(np.mean(losses), rel=1e-5)
    assert {"accuracy", "sign_accuracy"} <= set(stats)


class OneBatch(list):
    """A batch of held-out pairs, as `data.pairs` describes it."""

    records = {i: {"language": "en", "margin": None} for i in range(10, 16)}

    def __init__(self, rows):
        super().__init__([rows])
        self.shapes = {name: (x.shape, x.dtype) for name, x in rows.items()}

    def rows(self, step, chosen):
        return {name: x[chosen] for name, x in self[step].items()}


def test_held_out_pairs_are_ranked_by_preference_or_by_safety():
    rows = batch()
    costs = 0.5 * last_tokens(rows)
    mesh = make_mesh({}, jax.devices()[:1])
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def measure(kind):
        run = heldout_ranking(model(1), {"pairs": OneBatch(rows)}, where, 10, kind=kind)
        return run({"slope": jnp.array([0.5])})[0]

    real = [0, 1, 3, 4, 5]  # not the one of weight 0
    share = lambda gaps: np.mean([0.5 if gap == 0 else gap > 0 for gap in gaps])  # noqa: E731
    by_preference, by_safety = measure("reward"), measure("cost")
    assert by_preference["pairs/accuracy"] == pytest.approx(share(costs[real, 0] - costs[real, 1]))
    assert "pairs/sign_accuracy" not in by_preference
    labelled = [0, 1, 4, 5]  # nor the one of which nobody said
    less_safe = [(costs[i, 1] - costs[i, 0]) * rows["safer"][i] for i in labelled]
    assert by_safety["pairs/accuracy"] == pytest.approx(share(less_safe))
    signs = [c * s < 0 for i in real for c, s in zip(costs[i], rows["safe"][i], strict=True) if s]
    assert by_safety["pairs/sign_accuracy"] == pytest.approx(np.mean(signs))


def test_calibration_is_how_far_predictions_are_from_what_won():
    rng = np.random.default_rng(0)
    gaps = rng.normal(0.5, 2.0, 300)
    bins = [[] for _ in range(10)]
    for gap in gaps:
        for side, won in ((gap, 1.0), (-gap, 0.0)):
            probability = 1 / (1 + math.exp(-side))
            bins[min(int(10 * probability), 9)].append((probability, won))
    distance = [abs(np.mean([p - w for p, w in cell])) * len(cell) for cell in bins if cell]
    assert calibration_error(gaps) == pytest.approx(sum(distance) / 600, rel=1e-6)
    sure = np.full(100, 50.0)
    assert calibration_error(sure) == pytest.approx(0.0, abs=1e-9) and calibration_error(-sure) == pytest.approx(1.0)
    assert calibration_error(np.array([math.log(3)] * 3 + [-math.log(3)])) == pytest.approx(0.0, abs=1e-9)


def test_accuracy_is_told_by_language_and_margin_and_a_tie_counts_half():
    gaps = np.array([1.0, -1.0, 0.0, 2.0, -3.0, 0.5])
    languages, margins = ["en", "zh", "en", "zh", "en", "en"], [1, 2, 3, 4, 5, 6]
    records = [{"language": language, "margin": margin} for language, margin in zip(languages, margins, strict=True)]
    found = describe_ranking(gaps, records)
    assert found["accuracy"] == pytest.approx(3.5 / 6)
    assert found["accuracy/en"] == pytest.approx(2.5 / 4) and found["accuracy/zh"] == pytest.approx(0.5)
    assert found["loss"] == pytest.approx(np.mean(np.log1p(np.exp(-gaps))))
    assert found["gap"] == pytest.approx(gaps.mean())
    by_margin = [found[f"accuracy/{size}_margin"] for size in ("small", "middle", "large")]
    assert by_margin == pytest.approx([0.5, 0.75, 0.5])  # pairs 1 and 2, 3 and 4, 5 and 6
    unknown = describe_ranking(gaps, [record | {"margin": None} for record in records])
    assert not any("margin" in name for name in unknown)
