"""What a robot's camera sees at one moment: the room and the others in it, with LEDs and lamps that shine.

The camera has the RoboMaster's intrinsics and mounting, but no distortion: the published model folds over inside the
image's corners, so that no picture can be drawn by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np

from glimpose.data.led_h5 import ROBOMASTER_CAMERA
from glimpose.data.sensor import SensorConfig, simulate_sensor
from glimpose.render.scene import Buffers, Instance, Renderer
from glimpose.render.shading import Light, Lighting, shade
from glimpose.robots.body import led_plate, robot_body
from glimpose.robots.leds import LedRobot
from glimpose.robots.place import Arrangement, PlaceConfig

CAMERA = replace(ROBOMASTER_CAMERA, distortion=np.zeros(5))
CELL_M = 0.03
"""Of the map of shadows and coloured light on the floor."""
FOOTPRINT_M = np.array([[0.16, 0.13], [0.16, -0.13], [-0.16, -0.13], [-0.16, 0.13]])


@dataclass(frozen=True)
class Moment:
    """What changes from frame to frame. Light is in units of what saturates the sensor at an exposure of 1."""

    camera_robot: int
    poses: np.ndarray
    """robots × (x, y, θ) in the room."""
    led_radiance: np.ndarray
    """robots × LEDs × RGB, zero where they're off."""
    lamp_radiance: np.ndarray
    """lamps × RGB."""
    exposure: float


class Photographer:
    """Takes pictures of robots in a place."""

    def __init__(
        self, robot: LedRobot, place: PlaceConfig, sensor: SensorConfig, supersampling: float, renderer: Renderer
    ) -> None:
        self.robot = robot
        self.place = place
        self.sensor = sensor
        self.renderer = renderer
        self.body = robot_body(robot)
        self.plates = [led_plate(led) for led in robot.leds]
        self.size = (round(CAMERA.width * supersampling), round(CAMERA.height * supersampling))
        scale = np.array([self.size[0] / CAMERA.width, self.size[1] / CAMERA.height, 1.0])
        self.K = np.diag(scale) @ CAMERA.K
        self.K[:2, 2] += (scale[:2] - 1) / 2  # (0, 0) is the centre of the first pixel
        self.shadows = lru_cache(maxsize=2)(self._shadows)

    def photograph(
        self, arrangement: Arrangement, moment: Moment, rng: np.random.Generator
    ) -> tuple[np.ndarray, dict[int, int]]:
        """Return the picture, H×W×3 uint8, and in how many of its pixels each other robot is seen."""
        room_T_cam = _room_T_base(moment.poses[moment.camera_robot]) @ CAMERA.base_T_cam
        cam_T_room = np.linalg.inv(room_T_cam)
        instances, radiance, owners = self._instances(arrangement, moment, cam_T_room)
        width, height = self.size
        buffers = self.renderer.render(instances, self.K, height, width, near_m=0.02, far_m=25.0)
        light: np.ndarray = shade(buffers, _lighting(self.place, cam_T_room))
        light = cv2.multiply(light, light)  # what one sees is about the root of the light
        self._light_floor(light, buffers, len(instances) - len(arrangement.meshes) + 1, arrangement, moment)
        _emit(light, buffers.mask, radiance)
        light = cv2.resize(light, (CAMERA.width, CAMERA.height), interpolation=cv2.INTER_AREA)
        image = cv2.sqrt(_bloom(light * np.float32(moment.exposure)))
        drawn_px = np.bincount(buffers.mask.ravel(), minlength=256)[1 : len(owners) + 1]
        scale = CAMERA.width * CAMERA.height / (width * height)
        seen_px = {robot: round(scale * drawn_px[np.array(owners) == robot].sum()) for robot in set(owners)}
        return simulate_sensor(image, rng, self.sensor, native_scale=1.0), seen_px

    def _instances(
        self, arrangement: Arrangement, moment: Moment, cam_T_room: np.ndarray
    ) -> tuple[list[Instance], np.ndarray, list[int]]:
        """What is drawn, the light that it sends out, and which robots the first instances belong to."""
        cam_T_bases = [cam_T_room @ _room_T_base(pose) for pose in moment.poses]
        others = [i for i in range(len(moment.poses)) if i != moment.camera_robot]
        instances = [Instance(mesh, cam_T_bases[i]) for i in others for mesh in (self.body, *self.plates)]
        owners = [i for i in others for _ in range(1 + len(self.plates))]
        # Of itself the camera robot sees the gun.
        instances.append(Instance(self.body, cam_T_bases[moment.camera_robot]))
        instances += [Instance(lamp.mesh, cam_T_room) for lamp in arrangement.lamps]
        instances += [Instance(mesh, cam_T_room) for mesh in arrangement.meshes]
        dark = np.zeros((1, 3))
        radiance = [light for i in others for light in (dark, moment.led_radiance[i])]
        return instances, np.concatenate([*radiance, dark, moment.lamp_radiance]), owners

    def _light_floor(
        self, light: np.ndarray, buffers: Buffers, label: int, arrangement: Arrangement, moment: Moment
    ) -> None:
        """Add shadows and the LEDs' glow to the floor, in place."""
        is_floor = cv2.inRange(buffers.mask, label, label)
        left, top, width, height = cv2.boundingRect(is_floor)
        if width == 0:
            return
        box = np.s_[top : top + height, left : left + width]
        offset = self._cells(np.zeros(2)) - 0.5  # from a cell's corner to its centre
        cell_A_room = np.array([[1 / CELL_M, 0, 0, offset[0]], [0, 1 / CELL_M, 0, offset[1]]])
        # The floor's frame is the room's.
        columns, rows = cv2.split(cv2.transform(np.ascontiguousarray(buffers.xyz[box]), cell_A_room))
        ground = self._ground(self.shadows(arrangement), moment)
        falling = cv2.remap(ground, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        cv2.copyTo(cv2.multiply(light[box], falling), is_floor[box], light[box])

    def _ground(self, shadows: np.ndarray, moment: Moment) -> np.ndarray:
        """How much light falls on the cells of the floor, relative to no shadows and no LEDs: rows × columns × RGB."""
        below = np.ones_like(shadows)
        glow = np.zeros((*shadows.shape, 3), np.float32)
        for pose, radiance in zip(moment.poses, moment.led_radiance, strict=True):
            turn = _room_T_base(pose)[:2, :2]
            corners = np.rint(16 * self._cells(FOOTPRINT_M @ turn.T + pose[:2])).astype(np.int32)
            cv2.fillConvexPoly(below, corners, 0.3, cv2.LINE_AA, 4)
            for led, azimuth, color in zip(self.robot.leds, self.robot.azimuths_rad, radiance, strict=True):
                x, y, z = led.position_m or (0, 0, 0)
                # Most falls about as far before an LED as it is high.
                lit = turn @ [x + z * np.cos(azimuth), y + z * np.sin(azimuth)] + pose[:2]
                column, row = self._cells(lit).astype(int)
                if 0 <= row < len(glow) and 0 <= column < glow.shape[1]:
                    glow[row, column] += 0.9 * color
        return cv2.GaussianBlur(glow, (0, 0), 4.0) + (cv2.GaussianBlur(below, (0, 0), 1.5) * shadows)[..., None]

    def _shadows(self, arrangement: Arrangement) -> np.ndarray:
        columns, rows = np.ceil(np.array(self.place.room_m[:2]) / CELL_M).astype(int)
        shadows: np.ndarray = np.ones((rows, columns), np.float32)
        for x, y, radius_m in arrangement.footprints:
            center = np.rint(self._cells(np.array([x, y]))).astype(int).tolist()
            cv2.circle(shadows, center, max(round(radius_m / CELL_M), 1), 0.45, -1)
        return cv2.GaussianBlur(shadows, (0, 0), 2.5)

    def _cells(self, xy_m: np.ndarray) -> np.ndarray:
        """Column and row, with fractions, of points on the floor."""
        return (xy_m + np.array(self.place.room_m[:2]) / 2) / CELL_M


def _room_T_base(pose: Sequence[float]) -> np.ndarray:
    x, y, theta = pose
    cos, sin = np.cos(theta), np.sin(theta)
    return np.array([[cos, -sin, 0, x], [sin, cos, 0, y], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def _lighting(place: PlaceConfig, cam_T_room: np.ndarray) -> Lighting:
    turn, ambient = cam_T_room[:3, :3], np.array(place.ambient) / 255
    strength = np.array(place.lamp) / 255 / max(len(place.lamp_directions), 1)
    lamps = tuple(Light(turn @ np.array(direction), strength) for direction in place.lamp_directions)
    return Lighting(sky=1.15 * ambient, ground=0.8 * ambient, up=turn[:, 2], lights=lamps)


def _emit(light: np.ndarray, mask: np.ndarray, radiance: np.ndarray) -> None:
    """Add what instances (rows of RGB; the rest is dark) send out themselves, in place."""
    table = np.zeros((256, 3), np.float32)
    table[1 : len(radiance) + 1] = radiance
    left, top, width, height = cv2.boundingRect(cv2.LUT(mask, np.where(table.any(1), 1, 0).astype(np.uint8)))
    box = np.s_[top : top + height, left : left + width]
    light[box] += table[mask[box]]


def _bloom(light: np.ndarray) -> np.ndarray:
    """Spread light beyond saturation to what lies around, as lenses and sensors do: a near halo and wide ones."""
    excess: np.ndarray = np.maximum(light - np.float32(0.9), 0)
    half = cv2.resize(excess, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    eighth = cv2.resize(half, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    near = 0.3 * cv2.GaussianBlur(half, (0, 0), 1.3)
    wide = 0.15 * cv2.GaussianBlur(eighth, (0, 0), 1.2) + 0.08 * cv2.GaussianBlur(eighth, (0, 0), 4.0)
    size = light.shape[1::-1]
    return light + cv2.resize(near, size) + cv2.resize(wide, size)
