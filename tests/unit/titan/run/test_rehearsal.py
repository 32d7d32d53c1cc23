"""One discarded step of each stage."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchtitan.config import JobConfig

from lighthouse.titan.config.stages import Stage, Stages
from lighthouse.titan.run.rehearsal import is_wanted, rehearse

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("told", "stages", "device", "pipeline", "wanted"),
    [
        (None, 2, CPU, 1, False),
        (None, 2, GPU, 1, True),
        (None, 1, GPU, 1, False),
        (False, 2, GPU, 1, False),
        (True, 1, CPU, 1, True),
        (True, 2, GPU, 2, False),
    ],
)
def test_where_it_is_done(
    told: bool | None, stages: int, device: torch.device, pipeline: int, wanted: bool
) -> None:
    job = JobConfig()
    job.training.rehearse_stages = told
    job.parallelism.pipeline_parallel_degree = pipeline
    assert is_wanted(job, stages, device) == wanted


class FakeTrainer:
    """One weight; notes the shapes that it is given."""

    def __init__(self) -> None:
        self.job_config = JobConfig()
        self.job_config.training.seq_len = 16
        self.job_config.stages = [
            {"steps": 1, "attention": "dense", "seq_len": 8, "local_batch_size": 3},
            {"steps": 1, "attention": "dense"},
        ]
        self.device = CPU
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.optimizer = torch.optim.AdamW([self.weight])
        self.shapes: list[tuple[int, ...]] = []
        self.resets = 0
        memory = SimpleNamespace(reset_peak_stats=self._reset)
        self.metrics_processor = SimpleNamespace(device_memory_monitor=memory)

    def _reset(self) -> None:
        self.resets += 1

    @property
    def optimizers(self) -> Any:
        class Optimizers(list):
            def zero_grad(self) -> None:
                for optimizer in self:
                    optimizer.zero_grad()

        return Optimizers([self.optimizer])

    def forward_backward_step(
        self, *, input_dict: dict[str, Any], labels: Any, global_valid_tokens: torch.Tensor
    ) -> None:
        tokens = input_dict["input"]
        assert tokens.shape == labels.shape and not tokens.any()
        assert global_valid_tokens == math.prod(tokens.shape)
        self.shapes.append(tuple(tokens.shape))
        torch.rand(3)
        self.weight.sum().backward()


def test_all_is_as_it_was() -> None:
    trainer, begun = FakeTrainer(), list[Stage]()
    stages = list(Stages.of(trainer.job_config))
    random_numbers = torch.get_rng_state()
    rehearse(trainer, stages, begun.append)
    assert begun == stages and trainer.shapes == [(3, 8), (8, 16)]
    assert torch.equal(torch.get_rng_state(), random_numbers)
    assert trainer.weight.grad is None and trainer.weight.tolist() == [1, 1]
    assert not trainer.optimizer.state and trainer.resets == 1


def test_what_fails_names_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = FakeTrainer()

    def fail(stage: Stage) -> None:
        trainer.weight = None if stage.number == 2 else trainer.weight

    with pytest.raises(AttributeError) as error:
        rehearse(trainer, list(Stages.of(trainer.job_config)), fail)
    (note,) = error.value.__notes__
    assert note.startswith("in the rehearsal of stage 2 (dense attention, sequences of 16 tokens)")
