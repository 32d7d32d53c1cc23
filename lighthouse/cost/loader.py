"""What a loader worker delivers: measured by ``benchmarks/data.py``."""

import json
import math
from functools import cache
from pathlib import Path

LOADER_FILE = Path(__file__).with_name("loader.json")


@cache
def worker_rate(tokenizer: str) -> float:
    """Tokens that a worker delivers in a second of a CPU core, by ``model.tokenizer``."""
    content = json.loads(LOADER_FILE.read_text(encoding="utf-8"))
    return float(content["tokens_per_worker_second"][tokenizer])


def workers_needed(tokens_per_second: float, tokenizer: str) -> int:
    """Workers of a rank that reads text, so that its GPUs need not wait.

    Args:
        tokens_per_second: that those GPUs train.
    """
    return math.ceil(tokens_per_second / worker_rate(tokenizer))
