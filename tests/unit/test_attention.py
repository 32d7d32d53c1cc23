"""lighthouse_attention() and LighthouseAttention: values, gradients, causality, coverage, errors.

Unless a test says otherwise, inputs have norms so far apart that the norm scorer selects the same
entries at every precision.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lighthouse import LighthouseAttention, LighthouseConfig, lighthouse_attention, select
from lighthouse.scorers import level0_scores
from tests.support import eager, oracle
from tests.support.inputs import (
    QKV,
    build,
    geometries,
    in_projection_order,
    leaves,
    normal,
    qkv,
    to,
)

# name: ((batch, tokens, head dimension), (query heads, key/value heads), configuration)
SHAPES = {
    "plain": ((1, 32, 8), (1, 1), build(2, 2, 4)),
    "odd everything": ((2, 63, 5), (3, 3), build(3, 3, 4)),
    "grouped": ((2, 45, 7), (4, 2), build(2, 5, 4, selection="published")),
    "multi-query": ((1, 40, 3), (6, 1), build(4, 2, 4)),
    "chunks": ((2, 70, 5), (2, 2), build(2, 5, 8, num_chunks=2)),
    "grouped chunks": (
        (1, 108, 3),
        (6, 2),
        build(3, 3, 12, num_chunks=2, selection="published"),
    ),
    "four chunks": ((1, 64, 4), (2, 1), build(3, 2, 8, num_chunks=4)),
    "head dimension one": ((2, 30, 1), (2, 1), build(2, 3, 8, stratum=4)),
    "everything refined at the top": ((1, 32, 6), (2, 2), build(3, 2, 8, stratum=4)),
    "no prefix": ((1, 44, 5), (2, 1), build(3, 2, 6, cover_prefix=False, selection="published")),
    "seven children": ((1, 98, 4), (1, 1), build(2, 7, 6)),
}
EACH_SHAPE = pytest.mark.parametrize("name", SHAPES)
Change = Callable[..., QKV]


def make(name: str, seed: int = 0) -> tuple[LighthouseConfig, QKV]:
    shape_BND, heads, config = SHAPES[name]
    return config, qkv(shape_BND, heads, seed)


def index_of(config: LighthouseConfig, inputs: QKV) -> Tensor:
    scores = level0_scores(*inputs, config)
    return select(*scores, config=config, impl="reference").index


def run(config: LighthouseConfig, inputs: QKV) -> Tensor:
    return lighthouse_attention(*inputs, config=config, impl="reference")


def run_oracle(config: LighthouseConfig, inputs: QKV) -> Tensor:
    arrays = (x.detach().double().numpy() for x in inputs)
    return torch.from_numpy(oracle.lighthouse_attention(config, *arrays))


def gradients(output: Tensor, inputs: QKV, seed: int = 17) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, inputs, normal(tuple(output.shape), seed).to(output))


def float64_budget(config: LighthouseConfig, inputs: QKV) -> float:
    """Bound on the rounding error of an output in float64.

    A token sums L rows; a row is a sum of S weighted means of up to w values, with weights whose
    relative error is that of a logit, a sum of D products of two such means. The inputs' norms of q
    and k are at most 2, hence logits at most 4.
    """
    seq_len, head_dim = inputs[0].shape[2:]
    width = config.pooling_factor ** (config.num_levels - 1)
    operations = config.gathered_len(seq_len) + 8 * (head_dim + width)
    size = config.num_levels * max(1.0, inputs[2].abs().max().item())
    return operations * torch.finfo(torch.float64).eps * size


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Memory of torch.empty starts as NaN, so that a row nobody wrote shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(before)


# ---- values


@EACH_SHAPE
def test_equals_the_oracle(name: str, poisoned_memory: None) -> None:
    config, inputs = make(name)
    torch.testing.assert_close(
        run(config, inputs),
        run_oracle(config, inputs),
        rtol=0,
        atol=float64_budget(config, inputs),
    )


@settings(max_examples=40)
@given(geometries(max_seq_len=128), st.integers(1, 3), st.integers(1, 2), st.integers(1, 5))
def test_equals_the_oracle_on_any_geometry(
    geometry: tuple[LighthouseConfig, int], group: int, kv_heads: int, head_dim: int
) -> None:
    config, seq_len = geometry
    inputs = qkv((2, seq_len, head_dim), (group * kv_heads, kv_heads), seed=seq_len)
    torch.testing.assert_close(
        run(config, inputs),
        run_oracle(config, inputs),
        rtol=0,
        atol=float64_budget(config, inputs),
    )


@pytest.mark.parametrize("num_chunks", [1, 2])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("scorer", ["dilated", "gla"])
def test_other_scorers_equal_the_oracle(
    scorer: str, heads: tuple[int, int], num_chunks: int
) -> None:
    """Neither runs in the published code, and nor do grouped heads."""
    config = build(3, 2, 4 * num_chunks, num_chunks=num_chunks, scorer=scorer, dilation=3)
    inputs = qkv((2, 48 * num_chunks, 5), heads, seed=4)
    torch.testing.assert_close(
        run(config, inputs),
        run_oracle(config, inputs),
        rtol=0,
        atol=float64_budget(config, inputs),
    )


@EACH_SHAPE
def test_eager_yardstick_equals_the_oracle(name: str) -> None:
    """In float64; the tests of gradients and of low precision rest on it."""
    config, inputs = make(name)
    index = index_of(config, inputs)
    torch.testing.assert_close(
        eager.attend_and_scatter(config, *inputs, index),
        run_oracle(config, inputs),
        rtol=0,
        atol=float64_budget(config, inputs),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@EACH_SHAPE
def test_low_precision(name: str, dtype: torch.dtype) -> None:
    """Output and gradients: at most twice the error of plain eager code plus four roundings.

    Both are measured against float64 on the same, already rounded, inputs. The four are those of a
    logit, a weight, a row and a sum of rows, which in the plain code can happen to cancel.
    """
    config, inputs64 = make(name)
    inputs = leaves(to(inputs64, dtype))
    exact_inputs = leaves(to(inputs, torch.float64))
    index = index_of(config, inputs)
    assert torch.equal(index, index_of(config, exact_inputs))

    output = run(config, inputs)
    assert output.dtype == dtype
    yardstick = eager.attend_and_scatter(config, *inputs, index)
    exact = eager.attend_and_scatter(config, *exact_inputs, index)
    for got, plain, want in zip(
        (output, *gradients(output, inputs)),
        (yardstick, *gradients(yardstick, inputs)),
        (exact, *gradients(exact, exact_inputs)),
        strict=True,
    ):
        assert got.dtype == dtype
        roundings = 4 * torch.finfo(dtype).eps * want.abs().max()
        assert (got - want).abs().max() <= 2 * (plain - want).abs().max() + roundings


@EACH_SHAPE
def test_strides_do_not_matter(name: str) -> None:
    config, inputs = make(name)
    strided, inputs = leaves(in_projection_order(inputs)), leaves(inputs)
    assert strided[0].stride() != inputs[0].stride() or 1 in inputs[0].shape
    output, want = run(config, strided), run(config, inputs)
    atol = 2 * float64_budget(config, inputs)
    torch.testing.assert_close(output, want, rtol=0, atol=atol)
    for got, expected in zip(gradients(output, strided), gradients(want, inputs), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=32 * atol)


def test_a_repeated_run_is_bitwise_the_same() -> None:
    config, inputs = make("grouped chunks")
    inputs = leaves(to(inputs, torch.bfloat16))
    first, second = run(config, inputs), run(config, inputs)
    assert torch.equal(first, second)
    for a, b in zip(gradients(first, inputs), gradients(second, inputs), strict=True):
        assert torch.equal(a, b)


def test_auto_is_the_reference_on_cpu() -> None:
    config, inputs = make("grouped")
    assert torch.equal(lighthouse_attention(*inputs, config=config), run(config, inputs))


# ---- gradients


@EACH_SHAPE
def test_gradients_equal_the_oracle(name: str, poisoned_memory: None) -> None:
    config, inputs = make(name)
    inputs = leaves(inputs)
    output = run(config, inputs)
    want = eager.attend_and_scatter(config, *inputs, index_of(config, inputs))
    for got, expected in zip(gradients(output, inputs), gradients(want, inputs), strict=True):
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(
            got, expected, rtol=0, atol=32 * scale * float64_budget(config, inputs)
        )


@pytest.mark.parametrize(
    "tokens, heads, config",
    [
        pytest.param(16, (1, 1), build(2, 2, 4), id="plain", marks=pytest.mark.thorough),
        pytest.param(18, (2, 1), build(3, 3, 2), id="grouped"),
        pytest.param(
            24, (2, 2), build(3, 2, 4, num_chunks=2), id="chunks", marks=pytest.mark.thorough
        ),
        pytest.param(20, (1, 1), build(2, 5, 2, cover_prefix=False), id="no prefix"),
        pytest.param(
            16, (2, 1), build(2, 2, 4, scorer="dilated"), id="dilated", marks=pytest.mark.thorough
        ),
        pytest.param(
            16, (2, 1), build(2, 2, 4, scorer="gla"), id="gla", marks=pytest.mark.thorough
        ),
    ],
)
def test_gradcheck(tokens: int, heads: tuple[int, int], config: LighthouseConfig) -> None:
    """Finite differences: steps of 1e-6 cannot change the selection, which carries no gradient."""
    inputs = leaves(qkv((1, tokens, 3), heads, seed=6))
    assert torch.autograd.gradcheck(lambda q, k, v: run(config, (q, k, v)), inputs)


def test_tokens_outside_the_subsequence_get_no_gradient_through_it() -> None:
    """Refined families alone reach level 0: elsewhere a token counts through its means only.

    With L = 2 and p = 2 an unrefined pair of tokens has one entry, their mean: both tokens get the
    same gradient, and the gradient of v is the mean's divided by its width.
    """
    config, inputs = make("plain")
    inputs = leaves(inputs)
    present = set(index_of(config, inputs).flatten().tolist())
    pairs = [i for i in range(16) if 2 * i not in present]
    assert len(pairs) == 16 - config.topk
    for gradient in gradients(run(config, inputs), inputs):
        for i in pairs:
            assert torch.equal(gradient[0, 0, 2 * i], gradient[0, 0, 2 * i + 1])


# ---- causality


def rotated(inputs: QKV, start: int, seed: int) -> QKV:
    """Tokens from `start` on with q and k rotated, so that their norms stay, and with other v."""
    q, k, v = (x.clone() for x in inputs)
    for x, offset in ((q, 0), (k, 1)):
        size = x.shape[-1]
        rotation = torch.linalg.qr(normal((size, size), seed + offset)).Q.to(x.dtype)
        x[:, :, start:] = x[:, :, start:] @ rotation
    v[:, :, start:] = 100 * normal(tuple(v[:, :, start:].shape), seed + 2).to(v.dtype)
    return q, k, v


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@EACH_SHAPE
def test_outputs_do_not_depend_on_later_tokens(name: str, dtype: torch.dtype) -> None:
    config, inputs64 = make(name)
    inputs = to(inputs64, dtype)
    seq_len = inputs[0].shape[2]
    before = run(config, inputs)
    for start in sorted({1, seq_len // 3, seq_len // 2, seq_len - 2, seq_len - 1}):
        changed = rotated(inputs, start, seed=start)
        assert torch.equal(index_of(config, changed), index_of(config, inputs))
        after = run(config, changed)
        assert torch.equal(after[:, :, :start], before[:, :, :start])
        assert not torch.equal(after[:, :, start:], before[:, :, start:])


@pytest.mark.parametrize("num_chunks", [1, 2])
@pytest.mark.parametrize("scorer", ["norm", "dilated", "gla"])
def test_outputs_do_not_depend_on_later_tokens_with_any_scorer(
    scorer: str, num_chunks: int
) -> None:
    """A change too small to reorder the scores."""
    config = build(3, 2, 4 * num_chunks, num_chunks=num_chunks, scorer=scorer, dilation=2)
    inputs = qkv((1, 32 * num_chunks, 5), (2, 1), seed=8)
    before = run(config, inputs)
    for start in (1, 13, 16, 31):
        change = torch.ones(inputs[0].shape[2], 1, dtype=torch.float64)
        change[start:] += 1e-5
        changed = inputs[0] * change, inputs[1] * change, inputs[2] * change
        assert torch.equal(index_of(config, changed), index_of(config, inputs))
        after = run(config, changed)
        assert torch.equal(after[:, :, :start], before[:, :, :start])
        assert not torch.equal(after[:, :, start:], before[:, :, start:])


def large(inputs: QKV, start: int, seed: int) -> QKV:
    """Norms ahead of all others right behind `start`, other tokens after that."""
    q, k, v = rotated(inputs, start, seed)
    q[:, :, start], k[:, :, start] = 50 * q[:, :, start], 50 * k[:, :, start]
    return q, k, v


def other(inputs: QKV, start: int, seed: int) -> QKV:
    """Another text of the same kind from `start` on."""
    B, Hq, N, D = inputs[0].shape
    text = qkv((B, N, D), (Hq, inputs[1].shape[1]), seed)
    q, k, v = (
        torch.cat((x[:, :, :start], y[:, :, start:]), 2) for x, y in zip(inputs, text, strict=True)
    )
    return q, k, v


def noise(inputs: QKV, start: int, seed: int) -> QKV:
    q, k, v = (x.clone() for x in inputs)
    for offset, x in enumerate((q, k, v)):
        x[:, :, start:] = 3 * normal(tuple(x[:, :, start:].shape), seed + offset).to(x.dtype)
    return q, k, v


@pytest.mark.parametrize("change", [large, other, noise])
@pytest.mark.parametrize("scorer", ["norm", "dilated", "gla", "random"])
def test_the_causal_selection_leaves_a_finished_stratum_alone(scorer: str, change: Change) -> None:
    """Tokens behind the first of a stratum's last finest entry change nothing before them.

    Four strata of 32 tokens, in entries of four and sixteen.
    """
    inputs = qkv((4, 128, 6), (4, 2), seed=5)
    differs = {"causal": 0, "published": 0}
    for selection in differs:
        config = build(3, 4, 8, selection=selection, scorer=scorer)
        before = run(config, inputs)
        for end in (32, 64, 96):
            for start in range(end - 3, end):
                after = run(config, change(inputs, start, seed=start))
                differs[selection] += not torch.equal(after[:, :, :start], before[:, :, :start])
    assert differs["causal"] == 0
    assert differs["published"] > 0


@pytest.mark.parametrize("change", [large, other, noise])
@EACH_SHAPE
def test_earlier_outputs_change_with_the_selection_alone(name: str, change: Change) -> None:
    """What remains under the causal selection is which entries win their place in a stratum."""
    config, inputs = make(name)
    seq_len = inputs[0].shape[2]
    before, index = run(config, inputs), index_of(config, inputs)
    last = [
        oracle.window(config, oracle.entry_of(config, seq_len, i))[-1]
        for i in range(oracle.num_entries(config, seq_len))
    ]
    for start in range(1, seq_len, 5):
        changed = change(inputs, start, seed=start)
        after, now = run(config, changed), index_of(config, changed)
        for b, h in [(b, h) for b in range(index.shape[0]) for h in range(index.shape[1])]:
            rows = [[i for i in x[b, h].tolist() if last[i] < start] for x in (index, now)]
            group = before.shape[1] // index.shape[1]
            heads = slice(h * group, (h + 1) * group)
            same = torch.equal(after[b, heads, :start], before[b, heads, :start])
            assert same == (rows[0] == rows[1])


@EACH_SHAPE
def test_gradients_do_not_flow_back_from_earlier_outputs(name: str) -> None:
    config, inputs = make(name)
    inputs = leaves(inputs)
    output = run(config, inputs)
    seq_len = output.shape[2]
    for start in (1, seq_len // 3, seq_len // 2, seq_len - 1):
        for gradient in torch.autograd.grad(
            output[:, :, :start].square().sum(), inputs, retain_graph=True
        ):
            assert not gradient[:, :, start:].any()


# ---- coverage and limiting cases


def constant_values(inputs: QKV) -> QKV:
    q, k, v = inputs
    return q, k, normal((v.shape[-1],), 11).expand(v.shape)


def counts(config: LighthouseConfig, index_BHS: Tensor, seq_len: int) -> Tensor:
    """Contributors of every token, (B, H, N)."""
    B, H, _ = index_BHS.shape
    rows = [
        oracle.contributors(
            config, seq_len, [oracle.entry_of(config, seq_len, i) for i in row.tolist()]
        )
        for row in index_BHS.flatten(0, 1)
    ]
    return torch.tensor(rows).view(B, H, seq_len)


def assert_counts_times_v(config: LighthouseConfig, inputs: QKV) -> Tensor:
    """With constant v each token's output is its number of contributors times v."""
    q, k, v = inputs = constant_values(inputs)
    count_BHN = counts(config, index_of(config, inputs), q.shape[2])
    group = q.shape[1] // k.shape[1]
    expected = (count_BHN[..., None] * v).repeat_interleave(group, dim=1)
    torch.testing.assert_close(
        run(config, inputs), expected, rtol=0, atol=float64_budget(config, inputs)
    )
    return count_BHN


@EACH_SHAPE
def test_constant_values(name: str) -> None:
    config, inputs = make(name)
    count_BHN = assert_counts_times_v(config, inputs)
    assert count_BHN.max() <= config.num_levels
    assert count_BHN.min() >= (1 if config.cover_prefix else 0)


@settings(max_examples=40)
@given(geometries(max_seq_len=400), st.integers(0, 2**31))
def test_coverage(geometry: tuple[LighthouseConfig, int], seed: int) -> None:
    config, seq_len = geometry
    count_BHN = assert_counts_times_v(config, qkv((1, seq_len, 2), (2, 2), seed))
    assert count_BHN.max() <= config.num_levels
    width = config.pooling_factor ** (config.num_levels - 1)
    chunks = count_BHN.unflatten(-1, (config.num_chunks, -1))
    assert chunks[..., width - 1 :].min() >= 1
    if config.cover_prefix:
        assert count_BHN.min() >= 1


@pytest.mark.parametrize("num_chunks", [1, 2])
@pytest.mark.parametrize("seq_len, num_levels, p, empty", [(4096, 2, 4, 3), (8192, 4, 2, 7)])
def test_prefix_of_zero_rows(
    seq_len: int, num_levels: int, p: int, empty: int, num_chunks: int
) -> None:
    """The first window of a chunk is never refined here: its scores are the smallest there are."""
    inputs = qkv((1, seq_len, 4), (2, 1), seed=12)
    chunk_len = seq_len // num_chunks
    for x in inputs[:2]:
        x.unflatten(2, (num_chunks, chunk_len))[:, :, :, : p ** (num_levels - 1)] *= 1e-3
    output = {}
    for cover_prefix in (False, True):
        config = LighthouseConfig(
            num_levels, p, 256, num_chunks=num_chunks, cover_prefix=cover_prefix
        )
        rows = run(config, inputs).unflatten(2, (num_chunks, chunk_len))
        output[cover_prefix] = (rows == 0).all(dim=-1)
    expected = torch.zeros(1, 2, num_chunks, chunk_len, dtype=torch.bool)
    expected[..., :empty] = True
    assert torch.equal(output[False], expected)
    assert not output[True].any()


def test_uniform_attention_by_hand() -> None:
    """q = 0, v = 1, 2, 3, 4, everything refined: rows are running means in causal order.

    Order: token 0, token 1, pair 0, token 2, token 3, pair 1; values 1, 2, 1.5, 3, 4, 3.5; running
    means 1, 1.5, 1.5, 1.875, 2.3, 2.5. Pair 0 speaks to tokens 1 and 2, pair 1 to token 3.
    """
    zero = torch.zeros(1, 1, 4, 1, dtype=torch.float64)
    v_BHND = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64).view(1, 1, 4, 1)
    for cover_prefix in (False, True):
        output = run(build(2, 2, 2, cover_prefix=cover_prefix), (zero, zero, v_BHND))
        expected = [1, 1.5 + 1.5, 1.875 + 1.5, 2.3 + 2.5]
        torch.testing.assert_close(
            output.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14
        )


def test_full_pyramid_by_hand() -> None:
    """k = n_{L-1} at L = 2: the sub-sequence is the whole pyramid, written here as matrices."""
    head_dim = 3
    q, k, v = qkv((1, 4, head_dim), (1, 1), seed=13)
    pool = torch.tensor(
        [
            [1.0, 0.0, 0.0, 0.0],
            [0.0, 1.0, 0.0, 0.0],
            [0.5, 0.5, 0.0, 0.0],
            [0.0, 0.0, 1.0, 0.0],
            [0.0, 0.0, 0.0, 1.0],
            [0.0, 0.0, 0.5, 0.5],
        ],
        dtype=torch.float64,
    )
    scatter = torch.tensor(
        [
            [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 1.0, 1.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 1.0, 1.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 1.0, 1.0],
        ],
        dtype=torch.float64,
    )
    logits = (pool @ q[0, 0]) @ (pool @ k[0, 0]).T / head_dim**0.5
    weights = logits.masked_fill(torch.ones(6, 6).triu(1).bool(), float("-inf")).softmax(-1)
    output = run(build(2, 2, 2), (q, k, v))
    torch.testing.assert_close(output[0, 0], scatter @ weights @ pool @ v[0, 0], rtol=0, atol=1e-14)


def test_rows_of_a_token_are_summed_in_fp32() -> None:
    """bf16 rows of 1 from level 0 and 2**-9 from coarser levels.

    1 + 2**-9 is a tie that bf16 rounds back to 1, so adding one row after the other in bf16 would
    lose them all; in fp32 three of them make 1.005859, which rounds to 1.0078125.
    """
    config = build(4, 2, 4, stratum=4)
    inputs = to(qkv((1, 32, 1), (1, 1), seed=14), torch.bfloat16)
    flat = index_of(config, inputs).flatten().tolist()
    entries = [oracle.entry_of(config, 32, i) for i in flat]
    sizes = [1.0 if level == 0 else 2.0**-9 for level, _ in entries]

    def attention(q: Tensor, k: Tensor, v: Tensor, *, enable_gqa: bool) -> Tensor:
        return torch.tensor(sizes, dtype=q.dtype).view(q.shape)

    output = lighthouse_attention(*inputs, config=config, impl="reference", attention=attention)
    exact = torch.zeros(32)
    for size, entry in zip(sizes, entries, strict=True):
        for token in oracle.spoken_to(config, 32, entry):
            exact[token] += size
    assert (exact == 1 + 3 * 2.0**-9).any()
    assert torch.equal(output.flatten(), exact.bfloat16())


# ---- errors


def good() -> QKV:
    return qkv((1, 16, 4), (2, 2), seed=15)


@pytest.mark.parametrize(
    "q_shape, k_shape, v_shape",
    [
        ((1, 2, 16, 4), (1, 2, 16, 4), (1, 2, 16, 3)),
        ((1, 2, 16, 4), (1, 2, 16, 3), (1, 2, 16, 3)),
        ((1, 2, 16, 4), (1, 2, 32, 4), (1, 2, 32, 4)),
        ((1, 2, 16, 4), (1, 2, 16, 4), (1, 2, 32, 4)),
        ((2, 2, 16, 4), (1, 2, 16, 4), (1, 2, 16, 4)),
        ((1, 3, 16, 4), (1, 2, 16, 4), (1, 2, 16, 4)),
        ((1, 2, 16, 4), (1, 4, 16, 4), (1, 4, 16, 4)),
        ((1, 2, 16, 4), (1, 2, 16, 4), (1, 1, 16, 4)),
        ((2, 16, 4), (2, 16, 4), (2, 16, 4)),
        ((1, 0, 16, 4), (1, 2, 16, 4), (1, 2, 16, 4)),
        ((1, 2, 16, 0), (1, 2, 16, 0), (1, 2, 16, 0)),
    ],
)
def test_shapes_that_do_not_fit(
    q_shape: tuple[int, ...], k_shape: tuple[int, ...], v_shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError) as error:
        lighthouse_attention(
            torch.ones(q_shape), torch.ones(k_shape), torch.ones(v_shape), config=build(2, 2, 2)
        )
    for shape in (q_shape, k_shape, v_shape):
        assert str(shape) in str(error.value)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_dtypes_that_differ(which: int) -> None:
    inputs = list(good())
    inputs[which] = inputs[which].float()
    with pytest.raises(ValueError, match="float32") as error:
        lighthouse_attention(*inputs, config=build(2, 2, 2))
    assert "float64" in str(error.value)


def test_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="int64"):
        lighthouse_attention(*(x.long() for x in good()), config=build(2, 2, 2))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_devices_that_differ(which: int) -> None:
    inputs = list(good())
    inputs[which] = inputs[which].to("meta")
    with pytest.raises(ValueError, match="meta") as error:
        lighthouse_attention(*inputs, config=build(2, 2, 2))
    assert "cpu" in str(error.value)


def test_attention_that_returns_another_shape() -> None:
    def attention(q: Tensor, k: Tensor, v: Tensor, *, enable_gqa: bool) -> Tensor:
        return q.transpose(1, 2)

    rows = build(2, 2, 2).gathered_len(16)
    with pytest.raises(ValueError, match=rf"\(1, 2, {rows}, 4\).*\(1, {rows}, 2, 4\)"):
        lighthouse_attention(*good(), config=build(2, 2, 2), attention=attention)


def test_sequence_length_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"seq_len = 18\b.*\b16\b"):
        lighthouse_attention(*qkv((1, 18, 4), (1, 1), seed=16), config=build(3, 2, 2))


@pytest.mark.parametrize("impl", ["fast", "", "Reference", None])
def test_unknown_implementation(impl: object) -> None:
    with pytest.raises(ValueError, match="impl") as error:
        lighthouse_attention(*good(), config=build(2, 2, 2), impl=impl)  # type: ignore[arg-type]
    assert repr(impl) in str(error.value) and "reference" in str(error.value)
    with pytest.raises(ValueError, match="impl"):
        LighthouseAttention(build(2, 2, 2), Dense(), impl=impl)  # type: ignore[arg-type]


def test_a_requested_implementation_is_never_replaced() -> None:
    """The kernels have no float64."""
    with pytest.raises(ValueError, match=r"impl = 'triton'.*float64"):
        lighthouse_attention(*good(), config=build(2, 2, 2), impl="triton")


# ---- the module


class Dense(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, enable_gqa: bool = False) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=enable_gqa)


class RecordingDense(Dense):
    """Remembers the shapes it was called with, and enable_gqa."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], bool]] = []

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, enable_gqa: bool = False) -> Tensor:
        self.calls.append((tuple(q.shape), tuple(k.shape), tuple(v.shape), enable_gqa))
        return super().forward(q, k, v, enable_gqa=enable_gqa)


@EACH_SHAPE
def test_module_equals_the_function(name: str) -> None:
    config, inputs = make(name)
    (B, N, D), (Hq, Hkv), _ = SHAPES[name]
    inner = RecordingDense()
    output = LighthouseAttention(config, inner)(*inputs, enable_gqa=Hq != Hkv)
    assert torch.equal(output, lighthouse_attention(*inputs, config=config, attention=inner))
    assert torch.equal(output, run(config, inputs))
    S = config.gathered_len(N)
    assert inner.calls == [((B, Hq, S, D), (B, Hkv, S, D), (B, Hkv, S, D), Hq != Hkv)] * 2


@EACH_SHAPE
def test_dense_module_is_the_inner_module(name: str) -> None:
    config, inputs = make(name)
    (B, N, D), (Hq, Hkv), _ = SHAPES[name]
    inner = RecordingDense()
    module = LighthouseAttention(config, inner)
    lighthouse = module(*inputs, enable_gqa=Hq != Hkv)
    module.dense = True
    dense = module(*inputs, enable_gqa=Hq != Hkv)
    assert inner.calls[1] == ((B, Hq, N, D), (B, Hkv, N, D), (B, Hkv, N, D), Hq != Hkv)
    assert torch.equal(dense, inner(*inputs, enable_gqa=Hq != Hkv))
    assert not torch.equal(dense, lighthouse)
    module.dense = False
    assert torch.equal(module(*inputs, enable_gqa=Hq != Hkv), lighthouse)


def test_dense_module_takes_any_length() -> None:
    """The constraints are those of the method, not of the module."""
    module = LighthouseAttention(build(2, 2, 2), Dense())
    module.dense = True
    assert module(*qkv((1, 17, 4), (1, 1), seed=18)).shape == (1, 1, 17, 4)


def test_module_adds_nothing_to_a_checkpoint() -> None:
    module = LighthouseAttention(build(2, 2, 2), Dense())
    assert not list(module.parameters())
    assert not list(module.buffers())
    assert not module.state_dict()
    module.load_state_dict({}, strict=True)


def test_activation_checkpointing() -> None:
    """The recomputation selects the same entries: gradients are bitwise the same."""
    config, inputs = make("grouped chunks")
    module = LighthouseAttention(config, Dense())
    inputs = leaves(inputs)
    plain = module(*inputs, enable_gqa=True)
    recomputed = checkpoint(module, *inputs, enable_gqa=True, use_reentrant=False)
    assert torch.equal(recomputed, plain)
    for a, b in zip(gradients(recomputed, inputs), gradients(plain, inputs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "scorer, dynamic",
    [
        ("norm", True),
        pytest.param("norm", False, marks=pytest.mark.thorough),
        pytest.param("dilated", False, marks=pytest.mark.thorough),
        pytest.param("gla", False, marks=pytest.mark.thorough),
    ],
)
def test_compiles_without_a_graph_break(scorer: str, dynamic: bool) -> None:
    """Under activation checkpointing too, where the published code recomputes something else."""
    # Under symbolic sizes the other scorers take long, and are compiled by themselves; and what is
    # behind Dynamo takes three times as long as it, and asks nothing more of the code.
    backend = "eager" if dynamic else "aot_eager"
    config = build(3, 2, 8, num_chunks=2, scorer=scorer)
    module = LighthouseAttention(config, Dense())
    inputs = leaves(qkv((1, 64, 5), (4, 2), seed=20))

    @torch.compile(backend=backend, fullgraph=True, dynamic=dynamic)
    def compiled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return checkpoint(module, q, k, v, enable_gqa=True, use_reentrant=False)

    output, want = compiled(*inputs), module(*inputs, enable_gqa=True)
    atol = 2 * float64_budget(config, inputs)
    torch.testing.assert_close(output, want, rtol=0, atol=atol)
    for got, expected in zip(gradients(output, inputs), gradients(want, inputs), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=32 * atol)
