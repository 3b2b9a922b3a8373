"""Every test sees eight simulated CPU devices and a JAX that refuses silent broadcasting.

The fixtures are what the tests of whole runs share: a small corpus with its tokenizer, a run of each recipe, and runs
as processes.
"""

import atexit
import fcntl
import gc
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

# The suite is bound by compilation: little optimisation halves it, and leaves the programs' meaning alone; so does code
# that is made in one piece.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
)
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # programs without the lines that they come from: less tracing
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # the user's own folder stays as it is
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["COLUMNS"] = "200"  # tables whole, however long the paths in them

import jax
import pytest

from camelid.data.tokenizer_training import train_sentencepiece
from camelid.launch.cli import main
from camelid.model.sharding import make_mesh
from camelid.train import run

jax.config.update("jax_numpy_rank_promotion", "raise")

# What all processes of the suite share: pytest's workers, and the runs that tests start.
if "CAMELID_TESTS_SHARED" not in os.environ:
    os.environ["CAMELID_TESTS_SHARED"] = tempfile.mkdtemp(prefix="camelid-tests-")
    atexit.register(shutil.rmtree, os.environ["CAMELID_TESTS_SHARED"], ignore_errors=True)
SHARED = Path(os.environ["CAMELID_TESTS_SHARED"])

gc.set_threshold(50_000, 20, 20)  # tracing makes objects by the million, few of them in cycles

# A job in the background of a shell, or under nohup, ignores these signals, and so would every process that a test
# sends one to.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

CONFIG = Path(__file__).with_name("tiny.py")
RL_CONFIG = Path(__file__).with_name("tiny_rl.py")
COLOURS = ["red", "blue", "green", "black", "white"]
ANIMALS = ["fox", "owl", "horse", "whale", "wolf", "bee", "狐狸", "鲸鱼"]


# Files whose tests take more than about six CPU seconds together, whole runs aside: they compile networks or start
# processes.
SLOW_FILES = {
    Path(__file__).parent / folder / f"test_{name}.py"
    for folder, names in {
        "checkpoints": "differences streaming",
        "checkpoints/interop": "families gguf huggingface peft",
        "evals": "code_execution harness llama_protocol",
        "examples": "examples",
        "launch": "distributed doctor local slurm",
        "launch/plans": "budgets planned_run serving",
        "launch/sweeps": "page start study vectorized workers",
        "model": "attention cache config decode llama logprobs lora quantization ring_attention "
        "sampling sharding speculative",
        "rlhf": "dpo losses ppo rollout",
        "serve": "adapters embeddings engine grammar",
        "tasks": "primer",
        "train": "adam_8bit by_layer lisa longer loss_goldens optimizer other_meshes processes state vectorized",
    }.items()
    for name in names.split()
}
assert all(file.exists() for file in SLOW_FILES)


def pytest_collection_modifyitems(items):
    """Whole runs come first, so that no process is left with minutes of them when the other has nothing more to do: the
    quickstart in one process, while the other makes the runs that the rest share.

    `slow` are whole runs and the tests of `SLOW_FILES`; `make test-fast` leaves them out.
    """
    for item in items:
        if not {"corpus", "quickstart_run"}.isdisjoint(item.fixturenames) or item.path in SLOW_FILES:
            item.add_marker("slow")
    items.sort(key=lambda item: ("quickstart_run" not in item.fixturenames, "corpus" not in item.fixturenames))


def shared(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name`, which make(folder) fills in the first process that asks for it; the others wait."""
    folder, made = SHARED / name, SHARED / f"{name}.made"
    with (SHARED / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            made.touch()
    return folder


def finished_run(name: str, arguments: Callable[[Path], list[str]]) -> Path:
    """A finished run that processes share, on eight devices also where a module asks for one (`one_device`)."""

    def make(workdir: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "make_mesh", make_mesh)
            assert main(arguments(workdir)) == 0

    return shared(name, make)


@pytest.fixture(scope="module", autouse=True)
def leave_nothing():
    """What a file's tests leave in the process is gone for the next file: folders that they appended to `sys.path`, as
    reading a config does, environment variables, as `camelid plan` sets them for its topology, and their compiled
    programs, which would take gigabytes in the end."""
    before = list(sys.path)
    with mock.patch.dict(os.environ):
        yield
    sys.path[:] = before
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="module")
def one_device():
    """Runs of a module that asks for this take as many of the eight devices as their mesh names, and one by default,
    which compiles in half of the time."""

    def small_mesh(axes, devices=None):
        return make_mesh(axes, (devices or jax.devices())[: math.prod(size for size in axes.values() if size != -1)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_mesh", small_mesh)
        yield


@pytest.fixture(scope="session")
def corpus() -> Path:
    """A folder with text.jsonl, chat.jsonl (Alpaca's fields), pairs.jsonl and tokenizer/: sentences that are easily
    learnt. Of the pairs, answers that say blue are preferred."""
    return shared("corpus", make_corpus)


def make_corpus(root: Path) -> None:
    rng = random.Random(0)
    pairs = [(rng.choice(COLOURS), rng.choice(ANIMALS)) for _ in range(700)]
    text = [
        {"text": " ".join(f"the {c} {a} sees {n} {c} {a}s." for n in range(len(c) % 3 + 1))} for c, a in pairs[:300]
    ]
    chat = [
        {"instruction": f"Which colour has the {c} {a} number {n}?", "input": "", "output": f"It is {c}, {a}."}
        for n, (c, a) in enumerate(pairs[300:])
    ]
    for name, records in {"text": text, "chat": chat, "pairs": make_pairs()}.items():
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        (root / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    train_sentencepiece(
        [r["text"] for r in text] + [r["instruction"] + r["output"] for r in chat],
        vocab_size=352,
        output_dir=root / "tokenizer",
        special_tokens=["<|im_start|>", "<|im_end|>"],
    )


def make_pairs() -> list[dict]:
    rng, pairs = random.Random(1), []
    for n in range(400):
        colour, animal = rng.choice(COLOURS), rng.choice(ANIMALS)
        other = rng.choice([c for c in COLOURS if c != "blue"])
        pairs.append(
            {
                "kind": "preference",
                "messages": [{"role": "user", "content": f"Which colour has the {colour} {animal} number {n}?"}],
                "chosen": [{"role": "assistant", "content": f"It is blue, {animal}."}],
                "rejected": [{"role": "assistant", "content": f"It is {other}, {animal}."}],
            }
        )
    return pairs


def train_arguments(corpus, recipe, workdir, init_from=None) -> list[str]:
    start = f",init_from={init_from}" if init_from else ""
    return ["train", f"--config={CONFIG}:root={corpus},recipe={recipe}{start}", f"--workdir={workdir}"]


@pytest.fixture(scope="session")
def arguments(corpus):
    """arguments(recipe, workdir, init_from=None): the command line of a tiny run."""
    return lambda *args, **kwargs: train_arguments(corpus, *args, **kwargs)


@pytest.fixture(scope="session")
def pretrained(arguments) -> Path:
    """The run directory of a finished pretraining, on eight devices."""
    return finished_run("pretrained", lambda workdir: arguments("pretrain", workdir))


@pytest.fixture(scope="session")
def tuned(arguments, pretrained) -> Path:
    """The run directory of a finished tuning, from `pretrained`."""
    return finished_run("tuned", lambda workdir: arguments("sft", workdir, init_from=pretrained))


@pytest.fixture(scope="session")
def rl_arguments(corpus):
    """rl_arguments(recipe, workdir, **arguments of tiny_rl.py): the command line of a tiny run."""

    def line(recipe, workdir, **given) -> list[str]:
        given = {"root": corpus, "recipe": recipe} | given
        config = ",".join(f"{name}={value}" for name, value in given.items())
        return ["train", f"--config={RL_CONFIG}:{config}", f"--workdir={workdir}"]

    return line


@pytest.fixture(scope="session")
def reward_run(rl_arguments, tuned) -> Path:
    """The run directory of a finished reward model, from `tuned`."""
    return finished_run("reward", lambda workdir: rl_arguments("reward", workdir, init_from=tuned))


@pytest.fixture(scope="session")
def start():
    """start(arguments, devices): the camelid command as a process; all of them share a cache of compiled programs."""
    environment = os.environ | {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(SHARED / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    running = []

    def popen(arguments, devices: int = 2) -> subprocess.Popen:
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"  # the last one counts
        process = subprocess.Popen(
            [sys.executable, "-c", "import sys; from camelid.launch.cli import main; sys.exit(main())", *arguments],
            env=environment | {"XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
        return process

    yield popen
    for process in running:
        process.kill()


@pytest.fixture(scope="session")
def metrics():
    """metrics(workdir): the whole lines of metrics.jsonl, to which a run may be writing; one dict for each step."""

    def read(workdir) -> dict[int, dict[str, float]]:
        steps = {}
        for line in (Path(workdir) / "metrics.jsonl").read_text().split("\n")[:-1]:
            record = json.loads(line)
            steps.setdefault(record["step"], {}).update(record)
        return steps

    return read
