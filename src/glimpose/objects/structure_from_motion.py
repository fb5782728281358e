"""Where photographs were taken from, by what they show in common: structure from motion, as COLMAP does it."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from glimpose.data.files import write_image
from glimpose.objects.photographs import Photograph

logger = logging.getLogger(__name__)

LEAST_LINKED = 10
"""Photographs that have to be linked."""
SEED = 0


def find_cameras(photographs: Sequence[Photograph]) -> dict[int, np.ndarray]:
    """Give cam_T_scene, 4×4, of each photograph that could be linked to the others, by its number.

    The scene's frame and unit are arbitrary: pictures alone don't tell how large things are. Local features are matched
    in every pair of photographs, so time grows with the square of their number (100 take four minutes on two cores).

    Raises ValueError where too few photographs show the same scene, and without pycolmap.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise ValueError("static_scene needs pycolmap, which finds cameras: pip install glimpose[scene]") from error
    pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value
    pycolmap.set_random_seed(SEED)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        database, images = folder / "database.db", folder / "images"
        images.mkdir()
        for number, photograph in enumerate(photographs):
            write_image(images / f"{number}.png", photograph.image)
        logger.info("matching %d photographs with each other", len(photographs))
        pycolmap.extract_features(
            database, images, camera_mode=pycolmap.CameraMode.PER_IMAGE, device=pycolmap.Device.cpu
        )
        with pycolmap.Database.open(database) as opened:
            for image in opened.read_all_images():
                K = photographs[int(Path(image.name).stem)].K
                camera = opened.read_camera(image.camera_id)
                camera.model = pycolmap.CameraModelId.PINHOLE
                # COLMAP's pixel (0, 0) is the corner of the first one, here it's the centre.
                camera.params = [K[0, 0], K[1, 1], K[0, 2] + 0.5, K[1, 2] + 0.5]
                camera.has_prior_focal_length = True
                opened.update_camera(camera)
        pycolmap.match_exhaustive(database, device=pycolmap.Device.cpu)
        options = pycolmap.IncrementalPipelineOptions(
            ba_refine_focal_length=False, ba_refine_extra_params=False, random_seed=SEED, extract_colors=False
        )
        models = pycolmap.incremental_mapping(database, images, folder / "models", options=options)
        largest = max(models.values(), key=lambda model: model.num_reg_images(), default=None)
        cameras = {}
        for image in largest.images.values() if largest else ():
            if image.has_pose:
                cam_T_scene = np.eye(4)
                cam_T_scene[:3] = image.cam_from_world().matrix()
                cameras[int(Path(image.name).stem)] = cam_T_scene
    if len(cameras) < LEAST_LINKED:
        raise ValueError(
            f"only {len(cameras)} of {len(photographs)} photographs could be linked, {LEAST_LINKED} are needed: "
            "do they show one scene that stands still, sharp, and from places near enough to each other?"
        )
    logger.info("%d of %d photographs are linked", len(cameras), len(photographs))
    return dict(sorted(cameras.items()))
