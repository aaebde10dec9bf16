"""Sections, figures, intervals and pages, with which results are shown."""
