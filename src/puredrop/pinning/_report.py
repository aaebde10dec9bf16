"""Report of a pinned model: its sites, where their samples lie, and what is not pinned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from puredrop._records import Records
from puredrop._text import table
from puredrop.pinning._draws import Unpinned

__all__ = ["PinReport", "SiteRecord"]


@dataclass(frozen=True)
class SiteRecord:
    """A pinned site.

    Args:
        path: path of the site.
        kind: name of the layer's class, or the kind of the function.
        shape: sizes of the tensor in the first forward; None where that did not reach the site or was compiled.
        sample_dim: dimension of the samples, None where all samples share the mask.
        samples: "shown" where forwards with other numbers of samples show the dimension, "given" where the user gave
            it, "assumed" where neither is so, "refused" where the samples lie elsewhere, so that a step of several
            forwards or processes is an error, "not reached" where no forward has reached the site.
        reason: what shows it, or why not.
    """

    path: str
    kind: str
    shape: tuple[int, ...] | None
    sample_dim: int | None
    samples: str
    reason: str = ""


@dataclass(frozen=True, repr=False)
class PinReport(Records):
    """Report of what is pinned in a model, and what is not; `run.report` returns it.

    Prints as text; `to_dict`, `to_json` and `frame` hand it to other programs.

    Args:
        sites: the pinned sites.
        unpinned: places whose outcome does not follow from the seed.
        note: what the report does not know, such as before the first forward in training mode; or "".
    """

    sites: Sequence[SiteRecord]
    unpinned: Sequence[Unpinned]
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return sites and places that are not pinned as plain dictionaries."""
        sites = [{**asdict(site), "shape": None if site.shape is None else list(site.shape)} for site in self.sites]
        return {"sites": sites, "unpinned": [asdict(place) for place in self.unpinned], "note": self.note}

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: sites, then places that are not pinned."""
        sites, places = self.to_dict()["sites"], self.unpinned
        rows = {field.name: [site[field.name] for site in sites] for field in fields(SiteRecord)}
        for name, values in rows.items():
            values += [getattr(place, name, None) for place in places]
        rows["where"] = [*(None for _ in sites), *(place.where for place in places)]
        rows["pinned"] = [*(True for _ in sites), *(False for _ in places)]
        return rows

    def __str__(self) -> str:
        heads = ("path", "kind", "pinned", "shape", "samples", "reason")
        rows = [heads]
        for site in self.sites:
            shape = "" if site.shape is None else "x".join(map(str, site.shape))
            rows.append((site.path or "(model)", site.kind, "yes", shape, site.samples, site.reason))
        for place in self.unpinned:
            where = "" if place.where == "?" else f"{place.where}: "
            rows.append((place.path or "(model)", place.kind, "NO", "", "", where + place.reason))
        lines = [table(rows)] if len(rows) > 1 else ["nothing drops: neither seen in a forward nor held by a module"]
        return "\n".join([*lines, self.note] if self.note else lines)

    __repr__ = Records.__repr__
