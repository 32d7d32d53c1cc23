"""The configuration in a run's folder repeats the run."""

from tests.support.processes import run_module
from tests.support.trainer import Run, train


def test_the_resolved_configuration_repeats_the_run(tmp_path):
    args = "--training.steps 3 --lighthouse.enable --lighthouse.dense_from_step 3".split()
    first = train(tmp_path / "first", *args)
    config = first.folder / "config.toml"
    again = tmp_path / "again"
    options = ["--job.config_file", str(config), "--job.dump_folder", str(again)]
    code, output = run_module("torchtitan.train", *options, ranks=1)
    assert code == 0, output
    assert Run(again, 0, "").losses() == first.losses()
    lines = [path.read_text().splitlines() for path in (config, again / "config.toml")]
    # The first line is the command.
    different = [pair for pair in zip(*lines, strict=True) if pair[0] != pair[1]][1:]
    assert different == [
        (f'dump_folder = "{first.folder}"', f'dump_folder = "{again}"'),
    ]
