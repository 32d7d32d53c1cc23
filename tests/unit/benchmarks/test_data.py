"""The benchmark of the data loader measures what it says."""

from pathlib import Path

import pytest

from benchmarks.data import Case, measure, table, write_sources
from tests.support.tiers import tiers


@pytest.mark.parametrize("workers", tiers([0, 1], 0))
def test_a_case_is_measured(tmp_path: Path, workers: int) -> None:
    written = write_sources(tmp_path, size=2 << 20)
    results = []
    for source, paths in {"python": (), **written}.items():
        result = measure(Case(source, paths, seq_len=98304, workers=workers, sequences=20))
        assert result["tokens_per_second"] > 0 and result["tokens_per_cpu_second"] > 0
        assert result["state_bytes"] < 2_000, source
        results.append(result)
    shown = table(results)
    assert all(result["source"] in shown for result in results)
