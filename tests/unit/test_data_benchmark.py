from pathlib import Path

import pytest

from benchmarks.data import BAR, Case, measure, table, write_sources


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_keeps_up(tmp_path: Path, workers: int) -> None:
    paths = write_sources(tmp_path, size=2 << 20)
    for source, path in {"python": None, **paths}.items():
        result = measure(Case(source, path, seq_len=98304, workers=workers, sequences=20))
        assert result["tokens_per_cpu_second"] > BAR, source
        assert result["state_bytes"] < 2_000, source
        assert len(table([result]).splitlines()) == 3
