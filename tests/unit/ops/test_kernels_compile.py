"""The kernels compile for a GPU, not only for the interpreter that the other tests use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.tiers import tiers


@pytest.mark.parametrize("dtypes", tiers(["bf16 fp32", "fp16"], "bf16 fp32"))
def test_kernels_compile_for_an_h100(tmp_path: Path, dtypes: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.compile_kernels", *dtypes.split()],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    compiled = {line.split()[0] for line in result.stdout.splitlines()}
    steps = ("summarize", "select", "windows", "pull", "merge", "rows")
    assert compiled == {f"_{step}_kernel" for step in steps}
