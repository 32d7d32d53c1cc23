"""The page of the study can be made from the results that are kept."""

import json

import pytest

from benchmarks.study import rivals_results
from benchmarks.study.rivals import SETTINGS


@pytest.fixture
def runs() -> dict[str, rivals_results.Run]:
    return json.loads(rivals_results.RESULTS.read_text())  # type: ignore[no-any-return]


def test_the_page_is_that_of_the_results(runs: dict[str, rivals_results.Run]) -> None:
    assert rivals_results.page(runs) == rivals_results.PAGE.read_text()


def test_a_device_is_another_one_where_the_setting_had_one(
    runs: dict[str, rivals_results.Run],
) -> None:
    """Whatever its number is: of some machines a setting has no run."""
    only = {
        f"{name} {device} {machine}": run | {"device": device, "machine": machine}
        for name, run in runs.items()
        if run["setting"] == "107M" and run["machine"] == 4
        for device, machine in (("GPU A", 2), ("GPU B", 2), ("GPU A", 4))
    }
    lines = rivals_results.page(only).splitlines()
    heads = [line for line in lines if line.startswith("On ") and line.endswith(":")]
    assert heads == ["On one GPU A:", "On one GPU B:", "On another GPU A:"]


def test_pictures_that_it_shows_are_there(runs: dict[str, rivals_results.Run]) -> None:
    for setting in SETTINGS:
        for device, machine in rivals_results.by_machine(runs, setting):
            assert rivals_results.picture(setting, device, machine).is_file()
