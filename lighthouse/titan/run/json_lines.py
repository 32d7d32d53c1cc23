"""Every logged metric as a line of JSON, beside TensorBoard and W&B."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lighthouse.runs.metrics import METRICS_FILE, to_json
from lighthouse.titan.config.stages import Stages

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

# Short names for what everybody reads; every metric is also there under upstream's own name.
SHORT_NAMES = {
    "loss_metrics/global_avg_loss": "loss",
    "validation_metrics/loss": "validation_loss",
    "validation_metrics/dense_loss": "validation_dense_loss",
    "validation_metrics/leak": "validation_leak",
    "throughput(tps)": "tokens_per_second",
    "n_tokens_seen": "tokens_seen",
    "memory/max_reserved(GiB)": "memory_gib",
}


class JsonLinesLogger:
    """Appends one line per `log` call to `<dump_folder>/metrics.jsonl` of torchtitan's `JobConfig`.

    The file is only ever appended to. After a restart from step s it can hold steps beyond s twice;
    `lighthouse.runs.metrics.read_metrics` keeps the later attempt. Keys: `step`, `time` (Unix
    seconds), the `attention` and `seq_len` of the step's stage, the short names above, `stage` (the
    attention again; absent where the model is never but dense), `stage_number` where there are
    `[[stages]]`, and all of upstream's.
    `tokens_per_second` counts one device, as upstream does. Numbers keep full precision; NaN and
    infinities are the strings "nan", "inf", "-inf".
    """

    def __init__(self, job_config: "JobConfig") -> None:
        self._path = Path(job_config.job.dump_folder) / METRICS_FILE
        self._stages = Stages.of(job_config)
        self._ever_sparse = job_config.lighthouse.enable
        self._file: TextIO | None = None

    def log(self, metrics: dict[str, Any], step: int) -> None:
        if self._file is None:
            self._file = self._open()
        short = {SHORT_NAMES[key]: metrics[key] for key in SHORT_NAMES if key in metrics}
        stage = self._stages.at(step)
        at_step = {"step": step, "attention": stage.attention, "seq_len": stage.seq_len}
        if self._ever_sparse:
            at_step["stage"] = stage.attention
        if self._stages.listed:
            at_step["stage_number"] = stage.number
        try:
            self._file.write(to_json(at_step | {"time": time.time()} | short | metrics) + "\n")
            self._file.flush()
        except OSError as error:  # of a full disk, which Python reports without the file's name
            self._file = None  # closing it would fail again
            error.filename = str(self._path)
            error.add_note("Finished checkpoints are whole: make room and run the same command.")
            raise

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> TextIO:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # A run killed in the middle of a write leaves half a line: keep the next one apart from it.
        torn = self._path.exists() and self._path.read_bytes()[-1:] not in (b"", b"\n")
        file = self._path.open("a", encoding="utf-8")
        if torn:
            file.write("\n")
        return file
