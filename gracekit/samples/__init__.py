"""The user's samples: read in any usual layout, checked, rendered, tokenised, with loss masks.

`load_samples` reads and checks without a tokenizer, `tokenize` makes tokens and masks of them,
`sample_table` puts together what the store keeps, and `merge` brings that in line with data that
changed. Importing this package loads no heavy library.
"""

from gracekit.samples.formats import FORMATS, Conversation
from gracekit.samples.growth import Growth, merge, same_where_known
from gracekit.samples.json_files import with_columns
from gracekit.samples.llamafactory import LLAMAFACTORY_RENDERINGS
from gracekit.samples.loose import loose_hashes
from gracekit.samples.pair_tokens import tokenize_pairs
from gracekit.samples.raw import (
    RawSamples,
    Skipped,
    load_samples,
    open_conversations,
    open_hashed_records,
    open_records,
)
from gracekit.samples.sources import data_stamp, open_source
from gracekit.samples.token_cache import CachedTokens, hashes_of, open_tokens, unpacked
from gracekit.samples.tokens import (
    TokenTable,
    can_be_trl,
    earlier_tokens_key,
    rendered_tokens,
    sample_table,
    tokenize,
    tokens_key,
)

__all__ = [
    "FORMATS",
    "LLAMAFACTORY_RENDERINGS",
    "CachedTokens",
    "Conversation",
    "Growth",
    "RawSamples",
    "Skipped",
    "TokenTable",
    "can_be_trl",
    "data_stamp",
    "earlier_tokens_key",
    "hashes_of",
    "load_samples",
    "loose_hashes",
    "merge",
    "open_conversations",
    "open_hashed_records",
    "open_records",
    "open_source",
    "open_tokens",
    "rendered_tokens",
    "same_where_known",
    "sample_table",
    "tokenize",
    "tokenize_pairs",
    "tokens_key",
    "unpacked",
    "with_columns",
]
