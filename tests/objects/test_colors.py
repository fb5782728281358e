from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from glimpose.nets.mtgoe import STRIDE
from glimpose.objects.agreement import Agreement
from glimpose.objects.colors import photographed_colors
from glimpose.objects.crops import resize_matrix
from glimpose.objects.photographs import Photograph
from glimpose.objects.pseudo_labels import PseudoLabel
from glimpose.render.mesh import Mesh, sphere_mesh
from glimpose.render.scene import Instance, Renderer, make_renderer

K = np.array([[300.0, 0, 80], [0, 300.0, 60], [0, 0, 1]])


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return make_renderer()


@pytest.fixture(scope="module")
def ball() -> Mesh:
    """Its colour changes smoothly over it."""
    ball = sphere_mesh(radius=0.05, subdivisions=4)
    return replace(ball, colors=(140 + 90 * ball.normals).astype(np.uint8))


def photographed(ball: Mesh, renderer: Renderer, num: int, hidden: bool = False) -> tuple[list, list[Photograph]]:
    """Labelled photographs of one side, some brighter than others; the left half of each is red all over if hidden."""
    rng = np.random.default_rng(5)
    labels, photographs = [], []
    for number in range(num):
        cam_T_obj = np.eye(4)
        cam_T_obj[:3, :3] = Rotation.from_rotvec(rng.normal(0, 0.4, 3)).as_matrix()
        cam_T_obj[:3, 3] = [*rng.normal(0, 0.02, 2), rng.uniform(0.35, 0.45)]
        drawn = renderer.render([Instance(ball, cam_T_obj)], K, 120, 160)
        image = np.clip(drawn.albedo * rng.uniform(0.8, 1.1), 0, 255).astype(np.uint8)
        image[drawn.mask == 0] = (0, 255, 0)
        visible = np.ones((120 // STRIDE, 160 // STRIDE), np.float32)
        if hidden:
            image[:, :80] = (255, 0, 0)
            visible[:, : 80 // STRIDE] = 0.0
        cells_A_img = resize_matrix(1 / STRIDE, 1 / STRIDE)
        agreement = Agreement(*[1.0] * 7)
        labels.append(PseudoLabel(number, 0, cam_T_obj, 1.0, 1.0, agreement, visible, cells_A_img))
        photographs.append(Photograph(image, K))
    return labels, photographs


@pytest.mark.parametrize("hidden", [False, True])
def test_colours_are_those_that_photographs_show(ball: Mesh, renderer: Renderer, hidden: bool):
    """Also on the side that none shows they become more alike, as the rest does."""
    scanned = replace(ball, colors=(20 + 0.6 * ball.colors).astype(np.uint8))
    labels, photographs = photographed(ball, renderer, 12, hidden)
    found = photographed_colors(scanned, labels, photographs, renderer)
    wrong, off = (np.abs(mesh.colors.astype(float) - ball.colors).mean(1) for mesh in (scanned, found))
    front, back = ball.normals[:, 2] < -0.7, ball.normals[:, 2] > 0.3
    assert wrong[front].mean() > 20
    assert off[front].mean() < 8
    assert off[back].mean() < 0.6 * wrong[back].mean()


def test_too_little_shown_changes_nothing(ball: Mesh, renderer: Renderer):
    labels, photographs = photographed(ball, renderer, 4)
    assert photographed_colors(ball, labels[:2], photographs, renderer) is ball
    unseen = [replace(label, visible=np.zeros_like(label.visible)) for label in labels]
    assert photographed_colors(ball, unseen, photographs, renderer) is ball
    textured = replace(ball, uv=ball.normals[:, :2].copy(), texture=np.zeros((2, 2, 3), np.uint8))
    assert photographed_colors(textured, labels, photographs, renderer) is textured
