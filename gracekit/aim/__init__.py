"""What is worth training on: the place of each row in the target t, from signals and by factors."""

from gracekit.aim.course import Course, TargetLosses
from gracekit.aim.following import follow
from gracekit.aim.gains import Gain
from gracekit.aim.judging import Evidence
from gracekit.aim.places import alike, copies, dose, one_place, respond_alike

__all__ = [
    "Course",
    "Evidence",
    "Gain",
    "TargetLosses",
    "alike",
    "copies",
    "dose",
    "follow",
    "one_place",
    "respond_alike",
]
