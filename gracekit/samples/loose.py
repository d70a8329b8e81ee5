"""Rows that say the same in other whitespace: what counts as a copy where a model is judged."""

from __future__ import annotations

import dataclasses

import numpy as np

from gracekit.samples.conversation import Conversation
from gracekit.samples.raw import RawSamples
from gracekit.samples.sample_ids import content_hash
from gracekit.types import Json, Strings

_BLOCK = 4096


def loose_hashes(samples: RawSamples) -> Strings:
    """[n] hash of the content of each row, with all whitespace in its texts as single spaces.

    Raises:
        DataError: The data was written to since it was read.
    """
    found = np.empty(len(samples), object)
    for start in range(0, len(samples), _BLOCK):
        rows = range(start, min(start + _BLOCK, len(samples)))
        for row, conversation in zip(rows, samples.records.take(rows), strict=True):
            found[row] = content_hash(_loosened(conversation))
    return found


def _loosened(conversation: Conversation) -> Conversation:
    rejected = conversation.rejected
    return dataclasses.replace(
        conversation,
        messages=tuple(map(_message, conversation.messages)),
        rejected=None if rejected is None else tuple(map(_message, rejected)),
    )


def _message(message: Json) -> Json:
    return {**message, "content": " ".join(message["content"].split())}
