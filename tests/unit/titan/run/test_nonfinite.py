"""What is not finite: which update is withheld, when the host learns of it, and what ends the run.

Two processes and a whole run are in tests/integration/test_nonfinite.py.
"""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lighthouse.refusal import Diverged
from lighthouse.runs.folder import diverged
from lighthouse.titan.run.nonfinite import MOST_IN_A_ROW, SKIPPED, UpdateGuard, nonfinite_weights

FINE, NAN, INF = torch.tensor(1.0), torch.tensor(math.nan), torch.tensor(math.inf)


@pytest.fixture
def make(tmp_path: Path):
    """A guard of one process, its model and its optimizer."""
    from torchtitan.config import JobConfig

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def build(nonfinite: str = "stop", implementation: str = "fused"):
        torch.manual_seed(0)
        job = JobConfig()
        job.job.dump_folder, job.training.nonfinite = str(tmp_path), nonfinite
        model = nn.Linear(3, 2)
        chosen = {} if implementation == "for-loop" else {implementation: True}
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, **chosen)
        trainer = SimpleNamespace(
            model_parts=[model],
            optimizers=[optimizer],
            checkpointer=SimpleNamespace(enable=False),
        )
        return UpdateGuard(trainer, job), model, optimizer

    yield build
    dist.destroy_process_group()


def step_of(guard, model, optimizer, step: int, loss=FINE, grad_norm=FINE, grad=0.5) -> None:
    optimizer.zero_grad()
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, grad)
    guard.before_update(step, [FINE, loss], grad_norm)
    optimizer.step()


def state_of(model, optimizer) -> list[torch.Tensor]:
    moments = [value for state in optimizer.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in (*model.parameters(), *moments)]


@pytest.mark.parametrize("bad", [{"loss": INF}, {"grad_norm": NAN, "grad": math.nan}])
def test_a_fused_optimizer_is_left_as_it_was(make, bad):
    guard, model, optimizer = make()
    step_of(guard, model, optimizer, 1)
    before = state_of(model, optimizer)
    step_of(guard, model, optimizer, 2, **bad)
    assert all(map(torch.equal, before, state_of(model, optimizer)))
    step_of(guard, model, optimizer, 3)  # the next one is taken
    assert not any(map(torch.equal, before[:2], model.parameters()))


@pytest.mark.parametrize("implementation", ["foreach", "for-loop"])
def test_another_one_gets_no_gradient(make, implementation):
    guard, model, optimizer = make(implementation=implementation)
    step_of(guard, model, optimizer, 1)
    step_of(guard, model, optimizer, 2, grad_norm=NAN, grad=math.nan)
    assert all(tensor.isfinite().all() for tensor in state_of(model, optimizer))


@pytest.mark.parametrize("implementation", ["fused", "foreach", "for-loop"])
def test_a_finite_update_is_the_same_to_the_bit(make, implementation):
    guard, model, optimizer = make(implementation=implementation)
    for step in (1, 2, 3):
        step_of(guard, model, optimizer, step, grad=1 / (step + 2))
    guarded = state_of(model, optimizer)
    guard, model, optimizer = make(implementation=implementation)
    guard.before_update = lambda *_: None
    for step in (1, 2, 3):
        step_of(guard, model, optimizer, step, grad=1 / (step + 2))
    assert all(map(torch.equal, guarded, state_of(model, optimizer)))


def test_the_run_ends_a_step_later_or_at_once(make, tmp_path):
    guard, model, optimizer = make()
    step_of(guard, model, optimizer, 4, loss=NAN)
    guard.check(4, at_once=False)
    said = "step 4: the loss is not finite, and its update was withheld; there is no checkpoint "
    for late in (False, True):
        with pytest.raises(Diverged, match=said):
            guard.check(5 - late, at_once=late)
    assert said in diverged(tmp_path)
    guard.begin([])
    assert diverged(tmp_path) is None


def test_steps_are_left_out_up_to_ten_in_a_row(make):
    guard, model, optimizer = make("skip")
    steps = iter(range(1, 100))
    for bad in [INF] * (MOST_IN_A_ROW - 1) + [FINE] + [NAN] * (MOST_IN_A_ROW - 1):
        step = next(steps)
        step_of(guard, model, optimizer, step, grad_norm=bad)
        guard.check(step, at_once=True)
    assert guard.metrics(step) == {SKIPPED: 2 * MOST_IN_A_ROW - 2}
    step_of(guard, model, optimizer, 20, grad_norm=NAN)
    with pytest.raises(Diverged, match=r"step 20: the gradient norm .* as those of 9 before it"):
        guard.check(20, at_once=True)


def test_weights_that_a_finite_update_has_broken_are_not_saved(make):
    guard, model, _ = make()
    guard.check_weights(1)
    assert guard.metrics(1) == {}
    model.weight.data[1, 2] = -math.inf
    assert nonfinite_weights([model]) == ["weight"]
    with pytest.raises(Diverged, match="step 7: weight is not finite after its update"):
        guard.check_weights(7)


def test_weights_that_were_accepted_are_saved_and_no_others(make):
    guard, model, _ = make()
    model.weight.data[1, 2] = math.nan
    guard.begin(nonfinite_weights([model]))
    guard.check_weights(7)
    model.bias.data[0] = math.nan
    with pytest.raises(Diverged, match="step 8: bias is not finite after its update"):
        guard.check_weights(8)
