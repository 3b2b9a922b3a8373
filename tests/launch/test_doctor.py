"""`camelid doctor`: what each check finds where all is well, and where something is not."""

import ast
import errno
import fcntl
import json
import math
import os
import re
import resource
import shutil
import sys
import time
from pathlib import Path

import jax
import pytest

from camelid.launch.cli import main
from camelid.launch.doctor import cache, devices, group, host, software, storage
from camelid.launch.doctor.finding import Finding, run_checks, size
from camelid.launch.launching import ports


def statuses(findings) -> list[str]:
    return [finding.status for finding in findings]


def test_a_check_that_raises_is_a_finding_and_the_others_follow():
    def broken():
        yield Finding("first", "ok", "fine")
        raise RuntimeError("no\n  such thing")

    doing = [""]
    found = list(
        run_checks([("broken", broken), ("whole", lambda: [Finding("whole", "warn", "so so", "mend it")])], doing)
    )
    assert statuses(found) == ["ok", "fail", "warn"] and doing == ["whole"]
    assert "no such thing" in found[1].line() and found[2].line() == "warn whole          so so -> mend it"


@pytest.mark.parametrize(("count", "words"), [(0, "0 B"), (999, "999 B"), (1.5e9, "1.5 GB"), (2.71e13, "27.1 TB")])
def test_sizes_in_words(count, words):
    assert size(count) == words


def test_packages_at_tested_versions_are_well_and_others_are_told(tmp_path):
    constraints = tmp_path / "constraints.txt"
    there = {name: software.version_of(name) for name in software.CORE}
    constraints.write_text("# tested\n" + "\n".join(f"{name.replace('-', '_')}=={v}" for name, v in there.items()))
    assert statuses(software.check_packages(constraints)) == ["ok"]
    constraints.write_text(f"jax=={there['jax']}\noptax==0.0.1\n")
    found = list(software.check_packages(constraints))
    assert statuses(found) == ["warn"] and f"optax {there['optax']} (tested: 0.0.1)" in found[0].text
    assert statuses(software.check_packages(tmp_path / "none.txt")) == ["ok"]


@pytest.mark.parametrize(
    ("jax", "jaxlib", "flax", "failed"),
    [
        ("0.10.2", "0.10.2", "0.12.8", 0),
        ("0.11.1", "0.11.1", "0.12.9", 1),
        ("0.11.2", "0.11.2", "0.12.10", 0),
        ("0.10.2", "0.10.1", "0.12.8", 0),  # a jaxlib may be a patch older
        ("0.10.1", "0.10.2", "0.12.8", 1),
        ("0.11.0", "0.10.2", "0.12.8", 1),
    ],
)
def test_pairs_that_do_not_work_are_told(jax, jaxlib, flax, failed):
    assert statuses(software.check_pairs({"jax": jax, "jaxlib": jaxlib, "flax": flax})) == ["fail"] * failed


def test_extras_are_those_of_setup_py():
    tree = ast.parse((Path(software.__file__).parents[2] / "setup.py").read_text())
    lists = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    call = next(node.value for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
    extras = next(word.value for word in call.keywords if word.arg == "extras_require")
    for key, value in zip(extras.keys, extras.values, strict=True):
        listed = ast.dump(lists[value.id] if isinstance(value, ast.Name) else value).lower()
        for package in software.EXTRAS.get(key.value, ()):
            assert package in listed, (key.value, package)
    assert set(software.EXTRAS) - {key.value for key in extras.keys} == set()


def test_variables_that_change_a_run_are_told(monkeypatch):
    monkeypatch.setenv("JAX_DEBUG_NANS", "True")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    found = list(software.check_variables())
    assert statuses(found) == ["warn", "warn", "ok"]
    assert "JAX_DEBUG_NANS is set" in found[0].text and "XLA_FLAGS=--xla_force" in found[2].text


def test_limits_that_are_too_low_are_told_with_the_command_that_raises_them():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        found = list(host.check_limits())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found[0].status == "warn" and "only 256 open files" in found[0].text and "ulimit -n" in found[0].advice
    assert found[-1].status == "ok"


def test_a_container_limits_cores_and_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("2000000000\n")
    (tmp_path / "memory.current").write_text("500000000\n")
    assert "of which a limit of this container leaves 0.5" in next(host.check_cores()).text
    found = next(host.check_memory())
    assert found.status == "warn" and found.text == "1.5 GB of 2 GB are available"


def test_a_disk_that_is_well_has_space_speed_locks_and_a_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "BYTES", 4 << 20)
    monkeypatch.setattr(storage, "SLOW_WRITE", 0)
    monkeypatch.setattr(storage, "SLOW_SYNC", math.inf)
    monkeypatch.setattr(storage, "LITTLE_FREE", 1)
    monkeypatch.setattr(storage, "LEAST_FREE", 1)
    found = list(storage.check_storage(tmp_path / "not" / "yet" / "there"))
    assert [finding.check for finding in found] == ["disk", "clock", "locks", "disk"]
    assert statuses(found) == ["ok"] * 4 and not list(tmp_path.iterdir())


def test_a_disk_that_is_full_slow_or_closed_is_told(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(storage, "BYTES", 1 << 20)
    monkeypatch.setattr(storage, "SLOW_SYNC", 0.0)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda place: usage._replace(free=1000))
    assert statuses(storage.check_storage(tmp_path)) == ["fail", "ok", "ok", "warn"]

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    found = list(storage.check_storage(tmp_path))
    assert found[-1].status == "fail" and "is full" in found[-1].text and not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    found = list(storage.check_storage(tmp_path / "file" / "x"))
    assert found[-1].status == "fail" and "cannot be written" in found[-1].text


def test_a_disk_that_returns_other_bytes_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "BYTES", 1 << 20)
    real = os.posix_fadvise

    def damage(file, *args):
        (path := Path(os.readlink(f"/proc/self/fd/{file}"))).write_bytes(b"\0" * path.stat().st_size)
        real(file, *args)

    monkeypatch.setattr(storage.os, "posix_fadvise", damage)
    assert "read back with other bytes" in list(storage.check_storage(tmp_path))[-1].text


def test_locks_that_do_not_hold_are_told(tmp_path, monkeypatch):
    def none(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(storage.fcntl, "flock", lambda file, operation: None)
    assert statuses(storage._locks(tmp_path)) == ["fail"]
    monkeypatch.setattr(storage.fcntl, "flock", none)
    assert statuses(storage._locks(tmp_path)) == ["warn"]
    assert fcntl.flock is none  # the module's own


@pytest.mark.parametrize(("skew", "status"), [(0, "ok"), (-20, "warn"), (20, "warn"), (3600, "fail"), (-3600, "fail")])
def test_a_clock_that_differs_from_the_file_systems_is_told(tmp_path, monkeypatch, skew, status):
    now = time.time
    monkeypatch.setattr(storage.time, "time", lambda: now() + skew)
    assert statuses(storage._clock(tmp_path)) == [status]


def test_devices_compute_right_and_exchange_arrays(monkeypatch):
    monkeypatch.setattr(devices, "SECONDS", 0.0)
    assert "8 × cpu (cpu)" in next(devices.check_devices()).text
    assert statuses(devices.check_product()) == ["ok", "ok"]
    found = list(devices.check_collectives())
    assert statuses(found) == ["ok"] and "over 8 devices of this process" in found[0].text
    monkeypatch.setattr(devices.jnp, "dot", lambda x, y, **_: x @ y + 1)
    assert statuses(devices.check_product()) == ["fail", "fail"]
    monkeypatch.setattr(devices.jax.lax, "psum", lambda x, axis: jax.lax.pmax(x, axis))
    assert statuses(devices.check_collectives()) == ["fail"]


def test_accelerators_that_jax_does_not_use_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "HARDWARE", {"gpu": (str(tmp_path),)})
    monkeypatch.setenv("JAX_PLATFORMS", "")
    found = next(devices.check_devices())
    assert found.status == "fail" and "this host has GPUs" in found.text and "cuda" in found.advice
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # as asked for
    assert next(devices.check_devices()).status == "ok"


NVIDIA = """#!/bin/bash
echo "NVIDIA H100 80GB HBM3, 570.86.15, 4, 81559, 0"
echo "NVIDIA H100 80GB HBM3, 570.86.15, 40000, 81559, 2"
"""


def test_the_driver_tells_of_memory_in_use_and_of_errors(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "nvidia-smi").write_text(NVIDIA)
    (tmp_path / "nvidia-smi").chmod(0o755)
    found = list(host.check_driver())
    assert statuses(found) == ["fail", "warn", "ok"]
    assert "GPU 1" in found[0].text and "2 uncorrectable" in found[0].text and "40000 of 81559 MiB" in found[1].text
    assert found[2].text == "2 × NVIDIA H100 80GB HBM3, driver 570.86.15"
    (tmp_path / "nvidia-smi").write_text("#!/bin/bash\necho 'Driver/library version mismatch'\nexit 18\n")
    assert "version mismatch" in next(host.check_driver()).text
    (tmp_path / "nvidia-smi").write_text("#!/bin/bash\necho 'NVIDIA GB10, 580.95, [N/A], [N/A], [N/A]'\n")
    assert statuses(host.check_driver()) == ["ok"]


def test_the_cache_is_well_where_a_program_is_read_again(tmp_path):
    names = ("jax_enable_compilation_cache", "jax_compilation_cache_dir")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        assert "are not kept" in next(cache.check_cache()).text
        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_compilation_cache_dir", "")
        assert "are not kept" in next(cache.check_cache()).text
        (tmp_path / "file").touch()
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "file"))
        assert "cannot be written" in next(cache.check_cache()).text
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_the_command_prints_a_line_for_each_finding(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(storage, "BYTES", 1 << 20)
    monkeypatch.setattr(devices, "SECONDS", 0.0)
    assert main(["doctor", f"--workdir={tmp_path}"]) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert all(line[:5] in ("ok   ", "warn ") for line in lines[:-1]), said
    assert re.fullmatch(r"\d+ ok, (1 warning|\d+ warnings), 0 failed", lines[-1])
    for check in ("python", "packages", "disk", "locks", "clock", "devices", "compute", "collectives", "compile cache"):
        assert any(line[5:].startswith(f"{check} ") for line in lines), check
    assert main(["doctor", "--num_processes=2"]) == 2
    assert "--num_processes=2 does nothing without --distributed" in capsys.readouterr().err


def test_what_was_found_is_printed_where_jax_cannot_be_imported(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.setattr(storage, "BYTES", 1 << 20)
    assert main(["doctor", f"--workdir={tmp_path}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok   python") and lines[-1].endswith(" 1 failed")
    assert re.match(r"fail jax +it cannot be imported: .+ -> pip install", lines[-2])


def test_an_address_is_not_taken_for_a_folder_of_this_host():
    (found,) = storage.check_storage("gs://bucket/runs")
    assert found.status == "warn" and "gs://bucket/runs is not checked" in found.text


def test_a_check_that_does_not_answer_ends_the_command_with_what_was_found(start, tmp_path):
    process = start(["doctor", f"--workdir={tmp_path}", "--seconds=1", "--json"])
    said = process.communicate(timeout=300)[0]
    found = json.loads(said)
    assert process.returncode == 1
    assert found[0]["check"] == "python" and "no answer within 1 seconds" in found[-1]["text"]


def test_two_processes_are_checked_together(start, tmp_path):
    (tmp_path / "file").touch()
    together = ["doctor", "--seconds=300", "--distributed", f"--coordinator=127.0.0.1:{ports.free_port(os.getpid())}"]
    folders = [tmp_path, tmp_path / "file"]  # that of the second process cannot be written
    processes = [
        start([*together, "--num_processes=2", f"--process_id={i}", f"--workdir={folder}"])
        for i, folder in enumerate(folders)
    ]
    first, second = (process.communicate(timeout=300)[0] for process in processes)
    assert [process.returncode for process in processes] == [1, 1], first + second
    assert "all-reduce of 4.19 MB over 4 devices of 2 processes" in first
    assert "2 processes on 1 host," in first and "between the processes" in first
    there = [line for line in first.splitlines() if "(process 1): " in line and line.startswith("fail disk")]
    assert len(there) == 1 and "cannot be written" in there[0] and first.rstrip().endswith("1 failed")
    assert "fail" not in second and "a program that was compiled is read again" in first


def test_texts_of_all_processes_are_gathered():
    assert group._gather("über 8 hosts") == ["über 8 hosts"]
