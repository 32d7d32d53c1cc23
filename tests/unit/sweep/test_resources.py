"""What each run of a sweep gets, as Slurm writes it."""

from pathlib import Path

import pytest

from lighthouse.sweep.resources import Resources, check_path, seconds_of


def test_other_options_of_sbatch_are_left_to_the_user():
    options = ["--exclusive", "--nice=5", "--time-min=1", "-x n1", "--gres=a:1", "--nodelist=n"]
    options += ["--ntasks-per-core=1", "--comment='run -n 3'"]
    Resources(sbatch=options).check()


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("5", 300),
        ("5:30", 330),
        ("1:00:00", 3600),
        ("1-2", 93600),
        ("1-2:30", 95400),
        ("1-2:30:15", 95415),
    ],
)
def test_times_are_read_as_slurm_reads_them(time, seconds):
    assert seconds_of(time) == seconds


@pytest.mark.parametrize("time", ["", "0", "00:00:00", "1h", "1-", "-1", "1:2:3:4", "1\n"])
def test_other_times_are_refused(time):
    with pytest.raises(ValueError, match=r"resources\.time"):
        seconds_of(time)


def test_processes_of_a_run():
    assert Resources(nodes=4, gpus_per_node=8).processes == 32
    assert Resources(gpus_per_node=0).processes == 1


def test_paths_for_slurm():
    check_path(Path("/a b/c,d=e@f"), "output")
    with pytest.raises(ValueError, match="'%'"):
        check_path(Path("/a%j"), "output")
