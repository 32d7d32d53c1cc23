"""Seeded inputs, with scores so far apart that rounding cannot change a selection."""

from functools import partial

import numpy as np
import torch
from hypothesis import strategies as st

from lighthouse import LighthouseConfig

QKV = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

# build(num_levels, pooling_factor, topk, ...), with the smallest strata unless said otherwise.
build = partial(LighthouseConfig, stratum=2)


def normal(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Independent normal values in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def qkv(shape_BND: tuple[int, int, int], heads: tuple[int, int], seed: int) -> QKV:
    """q (B, Hq, N, D), k and v (B, Hkv, N, D) in float64, whose norms of q and k are well apart.

    Inside a group of query heads, and inside a key/value head, all norms are distinct members of an
    evenly spaced set between 0.5 and 2: the `norm` scorer sees no ties and no near ties.
    """
    B, N, D = shape_BND
    Hq, Hkv = heads
    G = Hq // Hkv
    rng = np.random.default_rng(seed)

    def spread(count: int) -> torch.Tensor:
        ladder = np.linspace(0.5, 2.0, count * N)
        rows = [rng.permutation(ladder).reshape(count, N) for _ in range(B * Hkv)]
        return torch.from_numpy(np.stack(rows)).view(B, Hkv * count, N, 1)

    q_BHND = normal((B, Hq, N, D), seed)
    k_BHND = normal((B, Hkv, N, D), seed + 1)
    q_BHND = q_BHND / q_BHND.norm(dim=-1, keepdim=True) * spread(G)
    k_BHND = k_BHND / k_BHND.norm(dim=-1, keepdim=True) * spread(1)
    return q_BHND, k_BHND, normal((B, Hkv, N, D), seed + 2)


def to(inputs: QKV, dtype: torch.dtype) -> QKV:
    q, k, v = inputs
    return q.to(dtype), k.to(dtype), v.to(dtype)


def leaves(inputs: QKV) -> QKV:
    """Copies with the same strides that collect gradients."""
    q, k, v = (x.detach().clone().requires_grad_() for x in inputs)
    return q, k, v


def in_projection_order(inputs: QKV) -> QKV:
    """The memory order of a projection's output, (B, N, H, D), seen as (B, H, N, D)."""
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs)
    return q, k, v


@st.composite
def geometries(draw: st.DrawFn, max_seq_len: int) -> tuple[LighthouseConfig, int]:
    """A configuration and a sequence length of at most max_seq_len that fits it.

    The number of coarsest entries of a chunk is any number from the smallest allowed one up, so it
    is mostly not divisible by the number of strata.
    """
    least_sizes = [
        (num_levels, pooling_factor, stratum, num_chunks)
        for num_levels in (2, 3, 4)
        for pooling_factor in (2, 3, 5)
        for stratum in (2, 4)
        for num_chunks in (1, 2)
        if num_chunks * stratum * pooling_factor ** (num_levels - 1) <= max_seq_len
    ]
    num_levels, pooling_factor, stratum, num_chunks = draw(st.sampled_from(least_sizes))
    coarsest_width = pooling_factor ** (num_levels - 1)
    most_coarse = max_seq_len // coarsest_width // num_chunks
    num_strata = draw(st.integers(1, min(3, most_coarse // stratum)))
    chunk_coarse = draw(st.integers(num_strata * stratum, min(most_coarse, 20)))
    config = LighthouseConfig(
        num_levels=num_levels,
        pooling_factor=pooling_factor,
        topk=num_chunks * num_strata * stratum,
        stratum=stratum,
        selection=draw(st.sampled_from(("causal", "published"))),
        cover_prefix=draw(st.booleans()),
        num_chunks=num_chunks,
    )
    return config, num_chunks * chunk_coarse * coarsest_width
