"""The map as SVG, with a choice of the version that needs no script, and the data for hovering."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from gracekit.reporting.feature_map import FeatureMap
from gracekit.reporting.texts import LONGEST_NAME, name, plain, script_json
from gracekit.types import Int64, Rows

WIDTH, HEIGHT = 1000, 700
_MARGIN = 24
NUM_COLOURS = 6
"""Groups that have a colour of their own; the others share one."""
_LONGEST_HINT, _LONGEST_ID = 80, 40
"""Characters of a text and of an id that hovering shows: of ten thousand points."""
MOST_DATA = 3_500_000
"""Bytes of what hovering shows; where characters take so many that it is more, fewer are kept."""
_SHORTEST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class MapPicture:
    """The map with what is known of its points."""

    found: FeatureMap
    sample_ids: Sequence[str]
    """[p] of the points."""
    groups: Sequence[str]
    """[p]"""
    texts: Sequence[str]
    """[p]"""

    def html(self) -> str:
        """The picture, its controls and its data."""
        at = _places(self.found)
        order = _largest_groups(self.groups)
        colour = {group: min(k, NUM_COLOURS) for k, group in enumerate(order)}
        colours = np.array([colour[group] for group in self.groups], np.int64)
        of_data = np.flatnonzero(self.found.is_of_data)
        parts = [
            _dots(at, of_data[colours[of_data] == k], f"g{k}")
            for k in range(min(len(order), NUM_COLOURS + 1))
        ]
        for k, positions in enumerate(self.found.coresets.values()):
            parts.append(_dots(at, positions, f"core c{k}"))
        picture = (
            f'<svg class="map" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            'aria-label="Map of the samples; the table of groups has the numbers">'
            f"{''.join(parts)}</svg>"
        )
        return (
            f'<div class="mapbox">{self._choice()}{self._legend(order)}'
            f'<div class="pic">{picture}</div></div>'
            f'<script type="application/json" id="map-points">{self._data(at, order)}</script>'
        )

    def _choice(self) -> str:
        """A button for each version; without a script they work too."""
        radios, labels = [], []
        for k, version in enumerate(self.found.coresets):
            checked = " checked" if k == 0 else ""
            radios.append(
                f'<input type="radio" name="map-version" id="mv{k}" class="mv"{checked}>'
                f'<label for="mv{k}">version {version}</label>'
            )
        if not radios:
            return ""
        labels.append('<span class="ask">Coreset of</span>')
        return "".join(labels + radios)

    def _legend(self, order: Sequence[str]) -> str:
        items = [
            f'<li><svg class="key" viewBox="0 0 26 12" aria-hidden="true">'
            f'<circle class="spot g{k}" cx="13" cy="6" r="4"/></svg>{name(group)}</li>'
            for k, group in enumerate(order[:NUM_COLOURS])
        ]
        if len(order) > NUM_COLOURS:
            items.append(
                '<li><svg class="key" viewBox="0 0 26 12" aria-hidden="true">'
                f'<circle class="spot g{NUM_COLOURS}" cx="13" cy="6" r="4"/></svg>'
                f"{len(order) - NUM_COLOURS:,} other groups</li>"
            )
        if self.found.coresets:
            items.append(
                '<li><svg class="key" viewBox="0 0 26 12" aria-hidden="true">'
                '<circle class="spot core-key" cx="13" cy="6" r="5"/></svg>in the coreset</li>'
            )
        return f'<ul class="legend">{"".join(items)}</ul>'

    def _data(self, at: Int64, order: Sequence[str]) -> str:
        """What hovering shows, as JSON of at most `MOST_DATA` bytes."""
        place = {group: k for k, group in enumerate(order)}
        share = 1
        while True:
            found = script_json(
                {
                    "x": at[:, 0],
                    "y": at[:, 1],
                    "id": [plain(value, _LONGEST_ID // share) for value in self.sample_ids],
                    "groups": [plain(value, LONGEST_NAME // share) for value in order],
                    "group": [place[value] for value in self.groups],
                    "text": [plain(value, _LONGEST_HINT // share) for value in self.texts],
                    "core": list(self.found.coresets.values()),
                }
            )
            if len(found.encode()) <= MOST_DATA or _LONGEST_ID // share <= _SHORTEST:
                return found
            share *= 2


def _places(found: FeatureMap) -> Int64:
    """[p, 2] of the points in the units of the picture; one scale for both directions."""
    left, right, lower, upper = found.projection.frame
    scale = min(
        (WIDTH - 2 * _MARGIN) / max(right - left, 1e-9),
        (HEIGHT - 2 * _MARGIN) / max(upper - lower, 1e-9),
    )
    middle = np.array([(left + right) / 2, (lower + upper) / 2])
    at = (found.points - middle) * np.array([scale, -scale]) + np.array([WIDTH / 2, HEIGHT / 2])
    places: Int64 = np.rint(at).astype(np.int64)
    return places


def _dots(at: Int64, positions: Rows | Int64, kind: str) -> str:
    """Dots as one path: a line of no length for each, with round ends."""
    points = np.unique(at[positions], axis=0)
    path = "".join(f"M{x} {y}h0" for x, y in points.tolist())
    return f'<path class="dots {escape(kind)}" d="{path}"/>' if path else ""


def _largest_groups(groups: Sequence[str]) -> list[str]:
    counts = Counter(groups)  # an array of texts would be as wide as the longest, and cut zeros off
    return sorted(counts, key=lambda group: (-counts[group], group))
