"""The page of speeds can be made from the results that are kept."""

from benchmarks import speed_page
from tests.support import ROOT


def test_the_page_is_made_from_the_results() -> None:
    page = speed_page.page()
    assert "{" not in page and "}" not in page
    assert speed_page.page() == page


def test_its_tables_are_whole() -> None:
    tables = [block for block in speed_page.page().split("\n\n") if block.startswith("|")]
    assert tables
    for table in tables:
        heads, rule, *rows = table.splitlines()
        assert rows and set(rule) <= set("| -")
        assert {line.count("|") for line in (rule, *rows)} == {heads.count("|")}


def test_results_that_it_names_are_there() -> None:
    for name in speed_page.TEMPLATE.read_text().split("(../")[1:]:
        assert (ROOT / name.split(")")[0]).is_file()
