"""Scenes drawn at random: objects and clutter on a table, a camera above it, lights, and a photograph of it all."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation
from trimesh.convex import convex_hull
from trimesh.poses import compute_stable_poses

from glimpose.data.backgrounds import Backgrounds
from glimpose.data.sensor import SensorConfig, composite, occlude, simulate_sensor
from glimpose.render.mesh import Mesh, box_mesh, cylinder_mesh, simplify, sphere_mesh
from glimpose.render.scene import Buffers, Instance, Renderer
from glimpose.render.shading import Light, Lighting, Material, shade

LEAST_SIDE = 0.02
"""Probability of falling onto a side from which on an object is taken to lie on it."""
SPREADS_M = np.tile(0.08 * 1.12 ** np.arange(25)[:, None], 2)
"""Standard deviations of the places that are tried for an object, farther and farther from the table's middle."""


@dataclass(frozen=True)
class SynthesisConfig:
    """What scenes look like. Angles and distances are those from which the objects will be seen."""

    width: int = 640
    height: int = 480
    fx: float = 572.4114
    fy: float = 573.57043
    cx: float = 325.2611
    cy: float = 242.04899
    distance_m: tuple[float, float] = (0.35, 1.5)
    """From the camera to the middle of the table."""
    elevation_deg: tuple[float, float] = (0.0, 90.0)
    """Of the camera above the table."""
    roll_deg: float = 45.0
    """The camera's roll is uniform within plus and minus this."""
    tilt_deg: float = 8.0
    """Standard deviation of how far objects lean: on each other, or on what lies about."""
    side_probability: float = 0.2
    """Share of objects that lie as they may have fallen, on any side on which they stay; others stand upright."""
    free_pose_probability: float = 0.1
    """Share of objects in any orientation at all, floating above the table; 1.0 for parts in a bin."""
    num_objects: tuple[int, int] = (4, 8)
    num_distractors: tuple[int, int] = (0, 4)
    repeat_probability: float = 0.15
    """Share of scenes in which one object may appear several times."""
    crowding: tuple[float, float] = (0.5, 1.1)
    """Smallest distance between two objects, over the sum of their footprints' radii: below 1 they interlock."""
    patch_probability: float = 0.3
    """Share of pictures with flat patches in front of everything."""
    mesh_faces: int = 3000
    """Meshes are simplified to this for drawing; 0 keeps every face."""
    backgrounds: Path | None = None
    """Folder of photographs; procedural backgrounds when none is given."""
    sensor: SensorConfig = field(default_factory=SensorConfig)

    def eased(self, difficulty: float) -> "SynthesisConfig":
        """Make scenes easier: 1 is this config; at 0 objects stand apart, upright, on a fair day."""
        ease = 1 - difficulty
        few, many = self.num_distractors
        free = self.free_pose_probability
        return replace(
            self,
            roll_deg=self.roll_deg * (1 - 0.5 * ease),
            free_pose_probability=free if free == 1 else free * difficulty,
            side_probability=self.side_probability * difficulty,
            tilt_deg=self.tilt_deg * (1 - 0.5 * ease),
            num_distractors=(round(few * difficulty), round(many * difficulty)),
            crowding=(self.crowding[0] + 0.4 * ease, self.crowding[1] + 0.4 * ease),
            patch_probability=self.patch_probability * difficulty,
            sensor=self.sensor.eased(difficulty),
        )

    def simplified(self, meshes: Sequence[Mesh]) -> list[Mesh]:
        """CAD models as they are drawn."""
        return [simplify(mesh, self.mesh_faces) if self.mesh_faces else mesh for mesh in meshes]

    @property
    def K(self) -> np.ndarray:
        """Camera matrix of the photograph."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1.0]])


@dataclass(frozen=True)
class Scene:
    """What is where: instance i is object ``object_index[i]``, or clutter where that is -1."""

    instances: tuple[Instance, ...]
    object_index: tuple[int, ...]
    radius_m: tuple[float, ...]
    """Of the sphere around each instance's origin that holds it."""
    config: SynthesisConfig
    """What it was drawn by."""

    def subset(self, keep: Sequence[int]) -> "Scene":
        """These instances, in this order."""
        return Scene(
            tuple(self.instances[i] for i in keep),
            tuple(self.object_index[i] for i in keep),
            tuple(self.radius_m[i] for i in keep),
            self.config,
        )


@dataclass(frozen=True)
class _Prop:
    """A mesh, and what placing it takes."""

    mesh: Mesh
    outline_m: np.ndarray
    """A few vertices that tell where it touches the table and how much room it takes."""
    radius_m: float

    @classmethod
    def of(cls, mesh: Mesh) -> "_Prop":
        return cls(mesh, _outline(mesh), float(np.linalg.norm(mesh.vertices, axis=1).max()))

    @cached_property
    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """Rotations n×3×3 as it may lie on the table, z up, and how likely it is to fall onto each."""
        poses, prob = compute_stable_poses(convex_hull(self.outline_m), n_samples=1, threshold=LEAST_SIDE)
        # A ball has none: it falls onto each of its sides too seldom.
        return poses.reshape(-1, 4, 4)[:, :3, :3], prob / prob.sum()


class SceneSampler:
    """Draws scenes from meshes; a scene is a function of the random generator alone."""

    def __init__(self, meshes: Sequence[Mesh], config: SynthesisConfig) -> None:
        self.config = config
        self.objects = [_Prop.of(mesh) for mesh in meshes]
        self.distractors = [_Prop.of(mesh) for mesh in _clutter(np.random.default_rng(7), 40)]

    def draw(self, rng: np.random.Generator, difficulty: float = 1.0) -> Scene:
        """Put objects on a table, denser or sparser, and a camera above it; see `SynthesisConfig.eased`."""
        config = self.config if difficulty == 1 else self.config.eased(difficulty)
        num = int(rng.integers(config.num_objects[0], config.num_objects[1] + 1))
        repeats = num > len(self.objects) or rng.random() < config.repeat_probability
        chosen = [int(i) for i in rng.choice(len(self.objects), num, replace=repeats)]
        num_distractors = int(rng.integers(config.num_distractors[0], config.num_distractors[1] + 1))
        entries = [(index, self.objects[index]) for index in chosen]
        entries += [(-1, self.distractors[i]) for i in rng.integers(len(self.distractors), size=num_distractors)]
        order = rng.permutation(len(entries))

        cam_T_world = _camera_above_table(rng, config)
        crowding = rng.uniform(*config.crowding)
        taken: list[tuple[np.ndarray, float]] = []
        instances, object_index, radii = [], [], []
        for entry in order:
            index, prop = entries[entry]
            is_free = rng.random() < config.free_pose_probability
            rotation = _orientation(rng, config, prop, is_free)
            outline = prop.outline_m @ rotation.T
            radius_m = 0.7 * float(np.sqrt((outline[:, :2] ** 2).sum(1).max()))
            place = _free_place(rng, taken, radius_m, crowding)
            if place is None:
                continue
            taken.append((place, radius_m))
            height_m = -outline[:, 2].min() + (rng.uniform(0, 0.12) if is_free else 0.0)
            world_T_obj = np.eye(4)
            world_T_obj[:3, :3] = rotation
            world_T_obj[:3, 3] = [*place, height_m]
            cam_T_obj = cam_T_world @ world_T_obj
            if cam_T_obj[2, 3] > 0.15:  # not in the lens
                instances.append(Instance(prop.mesh, cam_T_obj))
                object_index.append(index)
                radii.append(prop.radius_m)
        return Scene(tuple(instances), tuple(object_index), tuple(radii), config)


class Photographer:
    """Takes pictures of scenes: draws, lights, puts a background behind, and adds what a sensor adds."""

    def __init__(self, renderer: Renderer, backgrounds: Backgrounds) -> None:
        self.renderer = renderer
        self.backgrounds = backgrounds

    def shoot(
        self,
        scene: Scene,
        K: np.ndarray,
        height: int,
        width: int,
        rng: np.random.Generator,
        native_scale: float = 1.0,
    ) -> tuple[np.ndarray, Buffers]:
        """Photograph a scene: height×width×3 uint8, and the exact buffers behind it, but for xyz; see `develop`."""
        return self.develop(
            scene, self.renderer.render(scene.instances, K, height, width, with_xyz=False), rng, native_scale
        )

    def develop(
        self, scene: Scene, buffers: Buffers, rng: np.random.Generator, native_scale: float = 1.0
    ) -> tuple[np.ndarray, Buffers]:
        """Light and photograph what was drawn; the buffers come back without what flat patches in front now hide.

        ``native_scale`` is the number of the sensor's pixels per pixel of the buffers: enlarged crops have below 1.
        """
        lit = shade(buffers, _lighting(rng), [_material(rng) for _ in scene.instances])
        height, width = buffers.mask.shape
        photograph = composite(lit, buffers.mask > 0, self.backgrounds.sample(rng, height, width), rng)
        if rng.random() < scene.config.patch_probability:
            photograph, covered = occlude(photograph, rng, self.backgrounds.texture)
            buffers = replace(
                buffers,
                mask=np.where(covered, np.uint8(0), buffers.mask),
                depth=np.where(covered, np.float32(0), buffers.depth),
            )
        return simulate_sensor(photograph, rng, scene.config.sensor, native_scale), buffers


def only_visible_in(scene: Scene, K: np.ndarray, height: int, width: int) -> Scene:
    """Leave out the instances whose bounding spheres don't reach into the picture."""
    keep = []
    focal_px = np.sqrt(abs(np.linalg.det(K[:2, :2])))
    for i, instance in enumerate(scene.instances):
        t = instance.cam_T_obj[:3, 3]
        u, v, z = K @ t
        radius_px = focal_px * scene.radius_m[i] / max(z, 1e-3)
        u, v = u / z, v / z
        if -radius_px < u < width + radius_px and -radius_px < v < height + radius_px:
            keep.append(i)
    return scene.subset(keep)


def _camera_above_table(rng: np.random.Generator, config: SynthesisConfig) -> np.ndarray:
    """cam_T_world of a camera that looks at a point near the middle of the table (world z is up)."""
    elevation = np.deg2rad(rng.uniform(*config.elevation_deg))
    azimuth = rng.uniform(0, 2 * np.pi)
    distance = rng.uniform(*config.distance_m)
    towards_camera = np.array(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    )
    target = np.array([*rng.normal(0, 0.12, 2) * distance, 0.05])
    right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
    forward = -towards_camera
    down = np.cross(forward, right)
    roll = Rotation.from_euler("z", rng.uniform(-config.roll_deg, config.roll_deg), degrees=True).as_matrix()
    cam_T_world = np.eye(4)
    cam_T_world[:3, :3] = roll @ np.stack([right, down, forward])
    cam_T_world[:3, 3] = -cam_T_world[:3, :3] @ (target + distance * towards_camera)
    return cam_T_world


def _outline(mesh: Mesh) -> np.ndarray:
    """At most 64 corners of the convex hull, spread over it."""
    corners = mesh.vertices[ConvexHull(mesh.vertices.astype(np.float64)).vertices].astype(np.float64)
    return corners[:: max(1, len(corners) // 64)]


def _orientation(rng: np.random.Generator, config: SynthesisConfig, prop: _Prop, is_free: bool) -> np.ndarray:
    if is_free:
        return Rotation.from_quat(rng.normal(size=4)).as_matrix()
    side = np.eye(3)
    if rng.random() < config.side_probability and len(prop.sides[1]):
        rotations, prob = prop.sides
        side = rotations[rng.choice(len(prob), p=prob)]
    # Several times a sample: SciPy's rotations take most of the time that drawing a scene does.
    tilt, _ = cv2.Rodrigues(np.array([*np.deg2rad(rng.normal(0, config.tilt_deg, 2)), 0.0]))
    turn, _ = cv2.Rodrigues(np.array([0, 0, rng.uniform(0, 2 * np.pi)]))
    return tilt @ turn @ side


def _free_place(
    rng: np.random.Generator, taken: list[tuple[np.ndarray, float]], radius_m: float, crowding: float
) -> np.ndarray | None:
    """Find a place on the table as near to its middle as the others leave; None when it's too full."""
    places = rng.normal(0, SPREADS_M)
    if not taken:
        return places[0]
    others, others_m = np.array([place for place, _ in taken]), np.array([other_m for _, other_m in taken])
    gaps_m = np.linalg.norm(places[:, None] - others, axis=2) - crowding * (radius_m + others_m)
    free = np.flatnonzero(gaps_m.min(1) > 0)
    return places[free[0]] if len(free) else None


def _lighting(rng: np.random.Generator) -> Lighting:
    """A soft sky and up to three lamps of slightly different colours, anywhere on the camera's side."""

    def tint() -> np.ndarray:
        return np.clip(rng.normal(1.0, 0.06, 3), 0.7, 1.3)

    strength = rng.uniform(0.25, 0.9)
    lights = []
    num_lights = int(rng.integers(1, 4))
    for _ in range(num_lights):
        direction = rng.normal(size=3) + np.array([0.0, -0.7, -0.6])
        lights.append(
            Light(direction / np.linalg.norm(direction), (1.3 - strength) / num_lights * rng.uniform(0.5, 1.6) * tint())
        )
    sky = strength * rng.uniform(0.9, 1.4) * tint()
    return Lighting(
        sky=sky, ground=sky * rng.uniform(0.3, 0.9) * tint(), up=np.array([0.0, -1.0, -0.3]), lights=tuple(lights)
    )


def _material(rng: np.random.Generator) -> Material:
    """Colours as the CAD model has them, more or less; matt to glossy.

    Scans are off in brightness, tint and saturation alike (docs/lab-book.md, 37).
    """
    gain = np.exp(rng.normal(0, 0.3)) * np.exp(rng.normal(0, 0.18, 3))
    saturation = float(np.exp(rng.normal(0.1, 0.4)))
    specular = rng.uniform(0, 0.6) if rng.random() < 0.5 else 0.0
    shininess = float(np.exp(rng.uniform(1.5, 4.5)))
    return Material(gain, saturation, specular, shininess)


def _clutter(rng: np.random.Generator, num: int) -> list[Mesh]:
    """Boxes, cylinders and balls of household sizes in plain or blotchy colours."""
    clutter = []
    for i in range(num):
        size = np.exp(rng.uniform(np.log(0.03), np.log(0.2), 3))
        if i % 3 == 0:
            mesh = box_mesh(tuple(size))
        elif i % 3 == 1:
            mesh = cylinder_mesh(radius=float(size[0]) / 2, height=float(size[2]), segments=32)
        else:
            mesh = sphere_mesh(radius=float(size[0]) / 2, subdivisions=3)
        base = rng.integers(0, 256, 3)
        colors = base + rng.normal(0, rng.choice([0, 25]), (len(mesh.vertices), 3))
        clutter.append(replace(mesh, colors=np.clip(colors, 0, 255).astype(np.uint8)))
    return clutter
