"""Counts of what was not read as it stands in the files, over a loader's worker processes."""

import torch
import torch.distributed as dist
from torch.utils.data import get_worker_info

SKIPPED, MENDED = "skipped_rows", "broken_utf8_rows"
PADDING, FULL = "padding_tokens", "sequences_full_of_documents"
LEFT, PAIRS = "pairs_in_documents", "pairs_in_sequences"
OF_ROWS = (SKIPPED, MENDED)
OF_DOCUMENTS = (PADDING, FULL, LEFT, PAIRS)


class Tally:
    """Rows skipped, and texts with broken UTF-8, since the process began to read.

    Args:
        workers: of the loader; each counts in memory of its own that all share.
        names: of what is counted.
    """

    def __init__(self, workers: int, names: tuple[str, ...] = OF_ROWS) -> None:
        self._names = names
        self._counts = torch.zeros(max(1, workers), len(names), dtype=torch.int64).share_memory_()

    def add(self, name: str, many: int = 1) -> int:
        """Count one or more, in a worker or without; returns this process's count."""
        worker = get_worker_info()
        count = self._counts[0 if worker is None else worker.id, self._names.index(name)]
        count += many
        return int(count)

    def totals(self) -> dict[str, int]:
        """Of all workers."""
        return dict(zip(self._names, self._counts.sum(0).tolist(), strict=True))

    def metrics(self, device: torch.device, batch_degree: int) -> dict[str, int]:
        """Of all ranks; a collective.

        Args:
            batch_degree: ranks that read text of their own; the others read the same again.
        """
        counts = self._counts.sum(0).to(device)
        dist.all_reduce(counts)
        counts //= dist.get_world_size() // batch_degree
        return {f"data/{n}": count for n, count in zip(self._names, counts.tolist(), strict=True)}


class PairsLeft:
    """Which share of the pairs of causal attention documents leave, from one look to the next."""

    def __init__(self) -> None:
        self._left = self._pairs = 0
        self._share = 1.0

    def share(self, tally: Tally) -> float:
        """Of what this rank has read since the last look; as before if that is nothing."""
        totals = tally.totals()
        left, pairs = totals[LEFT] - self._left, totals[PAIRS] - self._pairs
        if pairs:
            self._left, self._pairs = totals[LEFT], totals[PAIRS]
            self._share = left / pairs
        return self._share
