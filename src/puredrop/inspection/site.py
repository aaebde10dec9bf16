"""A place where a model drops, and the list of all places as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from puredrop._records import Records
from puredrop._text import table

__all__ = ["Site", "Sites"]

_HEADS = ("path", "kind", "p", "shape", "uses", "in eval", "where", "note")


@dataclass(frozen=True)
class Site:
    """A place where a model drops.

    Args:
        path: the module's path; for a functional call that of the module around it, then `:kind` and its order there.
        kind: "dropout", "dropout2d", "attention", "recurrent", "drop_path", ...; "draw" for a call that draws random
            numbers of its own; "unseen" for TorchScript, and for random draws whose call was not observed.
        p: the drop probability; None where it is unknown.
        shape: shape of the tensor that is dropped from; None where the site was never reached.
        where: "file:line" of the call in the user's code, else the module's class.
        uses: number of times that one forward in training mode reaches the site.
        in_eval: whether the site drops in eval mode too; None where it was never reached.
        note: remark for the reader, or "".
    """

    path: str
    kind: str
    p: float | None
    shape: tuple[int, ...] | None
    where: str
    uses: int
    in_eval: bool | None
    note: str = ""

    @property
    def is_reached(self) -> bool:
        """Return whether the forward reached the site in training mode."""
        return self.uses > 0

    def to_dict(self) -> dict[str, Any]:
        """Return the site's fields as a dictionary; a shape is a list, as in JSON."""
        return {**asdict(self), "shape": None if self.shape is None else list(self.shape)}


class Sites(list[Site], Records):
    """List of sites that prints as a table, and can be handed to other programs."""

    def to_dict(self) -> dict[str, Any]:
        """Return the sites as plain dictionaries under the key "sites"."""
        return {"sites": self.records()}

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: the fields of each site."""
        rows = [site.to_dict() for site in self]
        return {one.name: [row[one.name] for row in rows] for one in fields(Site)}

    def __str__(self) -> str:
        if not self:
            return "no dropout: neither seen in a forward nor held by a module"
        rows = [_HEADS, *map(_cells, self)]
        shown = [c for c in range(len(_HEADS)) if any(row[c] for row in rows[1:])]
        return table([row[c] for c in shown] for row in rows)

    __repr__ = Records.__repr__


def _cells(site: Site) -> tuple[str, ...]:
    in_eval = {None: "", True: "DROPS", False: "off"}[site.in_eval]
    return (
        site.path or "(model)",
        site.kind,
        "?" if site.p is None else f"{site.p:g}",
        "" if site.shape is None else "x".join(map(str, site.shape)),
        str(site.uses),
        in_eval,
        site.where,
        site.note,
    )
