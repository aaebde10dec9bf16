"""Report of `batchwise`: which layers run thinned, and which places were skipped and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.nn import Module

from puredrop._records import Records
from puredrop.thinning._layers import BatchwiseLayer
from puredrop.thinning.chains import Chain
from puredrop.thinning.groups import Groups

__all__ = ["Thinned"]


@dataclass(frozen=True, repr=False)
class Thinned(Records):
    """Report of `batchwise`: which layers run thinned, and which places were skipped and why.

    Prints as text; `to_dict`, `to_json` and `frame` hand it to other programs.

    Args:
        model: the model that runs batchwise.
        groups: rule by which batches are split.
        chains: dropout layers whose masks groups of samples share, with the layers around them.
        skipped: path of each place that drops as before -> the reason.
    """

    model: Module
    groups: Groups
    chains: Sequence[Chain]
    skipped: dict[str, str]

    def count(self, samples: int, rows: int | None = None) -> int:
        """Return the number of groups that a batch is split into.

        Args:
            samples: number of samples in the batch.
            rows: number of tokens, or of positions of maps, in all samples together; by default one for each sample.

        Returns:
            The number of groups, from 1 to the number of samples.
        """
        return self.groups.split(samples, samples if rows is None else rows).groups

    @property
    def work(self) -> dict[str, float]:
        """Path of each layer with weights -> the average share of its multiplications that remains, 0 to 1."""
        shares: dict[str, float] = {}
        for chain in self.chains:
            kept = 1 - float(getattr(chain.site, "p", 0.0))
            for path in (*([chain.before_path] if chain.before else []), *chain.after):
                shares[path] = shares.get(path, 1.0) * kept
        return shares

    def revert(self) -> None:
        """Restore the class of every layer; weights keep their present values."""
        for module in self.model.modules():
            if isinstance(module, BatchwiseLayer):
                module.restore_class()

    def to_dict(self) -> dict[str, Any]:
        """Return the dropout layers that share masks, the share of work of each layer, and what was skipped."""
        return {
            "groups": self.groups.number,
            "shared": sorted({chain.path for chain in self.chains}),
            "work": self.work,
            "skipped": dict(self.skipped),
        }

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `frame`: each layer with less work, and each skipped place with the reason."""
        work, reasons = self.work, self.skipped.values()
        return {
            "path": [*work, *self.skipped],
            "work": [*work.values(), *(1.0 for _ in reasons)],
            "reason": [*("" for _ in work), *reasons],
        }

    def __str__(self) -> str:
        sites = len({chain.site for chain in self.chains})
        lines = [f"masks of {sites} dropout layer{'s' * (sites > 1)} shared, groups: {self.groups}"]
        lines += [f"  {path}: {100 * share:.0f} % of its work remains" for path, share in self.work.items()]
        lines += [f"{path or '(model)'}: skipped, {reason}" for path, reason in self.skipped.items()]
        lines.append(
            "cost: with G groups, masks add C/G to the variance of the gradient instead of C/B (B samples, C the "
            "variance of one sample's gradient over masks)"
        )
        return "\n".join(lines)
