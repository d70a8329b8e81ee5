"""Sections of the recipe that say where versions go besides the store: trackers, object stores."""

from __future__ import annotations

from pydantic import model_validator

from gracekit.errors import UsageError
from gracekit.recipe.section import Section
from gracekit.remote import address_of


class WatchSection(Section):
    """What `gracekit watch` does besides. docs/how-to/log-to-a-tracker.md says more."""

    trackers: tuple[str, ...] = ()
    """Where each version is logged: `tensorboard`, `wandb`, `trackio`, or a `package.module:Class`
    of your own."""
    project: str | None = None
    """Project that wandb and trackio put the run into; default: `gracekit`, or what the variable
    WANDB_PROJECT says."""
    run_name: str | None = None
    """Name of the run; default: that of the store's directory."""


class PublishSection(Section):
    """Where each version is copied to besides. docs/how-to/use-an-object-store.md says more."""

    url: str | None = None
    """A folder of an object store, such as `s3://bucket/run`; takes `gracekit[s3]`. Trainers read
    the versions from there. null: nowhere."""

    @model_validator(mode="after")
    def _url_is_one(self) -> PublishSection:
        try:
            is_one = self.url is None or address_of(self.url) is not None
        except UsageError as error:
            raise ValueError(str(error)) from None
        if not is_one:
            raise ValueError(
                f"url is that of a remote folder, such as s3://bucket/run, found {self.url!r}"
            )
        return self
