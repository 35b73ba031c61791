"""What is closed at the end of a `with` block. Knows nothing of what that means."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

__all__ = ["Closing"]


class Closing(ABC):
    """A context manager by its `close`, which may be called before the block's end too."""

    @abstractmethod
    def close(self) -> object:
        """What is to be done at the end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
