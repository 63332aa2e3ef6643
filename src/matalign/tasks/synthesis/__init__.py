"""Precursor sets and temperatures."""
