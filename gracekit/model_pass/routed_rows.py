"""Layers that see a flat list of tokens, or a chosen part of them: which sample is a row of?

Some models fold samples and positions into one axis before a layer, and mixtures of experts send
each expert the tokens that were routed to it. The autograd graph of a layer's input tells how its
rows came about: views and gathers are followed back to the tensor of the whole batch, through
operations that treat every row alone. Anything else is not guessed at.

B samples, T positions, n rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from gracekit.model_pass.products import WideLinear

ROW_BY_ROW = frozenset(
    f"{name}Backward0"
    for name in (
        *("Add", "Sub", "Mul", "Div", "Neg", "Pow", "Exp", "Clamp", "Clone", "ToCopy"),
        *("Silu", "Gelu", "Relu", "Sigmoid", "Tanh", "NativeLayerNorm"),
    )
) | {f"{WideLinear.__name__}Backward"}
"""Nodes of the graph whose output has a row for each row of their input, computed from it alone."""
_VIEWS = ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0")
_SPLITS = ("SplitBackward0", "SplitWithSizesBackward0")
_ALONG_COLUMNS = (*_SPLITS, "CatBackward0", "SliceBackward0", "SoftmaxBackward0")
_PRODUCTS = {"MmBackward0": 0, "AddmmBackward0": 1}
"""Which input has the rows; the other's are mixed."""
_OUTER_AXIS = ("UnsqueezeBackward0", "SqueezeBackward1")


class UnknownRowsError(Exception):
    """The graph does not tell where the rows come from."""


def token_of_row(rows: torch.Tensor, places: torch.Size) -> torch.Tensor | None:
    """Which token of a batch each row of [n, d] belongs to: int64 [n] index into [B * T].

    None when the rows are all tokens, in order.

    Args:
        rows: In the autograd graph of the batch.
        places: (B, T)

    Raises:
        UnknownRowsError: It cannot be told.
    """
    if rows.ndim != 2 or rows.grad_fn is None:
        raise UnknownRowsError
    found = _follow(rows.grad_fn, rows.output_nr, len(rows), places)
    if len(rows) != (places.numel() if found is None else len(found)):
        raise UnknownRowsError
    return None if found is None else found.to(rows.device)


def _follow(
    node: Any, output: int, num_rows: int | None, places: torch.Size
) -> torch.Tensor | None:
    """The token of each row of what a node of the graph put out, or None for all tokens in order.

    Goes from a node to the one that made its input, until it comes to the tensor of the whole
    batch, and undoes on the way back what the nodes did with the rows.

    Args:
        node: Of the autograd graph; its name says the operation, its `_saved_…` attributes how it
            was called.
        output: Which of the node's outputs.
        num_rows: Rows of that output, leading axes of size 1 left out; None where it is not
            known, and then views cannot be followed.
        places: (B, T)
    """
    name = node.name() if node is not None else ""
    axis = getattr(node, "_saved_dim", None)
    if name in _VIEWS and num_rows is not None:
        # [B, T, ...] made flat: the source is reached. With more axes in between (heads) each
        # token gives several rows in a row.
        shape = torch.Size(node._saved_self_sym_sizes)
        if len(shape) > 2 and shape[:2] == places and num_rows % places.numel() == 0:
            times = num_rows // places.numel()
            return None if times == 1 else torch.arange(num_rows) // times
        if shape[:-1].numel() == num_rows:  # only leading axes were merged or split
            return _follow_any(node, num_rows, places)
    elif name == "IndexBackward0":  # rows[index] or rows[mask]: those that were chosen
        num_before = torch.Size(node._saved_self_sym_sizes[:-1]).numel()
        return _tokens_at(_only_index(node._saved_indices), _follow_any(node, num_before, places))
    elif name == "IndexSelectBackward0" and axis == 0:
        num_before = node._saved_self_sym_sizes[0]
        return _tokens_at(node._saved_index, _follow_any(node, num_before, places))
    elif name in _SPLITS and axis == 0:  # rows parted by expert: this output is one of the parts
        num_before = node._saved_self_sym_sizes[0]
        part = _rows_of_parts(node, num_before)[output]
        return _tokens_at(part, _follow_any(node, num_before, places))
    elif name in _PRODUCTS:  # rows @ weight: a row comes from the row of its factor alone
        before, output = node.next_functions[_PRODUCTS[name]]
        return _follow(before, output, num_rows, places)
    elif name == "CatBackward0" and axis == 0:
        parts = [_follow(before, i, None, places) for before, i in node.next_functions]
        # A part that is all tokens in order has unknown length here. It is left out, the result is
        # too short for the rows, and `token_of_row` says that it cannot be told.
        return torch.cat([part for part in parts if part is not None])
    elif (
        name in ROW_BY_ROW
        or (name in _ALONG_COLUMNS and axis != 0)
        or (name in _OUTER_AXIS and axis == 0)
    ):
        return _follow_any(node, num_rows, places)
    raise UnknownRowsError


def _follow_any(node: Any, num_rows: int | None, places: torch.Size) -> torch.Tensor | None:
    """Follow the first input of the node that is in the graph; all inputs have the same rows."""
    for before, output in node.next_functions:
        if before is not None:
            return _follow(before, output, num_rows, places)
    raise UnknownRowsError


def _tokens_at(rows: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
    return rows if tokens is None else tokens.to(rows.device)[rows]


def _rows_of_parts(split: Any, num_rows: int) -> tuple[torch.Tensor, ...]:
    sizes = getattr(split, "_saved_split_sizes", None)
    rows = torch.arange(num_rows)
    return torch.split(rows, list(sizes) if sizes else split._saved_split_size)


def _only_index(indices: tuple[torch.Tensor | None, ...]) -> torch.Tensor:
    """The one index, of rows; a mask is turned into one."""
    found = [index for index in indices if index is not None]
    if len(found) != 1 or found[0].ndim != 1:
        raise UnknownRowsError
    return found[0].nonzero()[:, 0] if found[0].dtype == torch.bool else found[0]


@dataclass(slots=True)
class RowGroup:
    """Rows of g pairs of an expert and a sample, about as many each: padded with zeros to P."""

    expert: torch.Tensor
    """int64 [g]"""
    sample: torch.Tensor
    """int64 [g]"""
    inputs: torch.Tensor
    """[g, P, in]"""
    gradients: torch.Tensor
    """[g, P, out]"""


@dataclass(slots=True)
class RoutedRows:
    """Implements `protocols.RoutedRows`."""

    inputs: torch.Tensor
    gradients: torch.Tensor
    expert: torch.Tensor
    sample: torch.Tensor
    num_samples: int

    @classmethod
    def sorted(
        cls,
        inputs: torch.Tensor,
        gradients: torch.Tensor,
        expert: torch.Tensor,
        sample: torch.Tensor,
        num_samples: int,
    ) -> RoutedRows:
        """Put the rows in order of their expert, and within an expert of their sample."""
        key = expert * num_samples + sample
        if bool((key[1:] < key[:-1]).any()):
            order = key.argsort(stable=True)
            inputs, gradients = inputs[order], gradients[order]
            expert, sample = expert[order], sample[order]
        return cls(inputs, gradients, expert, sample, num_samples)

    def groups(self) -> Iterator[RowGroup]:
        """The rows of each expert and sample, in batches of less than twice as many places."""
        key = self.expert * self.num_samples + self.sample
        pairs, counts = torch.unique_consecutive(key, return_counts=True)
        starts = counts.cumsum(0) - counts
        most, longest = 1, int(counts.max())
        while most < 2 * longest:
            chosen = ((counts > most // 2) & (counts <= most)).nonzero()[:, 0]
            if len(chosen):
                place = torch.arange(min(most, longest), device=key.device)
                is_row = place < counts[chosen, None]
                row = starts[chosen, None] + place * is_row
                yield RowGroup(
                    expert=pairs[chosen] // self.num_samples,
                    sample=pairs[chosen] % self.num_samples,
                    inputs=self.inputs[row] * is_row[:, :, None],
                    gradients=self.gradients[row] * is_row[:, :, None],
                )
            most *= 2

    def by_sample(self, vectors: torch.Tensor) -> torch.Tensor:
        """[n, k] of the rows as [B, P, k], P the most rows of a sample; zeros where it has less."""
        order = self.sample.argsort(stable=True)
        counts = self.sample.bincount(minlength=self.num_samples)
        starts = counts.cumsum(0) - counts
        of_sample = self.sample[order]
        place = torch.arange(len(order), device=order.device) - starts[of_sample]
        padded = vectors.new_zeros(self.num_samples, int(counts.max()), vectors.shape[1])
        padded[of_sample, place] = vectors[order]
        return padded

    def by_expert(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """(expert, inputs [B, P, in], gradients [B, P, out]), padded with zeros."""
        for expert in torch.unique_consecutive(self.expert).tolist():
            chosen = self.expert == expert
            own = RoutedRows(
                self.inputs[chosen],
                self.gradients[chosen],
                self.expert[chosen],
                self.sample[chosen],
                self.num_samples,
            )
            yield expert, own.by_sample(own.inputs), own.by_sample(own.gradients)
