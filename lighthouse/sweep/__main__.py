"""Many runs of the trainer from one file, on a Slurm cluster or on this machine.

    python -m lighthouse.sweep plan SWEEP.toml              what would run, and what it would take
    python -m lighthouse.sweep submit SWEEP.toml            send what is not done yet, as one array
    python -m lighthouse.sweep submit --local -j 2 SWEEP.toml    run it here, two at a time
    python -m lighthouse.sweep status SWEEP.toml [--watch]  states, progress, time left; --all
    python -m lighthouse.sweep resume SWEEP.toml [RUN ...]  go on with what failed or was ended
    python -m lighthouse.sweep cancel SWEEP.toml [RUN ...]  end runs, with a checkpoint
    python -m lighthouse.sweep collect SWEEP.toml           results.csv, .json and .md
    python -m lighthouse.sweep plot SWEEP.toml              loss curves, loss against cost

RUN may have * in it. Where nothing is sent, SWEEP can also be the sweep's output folder.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from rich.console import Group
from rich.live import Live

from lighthouse import slurm
from lighthouse.refusal import EXIT_CODE, in_words
from lighthouse.slurm import SlurmError, Task
from lighthouse.sweep import code
from lighthouse.sweep.batch import batch_script
from lighthouse.sweep.local import check_room
from lighthouse.sweep.run_folder import Run, read_runs
from lighthouse.sweep.screen import (
    STATUS_LINES,
    STATUS_WIDTH,
    console,
    counted,
    plan_table,
    status_table,
)
from lighthouse.sweep.spec import Spec, read_spec
from lighthouse.sweep.state import DONE, RUNNING, UNKNOWN, RunState, queued_tasks, run_states
from lighthouse.sweep.submission import next_submission, read_submissions
from lighthouse.sweep.submit import (
    alone,
    cancel,
    planned_states,
    prepare,
    readable,
    run_here,
    send,
    unfinished,
)

# The trainer and matplotlib take seconds to import: only the commands that need them do.


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (ValueError, SlurmError, OSError) as error:  # a disk's error names the file
        print(f"sweep: {in_words(error)}", file=sys.stderr)
        sys.exit(EXIT_CODE)
    except KeyboardInterrupt:
        sys.exit(130)


def plan_command(options: argparse.Namespace) -> None:
    from lighthouse.sweep.resolve import resolve

    spec = read_spec(options.sweep)
    planned = resolve(spec, code.commit())
    tasks, remark = _tasks(spec.output)
    console().print(plan_table(planned, planned_states(planned, tasks)), *remark)


def submit_command(options: argparse.Namespace) -> None:
    from lighthouse.sweep.resolve import resolve

    spec = read_spec(options.sweep)
    jobs = _jobs(options, spec)
    planned = resolve(spec, code.commit())
    if options.dry_run:
        tasks, remark = _tasks(spec.output)
        states = planned_states(planned, tasks)
        console().print(plan_table(planned, states), *remark)
        folders = [state.run.folder for state in unfinished(states)]
        if folders and jobs is None:
            longest = slurm.longest_array()
            first = next_submission(
                spec.output, spec.name, spec.resources, folders[:longest], slurm=True
            )
            print(f"\n{batch_script(first)}")
            if (left := len(folders) - longest) > 0:
                print(f"and {counted(left, 'run')} alike: an array has at most {longest} here")
        return
    with alone(spec.output):
        tasks = queued_tasks(spec.output)
        states = planned_states(planned, tasks)
        console().print(plan_table(planned, states))
        prepare(spec, planned, states)
        _send(spec, unfinished(planned_states(planned, tasks)), jobs)


def resume_command(options: argparse.Namespace) -> None:
    spec = read_spec(options.sweep)
    jobs = _jobs(options, spec)
    with alone(spec.output):
        runs = _selected(_runs(options.sweep), options.runs)
        states = unfinished(run_states(runs, queued_tasks(spec.output)), bool(options.runs))
        for run in (state.run for state in states):
            if run.processes != spec.resources.processes:
                raise ValueError(
                    f"resources.nodes = {spec.resources.nodes}, resources.gpus_per_node = "
                    f"{spec.resources.gpus_per_node}: {run.name} is a run of {run.processes} "
                    f"processes, not {spec.resources.processes}; set them back, or `submit`, which "
                    "makes other runs of other processes"
                )
        _send(spec, states, jobs)


def status_command(options: argparse.Namespace) -> None:
    screen = console(plain_width=STATUS_WIDTH)
    lines = None if options.all else max(STATUS_LINES, screen.height if screen.is_terminal else 0)
    if options.watch is None:
        screen.print(_status(options.sweep, screen.width, lines))
        return
    # What is below the screen's last line would not be seen.
    lines = screen.height if lines is None else lines
    with Live(console=screen, auto_refresh=False, screen=True) as live:
        while True:
            live.update(_status(options.sweep, screen.width, lines), refresh=True)
            time.sleep(options.watch)


def cancel_command(options: argparse.Namespace) -> None:
    runs = _selected(_runs(options.sweep), options.runs)
    output = _output(options.sweep)
    tasks, remark = _tasks(output)
    sent = {name for submission in read_submissions(output) for name in submission.runs}
    states = [
        state
        for state in readable(run_states(runs, tasks))
        if state.state != DONE and state.run.folder.name in sent
    ]
    cancel(states)
    if not states:
        print(*remark, "nothing to cancel: all runs that were sent are done", sep="\n")
        return
    at_work = sum(state.state in (RUNNING, UNKNOWN) for state in states)
    print(*remark, f"{counted(len(states), 'run')} cancelled", sep="\n", end=": ")
    print(f"{at_work} at work save a checkpoint, {len(states) - at_work} will not begin")


def collect_command(options: argparse.Namespace) -> None:
    from lighthouse.sweep.collect import collect, markdown, write_results

    rows = collect(_runs(options.sweep))
    paths = write_results(rows, _results(options.sweep))
    print(markdown(rows))
    print(*paths, sep="\n")


def plot_command(options: argparse.Namespace) -> None:
    from lighthouse.sweep.plots import plot_sweep

    print(*plot_sweep(_runs(options.sweep), _results(options.sweep)), sep="\n")


def _send(spec: Spec, states: Sequence[RunState], jobs: int | None) -> None:
    if not states:
        print("nothing to send: all runs are done, queued, running, diverged or unreadable")
        return
    runs = [state.run for state in states]
    folders = [run.folder for run in runs]
    if jobs is None:
        for job, number in send(spec, folders):
            print(f"sent {counted(number, 'run')} as job {job}; `status` shows them", flush=True)
    else:
        run_here(next_submission(spec.output, spec.name, spec.resources, folders, False), jobs)
        screen = console(plain_width=STATUS_WIDTH)
        screen.print(status_table(run_states(runs, {}), spec.name, screen.width))
        if not all(run.done for run in runs):
            sys.exit(1)


def _status(sweep: Path, width: int, lines: int | None) -> Group:
    runs = _runs(sweep)
    tasks, remark = _tasks(_output(sweep))
    left = None if lines is None else lines - sum(-(-len(text) // width) for text in remark)
    return Group(*remark, status_table(run_states(runs, tasks), _name(sweep), width, left))


def _tasks(output: Path) -> tuple[dict[str, Task] | None, list[str]]:
    """Slurm's tasks; without an answer None, and a remark on it."""
    try:
        return queued_tasks(output), []
    except SlurmError as error:
        return None, [f"{error}; states are from the run folders alone"]


def _results(sweep: Path) -> Path:
    """Where tables and plots go; sweeps that share runs don't share these."""
    folder = _output(sweep) / "results" / _name(sweep)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _runs(sweep: Path) -> list[Run]:
    """Runs of the sweep file, or all in an output folder."""
    if sweep.is_dir():
        return read_runs(sweep.resolve())
    spec = read_spec(sweep)
    return read_runs(spec.output, spec.name)


def _output(sweep: Path) -> Path:
    """The output folder, given itself or the sweep file."""
    return sweep.resolve() if sweep.is_dir() else read_spec(sweep).output


def _name(sweep: Path) -> str:
    """What a sweep file calls its sweep, or the name of an output folder."""
    return sweep.resolve().name if sweep.is_dir() else read_spec(sweep).name


def _selected(runs: Sequence[Run], patterns: Sequence[str]) -> list[Run]:
    """Runs whose name matches one of the patterns; all without patterns."""
    for pattern in patterns:
        if not any(fnmatchcase(run.name, pattern) for run in runs):
            raise ValueError(
                f"no run is called {pattern}; there are: {' '.join(r.name for r in runs)}"
            )
    return [r for r in runs if not patterns or any(fnmatchcase(r.name, p) for p in patterns)]


def _jobs(options: argparse.Namespace, spec: Spec) -> int | None:
    """Runs at a time on this machine, None for Slurm."""
    if not options.local:
        if options.jobs is not None:
            raise ValueError("--jobs is for --local; under Slurm it is resources.max_running")
        return None
    jobs = 1 if options.jobs is None else options.jobs
    check_room(spec.resources, jobs)
    return jobs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lighthouse.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        command = commands.add_parser(name)
        command.add_argument("sweep", type=Path, metavar="SWEEP")
        command.set_defaults(command=function)
        return command

    add("plan", plan_command)
    submit = add("submit", submit_command)
    submit.add_argument(
        "--dry-run", action="store_true", help="print the plan and the batch script, send nothing"
    )
    resume = add("resume", resume_command)
    status = add("status", status_command)
    status.add_argument(
        "--watch", nargs="?", type=float, const=10.0, metavar="SECONDS", help="refresh; 10 s"
    )
    status.add_argument("--all", action="store_true", help="a line for every run")
    cancel = add("cancel", cancel_command)
    add("collect", collect_command)
    add("plot", plot_command)
    for command in (resume, cancel):
        command.add_argument("runs", nargs="*", metavar="RUN", help="names; all without any")
    for command in (submit, resume):
        command.add_argument("--local", action="store_true", help="run here, without Slurm")
        command.add_argument("-j", "--jobs", type=int, help="with --local: runs at a time; 1")
    return parser


if __name__ == "__main__":
    main()
