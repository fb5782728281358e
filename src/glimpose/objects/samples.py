"""Training samples: photographs for the glance and crops for the gaze, with targets at the networks' stride."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from glimpose.data.sensor import cut_off
from glimpose.nets.glance_gaze import GlanceGazeConfig
from glimpose.nets.mtgoe import STRIDE
from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.crops import (
    central_mean,
    crop_matrix,
    frame_object,
    gaze_reference_depth_m,
    glance_matrix,
    glance_reference_depth_m,
    is_in_view,
)
from glimpose.objects.synthesis import Photographer, Scene, SceneSampler, only_visible_in
from glimpose.render.scene import Buffers

Sample = dict[str, np.ndarray]


@dataclass(frozen=True)
class SampleConfig:
    """What training samples show."""

    center: float = 0.07
    """How far crops are off, as the glance will be: standard deviation in each direction, in crop sides."""
    log_scale: float = 0.12
    """The same for the logarithm of their size."""
    window_px: int = 96
    """Side of the glance's training windows: most of a whole photograph shows no object, and would teach little."""
    min_visible_fraction: float = 0.15
    """Objects that show less than this are not trained on."""
    decoy_probability: float = 0.2
    """Of crops that don't show the object asked for: the gaze has to tell what the glance got wrong."""
    cut_off_probability: float = 0.15
    """Of crops that the photograph's border cuts off."""


@dataclass(frozen=True)
class Closeup:
    """One object in a crop: the photograph, and the truth behind it."""

    object_index: int
    model: ObjectModel
    image: np.ndarray
    K: np.ndarray
    """Of the crop."""
    cam_T_obj: np.ndarray
    aimed: np.ndarray
    """The pose that the crop is centred on."""
    buffers: Buffers
    """The object is instance 0."""
    visible: np.ndarray
    amodal: np.ndarray
    """At half the resolution."""


class SampleMaker:
    """Makes samples from random generators; holds the renderer, so it lives in one process."""

    def __init__(
        self,
        objects: Sequence[ObjectModel],
        sampler: SceneSampler,
        photographer: Photographer,
        network: GlanceGazeConfig,
        config: SampleConfig,
    ) -> None:
        self.objects = list(objects)
        self.sampler = sampler
        self.photographer = photographer
        self.network = network
        self.config = config

    def glance(self, rng: np.random.Generator, difficulty: float = 1.0) -> Sample:
        """Draw a window of a photograph at the glance's resolution, mostly around some object, with dense targets."""
        synthesis, side = self.sampler.config, self.config.window_px
        out_A_img, height, width = glance_matrix(synthesis.height, synthesis.width, self.network.glance_scale)
        scene = self.sampler.draw(rng, difficulty)
        center = rng.uniform([0, 0], [width, height])
        if scene.instances and rng.random() < 0.9:
            aimed = scene.instances[int(rng.integers(len(scene.instances)))]
            u, v, z = out_A_img @ synthesis.K @ aimed.cam_T_obj[:3, 3]
            center = np.clip(np.array([u, v]) / z, 0, [width, height]) + rng.uniform(-0.4, 0.4, 2) * side
        left, top = (center - side / 2).round()
        K = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1.0]]) @ out_A_img @ synthesis.K
        scene = only_visible_in(scene, K, side, side)
        image, buffers = self.photographer.shoot(scene, K, side, side, rng, 1 / self.network.glance_scale)
        return {"image": channels_first(image), **self.glance_targets(scene, buffers, K)}

    def gaze(self, rng: np.random.Generator, difficulty: float = 1.0) -> Sample:
        """Draw one object's crop with its targets; scenes are drawn until one shows an object well enough."""
        draw = self._try_decoy if rng.random() < self.config.decoy_probability else self._try_gaze
        while True:
            closeup = draw(rng, difficulty)
            if closeup is not None:
                return self.gaze_sample(closeup)

    def _try_gaze(self, rng: np.random.Generator, difficulty: float) -> "Closeup | None":
        return self.closeup(rng, difficulty, lambda model, cam_T_obj: self.off_target(rng, model, cam_T_obj))

    def _try_decoy(self, rng: np.random.Generator, difficulty: float) -> "Closeup | None":
        """Look for an object that was taken out of the scene, there or where something else is."""
        scene = self.sampler.draw(rng, difficulty)
        if not scene.instances:
            return None
        place = scene.instances[int(rng.integers(len(scene.instances)))].cam_T_obj
        object_index = int(rng.integers(len(self.objects)))
        scene = scene.subset([i for i, index in enumerate(scene.object_index) if index != object_index])
        model = self.objects[object_index]
        aimed = self.off_target(rng, model, place)
        K, scene, buffers, native_scale = self._frame(scene, model, aimed)
        image, buffers = self.photographer.develop(scene, buffers, rng, native_scale)
        image, _ = self.cut_off(image, rng)
        nothing = np.zeros_like(buffers.mask, dtype=bool)
        return Closeup(object_index, model, image, K, aimed, aimed, buffers, nothing, nothing)

    def off_target(self, rng: np.random.Generator, model: ObjectModel, cam_T_obj: np.ndarray) -> np.ndarray:
        """Return the pose that a crop is centred on when the glance is as wrong as it may be."""
        aimed = cam_T_obj.copy()
        aimed[:3, 3] *= np.exp(rng.normal(0, self.config.log_scale))
        aimed[:2, 3] += rng.normal(0, self.config.center, 2) * model.diameter_m * self.network.crop_pad
        return aimed

    def cut_off(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Let the photograph end within the crop, now and then; returns the bool map of what's gone, too."""
        if rng.random() < self.config.cut_off_probability:
            return cut_off(image, rng)
        return image, np.zeros(image.shape[:2], bool)

    def _frame(self, scene: Scene, model: ObjectModel, aimed: np.ndarray) -> tuple[np.ndarray, Scene, Buffers, float]:
        """Draw the crop that shows an object at ``aimed`` at its nominal size.

        Gives the crop's K, what of the scene is in it, the buffers, and the photograph's pixels per pixel of the crop.
        """
        crop_px, photograph_K = self.network.crop_px, self.sampler.config.K
        center_px, side_px = frame_object(aimed, photograph_K, model.diameter_m, self.network.crop_pad)
        K = crop_matrix(center_px, side_px, crop_px) @ photograph_K
        scene = only_visible_in(scene, K, crop_px, crop_px)
        return K, scene, self.photographer.renderer.render(scene.instances, K, crop_px, crop_px), side_px / crop_px

    def closeup(
        self, rng: np.random.Generator, difficulty: float, aim: Callable[[ObjectModel, np.ndarray], np.ndarray]
    ) -> "Closeup | None":
        """Photograph one object of a fresh scene close up; None where too little of it shows.

        ``aim`` gives the pose that the crop is centred on, from the object and its true pose.
        """
        scene, synthesis, crop_px = self.sampler.draw(rng, difficulty), self.sampler.config, self.network.crop_px
        candidates = [
            i
            for i, index in enumerate(scene.object_index)
            if index >= 0 and is_in_view(scene.instances[i].cam_T_obj, synthesis.K, synthesis.height, synthesis.width)
        ]
        if not candidates:
            return None
        target = int(rng.choice(candidates))
        object_index = scene.object_index[target]
        model = self.objects[object_index]
        cam_T_obj = scene.instances[target].cam_T_obj
        aimed = aim(model, cam_T_obj)
        # The target becomes instance 0, so its id in the masks is 1.
        order = [target, *(i for i in range(len(scene.instances)) if i != target)]
        K, scene, buffers, native_scale = self._frame(scene.subset(order), model, aimed)
        # The amodal mask is only a share of each cell: half the resolution is enough for it, at a quarter of the work.
        half_A_out, half_px, _ = glance_matrix(crop_px, crop_px, 0.5)
        renderer = self.photographer.renderer
        (amodal,) = renderer.silhouettes(scene.instances[:1], half_A_out @ K, half_px, half_px)
        image, buffers = self.photographer.develop(scene, buffers, rng, native_scale)
        image, gone = self.cut_off(image, rng)
        visible = (buffers.mask == 1) & ~gone
        if visible.sum() < self.config.min_visible_fraction * max(4 * int(amodal.sum()), 64):
            return None
        return Closeup(object_index, model, image, K, cam_T_obj, aimed, buffers, visible, amodal)

    def gaze_sample(self, closeup: "Closeup") -> Sample:
        """Give a picture, masks, depth, object coordinates and points, in the canonical one of equivalent poses."""
        model, cam_T_obj, K = closeup.model, closeup.cam_T_obj, closeup.K
        buffers, visible, amodal = closeup.buffers, closeup.visible, closeup.amodal
        canonical = model.canonical(torch.from_numpy(cam_T_obj)).numpy()
        reference_m = gaze_reference_depth_m(K, model.diameter_m, self.network)
        weight, depth = central_mean(buffers.depth[..., None], visible)
        _, points_m = central_mean(buffers.xyz, visible)
        points = np.concatenate([np.zeros((1, 3)), model.keypoints_m]) @ canonical[:3, :3].T + canonical[:3, 3]
        projected = points @ K.T
        with np.errstate(divide="ignore"):
            log_depth = np.log(np.where(weight, depth[..., 0], reference_m) / reference_m)
        return {
            "image": channels_first(closeup.image),
            "object_index": np.array(closeup.object_index),
            "weight": np.array(1, np.float32),
            "visible": cell_mean(visible, *weight.shape),
            "amodal": cell_mean(amodal, *weight.shape),
            "valid": weight.astype(np.float32),
            "log_depth": log_depth.astype(np.float32),
            "xyz": model.coordinates(points_m, cam_T_obj).transpose(2, 0, 1).astype(np.float32),
            "points_px": (projected[:, :2] / projected[:, 2:]).astype(np.float32),
            "center_log_depth": np.float32(np.log(canonical[2, 3] / reference_m)),
            "K": K.astype(np.float32),
            "cam_T_obj": canonical.astype(np.float32),
        }

    def glance_targets(self, scene: Scene, buffers: Buffers, K: np.ndarray) -> Sample:
        """Give classes, depth and centres of the objects; clutter counts as background."""
        reference_m = glance_reference_depth_m(K)
        ids = at_cells(buffers.mask)
        # Row 0 of these tables is the background's.
        classes = np.array([0, *(index + 1 for index in scene.object_index)])
        centers = np.array([[0, 0, reference_m], *(K @ instance.cam_T_obj[:3, 3] for instance in scene.instances)])
        centers_px = centers[:, :2] / np.maximum(centers[:, 2:], 1e-3)
        class_map = classes[ids]
        depth = at_cells(buffers.depth)
        is_object = class_map > 0
        return {
            "weight": np.ones(class_map.shape, np.float32),
            "class_map": class_map.astype(np.int64),
            "valid": is_object.astype(np.float32),
            "log_depth": np.log(np.where(is_object, depth, reference_m) / reference_m).astype(np.float32),
            "center_px": centers_px[ids].transpose(2, 0, 1).astype(np.float32),
            "center_log_depth": np.log(centers[ids, 2] / reference_m).astype(np.float32),
        }


def collate(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """Stack samples into a batch."""
    return {key: torch.from_numpy(np.stack([sample[key] for sample in samples])) for key in samples[0]}


def channels_first(image: np.ndarray) -> np.ndarray:
    """As networks want it."""
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def at_cells(pixels: np.ndarray) -> np.ndarray:
    """Value of each cell: that of the pixel right below its centre."""
    return pixels[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]


def cell_mean(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Share of each cell that a mask covers."""
    return cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
