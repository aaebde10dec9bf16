"""What a drawing of the network needs: its columns of units, and which of them each of some members keeps."""

from __future__ import annotations

import math
from typing import Any

import torch

from puredrop.members.engine import Members
from puredrop.members.prepared import PreparedModel

__all__ = ["drawing", "power_of_two"]

_SHOWN, _MEMBERS, _COLUMNS = 9, 24, 6


def drawing(prepared: PreparedModel, outputs: int) -> dict[str, Any]:
    """Columns from inputs over sites to outputs, and members' masks of the units that are shown.

    Args:
        probe: the model and its data.
        outputs: of a row.

    Returns:
        What JSON holds: `columns`, each with `name`, `units` and `shown`; `members`, for each column that drops which
        of its shown units are kept, and how many of all; None stands for columns where nothing drops.
    """
    members, uses = Members(prepared.seed, is_shared=True, balanced=False), prepared.uses[:_COLUMNS]
    inputs = prepared.batches[0].tensors[0][0].numel()
    columns: list[dict[str, Any]] = [{"name": "inputs", "units": inputs, "shown": min(inputs, _SHOWN)}]
    for use in uses:
        columns.append(
            {"name": f"{use.place or 'model'}, p={use.p:g}", "units": use.units, "shown": min(use.units, _SHOWN)}
        )
    columns.append({"name": "outputs", "units": outputs, "shown": min(outputs, _SHOWN)})
    drawn: list[list[dict[str, Any] | None]] = [[None] for _ in range(_MEMBERS)]
    for use in uses:
        masks = members.masks(use.path, use.call).keep(range(_MEMBERS), use.p, use.units, 0, torch.device("cpu"))
        for kept, keep in zip(drawn, masks, strict=True):
            kept.append({"shown": keep[:_SHOWN].tolist(), "kept": int(keep.sum())})
    return {"columns": columns, "members": [[*kept, None] for kept in drawn], "more": len(prepared.uses) - len(uses)}


def power_of_two(units: int) -> str:
    """2^n, and the power of ten that it is nearly."""
    return f"2^{units}" + (f" ≈ 10^{units * math.log10(2):.0f}" if units > 20 else f" = {2**units:,}")
