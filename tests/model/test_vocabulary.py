"""New rows of the embedding and the head: means of old ones, and the old network for old tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from camelid.model import llama, sharding
from camelid.model.config import LlamaConfig
from camelid.model.vocabulary import grow

SPLITS = [[3, 7], [11], [500, 500, 2, 9]]
TOKENS = jnp.array([[1, 5, 300, 9, 511]])


def network(tied, vocab_size=512, **changes):
    return llama.build(LlamaConfig.preset("nano-test", tied=tied, vocab_size=vocab_size, **changes))


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def tied(request):
    return request.param


@pytest.fixture(scope="module")
def params(tied):
    return jax.jit(network(tied).init)(jax.random.key(0))


def rows(table_VD, splits):
    """The mean over each split, by a loop in float64."""
    table_VD = np.asarray(table_VD, np.float64)
    return np.stack([sum(table_VD[i] for i in split) / len(split) for split in splits])


def test_new_rows_are_means_and_all_else_stays(params, tied):
    grown = grow(params, SPLITS)
    embedding = grown["embed"]["embedding"]
    assert embedding.shape == (515, 64)
    np.testing.assert_array_equal(embedding[:512], params["embed"]["embedding"])
    np.testing.assert_allclose(embedding[512:], rows(params["embed"]["embedding"], SPLITS), rtol=1e-5, atol=1e-7)
    assert ("head" in grown) == (not tied)
    if not tied:
        kernel = grown["head"]["kernel"]
        assert kernel.shape == (64, 515)
        np.testing.assert_array_equal(kernel[:, :512], params["head"]["kernel"])
        np.testing.assert_allclose(kernel[:, 512:].T, rows(params["head"]["kernel"].T, SPLITS), rtol=1e-5, atol=1e-7)
    assert grown["layers"] is params["layers"] and grown["norm"] is params["norm"]
    assert params["embed"]["embedding"].shape == (512, 64), "the old tree is not written to"


def test_the_grown_network_gives_old_tokens_their_logits_and_new_ones_the_mean_of_their_parts(params, tied):
    old = jax.jit(network(tied).apply)(params, TOKENS)
    new = jax.jit(network(tied, vocab_size=515).apply)(grow(params, SPLITS), TOKENS)
    old, new = np.asarray(old), np.asarray(new)
    assert new.shape == (1, 5, 515)
    np.testing.assert_allclose(new[..., :512], old, rtol=1e-5, atol=1e-5)
    for i, split in enumerate(SPLITS, 512):
        np.testing.assert_allclose(new[..., i], np.mean(old[..., np.array(split)], axis=-1), rtol=1e-4, atol=1e-5)


def test_rows_that_no_token_used_are_taken_first(params):
    grown = grow(params, SPLITS, start=510)
    embedding = np.asarray(grown["embed"]["embedding"])
    assert embedding.shape == (513, 64)
    np.testing.assert_array_equal(embedding[:510], params["embed"]["embedding"][:510])
    np.testing.assert_allclose(embedding[510:], rows(params["embed"]["embedding"], SPLITS), rtol=1e-5, atol=1e-7)
    inside = np.asarray(grow(params, SPLITS, start=505)["embed"]["embedding"])
    assert inside.shape == (512, 64)
    np.testing.assert_array_equal(inside[508:], params["embed"]["embedding"][508:])
    np.testing.assert_allclose(inside[505:508], rows(params["embed"]["embedding"], SPLITS), rtol=1e-5, atol=1e-7)


def test_means_of_bfloat16_rows_are_taken_in_float32():
    table = jnp.concatenate([jnp.full((1, 4), 256.0), jnp.ones((300, 4))]).astype(jnp.bfloat16)
    grown = grow({"embed": {"embedding": table}}, [list(range(301))])["embed"]["embedding"]
    assert grown.dtype == jnp.bfloat16
    # In bfloat16 the sum would stay at 256: 256 + 1 is rounded to it.
    np.testing.assert_array_equal(grown[301], jnp.full(4, 556 / 301, jnp.bfloat16))


def test_parameters_that_are_split_over_devices_grow_alike(params, tied):
    mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
    split = jax.device_put(params, sharding.shardings(params, mesh))
    expected = grow(params, SPLITS)
    for got, leaf in zip(jax.tree.leaves(grow(split, SPLITS)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, leaf, rtol=1e-6, atol=1e-7)


def test_nothing_to_add_changes_nothing(params):
    assert grow(params, [])["embed"]["embedding"] is params["embed"]["embedding"]


@pytest.mark.parametrize(
    "splits, start, message",
    [
        (
            [[1], [2, 512]],
            None,
            r"new id 513 is to be the mean of \[2, 512\]: 512 is no old id of .*\(512, 64\).*0 to 511",
        ),
        ([[-1]], None, "-1 is no old id"),
        ([[5], [509]], 508, r"new id 509 .*: 509 is no old id .*0 to 507"),
        ([[1], []], None, "new id 513 has no old ids"),
        ([[1]], 513, r"new ids start at 513, but embed/embedding \(512, 64\) has rows 0 to 511"),
        ([[1]], 0, "new ids start at 0"),
    ],
)
def test_ids_that_do_not_fit_are_refused_with_the_shape(params, splits, start, message):
    with pytest.raises(ValueError, match=message):
        grow(params, splits, start=start)


def test_a_matrix_in_parts_is_refused(params):
    quantised = params | {"head": {"kernel": {"int8": jnp.zeros((64, 512), jnp.int8), "scales": jnp.ones(512)}}}
    with pytest.raises(ValueError, match=r"head/kernel has parts int8, scales: add rows before quantising"):
        grow(quantised, SPLITS)
