"""TOML files that extend others."""

import tomllib
from pathlib import Path

import pytest

from lighthouse.refusal import Refusal
from lighthouse.titan.config.toml_files import merge, read_layers


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def parse(*args: str):
    from torchtitan.config import ConfigManager

    return ConfigManager(checked=False).parse_args(list(args))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(
        tmp_path,
        "base.toml",
        '[model]\nname = "llama3"\nflavor = "tiny_byte"\ntokenizer = "byte"\n'
        "[training]\nsteps = 10\nseq_len = 256\n"
        "[lighthouse]\ndense_layers = [0, 1]\n",
    )


def test_tables_merge_and_the_rest_is_replaced(tmp_path, base):
    middle = write(
        tmp_path,
        "sub/middle.toml",
        '[job]\nextends = "../base.toml"\n[training]\nsteps = 20\nseq_len = 512\n',
    )
    top = write(
        tmp_path,
        "sub/deep/top.toml",
        '[job]\nextends = "../middle.toml"\ndescription = "top"\n'
        "[training]\nsteps = 30\n[lighthouse]\ndense_layers = [2]\n",
    )
    layers = read_layers(top)
    assert [file.resolve() for file, _ in layers] == [base, middle, top]
    assert merge(layers) == {
        "model": {"name": "llama3", "flavor": "tiny_byte", "tokenizer": "byte"},
        "training": {"steps": 30, "seq_len": 512},
        "lighthouse": {"dense_layers": [2]},
        "job": {"description": "top"},
    }
    job = parse("--job.config_file", str(top), "--training.steps", "40")
    assert (job.training.steps, job.training.seq_len) == (40, 512)
    assert not hasattr(job.job, "extends")


def test_merging_changes_none_of_the_layers(tmp_path, base):
    top = write(
        tmp_path, "top.toml", '[job]\nextends = "base.toml"\n[training]\nlocal_batch_size = 2\n'
    )
    layers = read_layers(top)
    assert merge(layers) == merge(layers)
    assert layers[0][1] == tomllib.loads(base.read_text())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "none.toml"', r"job\.extends = 'none\.toml': there is no file .*none\.toml"),
        ('extends = "."', r"there is no file"),
        ("extends = 3", r"job\.extends = 3: must be one path"),
        ('extends = "top.toml"', r"circle: .*top\.toml -> .*top\.toml"),
        ('extends = "back.toml"', r"circle: .*top\.toml -> .*back\.toml -> .*top\.toml"),
        ('extends = "broken.toml"', r"broken\.toml is not TOML: "),
    ],
)
def test_a_base_that_cannot_be_read_is_named(tmp_path, text, message):
    write(tmp_path, "back.toml", '[job]\nextends = "./top.toml"\n')
    write(tmp_path, "broken.toml", "[job\n")
    top = write(tmp_path, "top.toml", f"[job]\n{text}\n")
    with pytest.raises(ValueError, match=message):
        parse("--job.config_file", str(top))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("top_k = 4", r"lighthouse\.top_k: there is no such key; did you mean lighthouse\.topk\?"),
        ("topk = 4.0", r"lighthouse\.topk = 4\.0: must be int, got float"),
        ("topk = true", r"lighthouse\.topk = true: must be int, got bool"),
        ("impl = 'gpu'", r"lighthouse\.impl = 'gpu': must be one of 'auto', .*'reference'"),
    ],
)
@pytest.mark.parametrize("wrong", ["base", "top"])
def test_a_wrong_key_or_value_names_its_file(tmp_path, line, message, wrong):
    lines = {"base": "", "top": "", wrong: f"[lighthouse]\n{line}\n"}
    write(tmp_path, "base.toml", lines["base"])
    top = write(tmp_path, "top.toml", f'[job]\nextends = "base.toml"\n{lines["top"]}')
    with pytest.raises(ValueError, match=rf"{message}.* \(in .*{wrong}\.toml\)$"):
        parse("--job.config_file", str(top))


def test_a_wrong_type_in_the_base_is_found_under_a_right_one(tmp_path):
    write(tmp_path, "base.toml", '[training]\nsteps = "many"\n')
    top = write(tmp_path, "top.toml", '[job]\nextends = "base.toml"\n[training]\nsteps = 3\n')
    with pytest.raises(ValueError, match=r"training\.steps = 'many'.*base\.toml"):
        parse("--job.config_file", str(top))


def test_a_file_that_is_not_there_is_refused_by_its_key(tmp_path):
    for path, why in ((tmp_path / "none.toml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(Refusal) as error:
            parse(f"--job.config_file={path}")
        assert str(error.value).startswith(f"job.config_file = {str(path)!r}: can't be read ({why}")
        assert "name a TOML file" in str(error.value)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"not = = toml", "Invalid value"),
        (b"\xff\xfe", "it is not in UTF-8 from byte 0 on; save it as plain UTF-8"),
        ("steps = 3".encode("utf-16-le"), "it has a byte order mark, or is UTF-16; save it as"),
        ("steps = 3".encode("utf-8-sig"), "it has a byte order mark, or is UTF-16; save it as"),
        (b"a = " + b"[" * 5000 + b"]" * 5000, "it is nested too deeply"),
        (b"a = " + b"9" * 5000, "Exceeds the limit"),
    ],
)
def test_a_file_that_is_not_toml_is_named(tmp_path, content, why):
    (tmp_path / "run.toml").write_bytes(content)
    with pytest.raises(Refusal, match=rf"^{tmp_path}/run\.toml is not TOML: {why}"):
        parse("--job.config_file", str(tmp_path / "run.toml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'extends = "base.toml"',
            r"extends = 'base\.toml': is job\.extends, write it below",
        ),
        ("steps = 3", r"steps: there is no such key; did you mean training\.steps or validation\."),
        ("[optimizer]\nmin_lr_factor = 0.1", r"did you mean lr_scheduler\.min_lr_factor\?"),
        ("[optimizer]\nlearning_rate = 0.1", r"did you mean optimizer\.lr\?"),
        ("[optimizer]\nwd = 0.1", r"did you mean optimizer\.weight_decay\?"),
        (
            "[training]\nbatch_size = 8",
            r"mean training\.local_batch_size or training\.global_batch_size\?",
        ),
        ("[training]\nmax_steps = 8", r"did you mean training\.steps\?"),
        ("[training]\nsequence_length = 8", r"did you mean training\.seq_len\?"),
        ("[training]\nmax_seq_len = 8", r"did you mean training\.seq_len\?"),
        ("[training]\nfoo = 8", r"training\.foo: there is no such key(?!;)"),
        ("[lighthouse]\ndense_layers = [0, 'a']", r"must be list\[int\], got list of int, str"),
        (f'[job]\nextends = "{"a" * 5000}"', r"job\.extends = 'a+': there is no file"),
    ],
)
def test_a_key_in_another_section_and_items_of_a_list(tmp_path, text, message):
    top = write(tmp_path, "top.toml", text)
    with pytest.raises(Refusal, match=message):
        parse("--job.config_file", str(top))
