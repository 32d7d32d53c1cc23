"""The inputs of checkpointed blocks in host memory, from a block's forward to its backward.

Under full activation checkpointing a block keeps its input alone. Here that leaves the device
beside the block's own computation, and comes back beside the backward of the block behind it. So of
all blocks the inputs of two are on the device at a time, and the values are the very same.
"""

import mmap
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

Mark = torch.cuda.Event | None
"""The end of a copy; None of one that has ended."""


class Copies(Protocol):
    """How bytes move between a device and its host."""

    def host_memory(self, size: int, instead_of: Tensor | None) -> Tensor:
        """uint8 (size,) to copy to and from, in the place of what was too small."""
        ...

    def begin(self, source: Tensor, target: Tensor) -> Mark:
        """Begin a copy, behind what the device has been given to compute so far and behind earlier
        copies."""
        ...

    def wait(self, mark: Mark) -> None:
        """Let what the device is given to compute from now on wait for the end of a copy."""
        ...


class CopiesOnHost:
    """Where the device is the host: at once."""

    def host_memory(self, size: int, instead_of: Tensor | None) -> Tensor:
        del instead_of
        return torch.empty(size, dtype=torch.uint8)

    def begin(self, source: Tensor, target: Tensor) -> Mark:
        target.copy_(source)
        return None

    def wait(self, mark: Mark) -> None:
        del mark


class CopiesOfGPU:
    """On a stream of their own, to and from pinned memory.

    Whole pages are pinned in place: PyTorch's allocator of pinned memory would round each size up
    to a power of two.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pinned: dict[int, weakref.finalize[..., Any]] = {}

    def host_memory(self, size: int, instead_of: Tensor | None) -> Tensor:
        if instead_of is not None:
            self._stream.synchronize()
            self._pinned.pop(instead_of.data_ptr())()
        memory = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
        place = memory.data_ptr()
        error = int(torch.cuda.cudart().cudaHostRegister(place, size, 0))
        if error:
            raise RuntimeError(
                f"activation_checkpoint.offload = true: {size / 2**30:.1f} more GiB of host memory "
                f"can't be pinned (cudaHostRegister: error {error})"
            )
        # Pages that are given back while pinned would make whatever takes their place unusable.
        unpin = self._pinned[place] = weakref.finalize(self, _unpin, memory)
        unpin.atexit = False  # the process gives back all
        return memory

    def begin(self, source: Tensor, target: Tensor) -> Mark:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            return self._stream.record_event()

    def wait(self, mark: Mark) -> None:
        if mark is not None:
            torch.cuda.current_stream(self._device).wait_event(mark)


def _unpin(memory: Tensor) -> None:
    runtime: Any = torch.cuda.cudart()
    torch.cuda.synchronize()  # copies that are under way
    torch.cuda.check_error(int(runtime.cudaHostUnregister(memory.data_ptr())))


@dataclass(eq=False)
class _Input:
    """A block's input in one forward.

    Attributes:
        number: of the block, from 0.
        on_host: its bytes, shaped as it was; None where it stays on the device.
        on_device: the input there, and the end of the copy to it; None before it is sent for.
    """

    number: int
    on_host: Tensor | None
    on_device: tuple[Tensor, Mark] | None = None


class BlockInputs:
    """The inputs of the blocks of a model, which run one after the other.

    The last one stays on the device, which needs it at once. Memory of the device is given back
    only once its computation waits for the copies from and to it. So that memory is used again in
    the order of the computation, however far ahead of it the host is.

    Args:
        copies: between the device and its host.
        blocks: how many.
    """

    def __init__(self, copies: Copies, blocks: int) -> None:
        self._copies = copies
        self._memory: list[Tensor | None] = [None] * blocks
        self._newest: list[_Input | None] = [None] * blocks
        self._leaving: tuple[Tensor, Mark] | None = None

    def keep(self, number: int, x: Tensor) -> _Input:
        """Begin to move the input of a block that is about to run, contiguous, to the host.

        The block will wait until the input of the one before it has left the device.
        """
        x = x.detach()
        if self._leaving is not None:
            self._copies.wait(self._leaving[1])
            self._leaving = None
        if number == len(self._memory) - 1:
            return _Input(number, None, (x, None))
        size = x.numel() * x.element_size()
        memory = self._memory[number]
        if memory is None or memory.numel() < size:
            memory = self._memory[number] = self._copies.host_memory(size, memory)
        on_host = memory[:size].view(x.dtype).view(x.shape)
        self._leaving = x, self._copies.begin(x, on_host)
        self._newest[number] = kept = _Input(number, on_host)
        return kept

    def fetch(self, kept: _Input, device: torch.device) -> Tensor:
        """The input, for the block's backward; that of the block before it is sent for.

        Raises:
            RuntimeError: the block has run forward again since.
        """
        if kept.on_host is not None and self._newest[kept.number] is not kept:
            raise RuntimeError(
                f"the input of block {kept.number} is lost: the block ran forward again before its "
                "backward, and activation_checkpoint.offload = true keeps that of one forward"
            )
        if kept.on_device is None:
            self._send_for(kept, device)
        assert kept.on_device is not None
        x, arrived = kept.on_device
        if kept.on_host is not None:
            kept.on_device = None  # autograd holds it from here on
        self._copies.wait(arrived)
        before = self._newest[kept.number - 1] if kept.number else None
        if before is not None and before.on_device is None:
            self._send_for(before, device)
        return x

    def _send_for(self, kept: _Input, device: torch.device) -> None:
        assert kept.on_host is not None
        x = torch.empty_like(kept.on_host, device=device)
        kept.on_device = x, self._copies.begin(kept.on_host, x)


def offloaded(forward: Callable[..., Tensor], inputs: BlockInputs, number: int) -> Any:
    """A checkpointed block's forward that leaves its input, the first argument, to ``inputs``.

    Autograd saves that input, or a view of all of it, and what is not this block's alone: weights
    and positions, which stay where they are.
    """

    def run(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(x, *args, **kwargs)
        if not x.is_contiguous():
            raise RuntimeError(f"the input of block {number} is not contiguous: {x.stride()}")
        kept, device = inputs.keep(number, x), x.device
        # Autograd keeps both functions below as long as what they packed: they must not hold x.
        of_input = x.data_ptr(), x.numel(), x.dtype
        packed = False

        def pack(saved: Tensor) -> Any:
            nonlocal packed
            if (saved.data_ptr(), saved.numel(), saved.dtype) == of_input:
                packed = True
                return kept, saved.size(), saved.stride()
            return saved

        def unpack(saved: Any) -> Tensor:
            if isinstance(saved, Tensor):
                return saved
            kept, size, stride = saved
            return inputs.fetch(kept, device).as_strided(size, stride)

        with saved_tensors_hooks(pack, unpack):
            out = forward(x, *args, **kwargs)
        if not packed:  # something else is kept, on the device
            raise RuntimeError(f"block {number} is not one that keeps its input for backward")
        return out

    return run


def apply_offload(model: Any, job_config: "JobConfig", device: torch.device) -> None:
    """Offload the inputs of a Transformer's blocks, if the job asks for it.

    Blocks are checkpointed, compiled and wrapped by FSDP already: what is replaced is the innermost
    call outside of compiled code, so FSDP's hooks run around it, and names of parameters stay.
    """
    if job_config.activation_checkpoint.offload:
        copies = CopiesOnHost() if device.type == "cpu" else CopiesOfGPU(device)
        blocks: list[nn.Module] = list(model.layers.values())
        inputs = BlockInputs(copies, len(blocks))
        for number, block in enumerate(blocks):
            block.forward = offloaded(block.forward, inputs, number)
