"""Documents packed into sequences: nothing lost, nothing twice, and resumed at the very token."""

import pickle
import re
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from lighthouse.titan.data.loaders import build_dataloader
from lighthouse.titan.data.tokenizer import ByteTokenizer
from tests.support.text import (
    BOS,
    EOS,
    SEQ_LEN,
    Letters,
    assert_resumes_exactly,
    config_for,
    loader,
    rows,
    stream,
    texts,
    write_jsonl,
    write_txt,
)
from tests.support.tiers import tiers


def test_sequences_continue_without_a_gap(tmp_path: Path) -> None:
    documents = texts(30)
    expected = stream(documents)
    got = rows(loader(config_for("local", write_txt(tmp_path / "a", documents)), infinite=False))
    assert len(got) == (len(expected) - 1) // SEQ_LEN
    for i, row in enumerate(got):
        assert row == expected[i * SEQ_LEN : (i + 1) * SEQ_LEN + 1]


def test_batches_and_any_other_tokenizer(tmp_path: Path) -> None:
    folder = write_txt(tmp_path / "a", ["abc" * 40, "de" * 70])
    config = config_for("local", folder, local_batch_size=2)
    inputs, labels = next(iter(build_dataloader(1, 0, Letters(), config)))
    assert inputs["input"].shape == labels.shape == (2, SEQ_LEN)
    assert rows([(inputs, labels)])[0] == [ord(c) for c in ("abc" * 40)[: SEQ_LEN + 1]]


def test_infinite_repeats_the_same_order(tmp_path: Path) -> None:
    documents = texts(5)
    once = stream(documents)
    got = rows(islice(loader(config_for("local", write_txt(tmp_path / "a", documents))), 30))
    expected = once * (30 * SEQ_LEN // len(once) + 2)
    assert [token for row in got for token in row[:-1]] == expected[: 30 * SEQ_LEN]


@pytest.mark.parametrize("workers", tiers([0, 1, 2], 0, 2))
@pytest.mark.parametrize("cuts", tiers([(7,), (3, 1), (0, 4, 4), (19, 25)], (0, 4, 4), (19, 25)))
def test_resumes_exactly_and_again(tmp_path: Path, workers: int, cuts: tuple[int, ...]) -> None:
    # 16 documents of some 60 tokens: each stream is more than one epoch long.
    config = config_for("local", write_txt(tmp_path / "a", texts(16)))
    config.training.dataloader.num_workers = workers
    assert_resumes_exactly(config, total=50, cuts=cuts, most=2000)


def test_state_is_small_in_the_middle_of_a_long_document(tmp_path: Path) -> None:
    text = "".join(map(chr, np.random.default_rng(0).integers(97, 123, 400_000)))
    config = config_for("local", write_txt(tmp_path / "a", [text]), seq_len=100_000)
    first = loader(config)
    batches = iter(first)
    next(batches)
    state = pickle.dumps(first.state_dict())
    assert len(state) < 2_000
    second = loader(config)
    second.load_state_dict(pickle.loads(state))
    assert torch.equal(next(iter(second))[1], next(batches)[1])


@pytest.mark.parametrize("files", [6, 7])
def test_ranks_share_documents_without_overlap(tmp_path: Path, files: int) -> None:
    # 6 files divide by 2 ranks: whole files each. 7 do not: every second document each.
    for i in range(files):
        write_jsonl(tmp_path / f"{i}.jsonl", [f"<{i}.{j}>" for j in range(30)])
    seen = []
    for rank in range(2):
        config = config_for("local", tmp_path)
        tokens = [t for row in rows(loader(config, rank, 2, infinite=False)) for t in row[:-1]]
        text = ByteTokenizer().decode(tokens)
        seen.append(set(re.findall(r"<(\d+\.\d+)>", text)))
    assert not seen[0] & seen[1]
    # Of 30 x files documents only an incomplete last sequence is missing.
    assert len(seen[0] | seen[1]) >= 30 * files - 2 * SEQ_LEN // 5


@pytest.mark.parametrize("workers", [1, 2])
def test_documents_stay_whole_and_single(tmp_path: Path, workers: int) -> None:
    """Over ranks and workers: each document once, in one piece but for the ends of sequences."""
    shares = 2 * workers
    for i in range(2 * shares):
        # Shorter than a sequence, about as long, and longer than several.
        write_jsonl(tmp_path / f"{i}.jsonl", [f"{i:02}.{j:02}" + "x" * 23 * j for j in range(12)])
    config = config_for("local", tmp_path)
    config.training.dataloader.num_workers = workers
    seen: list[str] = []
    for rank in range(2):
        got = rows(loader(config, rank, 2, infinite=False))
        for worker in range(workers):  # shares are equally long, so workers take turns to the end
            row_stream = got[worker::workers]
            assert all(a[-1] == b[0] for a, b in pairwise(row_stream))
            tokens = [t for row in row_stream for t in row[:-1]]
            documents = [bytes(d) for d in _split(tokens)]
            whole, cut = documents[:-1], documents[-1]
            assert all(re.fullmatch(rb"\d\d\.(\d\d)(x*)", d) for d in whole)
            assert all(len(d) == 5 + 23 * int(d[3:5]) for d in whole)
            seen += [d[:5].decode() for d in (*whole, cut)]
            # Of the 24 documents only less than a sequence is missing, the end of the last one.
            total = 2 * sum(5 + 23 * j + 2 for j in range(12))
            assert total - SEQ_LEN <= len(tokens) <= total
    assert len(seen) == len(set(seen)) == 12 * 2 * shares


def _split(tokens: list[int]) -> list[list[int]]:
    """The documents of a stream; the last one may be incomplete."""
    documents: list[list[int]] = []
    for token in tokens:
        if token == BOS:
            documents.append([])
        elif token != EOS:
            documents[-1].append(token)
    return documents


def test_rank_without_documents_is_an_error(tmp_path: Path) -> None:
    config = config_for("local", write_txt(tmp_path / "a", ["only one"]))
    with pytest.raises(ValueError, match="data-parallel rank 1 of 2"):
        next(iter(loader(config, 1, 2)))


def test_fewer_tokens_than_a_sequence(tmp_path: Path) -> None:
    folder = write_txt(tmp_path / "a", ["short"])
    with pytest.raises(
        ValueError, match=r"validation\.seq_len = 50: the dataset has only 7 tokens"
    ):
        next(iter(loader(config_for("local", folder), infinite=False)))
    # A training stream repeats the text instead.
    assert rows(islice(loader(config_for("local", folder)), 1))[0][:8] == [*stream(["short"]), BOS]


def test_tasks_between_documents_and_resumed_at_the_very_token(tmp_path: Path) -> None:
    config = config_for("local", write_txt(tmp_path / "a", texts(16)), task_rate=0.9)
    expected = rows(islice(loader(config), 200))
    flat = bytes(token for row in expected for token in row[:-1] if token < BOS).decode()
    assert "The hidden digit is" in flat and "\nget " in flat
    first = loader(config)
    got = rows(islice(first, 33))
    resumed = loader(config)
    resumed.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    assert got + rows(islice(resumed, 167)) == expected
