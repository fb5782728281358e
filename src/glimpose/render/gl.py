"""OpenGL backend: draws off-screen through EGL, on a GPU's driver or on Mesa's software rasteriser."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import cv2
import numpy as np
from jaxtyping import Bool, Float

from glimpose.render.mesh import Mesh, is_closed, neighbours_together
from glimpose.render.scene import FAR_M, NEAR_M, Buffers, Instance, check_scene

MAX_FRAMEBUFFERS = 8
"""Image sizes whose framebuffers are kept."""

_process_with_gl: int | None = None
"""The process in which OpenGL was first used; inherited by a fork, in which it would hang."""

# Depth is an interpolated z, for the depth buffer's is neither linear nor fine enough. Few outputs and few varyings
# make the software rasteriser quick, so object coordinates are computed from depth after reading back.
_VERTEX_SHADER = """
#version 330
uniform mat4 clip_T_obj;
uniform mat4 cam_T_obj;
in vec3 in_xyz;
in vec3 in_normal;
out float depth;
out vec3 normal;
#ifdef TEXTURED
in vec2 in_uv;
out vec2 uv;
#else
in vec3 in_color;
out vec3 color;
#endif
void main() {
    vec4 xyz = vec4(in_xyz, 1.0);
    gl_Position = clip_T_obj * xyz;
    depth = (cam_T_obj * xyz).z;
    normal = mat3(cam_T_obj) * in_normal;
#ifdef TEXTURED
    uv = in_uv;
#else
    color = in_color;
#endif
}
"""
_FRAGMENT_SHADER = """
#version 330
uniform float label;
in float depth;
in vec3 normal;
#ifdef TEXTURED
uniform sampler2D albedo;
in vec2 uv;
#else
in vec3 color;
#endif
layout(location = 0) out vec4 out_albedo_label;
layout(location = 1) out vec4 out_normal_depth;
void main() {
#ifdef TEXTURED
    vec3 color = texture(albedo, uv).rgb;
#endif
    out_albedo_label = vec4(color, label);
    out_normal_depth = vec4(normalize(gl_FrontFacing ? normal : -normal), depth);
}
"""

_SILHOUETTE_VERTEX_SHADER = """
#version 330
uniform mat4 clip_T_obj;
in vec3 in_xyz;
void main() {
    gl_Position = clip_T_obj * vec4(in_xyz, 1.0);
}
"""
_SILHOUETTE_FRAGMENT_SHADER = """
#version 330
out float is_seen;
void main() {
    is_seen = 1.0;
}
"""


class GlUnavailableError(RuntimeError):
    """No OpenGL context can be had here."""


@dataclass(frozen=True)
class _Drawable:
    """A mesh on the device."""

    program: Any
    vertex_array: Any
    silhouette: Any
    """The same vertices for the program that draws only where they are."""
    texture: Any
    radius_m: float
    """Of the vertices around the object's origin."""
    is_closed: bool


class GlRenderer:
    """Renders with OpenGL 3.3, without a display; used only in the process that opened it."""

    name = "gl"

    def __init__(self) -> None:
        self.context = _open_context()
        self.device = self.context.info["GL_RENDERER"]
        self._programs: dict[bool, Any] = {}
        self._drawables: WeakKeyDictionary[Mesh, _Drawable] = WeakKeyDictionary()
        self._framebuffers: OrderedDict[tuple[int, int, bool], Any] = OrderedDict()
        for is_textured in (False, True):
            define = "#version 330\n#define TEXTURED" if is_textured else "#version 330"
            self._programs[is_textured] = self.context.program(
                vertex_shader=_VERTEX_SHADER.replace("#version 330", define),
                fragment_shader=_FRAGMENT_SHADER.replace("#version 330", define),
            )
        self._silhouette_program = self.context.program(
            vertex_shader=_SILHOUETTE_VERTEX_SHADER, fragment_shader=_SILHOUETTE_FRAGMENT_SHADER
        )

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
        """Draw the instances with mutual occlusion; of equally deep surfaces the one given first is seen."""
        check_scene(instances, K, near_m, far_m)
        clip_T_cam = _projection(K, height, width, near_m, far_m)
        with self._drawing(K, height, width) as framebuffer:
            framebuffer.clear()
            # Nearest first: what they hide needs no shading.
            for i in sorted(range(len(instances)), key=lambda i: instances[i].cam_T_obj[2, 3]):
                self._draw(instances[i], clip_T_cam, near_m, label=i + 1)
            albedo_label = np.empty((height, width, 4), np.uint8)
            normal_depth = np.empty((height, width, 4), np.float32)
            framebuffer.read_into(albedo_label, components=4, attachment=0, dtype="f1")
            framebuffer.read_into(normal_depth, components=4, attachment=1, dtype="f4")
        depth = cv2.extractChannel(normal_depth, 3)
        mask = cv2.extractChannel(albedo_label, 3)
        return Buffers(
            albedo=cv2.cvtColor(albedo_label, cv2.COLOR_RGBA2RGB),
            normal=cv2.cvtColor(normal_depth, cv2.COLOR_RGBA2RGB),
            depth=depth,
            mask=mask,
            xyz=_object_coordinates(depth, mask, instances if with_xyz else (), K),
        )

    def silhouettes(
        self, instances: Sequence[Instance], K: Float[np.ndarray, "3 3"], height: int, width: int
    ) -> list[Bool[np.ndarray, "h w"]]:
        """Draw each instance alone, and read back no more than it can cover."""
        check_scene(instances, K, NEAR_M, FAR_M)
        clip_T_cam = _projection(K, height, width, NEAR_M, FAR_M)
        masks = np.zeros((len(instances), height, width), bool)
        with self._drawing(K, height, width, only_silhouettes=True) as framebuffer:
            for mask, instance in zip(masks, instances, strict=True):
                drawable = self._drawable(instance.mesh)
                box = _box_around(instance.cam_T_obj[:3, 3], drawable.radius_m, K, height, width)
                left, top, columns, rows = box
                if columns and rows:
                    framebuffer.clear(viewport=box)
                    self._silhouette_program["clip_T_obj"].write(_column_major(clip_T_cam @ instance.cam_T_obj))
                    self.context.enable_only(self._culling(drawable, instance, NEAR_M))
                    drawable.silhouette.render()
                    is_seen = np.empty((rows, columns), np.uint8)
                    framebuffer.read_into(is_seen, viewport=box, components=1)
                    mask[top : top + rows, left : left + columns] = is_seen
        return list(masks)

    def close(self) -> None:
        """Release the context and everything on the device."""
        self._drawables.clear()
        self._framebuffers.clear()
        self._programs.clear()
        self._silhouette_program = None
        self.context.release()

    @contextmanager
    def _drawing(self, K: np.ndarray, height: int, width: int, only_silhouettes: bool = False) -> Iterator[Any]:
        """Draw into a framebuffer of that size."""
        _check_process()
        with self.context:
            self.context.gc()
            framebuffer = self._framebuffer(height, width, only_silhouettes)
            framebuffer.use()
            # Images are drawn upside down, and K may mirror them once more.
            self.context.front_face = "cw" if np.linalg.det(K[:2, :2]) > 0 else "ccw"
            yield framebuffer

    def _draw(self, instance: Instance, clip_T_cam: np.ndarray, near_m: float, label: int) -> None:
        drawable = self._drawable(instance.mesh)
        program = drawable.program
        program["clip_T_obj"].write(_column_major(clip_T_cam @ instance.cam_T_obj))
        program["cam_T_obj"].write(_column_major(instance.cam_T_obj))
        program["label"].value = label / 255
        if drawable.texture is not None:
            drawable.texture.use(0)
        self.context.enable_only(self.context.DEPTH_TEST | self._culling(drawable, instance, near_m))
        drawable.vertex_array.render()

    def _culling(self, drawable: _Drawable, instance: Instance, near_m: float) -> int:
        """Half of the faces of a solid needn't be drawn, unless the near plane may open it."""
        is_whole = instance.cam_T_obj[2, 3] - drawable.radius_m > near_m
        return self.context.CULL_FACE if drawable.is_closed and is_whole else self.context.NOTHING

    def _drawable(self, mesh: Mesh) -> _Drawable:
        if mesh not in self._drawables:
            self._drawables[mesh] = self._upload(mesh)
        return self._drawables[mesh]

    def _upload(self, mesh: Mesh) -> _Drawable:
        context = self.context
        program = self._programs[mesh.is_textured]
        xyz = (context.buffer(mesh.vertices.tobytes()), "3f4", "in_xyz")
        attributes = [
            xyz,
            (context.buffer(mesh.normals.tobytes()), "3f4", "in_normal"),
        ]
        texture = None
        if mesh.uv is not None and mesh.texture is not None:
            attributes.append((context.buffer(mesh.uv.tobytes()), "2f4", "in_uv"))
            # GL's first row is the lowest.
            rows, columns = mesh.texture.shape[:2]
            texture = context.texture((columns, rows), 3, mesh.texture[::-1].tobytes(), alignment=1)
        else:
            attributes.append((context.buffer(mesh.colors.tobytes()), "3f1", "in_color"))
        index = context.buffer(mesh.faces[neighbours_together(mesh)].tobytes())
        return _Drawable(
            program=program,
            vertex_array=context.vertex_array(program, attributes, index),
            silhouette=context.vertex_array(self._silhouette_program, [xyz], index),
            texture=texture,
            radius_m=float(np.linalg.norm(mesh.vertices, axis=1).max()),
            is_closed=is_closed(mesh),
        )

    def _framebuffer(self, height: int, width: int, only_silhouettes: bool) -> Any:
        size, key = (width, height), (width, height, only_silhouettes)
        if key not in self._framebuffers:
            while len(self._framebuffers) >= MAX_FRAMEBUFFERS:
                self._framebuffers.popitem(last=False)
            if only_silhouettes:
                framebuffer = self.context.framebuffer([self.context.renderbuffer(size, 1, dtype="f1")])
            else:
                attachments = [self.context.renderbuffer(size, 4, dtype=dtype) for dtype in ("f1", "f4")]
                framebuffer = self.context.framebuffer(attachments, self.context.depth_renderbuffer(size))
            self._framebuffers[key] = framebuffer
        self._framebuffers.move_to_end(key)
        return self._framebuffers[key]


def _check_process() -> None:
    global _process_with_gl
    _process_with_gl = _process_with_gl or os.getpid()
    if _process_with_gl != os.getpid():
        raise RuntimeError(
            f"render: process {os.getpid()} was forked from process {_process_with_gl}, which had used OpenGL; its "
            "drivers hang after a fork. Start workers with multiprocessing_context='spawn', or render only in them"
        )


def _open_context() -> Any:
    _check_process()
    try:
        import moderngl

        context = moderngl.create_context(standalone=True, require=330, backend="egl")  # type: ignore[arg-type]
    except Exception as error:  # moderngl and its loader raise Exception itself
        raise GlUnavailableError(
            f"no OpenGL 3.3 through EGL ({error}); on Debian or Ubuntu: apt-get install libegl1 libgl1-mesa-dri"
        ) from error
    # Meshes may be collected at any moment, in any thread; what they leave on the device waits for the next render.
    context.gc_mode = "context_gc"
    return context


def _projection(K: np.ndarray, height: int, width: int, near_m: float, far_m: float) -> np.ndarray:
    """clip_T_cam of a camera; image row 0 becomes GL's lowest row, which is the first one read back."""
    ndc_A_img = np.array([[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1], [0, 0, 1]])
    clip_T_cam = np.zeros((4, 4))
    clip_T_cam[[0, 1, 3], :3] = ndc_A_img @ K
    clip_T_cam[2, 2:] = (far_m + near_m) / (far_m - near_m), -2 * far_m * near_m / (far_m - near_m)
    return clip_T_cam


def _box_around(
    center_m: np.ndarray, radius_m: float, K: np.ndarray, height: int, width: int
) -> tuple[int, int, int, int]:
    """Left, top, columns and rows of what of the picture a sphere can cover."""
    u, v, z_m = K @ center_m
    if z_m <= radius_m:
        return 0, 0, width, height
    # By so much does the point of a ball that is seen farthest from its centre differ from it in (x / z, y / z).
    reach = radius_m * np.linalg.norm(center_m) / (z_m * (z_m - radius_m))
    reach_px = 1 + np.linalg.norm(K[:2, :2], 2) * reach
    left, right = (int(np.clip(u / z_m + side * reach_px, 0, width)) for side in (-1, 1))
    top, bottom = (int(np.clip(v / z_m + side * reach_px, 0, height)) for side in (-1, 1))
    return left, top, min(right + 1, width) - left, min(bottom + 1, height) - top


def _object_coordinates(
    depth: np.ndarray, mask: np.ndarray, instances: Sequence[Instance], K: np.ndarray
) -> Float[np.ndarray, "h w 3"]:
    """Take each pixel from the image through depth and camera to the frame of the object seen there."""
    xyz = np.zeros((*mask.shape, 3), np.float32)
    if not instances:
        return xyz
    u, v = np.arange(mask.shape[1], dtype=np.float32), np.arange(mask.shape[0], dtype=np.float32)
    scaled_uv = cv2.merge([u * depth, v[:, None] * depth, depth])
    img_T_cam = np.eye(4)
    img_T_cam[:3, :3] = K
    for i, instance in enumerate(instances):
        is_seen = cv2.inRange(mask, i + 1, i + 1)
        left, top, width, height = cv2.boundingRect(is_seen)
        if width > 0:
            box = np.s_[top : top + height, left : left + width]
            obj_T_img = np.linalg.inv(img_T_cam @ instance.cam_T_obj)
            cv2.copyTo(cv2.transform(scaled_uv[box], obj_T_img[:3]), is_seen[box], xyz[box])
    return xyz


def _column_major(matrix: np.ndarray) -> bytes:
    return matrix.T.astype(np.float32).tobytes()
