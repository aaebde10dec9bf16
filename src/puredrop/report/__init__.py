"""Sections, figures, intervals and pages: what `explain` and `compare` show their results with."""
