"""Check of the folder of compiled programs: whether a program that was compiled once is read instead of compiled."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from .finding import Finding, size

HIT, MISS = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"


def check_cache() -> Iterator[Finding]:
    """Where compiled programs are kept, how many there are, and whether keeping works.

    `keep_programs` must have been called.
    """
    names = "JAX_ENABLE_COMPILATION_CACHE and JAX_COMPILATION_CACHE_DIR"
    advice = f"unset {names}: else each start compiles for seconds to minutes"
    folder = jax.config.jax_compilation_cache_dir
    if not jax.config.jax_enable_compilation_cache or not folder:  # JAX_COMPILATION_CACHE_DIR may be empty
        yield Finding("compile cache", "warn", "compiled programs are not kept", advice)
        return
    if "://" in folder:
        yield Finding("compile cache", "ok", f"{folder}, which is not opened for this check")
        return
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        probe = place / f".camelid-doctor-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        advice = "set JAX_COMPILATION_CACHE_DIR to a folder that can be written"
        yield Finding("compile cache", "warn", f"{folder} cannot be written: {error.strerror}", advice)
        return
    if jax.process_index():
        yield Finding("compile cache", "ok", f"{folder}, into which process 0 writes for all")
        return
    with _all_kept():
        events = _events_of_two_compilations()
    files = [file for file in place.iterdir() if file.name.endswith("-cache")]
    kept = sum(file.stat().st_size for file in files)
    text = f"{folder}: {len(files)} programs, {size(kept)}"
    if events[-1:] == [HIT]:
        yield Finding("compile cache", "ok", f"{text}; a program that was compiled is read again")
    else:
        advice = f"delete {folder}, or set JAX_COMPILATION_CACHE_DIR to another folder"
        yield Finding("compile cache", "warn", f"{text}; a program is compiled anew each time", advice)


@contextlib.contextmanager
def _all_kept() -> Iterator[None]:
    """Keeps programs however quickly they were compiled, while the context lasts."""
    names = ("jax_persistent_cache_min_compile_time_secs", "jax_persistent_cache_min_entry_size_bytes")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        for name in names:
            jax.config.update(name, 0)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def _events_of_two_compilations() -> list[str]:
    """What JAX says about its folder while a small program is compiled, forgotten, and compiled again."""
    events: list[str] = []

    def listen(event: str, **_) -> None:
        if event in (HIT, MISS):
            events.append(event)

    def program(x):
        return jnp.sin(x) * 23.0

    jax.monitoring.register_event_listener(listen)
    try:
        for _ in range(2):
            jax.jit(lambda x: program(x))(jax.device_put(1.0)).block_until_ready()
    finally:
        jax.monitoring.unregister_event_listener(listen)
    return events
