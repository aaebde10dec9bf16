"""What `batchwise` did to a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.nn import Module

from puredrop.thinning._layers import Batchwise
from puredrop.thinning.chains import Chain
from puredrop.thinning.groups import Groups

__all__ = ["Thinned"]


@dataclass(frozen=True)
class Thinned:
    """What runs batchwise in a model, what does not and why.

    Args:
        model: the model.
        groups: the rule by which batches are split.
        chains: the dropout layers whose masks groups of samples share, with their neighbours.
        skipped: path of each place that drops as before -> why.
    """

    model: Module
    groups: Groups
    chains: Sequence[Chain]
    skipped: dict[str, str]

    def count(self, samples: int, rows: int | None = None) -> int:
        """How many groups a batch is split into.

        Args:
            samples: in the batch.
            rows: tokens of all samples together, or positions of maps; the samples themselves if not given.
        """
        return self.groups.of(samples, samples if rows is None else rows).groups

    @property
    def work(self) -> dict[str, float]:
        """Path of each layer with weights -> the share of its work that is left, on average."""
        shares: dict[str, float] = {}
        for chain in self.chains:
            kept = 1 - float(getattr(chain.site, "p", 0.0))
            for path in (*([chain.before_path] if chain.before else []), *chain.after):
                shares[path] = shares.get(path, 1.0) * kept
        return shares

    def revert(self) -> None:
        """Have every layer do again what it did before; weights stay as they are now."""
        for module in self.model.modules():
            if isinstance(module, Batchwise):
                module.back()

    def __str__(self) -> str:
        sites = len({chain.site for chain in self.chains})
        lines = [f"masks of {sites} dropout layer{'s' * (sites > 1)} shared, groups: {self.groups}"]
        lines += [f"  {path}: {100 * share:.0f} % of its work is left" for path, share in self.work.items()]
        lines += [f"{path or '(model)'}: left as it is, {why}" for path, why in self.skipped.items()]
        lines.append(
            "price: with G groups masks add C/G to the gradient's variance, not C/B (B samples, C the variance of the "
            "gradient over masks)"
        )
        return "\n".join(lines)
