"""Which tokens are sent where, for windows across context-parallel ranks, and when."""

import pytest
import torch

from lighthouse.titan.distributed.exchange import after, transfers
from tests.support.inputs import normal

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
            piece = tokens[sender][t.start : t.start + t.tokens]
            assert piece == list(range(t.first, t.first + t.tokens))
            arrived[t.chunk] += piece
        for place, chunk in enumerate(owned(receiver)):
            start = chunk * CHUNK
            assert arrived[place] == list(range(max(0, start - reach), start))


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
