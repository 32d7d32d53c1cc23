"""Our packing beside Grain's, of the same texts: tokens/s of one process, its state, going on.

    python -m benchmarks.data_grain [--out FILE.json]          # pip install grain

Both shuffle short documents of parquet and jsonl within a window, mix them 2 to 1, read each byte
as a token and cut sequences of 98,304 out of what follows on each other. Grain has no reader of
lines: one that seeks to where it was is written here. Each has a fresh process; "goes on" is how
long a new loader takes from a state to its next sequence, which is compared with the one that came
after it.
"""

import argparse
import json
import os
import pickle
import platform
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from torchtitan.config import JobConfig

from benchmarks.data import DOCUMENT_BYTES, WARM_UP, cpu_seconds, resident_bytes, write_sources
from benchmarks.provenance import commit
from lighthouse.titan.data.loaders import build_dataloader
from lighthouse.titan.data.shuffled import WINDOW
from lighthouse.titan.data.tokenizer import ByteTokenizer, build_tokenizer

SEQ_LEN, SEQUENCES = 98304, 300
WEIGHTS = (2.0, 1.0)
DOCUMENTS = WINDOW // DOCUMENT_BYTES["short"]
"""In a window."""


def ours(paths: tuple[str, str]) -> Any:
    config = JobConfig()
    section = config.training
    section.dataset, section.dataset_order, section.seq_len = "local", "shuffled", SEQ_LEN
    section.sources = [
        {"path": path, "weight": weight} for path, weight in zip(paths, WEIGHTS, strict=True)
    ]
    section.local_batch_size, config.model.tokenizer = 1, "byte"
    return build_dataloader(1, 0, build_tokenizer(config), config)


def grains(paths: tuple[str, str]) -> Any:
    import grain
    from grain import experimental

    class Lines(grain.IterDataset):
        def __init__(self, path: str) -> None:
            super().__init__()
            self.path = path

        def __iter__(self) -> grain.DatasetIterator:
            return LinesIterator(self.path)

    class LinesIterator(grain.DatasetIterator):
        def __init__(self, path: str) -> None:
            super().__init__()
            self.file = open(path, "rb")  # noqa: SIM115

        def __next__(self) -> dict[str, str]:
            line = self.file.readline()
            if not line:
                raise StopIteration
            row: dict[str, str] = json.loads(line)
            return row

        def get_state(self) -> dict[str, int]:
            return {"place": self.file.tell()}

        def set_state(self, state: dict[str, int]) -> None:
            self.file.seek(state["place"])

    end = ByteTokenizer().eos_id

    def tokens(row: dict[str, str]) -> dict[str, Any]:
        read = np.frombuffer(row["text"].encode(), np.uint8)
        return {"tokens": np.append(read.astype(np.int32), np.int32(end))}

    def shuffled(rows: Any) -> Any:
        again = experimental.RepeatIterDataset(rows)
        mixed = experimental.WindowShuffleIterDataset(again, window_size=DOCUMENTS, seed=1)
        return mixed.map(tokens)

    parquet, lines = paths
    sources = [shuffled(experimental.ParquetIterDataset(parquet)), shuffled(Lines(lines))]
    both = grain.IterDataset.mix(sources, WEIGHTS)
    return experimental.ConcatThenSplitIterDataset(
        both,
        length_struct={"tokens": SEQ_LEN + 1},
        bos_handling=experimental.BOSHandling.DO_NOTHING,
    )


def sequence_of(item: Any) -> np.ndarray:
    """The tokens of what either loader gives."""
    found = item["tokens"] if isinstance(item, dict) else item[0]["input"][0].numpy()
    return np.asarray(found)


def measure(which: str, paths: tuple[str, str]) -> dict[str, Any]:
    make = {"ours": ours, "grain": grains}[which]
    loader = make(paths)
    sequences: Iterator[Any] = iter(loader)
    state_of = loader.state_dict if which == "ours" else sequences.get_state  # type: ignore[attr-defined]
    for _ in islice(sequences, WARM_UP):
        pass
    cpu, start = cpu_seconds(), time.perf_counter()
    for item in islice(sequences, SEQUENCES):
        sequence_of(item)
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    memory = resident_bytes() / 2**20
    state = pickle.dumps(state_of())
    wanted = sequence_of(next(sequences))

    again = make(paths)
    start = time.perf_counter()
    if which == "ours":
        again.load_state_dict(pickle.loads(state))
        going_on = iter(again)
    else:
        going_on = iter(again)
        going_on.set_state(pickle.loads(state))
    found = sequence_of(next(going_on))
    return {
        "loader": which,
        "tokens_per_second": round(SEQUENCES * SEQ_LEN / seconds),
        "tokens_per_cpu_second": round(SEQUENCES * SEQ_LEN / cpu),
        "memory_mib": round(memory),
        "state_bytes": len(state),
        "goes_on_seconds": round(time.perf_counter() - start, 3),
        "goes_on_exactly": bool(np.array_equal(wanted, found)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/data_grain_cpu.json"))
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        written = write_sources(Path(folder), size=64 << 20)
        paths = tuple(written[f"{kind} of short documents"][0] for kind in ("parquet", "jsonl"))
        for which in ("ours", "grain"):
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                results.append(pool.submit(measure, which, paths).result())
            print(results[-1], flush=True)
    about = {"machine": platform.machine(), "cores": os.cpu_count(), "commit": commit()}
    args.out.write_text(json.dumps({**about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
