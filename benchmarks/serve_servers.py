"""Servers of OpenAI's protocol as processes, for the benchmarks of serving."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

import httpx


class Server(NamedTuple):
    """A process that serves a model."""

    name: str
    """Its name in tables."""

    process: subprocess.Popen
    url: str
    """Its address, with /v1."""

    model: str
    """The model's name for clients."""

    log: IO[str]
    """What it printed."""

    @classmethod
    def start(cls, name: str, command: Sequence[str], cores: int, wait: float = 300) -> "Server":
        """Starts a server, and waits until it has answered a request.

        Args:
          name: its name in tables.
          command: the command line, to which `--port` is added.
          cores: number of cores that it may use, the machine's first.
          wait: most seconds until it answers.

        Raises SystemExit with the end of what it printed if it does not.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed by `stop`
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, range(cores)),
        )
        url, until = f"http://127.0.0.1:{port}/v1", time.monotonic() + wait
        while process.poll() is None and time.monotonic() < until:
            try:
                listed = httpx.get(f"{url}/models")
                if listed.status_code == 200:
                    model = listed.json()["data"][0]["id"]
                    body = {"model": model, "prompt": "the of and " * 100, "max_tokens": 16}
                    if httpx.post(f"{url}/completions", json=body, timeout=wait).status_code == 200:
                        return cls(name, process, url, model, log)
            except httpx.HTTPError:
                pass
            time.sleep(0.5)
        process.kill()
        log.seek(0)
        raise SystemExit(f"{name} does not serve: {shlex.join(command)}\n{log.read()[-2000:]}")

    def memory(self, what: str = "VmRSS") -> int:
        """Bytes of memory of the process (Linux): VmRSS now, VmHWM at its peak."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(status.split(f"{what}:")[1].split()[0])

    def used(self) -> tuple[float, float]:
        """CPU seconds of the server, and of all processes besides server and clients (Linux)."""
        ticks = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        own = sum(map(int, ticks[11:13])) / os.sysconf("SC_CLK_TCK")
        user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
        everything = (user + nice + system) / os.sysconf("SC_CLK_TCK")
        return own, everything - own - time.process_time()

    def stop(self) -> None:
        """Ends the server."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()


def camelid(gguf: str, max_len: int, cores: int, options: str = "") -> Server:
    """`camelid serve`. options: of its command line, as text."""
    program = str(Path(sys.executable).with_name("camelid"))
    command = [program, "serve", gguf, f"--max_len={max_len}", *shlex.split(options)]
    return Server.start(" ".join(["camelid", *options.split()]), command, cores)


def llama_cpp_python(python: str, gguf: str, max_len: int, cores: int) -> Server:
    """llama-cpp-python's server, which writes one answer at a time.

    Its default `interrupt_requests` would cut off an answer when the next request comes, and `logits_all` would compute
    logits of whole prompts: both are off.
    """
    settings = dict(model=gguf, n_ctx=max_len, n_threads=cores, n_threads_batch=cores)
    settings |= dict(interrupt_requests=False, logits_all=False, verbose=False)
    options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    return Server.start("llama-cpp-python", [python, "-m", "llama_cpp.server", *options], cores)


def llama_server(program: str, gguf: str, max_len: int, cores: int, slots: int = 8) -> Server:
    """llama.cpp's own server, which writes `slots` answers at a time."""
    options = ["-c", str(max_len * slots), "-np", str(slots), "-t", str(cores), "--no-webui"]
    return Server.start("llama-server", [program, "-m", gguf, *options], cores)
