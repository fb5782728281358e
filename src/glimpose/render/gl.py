"""OpenGL backend: draws off-screen through EGL, on a GPU's driver or on Mesa's software rasteriser."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float

from glimpose.render.mesh import Mesh
from glimpose.render.scene import Buffers, Instance, check_scene

MAX_FRAMEBUFFERS = 8
"""Image sizes whose framebuffers are kept."""

_VERTEX_SHADER = """
#version 330
uniform mat4 clip_T_obj;
uniform mat4 cam_T_obj;
in vec3 in_xyz;
in vec3 in_normal;
out vec3 xyz;
out vec3 normal;
#ifdef TEXTURED
in vec2 in_uv;
out vec2 uv;
#else
in vec3 in_color;
out vec3 color;
#endif
void main() {
    xyz = in_xyz;
    normal = mat3(cam_T_obj) * in_normal;
#ifdef TEXTURED
    uv = in_uv;
#else
    color = in_color;
#endif
    gl_Position = clip_T_obj * vec4(in_xyz, 1.0);
}
"""

# Depth is z of the interpolated point, for the depth buffer's is neither linear nor fine enough. Thin shells are seen
# from both sides, so the normal turns towards the camera instead of being culled.
_FRAGMENT_SHADER = """
#version 330
uniform mat4 cam_T_obj;
uniform float label;
in vec3 xyz;
in vec3 normal;
#ifdef TEXTURED
uniform sampler2D albedo;
in vec2 uv;
#else
in vec3 color;
#endif
layout(location = 0) out vec4 out_albedo_label;
layout(location = 1) out vec4 out_normal;
layout(location = 2) out vec4 out_xyz_depth;
void main() {
    vec3 xyz_cam = (cam_T_obj * vec4(xyz, 1.0)).xyz;
    vec3 facing = normalize(dot(normal, xyz_cam) > 0.0 ? -normal : normal);
#ifdef TEXTURED
    vec3 color = texture(albedo, uv).rgb;
#endif
    out_albedo_label = vec4(color, label);
    out_normal = vec4(facing, 0.0);
    out_xyz_depth = vec4(xyz, xyz_cam.z);
}
"""


class GlUnavailableError(RuntimeError):
    """No OpenGL context can be had here."""


@dataclass(frozen=True)
class _Drawable:
    """A mesh on the device."""

    program: Any
    vertex_array: Any
    texture: Any


class GlRenderer:
    """Renders with OpenGL 3.3, without a display; used only in the process that opened it."""

    name = "gl"

    def __init__(self) -> None:
        self.context = _open_context()
        self.device = self.context.info["GL_RENDERER"]
        self._pid = os.getpid()
        self._programs: dict[bool, Any] = {}
        self._drawables: WeakKeyDictionary[Mesh, _Drawable] = WeakKeyDictionary()
        self._framebuffers: OrderedDict[tuple[int, int], Any] = OrderedDict()
        for is_textured in (False, True):
            define = "#version 330\n#define TEXTURED" if is_textured else "#version 330"
            self._programs[is_textured] = self.context.program(
                vertex_shader=_VERTEX_SHADER.replace("#version 330", define),
                fragment_shader=_FRAGMENT_SHADER.replace("#version 330", define),
            )

    def render(
        self,
        instances: Sequence[Instance],
        K: Float[np.ndarray, "3 3"],
        height: int,
        width: int,
        near_m: float = 0.01,
        far_m: float = 20.0,
    ) -> Buffers:
        """Draw the instances with mutual occlusion; of equally deep surfaces the one given first is seen."""
        check_scene(instances, K, near_m, far_m)
        with self.context:
            self.context.gc()
            framebuffer = self._framebuffer(height, width)
            framebuffer.use()
            self.context.enable_only(self.context.DEPTH_TEST)
            framebuffer.clear()
            clip_T_cam = _projection(K, height, width, near_m, far_m)
            # Nearest first: what they hide needs no shading.
            for i in sorted(range(len(instances)), key=lambda i: instances[i].cam_T_obj[2, 3]):
                self._draw(instances[i], clip_T_cam, label=i + 1)
            albedo_label = self._read(framebuffer, 0, "f1", np.uint8)
            normal = self._read(framebuffer, 1, "f2", np.float16)
            xyz_depth = self._read(framebuffer, 2, "f4", np.float32)
        return Buffers(
            albedo=np.ascontiguousarray(albedo_label[..., :3]),
            normal=normal[..., :3].astype(np.float32),
            depth=np.ascontiguousarray(xyz_depth[..., 3]),
            mask=np.ascontiguousarray(albedo_label[..., 3]),
            xyz=np.ascontiguousarray(xyz_depth[..., :3]),
        )

    def close(self) -> None:
        """Release the context and everything on the device."""
        self._drawables.clear()
        self._framebuffers.clear()
        self._programs.clear()
        self.context.release()

    def _draw(self, instance: Instance, clip_T_cam: np.ndarray, label: int) -> None:
        drawable = self._drawables.get(instance.mesh)
        if drawable is None:
            drawable = self._drawables[instance.mesh] = self._upload(instance.mesh)
        program = drawable.program
        program["clip_T_obj"].write(_column_major(clip_T_cam @ instance.cam_T_obj))
        program["cam_T_obj"].write(_column_major(instance.cam_T_obj))
        program["label"].value = label / 255
        if drawable.texture is not None:
            drawable.texture.use(0)
        drawable.vertex_array.render()

    def _upload(self, mesh: Mesh) -> _Drawable:
        context = self.context
        is_textured = mesh.texture is not None and mesh.uv is not None
        program = self._programs[is_textured]
        buffers = [
            (context.buffer(mesh.vertices.tobytes()), "3f4", "in_xyz"),
            (context.buffer(mesh.normals.tobytes()), "3f4", "in_normal"),
        ]
        texture = None
        if is_textured:
            buffers.append((context.buffer(mesh.uv.tobytes()), "2f4", "in_uv"))
            # GL's first row is the lowest.
            rows, columns = mesh.texture.shape[:2]
            texture = context.texture((columns, rows), 3, mesh.texture[::-1].tobytes(), alignment=1)
        else:
            buffers.append((context.buffer(mesh.colors.tobytes()), "3f1", "in_color"))
        index = context.buffer(mesh.faces.tobytes())
        return _Drawable(program, context.vertex_array(program, buffers, index), texture)

    def _framebuffer(self, height: int, width: int) -> Any:
        size = (width, height)
        if size not in self._framebuffers:
            while len(self._framebuffers) >= MAX_FRAMEBUFFERS:
                self._framebuffers.popitem(last=False)
            attachments = [self.context.renderbuffer(size, 4, dtype=dtype) for dtype in ("f1", "f2", "f4")]
            depth = self.context.depth_renderbuffer(size)
            self._framebuffers[size] = self.context.framebuffer(attachments, depth)
        self._framebuffers.move_to_end(size)
        return self._framebuffers[size]

    @staticmethod
    def _read(framebuffer: Any, attachment: int, dtype: str, numpy_dtype: Any) -> np.ndarray:
        width, height = framebuffer.size
        pixels = np.empty((height, width, 4), numpy_dtype)
        framebuffer.read_into(pixels, components=4, attachment=attachment, dtype=dtype)
        return pixels


def _open_context() -> Any:
    try:
        import moderngl

        context = moderngl.create_context(standalone=True, require=330, backend="egl")
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


def _column_major(matrix: np.ndarray) -> bytes:
    return matrix.T.astype(np.float32).tobytes()
