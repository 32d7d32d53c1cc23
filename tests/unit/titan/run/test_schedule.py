"""Learning rates of stages, against numbers by hand, and through a checkpoint."""

from typing import Any

import pytest
import torch
from torchtitan.components.lr_scheduler import LRSchedulersContainer, build_lr_schedulers
from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.config import JobConfig

from lighthouse.titan.config.stage_tables import settle
from lighthouse.titan.config.stages import Stages
from lighthouse.titan.run.schedule import follow_stages, set_rates, staged

LR = 0.5


def job_of(*tables: dict[str, Any], **schedule: Any) -> JobConfig:
    job = JobConfig()
    job.stages = [{"attention": "dense"} | table for table in tables]
    job.training.steps = sum(table["steps"] for table in tables)
    for key, value in ({"warmup_steps": 0} | schedule).items():
        setattr(job.lr_scheduler, key, value)
    settle(job)
    return job


def schedulers_of(job: JobConfig) -> LRSchedulersContainer:
    weight = torch.nn.Linear(1, 1)
    optimizers = OptimizersContainer([weight], torch.optim.SGD, {"lr": LR})
    schedulers = build_lr_schedulers(optimizers, job.lr_scheduler, job.training.steps)
    follow_stages(schedulers, Stages.of(job))
    return schedulers


def rates(schedulers: LRSchedulersContainer, steps: int) -> list[float]:
    """Over LR, of so many steps to come."""
    found = []
    for _ in range(steps):
        (scheduler,) = schedulers.schedulers
        (group,) = scheduler.optimizer.param_groups
        assert scheduler.get_last_lr() == [group["lr"]]
        found.append(group["lr"] / LR)
        schedulers.optimizers.step() if hasattr(schedulers, "optimizers") else None
        schedulers.step()
    return found


@pytest.mark.parametrize(
    ("tables", "schedule", "expected"),
    [
        ([{"steps": 2}, {"steps": 2, "lr_factor": 0.5}], {"decay_ratio": 0.0}, [1, 1, 0.5, 0.5]),
        ([{"steps": 2, "lr_factor": 0}, {"steps": 1}], {"decay_ratio": 0.0}, [0, 0, 1]),
        (
            [{"steps": 1}, {"steps": 4, "lr_factor": 3, "warmup_steps": 4}],
            {"decay_ratio": 0.0},
            [1, 1.5, 2, 2.5, 3],
        ),
        # From zero where there is nothing before; the run's own warmup is in the target.
        ([{"steps": 2, "warmup_steps": 2}, {"steps": 1}], {"decay_ratio": 0.0}, [0.5, 1, 1]),
        # Stages of one step, each of them a warmup.
        (
            [{"steps": 1, "lr_factor": f, "warmup_steps": 1} for f in (1, 2, 4)],
            {"decay_ratio": 0.0},
            [1, 2, 4],
        ),
        ([{"steps": 2}, {"steps": 4}], {"decay_from_stage": 2}, [1, 1, 1, 0.75, 0.5, 0.25]),
        (
            [{"steps": 2, "lr_factor": 0.5}, {"steps": 2, "warmup_steps": 1}],
            {"decay_from_stage": 2, "min_lr_factor": 0.5},
            [0.5, 0.5, 1, 0.75],
        ),
        ([{"steps": 2}, {"steps": 2}], {"warmup_steps": 4}, [0.25, 0.5, 0.75, 1]),
        # A decay from the first stage comes after the warmup.
        ([{"steps": 4}], {"decay_from_stage": 1, "warmup_steps": 2}, [0.5, 1, 1, 0.5]),
    ],
)
def test_by_hand(
    tables: list[dict[str, Any]], schedule: dict[str, Any], expected: list[float]
) -> None:
    job = job_of(*tables, **schedule)
    assert rates(schedulers_of(job), job.training.steps) == pytest.approx(expected)


def test_a_warmup_starts_from_what_a_decay_has_reached() -> None:
    stages = Stages.of(job_of({"steps": 2}, {"steps": 2, "lr_factor": 2, "warmup_steps": 2}))
    half_each_step = [staged(lambda done: 0.5**done, stages, done) for done in range(4)]
    assert half_each_step == pytest.approx([1, 0.5, 0.5, 0.25])


def test_without_stages_nothing_is_touched() -> None:
    job = JobConfig()
    schedulers = schedulers_of(job)
    before = schedulers.schedulers[0].lr_lambdas
    set_rates(schedulers)
    follow_stages(schedulers, Stages.of(job))
    assert schedulers.schedulers[0].lr_lambdas is before


def test_a_resume_has_the_rates_of_the_stages_as_they_are_now() -> None:
    was = schedulers_of(job_of({"steps": 2}, {"steps": 2}, decay_ratio=0.0))
    rates(was, 2)
    now = job_of({"steps": 2}, {"steps": 2, "lr_factor": 0.25}, decay_ratio=0.0)
    resumed = schedulers_of(now)
    state = was.state_dict()
    assert state.keys() == resumed.state_dict().keys()
    assert state["lr_lambdas"] == resumed.state_dict()["lr_lambdas"] == [{}]
    resumed.load_state_dict(state)
    set_rates(resumed)
    assert rates(resumed, 2) == pytest.approx([0.25, 0.25])
