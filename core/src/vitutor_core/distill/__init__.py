"""Frozen teachers, and what they say of the images: asked for, or stored."""

from vitutor_core.distill.teacher import FrozenTeacher

__all__ = ["FrozenTeacher"]
