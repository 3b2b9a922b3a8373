"""Speed of a run, and its share of the hardware's peak."""

import types

import pytest

from camelid.train import throughput


def test_speed_leaves_out_pauses_and_mfu_is_the_share_of_the_devices_peak(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(throughput, "peak_flops", lambda device: 5e3)
    meter = throughput.Meter(flops_per_token=20.0)
    now[0] = 130.0
    meter.pause(20.0)
    rates = meter.read(tokens=8000, steps=4)
    assert rates == {
        "seconds_per_step": 2.5,
        "tokens_per_second": 800.0,
        "tokens_per_second_per_device": 100.0,
        "mfu": pytest.approx(100.0 * 20.0 / 5e3),
    }
    now[0] = 140.0
    assert meter.read(tokens=8000, steps=4)["tokens_per_second"] == 800.0  # each reading starts anew


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("NVIDIA H100 80GB HBM3", 989.5e12),
        ("TPU7x", 1153.5e12),
        ("cpu", None),
    ],
)
def test_a_devices_peak_is_found_by_the_longest_name(kind, peak):
    assert throughput.peak_flops(types.SimpleNamespace(device_kind=kind)) == peak
