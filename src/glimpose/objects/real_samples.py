"""Training samples from photographs with pseudo-labels: the student sees them distorted, the teacher saw them clean.

Targets are drawn from the CAD models at the poses that the teacher gave, exactly as those of synthesised samples. Only
what hides an object isn't known: there the teacher's mask tells what is seen of it. Where something was taken for an
object that is known to stand elsewhere, nothing is seen.

Where labels tell which way is up, photographs of rolled cameras are often shown upright, for so are objects looked at
(`estimator`).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from glimpose.data.images import warp
from glimpose.data.sensor import composite, occlude, simulate_sensor
from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.crops import camera_roll_rad, crop_matrix, frame_object, glance_matrix
from glimpose.objects.photographs import Photograph
from glimpose.objects.pseudo_labels import CELLS_A_PX, Labels, PseudoLabel
from glimpose.objects.samples import Closeup, Sample, SampleMaker, at_cells, channels_first
from glimpose.objects.standing import StandingPose, find_support, level
from glimpose.objects.synthesis import Scene
from glimpose.render.scene import Buffers, Instance


@dataclass(frozen=True)
class DistortionConfig:
    """How the student's view differs from the teacher's, besides the sensor's effects of [synthesis]."""

    roll_deg: float = 15.0
    """Pictures are turned by up to this, and labels with them."""
    upright_probability: float = 0.75
    """Of turning a photograph first until up is up, where its camera is rolled by so much that the estimator does."""
    log_zoom: float = 0.15
    """Standard deviation of the glance's zoom."""
    patch_probability: float = 0.5
    """Of flat patches in front."""
    object_probability: float = 0.4
    """Of another labelled object in front of a crop's own, cut out of its photograph (Ghiasi et al., arXiv
    2012.07177)."""


class RealSampleMaker:
    """Makes samples of labelled photographs, with the help of what makes synthesised ones."""

    def __init__(
        self, maker: SampleMaker, photographs: Sequence[Photograph], labels: Labels, distortion: DistortionConfig
    ) -> None:
        self.maker = maker
        self.photographs = photographs
        self.of_object: dict[int, list[PseudoLabel]] = defaultdict(list)
        self.in_photograph: dict[int, list[PseudoLabel]] = defaultdict(list)
        for label in labels.labels:
            if label.weight > 0:
                self.of_object[label.object_index].append(label)
                self.in_photograph[label.photograph].append(label)
        self.mistaken: dict[int, list[PseudoLabel]] = defaultdict(list)
        for label in labels.mistaken:
            self.mistaken[label.object_index].append(label)
        self.background = labels.background
        self.distortion = distortion
        self.roll_rad = {number: _roll_rad(own, labels, maker.objects) for number, own in self.in_photograph.items()}
        """Of the cameras that took them, where known and much."""

    def gaze(self, rng: np.random.Generator) -> Sample:
        """Draw a crop around a labelled object, or around what was taken for one."""
        maker, crop_px = self.maker, self.maker.network.crop_px
        is_decoy = bool(self.mistaken) and rng.random() < maker.config.decoy_probability
        label = _drawn(self.mistaken if is_decoy else self.of_object, rng)
        photograph, model = self.photographs[label.photograph], maker.objects[label.object_index]
        aimed = maker.off_target(rng, model, label.cam_T_obj)
        center_px, side_px = frame_object(aimed, photograph.K, model.diameter_m, maker.network.crop_pad)
        picture = self._cut_out(label, center_px, side_px, rng, is_object=not is_decoy)
        image, visible = picture.image, picture.visible
        if rng.random() < self.distortion.object_probability:
            image, visible = self._behind_another(image, visible, label.object_index, side_px, rng)
        image, covered = self._distorted(image, side_px / crop_px, rng)
        image, gone = maker.cut_off(image, rng)
        visible &= ~covered & ~gone
        closeup = Closeup(
            label.object_index,
            model,
            image,
            picture.K,
            picture.out_T_cam @ label.cam_T_obj,
            picture.out_T_cam @ aimed,
            replace(picture.buffers, mask=visible.astype(np.uint8)),
            visible,
            picture.buffers.mask == 1,
        )
        return {
            **maker.gaze_sample(closeup),
            "weight": np.array(label.weight, np.float32),
        }

    def glance(self, rng: np.random.Generator) -> Sample:
        """Draw a window around a labelled object; where the teacher is unsure, nothing is learned."""
        chosen, maker, side = _drawn(self.of_object, rng), self.maker, self.maker.config.window_px
        photograph = self.photographs[chosen.photograph]
        rows, columns = photograph.image.shape[:2]
        glance_A_img, _, _ = glance_matrix(rows, columns, maker.network.glance_scale)
        native_scale = float(np.exp(-rng.normal(0, self.distortion.log_zoom)) / glance_A_img[0, 0])
        u, v, z = photograph.K @ chosen.cam_T_obj[:3, 3]
        center_px = np.array([u, v]) / z + rng.uniform(-0.4, 0.4, 2) * side * native_scale
        out_A_img, out_T_cam = self._turned(chosen.photograph, center_px, side * native_scale, side, rng)
        K = out_A_img @ photograph.K @ out_T_cam[:3, :3].T
        labels = self.in_photograph[chosen.photograph]
        scene = Scene(
            tuple(
                Instance(maker.sampler.objects[label.object_index].mesh, out_T_cam @ label.cam_T_obj)
                for label in labels
            ),
            tuple(label.object_index for label in labels),
            tuple(maker.sampler.objects[label.object_index].radius_m for label in labels),
            maker.sampler.config,
        )
        buffers = maker.photographer.renderer.render(scene.instances, K, side, side, with_xyz=False)
        image, covered = self._distorted(warp(photograph.image, out_A_img, side, side), native_scale, rng)
        visible = np.stack([_warped(label.visible, label.cells_A_img, out_A_img, side) > 0.5 for label in labels])
        is_seen = np.take_along_axis(visible, np.maximum(buffers.mask.astype(int) - 1, 0)[None], 0)[0]
        hidden = (buffers.mask > 0) & ~is_seen  # by something unknown, or the label is wrong
        buffers = replace(buffers, mask=np.where(is_seen & ~covered, buffers.mask, np.uint8(0)))
        background_cells_A_img = CELLS_A_PX @ glance_A_img
        background = _warped(self.background[chosen.photograph], background_cells_A_img, out_A_img, side)
        background = np.where(hidden & ~covered, 0, np.where(covered, 1, background)).astype(np.float32)
        weight_of = np.array([0.0, *(label.weight for label in labels)], np.float32)
        return {
            "image": channels_first(image),
            **maker.glance_targets(scene, buffers, K),
            "weight": at_cells(np.where(buffers.mask > 0, weight_of[buffers.mask], background)),
        }

    def _turned(
        self, number: int, center_px: np.ndarray, side_px: float, out_px: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cut a square out of a photograph and turn it; gives its matrix, and that of a camera that rolls the same."""
        angle_rad = np.deg2rad(rng.uniform(-self.distortion.roll_deg, self.distortion.roll_deg))
        if rng.random() < self.distortion.upright_probability:
            angle_rad -= self.roll_rad.get(number, 0.0)
        out_T_cam = np.eye(4)
        out_T_cam[:2, :2] = [[np.cos(angle_rad), -np.sin(angle_rad)], [np.sin(angle_rad), np.cos(angle_rad)]]
        return crop_matrix(center_px, side_px, out_px, float(angle_rad)), out_T_cam

    def _cut_out(
        self,
        label: PseudoLabel,
        center_px: np.ndarray,
        side_px: float,
        rng: np.random.Generator,
        is_object: bool = True,
        with_xyz: bool = True,
    ) -> "_CutOut":
        """Cut a square out of a label's photograph and turn it; the object is drawn there unless it isn't one."""
        maker, photograph, crop_px = self.maker, self.photographs[label.photograph], self.maker.network.crop_px
        out_A_img, out_T_cam = self._turned(label.photograph, center_px, side_px, crop_px, rng)
        K = out_A_img @ photograph.K @ out_T_cam[:3, :3].T
        shown = Instance(maker.sampler.objects[label.object_index].mesh, out_T_cam @ label.cam_T_obj)
        buffers = maker.photographer.renderer.render(
            [shown] if is_object else [], K, crop_px, crop_px, with_xyz=with_xyz
        )
        visible = (buffers.mask == 1) & (_warped(label.visible, label.cells_A_img, out_A_img, crop_px) > 0.5)
        return _CutOut(warp(photograph.image, out_A_img, crop_px, crop_px), K, out_T_cam, buffers, visible)

    def _behind_another(
        self, image: np.ndarray, visible: np.ndarray, object_index: int, side_px: float, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Put another object, as it's seen in its photograph, before a crop; as it was if that hid nearly everything.

        ``side_px`` is the crop's in its photograph, ``visible`` what's seen of the object; returned is what's left.
        """
        others = {index: labels for index, labels in self.of_object.items() if index != object_index}
        if not others:
            return image, visible
        other = _drawn(others, rng)
        photograph = self.photographs[other.photograph]
        u, v, z = photograph.K @ other.cam_T_obj[:3, 3]
        center_px = np.array([u, v]) / z + rng.normal(0, 0.25, 2) * side_px
        front = self._cut_out(other, center_px, side_px, rng, with_xyz=False)
        left = visible & ~front.visible
        if left.sum() < self.maker.config.min_visible_fraction * visible.sum():
            return image, visible
        composed = composite(front.image.astype(np.float32) / 255, front.visible, image, rng)
        return (composed * 255).round().astype(np.uint8), left

    def _distorted(
        self, image: np.ndarray, native_scale: float, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Take the student's picture: uint8 RGB, and where patches cover it."""
        shot, covered = image.astype(np.float32) / 255, np.zeros(image.shape[:2], bool)
        if rng.random() < self.distortion.patch_probability:
            shot, covered = occlude(shot, rng, self.maker.photographer.backgrounds.texture)
        return simulate_sensor(shot, rng, self.maker.sampler.config.sensor, native_scale), covered


@dataclass(frozen=True)
class _CutOut:
    """A crop of a photograph, with a labelled object in it."""

    image: np.ndarray
    K: np.ndarray
    out_T_cam: np.ndarray
    """From the photograph's camera to the crop's, which is rolled."""
    buffers: Buffers
    """The object, drawn as if nothing stood in front."""
    visible: np.ndarray


def _drawn(of_object: dict[int, list[PseudoLabel]], rng: np.random.Generator) -> PseudoLabel:
    """Draw an object, then one of its labels: what is rarely accepted is not rarely learned."""
    objects = sorted(of_object)
    chosen = of_object[objects[int(rng.integers(len(objects)))]]
    return chosen[int(rng.integers(len(chosen)))]


def _roll_rad(own: Sequence[PseudoLabel], labels: Labels, objects: Sequence[ObjectModel]) -> float:
    """How far the camera was rolled that took a photograph, as its labels stand; 0 where that's little or unknown."""
    if not labels.standings:
        return 0.0
    poses = [
        StandingPose(objects[label.object_index], labels.standings[label.object_index], label.cam_T_obj, label.weight)
        for label in own
    ]
    return camera_roll_rad(level(find_support(poses)))


def _warped(cells: np.ndarray, cells_A_img: np.ndarray, out_A_img: np.ndarray, side_px: int) -> np.ndarray:
    """Resample a map of cells to the pixels of a picture; 0 beyond the map."""
    cells_A_out = cells_A_img @ np.linalg.inv(out_A_img)
    return cv2.warpAffine(
        cells,
        cells_A_out[:2],
        (side_px, side_px),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
    )
