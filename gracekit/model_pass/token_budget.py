"""How much fits into memory: batches shrink when it runs out and slowly grow again."""

from __future__ import annotations

import gc

import torch

FIRST_PATIENCE = 32
"""Good batches after which a larger one is tried; doubled at each failure."""
GROWTH = 1.25


class TokenBudget:
    """Most padded tokens of a batch."""

    def __init__(self, most: int) -> None:
        self.tokens = self._most = most
        self._good, self._patience = 0, FIRST_PATIENCE

    def failed(self, padded_tokens: int) -> None:
        """A batch of so many padded tokens did not fit: half of it at most from now on."""
        self.tokens = max(1, min(self.tokens, padded_tokens) // 2)
        self._good, self._patience = 0, 2 * self._patience

    def succeeded(self) -> None:
        """A batch fitted."""
        self._good += 1
        if self.tokens < self._most and self._good >= self._patience:
            self.tokens = min(self._most, int(self.tokens * GROWTH) + 1)
            self._good = 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or elsewhere."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text or "not enough memory" in text or "out of memory" in text
    )


def free_memory() -> None:
    """Give back what a failed batch left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
