"""What the parts of a header are made of: frozen models, and numbers that JSON has no word for."""

from __future__ import annotations

import math
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from gracekit.recipe import Section

SectionType = TypeVar("SectionType", bound=Section)


class Part(BaseModel):
    """A part of a header: frozen; what a later release of the same format adds is passed over."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
        # Those of pydantic 2.10: before, it warned of every field that begins with model_.
        protected_namespaces=("model_validate", "model_dump"),
    )


def _from_null(value: Any) -> Any:
    return math.nan if value is None else value


def _to_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


Number = Annotated[
    float, BeforeValidator(_from_null), PlainSerializer(_to_null, return_type=float | None)
]
"""A float that may be NaN where there is nothing to tell; JSON has null for it."""


def read_section(section: type[SectionType], values: Any) -> Any:
    """A section of a recipe as a header keeps it, whichever release wrote it.

    Keys that the section does not have (any more) are passed over; a value that it does not take
    (any more) becomes the default. Anything but a mapping is returned as it is.
    """
    if not isinstance(values, dict):
        return values
    fields = section.model_fields  # looked up once: pydantic computes it at each access
    known = {key: value for key, value in values.items() if key in fields}
    while True:
        try:
            return section(**known)
        except ValidationError as error:
            places = {str(found["loc"][0]) for found in error.errors() if found["loc"]}
            refused = places & set(known)
            if not refused:
                return section(**{k: v for k, v in known.items() if k in _required(section)})
            known = {key: value for key, value in known.items() if key not in refused}


def _required(section: type[Section]) -> set[str]:
    return {name for name, field in section.model_fields.items() if field.is_required()}
