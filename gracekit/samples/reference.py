"""Losses of samples under a reference model, measured once and kept in a Parquet file.

The file has a row for each content, so that copies are measured once, and a sample whose content
changes is known again when it is measured again. Any store whose data has these contents may use
it. A checksum of all values and facts is beside them: a flipped bit is an error, not another loss.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from gracekit.errors import DataError
from gracekit.files import write_atomic
from gracekit.foreign import foreign
from gracekit.texts import Texts
from gracekit.types import Float32, Int32, Json

FORMAT = 2
"""Since 2 with a checksum; a file of format 1 is read as it is."""
_FIELDS = (
    "content_hashes", "sample_ids", "loss", "loss_other", "loss_alone", "num_targets",
)  # fmt: skip
_KEY = b"gracekit.reference"
_CHECKSUM = "checksum"
_COLUMNS = {
    "content_hash": pa.string(),
    "sample_id": pa.string(),
    "loss": pa.float32(),
    "loss_other": pa.float32(),
    "loss_alone": pa.float32(),
    "num_targets": pa.int32(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceLosses:
    """What a reference model says of m contents."""

    content_hashes: Texts
    """[m], unique."""
    sample_ids: Texts
    """[m] a sample that has the content."""
    loss: Float32
    """[m] mean loss of the target tokens, in nats; NaN where it was not finite."""
    loss_other: Float32
    """[m] the same after the prompt of another sample; NaN also where the sample has none."""
    loss_alone: Float32
    """[m] the same without a prompt; NaN also where the sample has none."""
    num_targets: Int32
    """[m] target tokens."""
    facts: Json = field(default_factory=dict)
    """Of the model and of how samples are read: what must be equal to add to the file."""

    def __len__(self) -> int:
        return len(self.content_hashes)

    @property
    def pmi(self) -> Float32:
        """[m] nats a target token that the own prompt tells of the response; NaN: not known.

        The pointwise mutual information of prompt and response, as far as the model knows them:
        three parts of the smaller of `loss_other` and `loss_alone` and one of the larger, less
        `loss`. After another prompt of the group a response has what any of its prompts tells (its
        form), which says nothing of the right one; and a refusal is likelier after its own prompt
        than alone, but no likelier than after another one. So both have to tell.
        """
        smaller = np.minimum(self.loss_other, self.loss_alone)
        larger = np.maximum(self.loss_other, self.loss_alone)
        return ((3 * smaller + larger) / 4 - self.loss).astype(np.float32)

    @property
    def evidence(self) -> Float32:
        """[m] that the response belongs to the prompt: `pmi` by the root of the target tokens.

        A mean over few tokens is uncertain, with an error that falls with the root of their number.
        """
        found: Float32 = self.pmi * np.sqrt(self.num_targets.astype(np.float32))
        return found

    def of(self, content_hashes: Texts) -> tuple[Float32, Float32]:
        """([n] loss, [n] evidence) of samples by their contents; NaN where not known."""
        rows = self.content_hashes.places_of(content_hashes)
        is_known = rows >= 0
        loss, evidence = np.full((2, len(rows)), np.nan, np.float32)
        loss[is_known] = self.loss[rows[is_known]]
        evidence[is_known] = self.evidence[rows[is_known]]
        return loss, evidence

    def without(self, content_hashes: Texts) -> Self:
        """These but for some contents."""
        kept = content_hashes.places_of(self.content_hashes) < 0
        return type(self)(**{name: getattr(self, name)[kept] for name in _FIELDS}, facts=self.facts)

    def joined(self, more: Self) -> Self:
        """These and contents that are not among them."""
        return type(self)(
            content_hashes=Texts.joined([self.content_hashes, more.content_hashes]),
            sample_ids=Texts.joined([self.sample_ids, more.sample_ids]),
            loss=np.concatenate([self.loss, more.loss]),
            loss_other=np.concatenate([self.loss_other, more.loss_other]),
            loss_alone=np.concatenate([self.loss_alone, more.loss_alone]),
            num_targets=np.concatenate([self.num_targets, more.num_targets]),
            facts=self.facts,
        )

    def write(self, path: Path) -> None:
        """Put the file in place in one step; nothing is lost of what was there if that fails."""
        values = [getattr(self, name) for name in _FIELDS]
        facts = {"format": FORMAT, **self.facts}
        content = json.dumps({**facts, _CHECKSUM: self._checksum()}, sort_keys=True)
        schema = pa.schema(list(_COLUMNS.items()), metadata={_KEY: content})
        arrays = [pa.array(v, kind) for v, kind in zip(values, _COLUMNS.values(), strict=True)]
        table = pa.table(arrays, schema=schema)
        write_atomic(path, lambda temporary: pq.write_table(table, temporary), tidy=True)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read the file.

        Raises `DataError` where there is none, or it is not one that `gracekit reference` wrote.
        """
        path = Path(path)
        if path.is_dir():
            raise DataError(f"{path} is a directory; give the name of a file in it")
        if not path.is_file():
            raise DataError(
                f"there are no losses of a reference model at {path}; "
                "`gracekit reference CHECKPOINT` measures them, or take selection.reference out"
            )
        with foreign(f"the losses of a reference model in {path}", DataError):
            table = pq.read_table(path)
            content = json.loads((table.schema.metadata or {}).get(_KEY, b"null"))
            if not isinstance(content, dict) or content.get("format") not in (1, FORMAT):
                raise DataError(
                    f"{path} is not a file of `gracekit reference` (format 1 to {FORMAT}); name "
                    "one in selection.reference"
                )
            columns = {name: table[name].cast(kind) for name, kind in _COLUMNS.items()}
            if any(table[name].null_count for name in _COLUMNS):
                raise ValueError("it has rows without a value")
            facts = {n: value for n, value in content.items() if n not in ("format", _CHECKSUM)}
            found = cls(
                content_hashes=Texts.of_arrow(columns["content_hash"]),
                sample_ids=Texts.of_arrow(columns["sample_id"]),
                loss=columns["loss"].to_numpy(),
                loss_other=columns["loss_other"].to_numpy(),
                loss_alone=columns["loss_alone"].to_numpy(),
                num_targets=columns["num_targets"].to_numpy(),
                facts=facts,
            )
            if content["format"] == FORMAT and content.get(_CHECKSUM) != found._checksum():
                raise DataError(
                    f"{path} is damaged: it differs from its checksum; restore it from a copy, or "
                    "remove it and measure again with `gracekit reference`"
                )
        return found

    def _checksum(self) -> str:
        """Of all values, in their order, and of the facts."""
        digest = xxhash.xxh3_128(json.dumps(self.facts, sort_keys=True).encode())
        for name in _FIELDS:
            value = getattr(self, name)
            is_text = isinstance(value, Texts)
            digest.update(json.dumps(value.tolist()).encode() if is_text else value.tobytes())
        return str(digest.hexdigest())
