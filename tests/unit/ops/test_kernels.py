"""The Triton kernels against the reference: on a GPU, or under Triton's interpreter without one.

Selections must be equal in every entry. Values may have at most twice the error of the reference at
the same precision plus one rounding, both measured against the reference in float64 on the same,
already rounded, inputs and with one shared selection.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import (
    checkpoint,
)

from lighthouse import LighthouseAttention, LighthouseConfig, lighthouse_attention, select
from lighthouse.attention import dense_attention
from lighthouse.ops import reference, triton
from lighthouse.ops.triton.geometry import geometry_of
from lighthouse.pyramid import Selection
from lighthouse.scorers import level0_scores, level1_maxima
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
from tests.support.operators import Calls, assert_keeps_its_inputs_alone, saving
from tests.support.tiers import tiers

Values = tuple[Tensor, ...]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# The package's attributes of these names are the functions.
SELECT, SUMMARIZE = (sys.modules[f"lighthouse.ops.triton.{x}"] for x in ("select", "summarize"))


# name: ((batch, tokens, head dimension), (query heads, key/value heads), configuration)
SHAPES = {
    "small": ((1, 16, 4), (2, 1), build(3, 2, 2)),
    "plain": ((1, 32, 8), (1, 1), build(2, 2, 4)),
    "odd everything": ((2, 63, 7), (3, 3), build(3, 3, 4)),
    "grouped": ((2, 45, 48), (4, 2), build(2, 5, 4)),
    "multi-query": ((1, 40, 3), (16, 1), build(4, 2, 4, selection="published")),
    "chunks": ((2, 70, 5), (2, 1), build(2, 5, 4, num_chunks=2)),
    "grouped chunks": ((1, 108, 96), (2, 1), build(3, 3, 12, num_chunks=2)),
    "four chunks": ((1, 64, 256), (2, 2), build(3, 2, 8, num_chunks=4, selection="published")),
    "head dimension one": ((2, 30, 1), (2, 1), build(2, 3, 8, stratum=4)),
    "no prefix": ((1, 44, 16), (2, 1), build(3, 2, 6, cover_prefix=False)),
    "seven children": ((1, 98, 4), (1, 1), build(2, 7, 6)),
    "published": ((1, 72, 6), (2, 1), build(3, 3, 4, selection="published")),
}
# The interpreter takes long, and computes in each precision by the same code: it has them in turn.
SHAPES_AND_DTYPES = [
    (name, dtype)
    for i, name in enumerate(SHAPES)
    for dtype in (DTYPES if DEVICE == "cuda" else [DTYPES[i % 3]])
]
# They take the interpreter long. What is in them, smaller ones have too, or `test_whole` does.
LONG_SHAPES = ["multi-query", "grouped chunks"]


def case(name: str, *more: object, thorough: bool = False) -> Any:
    """A test's parameters, thorough where they or their shape take long."""
    marks = pytest.mark.thorough if thorough or name in LONG_SHAPES else ()
    return pytest.param(name, *more, marks=marks)


EACH_SHAPE_AND_DTYPE = pytest.mark.parametrize(
    "name, dtype", [case(*given) for given in SHAPES_AND_DTYPES], ids=str
)
# Those whose selection takes the interpreter few steps.
SMALL_SHAPES = ["plain", "multi-query", "chunks", "head dimension one", "no prefix"]


def make(name: str, dtype: torch.dtype, seed: int = 0) -> tuple[LighthouseConfig, QKV]:
    """In the trainer's memory order."""
    shape_BND, heads, config = SHAPES[name]
    return config, on_device(to(in_projection_order(qkv(shape_BND, heads, seed)), dtype))


def on_device(inputs: QKV) -> QKV:
    q, k, v = (x.to(DEVICE) for x in inputs)
    return q, k, v


def random(shape: torch.Size | tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return normal(tuple(shape), seed).to(DEVICE, dtype)


def token_major(x_BHND: Tensor) -> bool:
    return x_BHND.transpose(1, 2).is_contiguous()


def assert_as_accurate(got: Tensor, plain: Tensor, exact: Tensor) -> None:
    assert got.dtype == plain.dtype and got.shape == exact.shape
    error = (plain - exact).abs().max()
    allowed = 2 * error + torch.finfo(got.dtype).eps * exact.abs().max()
    assert (got - exact).abs().max() <= allowed


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes as long for a program of many coarsest entries as for one of few."""
    if DEVICE == "cpu":
        monkeypatch.setattr(SUMMARIZE, "_ENOUGH_PROGRAMS", 1)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Memory of torch.empty starts as NaN or the largest integer, so that what nobody wrote shows.

    Only warns of operations that have no deterministic form, of which the kernels use none.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(before)


# ---- select


# name: (tokens, batch, key/value heads, query heads of each, configuration)
SELECTIONS = {
    "two levels": (16, 1, 1, 1, build(2, 2, 4, stratum=4)),
    "strata that don't divide": (44, 1, 1, 1, build(3, 2, 6)),
    "grouped": (63, 2, 1, 3, build(3, 3, 4, stratum=4)),
    "batch and heads": (50, 2, 2, 2, build(2, 5, 2)),
    "chunks that don't divide": (70, 1, 1, 2, build(2, 5, 8, num_chunks=2)),
    "four levels, four chunks": (128, 1, 1, 1, build(4, 2, 8, num_chunks=4)),
    "everything refined": (32, 1, 1, 1, build(3, 2, 8, stratum=8)),
}


def distinct_scores(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = torch.Size(shape).numel()
    return torch.randperm(size, generator=generator).sub(size // 2).float().view(shape)


def tied_scores(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, shape, generator=generator).float()


def special_scores(shape: tuple[int, ...], seed: int) -> Tensor:
    inf, nan = float("inf"), float("nan")
    values = torch.tensor([inf, -inf, nan, 0.0, -0.0, -1.0, 1e-40, -1e-40, 3e38, -3e38, 1.0])
    generator = torch.Generator().manual_seed(seed)
    return values[torch.randint(len(values), shape, generator=generator)]


def random_documents(config: LighthouseConfig, batch: int, seq_len: int, seed: int) -> Tensor:
    """The first token of the document, or chunk, of each coarsest entry, int32 (B, C).

    A third of the entries begin a document, so that some strata have more than places.
    """
    generator = torch.Generator().manual_seed(seed)
    token_C = torch.arange(0, seq_len, config.coarsest_width)
    begins = torch.rand((batch, len(token_C)), generator=generator) < 1 / 3
    begins |= token_C % (seq_len // config.num_chunks) == 0
    return torch.where(begins, token_C, 0).cummax(dim=1).values.int().to(DEVICE)


def assert_selects_as_reference(
    config: LighthouseConfig,
    query_maxima_BHE: Tensor,
    key_maxima_BKE: Tensor,
    first_token_BC: Tensor | None = None,
) -> None:
    maxima = query_maxima_BHE.to(DEVICE), key_maxima_BKE.to(DEVICE)
    got, want = (ops.select(*maxima, config, first_token_BC) for ops in (triton, reference))
    assert got.first_token is want.first_token is first_token_BC
    assert got.index.dtype == got.slot.dtype == torch.int32
    assert torch.equal(got.index, want.index)
    assert torch.equal(got.slot, want.slot)


@pytest.mark.parametrize(
    "scores, cover_prefix",
    [
        (distinct_scores, True),
        (distinct_scores, False),
        (tied_scores, True),
        (special_scores, False),
    ],
)
@pytest.mark.parametrize("name", SELECTIONS)
def test_selection(
    name: str,
    scores: Callable[[tuple[int, ...], int], Tensor],
    cover_prefix: bool,
    poisoned_memory: None,
) -> None:
    seq_len, batch, kv_heads, group, given_config = SELECTIONS[name]
    config = LighthouseConfig(**{**vars(given_config), "cover_prefix": cover_prefix})
    config.validate(seq_len)
    level1 = seq_len // config.pooling_factor
    assert_selects_as_reference(
        config,
        scores((batch, kv_heads * group, level1), 1),
        scores((batch, kv_heads, level1), 2),
    )


@pytest.mark.parametrize("scores", [distinct_scores, tied_scores, special_scores])
@pytest.mark.parametrize("candidates", [2, 3, 4, 5, 8, 9])
def test_selection_among_as_many_candidates_as_a_tile_or_not(
    candidates: int, scores: Callable[[tuple[int, ...], int], Tensor], poisoned_memory: None
) -> None:
    """From a stratum that is refined whole to one more than a power of two."""
    config = build(2, 2, 2, cover_prefix=candidates % 2 == 0)
    shape = 1, 1, candidates
    assert_selects_as_reference(config, scores(shape, 5), scores(shape, 6))


@pytest.mark.parametrize("scores", [distinct_scores, tied_scores])
@pytest.mark.parametrize(
    "seq_len, config, block, bits",
    [
        pytest.param(88, build(2, 2, 8, stratum=4), 4, 2, id="all levels"),
        pytest.param(88, build(2, 2, 8, stratum=4), 16, 1, id="many coarsest entries"),
        pytest.param(54, build(3, 3, 6, stratum=6), 8, 2, id="many children"),
        pytest.param(54, build(3, 3, 6, stratum=6), 32, 1, id="no level"),
    ],
)
def test_selection_among_more_candidates_than_a_block(
    seq_len: int,
    config: LighthouseConfig,
    block: int,
    bits: int,
    scores: Callable[[tuple[int, ...], int], Tensor],
    poisoned_memory: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SELECT, "_BLOCK", block)
    monkeypatch.setattr(SELECT, "_BITS", bits)
    shape = 1, 1, seq_len // config.pooling_factor
    assert_selects_as_reference(config, scores(shape, 3), scores(shape, 4))


@pytest.mark.parametrize(
    "scores, cover_prefix",
    [
        (distinct_scores, True),
        (tied_scores, True),
        pytest.param(tied_scores, False, marks=pytest.mark.thorough),
    ],
)
@pytest.mark.parametrize("name", SELECTIONS)
def test_selection_with_documents(
    name: str,
    scores: Callable[[tuple[int, ...], int], Tensor],
    cover_prefix: bool,
    poisoned_memory: None,
) -> None:
    seq_len, batch, kv_heads, group, given_config = SELECTIONS[name]
    config = replace(given_config, cover_prefix=cover_prefix)
    level1 = seq_len // config.pooling_factor
    assert_selects_as_reference(
        config,
        scores((batch, kv_heads * group, level1), 1),
        scores((batch, kv_heads, level1), 2),
        random_documents(config, batch, seq_len, 3),
    )


@settings(max_examples=10)
@given(geometries(max_seq_len=64), st.integers(1, 2), st.integers(0, 2**31))
def test_selection_on_any_geometry(
    geometry: tuple[LighthouseConfig, int], group: int, seed: int
) -> None:
    config, seq_len = geometry
    level1 = seq_len // config.pooling_factor
    assert_selects_as_reference(
        config, distinct_scores((1, group, level1), seed), distinct_scores((1, 1, level1), seed + 1)
    )


# ---- summarize, gather, scatter


def reference_selection(name: str, inputs: QKV) -> Selection:
    config = SHAPES[name][2]
    return reference.select(*reference.summarize(inputs, config, scored=True)[1], config)


def summarized(ops: ModuleType, inputs: QKV, config: LighthouseConfig) -> Values:
    """Coarsest means of all, and maxima of queries and keys."""
    coarsest, maxima = ops.summarize(inputs, config, scored=True)
    return *coarsest, *maxima


@pytest.mark.parametrize(
    "name, dtype, enough_programs",
    [
        *(case(name, dtype, 1) for name, dtype in SHAPES_AND_DTYPES),
        *(case(x, torch.bfloat16, 2048, thorough=x != "no prefix") for x in SMALL_SHAPES),
    ],
)
def test_summarize(
    name: str,
    dtype: torch.dtype,
    enough_programs: int,
    poisoned_memory: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With many coarsest entries in a program, as at large sizes, and with few."""
    monkeypatch.setattr(SUMMARIZE, "_ENOUGH_PROGRAMS", enough_programs)
    config, inputs = make(name, dtype)
    exact_inputs = to(inputs, torch.float64)
    got, plain, exact = (
        summarized(ops, x, config)
        for ops, x in ((triton, inputs), (reference, inputs), (reference, exact_inputs))
    )
    for values in zip(got, plain, exact, strict=True):
        assert_as_accurate(*values)
    coarsest, maxima = triton.summarize(inputs, config, scored=False)
    assert maxima is None
    for without, scored in zip(coarsest, got[:3], strict=True):
        assert torch.equal(without, scored)


def gathered(
    ops: ModuleType,
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor],
    selection: Selection,
    config: LighthouseConfig,
) -> Values:
    """Rows, and the gradients of the tokens for those of the rows."""
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    coarsest, _ = ops.summarize(inputs, config, scored=False)
    rows = ops.gather(inputs, coarsest, selection, config)
    return *rows, *torch.autograd.grad(rows, inputs, grads)


def scattered(
    ops: ModuleType,
    rows: Sequence[Tensor],
    grads: Sequence[Tensor],
    selection: Selection,
    config: LighthouseConfig,
) -> Values:
    """Tokens in the memory order of their gradient, and the gradient of the rows, of one tensor."""
    (of_rows,), (grad,) = rows, grads
    of_rows = of_rows.detach().requires_grad_()
    tokens = ops.scatter(of_rows, selection, grad, config)
    return tokens, *torch.autograd.grad(tokens, of_rows, grad)


def assert_step(
    step: Callable[..., Values],
    values: Sequence[Tensor],
    grads: Sequence[Tensor],
    selection: Selection,
    config: LighthouseConfig,
) -> Values:
    """A step and its gradients against the reference. Returns the kernels' results."""
    got = step(triton, values, grads, selection, config)
    plain = step(reference, values, grads, selection, config)
    exact_values, exact_grads = ([x.double() for x in given] for given in (values, grads))
    exact = step(reference, exact_values, exact_grads, selection, config)
    for values in zip(got, plain, exact, strict=True):
        assert_as_accurate(*values)
    return got


@EACH_SHAPE_AND_DTYPE
def test_gather(name: str, dtype: torch.dtype, poisoned_memory: None) -> None:
    config, inputs = make(name, dtype)
    selection = reference_selection(name, inputs)
    results = assert_step(gathered, inputs, rows_of(inputs, selection, 5), selection, config)
    for grad in results[3:]:
        assert token_major(grad)


@pytest.mark.parametrize("asked", tiers([(0,), (1, 2), (0, 2)], (1, 2)), ids=str)
def test_gradients_of_some(asked: tuple[int, ...], poisoned_memory: None) -> None:
    """Those of frozen inputs, and of rows that nothing was made of, are not computed."""
    config, inputs = make("grouped", torch.float32)
    selection = reference_selection("grouped", inputs)
    grads = rows_of(inputs, selection, 6)
    wanted = gathered(triton, inputs, grads, selection, config)[3:]
    coarsest, _ = triton.summarize(inputs, config, scored=False)
    frozen = leaves(inputs)
    for i in {0, 1, 2} - {*asked}:
        frozen[i].requires_grad_(False)
    for values, used in ((frozen, (0, 1, 2)), (leaves(inputs), asked)):
        rows = triton.gather(values, coarsest, selection, config)
        total = sum((rows[i] * grads[i]).sum() for i in used)
        with Calls() as calls:
            total.backward()
        for i in range(3):
            got = values[i].grad
            assert torch.equal(got, wanted[i]) if i in asked else got is None
        assert calls.of[torch.ops.lighthouse.gather_backward.default] == 1


def test_gradients_of_gradients_are_refused() -> None:
    config, inputs = make("plain", torch.float32)
    inputs = leaves(inputs)
    output = lighthouse_attention(*inputs, config=config, impl="triton").square().sum()
    gradients = torch.autograd.grad(output, inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="first order only"):
        torch.autograd.grad(sum(x.sum() for x in gradients), inputs)


@pytest.mark.parametrize(
    "name, dtype, documents",
    [
        *(case(name, dtype, False) for name, dtype in SHAPES_AND_DTYPES),
        *(case(name, torch.bfloat16, True) for name in SHAPES),
    ],
)
def test_scatter(name: str, dtype: torch.dtype, documents: bool, poisoned_memory: None) -> None:
    config, inputs = make(name, dtype)
    selection = reference_selection(name, inputs)
    if documents:
        batch, _, seq_len, _ = inputs[0].shape
        selection = replace(selection, first_token=random_documents(config, batch, seq_len, 3))
    grad = inputs[0]
    rows = random((*grad.shape[:2], selection.index.shape[2], grad.shape[3]), dtype, 7)
    tokens, _ = assert_step(scattered, [rows], [grad], selection, config)
    assert token_major(tokens)


def rows_of(inputs: QKV, selection: Selection, seed: int) -> QKV:
    """Random ones, such as gradients of gathered rows."""
    length = selection.index.shape[2]
    q, k, v = (
        random((*x.shape[:2], length, x.shape[3]), x.dtype, seed + 100 * i)
        for i, x in enumerate(inputs)
    )
    return q, k, v


def head_major(x: Tensor) -> Tensor:
    return x.contiguous()


def beside_others(x: Tensor) -> Tensor:
    """A slice of a fused projection, (B, N, 3, H, D) in memory."""
    return torch.stack([x.transpose(1, 2)] * 3, dim=2)[:, :, 1].transpose(1, 2)


def every_second_column(x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0]


def columns_apart(x: Tensor) -> Tensor:
    """(B, H, D, N) in memory."""
    return x.mT.contiguous().mT


@pytest.mark.parametrize("name", [case("odd everything"), case("grouped chunks")])
def test_strides_do_not_matter(name: str) -> None:
    """Not in one bit."""
    config, inputs = make(name, torch.bfloat16)
    selection = reference_selection(name, inputs)
    rows = rows_of(inputs, selection, 8)

    def results(inputs: Sequence[Tensor], rows: Sequence[Tensor]) -> Values:
        return (
            *summarized(triton, inputs, config),
            *gathered(triton, inputs, rows, selection, config),
            *scattered(triton, rows[:1], inputs[:1], selection, config),
        )

    wanted = results(inputs, rows)
    others = head_major, beside_others, every_second_column, columns_apart
    for layouts in ((head_major, head_major, head_major), others[:3], others[1:]):
        values, grads = (
            tuple(layout(x) for layout, x in zip(layouts, given, strict=True))
            for given in (inputs, rows)
        )
        assert values[0].stride() != inputs[0].stride()
        for got, want in zip(results(values, grads), wanted, strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("name", [case("odd everything"), case("grouped chunks")])
def test_memory_order_is_that_of_the_input(name: str) -> None:
    config, inputs = make(name, torch.float32)
    selection = reference_selection(name, inputs)
    q, k, v = inputs
    rows = rows_of(inputs, selection, 9)
    tokens = q, head_major(k), beside_others(v)
    orders = token_major, torch.Tensor.is_contiguous, token_major
    gradients = gathered(triton, tokens, rows, selection, config)[3:]
    for gradient, in_order in zip(gradients, orders, strict=True):
        assert in_order(gradient)
    for x, in_order in zip((q, head_major(q), beside_others(q)), orders, strict=True):
        assert in_order(scattered(triton, rows[:1], [x], selection, config)[0])


@pytest.mark.parametrize("name", tiers(["odd everything", "chunks"], "chunks"))
def test_expanded_tensors(name: str) -> None:
    """Strides of zero: the gradient of a sum, or one head, token or row used for all."""
    config, inputs = make(name, torch.float32)
    selection = reference_selection(name, inputs)
    rows = rows_of(inputs, selection, 10)
    x, row = inputs[0], rows[0]
    one = torch.ones((), device=DEVICE)
    for step, values, grads in (
        (gathered, inputs, [one.expand_as(r) for r in rows]),
        (gathered, [t[:, :1].expand_as(t) for t in inputs], rows),
        (gathered, [t[:, :, :1].expand_as(t) for t in inputs], rows),
        (scattered, [row], [one.expand_as(x)]),
        (scattered, [row[:, :, :1].expand_as(row)], [x]),
    ):
        got = step(triton, values, grads, selection, config)
        copies = ([t.contiguous() for t in given] for given in (values, grads))
        want = step(triton, *copies, selection, config)
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)


# ---- the whole


def attend_with(
    selection: Selection, inputs: QKV, config: LighthouseConfig, ops: ModuleType
) -> Tensor:
    """lighthouse_attention for a given selection."""
    coarsest, _ = ops.summarize(inputs, config, scored=False)
    q, k, _ = inputs
    of_inputs = ops.gather(inputs, coarsest, selection, config)
    rows = dense_attention(*of_inputs, enable_gqa=q.shape[1] != k.shape[1])
    return ops.scatter(rows, selection, q, config)


def with_gradients(output: Tensor, inputs: QKV, seed: int = 11) -> tuple[Tensor, ...]:
    grad = random(output.shape, torch.bfloat16, seed).to(output.dtype)
    return output, *torch.autograd.grad(output, inputs, grad)


def assert_whole(config: LighthouseConfig, inputs: QKV) -> tuple[Tensor, ...]:
    """Output and every gradient, twice the same; returns them."""
    inputs = leaves(inputs)
    exact_inputs = leaves(to(inputs, torch.float64))
    scores = level0_scores(*inputs, config)
    selection = reference.select(*(level1_maxima(x, config) for x in scores), config)
    run = partial(lighthouse_attention, config=config, impl="triton")
    got = with_gradients(run(*inputs), inputs)
    plain = with_gradients(attend_with(selection, inputs, config, reference), inputs)
    exact = with_gradients(attend_with(selection, exact_inputs, config, reference), exact_inputs)
    for values in zip(got, plain, exact, strict=True):
        assert_as_accurate(*values)
    for first, second in zip(got, with_gradients(run(*inputs), inputs), strict=True):
        assert torch.equal(first, second)
    return got


@pytest.mark.parametrize(
    "name, dtype",
    [
        pytest.param(*given, marks=() if i < 3 else pytest.mark.thorough)
        for i, given in enumerate(zip(SMALL_SHAPES, DTYPES * 2, strict=False))
    ],
)
def test_whole(name: str, dtype: torch.dtype, poisoned_memory: None) -> None:
    """Two runs are bitwise the same, and one without gradients: the published code has atomics."""
    config, inputs = make(name, dtype)
    results = assert_whole(config, inputs)
    for values in results:
        assert token_major(values)
    with torch.no_grad():
        output = lighthouse_attention(*leaves(inputs), config=config, impl="triton")
    assert torch.equal(output, results[0])


@pytest.mark.parametrize("heads", [(1, 1), (4, 2)])
@pytest.mark.parametrize("scorer", ["dilated", "gla"])
def test_whole_with_other_scorers(
    scorer: str, heads: tuple[int, int], poisoned_memory: None
) -> None:
    if scorer == "gla" and DEVICE == "cuda":
        pytest.importorskip("fla")
    config = build(2, 2, 4, num_chunks=2, scorer=scorer)
    inputs = to(in_projection_order(qkv((1, 64, 16), heads, 12)), torch.bfloat16)
    assert_whole(config, on_device(inputs))


@pytest.mark.parametrize("cover_prefix", [True, False])
@pytest.mark.parametrize("num_levels, p", [(2, 4), (4, 2)])
def test_every_token_has_an_output(num_levels: int, p: int, cover_prefix: bool) -> None:
    """The first window is never refined by itself: its scores are the smallest there are."""
    width = p ** (num_levels - 1)
    inputs = to(qkv((1, 4 * width, 4), (1, 1), 13), torch.float32)
    for x in inputs[:2]:
        x[:, :, :width] *= 1e-3
    config = build(num_levels, p, 2, cover_prefix=cover_prefix)
    output = lighthouse_attention(*on_device(inputs), config=config, impl="triton")
    empty = (output == 0).all(dim=-1).flatten().nonzero().flatten().tolist()
    assert empty == ([] if cover_prefix else list(range(width - 1)))


# ---- large sizes


FAIL_IN_THE_PUBLISHED_CODE = pytest.mark.parametrize(
    "seq_len, config",
    [
        # A coarsest level of 2048 entries that 12 strata, or 8, do not tile as there.
        pytest.param(2**15, build(3, 4, 1536, stratum=128), id="32k, k 1536"),
        pytest.param(2**15, build(3, 4, 1024, stratum=128), id="32k, k 1024"),
        # S > 65,535.
        pytest.param(2**19, build(3, 4, 8192, stratum=128), id="512k, k 8192"),
        pytest.param(2**20, build(4, 4, 4096, stratum=128), id="1M, k 4096"),
    ],
)


@pytest.mark.gpu
@FAIL_IN_THE_PUBLISHED_CODE
def test_large_steps(seq_len: int, config: LighthouseConfig, poisoned_memory: None) -> None:
    inputs = in_projection_order(qkv((1, seq_len, 64), (2, 2), 17))
    inputs = on_device(to(inputs, torch.bfloat16))
    _, maxima = triton.summarize(inputs, config, scored=True)
    assert_selects_as_reference(config, *maxima)
    selection = triton.select(*maxima, config)
    rows = rows_of(inputs, selection, 18)
    assert_step(gathered, inputs, rows, selection, config)
    assert_step(scattered, rows[:1], inputs[:1], selection, config)


@pytest.mark.gpu
@FAIL_IN_THE_PUBLISHED_CODE
def test_large_whole(seq_len: int, config: LighthouseConfig) -> None:
    inputs = to(in_projection_order(qkv((1, seq_len, 64), (2, 2), 19)), torch.bfloat16)
    inputs = leaves(on_device(inputs))
    output = lighthouse_attention(*inputs, config=config, impl="triton")
    assert torch.equal(output, lighthouse_attention(*inputs, config=config, impl="triton"))
    for values in with_gradients(output, inputs):
        assert values.isfinite().all()
    assert (output != 0).any(dim=-1).all()


@pytest.mark.gpu
@pytest.mark.parametrize(
    "heads, seq_len, head_dim",
    [
        pytest.param(32, 2**20, 128, id="2^32 elements"),
        pytest.param(1, 2**22, 64, id="4M tokens"),
    ],
)
def test_largest(heads: int, seq_len: int, head_dim: int) -> None:
    """A few heads, the last among them, against the reference of each head alone."""
    if torch.cuda.get_device_properties(0).total_memory < 70 * 2**30:
        pytest.skip("needs 70 GB of memory")
    config = build(4, 4, 4096, stratum=128)
    generator = torch.Generator(DEVICE).manual_seed(20)
    x = torch.empty(1, seq_len, heads, head_dim, dtype=torch.bfloat16, device=DEVICE)
    x = x.normal_(generator=generator).transpose(1, 2)
    inputs = x, x, x
    of_summarize = summarized(triton, inputs, config)
    maxima = of_summarize[3:]
    selection = triton.select(*maxima, config)
    wanted = reference.select(*maxima, config)
    assert torch.equal(selection.index, wanted.index)
    assert torch.equal(selection.slot, wanted.slot)
    rows = torch.empty(1, heads, selection.index.shape[2], head_dim, dtype=x.dtype, device=DEVICE)
    rows.normal_(generator=generator)
    of_gather = gathered(triton, inputs, (rows, rows, rows), selection, config)
    of_scatter = scattered(triton, [rows], [x], selection, config)
    for head in {0, heads // 2, heads - 1}:
        one = slice(head, head + 1)
        x_one, rows_one = x[:, one], rows[:, one]
        of_head = Selection(selection.index[:, one], selection.slot[:, one])
        chosen = {"selection": of_head, "config": config}
        for got, step, values in (
            (of_summarize, partial(summarized, config=config), [[x_one] * 3]),
            (of_gather, partial(gathered, **chosen), [[x_one] * 3, [rows_one] * 3]),
            (of_scatter, partial(scattered, **chosen), [[rows_one], [x_one]]),
        ):
            plain = step(reference, *values)
            exact = step(reference, *([v.double() for v in given] for given in values))
            for a, b, c in zip(got, plain, exact, strict=True):
                assert_as_accurate(a[:, one], b, c)


# ---- operators, compilation, checkpoints


class Dense(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, enable_gqa: bool = False) -> Tensor:
        return dense_attention(q, k, v, enable_gqa=enable_gqa)


def test_operators() -> None:
    config, inputs = make("small", torch.float32)
    selection = reference_selection("small", inputs)
    index, slot = selection.index, selection.slot
    x = inputs[0]
    seq_len = x.shape[2]
    geometry = geometry_of(config)
    coarsest, maxima = triton.summarize(inputs, config, scored=True)
    rows = triton.gather(inputs, coarsest, selection, config)
    ops = torch.ops.lighthouse
    for selection_kind in ("causal", "published"):
        kind = geometry_of(replace(config, selection=selection_kind))
        torch.library.opcheck(ops.summarize.default, (*inputs, kind, True))
    torch.library.opcheck(ops.summarize.default, (*inputs, geometry, False))
    first_token = random_documents(config, x.shape[0], seq_len, 3)
    for documents in (None, first_token):
        torch.library.opcheck(ops.select.default, (*maxima, documents, geometry))
        torch.library.opcheck(ops.scatter_backward.default, (x, index, documents, geometry))
    torch.library.opcheck(ops.gather.default, (*inputs, *coarsest, index, geometry))
    for in_order in (True, False):
        for some in (rows, rows[1:]):
            orders = [in_order, True, not in_order][: len(some)]
            torch.library.opcheck(
                ops.gather_backward.default, (list(some), slot, seq_len, geometry, orders)
            )
        torch.library.opcheck(
            ops.scatter.default, (rows[0], slot, first_token, seq_len, geometry, in_order)
        )


def test_each_step_is_one_operator() -> None:
    """In eager mode the host's time is what a short sequence waits for."""
    module, inputs = module_and_inputs("small")
    with Calls() as calls:
        with_gradients(module(*inputs), inputs)
    ours = {op.name(): count for op, count in calls.of.items() if op.namespace == "lighthouse"}
    steps = ("summarize", "select", "gather", "scatter", "scatter_backward", "gather_backward")
    assert ours == {f"lighthouse::{step}": 1 for step in steps}


def module_and_inputs(name: str) -> tuple[Callable[..., Tensor], QKV]:
    config, inputs = make(name, torch.float32)
    module = LighthouseAttention(config, Dense(), impl="triton")
    return partial(module, enable_gqa=True), leaves(inputs)


def assert_same(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    """Up to what compiling attention may change."""
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("checkpointed", tiers([False, True], True))
def test_compiles_without_a_graph_break(checkpointed: bool, backend: str) -> None:
    """Under activation checkpointing too, where the published code recomputes something else."""
    module, inputs = module_and_inputs("small")

    @torch.compile(backend=backend, fullgraph=True)
    def compiled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return checkpoint(module, q, k, v, use_reentrant=False) if checkpointed else module(q, k, v)

    assert_same(with_gradients(compiled(*inputs), inputs), with_gradients(module(*inputs), inputs))


def test_a_compiled_checkpoint_keeps_its_inputs_alone() -> None:
    """Neither the gathered rows nor the scattered output."""
    module, inputs = module_and_inputs("small")
    assert_keeps_its_inputs_alone(module, *inputs)


@pytest.mark.parametrize(
    "context, selections",
    [
        pytest.param({}, 2, id="full"),
        pytest.param(
            {"context_fn": saving(torch.ops.lighthouse.select.default)},
            1,
            id="selective",
        ),
    ],
)
def test_activation_checkpointing(context: dict[str, Any], selections: int) -> None:
    """A selection that is saved is not computed again."""
    module, inputs = module_and_inputs("small")
    with Calls() as calls:
        output = checkpoint(module, *inputs, use_reentrant=False, **context)
        got = with_gradients(output, inputs)
    assert calls.of[torch.ops.lighthouse.gather.default] == 2
    assert calls.of[torch.ops.lighthouse.select.default] == selections
    for a, b in zip(got, with_gradients(module(*inputs), inputs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
def test_cuda_graph() -> None:
    module, inputs = module_and_inputs("grouped chunks")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            with_gradients(module(*inputs), inputs)
    torch.cuda.current_stream().wait_stream(side)
    grad = torch.ones_like(inputs[0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = module(*inputs)
        captured = output, *torch.autograd.grad(output, inputs, grad)
    _, others = make("grouped chunks", torch.float32, seed=14)
    with torch.no_grad():
        for x, other in zip(inputs, others, strict=True):
            x.copy_(other)
    graph.replay()
    output = module(*inputs)
    assert_same(captured, (output, *torch.autograd.grad(output, inputs, grad)))


# ---- errors


def test_float64_is_refused() -> None:
    config, inputs = make("plain", torch.float64)
    with pytest.raises(ValueError, match=r"impl = 'triton'.*float64"):
        lighthouse_attention(*inputs, config=config, impl="triton")


def test_float64_runs_by_the_reference() -> None:
    config, inputs = make("plain", torch.float64)
    assert torch.equal(
        lighthouse_attention(*inputs, config=config),
        lighthouse_attention(*inputs, config=config, impl="reference"),
    )


NEEDS_GPU = "^impl = 'triton': the Triton kernels need a GPU, and this is 'cpu'; use 'reference'"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_cpu_is_refused_without_the_interpreter(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the dtype, which is not what is missing."""
    monkeypatch.setattr(triton, "INTERPRETED", False)
    _, _, config = SHAPES["plain"]
    inputs = to(qkv((1, 32, 8), (1, 1), 15), dtype)
    with pytest.raises(ValueError, match=NEEDS_GPU):
        lighthouse_attention(*inputs, config=config, impl="triton")
    scores = torch.ones(1, 1, 32)
    with pytest.raises(ValueError, match=NEEDS_GPU):
        select(scores, scores, config=config, impl="triton")


def test_auto_on_cpu_is_the_reference() -> None:
    _, _, config = SHAPES["plain"]
    inputs = to(qkv((1, 32, 8), (1, 1), 16), torch.float32)
    with Calls() as calls:
        lighthouse_attention(*inputs, config=config)
    assert not any(op.namespace == "lighthouse" for op in calls.of)


@pytest.mark.gpu
def test_auto_on_a_gpu_is_triton() -> None:
    config, inputs = make("plain", torch.bfloat16)
    with Calls() as calls:
        lighthouse_attention(*inputs, config=config)
    assert calls.of[torch.ops.lighthouse.select.default] == 1
