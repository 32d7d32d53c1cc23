"""Sources in shares of tokens: at every moment, over epochs of their own, resumed exactly."""

import logging
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torchtitan.config import ConfigManager, JobConfig

from lighthouse.refusal import Refusal
from lighthouse.titan.checkpoint.record import RunRecord
from lighthouse.titan.config.resolved_toml import to_toml
from lighthouse.titan.data.text_checks import check_texts
from lighthouse.titan.data.text_files import forget_files
from tests.support.text import assert_resumes_exactly, config_for, loader, rows, write_jsonl
from tests.support.tiers import tiers

WEIGHTS = {"a": 2.0, "b": 1.0, "c": 0.25}
LONGEST = 130


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sources of one letter each; the second is small, and the third has another column."""
    for letter, count in (("a", 400), ("b", 30)):
        (tmp_path / letter).mkdir()
        texts = [letter * (n * 37 % (LONGEST - 2)) for n in range(count)]
        write_jsonl(tmp_path / letter / "x.jsonl", texts)
    (tmp_path / "c").mkdir()
    pq.write_table(pa.table({"body": ["c" * 50] * 50}), tmp_path / "c" / "x.parquet")
    return tmp_path


def config_of(folder: Path, **training: Any) -> JobConfig:
    config = config_for("local", None, **training)
    config.training.sources = [
        {"path": str(folder / name), "weight": weight} for name, weight in WEIGHTS.items()
    ]
    config.training.sources[2]["text"] = "body"
    return config


@pytest.mark.parametrize("order", ["files", "shuffled"])
@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (1, 2)])
def test_shares_hold_at_every_moment(folder: Path, order: str, rank: int, ranks: int) -> None:
    config = config_of(folder, dataset_order=order)
    tokens = [t for row in rows(islice(loader(config, rank, ranks), 600)) for t in row[:-1]]
    seen, given = dict.fromkeys(WEIGHTS, 0), 0
    total = sum(WEIGHTS.values())
    document: list[int] = []
    for token in tokens:
        document.append(token)
        if token == 257 and len(document) > 2:  # empty ones say no source
            seen[chr(document[1])] += len(document)
            given += len(document)
            for name, weight in WEIGHTS.items():
                assert abs(seen[name] - weight / total * given) <= 2 * LONGEST
        if token == 257:
            document = []
    assert seen["b"] > 3 * 30 * LONGEST / 2  # some epochs of it, within the first one of "a"


@pytest.mark.parametrize("order", tiers(["files", "shuffled"], "files"))
@pytest.mark.parametrize("workers", [0, 1])
def test_resumes_exactly_and_again(folder: Path, order: str, workers: int) -> None:
    config = config_of(folder, dataset_order=order)
    config.training.dataloader.num_workers = workers
    assert_resumes_exactly(config, total=300, cuts=(150, 1), most=10_000)


def test_a_source_without_text_for_a_rank_is_named(folder: Path) -> None:
    write_jsonl(folder / "one.jsonl", ["only one"])
    config = config_of(folder)
    config.training.sources.append({"path": str(folder / "one.jsonl")})
    next(iter(loader(config, 0, 2)))
    with pytest.raises(Refusal, match=r"no text in .*one\.jsonl for data-parallel rank 1 of 2"):
        rows(islice(loader(config, 1, 2), 50))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"weight": 1.0}, r"training\.sources\.2\.path: is missing"),
        ({"path": "/nowhere"}, r"training\.sources\.2\.path = '/nowhere': no such file"),
        ({"path": "A", "weight": 0}, r"training\.sources\.2\.weight = 0: must be above 0"),
        ({"path": "A", "weight": float("inf")}, r"weight = inf: must be above 0 and below 1e\+30"),
        ({"path": "A", "weight": 1e308}, r"weight = 1e\+308: must be above 0 and below 1e\+30"),
        ({"path": "A", "weight": 5e-324}, r"weight = 5e-324: is a share of 0, of which no"),
        ({"path": "A", "weight": "much"}, r"weight = 'much': must be float"),
        ({"path": "A", "text": ""}, r"training\.sources\.2\.text = \"\""),
        ({"path": "A", "weights": 1.0}, r"sources\.2\.weights: there is no such key; did you mean"),
        ({"path": "SAME"}, r"is a source already; raise its weight"),
    ],
)
def test_a_table_that_is_not_right(folder: Path, table: dict[str, Any], message: str) -> None:
    config = config_of(folder)
    places = {"A": folder / "b", "SAME": folder / "a"}
    if table.get("path") in places:
        table = table | {"path": str(places[table["path"]])}
    config.training.sources[1:] = [table]
    with pytest.raises(ValueError, match=message):
        check_texts(config)


def test_keys_that_contradict_sources(folder: Path) -> None:
    config = config_of(folder)
    check_texts(config)
    config.training.dataset_path = str(folder)
    with pytest.raises(ValueError, match=r"dataset_path = .*: training\.sources name what is read"):
        check_texts(config)
    config.training.dataset = "c4"
    with pytest.raises(ValueError, match=r"sources: are local text, and training\.dataset = 'c4'"):
        check_texts(config)


def test_a_place_belongs_to_weights_and_files(folder: Path) -> None:
    config = config_of(folder)
    before = RunRecord.of(config, 1)
    assert before.local_text and before.local_text.count("files of") == 3
    config.training.sources[0]["weight"] = 3.0
    assert RunRecord.of(config, 1).data != before.data
    config = config_of(folder)
    write_jsonl(folder / "a" / "y.jsonl", ["more"])
    forget_files()
    assert RunRecord.of(config, 1).local_text != before.local_text


def test_tables_of_a_toml_are_read_and_written(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        '[model]\ntokenizer = "byte"\nflavor = "tiny_byte"\n[training]\ndataset = "local"\n'
        f'sources = [{{path = "{folder}/a", weight = 2}}, {{path = "{folder}/b"}}]\n'
    )
    config = ConfigManager().parse_args(["--job.config_file", str(file)])
    assert [source["path"] for source in config.training.sources] == [f"{folder}/a", f"{folder}/b"]
    resolved = tmp_path / "config.toml"
    resolved.write_text(to_toml(config))
    again = ConfigManager().parse_args(["--job.config_file", str(resolved)])
    assert again.training.sources == config.training.sources


def test_sources_that_have_files_in_common(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same one twice is refused however it is written; a part of another is said."""
    folder = tmp_path / "text"
    folder.mkdir()
    for name in "ab":
        write_jsonl(folder / f"{name}.jsonl", [name * 60])
    (tmp_path / "link").symlink_to(folder)
    config = config_for("local", None)
    for other in (f"{folder}/", f"{folder}/../text", str(tmp_path / "link")):
        config.training.sources = [{"path": str(folder)}, {"path": other}]
        with pytest.raises(ValueError, match=r"training\.sources\.2\.path = .*is a source already"):
            check_texts(config)
    config.training.sources = [{"path": str(folder)}, {"path": str(folder / "b.jsonl")}]
    with caplog.at_level(logging.WARNING):
        loader(config)
        loader(config)
    said = [r.message for r in caplog.records if "are read for both" in r.message]
    assert len(said) == 1
    assert "1 of its 1 files are those of training.sources.1 too" in said[0]
