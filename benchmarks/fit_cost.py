"""Fit the rates of ``lighthouse/cost/`` to the measurements in ``benchmarks/results/``.

    python -m benchmarks.fit_cost        # prints residuals, writes lighthouse/cost/rates.json

Reads ``attention_*.json`` and ``training_*.json``, as ``attention.py`` and ``training.py`` write
them. Of the latter it needs ``device``, and of each result ``gpus``, ``flags`` (those of the
trainer, over ``train_configs/530M_byte_98k.toml`` with one micro-batch a step),
``tokens_per_second`` of a GPU, and ``memory_gib`` if there is one.

What is fitted, by least squares of relative errors:

- With kernels measured on the device: the rates of attention, of what is around it and of the
  scorers from the kernels alone; then the two rates of linear layers and of elementwise work from
  the steps of one process.
- Without them: the reference device's rates, times one factor for what computes and one for what
  moves memory, from the steps without context parallelism; from the specification if there are
  fewer than two.
- The link between GPUs, from steps under context parallelism beside the same on one GPU of the
  machine. It is what the ring costs in fact; a device without such steps gets the same share of its
  specification.
- How much memory activations take, from the peaks of one process; the reference's if none.
- What float8 products and their casts take, from the steps of ``float8_*.json`` that have each
  norm's gradients apart; the same share of bfloat16's for all devices.

Steps with another scorer than ``norm`` are never fitted, only compared.
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.training_cases import Run, sizes, tokens_per_step
from lighthouse.config import LighthouseConfig
from lighthouse.cost.memory import GIB
from lighthouse.cost.rates import RATES_FILE, Rates
from lighthouse.cost.seconds import (
    BACKWARD_MATMULS,
    attention_kernel,
    elements_around,
    elements_in_windows,
)
from lighthouse.cost.sizes import Model, window_square
from lighthouse.cost.step import cost

RESULTS = Path(__file__).parent / "results"
REFERENCE = "h100"
BODY = Model(dim=1024, layers=1, heads=8, kv_heads=8, ffn_dim=1536, vocab_size=264)

# What no run here has measured: from the makers' data sheets, bytes/s in one direction. Memory is
# what torch reports. Relative compute and bandwidth are to the reference.
SPECIFICATIONS: dict[str, dict[str, Any]] = {
    "h100": {
        "name": "NVIDIA H100 80GB HBM3",
        "memory": 79.1 * GIB,
        "nvlink": 450e9,
        "network": 50e9,
        "host": 64e9,
    },
    "h200": {
        "name": "NVIDIA H200",
        "memory": 139.8 * GIB,
        "nvlink": 450e9,
        "network": 50e9,
        "host": 64e9,
        "compute": 1.0,
        "bandwidth": 4.8 / 3.35,
    },
}
FLOAT8_RESULTS = ("float8_apart_*.json", "float8_8b_*.json")
"""Results with each norm's two gradients apart."""

COMPUTE = ("matmul", "attention_forward", "attention_backward", "dilated")
BANDWIDTH = ("elementwise", "copy", "around", "window")
COMPUTE_PARTS = ("matmuls", "dense attention", "lighthouse attention", "scorer")


def least_squares(
    columns: list[list[float]], target: list[float], whole: list[float] | None = None
) -> tuple[list[float], list[float]]:
    """Positive coefficients with the least squared errors relative to ``whole``, and the errors.

    ``whole`` is what the target is a part of; by default the target itself.
    """
    matrix, wanted = np.array(columns, dtype=float), np.array(target, dtype=float)
    scale = wanted if whole is None else np.array(whole, dtype=float)
    solution, *_ = np.linalg.lstsq(matrix / scale[:, None], wanted / scale, rcond=None)
    if (solution <= 0).any():
        raise ValueError(f"the fit gives {solution}, not positive rates: too few or bad results")
    return list(solution), list((matrix @ solution - wanted) / scale)


def show(title: str, errors: list[float]) -> None:
    worst = max(abs(error) for error in errors)
    rms = float(np.sqrt(np.mean(np.square(errors))))
    print(f"  {title}: {len(errors)} results, rms error {rms:.1%}, largest {worst:.1%}")


def fit_kernels(results: dict[str, Any]) -> dict[str, float]:
    """Rates of attention, of what is around it and of the scorers, from ``attention.py``."""
    cases = [
        case
        for case in results["results"]
        if case["dtype"] == "bfloat16" and case["heads"] == case["kv_heads"] == BODY.heads
    ]
    calls = [(case["gathered_len"], *case["inner_ms"]) for case in cases]
    calls += [(case["seq_len"], *case["dense_ms"]) for case in cases if "dense_ms" in case]
    columns, target = [], []
    for rows, forward, both in calls:
        flops = 2 * rows**2 * BODY.dim
        columns += [[1, flops, 0], [1, 0, BACKWARD_MATMULS * flops]]
        target += [forward / 1e3, (both - forward) / 1e3]
    (latency, per_forward, per_backward), errors = least_squares(columns, target)
    show("attention kernel", errors)

    columns, target = [], []
    for case in cases:
        forward, backward = elements_around(BODY, config_of(case), case["seq_len"])
        times = case["stages_ms"]
        moves = times["summarize"] + times["select"] + times["gather"] + times["scatter"]
        columns += [[1, 2 * forward], [0, 2 * backward]]
        target += [moves / 1e3, (times["scatter backward"] + times["gather backward"]) / 1e3]
    (select, per_byte), errors = least_squares(columns, target)
    show("around attention", errors)

    scores = {
        case["scorer"]: (case["stages_ms"]["scores"] / 1e3, case["seq_len"], config_of(case))
        for case in cases
        if case["scorer"] != "norm"
    }
    dilated, length, config = scores["dilated"]
    gla, gla_length, _ = scores["gla"]
    return {
        "copy": results["copy_tb_per_s"] * 1e12,
        "attention_forward": 1 / per_forward,
        "attention_backward": 1 / per_backward,
        "attention_latency": latency,
        "around": 1 / per_byte,
        "select": select,
        "dilated": 4 * length**2 / config.dilation * BODY.dim / dilated,
        "gla": gla / gla_length / BODY.dim,
    }


def fit_windows(rates: Rates, results: dict[str, Any]) -> dict[str, float]:
    """Bytes/s in windows over those of a copy, from ``windows.py``.

    The stock kernel is taken to be as fast as in dense attention of the same measurement.
    """
    rows = [row for row in results["rows"] if row["kv_heads"] == BODY.kv_heads]
    (dense,) = (row["ms"] for row in rows if row["kernel"] == "dense, cuDNN")
    length = results["seq_len"]
    columns, target, whole = [], [], []
    for row in rows:
        if row["kernel"] == "two triangles, cuDNN":
            share = window_square(row["window"], length) / length**2
            times = [
                (ms - share * of_dense) / 1e3 for ms, of_dense in zip(row["ms"], dense, strict=True)
            ]
            forward, backward = (2 * length * n for n in elements_in_windows(BODY))
            columns += [[forward], [backward]]
            target += [times[0], times[1] - times[0]]
            whole += [row["ms"][0] / 1e3, (row["ms"][1] - row["ms"][0]) / 1e3]
    (per_byte,), errors = least_squares(columns, target, whole)
    show("windows", errors)
    return {"window": 1 / per_byte / rates.copy}


def fit_documents(rates: Rates, results: dict[str, Any]) -> dict[str, float]:
    """The kernel for documents over that of dense attention, from ``documents.py``.

    Attention to tokens, and to rows of a sub-sequence, which are fewer.
    """
    length, share = results["seq_len"], results["share_of_pairs"]
    attended = {"dense, documents": length, "attention on S, documents": results["gathered_len"]}
    cut = [row for row in results["rows"] if row["what"] in attended]
    places = min(row["places"] for row in cut)  # as many as the loader gives them
    columns, target = [], []
    for row in (row for row in cut if row["places"] == places):
        square = share * attended[row["what"]] ** 2
        forward, backward = attention_kernel(BODY, square, rates, documents=False)
        columns += [[forward, 1], [backward, BACKWARD_MATMULS]]
        target += [row["ms"][0] / 1e3, (row["ms"][1] - row["ms"][0]) / 1e3]
    (slower, latency), errors = least_squares(columns, target)
    show("documents", errors)
    return {"documents": 1 / slower, "documents_latency": latency}


def config_of(values: dict[str, Any]) -> LighthouseConfig:
    names = ("num_levels", "pooling_factor", "topk", "scorer")
    return LighthouseConfig(**{name: values[name] for name in names})


def step_seconds(run: Run) -> float:
    return tokens_per_step(run) / run["gpus"] / run["tokens_per_second"]


def fit_steps(rates: Rates, runs: list[Run]) -> Rates:
    """The rates of linear layers and of elementwise work."""
    columns, target = [], []
    for run in runs:
        parts = cost(*sizes(run), replace(rates, matmul=1.0, elementwise=1.0)).seconds
        matmuls = parts.pop("matmuls")
        elementwise = parts.pop("elementwise") + parts.pop("loss")
        # The rest is known: one process, so nothing depends on these two rates.
        columns.append([matmuls, elementwise])
        target.append(step_seconds(run) - sum(parts.values()))
    (per_flop, per_byte), _ = least_squares(columns, target, [step_seconds(run) for run in runs])
    return replace(rates, matmul=1 / per_flop, elementwise=1 / per_byte)


def scaled(rates: Rates, compute: float, bandwidth: float) -> Rates:
    values = asdict(rates)
    values |= {name: values[name] * compute for name in COMPUTE}
    values |= {name: values[name] * bandwidth for name in BANDWIDTH}
    return Rates(**values | {"gla": rates.gla / bandwidth})


def fit_factors(rates: Rates, runs: list[Run]) -> tuple[float, float]:
    """How much more the device computes and moves than the one that ``rates`` are of."""
    columns = []
    for run in runs:
        parts = cost(*sizes(run), rates).seconds
        compute = sum(parts[name] for name in COMPUTE_PARTS)
        columns.append([compute, sum(parts.values()) - compute])
    slower, _ = least_squares(columns, [step_seconds(run) for run in runs])
    return 1 / slower[0], 1 / slower[1]


def fit_link(rates: Rates, pairs: list[tuple[Run, Run]]) -> Rates:
    """Bandwidth between the GPUs of a node, by trying some.

    Fitted is what several GPUs take beyond their share of what one takes: a ring costs a few
    percent of a step, less than the model may be off for all of it.
    """

    def beyond(seconds: Callable[[Run], float], pair: tuple[Run, Run]) -> float:
        one, several = pair
        return seconds(several) - seconds(one) / several["gpus"]

    def error(link: float) -> float:
        tried = replace(rates, nvlink=link)
        modelled = (beyond(lambda run: cost(*sizes(run), tried).step_seconds, p) for p in pairs)
        return sum(
            ((ring - extra) / step_seconds(several)) ** 2
            for ring, extra, (_, several) in zip(modelled, measured, pairs, strict=True)
        )

    measured = [beyond(step_seconds, pair) for pair in pairs]
    return replace(rates, nvlink=float(min(np.geomspace(1e9, 1e12, 301), key=error)))


def fit_memory(rates: Rates, runs: list[Run]) -> Rates:
    """Bytes of activations held over bytes counted, by checkpointing mode."""
    held = {}
    for mode in rates.activations:
        ratios = []
        for run in runs:
            model, layout, work = sizes(run)
            if work.checkpointing == mode and "memory_gib" in run:
                parts = cost(model, layout, work, replace(rates, activations={mode: 1.0})).memory
                counted = parts.pop("activations") + parts.pop("block inputs")
                ratios.append((run["memory_gib"] * GIB - sum(parts.values())) / counted)
        held[mode] = float(np.mean(ratios)) if ratios else rates.activations[mode]
    return replace(rates, activations=held)


def float8_runs() -> list[tuple[str, Run]]:
    """Device and step of each run with float8 products as they are now."""
    names = {specification["name"]: device for device, specification in SPECIFICATIONS.items()}
    files = [file for pattern in FLOAT8_RESULTS for file in read(pattern)]
    return [(names[file["device"]], run) for file in files for run in file["results"]]


def fit_float8(rates: dict[str, Rates]) -> dict[str, float]:
    """Products and casts of all devices, from what steps take beyond all else."""
    columns, target, whole = [], [], []
    for device, run in float8_runs():
        model, layout, work = sizes(run)
        assert work.float8
        plain, twice = (
            cost(model, layout, work, replace(rates[device], float8=times, casts=1.0)).seconds
            for times in (1.0, 2.0)
        )
        products = 2 * (plain["matmuls"] - twice["matmuls"])  # but for the output layer's
        columns.append([products, plain["float8 casts"]])
        measured = step_seconds(run)
        target.append(measured - sum(plain.values()) + sum(columns[-1]))
        whole.append(measured)
    slower, errors = least_squares(columns, target, whole)
    show("float8", errors)
    return {"float8": 1 / slower[0], "casts": 1 / slower[1]}


def compare(rates: Rates, runs: list[Run]) -> None:
    for run in runs:
        predicted = cost(*sizes(run), rates)
        ratio = step_seconds(run) / predicted.step_seconds
        rate = run["tokens_per_second"]
        memory = ""
        if "memory_gib" in run:
            memory = f", {run['memory_gib']:.1f} -> {predicted.peak_bytes / GIB:.1f} GiB"
        print(f"  {rate:,} -> {rate * ratio:,.0f} tokens/s ({ratio - 1:+.1%}){memory}: ", end="")
        print(f"{run['case']} on {run['gpus']}")


def files_of(device: str) -> list[dict[str, Any]]:
    """Results files of the device."""
    name = SPECIFICATIONS[device]["name"]
    return [file for file in read("training_*.json") if file["device"] == name]


def runs_of(device: str) -> list[Run]:
    """The steps that were measured on the device."""
    return [run for file in files_of(device) for run in file["results"] if "error" not in run]


def rings(device: str) -> list[tuple[Run, Run]]:
    """Runs on one GPU, each with one of the same file with a context-parallel degree besides.

    All-dense ones show no ring: it is less of their step than what the attention kernel's speed
    varies with the length of its pieces.
    """
    degree = re.compile(r" --parallelism\.context_parallel_degree \d+")
    pairs = []
    for file in files_of(device):
        runs = [run for run in file["results"] if "error" not in run]
        alone = {run["flags"]: run for run in runs if run["gpus"] == 1}
        for run in runs:
            same = alone.get(degree.sub("", run["flags"]))
            if run["gpus"] > 1 and same and "--lighthouse.no-enable" not in run["flags"]:
                pairs.append((same, run))
    return pairs


def fit_device(device: str, reference: Rates | None) -> Rates:
    specification = SPECIFICATIONS[device]
    kernels = [load for load in read("attention_*.json") if load["device"] == specification["name"]]
    runs = runs_of(device)
    print(f"{device}: {specification['name']}")
    links = {name: specification[name] for name in ("memory", "nvlink", "network", "host")}
    # Rates of windows and scorers come from elsewhere.
    norm = [run for run in runs if not re.search("scorer|window", run["flags"])]
    alone = [run for run in norm if "context_parallel_degree" not in run["flags"]]
    parallel = rings(device)
    if kernels:
        rates = Rates(
            **fit_kernels(kernels[-1]),
            **links,
            matmul=1.0,
            float8=1.0,
            elementwise=1.0,
            casts=1.0,
            window=1.0,
            documents=1.0,
            documents_latency=0.0,
            node=8,
            activations={"none": 1.0, "op": 1.0, "full": 1.0},
        )
        rates = fit_steps(rates, [run for run in alone if run["gpus"] == 1])
    else:
        if reference is None:
            raise ValueError(f"{device} is the reference: it needs an attention_*.json")
        factors = (specification["compute"], specification["bandwidth"])
        if len(alone) >= 2:
            factors = fit_factors(replace(reference, **links), alone)
        print("  {:.2f} x the reference's compute, {:.2f} x its bandwidth".format(*factors))
        rates = replace(scaled(reference, *factors), **links)
    if parallel:
        rates = fit_link(rates, parallel)
    rates = fit_memory(rates, [run for run in alone if run["gpus"] == 1])
    return rates


def read(pattern: str) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(RESULTS.glob(pattern))]


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def share_links(rates: dict[str, Rates]) -> dict[str, Rates]:
    """Give devices without a fitted link what the others have of their specification."""
    specified = {device: SPECIFICATIONS[device]["nvlink"] for device in rates}
    fitted = [device for device in rates if rings(device)]
    share = float(np.mean([rates[d].nvlink / specified[d] for d in fitted])) if fitted else 1.0
    print(f"ring: {share:.0%} of what the makers say of the links")
    return {
        device: r if device in fitted else replace(r, nvlink=share * specified[device])
        for device, r in rates.items()
    }


def fit() -> dict[str, Rates]:
    """The rates of every device."""
    reference = fit_device(REFERENCE, None)
    others = [device for device in SPECIFICATIONS if device != REFERENCE]
    rates = {REFERENCE: reference} | {device: fit_device(device, reference) for device in others}
    rates = share_links(rates)
    windows = measured_or_mean(rates, "windows_*.json", fit_windows)
    documents = measured_or_mean(rates, "documents_*.json", fit_documents)
    rates = {
        device: replace(r, window=windows[device]["window"] * r.copy, **documents[device])
        for device, r in rates.items()
    }
    float8 = fit_float8(rates)
    return {device: replace(r, **float8) for device, r in rates.items()}


def measured_or_mean(
    rates: dict[str, Rates],
    pattern: str,
    fit_to: Callable[[Rates, dict[str, Any]], dict[str, float]],
) -> dict[str, dict[str, float]]:
    """What a file of results says of its device; devices without one get the mean of the others."""
    names = {SPECIFICATIONS[device]["name"]: device for device in rates}
    measured = {names[file["device"]]: file for file in read(pattern)}
    found = {device: fit_to(rates[device], file) for device, file in measured.items()}
    fits = list(found.values())
    mean = {name: float(np.mean([fit[name] for fit in fits])) for name in fits[0]}
    print(f"{pattern}: {mean}")
    return {device: found.get(device, mean) for device in rates}


def main() -> None:
    rates = fit()
    for device, fitted in rates.items():
        print(f"{device}: measured -> modelled")
        compare(fitted, runs_of(device) + [run for d, run in float8_runs() if d == device])
    content = {
        "made_by": "benchmarks/fit_cost.py",
        "devices": {device: rounded(asdict(fitted)) for device, fitted in rates.items()},
    }
    RATES_FILE.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {RATES_FILE}")


if __name__ == "__main__":
    main()
