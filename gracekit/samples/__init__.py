"""The user's samples: read in any usual layout, checked, rendered, tokenised, with loss masks.

`load_samples` reads and checks without a tokenizer, `tokenize` makes tokens and masks of them, and
`sample_table` puts together what the store keeps. Importing this package loads no heavy library.
"""

from gracekit.samples.formats import FORMATS, Conversation
from gracekit.samples.raw import RawSamples, Skipped, load_samples, open_records
from gracekit.samples.tokens import TokenTable, sample_table, tokenize

__all__ = [
    "FORMATS",
    "Conversation",
    "RawSamples",
    "Skipped",
    "TokenTable",
    "load_samples",
    "open_records",
    "sample_table",
    "tokenize",
]
