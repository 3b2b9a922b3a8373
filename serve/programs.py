"""The programs of an engine, compiled before the first request, and the arrays on the device that they change."""

import functools
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..checkpoints.language_model import LanguageModel
from ..model import slots, xla_cpu
from ..model.cache import Cache
from ..model.decoder import Decoder
from ..model.llama import Params
from ..model.rows import Rows, insert, make_decoder
from ..model.sampling import Sampling, TokenTables, unused_mask
from ..model.slots import Found, Hidden, Start


class Program(NamedTuple):
    """A compiled function."""

    name: str
    call: Callable[..., Any]
    seconds: float
    """How long tracing and compiling took."""
    bytes: int
    """Memory that it takes besides its arguments and results."""


def compile_program(name: str, function: Callable, *arguments: Any, changes: int | None = None, options=()) -> Program:
    """Compiles a function for arguments of these shapes.

    Args:
      name: the program's name.
      function: the function.
      *arguments: its arguments, or others of the same shapes.
      changes: which argument, if any, is changed in place: the function returns it, alone or first of two results.
      options: compiler options.
    """
    begin, how = time.perf_counter(), {}
    if changes is not None:
        same = jax.tree.map(lambda x: x.sharding, arguments[changes])
        alone = jax.tree.structure(jax.eval_shape(function, *arguments)) == jax.tree.structure(arguments[changes])
        how = dict(donate_argnums=changes, out_shardings=same if alone else (same, None))
    jitted = jax.jit(function, compiler_options=dict(options) or None, **how)
    done = jitted.lower(*arguments).compile()
    memory = done.memory_analysis()
    return Program(name, done, time.perf_counter() - begin, 0 if memory is None else memory.temp_size_in_bytes)


class Call(NamedTuple):
    """A function of the rows with its arguments, to be compiled by `compile_program`."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    changes: int | None = None
    """Which argument, if any, is changed in place."""
    options: Sequence[tuple[str, Any]] = ()
    """Compiler options."""


def calls_of(
    decoder: Decoder,
    rows: Rows,
    blocks: list[Cache],
    tables: TokenTables,
    offsets_RV: Any,
    *,
    chunk: int,
    most_blocks: int,
    alone: bool,
    options: Sequence[tuple[str, Any]],
) -> Iterator[Call]:
    """What a server computes with its rows, for arrays or their shapes.

    Args:
      decoder: the network.
      rows: the rows.
      blocks: the blocks of prompts that are kept.
      tables: the tokens that are never drawn.
      offsets_RV: numbers that are added to logits.
      chunk: tokens of a prompt that are read at a time.
      most_blocks: number of blocks of a row.
      alone: whether a row that is alone is stepped by a program of its own.
      options: compiler options of the network.
    """
    one, no = np.int32(0), np.bool_(False)
    tokens_C, chosen_M = np.zeros(chunk, np.int32), np.zeros(most_blocks, np.int32)
    yield Call("read", slots.read, (decoder, rows, tokens_C, one, one, one), 1, options)
    yield Call("score", slots.score, (decoder, rows, tokens_C, one, one, one, tokens_C), None, options)
    yield Call("embed", slots.embed, (decoder, rows, tokens_C, one, one, one, one), 1, options)
    yield Call("keep", slots.keep_block, (blocks, rows, one, one, one), 0)
    yield Call("restore", slots.restore, (rows, blocks, chosen_M, one, one), 0)
    yield Call("copy", functools.partial(slots.copy, size=chunk), (rows, one, one, one), 0)
    yield Call("forward", slots.forward, (decoder, rows), 1, options)
    yield Call("draw", slots.draw_next, (tables, rows, offsets_RV, offsets_RV, no, no), 1)
    if alone:
        yield Call("forward alone", slots.forward_alone, (decoder, rows, one), 1, options)


class Programs:
    """The rows of a server on the device, and what can be done with them.

    Args:
      model: the model.
      rows: number of answers that are written at a time.
      length: slots of a row, a multiple of `chunk`.
      chunk: tokens of a prompt that are read at a time, and of a block.
      blocks: number of blocks of prompts that are kept.
      adapters: adapters that requests may choose; numbers of adapters are 1 for the first, and 0 for none.
      alone: whether a row that is alone is stepped by a program of its own.
      report: called with each program once it is compiled.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        rows: int,
        length: int,
        chunk: int,
        blocks: int,
        adapters: Sequence[Params],
        alone: bool,
        report: Callable[[Program], None] | None = None,
    ):
        config = model.config
        self.chunk, self._vocab = chunk, config.vocab_size
        options = xla_cpu.compiler_options(model.params)
        unused = () if model.tokenizer is None else model.tokenizer.unused(config.vocab_size)
        mask = unused_mask(unused, config.vocab_size) if unused else None

        self.programs: dict[str, Program] = {}

        def compiled(name: str, function: Callable, *arguments: Any, **how: Any) -> Callable:
            program = self.programs[name] = compile_program(name, function, *arguments, **how)
            if report is not None:
                report(program)
            return program.call

        make = functools.partial(make_decoder, config, max(chunk, rows), bool(options))
        decoder = self._decoder = compiled("decoder", make, model.params, adapters)(model.params, adapters)
        state = self._rows = jax.jit(lambda: slots.empty(config, rows, length, adapters=bool(adapters)))()
        blocked = self._blocks = jax.jit(lambda: slots.empty_caches(config, blocks, chunk))()
        shifts = self._no_offsets = jax.device_put(np.zeros((rows, config.vocab_size), np.float32))
        tables = self._tables = jax.device_put(TokenTables(mask, None))

        one, number = np.int32(0), np.uint32(0)
        self.length, self.most_blocks = length, length // chunk
        key = compiled("key", _key, number, number, number)(number, number, number)
        begun = slots.start_of([0], key, Sampling(), config.vocab_size)
        compiled("start", slots.start, state, one, begun, changes=0)
        compiled("stop", slots.stop, state, one, changes=0)
        taken = compiled("take out", slots.take_out, state, one)(state, one)
        compiled("put back", insert, state, taken, one, changes=0)
        how = dict(chunk=chunk, most_blocks=self.most_blocks, alone=alone, options=options)
        for call in calls_of(decoder, state, blocked, tables, shifts, **how):
            compiled(call.name, call.function, *call.arguments, changes=call.changes, options=call.options)

    def read(self, tokens: Sequence[int], row: int, begin: int, adapter: int = 0) -> None:
        """Reads a chunk of a prompt, or less at its end, into a row."""
        tokens_C = np.zeros(self.chunk, np.int32)
        tokens_C[: len(tokens)] = tokens
        where = np.int32(row), np.int32(begin), np.int32(adapter)
        self._rows = self._call("read", self._decoder, self._rows, tokens_C, *where)

    def score(
        self, tokens: Sequence[int], row: int, begin: int, adapter: int = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log-probabilities of the tokens after the first, of up to a chunk and one more, that the row has read."""
        tokens_C, targets_C = np.zeros((2, self.chunk), np.int32)
        tokens_C[: len(tokens[: self.chunk])] = tokens[: self.chunk]
        targets_C[: len(tokens) - 1] = tokens[1:]
        where = np.int32(row), np.int32(begin), np.int32(adapter)
        return jax.device_get(self._call("score", self._decoder, self._rows, tokens_C, *where, targets_C))

    def embed(self, tokens: Sequence[int], row: int, begin: int, adapter: int = 0) -> Hidden:
        """Reads a chunk of a text, or less at its end, into a row, and gives its states as arrays of numpy."""
        tokens_C = np.zeros(self.chunk, np.int32)
        tokens_C[: len(tokens)] = tokens
        where = np.int32(len(tokens)), np.int32(row), np.int32(begin), np.int32(adapter)
        self._rows, hidden = self._call("embed", self._decoder, self._rows, tokens_C, *where)
        return jax.device_get(hidden)

    def keep(self, row: int, number: int, block: int) -> None:
        """Copies a whole chunk of a row, by its number, to a block."""
        begin = np.int32(number * self.chunk)
        self._blocks = self._call("keep", self._blocks, self._rows, np.int32(row), begin, np.int32(block))

    def restore(self, blocks: Sequence[int], row: int) -> None:
        """Copies blocks to the beginning of a row."""
        chosen_M = np.zeros(self.most_blocks, np.int32)
        chosen_M[: len(blocks)] = blocks
        self._rows = self._call("restore", self._rows, self._blocks, chosen_M, np.int32(len(blocks)), np.int32(row))

    def copy(self, source: int, row: int, filled: int) -> None:
        """Copies the first `filled` slots of a row to another."""
        self._rows = self._call("copy", self._rows, np.int32(source), np.int32(row), np.int32(filled))

    def start(
        self, row: int, prompt: Sequence[int], sampling: Sampling, seed: int, sample: int, adapter: int = 0
    ) -> None:
        """Lets a row that has read all tokens of a prompt but the last answer it from the next step on.

        Its tokens are those of the answer number `sample` of `decode.generate` with this seed.
        """
        prompt_id = zlib.crc32(np.asarray(prompt, np.int32).tobytes())
        key = self._call("key", np.uint32(seed), np.uint32(prompt_id), np.uint32(sample))
        how: Start = slots.start_of(prompt, key, sampling, self._vocab, adapter)
        self._rows = self._call("start", self._rows, np.int32(row), how)

    def stop(self, row: int) -> None:
        """Frees a row."""
        self._rows = self._call("stop", self._rows, np.int32(row))

    def take_out(self, row: int) -> Rows:
        """A copy of a row that answers, with its cache in the host's memory."""
        taken = self._call("take out", self._rows, np.int32(row))
        return taken._replace(caches=jax.device_get(taken.caches))

    def put_back(self, row: int, taken: Rows) -> None:
        """Lets a row go on where one that was taken out ended."""
        self._rows = self._call("put back", self._rows, taken, np.int32(row))

    def forward(self, alone: int | None = None) -> jax.Array:
        """Logits [R, V] of the next token of each row that answers, which may still be computed.

        alone: the only row that answers, for its own program.
        """
        name, row = ("forward", ()) if alone is None else ("forward alone", (np.int32(alone),))
        self._rows, logits_RV = self._call(name, self._decoder, self._rows, *row)
        return logits_RV

    def draw(self, logits_RV: jax.Array, offsets_RV: Float[np.ndarray, "R V"] | None, wants_top: bool) -> Found:
        """A token for each row that answers, as arrays of numpy."""
        offsets = self._no_offsets if offsets_RV is None else offsets_RV
        how = offsets, np.bool_(offsets_RV is not None), np.bool_(wants_top)
        self._rows, found = self._call("draw", self._tables, self._rows, logits_RV, *how)
        return jax.device_get(found)

    def _call(self, name: str, *arguments: Any) -> Any:
        return self.programs[name].call(*arguments)


def _key(seed: Int[Array, ""], prompt_id: Int[Array, ""], sample: Int[Array, ""]) -> jax.Array:
    """The key of an answer, as in `model.rows.prefill`."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(jnp.uint32(seed)), prompt_id), sample)
