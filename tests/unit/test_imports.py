"""What is imported when: each in a process of its own."""

import subprocess
import sys

import pytest

from tests.support import ROOT

COMMANDS = "lighthouse.launch, lighthouse.report, lighthouse.sweep.__main__"
COMMANDS += ", lighthouse.sweep.collect, lighthouse.sweep.plots, lighthouse.sweep.worker"


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("from lighthouse import *; lighthouse_attention, LighthouseConfig, select", "torchtitan"),
        (f"import {COMMANDS}", "torch"),
    ],
    ids=["the library without the trainer", "launcher, sweeps and reports without PyTorch"],
)
def test_not_imported(statement: str, absent: str) -> None:
    script = f"{statement}\nimport sys\nassert {absent!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_a_name_that_is_not_there() -> None:
    import lighthouse

    assert not hasattr(lighthouse, "lighthouse_inattention")
