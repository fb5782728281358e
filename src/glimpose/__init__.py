"""6D poses of objects and robots, learned from CAD models and photographs that nobody labelled."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glimpose.data.bop import read_camera
    from glimpose.data.files import read_image
    from glimpose.objects.estimator import EstimatorConfig, PoseEstimator
    from glimpose.objects.looks import PoseEstimate

__version__ = "0.1.0"

_HOMES = {
    "PoseEstimator": "glimpose.objects.estimator",
    "PoseEstimate": "glimpose.objects.looks",
    "EstimatorConfig": "glimpose.objects.estimator",
    "read_camera": "glimpose.data.bop",
    "read_image": "glimpose.data.files",
}
__all__ = ["EstimatorConfig", "PoseEstimate", "PoseEstimator", "read_camera", "read_image"]


def __getattr__(name: str) -> Any:
    """Import public names when they are asked for: `import glimpose` alone loads nothing heavy."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'glimpose' has no attribute {name!r}")
