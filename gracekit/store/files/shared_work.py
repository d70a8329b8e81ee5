"""`shards/<measure_id>-shared/`: what a refresh has to measure, for workers on other hosts too.

    task.json             what is measured, of which checkpoint, with which code
    ended.json            the same, once it is known that its refresher has ended: nobody joins it
    target.tokens         the tokens of the target set, where there is one
    000001.offer          the rows of one round, cut into shards
    000001.tokens         their tokens (`offers`)
    000001-000002.0.claim who measures the third shard of it; .1 who does when the first one ended
    000001000002.shard    its result, as a finished shard of any refresh

A claim is made with O_EXCL, so one worker gets it. Its holder renews it: the file gets a higher
number. Another worker takes a claim for abandoned when it has looked at the same number for
`lease_s` seconds of its own steady clock, so the clocks of hosts are never compared; on the host of
the holder also as soon as its process is gone. It then makes the claim of the next generation.
A holder that was only slow measures the same bytes and writes them under the same name.

The refresher alone makes and removes offers, and moves results into the shards of the refresh.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from gracekit import files
from gracekit.errors import StoreFormatError, StoreWriteError
from gracekit.foreign import foreign
from gracekit.process import is_alive, is_of_this_boot, pid_namespace
from gracekit.store.files.claims import Claim
from gracekit.store.files.offers import (
    DamagedTokensError,
    Offer,
    Tokens,
    packed,
    read_offer,
    read_tokens,
    tokens_of,
    without_checksum,
)
from gracekit.store.files.paths import StorePaths
from gracekit.store.files.sealing import read_sealed_json, sealed_json
from gracekit.store.files.shards import (
    SHARED,
    SUFFIX,
    ShardFiles,
    read_shard,
    remove_whole,
    write_shard,
)
from gracekit.types import Int64, Json, Measurement, Rows

BEATS_A_LEASE = 6
"""Renewals of a claim in the time after which it counts as abandoned."""
MAX_GENERATIONS = 3
"""Claims of one shard by workers; after that many were abandoned the refresher alone takes it."""

_TASK, _ENDED, _TARGET = "task.json", "ended.json", "target.tokens"
_OFFER = re.compile(r"(\d{6,})\.offer")
_CLAIM = re.compile(r"(\d{6,})-(\d{6})\.(\d+)\.claim")


class SharedWork:
    """The directory of shared work of one measurement, for the refresher and for workers.

    Args:
        paths: The store's paths.
        measure_id: Of the measurement.
        lease_s: Seconds without a sign after which a claim counts as abandoned.
        clock: Seconds of a steady clock.
    """

    def __init__(
        self,
        paths: StorePaths,
        measure_id: str,
        lease_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = paths
        self.directory = paths.shards_of(measure_id + SHARED)
        self.lease_s = lease_s
        self._clock = clock
        self._session: object = None
        """Of the task that was read last."""
        self._made_by = maker_of({})
        """With which code that one is measured, on which kind of device: a result says it too, for
        a worker that was held up may write it for a refresher that has other code by then.
        """
        self._seen: dict[str, tuple[bytes, float]] = {}
        """Claim -> what it said, and since when it says that."""
        self._done: set[tuple[int, int]] = set()
        self._num_offers = 0

    # --- the refresher ---

    def open(self, task: Json, target: Tokens | None) -> list[Measurement]:
        """Begin to share; returns what workers measured for a refresher that was killed.

        What other code measured is not taken. The caller holds the store's lock, so whatever else
        is shared has no refresher any more, and is marked as ended. Raises `StoreWriteError`.
        """
        end_shared(self._paths)
        self._made_by = maker_of(task)
        found = ShardFiles(self.directory).load(self._made_by)
        self.close()
        with files.clear_write_errors(self.directory):
            files.make_directory(self.directory)
        if target is not None:
            self._write_tokens(self.directory / _TARGET, target)
        try:
            files.write_text_atomic(self.directory / _TASK, sealed_json(task))
        except BaseException:
            with suppress(StoreWriteError):  # it may be there all the same, and workers would join
                if self.is_there():
                    self.leave()
            raise
        return found

    def offer(
        self, shards: list[Rows], lengths: list[Int64], take: Callable[[Rows], Tokens], look: bool
    ) -> Offer:
        """Offer the shards of a round with their tokens; raises `StoreWriteError`."""
        self._num_offers += 1
        offer = Offer(
            number=self._num_offers,
            rows=np.concatenate(shards),
            ends=np.cumsum([len(part) for part in shards]),
            lengths=np.concatenate(lengths),
            is_look=look,
        )
        path = self._offer_path(offer.number)

        def write_tokens(place: Path) -> None:
            with place.open("wb") as file:
                for part in shards:
                    file.write(packed(take(part)))

        files.write_atomic(path.with_suffix(".tokens"), write_tokens)
        content = offer.to_bytes()
        files.write_atomic(path, lambda place: _write_bytes(place, content))
        return offer

    def withdraw(self, offer: Offer) -> None:
        """Remove an offer with its claims and results."""
        with files.clear_write_errors(self.directory):
            files.remove(self._offer_path(offer.number))
            for name in self._names():
                if _number_of(name) == offer.number:
                    files.remove(self.directory / name)

    def leave(self) -> None:
        """End the sharing before all is measured: workers go, and what they have finished, or are
        at, is there for the next refresh of the same checkpoint. Raises `StoreWriteError`.
        """
        _end(self.directory / _TASK)

    def close(self) -> None:
        """Remove all; what workers still write meets no directory. Raises `StoreWriteError`."""
        with files.clear_write_errors(self.directory):
            remove_whole(self.directory)

    def result(self, offer: Offer, shard: int) -> Measurement | None:
        """What a worker measured of a shard; None where nobody has, or it is damaged."""
        path = self._result_path(offer, shard)
        found = read_shard(path, self._made_by) if path.exists() else None
        expected = offer.rows[offer.place(shard)]
        is_it = found is not None and offer.is_look != bool(found.scores)
        if found is not None and is_it and np.array_equal(found.rows, expected):
            return found
        with suppress(OSError):
            files.remove(path)
        return None

    def results(self, offer: Offer, shards: set[int]) -> list[int]:
        """Which of the shards have a result, ascending."""
        names = self._names()
        return [s for s in sorted(shards) if self._result_path(offer, s).name in names]

    # --- both ---

    def claim(self, offer: Offer, shards: set[int], *, at_any_time: bool = False) -> Claim | None:
        """Claim the first of the shards that nobody has, or whose holder has ended.

        Args:
            offer: What they are of.
            shards: Which may be claimed.
            at_any_time: Also those over which several workers have ended already.
        """
        names = self._names()
        newest: dict[int, int] = {}
        for name in names:
            found = _CLAIM.fullmatch(name)
            if found and int(found[1]) == offer.number:
                shard = int(found[2])
                newest[shard] = max(newest.get(shard, -1), int(found[3]))
        for shard in sorted(shards):
            generation = newest.get(shard, -1)
            is_done = (offer.number, shard) in self._done
            if is_done or self._result_path(offer, shard).name in names:
                continue
            if generation >= 0 and not self._is_free(offer, shard, generation):
                continue
            if generation + 1 >= MAX_GENERATIONS and not at_any_time:
                continue
            claim = Claim(self._claim_path(offer, shard, generation + 1), shard)
            if claim.make():
                return claim
        return None

    @property
    def beat_s(self) -> float:
        """Seconds between two renewals of a claim."""
        return self.lease_s / BEATS_A_LEASE

    # --- workers ---

    def task(self) -> Json:
        """What is to be measured; raises `StoreFormatError` where it cannot be read."""
        path = self.directory / _TASK
        with foreign(path, StoreFormatError):
            found: Json = read_sealed_json(path)
            self._session, self._made_by = found.get("session"), maker_of(found)
            return found

    def is_there(self) -> bool:
        """Whether the refresh is still to be worked on."""
        return (self.directory / _TASK).exists()

    def newest_offer(self) -> Offer | None:
        """The round in progress; None between two."""
        numbers = [int(found[1]) for name in self._names() if (found := _OFFER.fullmatch(name))]
        if not numbers:
            return None
        path = self._offer_path(max(numbers))
        try:
            return read_offer(path, max(numbers))
        except StoreFormatError:
            if path.exists():
                raise
            return None

    def is_offered(self, offer: Offer) -> bool:
        """Whether the round is still in progress."""
        return self._offer_path(offer.number).exists()

    def tokens(self, offer: Offer, shard: int) -> Tokens:
        """The tokens of a shard.

        Raises OSError where the round is over, `DamagedTokensError` where they are damaged.
        """
        return tokens_of(self._offer_path(offer.number), offer, shard)

    def target_tokens(self, lengths: Int64) -> Tokens:
        """The tokens of the target set, of these lengths; raises as `tokens`."""
        return read_tokens(self.directory / _TARGET, lengths)

    def save(self, offer: Offer, shard: int, result: Measurement) -> bool:
        """Hand a result over; False where the round is over and nobody needs it, or where another
        refresher, maybe with other code, has offered a round of the same number since.

        Raises `StoreWriteError`.
        """
        path = self._result_path(offer, shard)
        with files.clear_write_errors(path):
            try:
                is_wanted = self.is_offered(offer) and self._is_same_session()
                return is_wanted and write_shard(path, result, self._made_by)
            except FileNotFoundError:
                return False

    def _is_same_session(self) -> bool:
        before = self._session
        return before is None or before == self._last_task().get("session")

    def _last_task(self) -> Json:
        """The task, also one whose refresher has ended; empty where it cannot be read."""
        for name in (_TASK, _ENDED):
            with suppress(ValueError, OSError):
                found = read_sealed_json(self.directory / name)
                return found if isinstance(found, dict) else {}
        return {}

    def _is_free(self, offer: Offer, shard: int, generation: int) -> bool:
        """Whether the holder of a claim has let go of it, or has ended."""
        path = self._claim_path(offer, shard, generation)
        try:
            text = path.read_bytes()
        except OSError:
            return False  # being renewed, or removed with the round
        now = self._clock()
        said, since = self._seen.get(path.name, (None, now))
        if said != text:
            self._seen[path.name], since = (text, now), now
        content: Json = {}
        with suppress(ValueError, OSError):
            found = read_sealed_json(path)
            content = found if isinstance(found, dict) else {}
        if content.get("state") == "done":
            self._done.add((offer.number, shard))
            return False
        is_here = content.get("host") == socket.gethostname()
        is_here &= content.get("pid_namespace") == pid_namespace()
        is_here &= is_of_this_boot(content.get("birth"))  # hosts may share a name
        if is_here and not is_alive(content.get("pid"), content.get("birth")):
            return True
        return content.get("state") == "released" or now - since >= self.lease_s

    def _names(self) -> set[str]:
        try:
            return set(os.listdir(self.directory))
        except FileNotFoundError:
            return set()

    def _offer_path(self, number: int) -> Path:
        return self.directory / f"{number:06d}.offer"

    def _claim_path(self, offer: Offer, shard: int, generation: int) -> Path:
        return self.directory / f"{offer.number:06d}-{shard:06d}.{generation}.claim"

    def _result_path(self, offer: Offer, shard: int) -> Path:
        return self.directory / f"{offer.number:06d}{shard:06d}{SUFFIX}"

    def _write_tokens(self, path: Path, tokens: Tokens) -> None:
        files.write_atomic(path, lambda place: _write_bytes(place, packed(tokens)))


def shared_work(paths: StorePaths) -> list[str]:
    """The ids of measurements that are shared, in order."""
    found = [path.parent.name for path in paths.shards.glob(f"*{SHARED}/{_TASK}")]
    return sorted(name.removesuffix(SHARED) for name in found)


def end_shared(paths: StorePaths) -> None:
    """Tell workers that nobody waits for what is shared; what they have finished stays.

    The caller holds the store's lock. Raises `StoreWriteError`.
    """
    for measure_id in shared_work(paths):
        _end(paths.shards_of(measure_id + SHARED) / _TASK)


def _end(task: Path) -> None:
    with files.clear_write_errors(task):
        files.replace(task, task.with_name(_ENDED))


def maker_of(task: Json) -> str:
    """Digest of what of a task decides about the bytes of a result besides model and samples."""
    known = json.dumps([task.get(key) for key in ("program", "own_code", "device")], sort_keys=True)
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def _number_of(name: str) -> int | None:
    """Of the offer that a file belongs to."""
    digits = name.partition(".")[0].partition("-")[0]
    digits = digits[:-6] if name.endswith(SUFFIX) else digits
    return int(digits) if digits.isdigit() else None


def damaged_offers(paths: StorePaths) -> list[tuple[Path, str]]:
    """What is offered and differs from its checksum; what goes meanwhile is not."""
    found: list[tuple[Path, str]] = []
    for path in sorted(paths.shards.glob(f"*{SHARED}/{_TARGET}")):
        try:
            without_checksum(path.read_bytes())
        except OSError:
            continue
        except ValueError as error:
            found.append((path, str(error)))
    for path in sorted(paths.shards.glob(f"*{SHARED}/*.offer")):
        try:
            offer = read_offer(path, 0)
            for shard in range(len(offer)):
                tokens_of(path, offer, shard)
        except (StoreFormatError, DamagedTokensError) as error:
            if path.exists():
                found.append((path, str(error)))
        except OSError:
            continue
    return found


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
