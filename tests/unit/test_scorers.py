"""level0_scores(): the three scorers against the oracle, with tolerances from rounding alone."""

import importlib.util

import pytest
import torch

from lighthouse import LighthouseConfig
from lighthouse.scorers import level0_scores
from tests.support import oracle
from tests.support.inputs import QKV, in_projection_order, leaves, normal, to
from tests.support.tiers import tiers

SCORERS = ["norm", "dilated", "gla"]

# name: (batch, tokens, head dimension, query heads, key/value heads, dilation, chunks)
SHAPES = {
    "one head": (1, 32, 8, 1, 1, 4, 1),
    "plain multi-head": (2, 36, 5, 3, 3, 3, 1),
    "grouped": (2, 40, 7, 6, 2, 2, 1),
    "multi-query": (1, 40, 3, 4, 1, 5, 1),
    "chunks": (1, 48, 6, 2, 2, 4, 2),
    "grouped chunks": (2, 72, 5, 4, 2, 3, 4),
    "no dilation": (1, 300, 4, 2, 1, 1, 1),
    "head dimension one": (1, 32, 1, 2, 2, 2, 2),
    "subsequences of one token": (1, 16, 4, 2, 1, 8, 2),
}


def build(scorer: str, dilation: int = 4, num_chunks: int = 1) -> LighthouseConfig:
    return LighthouseConfig(
        num_levels=2,
        pooling_factor=2,
        topk=2 * num_chunks,
        stratum=2,
        scorer=scorer,  # type: ignore[arg-type]
        dilation=dilation,
        num_chunks=num_chunks,
    )


def make(name: str, scorer: str) -> tuple[LighthouseConfig, QKV]:
    B, N, D, Hq, Hkv, dilation, num_chunks = SHAPES[name]
    q_BHND = normal((B, Hq, N, D), 1)
    k_BHND, v_BHND = normal((B, Hkv, N, D), 2), normal((B, Hkv, N, D), 3)
    return build(scorer, dilation, num_chunks), (q_BHND, k_BHND, v_BHND)


def largest_norm(x: torch.Tensor) -> float:
    return x.double().norm(dim=-1).max().item()


def budget(config: LighthouseConfig, inputs: QKV, dtype: torch.dtype) -> float:
    """Largest error of a score whose sums are in fp32 and whose stored values are in `dtype`.

    A sum of n rounded products is off by at most n * eps times the sum of their sizes. Of the
    scorers' stored intermediate values there are three in a row: weights or scaled queries, the
    product of queries and keys, the output.
    """
    sums, store = torch.finfo(torch.float32).eps, torch.finfo(dtype).eps
    q, k, v = (largest_norm(x) for x in inputs)
    D = inputs[0].shape[-1]
    if config.scorer == "norm":
        return (D + 4) * sums * max(q, k)
    n = inputs[0].shape[2] // config.num_chunks // config.dilation
    logit = q * k * D**-0.5
    if config.scorer == "dilated":
        # An error of a logit is a relative error of its weight, and the weights sum to 1.
        return (2 * (D + 4) * logit + n + D + 8) * sums * v + 3 * store * v
    # 1 / (1 - decay) bounds the sum of the decays.
    size = logit * v * min(n, 1 / (1 - 2 ** (-1 / 16)))
    return (n + 2 * D + 16) * sums * size + 3 * store * size


def assert_scores(config: LighthouseConfig, inputs: QKV, dtype: torch.dtype) -> None:
    inputs = to(inputs, dtype)
    actual = level0_scores(*inputs, config)
    q, k, v = to(inputs, torch.float64)
    expected = oracle.level0_scores(config, q.numpy(), k.numpy(), v.numpy())
    for got_BHN, want_BHN in zip(actual, expected, strict=True):
        assert got_BHN.dtype == torch.float32
        torch.testing.assert_close(
            got_BHN.double(),
            torch.from_numpy(want_BHN),
            rtol=0,
            atol=budget(config, inputs, dtype),
        )


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("name", SHAPES)
def test_equals_the_oracle(name: str, scorer: str) -> None:
    assert_scores(*make(name, scorer), dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scorer", SCORERS)
def test_other_dtypes(scorer: str, dtype: torch.dtype) -> None:
    """The norm scorer works in fp32 whatever the inputs are; the others attend in their dtype."""
    assert_scores(*make("grouped", scorer), dtype=dtype)


@pytest.mark.parametrize("scorer", SCORERS)
def test_no_gradient(scorer: str) -> None:
    config, inputs = make("grouped", scorer)
    scores = level0_scores(*leaves(inputs), config)
    assert not any(score.requires_grad for score in scores)


@pytest.mark.parametrize("scorer", SCORERS)
def test_strides_do_not_matter(scorer: str) -> None:
    config, inputs = make("grouped", scorer)
    strided = in_projection_order(inputs)
    assert not any(x.is_contiguous() for x in strided)
    tolerance = 2 * budget(config, inputs, torch.float64)
    for got, want in zip(
        level0_scores(*strided, config), level0_scores(*inputs, config), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("scorer", tiers(["dilated", "gla"], "dilated"))
def test_compiles_for_any_length(scorer: str) -> None:
    """Which is a symbol; by the norm all of attention is compiled so, in ``test_attention.py``."""
    config, inputs = make("chunks", scorer)
    for x in inputs:
        torch._dynamo.mark_dynamic(x, 2)

    @torch.compile(backend="eager", fullgraph=True)
    def compiled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return level0_scores(q, k, v, config)

    tolerance = 2 * budget(config, inputs, torch.float32)
    for got, want in zip(compiled(*inputs), level0_scores(*inputs, config), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("scorer", SCORERS)
def test_chunks_do_not_see_each_other(scorer: str) -> None:
    whole, alone = build(scorer, dilation=4, num_chunks=2), build(scorer, dilation=4)
    inputs = to(make("one head", scorer)[1], torch.float32)
    before = level0_scores(*inputs, whole)
    for chunk in (slice(0, 16), slice(16, 32)):
        q, k, v = (x[:, :, chunk] for x in inputs)
        part = level0_scores(q, k, v, alone)
        for got, want in zip(part, before, strict=True):
            torch.testing.assert_close(
                got, want[..., chunk], rtol=0, atol=2 * budget(whole, inputs, torch.float32)
            )


@pytest.mark.parametrize("scorer", ["dilated", "gla"])
def test_scores_are_causal_inside_their_subsequence(scorer: str) -> None:
    """Changing tokens from t on leaves the scores before t as they were."""
    config = build(scorer, dilation=4)
    inputs = make("one head", scorer)[1]
    changed = make("one head", scorer)[1]
    for x in changed:
        x[:, :, 18:] = normal(tuple(x[:, :, 18:].shape), 9)
    for before, after in zip(
        level0_scores(*inputs, config), level0_scores(*changed, config), strict=True
    ):
        assert torch.equal(before[..., :18], after[..., :18])
        assert not torch.equal(before[..., 18:], after[..., 18:])


def test_norm_by_hand() -> None:
    """3-4-5; and the larger of two query heads, token by token."""
    q_BHND = torch.tensor([[[[3.0, 4.0], [0.0, 1.0]], [[0.0, 0.0], [5.0, 12.0]]]])
    k_BHND = torch.tensor([[[[8.0, 6.0], [0.0, 0.0]]]])
    query_scores, key_scores = level0_scores(q_BHND, k_BHND, k_BHND, build("norm"))
    assert query_scores.tolist() == [[[5.0, 13.0]]]
    assert key_scores.tolist() == [[[10.0, 0.0]]]


@pytest.mark.parametrize("scorer, second", [("dilated", 3.0), ("gla", None)])
def test_two_tokens_by_hand(scorer: str, second: float | None) -> None:
    """Zero queries and keys: softmax attention is a running mean, linear attention is zero."""
    zero = torch.zeros(1, 1, 4, 1)
    v_BHND = torch.tensor([2.0, 0.0, 4.0, 1.0]).view(1, 1, 4, 1)
    query_scores, key_scores = level0_scores(zero, zero, v_BHND, build(scorer, dilation=2))
    want = [0.0] * 4 if second is None else [2.0, 0.0, second, 0.5]
    assert query_scores.flatten().tolist() == key_scores.flatten().tolist() == want


def test_gla_decay_by_hand() -> None:
    """All ones, D = 1: after t steps the state is the sum of t + 1 powers of 2**(-1/16)."""
    ones = torch.ones(1, 1, 20, 1)
    query_scores, key_scores = level0_scores(ones, ones, ones, build("gla", dilation=1))
    want = torch.tensor([sum(2 ** (-s / 16) for s in range(t + 1)) for t in range(20)])
    tolerance = 40 * torch.finfo(torch.float32).eps * want.max().item()
    torch.testing.assert_close(query_scores.flatten(), want, rtol=0, atol=tolerance)
    torch.testing.assert_close(key_scores.flatten(), want, rtol=0, atol=tolerance)


def test_gla_is_in_float32_under_autocast_too() -> None:
    inputs = tuple(x.float() for x in make("grouped", "gla")[1])
    want = level0_scores(*inputs, build("gla"))
    with torch.autocast("cpu", torch.bfloat16):
        got = level0_scores(*inputs, build("gla"))
    assert all(map(torch.equal, got, want))


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("fla") is not None, reason="fla-core is installed")
def test_gla_on_a_gpu_names_the_missing_extra() -> None:
    q, k, v = (x.bfloat16().cuda() for x in make("grouped", "gla")[1])
    with pytest.raises(ModuleNotFoundError, match="fla-core"):
        level0_scores(q, k, v, build("gla"))
