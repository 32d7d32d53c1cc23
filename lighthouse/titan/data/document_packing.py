"""Documents packed into sequences in which attention ends where a document ends."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import default_collate

from lighthouse.config import LighthouseConfig
from lighthouse.documents import places_for
from lighthouse.titan.config.stages import Stage, Stages
from lighthouse.titan.data.packing import PackedSequence, PackedTextDataset
from lighthouse.titan.data.tally import FULL, LEFT, PADDING, PAIRS, Tally
from lighthouse.titan.data.token_streams import TokenStream
from lighthouse.titan.llama3.chunked_loss import IGNORE_INDEX
from lighthouse.titan.llama3.model_args import model_args_of

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

_TOKENS_PER_DOCUMENT = 256
"""That there is room for at least, unless ``training.max_documents`` is set."""


@dataclass(frozen=True)
class Packing:
    """How documents stand in a sequence.

    Attributes:
        seq_len: tokens of a sequence.
        multiple: documents begin at multiples of it, behind padding.
        most: documents of a sequence; the rest of one that has as many is padding.
        keep_end_label: whether the label of a document's last token is the next one's first token;
            otherwise there is none.
        restart_positions: whether each document's positions begin with 0.
    """

    seq_len: int
    multiple: int
    most: int
    keep_end_label: bool
    restart_positions: bool

    @classmethod
    def of(cls, job_config: "JobConfig", stages: Iterable[Stage], seq_len: int) -> "Packing":
        """That of sequences which each of these stages can take."""
        training = job_config.training
        layers = model_args_of(job_config).n_layers
        widths = {
            config.coarsest_width
            for stage in stages
            for config in stage.layers(job_config, layers)
            if isinstance(config, LighthouseConfig)
        }
        return cls(
            seq_len=seq_len,
            multiple=math.lcm(*widths),
            most=training.max_documents or -(-seq_len // _TOKENS_PER_DOCUMENT),
            keep_end_label=training.document_end_label == "keep",
            restart_positions=training.document_positions == "restart",
        )

    @classmethod
    def of_training(cls, job_config: "JobConfig", stage: Stage) -> "Packing":
        """That of the sequences which a run reads in a stage.

        One whose stages are no list reads all alike.
        """
        stages = Stages.of(job_config)
        read = stage if stages.listed else stages.at(1)
        return cls.of(job_config, [read], read.seq_len)

    def inputs(self, tokens_N: np.ndarray, starts: list[int]) -> dict[str, torch.Tensor]:
        """What the model is called with: tokens and positions int64 (N,), starts int32 (M,).

        The starts are what its forward calls ``attention_masks``. Without ``positions`` they are
        those in the sequence.
        """
        starts_M = np.full(self.most, self.seq_len, dtype=np.int32)
        starts_M[: len(starts)] = starts
        arrays = {"input": tokens_N, "attention_masks": starts_M}
        if self.restart_positions:
            token_N = np.arange(self.seq_len)
            document_N = np.searchsorted(starts, token_N, side="right") - 1
            arrays["positions"] = token_N - np.asarray(starts)[document_N]
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


class SeparateDocuments(PackedTextDataset):
    """As its base, but a token belongs to one sequence alone, and documents are told apart.

    Each of a document's texts is one of its own, and so is, in the next sequence, what one has left
    where a sequence ends. Padding repeats a document's last token, is its end, and has no label.

    Args:
        tally: counts what its ``OF_DOCUMENTS`` names.

    Yields:
        (``packing.inputs``, label int64 (seq_len,)).
    """

    def __init__(
        self, tokens: TokenStream, packing: Packing, share: str, infinite: bool, tally: Tally
    ) -> None:
        super().__init__(tokens, packing.seq_len, share, infinite)
        self._packing = packing
        self._tally = tally

    def _sequences(self, last_token: int | None) -> Iterator[PackedSequence]:
        del last_token  # of a sequence without a border
        packer = Packer(self._packing, self._tally)
        for texts, epoch, source, offset in self._documents():
            begin = 0
            for tokens in texts:
                for behind, sequence in packer.add(tokens, max(0, offset - begin)):
                    self._state = _place(epoch, source, begin + behind)
                    yield sequence
                begin += len(tokens)


def _place(epoch: int, source: Any, offset: int) -> dict[str, Any]:
    return {"epoch": epoch, "source": source, "offset": offset, "last_token": None}


def _pairs(lengths: np.ndarray) -> int:
    """Of a query and a key in causal attention."""
    return int((lengths * (lengths + 1)).sum()) // 2


class Packer:
    """Puts documents into sequences, one behind the other.

    Args:
        tally: counts what its ``OF_DOCUMENTS`` names.
    """

    def __init__(self, packing: Packing, tally: Tally) -> None:
        self._packing, self._tally = packing, tally
        self._sequence = _Sequence(packing)

    def add(self, tokens: np.ndarray, offset: int = 0) -> Iterator[tuple[int, PackedSequence]]:
        """Add a document from a token on; yields what it completes, and its first token that isn't
        in there."""
        inside = False
        while offset < len(tokens):
            if not self._sequence.has_room(inside):
                # Not before: the label of the last token is the next one.
                yield offset, self._sequence.finished(int(tokens[offset]), self._tally)
                self._sequence, inside = _Sequence(self._packing), False
            offset += self._sequence.add(tokens, offset, inside)
            inside = True


class _Sequence:
    """One that is being filled."""

    def __init__(self, packing: Packing) -> None:
        self._packing = packing
        self._tokens = np.empty(packing.seq_len, dtype=np.int64)
        self._labels = np.full(packing.seq_len, IGNORE_INDEX, dtype=np.int64)
        self._starts: list[int] = []
        self._filled = 0
        self._padding = 0

    def has_room(self, inside: bool) -> bool:
        """For a token of the last document, or of another."""
        if inside:
            return self._filled < self._packing.seq_len
        return self._next_start < self._packing.seq_len and len(self._starts) < self._packing.most

    @property
    def _next_start(self) -> int:
        return -(-self._filled // self._packing.multiple) * self._packing.multiple

    def add(self, tokens: np.ndarray, offset: int, inside: bool) -> int:
        """As many tokens of a document as there is room for; returns how many."""
        if not inside:
            self._end_document(int(tokens[offset]))
            self._pad(self._next_start)
            self._starts.append(self._filled)
        taken = min(self._packing.seq_len - self._filled, len(tokens) - offset)
        labels = tokens[offset + 1 : offset + taken + 1]
        self._tokens[self._filled : self._filled + taken] = tokens[offset : offset + taken]
        self._labels[self._filled : self._filled + len(labels)] = labels
        self._filled += taken
        return taken

    def _end_document(self, next_token: int) -> None:
        if self._filled and self._packing.keep_end_label:
            self._labels[self._filled - 1] = next_token

    def _pad(self, end: int) -> None:
        if end > self._filled:
            self._tokens[self._filled : end] = self._tokens[self._filled - 1]
            self._padding += end - self._filled
            self._filled = end

    def finished(self, next_token: int, tally: Tally) -> PackedSequence:
        """The sequence, padded to its end."""
        if self._next_start < self._packing.seq_len:
            tally.add(FULL)
        self._end_document(next_token)
        self._pad(self._packing.seq_len)
        tally.add(PADDING, self._padding)
        lengths = np.diff(self._starts, append=self._packing.seq_len).astype(np.int64)
        tally.add(LEFT, _pairs(lengths))
        tally.add(PAIRS, _pairs(np.array([self._packing.seq_len])))
        inputs = self._packing.inputs(self._tokens, self._starts)
        return inputs, torch.from_numpy(self._labels)


def batch_of(rows: list[PackedSequence]) -> PackedSequence:
    """A batch with as many places for documents as these rows need."""
    inputs, labels = default_collate(rows)
    starts_BM = inputs["attention_masks"]
    documents = int((starts_BM < labels.shape[1]).sum(dim=1).max())
    places = places_for(documents, starts_BM.shape[1])
    inputs["attention_masks"] = starts_BM[:, :places].contiguous()
    return inputs, labels


def one_document(packing: Packing, rows: int) -> dict[str, torch.Tensor]:
    """A batch of which each row is one long document: the most that attention can have to do."""
    inputs = packing.inputs(np.zeros(packing.seq_len, dtype=np.int64), [0])
    return {name: x.expand(rows, -1).contiguous() for name, x in inputs.items()}
