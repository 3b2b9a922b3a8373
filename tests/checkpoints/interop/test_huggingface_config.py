"""The config.json of Hugging Face: one fact in two spellings, windows, and fields that are left out."""

import pytest

from camelid.checkpoints.interop import huggingface
from camelid.model.config import RopeScaling
from camelid.tests.checkpoints.interop.folders import TINY

# Two spellings of one fact --------------------------------------------------------------------------------------------

LEAST = dict(vocab_size=58, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=44)
LINEAR = {"rope_type": "linear", "factor": 2.0}
YARN = RopeScaling("yarn", 4.0, original_max_len=128)


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            dict(rope_scaling=LINEAR, rope_parameters=LINEAR | {"factor": 4.0}),
            "rope_scaling says {'factor': 2.0, .*; rope_parameters says {'factor': 4.0",
        ),
        (
            dict(rope_scaling=LINEAR, rope_parameters={"rope_type": "default"}),
            "rope_parameters says {'rope_type': 'def",
        ),
        (
            dict(rope_theta=5e5, rope_parameters={"rope_theta": 1e4}),
            "rope_parameters.rope_theta says 1.*; rope_theta says 5",
        ),
        (
            dict(rope_scaling=LINEAR | {"rope_theta": 1e4}, rope_parameters=LINEAR | {"rope_theta": 2e4}),
            "rope_scaling.rope_",
        ),
        (
            dict(
                original_max_position_embeddings=64,
                rope_scaling={"rope_type": "yarn", "original_max_position_embeddings": 128},
            ),
            "original_max_position_embeddings is 64, but 128 in the rotary settings",
        ),
        (dict(rope_scaling=LINEAR | {"type": "yarn"}), "rope_type is 'linear' but type 'yarn'"),
        (
            dict(architectures=["Qwen2ForCausalLM"], model_type="qwen3"),
            "architectures Qwen2ForCausalLM but model_type 'qwen3'",
        ),
    ],
)
def test_two_spellings_that_disagree_are_refused_with_both(fields, message):
    with pytest.raises(ValueError, match=rf"config.json: .*{message}") as error:
        huggingface.read_config({"model_type": "llama"} | LEAST | fields, "config.json")
    assert "\n" not in str(error.value)


def test_two_spellings_that_agree_and_settings_that_transformers_ignores_are_read():
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    noted = scaling | {
        "rope_type": "yarn",
        "rope_theta": 5e5,
        "finetuned": True,
        "attn_factor": 1.7,
        "short_mscale": 2.0,
    }
    both = dict(rope_theta=5e5, rope_scaling=noted, rope_parameters=scaling | {"rope_theta": 500_000})
    found = huggingface.read_config(LEAST | {"model_type": "llama"} | both, "")
    assert (found.rope_theta, found.rope_scaling) == (5e5, YARN)
    plain = {"rope_type": "default", "factor": 8.0, "finetuned": True}
    assert huggingface.read_config(LEAST | {"model_type": "llama", "rope_scaling": plain}, "").rope_scaling is None


def test_phi_3s_first_names_for_longrope_are_read_and_only_there():
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    said = LEAST | {"max_position_embeddings": 8192}
    for kind in ("su", "yarn", "longrope"):
        found = huggingface.read_config(said | {"model_type": "phi3", "rope_scaling": factors | {"type": kind}}, "")
        assert (found.rope_scaling.kind, found.rope_scaling.original_max_len, found.rope_scaling.factor) == (
            "longrope",
            4096,
            2,
        )
    assert (
        huggingface.read_config(
            said | {"model_type": "llama", "rope_scaling": factors | {"type": "yarn"}}, ""
        ).rope_scaling.kind
        == "yarn"
    )


# Windows --------------------------------------------------------------------------------------------------------------

FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    "kind, fields, window",
    [
        ("mistral", dict(sliding_window=None), None),
        ("mistral", {}, 4096),
        ("mistral", dict(sliding_window=7, layer_types=[FULL] * 2), None),
        ("mistral", dict(sliding_window=7, layer_types=[SLIDING] * 2), 7),
        ("phi3", dict(sliding_window=7, layer_types=[FULL] * 2), 7),
        ("phi3", {}, None),
        ("phi3", dict(sliding_window=7), 7),
        ("qwen2", dict(sliding_window=7), None),
        ("qwen2", dict(use_sliding_window=True, sliding_window=7, max_window_layers=2), None),
        ("qwen2", dict(use_sliding_window=True, max_window_layers=0), 4096),
        ("qwen2", dict(use_sliding_window=True, sliding_window=7, max_window_layers=2, layer_types=[SLIDING] * 2), 7),
        ("qwen3", dict(use_sliding_window=True, sliding_window=7, max_window_layers=0, layer_types=[FULL] * 2), None),
    ],
)
def test_a_window_is_read_as_transformers_classes_do(kind, fields, window):
    """Checked against transformers 5.24: `sliding_window` and `layer_types` of each class's config."""
    assert huggingface.read_config(LEAST | {"model_type": kind, "num_key_value_heads": 4} | fields, "").window == window


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(model_type="mistral", sliding_window=0), "sliding_window is 0, not a whole number from 1"),
        (dict(model_type="mistral", layer_types=[SLIDING, FULL]), "1 of 2 layers have a sliding window"),
        (dict(use_sliding_window=True, sliding_window=7, max_window_layers=1), "1 of 2 layers have a sliding window"),
        (
            dict(use_sliding_window=True, sliding_window=7, layer_types=[SLIDING, FULL]),
            "1 of 2 layers have a sliding window",
        ),
        (dict(layer_types=[SLIDING] * 2), "layer_types has sliding windows, but"),
        (dict(layer_types=[FULL] * 3), r"layer_types has 3 of \['full_attention'\] for 2 layers"),
        (
            dict(layer_types=["linear_attention", FULL]),
            r"layer_types has 2 of \['full_attention', 'linear_attention'\] for 2",
        ),
    ],
)
def test_layers_of_two_kinds_and_windows_of_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        huggingface.read_config(LEAST | {"model_type": "qwen2", "num_key_value_heads": 4} | fields, "")


def test_fields_that_a_config_leaves_out_are_those_of_its_own_class():
    """From the configs of transformers 5.24."""
    heads = dict(num_attention_heads=32, hidden_size=256)
    found = {
        kind: huggingface.read_config(LEAST | heads | {"model_type": kind}, "")
        for kind in ("mistral", "qwen2", "qwen3", "phi3")
    }
    assert {kind: (c.n_kv_heads, c.head_dim, c.max_len, c.norm_eps) for kind, c in found.items()} == {
        "mistral": (8, 8, 131_072, 1e-6),
        "qwen2": (32, 8, 32_768, 1e-6),
        "qwen3": (32, 128, 32_768, 1e-6),
        "phi3": (32, 8, 4096, 1e-5),
    }
    null = huggingface.read_config(LEAST | {"model_type": "mistral", "num_key_value_heads": None, "head_dim": None}, "")
    assert (null.n_kv_heads, null.head_dim) == (4, 8)
    granite = huggingface.read_config(LEAST | {"model_type": "granite"}, "")
    assert (granite.attention_scale, granite.logit_divisor) == (1.0, 1.0)


def test_a_network_is_written_as_its_own_family_or_the_first_that_can_say_it():
    def written(**fields):
        return huggingface.write_config(TINY.replace(**fields))["model_type"]

    assert written() == "llama" and written(family="mistral") == "mistral" and written(window=9) == "mistral"
    assert written(qkv_bias=True) == "qwen2" and written(qkv_bias=True, o_bias=True) == "llama"
    assert written(qk_norm=True, window=9) == "qwen3" and written(family="qwen3") == "llama"
    assert written(logit_divisor=2.0) == "granite" and written(family="phi3") == "llama", "heads wider than D / H"
    for fields, words in (
        (dict(qkv_bias=True, mlp_bias=True), "mlp_bias, qkv_bias: export another format"),
        (dict(window=9, logit_divisor=2.0), "multipliers, window: export another"),
    ):
        with pytest.raises(ValueError, match=rf"transformers has no architecture that joins head_dim, {words}"):
            written(**fields)
