"""What dropout did to a model: each question measured, each approximation beside its truth."""

from puredrop.explain._penalty import Penalty, SitePenalty, penalty

__all__ = ["Penalty", "SitePenalty", "penalty"]
