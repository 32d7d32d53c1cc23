"""Which tokens are sent where across context-parallel ranks, when, and what is kept of them."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from lighthouse import LighthouseConfig, lighthouse_attention
from lighthouse.titan.distributed.exchange import SharedSequence, after, transfers
from tests.support.inputs import normal
from tests.support.operators import (
    Calls,
    assert_keeps_its_inputs_alone,
    inductor_without_code,
)

CHUNK = 8


@pytest.mark.parametrize("reach", [1, 7, 8, 20, 1000])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_each_chunk_gets_the_tokens_before_it_once(ranks: int, balanced: bool, reach: int) -> None:
    def owned(rank: int) -> list[int]:
        return [rank, 2 * ranks - 1 - rank] if balanced else [rank]

    tokens = {
        rank: [chunk * CHUNK + i for chunk in owned(rank) for i in range(CHUNK)]
        for rank in range(ranks)
    }
    for receiver in range(ranks):
        arrived: dict[int, list[int]] = {place: [] for place in range(len(owned(receiver)))}
        sent = [
            (t, sender)
            for sender in range(ranks)
            for t in transfers(sender, receiver, ranks, balanced, CHUNK, reach)
        ]
        for t, sender in sorted(sent, key=lambda item: item[0].first):
            end = (t.source + 1) * CHUNK
            piece = tokens[sender][end - t.tokens : end]
            assert piece == list(range(t.first, t.first + t.tokens))
            arrived[t.chunk] += piece
        for place, chunk in enumerate(owned(receiver)):
            start = chunk * CHUNK
            assert arrived[place] == list(range(max(0, start - reach), start))


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_all_tokens_before_are_no_more_than_gathering_takes(ranks: int) -> None:
    """Of others, into and out of each rank, though some chunks are sent to one twice."""
    tokens = [
        [sum(t.tokens for t in transfers(s, r, ranks, True, CHUNK, 10**6)) for r in range(ranks)]
        for s in range(ranks)
    ]
    for rank in range(ranks):
        out_of = sum(tokens[rank]) - tokens[rank][rank]
        into = sum(of_sender[rank] for of_sender in tokens) - tokens[rank][rank]
        assert out_of == into == (2 * ranks - 2) * CHUNK


def test_only_neighbours_send_what_is_shorter_than_a_chunk() -> None:
    for receiver in range(4):
        for sender in range(4):
            sends = transfers(sender, receiver, 4, True, CHUNK, CHUNK)
            neighbours = abs(sender - receiver) == 1 or sender == receiver == 3
            assert bool(sends) == neighbours


def test_after_is_a_copy() -> None:
    x, arrived = normal((2, 3), seed=0).requires_grad_(), torch.tensor([1, 2], dtype=torch.int32)
    torch.library.opcheck(torch.ops.lighthouse.after.default, (x, arrived))
    copy = after(x, arrived)
    assert torch.equal(copy, x)
    grad = normal((2, 3), seed=1)
    assert torch.equal(torch.autograd.grad(copy, x, grad)[0], grad)


def test_documents_are_cut_and_joined_without_zeros_or_waits_for_views() -> None:
    """In eager code: one wait for each collective, and no gradient of a part in zeros of all."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        shared = SharedSequence(dist.group.WORLD.group_name, 0, 2, balanced=True)
        inputs = [x.clone().requires_grad_() for x in torch.randn(3, 1, 2, 2 * CHUNK, 4)]
        starts = torch.tensor([[0, 6, 4 * CHUNK]], dtype=torch.int32)
        for attend, of_starts, collectives in (
            (shared.attend, starts, 2),
            (shared.attend_rows, starts[:, None].repeat(1, 2, 2) // 4, 3),
        ):
            with Calls() as calls:
                out = attend(*inputs, of_starts)
                torch.autograd.grad(out, inputs, torch.ones_like(out))
            assert calls.of[torch.ops._c10d_functional.wait_tensor.default] == collectives
            assert not calls.of[torch.ops.aten.slice_backward.default]
            assert not calls.of[torch.ops.aten.select_backward.default]
    finally:
        dist.destroy_process_group()


def test_a_compiled_checkpoint_keeps_its_inputs_alone() -> None:
    """Not what other ranks have sent, which is sent again instead."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        shared = SharedSequence(dist.group.WORLD.group_name, 0, 2, balanced=True)
        qkv = torch.randn(3, 1, 2, 2 * CHUNK, 4)
        inputs = [x.clone().requires_grad_() for x in qkv]
        assert_keeps_its_inputs_alone(partial(shared, window=CHUNK // 2), *inputs)
    finally:
        dist.destroy_process_group()


@pytest.mark.thorough
def test_documents_compile_in_a_checkpoint() -> None:
    """On rank 0, whose first chunk begins where the sequence does: with 0 taken from an input.

    torch 2.14 and later drop that, and then miss the input in backward.
    """
    config = LighthouseConfig(num_levels=2, pooling_factor=2, topk=4, stratum=2, num_chunks=2)
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        shared = SharedSequence(dist.group.WORLD.group_name, 0, 2, balanced=True)
        starts = torch.tensor([[0, 6, 4 * CHUNK]], dtype=torch.int32)

        def layers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            def rows(*qkv: Tensor, enable_gqa: bool, document_starts: Tensor) -> Tensor:
                return shared.attend_rows(*qkv, document_starts)

            out = lighthouse_attention(
                *(q, k, v),
                config=config,
                impl="reference",
                attention=rows,
                document_starts=starts,
                documents=shared,
            )
            return shared.attend(out, k, v, starts)

        inputs = [x.clone().requires_grad_() for x in torch.randn(3, 1, 2, 2 * CHUNK, 4)]
        assert_keeps_its_inputs_alone(layers, *inputs, compiler=inductor_without_code)
    finally:
        dist.destroy_process_group()
