"""Upstream's order of tokens, made on the device."""

import pytest
import torch
from torch.distributed.tensor.experimental._attention import _HeadTailLoadBalancer

from lighthouse.titan.context_parallel import HeadTailLoadBalancer


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
