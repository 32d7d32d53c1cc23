"""What stands between documents and packed sequences: one protocol, and documents as tokens."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import datasets
import numpy as np
from datasets.distributed import split_dataset_by_node
from torchtitan.components.tokenizer import BaseTokenizer

from lighthouse.titan.data.moved import Moved
from lighthouse.titan.data.tokenizer import ByteTokenizer


class DocumentStream(Protocol):
    """The documents of a share of the text, epoch by epoch."""

    def read(self, epoch: int, place: Any) -> Iterator[tuple[str, Any]]:
        """The documents of an epoch behind a place, None for its start, each with that behind it.

        A place is small, can be pickled, and is not changed afterwards.
        """
        ...

    def moved(
        self, epoch: int, place: Any, sources: Sequence[Sequence[Moved]]
    ) -> tuple[int, Any, bool]:
        """The epoch and place to go on from, of a place in what the text was.

        Args:
            sources: for each source of the stream, what has become of each one that there was.

        Returns:
            Also whether the document behind the place is the one that it was.
        """
        ...


class TokenStream(Protocol):
    """As `DocumentStream`, with the tokens of each of a document's texts."""

    def read(self, epoch: int, place: Any) -> Iterator[tuple[list[np.ndarray], Any]]: ...

    def moved(
        self, epoch: int, place: Any, sources: Sequence[Sequence[Moved]]
    ) -> tuple[int, Any, bool]: ...


class OrderedDocuments:
    """Documents of the ``datasets`` library, in the same order in each epoch.

    Args:
        text_of: the text of a sample.
        dp_rank, dp_world_size: which share to read; shares do not overlap.
    """

    def __init__(
        self,
        documents: datasets.IterableDataset,
        text_of: Callable[[dict[str, Any]], str],
        dp_rank: int,
        dp_world_size: int,
    ) -> None:
        self._documents = split_dataset_by_node(documents, dp_rank, dp_world_size)
        self._text_of = text_of

    def read(self, epoch: int, place: Any) -> Iterator[tuple[str, Any]]:
        # Always said, also with None: `datasets` would begin the next epoch where it resumed.
        self._documents.load_state_dict(place)
        for sample in self._documents:
            # Taken now, because before its first sample `datasets` does not report the state
            # that it was given, and a second resume would then start over.
            yield self._text_of(sample), self._documents.state_dict()

    def moved(
        self, epoch: int, place: Any, sources: Sequence[Sequence[Moved]]
    ) -> tuple[int, Any, bool]:
        return epoch, *sources[0][0].ordered(place)


class Encoded:
    """The tokens of documents, each text between a bos and an eos token.

    Args:
        texts_of: the texts that a document's text gives, a function of it alone.
        tokenizer: a `ByteTokenizer` is used through buffer copies, any other through `encode`.
    """

    def __init__(
        self,
        documents: DocumentStream,
        texts_of: Callable[[str], Sequence[str]],
        tokenizer: BaseTokenizer,
    ) -> None:
        self._documents = documents
        self._texts_of = texts_of
        self._tokenizer = tokenizer

    def read(self, epoch: int, place: Any) -> Iterator[tuple[list[np.ndarray], Any]]:
        for text, behind in self._documents.read(epoch, place):
            yield [encoded(self._tokenizer, part) for part in self._texts_of(text)], behind

    def moved(
        self, epoch: int, place: Any, sources: Sequence[Sequence[Moved]]
    ) -> tuple[int, Any, bool]:
        return self._documents.moved(epoch, place, sources)


def encoded(tokenizer: BaseTokenizer, text: str) -> np.ndarray:
    """The tokens of a document, those around it included."""
    if isinstance(tokenizer, ByteTokenizer):
        return tokenizer.encode_array(text, add_bos=True, add_eos=True)
    return np.asarray(tokenizer.encode(text, add_bos=True, add_eos=True), dtype=np.int64)
