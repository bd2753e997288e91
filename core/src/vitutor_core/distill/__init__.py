"""Frozen teachers and the losses that two or more papers share."""

from vitutor_core.distill.teacher import FrozenTeacher

__all__ = ["FrozenTeacher"]
