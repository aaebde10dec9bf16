"""What dropout did to a model: each question measured, each approximation beside its truth."""

from puredrop.explanation.coadaptation import Coadaptation, Curve, coadaptation
from puredrop.explanation.gradient_noise import GradientNoise, gradient_noise
from puredrop.explanation.l2_strength import L2Strength, l2_strength
from puredrop.explanation.member_visits import MemberVisits, member_visits
from puredrop.explanation.penalty import Penalty, SitePenalty, penalty
from puredrop.explanation.ridge import Descent, Margins, Ridge, margins, ridge
from puredrop.explanation.variance_shift import Shift, VarianceShift, variance_shift
from puredrop.explanation.weight_scaling_gap import Distance, LeaveOneOut, WeightScalingGap, weight_scaling_gap

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
