"""docs/speed.md from benchmarks/results/: python -m benchmarks.speed_page"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import layer_table, table, training_table
from benchmarks.floor import Alone, floor_ms
from benchmarks.training_cases import named
from benchmarks.training_plan import planned
from benchmarks.training_table import RESULTS, by_case, load, over_floor, step_ms
from lighthouse.cost.rates import load_rates

PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
TEMPLATE = Path(__file__).with_suffix(".md")


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
    (longest,) = load("longest_8b_h200_x2.json")["results"]
    long = "8B-524k-cp2-offload"
    dense_524k = plan_of("8B-524k-cp2:dense")

    def gain(case: str, stage: str) -> str:
        return f"{speed[f'{case}:{stage}'] / speed[f'{case}:dense']:.2f}"

    return {
        "llama_131k": training_table.llama_table(reports, "8B-131k-cp2", copy_tb_per_s),
        "llama_262k": training_table.llama_table(reports, "8B-262k-cp2", copy_tb_per_s),
        "llama_524k": training_table.llama_table(reports, long, copy_tb_per_s),
        **{f"gain_{s}": gain("8B-131k-cp2", s) for s in ("published", "lighthouse")},
        **{f"gain_{s}_262k": gain("8B-262k-cp2", s) for s in ("published", "lighthouse")},
        "planned_524k": dense_524k["tokens_per_second"],
        "planned_524k_minutes": dense_524k["step_seconds"] / 60,
        "before_524k": by_case(reports[0])[f"{long}:lighthouse"]["tokens_per_second"],
        "speed_786k": longest["tokens_per_second"],
        "gib_786k": longest["memory_gib"],
        "plan_786k": longest["planned"]["tokens_per_second"],
        "plan_gib_786k": longest["planned"]["memory_gib"],
        "host_786k": longest["planned"]["host_gib"],
        "published": beside_published(speed, float8["tokens_per_second"]),
        "float8": float8["tokens_per_second"],
        "float8_gain": float8["tokens_per_second"] / speed["8B-131k-cp2:lighthouse"],
        "float8_gib": float8["memory_gib"],
        "float8_products": float8["profile"][0]["by_kind_ms"]["matmul"],
        "float8_step": float8["profile"][0]["span_ms"],
    }


def four_gpus(report: dict[str, Any], copy_tb_per_s: float) -> dict[str, Any]:
    """The values of what both models do on four GPUs."""
    results = by_case(report)
    short, long, small = "8B-131k-cp4", "8B-1m-cp4-offload", "530M-524k-cp4"
    dense = plan_of(f"{long}:dense")
    speeds = [results[f"{short}:{s}"]["tokens_per_second"] for s in ("lighthouse", "dense")]
    return {
        "llama": training_table.llama_table([report], short, copy_tb_per_s),
        "gain_four": speeds[0] / speeds[1],
        "llama_1m": training_table.llama_table([report], long, copy_tb_per_s),
        "host_1m": results[f"{long}:lighthouse"]["planned"]["host_gib"],
        "planned_1m": dense["tokens_per_second"],
        "planned_1m_minutes": dense["step_seconds"] / 60,
        "small_long": training_table.llama_table([report], small, copy_tb_per_s),
        "planned_530m_gib": plan_of(f"{small}:dense")["memory_gib"],
    }


def chunks_of_ffn(report: dict[str, Any]) -> dict[str, float]:
    """What the feed-forward in chunks costs and saves beside a run without."""
    whole, chunks = (by_case(report)[f"851968-L4-offload{x}"] for x in ("", "-ffn"))
    return {
        "chunks_cost": 1 - chunks["tokens_per_second"] / whole["tokens_per_second"],
        "chunks_saved": whole["memory_gib"] - chunks["memory_gib"],
    }


def norm_ms(run: dict[str, Any]) -> float:
    """What a layer's first norm takes in backward, by its slowest kernel."""
    return next(
        ms / calls
        for name, calls, ms in run["profile"][0]["kernels"]
        if name.startswith("triton_per_") and "_fused_rms_norm_backward" in name
    )


def stages_beside_floors() -> dict[str, Any]:
    """The values of the stages' steps, and of what was tried for the shortest."""
    growing, kept = load("growing_h200.json"), load("residual_h200.json")
    reports = (growing, load("training_stages_h200.json"))
    # One GPU, warmer each time.
    rate = max(report["matmul_tflops"] for report in reports)
    copy, busy = growing["copy_tb_per_s"], growing["busy_matmul_tflops"]
    h100_copy = load("attention_h100.json")["copy_tb_per_s"]
    stages = [run for report in reports for run in by_case(report).values()]

    def over_on_h100(name: str) -> str:
        report = load(name)
        first, second, third = (
            f"{over_floor(run, step_ms(run), h100_copy, report['matmul_tflops']):.0%}"
            for run in by_case(report).values()
        )
        return f"{first}, {second} and {third}"

    shortest, *_ = stages
    now, was, never = (run["tokens_per_second"] for run in kept["results"])
    return {
        "stages": training_table.stage_table(stages, copy, rate),
        "fresh": rate,
        "busy": busy,
        "over_busy": over_floor(shortest, step_ms(shortest), copy, busy),
        "kept": f"{now:,}",
        "kept_before": f"{was:,}",
        "never": f"{never:,}",
        "products": layer_table.products_table(load("products_h200.json")),
        "norms": layer_table.norms_table(load("norms_h200.json")),
        "words": over_on_h100("growing_h100.json"),
        "complex": over_on_h100("growing_complex_h100.json"),
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


def plan_of(word: str) -> dict[str, Any]:
    """What the plan says of a case of one stage on H200s."""
    _, case = named(word)
    (stage,) = case.tables()
    run = {"gpus": case.gpus, "flags": case.flags, "stage_table": stage}
    return planned(run, load_rates("h200"))["planned"]


def page() -> str:
    """The page's text."""
    shared, ring = load("context_parallel_h200_x4.json"), load("ring_documents_h200_x2.json")
    attention, h100 = load("attention_h100.json"), load("training_h100.json")
    h200_x2 = load("training_h200_x2.json")
    alone = Alone(attention, load("windows_h100.json"))
    dense = by_case(h100)["98k-dense"]
    joint, host = load("joint_operators_h200.json"), load("host_time_cpu.json")
    h200_copy, rows_of_norms = joint["copy_tb_per_s"], load("norm_rows_h200.json")["results"]
    data = json.loads((RESULTS / "data_cpu.json").read_text())["results"]
    of_workers = [result for result in data if result["workers"]]
    rates = [r["tokens_per_second"] / 1e6 for r in of_workers if r["tokenizer"] == "byte"]
    hf = [r["tokens_per_cpu_second"] / 1e6 for r in of_workers if r["tokenizer"] == "hf"]
    return TEMPLATE.read_text(encoding="utf-8").format(
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
        dense_ms=step_ms(dense),
        dense_over=step_ms(dense) / sum(floor_ms(dense, alone, h100["matmul_tflops"]).values()) - 1,
        **stages_beside_floors(),
        lengths=training_table.length_table(
            load("training_h100_long.json"),
            load("offload_h100.json"),
            load("training_h200.json"),
            load("offload_h200.json"),
        ),
        **chunks_of_ffn(load("offload_h200.json")),
        ring=training_table.ring_table(h200_x2),
        ring_gains=training_table.ring_gains(h200_x2),
        halves=training_table.half_speeds(h200_x2, load("training_h200_x2_second.json")),
        **four_gpus(load("training_h200_x4.json"), h200_copy),
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
