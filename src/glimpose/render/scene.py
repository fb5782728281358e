"""What every renderer takes and gives, and the choice of one."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8

from glimpose.render.mesh import Mesh

logger = logging.getLogger(__name__)

NEAR_M, FAR_M = 0.01, 20.0
"""What is drawn, unless told otherwise, lies between."""
MAX_INSTANCES = 255
"""Instance maps are uint8, and 0 is the background."""


@dataclass(frozen=True)
class Instance:
    """A mesh at a pose."""

    mesh: Mesh
    cam_T_obj: Float[np.ndarray, "4 4"]


@dataclass(frozen=True)
class Buffers:
    """What a camera sees at each pixel's centre; every array is zero where nothing is."""

    albedo: UInt8[np.ndarray, "h w 3"]
    normal: Float[np.ndarray, "h w 3"]
    """Unit length, camera frame, towards the camera also where a surface is seen from behind."""
    depth: Float[np.ndarray, "h w"]
    """z in the camera frame."""
    mask: UInt8[np.ndarray, "h w"]
    """i + 1 for instance i."""
    xyz: Float[np.ndarray, "h w 3"]
    """The surface point in the frame of the object seen there."""


@runtime_checkable
class Renderer(Protocol):
    """Draws instances as a pinhole camera sees them."""

    name: str

    def render(
        self,
        instances: Sequence[Instance],
        K: Float[np.ndarray, "3 3"],
        height: int,
        width: int,
        near_m: float = NEAR_M,
        far_m: float = FAR_M,
        with_xyz: bool = True,
    ) -> Buffers:
        """Draw with mutual occlusion what lies between the near and far planes.

        Without ``with_xyz`` that array is zero everywhere, which saves up to a third of the time.
        K may have skew and rotation, as a crop's has; its last row is (0, 0, 1).
        """
        ...

    def silhouettes(
        self, instances: Sequence[Instance], K: Float[np.ndarray, "3 3"], height: int, width: int
    ) -> list[Bool[np.ndarray, "h w"]]:
        """Where each instance would be seen if nothing else were there: `render`'s mask of it alone, for less."""
        ...

    def close(self) -> None:
        """Release what the renderer holds."""
        ...


def check_scene(instances: Sequence[Instance], K: Float[np.ndarray, "3 3"], near_m: float, far_m: float) -> None:
    """Raise ValueError for what no renderer can draw."""
    if len(instances) > MAX_INSTANCES:
        raise ValueError(
            f"render: {len(instances)} instances, but a mask tells {MAX_INSTANCES} apart; draw fewer at a time"
        )
    if not (np.isfinite(K).all() and np.array_equal(K[2], [0, 0, 1])):
        raise ValueError(f"render: the last row of K is {K[2]}, expected [0, 0, 1] and finite numbers; normalise K")
    if not 0 < near_m < far_m:
        raise ValueError(f"render: near_m {near_m} and far_m {far_m}, expected 0 < near_m < far_m")


def make_renderer(kind: Literal["auto", "gl", "raster"] = "auto") -> Renderer:
    """Open a renderer; "auto" takes OpenGL where a context can be had, else the reference rasteriser.

    A renderer belongs to the process that opened it: data-loading workers open their own.
    """
    reason = "as asked"
    if kind != "raster":
        from glimpose.render.gl import GlRenderer, GlUnavailableError

        try:
            renderer = GlRenderer()
        except GlUnavailableError as error:
            if kind == "gl":
                raise
            reason = str(error)
        else:
            logger.info("renderer: gl, on %s (%s)", renderer.device, reason if kind == "gl" else "found")
            return renderer
    from glimpose.render.raster import RasterRenderer

    log = logger.info if kind == "raster" else logger.warning
    log("renderer: raster (%s)", reason)
    return RasterRenderer()
