"""What the data loader delivers: tokens/s of one process alone, its memory, and its state.

    python benchmarks/data.py [--quick] [--out FILE.json]

Sources are the embedded "python" corpus and local files of short (2 KB) and long (2 MB) documents,
written for the purpose into a temporary folder and read again and again, so from the page cache.
"mixed" shuffles the short parquet and jsonl, and mixes them 2 to 1.
Each case has a process of its own with one thread, as a worker has. "In process" is the loader
without workers, which is what a worker does; "worker" is what arrives from one worker through
shared memory. "hf" is a Hugging Face tokenizer, BPE of 32,768 tokens made of the embedded corpus;
all else is the byte tokenizer. Rates are over the clock and over CPU time, which other work on the
machine does not lower. What a worker does with each tokenizer, per CPU second, is also written to
where the dry run looks for it. Memory is looked at ten times, and growth is the median of the later
five less that of the earlier five: it swings by what the allocator has in reserve. The bar is ten
times what an H100 consumes with Lighthouse Attention at 98,304 tokens a sequence.
"""

import argparse
import gzip
import json
import multiprocessing
import os
import pickle
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torchtitan.config import JobConfig

from benchmarks.provenance import commit
from lighthouse.cost.loader import LOADER_FILE
from lighthouse.titan.data.loaders import build_dataloader
from lighthouse.titan.data.sources import python_pieces, read_pieces
from lighthouse.titan.data.tokenizer import build_tokenizer

BAR = 10 * 100_000
SEQ_LENS = (98304, 262144, 1048576)
DOCUMENT_BYTES = {"short": 2 << 10, "long": 2 << 20}
WARM_UP = 50
VOCABULARY = 32768
LOOKS = 10  # at the memory, in each case


@dataclass(frozen=True)
class Case:
    """One measurement; without `paths` of the embedded corpus, of several the mixture."""

    source: str
    paths: tuple[str, ...]
    seq_len: int
    workers: int
    sequences: int
    tokenizer: str = "byte"
    tokenizer_path: str = ""


def corpus() -> str:
    """The embedded text."""
    return "".join(piece["text"] for piece in islice(read_pieces(python_pieces()), 1500))


def write_tokenizer(folder: Path) -> str:
    """Byte-level BPE as large vocabularies have it; returns the folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|bos|>", "<|eos|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([corpus()], trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": special[0], "eos_token": special[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


def write_sources(folder: Path, size: int) -> dict[str, tuple[str, ...]]:
    """Files of `size` bytes of text each, by the name of the source."""
    ascii_text = corpus().encode("ascii", errors="ignore").decode()
    paths: dict[str, tuple[str, ...]] = {}
    for length, document_bytes in DOCUMENT_BYTES.items():
        letters = cycle(ascii_text)
        documents = [
            "".join(islice(letters, document_bytes)) for _ in range(size // document_bytes)
        ]
        lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
        for kind in ("parquet", "jsonl", "jsonl.gz"):
            path = folder / f"{length}.{kind}"
            if kind == "parquet":
                pq.write_table(pa.table({"text": documents}), path)
            elif kind == "jsonl":
                path.write_text(lines)
            else:
                path.write_bytes(gzip.compress(lines.encode(), compresslevel=6))
            paths[f"{kind} of {length} documents"] = (str(path),)
    mixed = [paths[f"{kind} of short documents"] for kind in ("parquet", "jsonl")]
    return {"mixed": sum(mixed, ()), **paths}


def processes() -> list[int]:
    """This process and its workers."""
    return [os.getpid(), *(child.pid for child in multiprocessing.active_children())]


def resident_bytes() -> int:
    """Memory of all processes; what they share counts once."""
    rollups = (Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in processes())
    return sum(int(rollup.split("\nPss:")[1].split()[0]) * 1024 for rollup in rollups)


def cpu_seconds() -> float:
    """CPU time of all processes and their threads so far."""
    threads = (file for pid in processes() for file in Path(f"/proc/{pid}/task").iterdir())
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def measure(case: Case) -> dict[str, Any]:
    torch.set_num_threads(1)
    config = JobConfig()
    section = config.training
    section.dataset, section.seq_len = "local" if case.paths else "python", case.seq_len
    if len(case.paths) == 1:
        section.dataset_path = case.paths[0]
    elif case.paths:
        section.dataset_order = "shuffled"
        section.sources = [
            {"path": path, "weight": weight}
            for path, weight in zip(case.paths, (2.0, 1.0), strict=True)
        ]
    section.local_batch_size, section.dataloader.num_workers = 1, case.workers
    config.model.tokenizer = case.tokenizer
    if case.tokenizer == "hf":
        config.model.hf_assets_path = case.tokenizer_path
        config.model.args.vocab_size = VOCABULARY
    loader = build_dataloader(1, 0, build_tokenizer(config), config)
    batches = iter(loader)
    for _ in islice(batches, min(WARM_UP, case.sequences)):
        pass
    memory, cpu, start = [], cpu_seconds(), time.perf_counter()
    for _ in range(LOOKS):
        for inputs, labels in islice(batches, case.sequences // LOOKS):
            assert inputs["input"].shape == labels.shape == (1, case.seq_len)
        memory.append(resident_bytes() / 2**20)
    seconds, tokens = time.perf_counter() - start, case.sequences // LOOKS * LOOKS * case.seq_len
    earlier, later = (
        statistics.median(part) for part in (memory[: LOOKS // 2], memory[LOOKS // 2 :])
    )
    return {
        **asdict(case),
        "tokens_per_second": round(tokens / seconds),
        "tokens_per_cpu_second": round(tokens / (cpu_seconds() - cpu)),
        "memory_mib": round(earlier),
        "memory_growth_mib": round(later - earlier, 1),
        "state_bytes": len(pickle.dumps(loader.state_dict())),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, one row a case."""
    lines = [
        "| source | tokens a sequence | | M tokens/s (per CPU s) | of the bar | MiB (growth) "
        "| state |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        rate, cpu_rate = r["tokens_per_second"], r["tokens_per_cpu_second"]
        source = f"{r['source']}, hf" if r["tokenizer"] == "hf" else r["source"]
        lines.append(
            f"| {source} | {r['seq_len']:,} | {'worker' if r['workers'] else 'in process'} "
            f"| {rate / 1e6:.1f} ({cpu_rate / 1e6:.1f}) | {rate / BAR:.1f}x "
            f"| {r['memory_mib']} ({r['memory_growth_mib']:+.0f}) | {r['state_bytes']} bytes |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few short sequences, for the tests")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/data_cpu.json")
    args = parser.parse_args()

    results = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(Path(folder), args.quick):
            # A fresh process: memory that an earlier case left free would hide growth.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                results.append(pool.submit(measure, case).result())
            print(table(results[-1:]).splitlines()[-1], flush=True)
    about = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyarrow": pa.__version__,
        "commit": commit(),
    }
    left_out = ("paths", "tokenizer_path")
    report = about | {
        "bar_tokens_per_second": BAR,
        "results": [{k: v for k, v in r.items() if k not in left_out} for r in results],
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{table(results)}\n\nwrote {args.out}")
    if not args.quick:
        LOADER_FILE.write_text(json.dumps(rates(results) | about, indent=1) + "\n")
        print(f"wrote {LOADER_FILE}")


def cases(folder: Path, quick: bool) -> Iterator[Case]:
    """What is measured; writes texts and a tokenizer into a folder."""
    sequences = 50 if quick else 300
    written = write_sources(folder, size=(4 if quick else 64) << 20)
    for source, paths in islice({"python": (), **written}.items(), 2 if quick else None):
        for seq_len in SEQ_LENS[:1] if quick else SEQ_LENS:
            for workers in (0, 1):
                yield Case(source, paths, seq_len, workers, sequences)
    if not quick:
        tokenizer = write_tokenizer(folder / "tokenizer")
        for workers in (0, 1):
            yield Case("mixed", written["mixed"], SEQ_LENS[0], workers, 50, "hf", tokenizer)


def rates(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a worker that shuffles and mixes, for the dry run."""
    return {
        "made_by": "benchmarks/data.py",
        "tokens_per_worker_second": {
            r["tokenizer"]: r["tokens_per_cpu_second"]
            for r in results
            if r["source"] == "mixed" and r["seq_len"] == SEQ_LENS[0] and r["workers"]
        },
    }


if __name__ == "__main__":
    main()
