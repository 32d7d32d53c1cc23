"""Submissions are numbered whatever became of their folders."""

import shutil

import pytest

from tests.support.sweeps import make_run, make_submission


@pytest.mark.parametrize("removed", ["1", "2"])
def test_a_submission_without_its_record_is_in_no_ones_way(tmp_path, removed):
    run = make_run(tmp_path)
    for _ in range(2):
        make_submission([run])
    (tmp_path / "submissions" / f"000{removed}" / "submission.json").unlink()
    assert make_submission([run]).number == 3
    shutil.rmtree(tmp_path / "submissions" / "0001")
    assert make_submission([run]).number == 4
