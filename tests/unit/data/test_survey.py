"""``python -m lighthouse.data check`` counts what a run would read."""

import json
from pathlib import Path

import pytest

from lighthouse.data.__main__ import main
from lighthouse.titan.data.tokenizer import ByteTokenizer
from tests.support.text import write_jsonl

DOCUMENTS = ["é" * n for n in range(1, 101)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", [*DOCUMENTS, *DOCUMENTS[:7]])
    (folder / "b.jsonl").write_bytes(b'{"text": null}\n{"text": "na\xc3"}\n')
    (folder / "c.csv").touch()
    return folder


def found(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict]:
    main(["check", *arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def test_a_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (one,) = found(capsys, str(folder))
    size = sum(2 * n for n in (*range(1, 101), *range(1, 8))) + 5
    assert (one["files"], one["unread"], one["documents"]) == (2, 1, 108)
    assert (one["bytes"], one["tokens"]) == (size, size + 2 * 108)
    assert one["lengths"]["0"] == 4 and one["lengths"]["100"] == 202
    assert 90 <= one["lengths"]["50"] <= 104
    assert (one["duplicates"], one["bad_rows"], one["broken_utf8"]) == (7, 1, 1)
    ByteTokenizer().save_pretrained(tmp_path / "tokenizer")
    assert found(capsys, str(folder), "--tokenizer", str(tmp_path / "tokenizer")) == [one]
    main(["check", str(folder)])
    assert f"| tokens | {size + 216:,} |" in capsys.readouterr().out


def test_a_toml(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_jsonl(other / "a.jsonl", DOCUMENTS)
    toml = tmp_path / "run.toml"
    toml.write_text(
        '[model]\ntokenizer = "byte"\nflavor = "tiny_byte"\n[training]\ndataset = "local"\n'
        "steps = 20\nseq_len = 128\nlocal_batch_size = 2\n"
        f'sources = [{{path = "{folder}", weight = 3}}, {{path = "{other}"}}]\n'
    )
    first, second = found(capsys, str(toml), "--gpus", "4")
    assert first["share"] == 0.75 and second["duplicates"] == 100
    assert second["epochs"] == pytest.approx(20 * 128 * 2 * 4 / 4 / second["tokens"])


def test_what_documents_apart_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two stages, of a Lighthouse layer's multiple of 16 and of none; documents of 20 tokens."""
    folder = tmp_path / "text"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", ["x" * 18] * 40)
    toml = tmp_path / "run.toml"
    toml.write_text(
        '[model]\nname = "llama3"\ntokenizer = "byte"\nflavor = "tiny_byte"\n[training]\n'
        f'dataset = "local"\ndataset_path = "{folder}"\ndocument_mask = true\n'
        "steps = 2\nseq_len = 256\nlocal_batch_size = 1\nmax_documents = 8\n"
        "[lighthouse]\nenable = true\ntopk = 8\nstratum = 8\n"
        '[[stages]]\nattention = "lighthouse"\nsteps = 1\n'
        '[[stages]]\nattention = "dense"\nsteps = 1\nseq_len = 128\n'
    )
    (one,) = found(capsys, str(toml))
    by_lighthouse, dense = one["packed"]
    # 8 documents of 20 and 12 of padding each fill 256; 40 make 5, the last of which nothing ends.
    assert by_lighthouse == {
        "seq_len": 256,
        "multiple": 16,
        "sequences": 4,
        "documents": 8.0,
        "padding": 8 * 12 / 256,
        "full": 0.0,
        "pairs": 8 * 32 * 33 / (256 * 257),
    }
    # 128 tokens hold 6 documents and 8 tokens of the next one, which is a document after that.
    assert (dense["seq_len"], dense["multiple"], dense["sequences"]) == (128, 1, 6)
    assert (dense["padding"], dense["full"]) == (0, 0)
    assert dense["documents"] == pytest.approx(7.2, abs=0.3)
    main(["check", str(toml)])
    assert "| padding | 37.50% |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "PATH = '/nowhere': no such file"),
        (["{folder}", "--text", "body"], 'line 1 has no string under "body"'),
        (["{folder}", "--text", "body"], "name the one that holds the text by --text"),
        (["{folder}", "--tokenizer", "/nowhere"], "--tokenizer '/nowhere': is no folder"),
        (["{folder}", "--tokenizer", "{folder}"], "': its tokenizer can't be read: No supported"),
        (["{folder}", "--gpus", "2"], "--gpus is not for a path of text"),
    ],
)
def test_what_can_not_be_checked(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["check", *(a.replace("{folder}", str(folder)) for a in arguments)])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
