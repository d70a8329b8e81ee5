"""Experiment trackers: `gracekit watch` logs each version with TensorBoard, wandb or trackio.

`names` says which trackers there are and how one of a user's own is named; `values` what is logged
of a version; `tracking` does it, in a thread for each tracker, so that the daemon never waits for
one. A tracker runs in a process of its own (`process`, which `worker` starts and ends): what its
library prints, which signals it takes, and whether it ever comes back is then no concern of the
daemon's. `logged` is the file that says which versions a run has. The trackers themselves are
`tensorboard_files`, `wandb_run` and `trackio_run`, whose libraries only that process imports.
To add one, implement `protocols.Tracker`, and put it into `TRACKERS` or name it as
`package.module:Class`.
"""
