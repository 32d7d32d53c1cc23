"""What a training step costs: seconds and bytes on one GPU."""

from dataclasses import dataclass, field

from lighthouse.cost.memory import host_memory, memory
from lighthouse.cost.rates import Rates
from lighthouse.cost.seconds import seconds
from lighthouse.cost.sizes import Layout, Model, Work


@dataclass(frozen=True)
class Cost:
    """Of one step on one GPU: seconds and bytes by part, and bytes of its host."""

    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    host_bytes: float = 0.0

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def peak_bytes(self) -> float:
        return sum(self.memory.values())


def cost(model: Model, layout: Layout, work: Work, rates: Rates) -> Cost:
    """Seconds and bytes of a step on each GPU, by part."""
    return Cost(
        seconds(model, layout, work, rates),
        memory(model, layout, work, rates),
        host_memory(model, layout, work),
    )
