"""The format `domain-weights`: what share each group has, in the words of trainers that mix."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import yaml

from gracekit.errors import ExportError
from gracekit.protocols import ExportContent
from gracekit.types import Json


class DomainWeights:
    """`domain_weights.json` with the share of each group, and the same for four trainers.

    A share is that of the weights where these are written (`--weights column`), else of the rows.
    The name of a group stands where a trainer wants a path: replace it by that of its data.

    `energon.yaml` is a metadataset of Megatron-Energon; `axolotl.yaml` takes as many rows of each
    dataset as are selected, since Axolotl has no other way to mix; `ms-swift.txt` holds arguments
    for `swift sft`, by number of rows and by probability; `nemo.txt` is a blend for Megatron-LM,
    Megatron-Bridge and NeMo: weight and path in turn.
    """

    def write(self, content: ExportContent, directory: Path, out: Path) -> Json:
        """`ExportError` where the samples have no groups."""
        shares = group_shares(content)
        files = {
            "domain_weights.json": json.dumps(
                {"version": content.header.version, "groups": shares}, indent=2, ensure_ascii=False
            ),
            "energon.yaml": _yaml(
                {
                    "__module__": "megatron.energon",
                    "__class__": "MetadatasetV2",
                    "splits": {
                        "train": {
                            "blend": [
                                {"weight": found["share"], "path": name}
                                for name, found in shares.items()
                            ]
                        }
                    },
                }
            ),
            "axolotl.yaml": _yaml(
                {
                    "datasets": [
                        {"path": name, "split": f"train[:{found['rows']}]"}
                        for name, found in shares.items()
                    ]
                }
            ),
            "ms-swift.txt": _swift(shares),
            "nemo.txt": " ".join(
                f"{found['share']:.6f} {shlex.quote(name)}" for name, found in shares.items()
            ),
        }
        for name, text in files.items():
            (directory / name).write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        return {"files": list(files), "shares": {n: f["share"] for n, f in shares.items()}}


def group_shares(content: ExportContent) -> dict[str, Json]:
    """Group -> `share` of what is trained on (they add up to 1), and `rows` that are selected.

    Raises `ExportError` where the samples have no groups.
    """
    groups = content.groups
    if groups is None or content.header.dataset.settings.group_column is None:
        raise ExportError(
            "the samples have no groups, so there are no shares of them. Name the column of their "
            "source in data.group_column of the recipe, and refresh"
        )
    counts = Counter(groups.tolist())
    weights = content.weights.astype(np.float64)
    if not content.has_weights:
        weights = np.ones(len(weights))
    total = float(weights.sum())
    return {
        name: {"share": float(weights[groups == name].sum()) / total, "rows": counts[name]}
        for name in sorted(counts)
    }


def _swift(shares: dict[str, Json]) -> str:
    names = [shlex.quote(f"{name}#{found['rows']}") for name, found in shares.items()]
    plain = [shlex.quote(name) for name in shares]
    shown = [f"{found['share']:.6f}" for found in shares.values()]
    return (
        f"# by number of rows\n--dataset {' '.join(names)}\n"
        f"# or by probability\n--dataset {' '.join(plain)} --interleave_prob {' '.join(shown)}"
    )


def _yaml(value: Json) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
