"""Which objects count as found, and at which thresholds."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MSSD_THRESHOLDS_DIAMETERS = tuple(i / 20 for i in range(1, 11))
MSPD_THRESHOLDS_PX = tuple(5.0 * i for i in range(1, 11))
"""For an image 640 pixels wide; errors in others are scaled to that width."""
MSPD_WIDTH_PX = 640
VSD_TOLERANCES_DIAMETERS = tuple(i / 20 for i in range(1, 11))
VSD_THRESHOLDS = tuple(i / 20 for i in range(1, 11))
ADD_THRESHOLD_DIAMETERS = 0.1


def match_greedily(errors: Float[Tensor, "*k e g"], thresholds: Float[Tensor, "*k"]) -> Bool[Tensor, "*k e g"]:
    """Pair estimates with true instances, each at most once: estimate e with instance g where the result is true.

    The estimates are given best score first, and take in this order the instance of least error among those left, if
    it is below the threshold. NaN errors match nothing.
    """
    errors = errors.nan_to_num(nan=torch.inf, posinf=torch.inf)
    num_instances = errors.shape[-1]
    pairs = torch.zeros_like(errors, dtype=torch.bool)
    if num_instances == 0:
        return pairs
    is_free = torch.ones(*errors.shape[:-2], num_instances, dtype=torch.bool, device=errors.device)
    for estimate in range(errors.shape[-2]):
        left = torch.where(is_free, errors[..., estimate, :], torch.inf)
        least, index = left.min(-1)
        chosen = torch.nn.functional.one_hot(index, num_instances).bool() & (least < thresholds)[..., None]
        pairs[..., estimate, :] = chosen
        is_free &= ~chosen
    return pairs
