"""docs/speed.md from benchmarks/results/: python -m benchmarks.speed_page"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import layer_table, table, training_table
from benchmarks.floor import Alone
from benchmarks.training_cases import named, sizes, tokens_per_step
from benchmarks.training_table import RESULTS, by_case, load
from lighthouse.cost.rates import load_rates
from lighthouse.cost.step import cost

PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
TEMPLATE = """# Speed

Made by `python -m benchmarks.speed_page` from `benchmarks/results/`; do not edit.

## One attention layer

![Latency against sequence length](../benchmarks/results/attention_h100.png)

Forward / forward + backward, milliseconds. One H100 80GB, torch 2.11.0, cuDNN 9.19, bf16, batch
1, 8 heads of 128. Medians of replayed CUDA graphs, all from one run of `python -m
benchmarks.attention` ([results](../benchmarks/results/attention_h100.json)). The floor is the
bytes that must move around the inner attention over the measured copy bandwidth, {copy:.2f} TB/s.
"Around it" is the difference of two medians, so it carries their noise.

{layers}

The steps of N = 98,304, L = 3, p = 4, k = 1,536, each on its own:

{steps}

These are of the published selection; the causal one takes 0.03 ms more
([figures](selection.md#what-it-costs)). `select` has become faster since
([results](../benchmarks/results/select_h100.json)): its candidates stay in registers.

| N, L, p, k | select before, µs | now |
| --- | --- | --- |
{select}

With launches hidden behind earlier work, as in a compiled trainer or a CUDA graph, Lighthouse is
faster than dense from the shortest length measured. In eager mode Python's share is all there is to
see of short ones: 8,192 tokens take {eager} ms with 8 and 2
key/value heads, on a quiet host with an H100 (`--cases short`,
[results](../benchmarks/results/eager_h100.json)). The table's eager figures are from before
queries, keys and values shared their operators ([host time](#host-time)). With launches hidden that
gains up to 8%, here before and now in one run on one H200
([results](../benchmarks/results/joint_operators_h200.json)), in ms:

| N | layer before | now | its gather and summarize before | now |
| --- | --- | --- | --- | --- |
{joint}

All around the attention kernel is deterministic, forward and backward. The kernel is torch's
choice. cuDNN's, the fastest, adds up gradients in no fixed order: two runs on a GPU agree to
rounding.
`--debug.deterministic` makes torch take flash attention's, which is slower.

Other methods on the same work: [rivals](rivals.md).

## Documents

The same layer, causal selection, with and without [documents](method.md#10-documents):
{documents} in {tokens:,} tokens, of log-normal lengths with sigma 1, the longest {longest:,}, which
leave {share:.1%} of the pairs of a causal sequence. `python -m benchmarks.documents` on one
{documents_device} ([results](../benchmarks/results/documents_h100.json)).

{documents_ms}

{documents_parts}

With documents over without, forward + backward, of 8 and 2 key/value heads: the layer
{documents_layer}, a dense layer {documents_dense}. All around attention {documents_around} as what
the layer takes beside it, and {documents_steps} as the sum of its
steps, each alone.

Across {documents_ranks} of them, its exchange included, by `benchmarks.documents_ring`: as it is
([results](../benchmarks/results/ring_documents_h200_x2.json)), and before, with an exchange that
copied and added more
([results](../benchmarks/results/ring_documents_before_h200_x2.json)). Forward / forward + backward
of the slower rank, eager:

{documents_ring}

## Training

The trainer, `530M_byte` at 98,304 tokens a sequence, k=1536, layers 0, 1, 28 and 29 dense, blocks
compiled, one H100 80GB: `python -m benchmarks.training`
([results](../benchmarks/results/training_h100.json)).

{training}

At these speeds the recipe ends sooner than 16,000 dense steps: {gains}.

A step without checkpointing. The floor is the products at the rate of a large one
({matmul:.0f} TFLOP/s), the attention layers as measured by themselves, and the bytes that norms,
rotary embedding, SwiGLU, residuals and the optimizer must move at the rate of a copy
([count](../benchmarks/floor.py)):

{step}

The same of other stages, on another H100
([results](../benchmarks/results/training_windows_h100.json)); the dense one on the one above:

{floors}

Stages of [`growing_98k.toml`](../train_configs/growing_98k.toml), 98,304 tokens a step, on one H200
with a line of the log for each five steps ([results](../benchmarks/results/growing_h200.json)).
Their floor has the attention of the step itself:

{growing}

The same on a third H100, with a line for each step, which waits for the GPU: 17 ms of the first
stage ([results](../benchmarks/results/growing_h100.json)):

{growing_h100}

The stage of 2,048 tokens is furthest from its floor, for its products: 1,024 channels are few, and
a GPU at its limit of power lowers its clock. After three seconds of large products an H200 does
{busy:.0f} TFLOP/s of them, where a fresh one does {fresh:.0f}. By that rate the stage is
{over_busy:.0%} over its floor ([results](../benchmarks/results/growing_2k_h200.json)). Tried for
it, each alone on an H200 (`python -m benchmarks.products`, `python -m benchmarks.norms`), in ms:

{products}

"Joint" is one product for those that read the same, with their weights side by side: no faster, as
what it saves in backward it needs for putting gradients together. Liger has the norm and SwiGLU,
quack all of the feed-forward, SwiGLU within its products. quack's forward is 15% faster at 530M,
its backward slower ([results](../benchmarks/results/products_h200.json)).

{norms}

The backward of a sum and its norm, in ms, beside its bytes at the rate of a copy. "Compiled" is
what the trainer has ([results](../benchmarks/results/norms_h200.json)). Within a block its first
norm takes 0.44 ms for 0.32 alone, since the compiler makes the second one's weight gradient there.
No kernel runs in 10 ms of the step, which is what CUDA graphs could gain, and the optimizer takes
3 ms.

Rotary embedding has pairs of channels as words of 32 bits, and takes what a copy of the bytes
takes. With the two channels apart, on a fourth H100, the steps were {complex} over their floor
([results](../benchmarks/results/growing_complex_h100.json)); [all forms
alone](../benchmarks/results/rotary_h100.json), `python -m benchmarks.rotary`.

A million tokens on one GPU: `530M_byte`, L=4, p=4, k=4096, no dense layers, full checkpointing, the
loss in chunks of 65,536 tokens. 917,504 tokens do not fit on an H100, 1,572,864 do with
[offload](long_sequences.md#what-is-offloaded).

{lengths}

Two H200s under context parallelism, on one host with NVLink, beside one of them with the same
sequence and the same chunks ([results](../benchmarks/results/training_h200_x2.json);
[what the ring costs](cost_model.md#time)):

{ring}

Lighthouse is {ring_gains}. One GPU with half the sequence has {halves}, the latter on a
[second machine](../benchmarks/results/training_h200_x2_second.json).

### Eight billion parameters

Llama-3-8B, random weights, bf16 with float32 states sharded over all GPUs, context parallelism over
the same, full checkpointing, the loss in chunks of 4,096 tokens: `python -m benchmarks.training OUT
8B-131k-cp2 8B-262k-cp2 8B-524k-cp2-offload`. MFU counts causal attention once, and of Lighthouse
what it computes. *NCCL* is its share of a step, and the share in which nothing else runs. The floor
has the attention of the step itself. The last columns are what `plan` said before, against the
measured figure. Nothing at all runs in 0.1 to 0.3% of a step.

Two H200s ([results](../benchmarks/results/training_8b_h200_x2.json)), 131,072 tokens a sequence:

{llama_131k}

The published pattern is {gain_published} times as fast as dense, and without always-dense layers
{gain_lighthouse} times. 262,144 tokens, k=4096, the last three on a
[second machine](../benchmarks/results/training_8b_h200_x2_second.json), as what follows of two:

{llama_262k}

There they are {gain_published_262k} and {gain_lighthouse_262k} times as fast, across the machines.
524,288 tokens, L=4, k=4096, block inputs in host memory; dense has {planned_524k:,.0f} by the plan,
a step of {planned_524k_minutes:.1f} minutes:

{llama_524k}

That was {before_524k:,} tokens/s on the first machine, where the backward of each layer's first
norm took ten times as long for a token as at 262,144. Inductor gives a program of that kernel more
rows at a time where a GPU has more of them, and from about 135,000 rows of 4,096 channels on too
many. The trainer limits them (`choose_norm_kernels`): in two such layers on one H200,
`8B-2-layers`, the kernel takes {norm_limited:.1f} ms for {norm_unlimited:.1f}
([results](../benchmarks/results/norm_rows_h200.json)).

With float8 products (`8B-131k-cp2-float8`, torchao's tensorwise recipe by upstream's converter,
[results](../benchmarks/results/float8_8b_h200_x2.json)) Lighthouse without always-dense layers has
{float8:,} tokens/s of each GPU at 131,072 tokens, {float8_gain:.2f} times the above, in
{float8_gib:.1f} GiB. Products take {float8_products:,.0f} of {float8_step:,.0f} ms.

Four H200s ([results](../benchmarks/results/training_h200_x4.json)), 131,072 tokens,
`8B-131k-cp4`:

{llama}

Longer, on another machine of four ([results](../benchmarks/results/context_parallel_h200_x4.json)).
Lighthouse layers kept more for backward than they do now
([more](cost_model.md#how-far-to-trust-it)). Llama-3-8B, 524,288 tokens, L=4, k=4096:

{llama_long}

`530M_byte`, 524,288 tokens, L=4, k=4096:

{small_long}

Beside what others publish, which was not run here, in tokens/s of each GPU:

{published}

### Float8 products at 530M

They gain nothing there. One H200, 98,304 tokens, no checkpointing
(`python -m benchmarks.training OUT 98k 98k-float8-tensorwise 98k-float8-rowwise`,
[results](../benchmarks/results/float8_h200.json)), the last row on another
([results](../benchmarks/results/float8_apart_h200.json)):

{float8_530m}

Products take half the time, and what is done element by element three to five times as much: casts
and their transposed copies. Where the compiler makes both gradients of a norm in one kernel, that
has them too, and takes 209 ms alone; with float8 products the trainer now has them apart.

## Host time

What Python and Triton's launches take in eager mode for one layer of {host_tokens:,} tokens, in us
on one core of a host without a GPU ({host_cpu}): `python -m benchmarks.host_time`
([results](../benchmarks/results/host_time_cpu.json)). Dense attention and CUDA's own calls are not
in it. Steps are timed alone. Where a compiler, a mode or another class of tensors looks on, steps
are operators of torch, which the last column has.

{host}

## Data

One loader worker delivers {slowest:.0f} to {fastest:.0f} million tokens/s at 98,304 to 1,048,576
tokens a sequence: bytes of parquet, jsonl and jsonl.gz files on one CPU core, in flat memory
([results](../benchmarks/results/data_cpu.json), `python -m benchmarks.data`). With a Hugging Face
tokenizer, BPE of 32,768 tokens, it is {hf:.2f} million in a second of a CPU core. `plan` says how
many workers keep the GPUs busy.
"""


def select_rows(results: dict[str, Any]) -> str:
    return "\n".join(
        f"| {row['seq_len']:,}, {row['num_levels']}, {row['pooling_factor']}, {row['topk']:,} "
        f"| {row['before']} | {row['now']} |"
        for row in results["rows"]
    )


def host_table(results: dict[str, Any]) -> str:
    """Markdown rows of the host's time of each step: as it is, without launches, as operators."""
    shown = {
        "forward": "forward",
        "summarize": "summarize",
        "select": "select",
        "gather, tracked": "gather",
        "scatter, tracked": "scatter",
        "forward + backward": "forward + backward",
        "scatter backward": "scatter backward",
        "gather backward": "gather backward",
    }
    lines = ["| step | us | without launches | as operators |", "| --- | --- | --- | --- |"]
    columns = [
        results[f"{what}_us"] for what in ("with_launches", "without_launches", "as_operators")
    ]
    lines += [
        f"| {step} | {' | '.join(f'{column[name]:.0f}' for column in columns)} |"
        for name, step in shown.items()
    ]
    return "\n".join(lines)


def documents(results: dict[str, Any]) -> dict[str, Any]:
    """The values of the section on documents."""
    bars = [r for r in results["rows"] if r["what"] == "with documents over without"]
    without, with_them = (
        [sum(r["ms"].values()) for r in results["rows"] if r["what"] == what]
        for what in ("parts", "parts, documents")
    )
    return {
        "documents": results["documents"],
        "documents_device": results["device"],
        "tokens": results["seq_len"],
        "longest": results["longest"],
        "share": results["share_of_pairs"],
        "documents_ms": table.documents_table(results),
        "documents_steps": " and ".join(
            f"{new / old:.2f}" for new, old in zip(with_them, without, strict=True)
        ),
        "documents_parts": table.documents_parts(results),
        **{
            f"documents_{name}": " and ".join(f"{row[key]:.2f}" for row in bars if key in row)
            for name, key in (
                ("layer", "layer"),
                ("around", "around attention"),
                ("dense", "dense"),
            )
        },
    }


def joint_rows(report: dict[str, Any]) -> str:
    """A layer with operators for queries, keys and values apart, and with joint ones."""
    lines = []
    for before, now in zip(report["before"]["results"], report["results"], strict=True):
        cells = [f"{before['seq_len']:,}"]
        cells += [table.pair(result["lighthouse_ms"]) for result in (before, now)]
        for result in (before, now):
            parts = result["stages_ms"]
            cells.append(f"{parts['gather'] + parts['summarize']:.3f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def eight_billion(
    reports: Sequence[dict[str, Any]], float8_report: dict[str, Any], copy_tb_per_s: float
) -> dict[str, Any]:
    """The values of what Llama-3-8B does on two GPUs; of a stage the last report that has it."""
    results = {case: run for report in reports for case, run in by_case(report).items()}
    speed = {case: run["tokens_per_second"] for case, run in results.items()}
    (float8,) = by_case(float8_report).values()
    long = "8B-524k-cp2-offload"
    dense_524k = planned_speed("8B-524k-cp2:dense")

    def gain(case: str, stage: str) -> str:
        return f"{speed[f'{case}:{stage}'] / speed[f'{case}:dense']:.2f}"

    return {
        "llama_131k": training_table.llama_table(reports, "8B-131k-cp2", copy_tb_per_s),
        "llama_262k": training_table.llama_table(reports, "8B-262k-cp2", copy_tb_per_s),
        "llama_524k": training_table.llama_table(reports, long, copy_tb_per_s),
        **{f"gain_{s}": gain("8B-131k-cp2", s) for s in ("published", "lighthouse")},
        **{f"gain_{s}_262k": gain("8B-262k-cp2", s) for s in ("published", "lighthouse")},
        "planned_524k": dense_524k,
        "planned_524k_minutes": 524288 / 2 / dense_524k / 60,
        "before_524k": by_case(reports[0])[f"{long}:lighthouse"]["tokens_per_second"],
        "published": beside_published(speed, float8["tokens_per_second"]),
        "float8": float8["tokens_per_second"],
        "float8_gain": float8["tokens_per_second"] / speed["8B-131k-cp2:lighthouse"],
        "float8_gib": float8["memory_gib"],
        "float8_products": float8["profile"][0]["by_kind_ms"]["matmul"],
        "float8_step": float8["profile"][0]["span_ms"],
    }


def norm_ms(run: dict[str, Any]) -> float:
    """What a layer's first norm takes in backward, by its slowest kernel."""
    return next(
        ms / calls
        for name, calls, ms in run["profile"][0]["kernels"]
        if name.startswith("triton_per_") and "_fused_rms_norm_backward" in name
    )


def two_thousand() -> dict[str, Any]:
    """The values of what was tried for the recipe's shortest stage."""
    growing, busy = load("growing_h200.json"), load("growing_2k_h200.json")
    before, h100_copy = load("growing_complex_h100.json"), load("attention_h100.json")
    copy, rate = busy["copy_tb_per_s"], busy["busy_matmul_tflops"]
    over = [
        training_table.over_floor(run, h100_copy["copy_tb_per_s"], before["matmul_tflops"])
        for run in by_case(before).values()
    ]
    return {
        "growing": training_table.growing_table(growing, growing["copy_tb_per_s"]),
        "growing_h100": training_table.growing_table(
            load("growing_h100.json"), h100_copy["copy_tb_per_s"]
        ),
        "busy": rate,
        "fresh": growing["matmul_tflops"],
        "over_busy": training_table.over_floor(by_case(busy)["98k-growing:2k"], copy, rate),
        "products": layer_table.products_table(load("products_h200.json")),
        "norms": layer_table.norms_table(load("norms_h200.json")),
        "complex": f"{over[0]:.0%}, {over[1]:.0%} and {over[2]:.0%}",
    }


TORCHTITAN = (
    "https://github.com/pytorch/torchtitan/blob/main/benchmarks/llama3_h100_202412_torchtitan.md"
)


def beside_published(speed: dict[str, int], float8: int) -> str:
    """Markdown rows: model, GPUs, precision, and tokens/s of each GPU at two lengths.

    Args:
        speed: of Llama-3-8B here, by case and stage.
        float8: of Lighthouse in all layers.
    """

    def here(what: str, precision: str, *cells: str) -> str:
        return f"| Llama-3-8B, {what}, here | 2 H200 | {precision} | {' | '.join(cells)} |"

    def both(stage: str) -> list[str]:
        return [f"{speed[f'8B-{length}-cp2:{stage}']:,}" for length in ("131k", "262k")]

    every = "Lighthouse in all layers"
    return "\n".join(
        [
            "| | GPUs | precision | 131,072 | 262,144 |",
            "| --- | --- | --- | --- | --- |",
            here(every, "float8 products", f"{float8:,}", ""),
            here(every, "bf16", *both("lighthouse")),
            here("Lighthouse but for four layers", "bf16", *both("published")),
            here("dense", "bf16", *both("dense")),
            f"| Llama-3.1-8B, dense, [torchtitan, December 2024]({TORCHTITAN}) "
            "| 8 H100 | float8 products | 1,071 | 548 |",
            "| Llama-2-7B, dense, NeMo 24.12, from its TFLOP/s "
            "| 128 and more H100 | FP8 | 2,258 | 1,215 |",
        ]
    )


def planned_speed(word: str) -> float:
    """Tokens/s of each of its GPUs that the plan gives a case of one stage on H200s."""
    _, case = named(word)
    (stage,) = case.tables()
    run = {"gpus": case.gpus, "flags": case.flags, "stage_table": stage}
    seconds = cost(*sizes(run), load_rates("h200")).step_seconds
    return tokens_per_step(run) / case.gpus / seconds


def page() -> str:
    """The page's text."""
    shared, ring = load("context_parallel_h200_x4.json"), load("ring_documents_h200_x2.json")
    attention, h100 = load("attention_h100.json"), load("training_h100.json")
    h200_x2, llama = load("training_h200_x2.json"), load("training_h200_x4.json")
    alone = Alone(attention, load("windows_h100.json"))
    joint, host = load("joint_operators_h200.json"), load("host_time_cpu.json")
    h200_copy, rows_of_norms = joint["copy_tb_per_s"], load("norm_rows_h200.json")["results"]
    data = json.loads((RESULTS / "data_cpu.json").read_text())["results"]
    of_workers = [result for result in data if result["workers"]]
    rates = [r["tokens_per_second"] / 1e6 for r in of_workers if r["tokenizer"] == "byte"]
    hf = [r["tokens_per_cpu_second"] / 1e6 for r in of_workers if r["tokenizer"] == "hf"]
    return TEMPLATE.format(
        copy=attention["copy_tb_per_s"],
        layers=table.table(attention),
        steps=table.step_table(attention),
        select=select_rows(load("select_h100.json")),
        **documents(load("documents_h100.json")),
        documents_ranks=ring["ranks"],
        documents_ring=table.documents_ring_table(load("ring_documents_before_h200_x2.json"), ring),
        training=training_table.speed_table(h100),
        gains=training_table.gains(h100),
        matmul=h100["matmul_tflops"],
        step=training_table.step_table(h100, alone),
        floors=training_table.floor_table([h100, load("training_windows_h100.json")], alone),
        **two_thousand(),
        lengths=training_table.length_table(
            load("training_h100_long.json"), load("offload_h100.json"), load("training_h200.json")
        ),
        ring=training_table.ring_table(h200_x2),
        ring_gains=training_table.ring_gains(h200_x2),
        halves=training_table.half_speeds(h200_x2, load("training_h200_x2_second.json")),
        llama=training_table.llama_table([llama], "8B-131k-cp4", h200_copy),
        **eight_billion(
            [load("training_8b_h200_x2.json"), load("training_8b_h200_x2_second.json")],
            load("float8_8b_h200_x2.json"),
            h200_copy,
        ),
        norm_unlimited=norm_ms(rows_of_norms[0]),
        norm_limited=norm_ms(rows_of_norms[1]),
        float8_530m=training_table.float8_table(
            load("float8_h200.json"), load("float8_apart_h200.json")
        ),
        eager=" and ".join(
            table.pair(result["eager_ms"]) for result in load("eager_h100.json")["results"]
        ),
        joint=joint_rows(joint),
        llama_long=training_table.llama_table([shared], "8B-524k-cp4", h200_copy),
        small_long=training_table.llama_table([shared], "530M-524k-cp4", h200_copy),
        host_tokens=host["seq_len"],
        host_cpu=host["cpu"],
        host=host_table(host),
        slowest=min(rates),
        fastest=max(rates),
        hf=max(hf),
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
