"""Measures how cost grows: time and memory against the size of the model, its batch, its answers and its data.

    make bench-growth

Each sweep changes one size of a small setting and leaves the others. A training step is that of `camelid train` in
float32: width 128, 4 layers, vocabulary 1,024, 8 rows of 128 tokens. A PPO step is that of `make bench-ppo`. Token
caches hold texts of 40 words. Times are medians after a first call, which compiles. Memory is what XLA counts for the
compiled step: parameters, optimiser state and batch, with the temporary memory.

Prints a table in Markdown, with the slope of each sweep in logarithms (1: twice the size costs twice as much) beside
the expected one, and draws all sweeps. What is expected is the slope of a count over the same sizes: floating point
operations for time, and for memory the bytes of parameters, moments, gradients and of what layers keep for their
backward pass.
"""

import argparse
import io
import itertools
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from camelid.benchmarks import camelid_ppo, ppo_task
from camelid.data.sources import Source
from camelid.data.text_encoder import TextEncoder
from camelid.data.token_cache import build_cache
from camelid.data.tokenizer import Tokenizer
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.model import llama
from camelid.model.config import LlamaConfig
from camelid.model.logprobs import next_token_loss
from camelid.model.sampling import Sampling
from camelid.model.sharding import make_mesh
from camelid.train.optimizer import OptimSettings, make_optimizer, make_schedule
from camelid.train.state import state_of
from camelid.train.trainable import Trainable
from camelid.train.update import make_update

WORDS_OF_TEXT = 40
FILE_ROWS = 4096  # texts in the sweep over files


class Point(NamedTuple):
    """What one size of a sweep costs, and what it is expected to cost in any unit."""

    seconds: list[float]
    """The time of each repeat."""
    work: float
    """The count to which the time should be proportional."""
    memory: float | None = None
    """Memory in bytes."""
    kept: float | None = None
    """The count to which the memory should be proportional."""


class Sweep(NamedTuple):
    """A size that is changed."""

    name: str
    """What is measured, and against what."""
    axis: str
    """The size, in words."""
    sizes: Sequence[int]
    """The sizes, in rising order."""
    measure: Callable[[int, int], Point]
    """measure(size, repeats) -> what it costs."""


class Curve(NamedTuple):
    """A measured cost over the sizes of a sweep, and the expected one."""

    title: str
    axis: str
    unit: str
    sizes: Sequence[int]
    measured: Sequence[float]
    expected: Sequence[float]

    @property
    def slopes(self) -> tuple[float, float]:
        """The slopes of the measured and of the expected cost in logarithms, by least squares."""
        return tuple(
            float(np.polyfit(np.log(self.sizes), np.log(values), 1)[0]) for values in (self.measured, self.expected)
        )


# Sweeps ---------------------------------------------------------------------------------------------------------------


def repeated(call: Callable[[], Any], repeats: int, before: Callable[[], None] = lambda: None) -> list[float]:
    """The seconds of each of `repeats` calls after a first one. `before` is called before each, and not timed."""
    seconds = []
    for _ in range(repeats + 1):
        before()
        begin = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def bytes_of(compiled: jax.stages.Compiled) -> int:
    """The memory of a compiled program, as XLA counts it."""
    memory = compiled.memory_analysis()
    own = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + own + memory.temp_size_in_bytes


def kept_bytes(config: LlamaConfig, rows: int, length: int) -> float:
    """The bytes that layers keep for their backward pass: inputs of products and norms, and half of the scores."""
    heads = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
    residuals = 4 * config.dim + heads + 3 * config.ffn_dim + config.n_heads * length / 2
    return 4.0 * rows * length * config.n_layers * residuals


def training_step(
    repeats: int, *, dim: int = 128, layers: int = 4, length: int = 128, vocabulary: int = 1024, rows: int = 8
) -> Point:
    """Time and memory of a training step of a network whose heads are 32 wide."""
    sizes = dict(vocab_size=vocabulary, dim=dim, ffn_dim=3 * dim, n_layers=layers, n_heads=dim // 32)
    config = LlamaConfig.from_dict(sizes | dict(max_len=length, tied=True, unroll=layers))
    model = llama.build(config)
    schedule = make_schedule(name="constant", lr=1e-4, total_steps=1000, warmup_steps=0, final=1.0)
    optimizer = make_optimizer(model.abstract_params, OptimSettings(), schedule)
    start = jax.jit(lambda key: state_of(model.init(key), optimizer, Trainable(), ema=False))
    state = start(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (rows, length + 1), 0, vocabulary)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "loss_mask": jnp.ones((rows, length)),
        "segment_ids": jnp.ones((rows, length), jnp.int32),
        "positions": jnp.tile(jnp.arange(length), (rows, 1)),
    }
    update = jax.jit(make_update(next_token_loss(model), optimizer, schedule), donate_argnums=0)
    compiled = update.lower(state, batch).compile()

    def step() -> Any:
        nonlocal state
        state, metrics = compiled(state, batch)
        return metrics

    work = rows * length * config.flops_per_token(length)
    kept = 16 * config.n_params + kept_bytes(config, rows, length)  # parameters, two moments, gradients
    return Point(repeated(step, repeats), work, bytes_of(compiled), kept)


def ppo_step(answer: int, repeats: int) -> Point:
    """Time and memory of a PPO step whose answers have `answer` tokens."""
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        sampling = Sampling(max_tokens=answer, temperature=ppo_task.TEMPERATURE)
        act, learn_from, network = camelid_ppo.halves(mesh, sampling)
        frozen, state = camelid_ppo.frozen_networks(), network.first_state(seed=0)
        batch = next(camelid_ppo.prompts())
        draw = jax.jit(act).lower(state, frozen, batch).compile()
        seen = jax.eval_shape(act, state, frozen, batch)
        learn = network.lower(lambda state, seen: learn_from(state, seen, {}), seen).compile()

        def step() -> Any:
            nonlocal state
            state, metrics = learn(network.base, (), state, draw(state, frozen, batch))
            return metrics

        seconds = repeated(step, repeats)
    length, config = ppo_task.PROMPT + answer, camelid_ppo.CONFIG
    work = ppo_task.PROMPTS * length * config.flops_per_token(length)
    stays = (2 * 16 + 2 * 4) * config.n_params  # policy and critic learn, reference and reward model do not
    kept = stays + 2 * kept_bytes(config, ppo_task.PROMPTS // ppo_task.MINIBATCHES, length)
    return Point(seconds, work, max(map(bytes_of, (draw, learn))), kept)


def texts(rows: int) -> Iterator[str]:
    """Texts of random words, which are the same in each call."""
    rng = np.random.default_rng(0)
    letters = rng.integers(97, 123, (2000, 8), np.uint8)
    words = [bytes(word[:size]).decode() for word, size in zip(letters, rng.integers(2, 9, 2000), strict=True)]
    for picked in rng.integers(0, len(words), (rows, WORDS_OF_TEXT)):
        yield " ".join(words[i] for i in picked)


def written(folder: Path, rows: int, files: int) -> Source:
    """A new folder of texts in files of equally many rows."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    lines = (json.dumps({"text": text}) + "\n" for text in texts(rows))
    for number in range(files):
        part = itertools.islice(lines, rows // files)
        (folder / f"{number:05d}.jsonl").write_text("".join(part))
    return Source(f"{folder}/*.jsonl", heldout=0.0)


class Caches:
    """Builds token caches in a folder."""

    def __init__(self, folder: Path):
        self.folder, self.cache = folder, folder / "cache"
        self.tokenizer: Tokenizer = train_sentencepiece(texts(2000), vocab_size=1024, output_dir=folder / "tokenizer")

    def empty(self) -> None:
        """Removes all caches."""
        shutil.rmtree(self.cache, ignore_errors=True)

    def open(self, source: Source) -> None:
        """Opens the cache of a source; builds it if there is none."""
        build_cache(source, None, TextEncoder(self.tokenizer), self.cache)

    def build(self, rows: int, repeats: int) -> Point:
        """The time of building a cache of `rows` texts in one file."""
        source = written(self.folder / "texts", rows, files=1)
        return Point(repeated(lambda: self.open(source), repeats, before=self.empty), work=rows)

    def build_of_files(self, files: int, repeats: int) -> Point:
        """The time of building a cache of FILE_ROWS texts in `files` files."""
        source = written(self.folder / "texts", FILE_ROWS, files)
        return Point(repeated(lambda: self.open(source), repeats, before=self.empty), work=1.0)

    def reopen_of_files(self, files: int, repeats: int) -> Point:
        """The time of opening a cache that is complete: its files and those of the source are compared with hashes."""
        source = written(self.folder / "texts", FILE_ROWS, files)
        return Point(repeated(lambda: self.open(source), repeats), work=files)


def sweeps(folder: Path) -> list[Sweep]:
    """All sweeps. Token caches are written to `folder`."""
    caches = Caches(folder)

    def step(field: str) -> Callable[[int, int], Point]:
        return lambda size, repeats: training_step(repeats, **{field: size})

    files = (1, 8, 64, 512, 4096)
    return [
        Sweep("training step, width", "width", (64, 128, 256, 512), step("dim")),
        Sweep("training step, depth", "layers", (2, 4, 8, 16), step("layers")),
        Sweep("training step, context", "tokens of a row", (64, 128, 256, 512, 1024), step("length")),
        Sweep("training step, vocabulary", "vocabulary", (1024, 4096, 16_384, 65_536), step("vocabulary")),
        Sweep("training step, batch", "rows", (4, 8, 16, 32, 64), step("rows")),
        Sweep("PPO step, answers", "tokens of an answer", (16, 32, 64, 128), ppo_step),
        Sweep("token cache, rows", "rows of text", (1000, 4000, 16_000, 64_000), caches.build),
        Sweep(f"token cache of {FILE_ROWS:,} rows, files", "files", files, caches.build_of_files),
        Sweep(f"complete cache of {FILE_ROWS:,} rows, files", "files", files, caches.reopen_of_files),
    ]


# Table and figure -----------------------------------------------------------------------------------------------------


def curves(sweep: Sweep, points: Sequence[Point], sizes: Sequence[int]) -> Iterator[Curve]:
    """Yields the curve of a sweep's time, and that of its memory if it was counted."""
    seconds = [statistics.median(point.seconds) for point in points]
    yield Curve(sweep.name, sweep.axis, "s", sizes, seconds, [point.work for point in points])
    if points[0].memory is not None:
        memory = [point.memory / 1e6 for point in points]
        yield Curve(sweep.name, sweep.axis, "MB", sizes, memory, [point.kept for point in points])


def row(curve: Curve) -> str:
    """The row of a curve in the table."""
    span = f"{curve.sizes[0]:,} to {curve.sizes[-1]:,}"
    least, most = (f"{cost:.3g}" if cost < 1000 else f"{cost:,.0f}" for cost in (curve.measured[0], curve.measured[-1]))
    cost = f"{least} to {most} {curve.unit}"
    measured, expected = curve.slopes
    return f"| {curve.title} | {span} | {cost} | {measured:.2f} | {expected:.2f} |"


def panel(axes: Axes, curve: Curve) -> None:
    """Draws a curve, and the expected one through its last point."""
    scale = curve.measured[-1] / curve.expected[-1]
    axes.plot(curve.sizes, [scale * x for x in curve.expected], "--", color="#999999", label="expected")
    axes.plot(curve.sizes, curve.measured, "o-", color="#0072B2", markersize=4, label="measured")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_title(curve.title, fontsize="small")
    axes.set_xlabel(curve.axis, fontsize="small")
    axes.set_ylabel("seconds" if curve.unit == "s" else curve.unit, fontsize="small")
    axes.set_xticks(curve.sizes, [f"{size:,}" for size in curve.sizes], fontsize="x-small")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.tick_params(axis="y", labelsize="x-small")
    axes.minorticks_off()
    said = "slope {:.2f}\nexpected {:.2f}".format(*curve.slopes)
    axes.text(0.04, 0.95, said, transform=axes.transAxes, verticalalignment="top", fontsize="x-small")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def draw(found: Sequence[Curve]) -> bytes:
    """All curves as an SVG file, five panels to a row: times of the training step, its memory, and the rest."""
    training = [curve for curve in found if curve.title.startswith("training step")]
    order = sorted(training, key=lambda curve: curve.unit != "s") + [curve for curve in found if curve not in training]
    columns = min(5, len(order))
    rows = -(-len(order) // columns)
    figure = Figure(figsize=(2.9 * columns, 2.6 * rows + 0.3), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, curve in itertools.zip_longest(panels, order):
        if curve is None:
            axes.axis("off")
        else:
            panel(axes, curve)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "camelid"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each size (default: 5)")
    parser.add_argument("--figure", type=Path, help="SVG file to write (default: none)")
    parser.add_argument("--only", default="", help="measure only sweeps whose name contains this text (default: all)")
    parser.add_argument("--points", type=int, help="measure only this many sizes of each sweep (default: all)")
    args = parser.parse_args()
    if args.points is not None and args.points < 2:
        parser.error(f"--points={args.points}: give 2 or more, between which there is a slope")
    found: list[Curve] = []
    print("| | sizes | cost | slope | expected |")
    print("| --- | --- | --- | --- | --- |")
    with TemporaryDirectory() as folder:
        for sweep in sweeps(Path(folder)):
            if args.only not in sweep.name:
                continue
            sizes = sweep.sizes[: args.points]
            points = [sweep.measure(size, args.repeats) for size in sizes]
            for curve in curves(sweep, points, sizes):
                found.append(curve)
                print(row(curve), flush=True)
    if args.figure is not None and found:
        args.figure.write_bytes(draw(found))


if __name__ == "__main__":
    main()
