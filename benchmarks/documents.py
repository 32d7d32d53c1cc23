"""What document masks cost and save: one attention layer, on one GPU.

    python -m benchmarks.documents [--seq-len 98304] [--mean 4096] [--seconds 80] [--out FILE]

Documents' lengths are log-normal with sigma 1: by default 24 documents, which leave 0.109 of the
pairs of a causal sequence; the mean over draws is 0.095. They get as many places as a batch of the
loader has, and one for each 256 tokens. Dense attention and a Lighthouse layer with and without
documents, forward and forward + backward; attention on the sub-sequence alone; each step around it;
FlexAttention with a mask of documents in its place. Times are medians in milliseconds from one
process; of replayed CUDA graphs unless a row says eager. What fails has a reason in its row. Writes
JSON after each row; from ``--seconds`` on what is left is left out.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from benchmarks.attention import (
    Inputs,
    backward_of,
    cudnn_first,
    make_inputs,
    median_ms,
    stage_times,
)
from benchmarks.provenance import gpu
from lighthouse import LighthouseConfig, lighthouse_attention
from lighthouse.documents import document_attention, first_tokens, places_for, row_starts
from lighthouse.ops import implementation

Call = Callable[[Tensor, Tensor, Tensor], Tensor]

BUDGET_MS = 150
BLOCK = 128


def draw_starts(seq_len: int, mean: int, multiple: int, seed: int) -> list[int]:
    """First tokens of log-normal documents that fill a sequence, multiples of ``multiple``."""
    generator = np.random.default_rng(seed)
    starts = [0]
    while True:
        length = generator.lognormal(math.log(mean) - 0.5)
        start = starts[-1] + max(1, math.ceil(length / multiple)) * multiple
        if start >= seq_len:
            return starts
        starts.append(start)


def tensor_of(starts: list[int], seq_len: int, places: int) -> Tensor:
    """``document_starts`` (1, M)."""
    row = starts + [seq_len] * (places - len(starts))
    return torch.tensor([row], dtype=torch.int32, device="cuda")


class FlexDocuments:
    """``document_attention`` by FlexAttention: a mask of blocks made from where documents begin."""

    def __init__(self) -> None:
        self._attention = torch.compile(flex_attention, dynamic=False)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, starts_BGM: Tensor) -> Tensor:
        mask = self.mask(starts_BGM, q.shape[1], q.shape[2])
        return self._attention(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])

    @staticmethod
    def mask(starts_BGM: Tensor, heads: int, seq_len: int) -> BlockMask:
        batch, groups = starts_BGM.shape[:2]
        row_N = torch.arange(seq_len, device=starts_BGM.device, dtype=torch.int32)
        rows = row_N.expand(batch, groups, -1).contiguous()
        document = torch.searchsorted(starts_BGM, rows, right=True) - 1
        first_BHN = starts_BGM.gather(2, document).repeat_interleave(heads // groups, dim=1)
        block = torch.arange(seq_len // BLOCK, device=rows.device, dtype=torch.int32)
        begin = first_BHN[..., ::BLOCK] // BLOCK
        # From here to the diagonal every row of the block sees every key.
        whole = ((first_BHN[..., BLOCK - 1 :: BLOCK] + BLOCK - 1) // BLOCK).minimum(block)
        nth = block.expand(*begin.shape, -1)
        partial_count = whole - begin
        indices = torch.where(
            nth < partial_count[..., None], begin[..., None] + nth, block[:, None]
        )
        most = len(block) - 1
        return BlockMask.from_kv_blocks(
            partial_count + 1,
            indices.clamp(max=most).contiguous(),
            block - whole,
            (whole[..., None] + nth).clamp(max=most).contiguous(),
            BLOCK_SIZE=BLOCK,
            mask_mod=lambda b, h, q, k: (q >= k) & (first_BHN[b, h, q] <= k),
        )


class Report:
    """The rows measured so far, and the time they took."""

    def __init__(self, path: Path, seconds: float, head: dict[str, Any]) -> None:
        self._path, self._end, self._head = path, time.monotonic() + seconds, head
        self.rows: list[dict[str, Any]] = []

    def add(self, what: str, measure: Callable[[], dict[str, Any]], **row: Any) -> None:
        row = {"what": what, **row}
        if time.monotonic() > self._end:
            row["error"] = "left out: the time was over"
        else:
            try:
                row |= measure()
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"[:300]
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps({**self._head, "rows": self.rows}, indent=1) + "\n")

    def ms(self, what: str, kv_heads: int) -> list[float] | None:
        for row in self.rows:
            if (row["what"], row["kv_heads"]) == (what, kv_heads):
                return row.get("ms")
        return None


def both(call: Call, inputs: Inputs, graph: bool = True) -> dict[str, Any]:
    """Forward, and forward + backward; memory above that of what goes in."""
    grad = torch.ones_like(inputs[0])
    runs = (lambda: call(*inputs), backward_of(call, inputs, grad))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    runs[1]()
    found: dict[str, Any] = {
        "memory_mib": (torch.cuda.max_memory_allocated() - before) / 2**20,
    }
    try:
        found["ms"] = [median_ms(run, graph, BUDGET_MS) for run in runs]
    except Exception as error:
        found["eager_since"] = f"{type(error).__name__}: {error}"[:300]
        found["ms"] = [median_ms(run, False, BUDGET_MS) for run in runs]
    return found


def difference(call: Call, other: Call, inputs: Inputs) -> float:
    """Largest norm of a difference of outputs or gradients, over that of the first's."""
    grad = torch.randn_like(inputs[0])
    runs = [
        (out, *torch.autograd.grad(out, inputs, grad))
        for out in (f(*inputs) for f in (call, other))
    ]
    pairs = zip(*runs, strict=True)
    return max(((a.float() - b.float()).norm() / a.float().norm()).item() for a, b in pairs)


def sub_sequence(inputs: Inputs, config: LighthouseConfig, starts: Tensor) -> tuple[Inputs, Tensor]:
    """What the attention of a Lighthouse layer with documents is called with."""
    q, k, v = (x.detach() for x in inputs)
    ops = implementation("auto", q.device, q.dtype)
    coarsest, maxima = ops.summarize((q, k, v), config, scored=True)
    assert maxima is not None
    seq_len = q.shape[2]
    selection = ops.select(*maxima, config, first_tokens(starts, seq_len, config))
    rows = tuple(x.requires_grad_() for x in ops.gather((q, k, v), coarsest, selection, config))
    return rows, row_starts(selection, starts, seq_len, config)


class Layer:
    """One layout of heads: its inputs, its documents, and the calls that are measured."""

    def __init__(self, kv_heads: int, config: LighthouseConfig, starts: list[int], seq_len: int):
        self.config, self.kv_heads = config, kv_heads
        self.inputs = make_inputs(seq_len, 8, kv_heads, 128, torch.bfloat16)
        most = seq_len // 256
        fitting = places_for(len(starts), most)
        self.places = {m: tensor_of(starts, seq_len, m) for m in (fitting, most)}
        self.starts = self.places[fitting]
        self.rows, self.cut = sub_sequence(self.inputs, config, self.starts)

    def dense(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return cudnn_first(q, k, v, enable_gqa=self.kv_heads != 8)

    def lighthouse(self, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None) -> Tensor:
        def attention(
            *rows: Tensor, enable_gqa: bool, document_starts: Tensor | None = None
        ) -> Tensor:
            if document_starts is None:
                return cudnn_first(*rows, enable_gqa=enable_gqa)
            return document_attention(*rows, document_starts)

        config = self.config
        return lighthouse_attention(
            q, k, v, config=config, attention=attention, document_starts=starts
        )

    def in_documents(self, starts: Tensor) -> Call:
        return lambda q, k, v: self.lighthouse(q, k, v, starts)


def attention_in(starts_BGM: Tensor) -> Call:
    return lambda q, k, v: document_attention(q, k, v, starts_BGM)


def measure(report: Report, layer: Layer) -> None:
    """All but FlexAttention. What no capture is known to fail for comes first."""
    add = partial(report.add, kv_heads=layer.kv_heads)
    inputs, rows, config = layer.inputs, layer.rows, layer.config
    with_documents = layer.in_documents(layer.starts)
    add("Lighthouse, eager", lambda: both(layer.lighthouse, inputs, graph=False))
    add("Lighthouse, documents, eager", lambda: both(with_documents, inputs, graph=False))
    add("Lighthouse", lambda: both(layer.lighthouse, inputs))
    add("attention on S", lambda: both(layer.dense, rows))
    add("dense", lambda: both(layer.dense, inputs))
    add("parts", lambda: {"ms": stage_times(inputs, config)})
    add("parts, documents", lambda: {"ms": stage_times(inputs, config, layer.starts)})
    for places, starts in layer.places.items():
        of_rows = sub_sequence(inputs, config, starts)[1]
        calls = {
            "Lighthouse, documents": (layer.in_documents(starts), inputs),
            "attention on S, documents": (attention_in(of_rows), rows),
            "dense, documents": (attention_in(starts[:, None]), inputs),
        }
        for what, call in calls.items():
            add(what, partial(both, *call), places=places)
    summarize(report, layer.kv_heads)


def measure_flex(report: Report, layer: Layer) -> None:
    if layer.rows[0].shape[2] % BLOCK or layer.inputs[0].shape[2] % BLOCK:
        return
    add = partial(report.add, kv_heads=layer.kv_heads)
    flex = FlexDocuments()
    on_rows = partial(flex, starts_BGM=layer.cut)
    same = partial(difference, attention_in(layer.cut), on_rows, layer.rows)
    add("flex on S, documents", lambda: both(on_rows, layer.rows) | {"difference": same()})
    mask = partial(flex.mask, layer.cut, *layer.rows[0].shape[1:3])
    add("mask of flex on S", lambda: {"ms": median_ms(mask, False, BUDGET_MS)})
    dense = partial(flex, starts_BGM=layer.starts[:, None])
    add("flex, documents", lambda: both(dense, layer.inputs))


def summarize(report: Report, kv_heads: int) -> None:
    """The bars: a layer with documents over one without, and what is around attention likewise."""
    whole, inner = (report.ms(name, kv_heads) for name in ("Lighthouse", "attention on S"))
    cut, cut_inner = (
        report.ms(f"{name}, documents", kv_heads) for name in ("Lighthouse", "attention on S")
    )
    found = {}
    if whole and cut:
        found["layer"] = cut[1] / whole[1]
    if whole and cut and inner and cut_inner:
        found["around attention"] = (cut[1] - cut_inner[1]) / (whole[1] - inner[1])
    dense, cut_dense = (report.ms(name, kv_heads) for name in ("dense", "dense, documents"))
    if dense and cut_dense:
        found["dense"] = cut_dense[1] / dense[1]
    report.add("with documents over without", lambda: found, kv_heads=kv_heads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seq-len", type=int, default=98304)
    parser.add_argument("--mean", type=int, default=4096)
    parser.add_argument("--topk", type=int, default=1536)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=80)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/documents.json"))
    options = parser.parse_args()
    seq_len, config = options.seq_len, LighthouseConfig(topk=options.topk)
    starts = draw_starts(seq_len, options.mean, config.coarsest_width, options.seed)
    lengths = np.diff([*starts, seq_len])
    head = {
        **gpu(),
        "statistic": "median ms, of CUDA graph replays but for eager; [forward, both]; L2 flushed",
        "seq_len": seq_len,
        "config": str(config),
        "gathered_len": config.gathered_len(seq_len),
        "documents": len(starts),
        "longest": int(lengths.max()),
        "share_of_pairs": float((lengths * (lengths + 1)).sum() / (seq_len * (seq_len + 1))),
    }
    print(json.dumps(head), flush=True)
    report = Report(options.out, options.seconds, head)
    layers = [Layer(kv_heads, config, starts, seq_len) for kv_heads in (8, 2)]
    for step in (measure, measure_flex):
        for layer in layers:
            step(report, layer)


if __name__ == "__main__":
    main()
