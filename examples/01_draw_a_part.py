"""Draw a CAD model as a camera sees it: colour, depth, labels and object coordinates.

python examples/01_draw_a_part.py [MESH.ply] [OUT.png]    (meshes in millimetres; a made-up part when none is given)
"""

import sys
from pathlib import Path

import numpy as np

from glimpose.data.files import write_image
from glimpose.render.mesh import box_mesh, diameter_m, load_mesh
from glimpose.render.scene import Instance, make_renderer
from glimpose.render.shading import Lighting, shade

mesh = load_mesh(Path(sys.argv[1])) if len(sys.argv) > 1 else box_mesh((0.10, 0.06, 0.04))
out = Path(sys.argv[2] if len(sys.argv) > 2 else "part.png")

K = np.array([[570.0, 0, 319.5], [0, 570.0, 239.5], [0, 0, 1]])
cam_T_obj = np.array([[0.8, -0.6, 0, 0], [0.36, 0.48, -0.8, 0], [0.48, 0.64, 0.6, 4 * diameter_m(mesh)], [0, 0, 0, 1]])

buffers = make_renderer().render([Instance(mesh, cam_T_obj)], K, height=480, width=640)
lit = shade(buffers, Lighting())
depth = buffers.depth / buffers.depth.max()
extent = np.abs(mesh.vertices).max()
coordinates = np.where(buffers.mask[..., None] > 0, 0.5 + 0.5 * buffers.xyz / extent, 0)
panels = [lit, np.repeat(depth[..., None], 3, axis=2), coordinates]
write_image(out, (np.hstack(panels) * 255).astype(np.uint8))
print(f"{out}: colour, depth ({buffers.depth[buffers.mask > 0].min():.3f} m at the nearest) and object coordinates")
