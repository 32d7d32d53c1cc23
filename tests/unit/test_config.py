"""LighthouseConfig: every constraint is an error that names key, value and what would do."""

import dataclasses
import re

import pytest

from lighthouse import LighthouseConfig

# Fits 64 tokens: 16 coarsest entries, of which 8 are refined, in two chunks of two strata each.
GOOD = {
    "num_levels": 3,
    "pooling_factor": 2,
    "topk": 8,
    "stratum": 2,
    "dilation": 2,
    "num_chunks": 2,
}
SEQ_LEN = 64


def build(**changes: object) -> LighthouseConfig:
    return LighthouseConfig(**{**GOOD, **changes})  # type: ignore[arg-type]


def assert_names(message: str, *parts: object) -> None:
    """Each part appears in the message as a whole word or number."""
    for part in parts:
        assert re.search(rf"(?<![\w.-]){re.escape(str(part))}(?![\w.])", message), (part, message)


def test_defaults() -> None:
    config = LighthouseConfig(num_levels=3, pooling_factor=4, topk=1536)
    assert config.stratum == 128
    assert config.scorer == "norm"
    assert config.dilation == 4
    assert config.cover_prefix is True
    assert config.num_chunks == 1


def test_good_values_are_accepted() -> None:
    build().validate(SEQ_LEN)
    build(pooling_factor=3, num_levels=4).validate(2 * 27 * 4)
    build(topk=16).validate(SEQ_LEN)  # everything is refined: k = n_{L-1}


def test_frozen_and_hashable() -> None:
    config = build()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.topk = 16  # type: ignore[misc]
    assert config == build()
    assert hash(config) == hash(build())
    assert config != build(topk=16)


# Each row: the key at fault, its value, other changes, the sequence length, the nearest good value.
CONSTRAINTS = [
    pytest.param("num_levels", 1, {}, 64, 2, id="one level"),
    pytest.param("num_levels", 0, {}, 64, 2, id="no level"),
    pytest.param("num_levels", -2, {}, 64, 2, id="negative levels"),
    pytest.param("pooling_factor", 1, {}, 64, 2, id="one child"),
    pytest.param("pooling_factor", 0, {}, 64, 2, id="no child"),
    pytest.param("pooling_factor", -2, {}, 64, 2, id="negative children"),
    pytest.param("stratum", 0, {}, 64, 2, id="empty stratum"),
    pytest.param("stratum", 1, {}, 64, 2, id="stratum of one"),
    pytest.param("stratum", -2, {}, 64, 2, id="negative stratum"),
    pytest.param("topk", 0, {}, 64, 4, id="topk zero"),
    pytest.param("topk", -8, {}, 64, 4, id="topk negative"),
    pytest.param("topk", -9, {}, 64, 4, id="topk negative, no multiple"),
    pytest.param("topk", 9, {}, 64, 8, id="topk not divisible by num_chunks"),
    pytest.param("topk", 10, {"stratum": 4}, 64, 8, id="topk of a chunk not divisible by stratum"),
    pytest.param(
        "topk", 17, {"stratum": 8, "num_chunks": 1}, 256, 16, id="topk, stratum, no chunks"
    ),
    pytest.param("topk", 24, {}, 64, 16, id="topk above the coarsest level"),
    pytest.param(
        "topk", 64, {"stratum": 8, "num_chunks": 1}, 144, 32, id="topk above, stratum not dividing"
    ),
    pytest.param("num_chunks", 0, {}, 64, 1, id="no chunk"),
    pytest.param("num_chunks", -1, {}, 64, 1, id="negative chunks"),
    pytest.param("dilation", 0, {}, 64, 1, id="no subsequence"),
    pytest.param("dilation", -4, {}, 64, 1, id="negative dilation"),
    pytest.param("dilation", 5, {"scorer": "dilated"}, 64, 4, id="dilated, dilation"),
    pytest.param("dilation", 5, {"scorer": "gla"}, 64, 4, id="gla, dilation"),
    pytest.param("dilation", 7, {"scorer": "gla", "num_chunks": 1}, 72, 6, id="gla, even divisor"),
]


@pytest.mark.parametrize("key, value, changes, seq_len, nearest", CONSTRAINTS)
def test_constraint(
    key: str, value: int, changes: dict[str, object], seq_len: int, nearest: int
) -> None:
    with pytest.raises(ValueError) as error:
        build(**{**changes, key: value}).validate(seq_len)
    assert_names(str(error.value), key, value, nearest)
    build(**{**changes, key: nearest}).validate(seq_len)


@pytest.mark.parametrize("ranks", [-2, 0, 4])
def test_ranks_that_cannot_share_the_chunks(ranks: int) -> None:
    with pytest.raises(ValueError, match=rf"num_chunks = 2\b.* got {ranks}$"):
        build(num_chunks=2).local(ranks)


@pytest.mark.parametrize("value", [3, 5])
def test_odd_stratum(value: int) -> None:
    with pytest.raises(ValueError) as error:
        build(stratum=value, topk=120)
    message = str(error.value)
    assert_names(message, "stratum", value)
    # Both neighbours are equally near.
    assert re.search(rf"\b({value - 1}|{value + 1})\b", message), message


@pytest.mark.parametrize(
    "seq_len, nearest, changes",
    [
        (66, 64, {}),
        (63, 64, {}),
        (69, 72, {}),
        (430, 432, {"pooling_factor": 3, "num_levels": 4}),
        (4097, 4096, {"num_chunks": 1, "pooling_factor": 4}),
        (93, 90, {"scorer": "dilated", "dilation": 5, "pooling_factor": 3, "num_chunks": 1}),
        # Shorter lengths are divisible, but leave fewer coarsest entries than topk.
        (5, 32, {}),
        (19, 32, {}),
    ],
)
def test_sequence_length(seq_len: int, nearest: int, changes: dict[str, object]) -> None:
    config = build(**changes)
    with pytest.raises(ValueError) as error:
        config.validate(seq_len)
    assert_names(str(error.value), "seq_len", seq_len, nearest)
    config.validate(nearest)


@pytest.mark.parametrize("seq_len", [0, -64, 64.0, "64", True, None])
def test_sequence_length_is_a_positive_integer(seq_len: object) -> None:
    with pytest.raises(ValueError) as error:
        build().validate(seq_len)  # type: ignore[arg-type]
    assert "seq_len" in str(error.value) and repr(seq_len) in str(error.value)


def test_topk_that_no_value_can_repair() -> None:
    """8 coarsest entries cannot fill one stratum of 128: the message offers another way."""
    with pytest.raises(ValueError) as error:
        LighthouseConfig(num_levels=3, pooling_factor=2, topk=128).validate(32)
    assert_names(str(error.value), "topk", 128, "seq_len", 512)


def test_dilation_is_not_checked_for_norm() -> None:
    build(scorer="norm", dilation=5).validate(SEQ_LEN)


@pytest.mark.parametrize("scorer", ["", "Norm", "softmax", 3, None, True, ["norm"]])
def test_scorer_name(scorer: object) -> None:
    with pytest.raises(ValueError) as error:
        build(scorer=scorer)
    message = str(error.value)
    assert "scorer" in message and repr(scorer) in message
    assert_names(message, "norm", "dilated", "gla")


@pytest.mark.parametrize("key", sorted(GOOD))
@pytest.mark.parametrize("value", [True, 2.0, "2", None])
def test_wrong_type_for_an_integer(key: str, value: object) -> None:
    with pytest.raises(ValueError) as error:
        build(**{key: value})
    assert_names(str(error.value), key, "int")
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("value", [1, 0, "true", "no", None, 1.0])
def test_wrong_type_for_a_boolean(value: object) -> None:
    with pytest.raises(ValueError) as error:
        build(cover_prefix=value)
    assert_names(str(error.value), "cover_prefix", "bool")
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    "seq_len, num_levels, pooling_factor, topk, gathered_len",
    [
        (98304, 3, 4, 1536, 18432),
        (98304, 3, 4, 4096, 38912),
        (98304, 3, 2, 1536, 30720),
        (131072, 3, 4, 2048, 24576),
        (262144, 3, 4, 4096, 49152),
        (524288, 3, 4, 8192, 98304),
        (1048576, 4, 4, 4096, 65536),
    ],
)
def test_gathered_len(
    seq_len: int, num_levels: int, pooling_factor: int, topk: int, gathered_len: int
) -> None:
    """The figures of the published sizes."""
    config = LighthouseConfig(num_levels=num_levels, pooling_factor=pooling_factor, topk=topk)
    assert config.gathered_len(seq_len) == gathered_len
    assert type(config.gathered_len(seq_len)) is int


def test_gathered_len_with_chunks_counts_the_whole_sequence() -> None:
    assert build().gathered_len(SEQ_LEN) == 16 + 2 * 2 * 8


def test_gathered_len_checks_the_sequence_length() -> None:
    with pytest.raises(ValueError, match="seq_len"):
        build().gathered_len(66)


@pytest.mark.parametrize("scorer", ["norm", "dilated"])
@pytest.mark.parametrize("num_chunks", [1, 2])
def test_next_len_is_the_next_that_fits(scorer, num_chunks):
    config = LighthouseConfig(
        num_levels=2, topk=16, stratum=8, scorer=scorer, dilation=6, num_chunks=num_chunks
    )

    def fits(seq_len):
        try:
            config.validate(seq_len)
        except ValueError:
            return False
        return True

    for seq_len in range(1, 200):
        assert config.next_len(seq_len) == next(n for n in range(seq_len, 999) if fits(n))
