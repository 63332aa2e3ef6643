"""Defects in micrographs, with and without context."""
