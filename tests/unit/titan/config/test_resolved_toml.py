"""The resolved configuration that a run leaves behind."""

import tomllib
from dataclasses import fields, is_dataclass

import pytest

from lighthouse.titan.config.resolved_toml import check_resolved, to_toml, write_resolved
from tests.support import TRAIN_CONFIGS


def parse(*args: str):
    from torchtitan.config import ConfigManager

    return ConfigManager(checked=False).parse_args(list(args))


@pytest.mark.parametrize(
    "args",
    [
        ["--job.config_file", str(TRAIN_CONFIGS / "tiny.toml"), "--training.steps", "150"],
        ["--job.config_file", str(TRAIN_CONFIGS / "paper" / "cp8_1m_k4096.toml")],
        ["--optimizer.lr", "1e-3", "--lighthouse.layer_overrides", "2-3:topk=2048"],
        ["--parallelism.context_parallel_load_balancer", "None"],
    ],
)
def test_a_resolved_configuration_resolves_to_itself(tmp_path, args):
    first = parse(*args)
    text = to_toml(first)
    (tmp_path / "config.toml").write_text(text)
    again = parse("--job.config_file", str(tmp_path / "config.toml"))
    assert to_toml(again) == text
    again.job.config_file = first.job.config_file
    assert again == first


def test_no_other_key_has_a_none_to_lose():
    """What TOML can't say must be the default, or have a word for it."""
    from torchtitan.config import JobConfig

    def lossy(config, path: str = "") -> list[str]:
        found = []
        for field in fields(config):
            value = getattr(config, field.name)
            if is_dataclass(value):
                found += lossy(value, f"{path}{field.name}.")
            elif "None" in str(field.type) and value is not None:
                found.append(f"{path}{field.name}")
        return found

    # An empty path of a pipeline schedule is as good as none.
    expected = ["context_parallel_load_balancer", "pipeline_parallel_schedule_csv"]
    assert sorted(lossy(JobConfig())) == [f"parallelism.{name}" for name in expected]


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0_writes_the_file_into_the_runs_folder(tmp_path, monkeypatch, rank):
    monkeypatch.setattr("torch.distributed.get_rank", lambda: rank)
    job = parse("--job.dump_folder", str(tmp_path / "run"))
    write_resolved(job, None)
    files = sorted(tmp_path.rglob("*.toml"))
    names = ["run/config.toml", "run/configs/0001.toml"]
    assert [str(file.relative_to(tmp_path)) for file in files] == (names if rank == 0 else [])
    for file in files:
        assert tomllib.loads(file.read_text()) == tomllib.loads(to_toml(job))


def test_the_configuration_of_each_attempt_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    folder = tmp_path / "run"
    for step, steps in ((None, 5), (3, 5), (4, 9)):
        job = parse("--job.dump_folder", str(folder), "--training.steps", str(steps))
        write_resolved(job, step)
    kept = {file.name: file.read_text() for file in folder.glob("configs/*")}
    assert sorted(kept) == ["0001.toml", "0002.toml"]
    assert kept["0001.toml"].startswith("# In use from the start.\n# The resolved ")
    assert kept["0002.toml"].startswith("# In use after step 4.\n")
    assert [tomllib.loads(text)["training"]["steps"] for text in kept.values()].count(9) == 1
    assert tomllib.loads((folder / "config.toml").read_text())["training"]["steps"] == 9


@pytest.mark.parametrize("left", [0, 40, 300, 0.5, 0.9])
def test_what_is_left_of_a_file_is_no_configuration(tmp_path, monkeypatch, left):
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    write_resolved(parse("--job.dump_folder", str(tmp_path)), None)
    file = tmp_path / "config.toml"
    check_resolved(file)
    data = file.read_bytes()
    file.write_bytes(data[: left if isinstance(left, int) else int(left * len(data))])
    with pytest.raises(
        ValueError, match=rf"{file} is damaged, empty or cut; copy the newest one of"
    ):
        check_resolved(file)


def test_a_damaged_one_of_an_earlier_attempt_stops_none(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "0001.toml").write_bytes(b"\xff")
    write_resolved(parse("--job.dump_folder", str(tmp_path)), 3)
    assert (tmp_path / "configs" / "0002.toml").is_file()
