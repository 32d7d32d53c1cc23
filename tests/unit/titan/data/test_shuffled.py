"""A shuffled order: each document once an epoch, shared without overlap, resumed exactly."""

import gzip
import pickle
from itertools import combinations, islice, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lighthouse.titan.checkpoint.record import RunRecord
from lighthouse.titan.config.stages import Stages
from lighthouse.titan.data.blocks import Blocks, permutation
from lighthouse.titan.data.loaders import build_validation_dataloader
from lighthouse.titan.data.rows import Block
from lighthouse.titan.data.shuffled import ShuffledDocuments
from lighthouse.titan.data.sources import TextReader
from lighthouse.titan.data.text_checks import check_texts
from lighthouse.titan.data.text_files import local_files
from lighthouse.titan.data.tokenizer import ByteTokenizer
from tests.support.text import assert_resumes_exactly, config_for, loader, rows, write_jsonl

LANGUAGES = ("de", "en", "fr", "zh")
EACH = 150
WINDOW = 4000  # characters, some 35 documents


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder a language, each of another kind; documents say which they are."""
    for i, language in enumerate(LANGUAGES):
        inside = tmp_path / language
        inside.mkdir()
        documents = [f"<{language}{n}>" + "." * (n * 7 % 90) for n in range(EACH)]
        if i == 0:
            pq.write_table(pa.table({"text": documents}), inside / "a.parquet", row_group_size=20)
        else:
            write_jsonl(inside / "a.jsonl", documents)
        if i == 3:
            (inside / "a.jsonl.gz").write_bytes(gzip.compress((inside / "a.jsonl").read_bytes()))
            (inside / "a.jsonl").unlink()
    return tmp_path


ALL = {f"{language}{n}" for language in LANGUAGES for n in range(EACH)}


def documents(
    folder: Path, rank: int = 0, ranks: int = 1, reader: Any = None, seed: int = 0
) -> ShuffledDocuments:
    reader = reader or TextReader("training.dataset_path")
    return ShuffledDocuments(local_files(folder), reader, seed, rank, ranks, window=WINDOW, lanes=8)


def names(stream: ShuffledDocuments, epoch: int = 0, place: Any = None) -> list[str]:
    return [text[1 : text.index(">")] for text, _ in stream.read(epoch, place)]


def test_each_epoch_has_each_document_once_in_another_order(folder: Path) -> None:
    first, again, second = (names(documents(folder), epoch) for epoch in (0, 0, 1))
    assert first == again != second
    assert len(first) == len(second) == len(ALL) and set(first) == set(second) == ALL


def test_each_seed_has_each_document_once_in_another_order(folder: Path) -> None:
    for epoch in (0, 3):
        orders = [names(documents(folder, seed=seed), epoch) for seed in range(4)]
        assert all(sorted(order) == sorted(ALL) for order in orders)
        assert all(a != b for a, b in combinations(orders, 2))


def test_blocks_and_windows_follow_the_seed(folder: Path, tmp_path: Path) -> None:
    """Blocks where a window holds one document, and a window where there is one block."""
    one = tmp_path / "one.jsonl"
    write_jsonl(one, [f"<{n}>" for n in range(9)])
    for files, window in ((local_files(folder / "en"), 1), ([one], WINDOW)):
        orders = [
            names(
                ShuffledDocuments(
                    files, TextReader("training.dataset_path"), seed, 0, 1, window, lanes=1
                )
            )
            for seed in range(4)
        ]
        assert all(sorted(order) == sorted(orders[0]) for order in orders)
        assert all(a != b for a, b in combinations(orders, 2))


def test_seed_0_is_the_order_of_before_there_were_seeds(folder: Path) -> None:
    """A checkpoint of before goes on in it."""
    first, second = (names(documents(folder), epoch)[:9] for epoch in (0, 1))
    assert first == ["fr1", "de141", "de21", "de122", "en4", "fr0", "de144", "fr5", "de103"]
    assert second == ["de44", "de83", "en76", "de23", "en2", "de41", "de42", "de81", "de43"]
    of_two = names(documents(folder, 1, 2), 1)[:9]
    assert of_two == ["en39", "fr77", "fr7", "en80", "fr115", "fr3", "fr5", "en81", "en83"]


def test_documents_of_sorted_files_meet(folder: Path) -> None:
    """Neighbours are of two languages; in order of files they are three times."""
    order = [name[:2] for name in names(documents(folder))][: len(ALL) * 2 // 3]
    assert sum(a != b for a, b in pairwise(order)) > len(order) / 2
    assert set(order) == set(LANGUAGES)


@pytest.mark.parametrize("ranks", [2, 3, 16, 200])
def test_ranks_share_all_documents_without_overlap(folder: Path, ranks: int) -> None:
    """Also more of them than there are files, and row groups."""
    for epoch in (0, 5):
        shares = [names(documents(folder, rank, ranks), epoch) for rank in range(ranks)]
        assert sorted(name for share in shares for name in share) == sorted(ALL)
        if ranks <= 16:
            assert all(shares)


def test_goes_on_from_every_place(folder: Path) -> None:
    stream = documents(folder)
    expected = list(stream.read(3, None))
    for done in range(0, len(expected), 7):
        place = pickle.loads(pickle.dumps(expected[done][1]))
        assert list(documents(folder).read(3, place)) == expected[done + 1 :]
    assert max(len(pickle.dumps(place)) for _, place in expected) < 500


def test_a_resume_reads_one_window_again(folder: Path) -> None:
    """And the window is all that is held."""
    taken = []

    class Counting(TextReader):
        def texts(self, block: Block, place: int = 0) -> Any:
            for text, behind in super().texts(block, place):
                taken.append(text)
                yield text, behind

    stream = documents(folder, reader=Counting("training"))
    for done, (_, _place) in enumerate(stream.read(0, None), start=1):
        assert sum(map(len, taken[done:])) < WINDOW + 100
        if done == 400:
            break
    taken.clear()
    next(documents(folder, reader=Counting("training")).read(0, _place))
    assert 0 < sum(map(len, taken)) < WINDOW + 100


def test_blocks_are_cut_so_that_shares_are_alike(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["x" * 50] * 2000)
    assert len(Blocks([tmp_path / "a.jsonl"], "text", shares=8)) in (32, 33)
    pq.write_table(pa.table({"text": ["x"] * 30}), tmp_path / "b.parquet", row_group_size=10)
    blocks = Blocks([tmp_path / "b.parquet"], "text", shares=8)
    assert list(blocks) == [
        Block(tmp_path / "b.parquet", group, group + 1, part, 3)
        for group in range(3)
        for part in range(3)
    ]


def test_an_order_is_the_same_for_ever() -> None:
    """A checkpoint's place means nothing in another one."""
    assert permutation(12, 0, 1).tolist() == [1, 10, 8, 7, 9, 4, 2, 3, 5, 0, 11, 6]
    assert sorted(permutation(1000, 3).tolist()) == list(range(1000))
    assert permutation(1000, 3).tolist() != permutation(1000, 4).tolist()


@pytest.mark.parametrize(("workers", "seed"), [(0, 0), (2, 0), (0, 5)])
def test_a_loader_resumes_in_a_later_epoch(folder: Path, workers: int, seed: int) -> None:
    config = config_for("local", folder, dataset_order="shuffled", dataset_seed=seed, seq_len=1000)
    config.training.dataloader.num_workers = workers
    config.training.dataset_path = str(folder)
    # An epoch has some 34 sequences.
    assert_resumes_exactly(config, total=70, cuts=(39, 1), most=4000)


def test_the_next_stage_reads_on(folder: Path) -> None:
    config = config_for("local", folder, dataset_order="shuffled")
    whole = [t for row in rows(islice(loader(config), 20)) for t in row[:-1]]
    config.stages = [{"steps": 1, "attention": "dense", "seq_len": n} for n in (20, 300, 7)]
    staged, tokens = loader(config), []
    batches = iter(staged)
    for stage in Stages.of(config):
        staged.begin_stage(stage)
        tokens += rows([next(batches)])[0][:-1]
    assert tokens == whole[: len(tokens)]


def test_training_follows_its_seed_and_validation_none(folder: Path) -> None:
    def read(seed: int) -> tuple[list[list[int]], list[list[int]]]:
        config = config_for("local", folder, dataset_order="shuffled", dataset_seed=seed)
        held_out = build_validation_dataloader(1, 0, ByteTokenizer(), config)
        return rows(islice(loader(config), 20)), rows(islice(held_out, 20))

    (training, validation), (other, same) = read(0), read(1)
    assert training != other and validation == same


def test_sources_of_a_mixture_follow_the_seed(folder: Path) -> None:
    def read(seed: int) -> list[list[int]]:
        config = config_for("local", None, dataset_order="shuffled", dataset_seed=seed)
        config.training.sources = [{"path": str(folder / name)} for name in ("en", "fr")]
        return rows(islice(loader(config), 20))

    assert read(1) == read(1) != read(2)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("local", "is for a shuffled order alone, and training.dataset_order = 'files'"),
        ("python", "is for local text alone, and training.dataset = 'python'"),
        ("c4_test", "is for local text alone, and training.dataset = 'c4_test'"),
    ],
)
def test_a_seed_that_no_order_follows_is_refused(folder: Path, dataset: str, message: str) -> None:
    config = config_for(dataset, folder if dataset == "local" else None, dataset_seed=3)
    with pytest.raises(ValueError, match=f"^training.dataset_seed = 3: {message}"):
        check_texts(config)
    config.training.dataset_seed = 0
    check_texts(config)


def test_it_is_for_local_text_and_belongs_to_a_checkpoint(folder: Path) -> None:
    with pytest.raises(ValueError, match="dataset_order = 'shuffled': is for local text alone"):
        check_texts(config_for("python", None, dataset_order="shuffled"))
    config = config_for("local", folder, dataset_order="shuffled", dataset_seed=3)
    check_texts(config)
    data = RunRecord.of(config, 1).data
    assert (data["training.dataset_order"], data["training.dataset_seed"]) == ("shuffled", 3)
