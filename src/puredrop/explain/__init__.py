"""What dropout did to a model: each question measured, each approximation beside its truth."""

from puredrop.explain._coadaptation import Coadaptation, Curve, coadaptation
from puredrop.explain._gap import Distance, LeaveOneOut, WeightScalingGap, weight_scaling_gap
from puredrop.explain._gradient import GradientNoise, gradient_noise
from puredrop.explain._penalty import Penalty, SitePenalty, penalty
from puredrop.explain._ridge import Descent, Margins, Ridge, margins, ridge
from puredrop.explain._shift import Shift, VarianceShift, variance_shift
from puredrop.explain._strength import L2Strength, l2_strength
from puredrop.explain._visits import MemberVisits, member_visits

__all__ = [
    "Coadaptation",
    "Curve",
    "Descent",
    "Distance",
    "GradientNoise",
    "L2Strength",
    "LeaveOneOut",
    "Margins",
    "MemberVisits",
    "Penalty",
    "Ridge",
    "Shift",
    "SitePenalty",
    "VarianceShift",
    "WeightScalingGap",
    "coadaptation",
    "gradient_noise",
    "l2_strength",
    "margins",
    "member_visits",
    "penalty",
    "ridge",
    "variance_shift",
    "weight_scaling_gap",
]
