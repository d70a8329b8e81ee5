"""The recipe: the YAML file that says what a store is made from and how it is refreshed.

Every key has its meaning below it (`sections`); unknown keys and values out of range are a
`RecipeError` that names the place and the nearest valid key. Paths are relative to the recipe's own
folder. The stages receive their section as it is; nothing changes a recipe after loading.
"""

from gracekit.recipe.column_names import ColumnNames
from gracekit.recipe.compare_section import CompareSection
from gracekit.recipe.recipe import Recipe, measured_keys, read_yaml
from gracekit.recipe.section import Section
from gracekit.recipe.sections import (
    CheckpointSection,
    DataFormat,
    DataSection,
    GraphSection,
    LengthCorrection,
    PropagationSection,
    RefreshSection,
    RetentionSection,
    ScoringSection,
    SelectionSection,
    TargetSection,
    TrainingSection,
)
from gracekit.recipe.where_versions_go import PublishSection, WatchSection

__all__ = [
    "CheckpointSection",
    "ColumnNames",
    "CompareSection",
    "DataFormat",
    "DataSection",
    "GraphSection",
    "LengthCorrection",
    "PropagationSection",
    "PublishSection",
    "Recipe",
    "RefreshSection",
    "RetentionSection",
    "ScoringSection",
    "Section",
    "SelectionSection",
    "TargetSection",
    "TrainingSection",
    "WatchSection",
    "measured_keys",
    "read_yaml",
]
