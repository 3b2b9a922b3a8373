"""The devices of a machine, and their division among processes."""

import pytest

from camelid.errors import UserError
from camelid.model import host_devices
from camelid.model.host_devices import HostDevices, divide


def test_jax_says_which_devices_there_are():
    assert host_devices.host_devices() == HostDevices("cpu", 8)


@pytest.mark.parametrize(
    ("said", "platform"),
    [
        ('["gpu", "PJRT C API\\ncuda 12080", 2]', "cuda"),
        ('["gpu", "PJRT C API\\nrocm 60000", 2]', "rocm"),
        ('["tpu", "TFRT TPU v5", 2]', "tpu"),
        ('["METAL", "", 2]', "METAL"),
    ],
)
def test_gpus_of_both_makers_are_told_apart(monkeypatch, said, platform):
    monkeypatch.setattr(host_devices, "_PROBE", f"print({said!r})")
    assert host_devices.host_devices() == HostDevices(platform, 2)


def test_a_machine_without_devices_is_told_in_a_line(monkeypatch):
    monkeypatch.setattr(host_devices, "_PROBE", "raise SystemExit('no driver')")
    with pytest.raises(UserError, match="JAX finds no devices: no driver"):
        host_devices.host_devices()


def test_each_process_has_devices_of_its_own():
    def parts(platform, there, processes, each=1, environment={}):  # noqa: B006
        return divide(HostDevices(platform, there), processes, each, f"--replicas={processes}", environment)

    assert parts("cpu", 1, 2) == [{}, {}]
    assert parts("cuda", 8, 2, 2) == [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]
    given = {"CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b,7"}
    assert [each["CUDA_VISIBLE_DEVICES"] for each in parts("cuda", 3, 3, 1, given)] == ["GPU-a", "GPU-b", "7"]
    assert parts("rocm", 8, 1) == [{"ROCR_VISIBLE_DEVICES": "0"}]
    tpu = parts("tpu", 4, 4)
    assert [each["TPU_VISIBLE_CHIPS"] for each in tpu] == ["0", "1", "2", "3"]
    assert all(each["TPU_PROCESS_BOUNDS"] == each["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "1,1,1" for each in tpu)
    with pytest.raises(UserError, match="--replicas=3 with 4 devices each: there are 8: give at most 2"):
        parts("cuda", 8, 3, 4)
    with pytest.raises(UserError, match="--replicas=2 with a device each: there are 1: give at most 1"):
        parts("cuda", 1, 2)
    with pytest.raises(UserError, match="--replicas=2 with 2 chips each: a process has one chip of a TPU or all 8"):
        parts("tpu", 8, 2, 2)
    with pytest.raises(UserError, match="METAL devices cannot be divided"):
        parts("METAL", 8, 2)
