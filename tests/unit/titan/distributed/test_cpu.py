"""What CPU training brings of its own."""

import pytest

from lighthouse.titan.distributed.cpu import HostMemoryMonitor, distinct_seed_mesh_dims


def test_host_memory_is_a_share_of_the_machine() -> None:
    monitor = HostMemoryMonitor("cpu")
    stats = monitor.get_peak_stats()
    assert monitor.device_name
    assert 0.05 < stats.max_reserved_gib < monitor.device_capacity_gib
    share = 100 * stats.max_reserved_gib / monitor.device_capacity_gib
    assert stats.max_reserved_pct == pytest.approx(share)


def test_seeds_are_upstreams_on_an_accelerator() -> None:
    assert distinct_seed_mesh_dims("cuda") == ["pp"]
    assert distinct_seed_mesh_dims("cpu") == ["pp", "fsdp", "tp"]
