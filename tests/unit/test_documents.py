"""Attention that ends where a document ends: values, gradients, and that nothing crosses a border.

Documents are said by the tokens that they begin with, for each row of the batch.
"""

from dataclasses import replace
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import lighthouse.documents as documents_module
from lighthouse import LighthouseAttention, LighthouseConfig, WindowConfig, lighthouse_attention
from lighthouse.documents import document_attention, first_tokens, row_starts
from lighthouse.ops import reference
from lighthouse.pyramid import Pyramid, Selection
from lighthouse.scorers import level0_scores, level1_maxima
from lighthouse.window import window_attention
from tests.support import oracle
from tests.support.inputs import QKV, build, leaves, normal, qkv, to
from tests.unit.test_attention import float64_budget, gradients
from tests.unit.test_window import DEVICE, with_gradients

# name: ((batch, tokens, head dimension), (query heads, key/value heads), configuration, documents)
SHAPES = {
    "plain": ((1, 32, 8), (1, 1), build(2, 2, 4), [[0, 10, 16, 26]]),
    "odd everything": ((2, 63, 5), (3, 3), build(3, 3, 4), [[0, 9, 45], [0, 54]]),
    "grouped": ((2, 45, 7), (4, 2), build(2, 5, 4, selection="published"), [[0, 5, 40], [0, 20]]),
    "multi-query": ((1, 40, 3), (6, 1), build(4, 2, 4), [[0, 8, 16, 32]]),
    "chunks": ((2, 70, 5), (2, 2), build(2, 5, 8, num_chunks=2), [[0, 5, 30, 40], [0, 35]]),
    "no prefix": ((1, 44, 5), (2, 1), build(3, 2, 6, cover_prefix=False), [[0, 4, 20]]),
    "more documents than places": ((1, 48, 4), (2, 2), build(2, 2, 4), [list(range(0, 48, 2))]),
}
EACH_SHAPE = pytest.mark.parametrize("name", SHAPES)


def tensor_of(documents: list[list[int]], seq_len: int, unused: int = 2) -> Tensor:
    """``document_starts``, with places without a document."""
    most = max(map(len, documents)) + unused
    rows = [starts + [seq_len] * (most - len(starts)) for starts in documents]
    return torch.tensor(rows, dtype=torch.int32)


def make(name: str, seed: int = 0) -> tuple[LighthouseConfig, QKV, list[list[int]]]:
    shape_BND, heads, config, documents = SHAPES[name]
    return config, qkv(shape_BND, heads, seed), documents


def run(config: LighthouseConfig, inputs: QKV, documents: list[list[int]]) -> Tensor:
    starts = tensor_of(documents, inputs[0].shape[2])
    return lighthouse_attention(*inputs, config=config, impl="reference", document_starts=starts)


def selection_of(config: LighthouseConfig, inputs: QKV, documents: list[list[int]]) -> Selection:
    maxima = (level1_maxima(x, config) for x in level0_scores(*inputs, config))
    seq_len = inputs[0].shape[2]
    first = first_tokens(tensor_of(documents, seq_len), seq_len, config)
    return reference.select(*maxima, config, first)


def spans(documents: list[list[int]], seq_len: int) -> list[tuple[int, int, int]]:
    """Batch row, first token and end of each document."""
    return [
        (row, start, end)
        for row, starts in enumerate(documents)
        for start, end in zip(starts, [*starts[1:], seq_len], strict=True)
    ]


# ---- values


@EACH_SHAPE
def test_equals_the_oracle(name: str) -> None:
    config, inputs, documents = make(name)
    expected = oracle.lighthouse_attention(config, *(x.numpy() for x in inputs), documents)
    torch.testing.assert_close(
        run(config, inputs, documents),
        torch.from_numpy(expected),
        rtol=0,
        atol=float64_budget(config, inputs),
    )


@EACH_SHAPE
def test_selects_as_the_oracle(name: str) -> None:
    config, inputs, documents = make(name)
    scores = (x.numpy() for x in level0_scores(*inputs, config))
    expected = oracle.select_flat(config, *scores, documents)
    index = selection_of(config, inputs, documents).index
    torch.testing.assert_close(index.long(), torch.from_numpy(expected))


@EACH_SHAPE
def test_one_document_is_a_sequence_without(name: str) -> None:
    config, inputs, _ = make(name)
    whole = [[0]] * inputs[0].shape[0]
    without = lighthouse_attention(*inputs, config=config, impl="reference")
    torch.testing.assert_close(run(config, inputs, whole), without, rtol=0, atol=1e-14)


def of_document_alone(
    config: LighthouseConfig, inputs: QKV, selection: Selection, row: int, head: int, span: slice
) -> Tensor:
    """Output of a document that is a sequence of its own, under its part of a selection."""
    seq_len, length = inputs[0].shape[2], span.stop - span.start
    all_of, alone = (
        Pyramid(n, config.num_levels, config.pooling_factor) for n in (seq_len, length)
    )
    index = [
        alone.offsets[level] + i - span.start // all_of.widths[level]
        for level, i in (
            oracle.entry_of(config, seq_len, int(flat)) for flat in selection.index[row, head]
        )
        if span.start <= i * all_of.widths[level] < span.stop
    ]
    index_BKS = torch.tensor([[index]], dtype=torch.int32)
    its_selection = Selection(index_BKS, reference._slots(index_BKS, alone))
    group = inputs[0].shape[1] // inputs[1].shape[1]
    q = inputs[0][row : row + 1, head * group : (head + 1) * group, span]
    k, v = (x[row : row + 1, head : head + 1, span] for x in inputs[1:])
    coarsest, _ = reference.summarize((q, k, v), config, scored=False)
    rows = reference.gather((q, k, v), coarsest, its_selection, config)
    attended = nn.functional.scaled_dot_product_attention(*rows, is_causal=True, enable_gqa=True)
    return reference.scatter(attended, its_selection, q, config)


@pytest.mark.parametrize("name", [n for n in SHAPES if n != "chunks"])
def test_each_document_is_what_it_is_alone(name: str) -> None:
    config, inputs, documents = make(name)
    selection = selection_of(config, inputs, documents)
    seq_len = inputs[0].shape[2]
    together, alone = leaves(inputs), leaves(inputs)
    out = run(config, together, documents)
    parts = torch.empty_like(out)
    group = inputs[0].shape[1] // inputs[1].shape[1]
    for row, start, end in spans(documents, seq_len):
        for head in range(inputs[1].shape[1]):
            span, of_group = slice(start, end), slice(head * group, (head + 1) * group)
            part = of_document_alone(config, alone, selection, row, head, span)
            parts[row, of_group, span] = part[0]
    atol = float64_budget(config, inputs)
    torch.testing.assert_close(out, parts, rtol=0, atol=atol)
    for of_both, of_one in zip(gradients(out, together), gradients(parts, alone), strict=True):
        # A gradient sums as many terms as there are rows.
        torch.testing.assert_close(of_both, of_one, rtol=0, atol=seq_len * atol)


@EACH_SHAPE
def test_every_token_of_a_covered_document_has_an_output(name: str) -> None:
    config, inputs, documents = make(name)
    q, k, v = inputs
    ones = q, k, torch.ones_like(v)
    heard = (run(config, ones, documents) != 0).all(-1)
    for row, start, end in spans(documents, q.shape[2]):
        if config.cover_prefix and name != "more documents than places":
            assert heard[row, :, start:end].all()
    if name == "more documents than places":
        # A stratum of 24 documents, each one entry wide, refines 4: two strata of 12, 2 in each.
        alone = heard[0, 0].view(2, 12, 2)
        assert alone[:, :2].all()  # the first ones
        assert alone[..., 1].all()  # the last token of an entry hears that
        assert not alone[:, 2:, 0].any()


# ---- what crosses a border


@EACH_SHAPE
@pytest.mark.parametrize("poisoned", [0, 1])
def test_nothing_crosses_a_border(name: str, poisoned: int) -> None:
    """One document is NaN, in what is given and in the gradient; the others don't notice."""
    config, inputs, documents = make(name)
    if len(documents[0]) <= poisoned + 1 and poisoned:
        pytest.skip("one border")
    seq_len = inputs[0].shape[2]
    selection = selection_of(config, inputs, documents)
    row, start, end = spans(documents, seq_len)[poisoned]
    grad = normal(tuple(inputs[0].shape), 3)
    clean, bad = leaves(inputs), leaves(inputs)
    bad_grad = grad.clone()
    with torch.no_grad():
        for x in (*bad, bad_grad):
            x[row, :, start:end] = torch.nan
    with patch.object(reference, "select", lambda *_: selection):
        expected, got = run(config, clean, documents), run(config, bad, documents)
    elsewhere = torch.ones(inputs[0].shape[0], seq_len, dtype=torch.bool)
    elsewhere[row, start:end] = False
    expected_grads = torch.autograd.grad(expected, clean, grad)
    grads = torch.autograd.grad(got, bad, bad_grad)
    for found, wanted in zip((got, *grads), (expected, *expected_grads), strict=True):
        at = elsewhere[:, None, :, None].expand_as(found)
        assert torch.equal(found[at], wanted[at])


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("heads", [(2, 2), (6, 2)])
def test_attention_in_documents_equals_the_oracle(
    window: int | None, heads: tuple[int, int]
) -> None:
    """Dense and in a window; documents of one token and of odd lengths, and none at all."""
    documents = [[0, 1, 2, 9, 20], [0, 17]]
    inputs = qkv((2, 21, 4), heads, seed=1)
    starts = tensor_of(documents, 21)[:, None]
    given = leaves(inputs)
    out = document_attention(*given, starts, window=window)
    arrays = [x.numpy() for x in inputs]
    expected = torch.from_numpy(oracle.window_attention(window or 21, *arrays, documents))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
    assert torch.autograd.gradcheck(
        lambda *x: document_attention(*x, starts, window=window), given, fast_mode=True
    )


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("front", [1, 9, 13, 20])
def test_keys_in_front_are_those_of_the_documents_that_go_on(
    front: int, window: int | None
) -> None:
    """Values and gradients are those of the last tokens of the whole; the others ask nothing."""
    starts = tensor_of([[0, 1, 2, 9, 20], [0, 17]], 21)[:, None]
    whole, part = (leaves(qkv((2, 21, 4), (4, 2), seed=1)) for _ in range(2))
    grad = normal((2, 4, 21, 4), 3)
    grad[:, :, :front] = 0
    outs = [
        document_attention(q[:, :, first:], k, v, starts, window=window)
        for first, (q, k, v) in ((0, whole), (front, part))
    ]
    torch.testing.assert_close(outs[1], outs[0][:, :, front:], rtol=0, atol=1e-13)
    expected = torch.autograd.grad(outs[0], whole, grad)
    found = torch.autograd.grad(outs[1], part, grad[:, :, front:])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_heads_may_be_cut_in_different_places() -> None:
    q, k, v = qkv((1, 12, 4), (4, 2), seed=2)
    starts = torch.tensor([[[0, 5, 12], [0, 0, 9]]], dtype=torch.int32)
    out = document_attention(q, k, v, starts)
    for head in range(2):
        alone = q[:, 2 * head : 2 * head + 2], k[:, head : head + 1], v[:, head : head + 1]
        expected = document_attention(*alone, starts[:, head : head + 1])
        assert torch.equal(out[:, 2 * head : 2 * head + 2], expected)


@EACH_SHAPE
def test_rows_are_cut_where_the_document_changes(name: str) -> None:
    config, inputs, documents = make(name)
    seq_len = inputs[0].shape[2]
    selection = selection_of(config, inputs, documents)
    starts = row_starts(selection, tensor_of(documents, seq_len), seq_len, config)
    for row, bounds in enumerate(documents):
        for head, index in enumerate(selection.index[row]):
            entries = [oracle.entry_of(config, seq_len, int(flat)) for flat in index]
            tokens = [oracle.window(config, entry)[0] for entry in entries]
            documents_of_rows = [sum(start <= token for start in bounds) - 1 for token in tokens]
            assert documents_of_rows == sorted(documents_of_rows)
            expected = [sum(d < i for d in documents_of_rows) for i in range(len(bounds))]
            found = starts[row, head].tolist()
            assert found[: len(bounds)] == expected
            assert {*found[len(bounds) :]} == {len(index)}


# ---- the module, and what is refused


@pytest.mark.parametrize("kind", ["dense", "window", "lighthouse"])
def test_the_module_hands_documents_to_each_kind_of_attention(kind: str) -> None:
    config, inputs, documents = make("grouped")
    starts = tensor_of(documents, 45)
    module = LighthouseAttention(WindowConfig(4) if kind == "window" else config, nn.Identity())
    module.dense = kind == "dense"
    out = module(*inputs, enable_gqa=True, document_starts=starts)
    if kind == "lighthouse":
        expected = run(config, inputs, documents)
    else:
        window = 4 if kind == "window" else None
        expected = document_attention(*inputs, starts[:, None], window=window)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("kind", ["dense", "window", "lighthouse"])
def test_compiles_as_one_graph(kind: str) -> None:
    config, inputs, documents = make("grouped")
    starts = tensor_of(documents, 45)
    module = LighthouseAttention(
        WindowConfig(4) if kind == "window" else config, nn.Identity(), "reference"
    )
    module.dense = kind == "dense"
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    both = leaves(inputs), leaves(inputs)
    outs = [
        call(*x, enable_gqa=True, document_starts=starts)
        for call, x in zip((module, compiled), both, strict=True)
    ]
    torch.testing.assert_close(*outs, rtol=0, atol=1e-13)
    for one, other in zip(*map(gradients, outs, both), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_operators_are_well_behaved() -> None:
    inputs = leaves(qkv((2, 9, 4), (4, 2), seed=1))
    starts = tensor_of([[0, 1, 5], [0]], 9)[:, None]
    torch.library.opcheck(torch.ops.lighthouse.documents.default, (*inputs, starts, 3))


@pytest.mark.parametrize(
    ("starts", "says"),
    [
        ([[0, 5]], "must be"),
        ([[5, 10], [0, 5]], "begin with 0"),
        ([[0, 10, 5], [0, 5, 5]], "fall"),
        ([[0, 46], [0, 5]], "45"),
        ([[0, 7], [0, 5]], "multiples of .* = 5"),
    ],
)
def test_refuses_what_are_no_documents(starts: list[list[int]], says: str) -> None:
    config, inputs, _ = make("grouped")
    tensor = torch.tensor(starts, dtype=torch.int32)
    with pytest.raises(ValueError, match=says):
        lighthouse_attention(*inputs, config=config, document_starts=tensor)


@pytest.mark.parametrize("scorer", ["dilated", "gla"])
def test_refuses_scorers_that_attend_across_borders(scorer: str) -> None:
    config, inputs, documents = make("plain")
    with pytest.raises(ValueError, match=scorer):
        run(replace(config, scorer=scorer), inputs, documents)


def varlen_by_loop(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> Tensor:
    """What PyTorch's kernel for sequences of many lengths promises, which has none for CPUs."""
    assert enable_gqa == (q.shape[1] != k.shape[1])
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    for bounds, tokens in ((cu_seq_q.tolist(), len(q)), (cu_seq_k.tolist(), len(k))):
        assert bounds == sorted(bounds) and bounds[0] == 0 and bounds[-1] == tokens
    left, right = window_size
    assert right == 0
    out = torch.empty_like(q)
    spans = zip(pairwise(cu_seq_q.tolist()), pairwise(cu_seq_k.tolist()), strict=True)
    for (start, end), (first, last) in spans:
        assert end - start <= max_q and last - first <= max_k
        window = last - first if left == -1 else left + 1
        if end > start:
            piece = (x.transpose(0, 1)[None] for x in (q[start:end], k[first:last], v[first:last]))
            out[start:end] = window_attention(*piece, window=window)[0].transpose(0, 1)
    return out


@pytest.mark.parametrize("most", [2**15, 1])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("heads", [(2, 2), (8, 2)])
@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("front", [0, 8])
def test_all_documents_of_all_heads_in_one_call(
    front: int,
    most: int,
    window: int | None,
    heads: tuple[int, int],
    alike: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The call that GPUs get, of a stand-in for their kernel."""
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", varlen_by_loop)
    monkeypatch.setattr(documents_module, "_MOST_PIECES", most)
    monkeypatch.setattr(documents_module, "_GROUPED", {"enable_gqa": True})
    q, *keys = qkv((2, 21, 4), heads, seed=1)
    inputs = (q[:, :, front:], *keys)
    starts = tensor_of([[0, 1, 9], [0, 17]], 21)[:, None]
    if not alike:
        starts = torch.cat([starts, tensor_of([[0, 5, 6], [0, 2]], 21)[:, None]], dim=1)
    out = documents_module._by_lengths(*inputs, starts, window or 21)
    expected = document_attention(*inputs, starts, window=window)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)


# ---- low precision, and GPUs


def by_document(inputs: QKV, documents: list[list[int]], window: int) -> Tensor:
    """The reference of each document alone."""
    rows = [
        [
            reference.window_attention(*(x[row : row + 1, :, start:end] for x in inputs), window)
            for of_row, start, end in spans(documents, inputs[0].shape[2])
            if of_row == row
        ]
        for row in range(len(documents))
    ]
    return torch.cat([torch.cat(parts, dim=2) for parts in rows])


LOW_DTYPES = [torch.bfloat16, torch.float16, torch.float32]
LOW_SHAPES = [((2, 2), 64, 0), ((8, 2), 64, 0), ((8, 2), 64, 600), ((2, 1), 36, 0)]
LOW_CASES = [
    (*shape, window, dtype)
    for i, shape in enumerate(LOW_SHAPES)
    for j, window in enumerate((None, 100))
    # A GPU has kernels of their own for each; a CPU takes long, and has them in turn.
    for dtype in (LOW_DTYPES if DEVICE == "cuda" else [LOW_DTYPES[(i + j) % 3]])
]
# Eight heads take longest. One case of them has a front and a window.
LOW_TIERS = [
    pytest.param(*case, marks=pytest.mark.thorough if case[0] == (8, 2) and None in case else ())
    for case in LOW_CASES
]


@pytest.mark.parametrize(("heads", "head_dim", "front", "window", "dtype"), LOW_TIERS, ids=str)
def test_is_no_worse_than_its_dtype(
    heads: tuple[int, int], head_dim: int, front: int, window: int | None, dtype: torch.dtype
) -> None:
    """Against float64 on the same inputs; on a GPU by what takes these inputs there.

    Of keys in front some documents have all theirs there, and no query.
    """
    documents = [[0, 1, 130, 700], [0, 999]]
    starts = tensor_of(documents, 1000).to(DEVICE)[:, None]
    given = qkv((2, 1000, head_dim), heads, seed=1)
    low = leaves(to(tuple(x.to(DEVICE) for x in given), dtype))
    exact = leaves(to(low, torch.float64))
    last = (low[0][:, :, front:], *low[1:])
    found = with_gradients(document_attention(*last, starts, window=window), low)
    whole = by_document(exact, documents, window or 1000)
    wanted = with_gradients(whole[:, :, front:], exact)
    # In half precision weights, outputs, their gradients and sums over a group's heads are rounded;
    # in single precision sums of so many terms are.
    half_eps = torch.finfo(dtype).eps / 2
    allowed = half_eps * (1000 if dtype == torch.float32 else 4)
    for got, want in zip(found, wanted, strict=True):
        assert got.dtype == dtype and got.shape == want.shape and got.isfinite().all()
        assert (got.double() - want).norm() <= allowed * want.norm()


@pytest.mark.parametrize("window", [None, 100])
def test_no_nan_crosses_a_border_in_low_precision(window: int | None) -> None:
    documents = [[0, 1, 130, 700], [0, 999]]
    starts = tensor_of(documents, 1000).to(DEVICE)[:, None]
    inputs = leaves(to(tuple(x.to(DEVICE) for x in qkv((2, 1000, 64), (8, 2), 1)), torch.bfloat16))
    grad = torch.ones_like(inputs[0])
    elsewhere = torch.ones(2, 1000, dtype=torch.bool, device=DEVICE)
    elsewhere[0, 130:700] = False
    with torch.no_grad():
        for x in (*inputs, grad):
            x[0, :, 130:700] = torch.nan
    out = document_attention(*inputs, starts, window=window)
    for x in (out, *torch.autograd.grad(out, inputs, grad)):
        assert x.isfinite().all(-1).all(1)[elsewhere].all()
