"""docs/extend.md once through, on a small model trained here: what it could before and after.

    python -m benchmarks.study.extend RUN TEXT_FOLDER WORK_FOLDER [--seq-len 32768]

RUN's last checkpoint (2,048 tokens) becomes a Hugging Face folder; ``train_configs/extend_hf.toml``
takes it to ``--seq-len`` in shortened stages; both are evaluated, and the result is exported.
Writes ``extend.json`` into the work folder. One GPU.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.jobs import ROOT, start
from benchmarks.provenance import gpu
from benchmarks.study.exported import compare
from benchmarks.study.jobs import training

TOKENS = 131072
"""Of a step."""
STEPS = (150, 150, 60)


def flags(seq_len: int, folder: Path, text: Path) -> str:
    quarter = seq_len // 4
    return f"""
        --model.hf_assets_path {folder} --training.dataset local
        --training.dataset_path {text}/train --training.seq_len {seq_len}
        --training.local_batch_size {TOKENS // seq_len} --training.global_batch_size -1
        --stages.1.steps {STEPS[0]} --stages.1.seq_len {quarter} --stages.1.global_batch_size -1
        --stages.1.local_batch_size {TOKENS // quarter}
        --stages.2.steps {STEPS[1]} --stages.3.steps {STEPS[2]} --optimizer.lr 5e-4
        --parallelism.context_parallel_degree 1 --parallelism.fsdp_on_one_rank
        --activation_checkpoint.mode none --metrics.no-enable_tensorboard
    """


def evaluated(folder: Path, text: Path, lengths: tuple[int, ...]) -> dict[str, object]:
    asked = ("lighthouse.evaluate", str(folder), "--text", f"{text}/val", "--trials", "5")
    lengths_flag = ("--lengths", *map(str, lengths))
    subprocess.run([sys.executable, "-m", *asked, *lengths_flag], cwd=ROOT, check=True)
    [path] = folder.glob("evaluate*.json")
    found: dict[str, object] = json.loads(path.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seq-len", type=int, default=32768)
    options = parser.parse_args()
    work, text = options.work.resolve(), options.text.resolve()
    work.mkdir(parents=True, exist_ok=True)
    begun = work / "begun"
    export = ("lighthouse.titan.export", str(options.run), str(begun), "--dtype", "bfloat16")
    subprocess.run([sys.executable, "-m", *export], cwd=ROOT, check=True)
    lengths = (1024, options.seq_len // 2)
    before = evaluated(begun, text, lengths)

    config = ROOT / "train_configs/extend_hf.toml"
    job = training(work, "run", flags(options.seq_len, begun, text), config=config)
    if start(work, job, [int(os.environ.get("CUDA_VISIBLE_DEVICES", "0"))]).wait() != 0:
        sys.exit(f"the training ended badly: {work}/run.log")
    after = evaluated(work / "run", text, lengths)
    exported = compare(work / "run", torch.device("cuda"), text / "val")
    found = {**gpu(), "before": before, "after": after, "exported": exported}
    (work / "extend.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
