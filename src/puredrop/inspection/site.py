"""A place where a model drops, and how a list of them reads."""

from __future__ import annotations

from dataclasses import dataclass

from puredrop._text import table

__all__ = ["Site", "Sites"]

_HEADS = ("path", "kind", "p", "shape", "uses", "in eval", "where", "note")


@dataclass(frozen=True)
class Site:
    """A place where a model drops.

    Args:
        path: the module's path; for a functional call that of the module around it, then `:kind` and its order there.
        kind: "dropout", "dropout2d", "attention", "recurrent", "drop_path", ...; "draw" for a call that draws random
            numbers of its own; "unseen" for what cannot be looked into.
        p: the rate, None where it cannot be told.
        shape: sizes of what it drops from, None where it was never reached.
        where: "file:line" of the call in the user's code, else the module's class.
        uses: how often one forward in training mode came here; 0 if never.
        in_eval: whether it drops in eval mode too; None where it was never reached.
        note: what else a person should know, or "".
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
        """Whether the forward came here in training mode."""
        return self.uses > 0


class Sites(list[Site]):
    """A list of sites that prints as a table."""

    def __str__(self) -> str:
        if not self:
            return "no dropout: neither seen in a forward nor held by a module"
        rows = [_HEADS, *map(_cells, self)]
        shown = [c for c in range(len(_HEADS)) if any(row[c] for row in rows[1:])]
        return table([row[c] for c in shown] for row in rows)

    __repr__ = __str__


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
