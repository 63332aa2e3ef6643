"""matalign: crystal structures, synthesis protocols and micrographs in one space."""

__version__ = "0.1.0"
