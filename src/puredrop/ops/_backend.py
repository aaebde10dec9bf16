"""Which implementation of the operator runs."""

from __future__ import annotations

import os

__all__ = ["backend"]

_PRESENT = ("reference",)


def backend() -> str:
    """The backend that draws masks: the environment's PUREDROP_BACKEND if set, else the fastest one present.

    Returns:
        "reference", plain torch; this version has no other.

    Raises:
        ValueError: if PUREDROP_BACKEND names a backend that this installation lacks.

    >>> backend()
    'reference'
    """
    forced = os.environ.get("PUREDROP_BACKEND")
    if forced is not None and forced not in _PRESENT:
        raise ValueError(f"PUREDROP_BACKEND is {forced!r}; this installation has: {', '.join(_PRESENT)} (or unset it)")
    return forced or _PRESENT[0]
