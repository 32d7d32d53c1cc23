"""Documents packed into token sequences of any length, up to millions of tokens.

The state of a stream is a few hundred bytes, and a resumed one goes on at the very token.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.stateful import Stateful
from torch.utils.data import IterableDataset
from torchtitan.tools.logging import logger

from lighthouse.refusal import Refusal
from lighthouse.titan.data.moved import Moved
from lighthouse.titan.data.token_streams import TokenStream

PackedSequence = tuple[dict[str, torch.Tensor], torch.Tensor]
"""What the model is called with, and labels."""


class PackedTextDataset(IterableDataset, Stateful):
    """The tokens of documents, packed into sequences without a gap.

    Sequence i holds tokens i*seq_len .. (i+1)*seq_len of the rank's stream: the label of its last
    token is the first token of the next one, and every token but the first is a label once per
    epoch.

    A fresh iterator starts at the beginning of the stream, unless `load_state_dict` came before it.

    Args:
        tokens: of documents.
        seq_len: tokens per sequence.
        share: which part of the text this is, for messages.
        infinite: start over when the documents end; otherwise, which is validation, stop without
            the last, incomplete sequence.

    Yields:
        ({"input": int64 (seq_len,)}, label int64 (seq_len,)).

    Raises:
        Refusal: this rank or worker gets no tokens, or a finite stream has no complete sequence.
    """

    def __init__(
        self,
        tokens: TokenStream,
        seq_len: int,
        share: str,
        infinite: bool,
    ) -> None:
        self._tokens = tokens
        self._seq_len = seq_len
        self._share = share
        self._infinite = infinite
        self._state = _stream_start()
        self._resume = False
        self._moved: Sequence[Sequence[Moved]] | None = None

    def go_on_from(self, sources: Sequence[Sequence[Moved]]) -> None:
        """The state to be loaded next is of other text, another tokenizer, or other tasks.

        What is left of its document is passed over, and the next sequence begins with a document.

        Args:
            sources: for each source, what has become of each one that there was.
        """
        self._moved = sources

    def state_dict(self) -> dict[str, Any]:
        """Position after the latest sequence.

        `epoch`: passes over the documents finished; `source`: the stream's place before the current
        document, None at the start of a pass; `offset`: tokens of that document already
        used; `last_token`: the token that the next sequence begins with, None before the first.
        """
        return dict(self._state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = dict(state_dict)
        self._resume = True
        if self._moved is not None:
            self._state, self._moved = self._at_border(self._state, self._moved), None

    def _at_border(
        self, state: dict[str, Any], sources: Sequence[Sequence[Moved]]
    ) -> dict[str, Any]:
        epoch, source, same = self._tokens.moved(state["epoch"], state["source"], sources)
        inside = state["offset"] > 0 and same
        return _stream_start() | {
            "epoch": epoch,
            "source": source,
            "offset": sys.maxsize if inside else 0,  # behind the end of any document
        }

    def __iter__(self) -> Iterator[PackedSequence]:
        if not self._resume:
            self._state = _stream_start()
        self._resume = False
        return self._sequences(self._state["last_token"])

    def _sequences(self, last_token: int | None) -> Iterator[PackedSequence]:
        """Those behind the state, which is set before each is given out."""
        sequence = np.empty(self._seq_len + 1, dtype=np.int64)
        filled = 0
        if last_token is not None:
            sequence[0] = last_token
            filled = 1
        for texts, epoch, source, offset in self._documents():
            tokens = texts[0] if len(texts) == 1 else np.concatenate(texts)
            while offset < len(tokens):
                taken = min(len(sequence) - filled, len(tokens) - offset)
                sequence[filled : filled + taken] = tokens[offset : offset + taken]
                filled += taken
                offset += taken
                if filled == len(sequence):
                    last_token = int(sequence[-1])
                    self._state = {
                        "epoch": epoch,
                        "source": source,
                        "offset": offset,
                        "last_token": last_token,
                    }
                    pair = torch.from_numpy(sequence)
                    yield {"input": pair[:-1]}, pair[1:]
                    sequence = np.empty_like(sequence)
                    sequence[0] = last_token
                    filled = 1

    def _documents(self) -> Iterator[tuple[list[np.ndarray], int, Any, int]]:
        """Tokens of the texts of each document behind the state, with its epoch, the stream's place
        before it, and how many of the tokens are used already."""
        epoch, source, offset = (self._state[key] for key in ("epoch", "source", "offset"))
        while True:
            whole_epoch = source is None and offset == 0
            epoch_tokens = 0
            for texts, behind in self._tokens.read(epoch, source):
                epoch_tokens += sum(map(len, texts))
                yield texts, epoch, source, offset
                source, offset = behind, 0

            # Of a shuffled order the share is another one in each epoch, and may be empty once.
            if whole_epoch and epoch == 0 and epoch_tokens == 0:
                raise Refusal(
                    f"no text for {self._share}: use a dataset with at least as many documents as "
                    "data-parallel ranks and as many files as dataloader.num_workers"
                )
            if not self._infinite:
                if self._state == _stream_start():
                    raise Refusal(
                        f"validation.seq_len = {self._seq_len}: the dataset has only "
                        f"{epoch_tokens} tokens for {self._share}, {self._seq_len + 1} make one "
                        "sequence; use a smaller one, or more text"
                    )
                logger.info(f"The dataset has run out for {self._share}")
                return
            epoch += 1
            source = None
            if whole_epoch and epoch == 1 and epoch_tokens <= self._seq_len:
                logger.warning(
                    f"The whole dataset is {epoch_tokens} tokens for {self._share}, less than a "
                    f"sequence of {self._seq_len}: each sequence holds all of it, again and again"
                )
            if epoch & (epoch - 1) == 0:  # rarer and rarer
                logger.info(f"The dataset starts over for {self._share}: epoch {epoch}")


def places_in(state: Any) -> Iterator[dict[str, Any]]:
    """What `PackedTextDataset` says of itself, wherever torchdata keeps it, by its workers."""
    if isinstance(state, dict):
        if state.keys() >= _stream_start().keys():
            yield state
        else:
            for value in state.values():
                yield from places_in(value)


def _stream_start() -> dict[str, Any]:
    return {"epoch": 0, "source": None, "offset": 0, "last_token": None}
