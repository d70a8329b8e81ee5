"""The status of a store in sentences, and the one thing to do next."""

from __future__ import annotations

from gracekit.store import Published
from gracekit.types import Json
from gracekit.views.store_contents import LatestVersion, StoreContents
from gracekit.words import age, count_of, duration, size, version_ranges

_MADE_BY = {
    "init": "as the first of this store",
    "refresh": "by a refresh",
    "reselect": "by `gracekit select`, from scores that were there",
    "rollback": "by a rollback",
}
_DAEMON = {
    "absent": "No daemon (`gracekit watch`) has run on this store.",
    "starting": "The daemon is starting.",
    "waiting": "The daemon waits for the next checkpoint.",
    "refreshing": "The daemon makes a new version.",
    "blocked": "The daemon waits until another process has finished writing to the store.",
    "failing": "The daemon meets errors and tries again.",
    "stuck": "The daemon hangs: its work has stopped.",
    "stopped": "The daemon has stopped.",
    "dead": "The daemon's process ended without saying so.",
    "unreadable": "What the daemon does cannot be told: its heartbeat cannot be read.",
}
_RESTART = ("stuck", "dead")


def contents_in_words(store: str, contents: StoreContents | None) -> list[str]:
    """What a store holds, a paragraph an entry.

    Args:
        store: Its directory.
        contents: None where it does not exist yet.
    """
    if contents is None:
        return [f"There is no store at {store} yet: a daemon waits for the first checkpoint."]
    data = f" of {contents.data}" if contents.data else ""
    about = f"The store at {store} follows {count_of(contents.num_samples, 'sample')}{data}"
    if contents.num_removed_samples:
        about += f"; {contents.num_removed_samples:,} more have left the data"
    about = ". ".join([about, *_left_out(contents)])
    latest = contents.latest
    if latest is None:
        return [f"{about}.", "There is no version yet."]
    return [f"{about}.", *_latest_in_words(latest, contents.num_samples), *_kept(contents)]


def _left_out(contents: StoreContents) -> list[str]:
    """Sentences on rows that take no part."""
    found = []
    if contents.num_skipped_rows:
        rows = count_of(contents.num_skipped_rows, "row of the data is", "rows of the data are")
        found.append(f"{rows} left out as unusable (`gracekit init` says why)")
    if contents.num_unrendered:
        samples = count_of(contents.num_unrendered, "sample has", "samples have")
        found.append(f"{samples} no tokens: the chat template or the tokenizer refuses them")
    return found


def _latest_in_words(latest: LatestVersion, num_samples: int) -> list[str]:
    at = "" if latest.step is None else f" at step {latest.step:,}"
    made = (
        f"The latest version is {latest.version}, made {age(latest.age_s)} ago{at} "
        f"{_MADE_BY.get(latest.operation, latest.operation)}"
    )
    if latest.num_selected is not None:
        made += f"; its coreset has {count_of(latest.num_selected, 'sample')}"
    found = [f"{made}."]
    if any(latest.data_changes.values()):
        joined, left, changed = (
            latest.data_changes.get(name, 0) for name in ("num_added", "num_removed", "num_changed")
        )
        found.append(f"Its data: {joined:,} joined, {left:,} left, {changed:,} changed.")
    if latest.num_measured is not None:
        share = 100 * latest.num_measured / max(num_samples, 1)
        measured = (
            f"{count_of(latest.num_measured, 'sample was', 'samples were')} measured for its "
            f"scores ({share:.1f} % of the data)"
        )
        others = [
            f"{count:,} {_ORIGINS[name]}"
            for name, count in latest.origins.items()
            if name in _ORIGINS
        ]
        found.append("; ".join([measured, ", ".join(others)] if others else [measured]) + ".")
    if latest.worth:
        found.append(f"What the coreset is worth: {'; '.join(latest.worth)}.")
    if latest.aim:
        found.append(f"The target: {'; '.join(latest.aim)}.")
    if latest.trust:
        found.append(f"What it distrusts: {'; '.join(latest.trust)}.")
    if latest.cost:
        found.append(f"What it cost: {'; '.join(latest.cost)}.")
    return [*found, f"How far to trust the scores: {latest.audit}."]


_ORIGINS = {
    "propagated": "were estimated from similar ones",
    "stale": "kept the scores they had",
    "never": "were never measured",
    "invalid": "cannot be measured",
}


def _kept(contents: StoreContents) -> list[str]:
    count = contents.num_versions
    text = (
        f"{count_of(count, 'version is', 'versions are')} kept, {size(contents.size_bytes)} in all"
    )
    if contents.num_removed_versions:
        text += f"; gc has removed {contents.num_removed_versions:,}"
    found = [f"{text}."]
    found += [
        f"{version_ranges([version]).capitalize()} is kept from gc ({why})."
        for version, why in contents.held_versions.items()
    ]
    if contents.uses is not None:
        found.append(
            f"A trainer logs what it trains on, last at step {contents.uses['step']:,} "
            f"(run {contents.uses['run']}); draws make up for that."
        )
    if contents.published is not None:
        found.append(_published_in_words(contents.published))
    if contents.num_unfinished_shards:
        found.append(
            "A refresh was stopped; the next one goes on from "
            f"{count_of(contents.num_unfinished_shards, 'file')} of finished measurements."
        )
    return found


def _published_in_words(published: Published) -> str:
    newest = (
        "no version" if published.version is None else f"the versions up to {published.version}"
    )
    text = f"{published.url} has {newest}"
    if published.error is None:
        return f"{text}, as of {published.published_at}."
    reason = " ".join(published.error.split())
    return (
        f"{text}; publishing failed at {published.failed_at}: {reason}. The next version, or "
        "`gracekit publish`, tries again."
    )


def daemon_in_words(daemon: Json) -> str:
    """What the daemon does, from its heartbeat."""
    state = str(daemon.get("state"))
    text = _DAEMON.get(state, f"The daemon is {state}.")
    if state == "refreshing":
        text += _progress_in_words(daemon.get("progress"))
    if "seconds_since_beat" in daemon:
        text += f" Its last sign is {age(daemon['seconds_since_beat'])} old."
    if "error" in daemon:
        text += f" Its last error: {' '.join(str(daemon['error']).split())}"
    if "next_try_at" in daemon:
        text += f" (try {daemon.get('num_tries')}, next at {daemon['next_try_at']})"
    return text


def _progress_in_words(progress: object) -> str:
    """How far a refresh has come, as far as its daemon says it."""
    if not isinstance(progress, dict) or not isinstance(progress.get("stage"), str):
        return ""
    text = f" Stage {progress['stage']!r}"
    done, planned, left = (progress.get(k) for k in ("num_done", "num_planned", "seconds_left"))
    if isinstance(done, int) and isinstance(planned, int):
        text += f": {done:,} of {planned:,} samples measured"
    if isinstance(left, int | float):
        text += f", about {duration(left)} left of this round"
    return f"{text}."


_UNKNOWN = {"never", "invalid", "removed"}
"""Origins of samples of which no score is known."""


def next_step(store: str, contents: StoreContents | None, daemon: Json) -> str:
    """The one thing to do now."""
    state, where = daemon.get("state"), daemon.get("checkpoint_dir", "CHECKPOINT_DIR")
    if contents is not None and any("verify" in problem for problem in contents.problems):
        return f"`gracekit verify --store {store}` says what is wrong where, and what to do."
    if state in _RESTART:
        return f"start the daemon again: `gracekit watch {where}`."
    if state == "failing":
        return "put right what the daemon's error says; it goes on by itself."
    is_running = state not in ("absent", "stopped", "unreadable")
    if contents is None or contents.latest is None:
        if is_running:
            return "wait for the first complete checkpoint of the training run."
        return "`gracekit watch CHECKPOINT_DIR` makes a version at the first complete checkpoint."
    if contents.problems:
        return "see to the problem above."
    latest = contents.latest
    if latest.cost and latest.num_measured == 0 and set(latest.origins) <= _UNKNOWN:
        drawn = "no norms are known" if latest.aim else "all samples are drawn alike"
        if latest.max_cost is None:
            return f"raise refresh.min_fraction in the recipe: nothing was measured, so {drawn}."
        return (
            "raise refresh.max_cost in the recipe, or train for longer: it allowed no measuring, "
            f"so {drawn}."
        )
    if latest.misses_target:
        return "raise refresh.max_fraction in the recipe: what was measured misses its target."
    if is_running:
        return f"nothing; the trainer takes version {contents.latest.version} at its next epoch."
    return (
        f"`gracekit watch {where}` follows the run, or `gracekit export -o DIRECTORY` writes "
        f"version {contents.latest.version} as training data."
    )
