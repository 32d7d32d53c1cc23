"""Every logged metric as a line of JSON, beside TensorBoard and W&B."""

import time
from pathlib import Path
from typing import Any, TextIO

from lighthouse.metrics_log import METRICS_FILE, to_json

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
# Layers that run Lighthouse Attention at this step; absent where the model never does.
ACTIVE_LAYERS = "lighthouse/active_layers"


class JsonLinesLogger:
    """Appends one line per `log` call to `<dump_folder>/metrics.jsonl`.

    The file is only ever appended to. After a restart from step s it can hold steps beyond s twice;
    `lighthouse.metrics_log.read_metrics` keeps the later attempt. Keys: `step`, `time` (Unix
    seconds), the short names above, `stage` ("lighthouse" or "dense"; absent where the model is
    never but dense), and all of upstream's. `tokens_per_second` counts one device, as upstream
    does. Numbers keep full precision; NaN and infinities are the strings "nan", "inf", "-inf".
    """

    def __init__(self, dump_folder: str) -> None:
        self._path = Path(dump_folder) / METRICS_FILE
        self._file: TextIO | None = None

    def log(self, metrics: dict[str, Any], step: int) -> None:
        if self._file is None:
            self._file = self._open()
        short = {SHORT_NAMES[key]: metrics[key] for key in SHORT_NAMES if key in metrics}
        if ACTIVE_LAYERS in metrics:
            short["stage"] = "lighthouse" if metrics[ACTIVE_LAYERS] > 0 else "dense"
        try:
            self._file.write(to_json({"step": step, "time": time.time()} | short | metrics) + "\n")
            self._file.flush()
        except OSError as error:  # of a full disk, which Python reports without the file's name
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
