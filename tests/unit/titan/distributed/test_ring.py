"""Upstream's order of tokens, made on the device; transfers before what they run beside."""

import re
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch._inductor import config as inductor
from torch._inductor.utils import run_and_get_code
from torch.distributed.tensor.experimental._attention import _HeadTailLoadBalancer
from torch.testing._internal.distributed.fake_pg import FakeStore

from lighthouse.titan.distributed.ring import HeadTailLoadBalancer, configure_ring


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("seq_len, ranks", [(2, 1), (8, 2), (48, 3), (64, 8)])
def test_tokens_are_ordered_as_upstream_orders_them(
    seq_len: int, ranks: int, restore: bool
) -> None:
    ours, upstream = (
        balancer(seq_len, ranks, "cpu")._generate_indices(restore)
        for balancer in (HeadTailLoadBalancer, _HeadTailLoadBalancer)
    )
    assert torch.equal(ours, upstream)
    assert ours.dtype == upstream.dtype


def test_a_compiled_transfer_starts_before_attention_and_is_waited_for_behind_it() -> None:
    """By themselves, both are put behind attention here: fewer buffers live at a time."""
    settings = SimpleNamespace(context_parallel_rotate_method="allgather")

    # Products alone, of which nothing has to be compiled but their order.
    def ring(q, k, v):
        keys = k @ v
        gathered = collectives.all_gather_tensor(keys, 0, dist.group.WORLD)
        at_hand = q @ k.T @ v
        return torch.addmm(at_hand, q @ gathered[len(keys) :].T, v)

    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        with inductor.patch(
            reorder_for_compute_comm_overlap=False,
            reorder_for_compute_comm_overlap_passes=[],
            force_disable_caches=True,
        ):
            configure_ring(SimpleNamespace(parallelism=settings))
            _, (code,) = run_and_get_code(torch.compile(ring), *torch.randn(3, 64, 64))
    finally:
        dist.destroy_process_group()
    pattern = r"(all_gather_into_tensor|wait_tensor)\.default\(|\.(?:add)?(mm)\("
    calls = [transfer or product for transfer, product in re.findall(pattern, code)]
    assert calls == ["mm", "all_gather_into_tensor", "mm", "mm", "wait_tensor", "mm", "mm"]
