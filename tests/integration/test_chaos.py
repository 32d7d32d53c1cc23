"""A short plan of what tests/chaos.py does to a run."""

from pathlib import Path

from tests.chaos import chaos


def test_a_run_that_is_hit_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    found = chaos(tmp_path / "chaos", events=4, seed=2, say=print)
    assert sum(found["events"].values()) == 4
    assert found["runs_ended_as_undisturbed"] >= 1
