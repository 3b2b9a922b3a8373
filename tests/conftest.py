"""Every test sees eight simulated CPU devices and a JAX that refuses silent broadcasting."""

import os

# The suite is bound by compilation: little optimisation halves it, and leaves the programs' meaning alone.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
    ]
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402  (the flags come first)

jax.config.update("jax_numpy_rank_promotion", "raise")
