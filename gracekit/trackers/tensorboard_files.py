"""TensorBoard: event files in the store, `tensorboard --logdir STORE/trackers/tensorboard`."""

from __future__ import annotations

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary import Writer

from gracekit.protocols import TrackedRun
from gracekit.version.log_numbers import PREFIX

_VERSION = f"{PREFIX}version"


class TensorBoardFiles:
    """Writes an event file at each start, in a directory of the run's name.

    What the files of the run have already is read back, so that a version is not there twice even
    if the daemon was killed before it could note that the version was logged.
    """

    def __init__(self, run: TrackedRun) -> None:
        place = run.folder / f"{run.name.replace('/', '-')}-{run.id}"
        place.mkdir(exist_ok=True)
        self._has = _versions_in(str(place))
        self._writer = Writer(str(place))

    def log(self, values: dict[str, float], step: int) -> None:
        """Write one point of each curve, and flush."""
        if values[_VERSION] in self._has:
            return
        # The version last: what a kill cut off before it is written again.
        for name in sorted(values, key=lambda name: name == _VERSION):
            self._writer.add_scalar(name, values[name], step)
        self._writer.flush()
        self._has.add(values[_VERSION])

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def _versions_in(directory: str) -> set[float]:
    """Versions that the event files of a directory have."""
    found = EventAccumulator(directory, size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    tags = found.Tags()
    points = (
        {point.value for point in found.Scalars(_VERSION)} if _VERSION in tags["scalars"] else set()
    )
    if _VERSION in tags["tensors"]:
        points |= {float(e.tensor_proto.float_val[0]) for e in found.Tensors(_VERSION)}
    return points
