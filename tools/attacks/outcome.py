"""Results of an attack, and the random choices of one case."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch

__all__ = ["Choices", "Outcome"]


@dataclass
class Outcome:
    """Count of cases, and of those that broke the promise.

    Args:
        promise: what every case must hold.
        cases: how many cases ran.
        detail: what kinds of cases there were, for the table.
        failures: by number of the case, what went wrong.
    """

    promise: str
    cases: int = 0
    detail: str = ""
    failures: dict[int, str] = field(default_factory=dict)


class Choices(random.Random):
    """Random choices that a seed and the number of a case determine.

    Args:
        attack: name of the attack, so that two attacks make different choices.
        seed: seed of the whole run.
        number: number of the case.
    """

    def __init__(self, attack: str, seed: int, number: int) -> None:
        super().__init__(f"{attack} {seed} {number}")
        self.torch = torch.Generator().manual_seed(self.getrandbits(63))

    def chance(self, probability: float) -> bool:
        """Return True with a probability."""
        return self.random() < probability
