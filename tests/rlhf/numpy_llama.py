"""The network in numpy, in float64 and one row at a time without padding, to compare with; and a policy to roll out."""

import functools

import jax
import numpy as np

from camelid.model import decode, llama
from camelid.model.config import LlamaConfig
from camelid.model.sampling import Sampling

VOCAB = 96
STOPS = (5, 17, 29, 41, 53, 65, 77, 89)  # enough of them that answers end early and at different lengths


@functools.cache
def policy(dtype: str = "float32"):
    """(model, parameters) of the nano-test network: drawn half as large again, so that it prefers some tokens.

    In bfloat16 both layers are compiled side by side, which rounds differently in passes with and without gradient.
    """
    unroll = 2 if dtype == "bfloat16" else 1
    model = llama.build(LlamaConfig.preset("nano-test", vocab_size=VOCAB, dtype=dtype, unroll=unroll))
    params = jax.jit(model.init)(jax.random.key(0))
    return model, jax.tree.map(lambda x: 1.5 * x, params)


def prompts(lengths, width: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of random prompts of these lengths, padded on the right to `width`; the same ones whatever the width."""
    rng = np.random.default_rng(seed)
    tokens_BP = np.zeros((len(lengths), width), np.int32)
    for row_P, length in zip(tokens_BP, lengths, strict=True):
        row_P[:length] = rng.integers(1, VOCAB, length)
    lengths_B = np.array(lengths, np.int32)
    ids_B = decode.prompt_ids(tokens_BP, lengths_B)
    return {"tokens": tokens_BP, "lengths": lengths_B, "ids": ids_B, "index": np.arange(len(lengths), dtype=np.int32)}


def sampling(n: int = 2, max_tokens: int = 12, temperature: float = 0.7) -> Sampling:
    return Sampling(max_tokens=max_tokens, temperature=temperature, n=n, stop_ids=STOPS)


def real_tokens(rows) -> list[tuple[np.ndarray, np.ndarray]]:
    """Prompt and answer of each row of a rollout, without padding, by its segment ids and mask."""
    rows = jax.device_get(rows)
    M = rows.mask_RM.shape[1]
    return [
        (tokens[:-M][real[:-M] > 0], tokens[-M:][mask > 0])
        for tokens, real, mask in zip(rows.tokens_RT, rows.segment_ids_RT, rows.mask_RM, strict=True)
    ]


def hidden(config: LlamaConfig, params, tokens_T: np.ndarray) -> np.ndarray:
    """The last layer's normalised states of one row, [T, D]."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    T, K, groups = len(tokens_T), config.n_kv_heads, config.n_heads // config.n_kv_heads
    x_TD = p["embed"]["embedding"][tokens_T]
    later_TT = np.triu(np.ones((T, T), bool), 1)
    for layer in range(config.n_layers):
        w = jax.tree.map(lambda x, i=layer: x[i], p["layers"])
        normed_TD = _rms(x_TD, w["attention_norm"]["scale"], config.norm_eps)
        q, k, v = (np.einsum("td,dhe->the", normed_TD, w["attention"][name]) for name in "qkv")
        q, k = _rotate(q, config.rope_theta), _rotate(k, config.rope_theta)
        out_THE = np.zeros_like(q)
        for head in range(K * groups):
            scores_TT = q[:, head] @ k[:, head // groups].T / np.sqrt(config.head_dim)
            scores_TT = np.where(later_TT, -np.inf, scores_TT)
            out_THE[:, head] = softmax(scores_TT) @ v[:, head // groups]
        x_TD = x_TD + np.einsum("the,hed->td", out_THE, w["attention"]["o"])
        normed_TD = _rms(x_TD, w["mlp_norm"]["scale"], config.norm_eps)
        gate, up = normed_TD @ w["mlp"]["gate"], normed_TD @ w["mlp"]["up"]
        x_TD = x_TD + (gate / (1.0 + np.exp(-gate)) * up) @ w["mlp"]["down"]
    return _rms(x_TD, p["norm"]["scale"], config.norm_eps)


def distributions(config: LlamaConfig, params, tokens_T: np.ndarray, temperature: float) -> np.ndarray:
    """Log-probabilities of the next token after each position, [T, V]."""
    kernel_DV = np.asarray(llama.output_kernel(params), np.float64)
    logits_TV = hidden(config, params, tokens_T) @ kernel_DV / temperature
    return np.log(softmax(logits_TV))


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _rms(x_TD, scale_D, eps):
    return x_TD / np.sqrt((x_TD**2).mean(axis=-1, keepdims=True) + eps) * scale_D


def _rotate(x_THE: np.ndarray, theta: float) -> np.ndarray:
    """Component i of a head and component i + E/2 turn together, by position x theta^(-2i/E)."""
    T, _, E = x_THE.shape
    angle_Te = np.arange(T)[:, None] * theta ** (-np.arange(0, E, 2) / E)
    turned = (x_THE[..., : E // 2] + 1j * x_THE[..., E // 2 :]) * np.exp(1j * angle_Te)[:, None]
    return np.concatenate([turned.real, turned.imag], axis=-1)
