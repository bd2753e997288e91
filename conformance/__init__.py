"""Test classes that every paper package subclasses. For development only: no package depends on it."""
