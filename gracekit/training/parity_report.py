"""What a check of tokens found, for people and as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from gracekit.tabular import ShortRepr
from gracekit.types import Bool, Json
from gracekit.words import count_of

MOST_SPANS = 3
WORDS = {
    "ids": "the token ids differ",
    "length": "one is longer than the other",
    "loss": "the loss mask differs",
}
PACKED = (
    "the trainer's dataset is packed: a row holds several samples, so none can be drawn by itself. "
    "Train without packing, or on an export"
)
NOT_TOLD = (
    "the trainer's dataset has {:,} rows and the data {:,}, so rows are not told by position; nor "
    "by their tokens, since none of them is that of a sample. Give the sample id of each row, or "
    "make the tokens equal"
)
OTHER_ORDER = (
    "the trainer's dataset has as many rows as the data, {:,}, but none of them has the tokens of "
    "a sample, and its rows do not resemble those at their places in the data: they may stand in "
    "another order (shuffled before training), so none can be drawn. Give the sample id of each "
    "row (CoresetCallback(sample_ids=...)), or set data.rendering to what the trainer does"
)
OTHER_ROWS = (
    "{:,} of {:,} rows of the trainer's dataset are not the samples at their places in the data "
    "(added, repeated or replaced before training; the first is row {}): they are never drawn, nor "
    "are these samples"
)
OTHER_PLACE = (
    "the recipe's settings give the trainer's tokens with this tokenizer here, so the store was "
    "made with another tokenizer, of other data, or where something else was installed: with "
    "assistant_only_loss TRL renders with a training template of its own, which gracekit reads "
    "from the TRL installed beside it. Have the same TRL where gracekit refreshes, and name a new "
    "store"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDifference:
    """One row whose tokens are not those that gracekit measured."""

    position: int
    """In the trainer's dataset."""
    sample_id: str
    source_row: int
    """Position in the data."""
    what: str
    """`ids`, `length` (equal as far as both go) or `loss` (the ids are equal)."""
    index: int | None
    """The first token that differs; None where the store's tokens are not kept."""
    here: int | None
    """Its id as gracekit has it; None: there is none."""
    there: int | None
    """The same as the trainer has it."""
    here_text: str | None
    there_text: str | None
    here_length: int
    there_length: int
    here_loss: tuple[tuple[int, int], ...] | None
    """First and last token of each run that carries loss."""
    there_loss: tuple[tuple[int, int], ...]

    def lines(self) -> list[str]:
        """For people."""
        head = (
            f"row {self.position} (sample {self.sample_id!r}, row {self.source_row} of the data): "
            f"{WORDS[self.what]}"
        )
        lines = [head]
        if self.what != "loss" and self.index is not None:
            here = _token(self.here, self.here_text)
            there = _token(self.there, self.there_text)
            lines.append(
                f"  token {self.index}: gracekit has {here}, the trainer {there} "
                f"({self.here_length} and {self.there_length} tokens)"
            )
        if self.here_loss != self.there_loss:
            here = "unknown tokens" if self.here_loss is None else _spans(self.here_loss)
            lines.append(
                f"  gracekit puts loss on {here}, the trainer on {_spans(self.there_loss)}"
            )
        return lines


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TokenCheck(ShortRepr):
    """Whether a trainer's rows are what gracekit measured."""

    num_rows: int
    """Of the trainer's dataset."""
    num_samples: int
    """Of the store, with tokens."""
    num_matched: int
    """Rows of the trainer's dataset that are a sample of the store."""
    num_compared: int
    num_different: int
    """Of the rows compared."""
    has_seen_all: bool
    """Whether the ids of the rows between those compared were compared too."""
    matched_by: str
    """How rows were told: `position`, `sample_ids`, `content` or `nothing`."""
    differences: tuple[TokenDifference, ...]
    """The first ones."""
    advice: str | None
    """What would mend the differences."""
    problems: tuple[str, ...]
    """What else is wrong."""
    sample_ids: list[str] | None
    """Where rows were matched by content: the sample id of each row of the trainer's dataset, for
    `CoresetCallback(sample_ids=…)`; None: they stand where they stand in the data."""

    @property
    def ok(self) -> bool:
        """Whether all rows compared are equal and stand where they should."""
        return not self.num_different and not self.problems

    def lines(self) -> list[str]:
        """For people."""
        if self.ok:
            compared = count_of(self.num_compared, "row")
            told = f"{compared} compared: the trainer's tokens and loss are those measured"
            if self.num_compared == self.num_rows:
                return [told]
            if self.has_seen_all:
                return [f"{told}; so are the tokens of all {self.num_rows:,} rows"]
            return [
                f"{told}. Rows between these were not looked at, and are taken to stand where the "
                f"data has them (of {self.num_rows:,}; gracekit.check_tokens compares all)"
            ]
        lines = list(self.problems)
        if self.num_different:
            lines.append(
                f"{self.num_different:,} of {count_of(self.num_compared, 'row')} compared are not "
                "what gracekit measured, so their scores are those of other tokens or another loss"
            )
            for difference in self.differences:
                lines += difference.lines()
            if self.advice:
                lines.append(f"what to do: {self.advice}")
        return lines

    def to_json(self) -> Json:
        """As a JSON object."""
        names = [f.name for f in dataclasses.fields(self)]
        content = {name: getattr(self, name) for name in names}
        content["differences"] = [dataclasses.asdict(d) for d in self.differences]
        return {"ok": self.ok, **content, "problems": list(self.problems)}


def spans_of(mask: Bool) -> tuple[tuple[int, int], ...]:
    """First and last place of each run of true values."""
    edges = np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1
    return tuple(zip(starts.tolist(), ends.tolist(), strict=True))


def _token(token: int | None, text: str | None) -> str:
    if token is None:
        return "none"
    return f"{token} ({text!r})" if text is not None else str(token)


def _spans(spans: tuple[tuple[int, int], ...]) -> str:
    if not spans:
        return "no token"
    shown = ", ".join(f"{a}..{b}" for a, b in spans[:MOST_SPANS])
    return f"tokens {shown}" + (
        f" and {len(spans) - MOST_SPANS} more runs" if len(spans) > MOST_SPANS else ""
    )
