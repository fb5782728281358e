"""The page about an adaptation: what was believed, what wasn't, and what came of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from glimpose.data.images import warp
from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.crops import crop_matrix, frame_object
from glimpose.objects.photographs import Photograph
from glimpose.objects.pseudo_labels import Labels, PseudoLabel
from glimpose.objects.self_supervision import Assessment, Round
from glimpose.render.mesh import Mesh
from glimpose.render.scene import Renderer, make_renderer
from glimpose.viz.overlay import PoseLabel, draw_poses
from glimpose.viz.report import Cell, Page

PICTURE_PX = 240
PICTURES = 4
"""Of each object, accepted and rejected."""
PHOTOGRAPHS = 8
"""With their labels, at most."""
PAD = 2.0
"""Side of a picture, in apparent diameters."""


def write_page(
    path: Path,
    objects: Sequence[ObjectModel],
    meshes: Mapping[int, Mesh],
    photographs: Sequence[Photograph],
    labels: Sequence[Labels],
    rounds: Sequence[Round],
    before: Assessment,
    after: Assessment,
) -> Path:
    """Write the page; ``labels`` are those of each round."""
    kept = sum(entry.is_kept for entry in rounds)
    page = Page("Adaptation to photographs")
    page.text(
        f"{kept} of {len(rounds)} rounds were kept. Agreement is the probability, as far as drawn poses and "
        "photographs tell, that an object's best pose is right, measured on photographs held out; an object that isn't "
        "in a photograph counts as 0. Nobody labelled any of them."
    )
    if kept < len(rounds):
        page.text(f"Round {len(rounds)} made agreement worse and was undone: the model is that of the round before.")
    page.heading("Agreement before and after")
    rows: list[dict[str, Cell]] = [
        {"object": model.name, "before": before.per_object[model.obj_id], "after": after.per_object[model.obj_id]}
        for model in objects
    ]
    page.table([*rows, {"object": "all", "before": before.agreement, "after": after.agreement}])
    page.heading("Accepted pseudo-labels")
    shares: list[dict[str, Cell]] = [
        {"object": model.name, **{f"round {r.number}": 100 * r.accepted[model.obj_id] for r in rounds}}
        for model in objects
    ]
    page.table(shares, "Percent of the photographs with a label that is more probably right than the threshold.")
    if len(rounds) > 1:
        at = [float(r.number) for r in rounds]
        series = {m.name: (at, [r.probability[m.obj_id] for r in rounds]) for m in objects}
        page.curve(series, "round", "labels' mean probability of being right")
    renderer = make_renderer()
    page.heading("What was learned from")
    believed = [entry for entry in labels[-1].labels if entry.weight > 0]
    numbers = sorted({entry.photograph for entry in believed})
    numbers = numbers[:: -(-len(numbers) // PHOTOGRAPHS) or 1]
    page.gallery(
        [
            _photograph(photographs[n], [e for e in believed if e.photograph == n], objects, meshes, renderer)
            for n in numbers
        ],
        caption=f"Round {len(labels)}: some of the photographs with all labels that count.",
        columns=2,
    )
    for index, model in enumerate(objects):
        own = sorted(
            (entry for entry in labels[-1].labels if entry.object_index == index), key=lambda entry: -entry.probability
        )
        page.heading(model.name)
        for title, chosen in (
            ("surest", own[:PICTURES]),
            ("least sure", own[PICTURES:][-PICTURES:]),
        ):
            if chosen:
                pictures = [_picture(entry, model, meshes[model.obj_id], photographs, renderer) for entry in chosen]
                told = [f"{entry.probability:.2f}, weight {entry.weight:.2f}" for entry in chosen]
                page.gallery(pictures, told, f"Round {len(labels)}, {title}: probability of being right.", PICTURES)
        if not own:
            page.text("No label in the last round.")
    renderer.close()
    return page.write(path)


def _photograph(
    photograph: Photograph,
    labels: Sequence[PseudoLabel],
    objects: Sequence[ObjectModel],
    meshes: Mapping[int, Mesh],
    renderer: Renderer,
) -> np.ndarray:
    models = [(objects[entry.object_index], entry) for entry in labels]
    shown = [
        PoseLabel(model.name, None, entry.cam_T_obj, model.bounds_m, meshes[model.obj_id], entry.object_index)
        for model, entry in models
    ]
    return draw_poses(photograph.image, photograph.K, shown, renderer=renderer)


def _picture(
    entry: PseudoLabel, model: ObjectModel, mesh: Mesh, photographs: Sequence[Photograph], renderer: Renderer
) -> np.ndarray:
    photograph = photographs[entry.photograph]
    center_px, side_px = frame_object(entry.cam_T_obj, photograph.K, model.diameter_m, PAD)
    out_A_img = crop_matrix(center_px, side_px, PICTURE_PX)
    crop = warp(photograph.image, out_A_img, PICTURE_PX, PICTURE_PX)
    shown = PoseLabel("", entry.probability, entry.cam_T_obj, model.bounds_m, mesh)
    return draw_poses(crop, out_A_img @ photograph.K, [shown], renderer=renderer)
