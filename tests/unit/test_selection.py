"""select(): the cascade, its order and its fixed shares, against the oracle and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lighthouse import LighthouseConfig, select
from tests.support import oracle
from tests.support.inputs import build, geometries, normal

SEEDS = st.integers(0, 2**32 - 1)


def few_values(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Scores full of ties."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 3, shape)).float()


def scores(shape: tuple[int, ...], seed: int, ties: bool) -> tuple[torch.Tensor, torch.Tensor]:
    make = few_values if ties else normal
    return make(shape, seed).abs().float(), make(shape, seed + 1).abs().float()


def expected(
    config: LighthouseConfig, query_scores_BHN: torch.Tensor, key_scores_BHN: torch.Tensor
) -> torch.Tensor:
    index = oracle.select_flat(config, query_scores_BHN.numpy(), key_scores_BHN.numpy())
    return torch.from_numpy(index).int()


@settings(max_examples=150)
@given(geometries(max_seq_len=1000), SEEDS, st.booleans())
def test_equals_the_oracle(geometry: tuple[LighthouseConfig, int], seed: int, ties: bool) -> None:
    config, seq_len = geometry
    query_scores_BHN, key_scores_BHN = scores((2, 2, seq_len), seed, ties)
    index = select(query_scores_BHN, key_scores_BHN, config=config, impl="reference").index
    assert torch.equal(index, expected(config, query_scores_BHN, key_scores_BHN))


def check_promises(config: LighthouseConfig, seq_len: int, index_S: torch.Tensor) -> None:
    """What holds for every selection whatever the scores are, for one row of `index`."""
    p, top = config.pooling_factor, config.num_levels - 1
    assert index_S.dtype == torch.int32
    assert index_S.shape == (config.gathered_len(seq_len),)
    flat = index_S.tolist()
    assert len(set(flat)) == len(flat)
    entries = [oracle.entry_of(config, seq_len, i) for i in flat]

    # Causal order: by window end, finer first; so children come before their parent.
    keys = [(oracle.window(config, entry)[-1], entry[0]) for entry in entries]
    assert keys == sorted(keys)

    # The whole coarsest level is there.
    members = [sorted(i for level, i in entries if level == want) for want in range(top + 1)]
    coarse = seq_len // p**top
    assert members[top] == list(range(coarse))

    # Every finer level is complete families of refined candidates: k of them.
    for level in range(top):
        parents = sorted({i // p for i in members[level]})
        assert len(parents) == config.topk
        assert members[level] == [parent * p + child for parent in parents for child in range(p)]
        assert set(parents) <= set(members[level + 1])

    # Each stratum has its fixed share of rows, at a fixed place, with m refined per level.
    chunk_coarse = coarse // config.num_chunks
    num_strata = config.topk // config.num_chunks // config.stratum
    place = 0
    for chunk in range(config.num_chunks):
        for t in range(num_strata):
            start = chunk * chunk_coarse + t * chunk_coarse // num_strata
            end = chunk * chunk_coarse + (t + 1) * chunk_coarse // num_strata
            share = end - start + config.stratum * p * top
            rows = entries[place : place + share]
            assert all(start <= i // p ** (top - level) < end for level, i in rows)
            for level in range(top):
                assert sum(row[0] == level for row in rows) == config.stratum * p
            place += share
    assert place == len(entries)

    if config.cover_prefix:
        for chunk in range(config.num_chunks):
            for level in range(top):
                first = chunk * (seq_len // config.num_chunks) // p**level
                assert set(range(first, first + p)) <= set(members[level])


@settings(max_examples=60)
@given(geometries(max_seq_len=1000), SEEDS, st.booleans())
def test_promises(geometry: tuple[LighthouseConfig, int], seed: int, ties: bool) -> None:
    config, seq_len = geometry
    selection = select(*scores((2, 3, seq_len), seed, ties), config=config, impl="reference")
    assert selection.index.shape[:2] == (2, 3)
    for index_S in selection.index.flatten(0, 1):
        check_promises(config, seq_len, index_S)


@settings(max_examples=30)
@given(geometries(max_seq_len=1000), SEEDS)
def test_slot_is_the_inverse_of_index(geometry: tuple[LighthouseConfig, int], seed: int) -> None:
    config, seq_len = geometry
    selection = select(*scores((2, 2, seq_len), seed, False), config=config, impl="reference")
    size = oracle.num_entries(config, seq_len)
    assert selection.slot.dtype == torch.int32
    assert selection.slot.shape == (2, 2, size)
    want = torch.full((2, 2, size), -1, dtype=torch.int32)
    for b in range(2):
        for h in range(2):
            for row, flat in enumerate(selection.index[b, h].tolist()):
                want[b, h, flat] = row
    assert torch.equal(selection.slot, want)


def tiny_case(selection: str, cover_prefix: bool) -> list[int]:
    """8 tokens, levels of 8, 4 and 2 entries at flat 0, 8 and 12; two refined per level."""
    config = build(3, 2, 2, selection=selection, cover_prefix=cover_prefix)
    query_scores_BHN = torch.tensor([[[0.0, 0, 5, 0, 0, 0, 0, 1]]])
    key_scores_BHN = torch.tensor([[[0.0, 0, 0, 0, 0, 3, 0, 0]]])
    index = select(query_scores_BHN, key_scores_BHN, config=config, impl="reference").index
    return index.flatten().tolist()


def test_published_by_hand_without_prefix() -> None:
    """Level 2: both. Level 1: entry 1 by its query score 5, entry 2 by its key score 3."""
    assert tiny_case("published", False) == [8, 2, 3, 9, 12, 4, 5, 10, 11, 13]


def test_published_by_hand_with_prefix() -> None:
    """Level 1: entry 0 takes the one query place, so entry 1 goes unrefined; entry 2 by its key."""
    assert tiny_case("published", True) == [0, 1, 8, 9, 12, 4, 5, 10, 11, 13]


@pytest.mark.parametrize("cover_prefix", [False, True])
def test_causal_by_hand(cover_prefix: bool) -> None:
    """Entry i of level 1 has the scores of tokens 2i - 1 and 2i, entry 0 that of token 0.

    So entry 1 has the query score 5, but entry 3 the key score 3 of token 5. With the prefix entry
    0 takes the query place, and entry 1 goes unrefined.
    """
    if cover_prefix:
        assert tiny_case("causal", True) == [0, 1, 8, 9, 12, 10, 6, 7, 11, 13]
    else:
        assert tiny_case("causal", False) == [8, 2, 3, 9, 12, 10, 6, 7, 11, 13]


@settings(max_examples=60)
@given(geometries(max_seq_len=400), SEEDS, st.data())
def test_what_each_selection_sees(
    geometry: tuple[LighthouseConfig, int], seed: int, data: st.DataObject
) -> None:
    """Scores of a stratum's entries end with the stratum, and causal ones before its last tokens.

    So scores behind the last finest entry's first token may be anything under the causal selection:
    the stratum stays as it is. Under the published one that entry is refined for them.
    """
    config, seq_len = geometry
    p, top = config.pooling_factor, config.num_levels - 1
    per_chunk = seq_len // p**top // config.num_chunks
    strata = config.num_strata // config.num_chunks
    t = data.draw(st.integers(0, strata - 1))
    end = (t + 1) * per_chunk // strata * p**top
    both = scores((1, 1, seq_len), seed, ties=False)
    later = [x.clone() for x in both]
    for x in later:
        x[..., end - p + 1 :] = 100  # ahead of all others
    before, after = (select(*x, config=config, impl="reference").index[0, 0] for x in (both, later))
    rows = end // p**top + (t + 1) * config.stratum * p * top
    refined = {i // p for i in after[:rows].tolist() if i < seq_len}
    if config.selection == "causal":
        assert torch.equal(before[:rows], after[:rows])
    else:
        assert end // p - 1 in refined


@pytest.mark.parametrize(
    ("selection", "cover_prefix", "expected_entries"),
    [
        ("causal", False, "20 21 08 09 14 15 22 16 0e 0f 17 23"),
        ("causal", True, "00 01 10 11 20 21 08 09 14 15 22 23"),
        ("published", False, "20 04 05 12 13 21 22 16 0e 0f 17 23"),
    ],
)
def test_the_worked_example(selection: str, cover_prefix: bool, expected_entries: str) -> None:
    """That of docs/method.md; an entry is written as its level and its place in hexadecimal."""
    config = build(3, 2, 2, selection=selection, cover_prefix=cover_prefix)
    query_scores = [3.0, 1, 2, 1, 1, 9, 1, 2, 4, 1, 1, 1, 1, 2, 7, 1]
    key_scores = [1.0, 1, 1, 1, 1, 1, 1, 6, 1, 1, 5, 1, 1, 1, 1, 8]
    both = (torch.tensor([[x]]) for x in (query_scores, key_scores))
    index = select(*both, config=config, impl="reference").index.flatten().tolist()
    entries = [oracle.entry_of(config, 16, i) for i in index]
    assert entries == [(int(e[0]), int(e[1], 16)) for e in expected_entries.split()]


def test_ties_go_to_the_smaller_index() -> None:
    """All scores equal: the first m/2 by query score, the next m/2 by key score."""
    config = LighthouseConfig(num_levels=2, pooling_factor=2, topk=8, stratum=4, cover_prefix=False)
    ones = torch.ones(1, 1, 22)
    index = select(ones, ones, config=config, impl="reference").index.flatten().tolist()
    # 11 coarsest entries; stratum 0 owns 0..4 and stratum 1 owns 5..10.
    refined = sorted({i // 2 for i in index if i < 22})
    assert refined == [0, 1, 2, 3, 5, 6, 7, 8]


@pytest.mark.parametrize("infinity", [float("inf"), float("-inf")])
@pytest.mark.parametrize("cover_prefix", [False, True])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_infinite_scores(infinity: float, cover_prefix: bool, share: float) -> None:
    """They are values like others: the implementation has no score to itself."""
    config = LighthouseConfig(
        num_levels=3, pooling_factor=2, topk=8, stratum=4, cover_prefix=cover_prefix
    )
    both = scores((1, 1, 44), seed=21, ties=False)
    for x in both:
        x[..., torch.from_numpy(np.random.default_rng(22).random(44) < share)] = infinity
    index = select(*both, config=config, impl="reference").index
    assert torch.equal(index, expected(config, *both))


def test_query_places_are_filled_before_key_places() -> None:
    """An entry that leads both scores takes a query place, and the key places go to the rest."""
    config = LighthouseConfig(num_levels=2, pooling_factor=2, topk=2, stratum=2, cover_prefix=False)
    query_scores_BHN = torch.tensor([[[0.0, 0, 0, 0, 9, 0, 0, 0]]])
    key_scores_BHN = torch.tensor([[[0.0, 0, 1, 0, 9, 0, 0, 0]]])
    index = select(query_scores_BHN, key_scores_BHN, config=config, impl="reference").index
    assert sorted(i for i in index.flatten().tolist() if i < 8) == [2, 3, 4, 5]


@pytest.mark.parametrize("selection, shift", [("published", 0), ("causal", -3)])
def test_a_coarser_score_is_the_largest_not_the_mean(selection: str, shift: int) -> None:
    config = LighthouseConfig(
        num_levels=2,
        pooling_factor=4,
        topk=2,
        stratum=2,
        selection=selection,  # type: ignore[arg-type]
        cover_prefix=False,
    )
    query_scores_BHN = torch.tensor([[[2.0, 2, 2, 2] + [0, 0, 3, 0] + [1, 1, 1, 1] + [0] * 4]])
    key_scores_BHN = torch.zeros(1, 1, 16)
    key_scores_BHN[..., 12] = 1
    # The causal windows of the four entries begin three tokens sooner.
    query_scores_BHN, key_scores_BHN = (
        x.roll(shift, dims=-1) for x in (query_scores_BHN, key_scores_BHN)
    )
    index = select(query_scores_BHN, key_scores_BHN, config=config, impl="reference").index
    assert sorted({i // 4 for i in index.flatten().tolist() if i < 16}) == [1, 3]


@pytest.mark.parametrize("topk", [1024, 1536])
def test_coarsest_level_that_its_strata_do_not_divide(topk: int) -> None:
    """Sizes at which the published code gathers with index -1."""
    config = LighthouseConfig(num_levels=3, pooling_factor=4, topk=topk)
    seq_len = 32768
    query_scores_BHN, key_scores_BHN = scores((1, 1, seq_len), topk, ties=False)
    index = select(query_scores_BHN, key_scores_BHN, config=config, impl="reference").index
    assert torch.equal(index, expected(config, query_scores_BHN, key_scores_BHN))


@pytest.mark.parametrize("seq_len, num_levels, topk", [(524288, 3, 8192), (2**20, 4, 4096)])
def test_more_than_65535_rows(seq_len: int, num_levels: int, topk: int) -> None:
    """Sizes at which the published code fails to launch."""
    config = LighthouseConfig(num_levels=num_levels, pooling_factor=4, topk=topk)
    query_scores_BHN, key_scores_BHN = scores((1, 1, seq_len), seq_len, ties=False)
    index = select(query_scores_BHN, key_scores_BHN, config=config, impl="reference").index
    check_promises(config, seq_len, index[0, 0])


def test_chunks_do_not_see_each_other() -> None:
    """The selection of a chunk is that of the chunk alone, shifted."""
    whole = LighthouseConfig(num_levels=3, pooling_factor=3, topk=8, stratum=2, num_chunks=2)
    alone = LighthouseConfig(num_levels=3, pooling_factor=3, topk=4, stratum=2)
    chunk_len = 45
    both = scores((1, 2, 2 * chunk_len), seed=3, ties=False)
    index_BHS = select(*both, config=whole, impl="reference").index
    entries = [
        [oracle.entry_of(whole, 2 * chunk_len, i) for i in row] for row in index_BHS[0].tolist()
    ]
    for chunk in range(2):
        part = [x[..., chunk * chunk_len : (chunk + 1) * chunk_len] for x in both]
        index = select(part[0], part[1], config=alone, impl="reference").index
        share = index.shape[-1]
        for h in range(2):
            want = [oracle.entry_of(alone, chunk_len, i) for i in index[0, h].tolist()]
            shifted = [(level, i + chunk * chunk_len // 3**level) for level, i in want]
            assert entries[h][chunk * share : (chunk + 1) * share] == shifted


def test_rows_are_independent() -> None:
    """Each (batch row, key/value head) is selected by its own scores, whatever their strides."""
    config = LighthouseConfig(num_levels=3, pooling_factor=2, topk=4, stratum=2)
    query_scores_BHN, key_scores_BHN = scores((2, 3, 40), seed=5, ties=False)
    index = select(query_scores_BHN, key_scores_BHN, config=config, impl="reference").index
    for b in range(2):
        for h in range(3):
            one = [x[b : b + 1, h : h + 1].contiguous() for x in (query_scores_BHN, key_scores_BHN)]
            assert torch.equal(
                index[b : b + 1, h : h + 1], select(*one, config=config, impl="reference").index
            )
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in scores((2, 3, 40), 5, False)]
    assert torch.equal(index, select(*strided, config=config, impl="reference").index)


def test_auto_is_the_reference_on_cpu() -> None:
    config = LighthouseConfig(num_levels=3, pooling_factor=2, topk=4, stratum=2)
    both = scores((1, 2, 40), seed=7, ties=False)
    reference = select(*both, config=config, impl="reference").index
    assert torch.equal(select(*both, config=config, impl="auto").index, reference)
    assert torch.equal(select(*both, config=config).index, reference)


CONFIG = LighthouseConfig(num_levels=2, pooling_factor=2, topk=4, stratum=2)


@pytest.mark.parametrize(
    "query_shape, key_shape, named",
    [
        ((1, 2, 16), (1, 2, 32), "(1, 2, 32)"),
        ((1, 2, 16), (1, 1, 16), "(1, 1, 16)"),
        ((2, 16), (2, 16), "(2, 16)"),
        ((1, 1, 17), (1, 1, 17), "17"),
    ],
)
def test_wrong_shapes(query_shape: tuple[int, ...], key_shape: tuple[int, ...], named: str) -> None:
    with pytest.raises(ValueError) as error:
        select(torch.ones(query_shape), torch.ones(key_shape), config=CONFIG, impl="reference")
    assert named in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_scores_are_fp32(dtype: torch.dtype) -> None:
    ones = torch.ones(1, 1, 16)
    with pytest.raises(ValueError, match=str(dtype).removeprefix("torch.")):
        select(ones.to(dtype), ones.to(dtype), config=CONFIG, impl="reference")


def test_unknown_implementation() -> None:
    ones = torch.ones(1, 1, 16)
    with pytest.raises(ValueError, match="impl = 'fast'"):
        select(ones, ones, config=CONFIG, impl="fast")
