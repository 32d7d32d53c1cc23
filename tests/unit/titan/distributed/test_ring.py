"""Upstream's order of tokens, made on the device; transfers before what they run beside."""

import re
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch._inductor import config as inductor
from torch._inductor.utils import run_and_get_code
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.experimental._attention import _HeadTailLoadBalancer
from torch.testing._internal.distributed.fake_pg import FakeStore
from torchtitan.distributed.context_parallel import apply_cp_to_attention_module
from torchtitan.models.attention import ScaledDotProductAttentionWrapper

from lighthouse.titan.distributed.ring import HeadTailLoadBalancer, configure_ring
from tests.support.operators import assert_keeps_its_inputs_alone, inductor_without_code

SETTINGS = SimpleNamespace(parallelism=SimpleNamespace(context_parallel_rotate_method="allgather"))


@pytest.fixture
def ring() -> Iterator[DeviceMesh]:
    """Of two ranks, configured, which sends nothing."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        with inductor.patch(
            reorder_for_compute_comm_overlap=False,
            reorder_for_compute_comm_overlap_passes=[],
            joint_custom_post_pass=None,
            force_disable_caches=True,
        ):
            configure_ring(SETTINGS)
            yield init_device_mesh("cpu", (2,), mesh_dim_names=("cp",))
    finally:
        dist.destroy_process_group()


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


def test_a_compiled_transfer_starts_before_attention_and_is_waited_for_behind_it(
    ring: DeviceMesh,
) -> None:
    """By themselves, both are put behind attention here: fewer buffers live at a time."""

    # Products alone, of which nothing has to be compiled but their order.
    def attend(q, k, v):
        keys = k @ v
        gathered = collectives.all_gather_tensor(keys, 0, ring)
        at_hand = q @ k.T @ v
        return torch.addmm(at_hand, q @ gathered[len(keys) :].T, v)

    _, (code,) = run_and_get_code(torch.compile(attend), *torch.randn(3, 64, 64))
    pattern = r"(all_gather_into_tensor|wait_tensor)\.default\(|\.(?:add)?(mm)\("
    calls = [transfer or product for transfer, product in re.findall(pattern, code)]
    assert calls == ["mm", "all_gather_into_tensor", "mm", "mm", "wait_tensor", "mm", "mm"]


def test_a_compiled_checkpoint_keeps_its_inputs_alone(ring: DeviceMesh) -> None:
    """Not the keys and values of other ranks, which backward gathers again in any case."""
    inner = ScaledDotProductAttentionWrapper()
    apply_cp_to_attention_module([inner], ring, "sdpa")
    inputs = [x.clone().requires_grad_() for x in torch.randn(3, 1, 2, 16, 4)]
    assert_keeps_its_inputs_alone(inner, *inputs, compiler=inductor_without_code)
