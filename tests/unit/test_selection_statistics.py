"""Statistics of a selection, against loops over the oracle's entries."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lighthouse import LighthouseConfig, select
from lighthouse.selection_statistics import QUANTILES, refined_entries, selection_change, statistics
from tests.support import oracle
from tests.support.inputs import geometries, normal


def tokens_seen(config: LighthouseConfig, scores: list[np.ndarray]) -> list[list[set[int]]]:
    """Tokens at level 0 of the sub-sequence, for each batch row and head."""
    index_BKS = oracle.select_flat(config, *scores)
    seq_len = scores[0].shape[-1]
    return [[{int(i) for i in index_S if i < seq_len} for index_S in row] for row in index_BKS]


@settings(max_examples=40)
@given(geometries(max_seq_len=300), st.integers(0, 2**32 - 1))
def test_statistics_equal_loops_over_the_oracle(
    geometry: tuple[LighthouseConfig, int], seed: int
) -> None:
    config, seq_len = geometry
    batch, heads = 2, 3
    scores = [normal((batch, heads, seq_len), seed + i).abs().float() for i in range(4)]
    pairs = scores[:2], scores[2:]  # query and key scores of an earlier text and of a later one
    earlier, later = (
        refined_entries(select(*pair, config=config, impl="reference"), config, seq_len)
        for pair in pairs
    )
    values = statistics(*pairs[1], later, earlier)

    before, now = (tokens_seen(config, [x.numpy() for x in pair]) for pair in pairs)
    by_any_head = [len(set.union(*row)) for row in now]
    expected = {"full_resolution_share": sum(by_any_head) / (batch * seq_len)}
    kept = sum(len(before[b][h] & now[b][h]) for b in range(batch) for h in range(heads))
    chosen = batch * heads * config.topk * config.pooling_factor
    by_chance = 1 - config.topk * config.pooling_factor / seq_len
    expected["selection_change"] = (1 - kept / chosen) / by_chance if by_chance else 0.0
    for kind, pooled in zip(("query", "key"), pairs[1], strict=True):
        for quantile in QUANTILES:
            rows = [float(np.quantile(row, quantile)) for row in pooled.flatten(0, 1).numpy()]
            expected[f"{kind}_score_p{round(100 * quantile)}"] = sum(rows) / len(rows)
    assert {name: value.item() for name, value in values.items()} == pytest.approx(
        expected, rel=1e-5, abs=1e-6
    )


def test_change_of_equal_and_of_independent_selections() -> None:
    config = LighthouseConfig(num_levels=2, topk=64, stratum=64)

    def refined(seed: int) -> torch.Tensor:
        pair = (normal((2, 8, 1024), seed + i).abs().float() for i in range(2))
        return refined_entries(select(*pair, config=config), config, 1024)

    first, second = refined(0), refined(10)
    assert selection_change(first, first) == 0
    # 1,024 refined entries, of which a quarter coincide by chance: a deviation of 0.014.
    assert selection_change(second, first).item() == pytest.approx(1, abs=0.07)
    everything = torch.ones_like(first)
    assert selection_change(everything, everything) == 0
