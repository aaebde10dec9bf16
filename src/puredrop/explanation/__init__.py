"""Questions about what dropout did to a model, each measured, each approximation compared with its truth.

`explain` is `puredrop.explain`. Each question has a file, which is named as its measure.
"""

from puredrop.explanation.explainer import Explainer

__all__ = ["explain"]

explain = Explainer()
