"""What scripts/test.sh says to pip is what pip takes from it."""

import re
import zipfile
from pathlib import Path

from tests.support import ROOT
from tests.support.processes import python, run

WHEEL = {
    "tiny.py": "",
    "tiny-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n",
    "tiny-1.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "tiny-1.dist-info/RECORD": "",
}


def test_packages_are_not_compiled_before_they_are_imported(tmp_path: Path) -> None:
    wheel = tmp_path / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in WHEEL.items():
            archive.writestr(name, text)
    script = (ROOT / "scripts" / "test.sh").read_text()
    environment = dict(re.findall(r"^export (PIP_\w+)=(\S+)", script, flags=re.MULTILINE))
    assert environment
    install = "-m pip install --no-index --no-deps --disable-pip-version-check --target".split()
    code, printed = run([python(), *install, tmp_path / "there", wheel], environment)
    assert code == 0, printed
    assert (tmp_path / "there" / "tiny.py").is_file()
    assert not (tmp_path / "there" / "__pycache__").exists()
