"""Synthesised datasets in BOP's layout, for other programs and for looking at."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from glimpose.data.bop import BopDataset, Camera, read_models_info, targets_of, write_camera, write_targets
from glimpose.data.bop_writer import SceneWriter, write_models
from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.synthesis import Photographer, SceneSampler, SynthesisConfig, only_visible_in
from glimpose.render.mesh import Mesh
from glimpose.render.scene import Renderer


def write_dataset(
    out: Path,
    split: str,
    objects: list[ObjectModel],
    meshes: list[Mesh],
    models: Path,
    synthesis: SynthesisConfig,
    renderer: Renderer,
    num: int,
    seed: int,
    per_scene: int = 1000,
) -> None:
    """Write num photographs with poses, masks and depth, their CAD models, camera and targets.

    Image i is a function of (seed, i) alone. Objects that show no pixel are not labelled.
    """
    if num < 1:
        raise ValueError(f"num: got {num}, expected at least 1")
    infos = read_models_info(models)
    write_models(
        out / "models",
        {model.obj_id: mesh for model, mesh in zip(objects, meshes, strict=True)},
        {model.obj_id: infos[model.obj_id] for model in objects},
    )
    height, width, K = synthesis.height, synthesis.width, synthesis.K
    write_camera(out / "camera.json", Camera(K, width, height), depth_scale=0.1)
    sampler, photographer = SceneSampler(meshes, synthesis), Photographer(renderer, synthesis)
    with tqdm(total=num, desc="synth", unit="image") as progress:
        for first in range(0, num, per_scene):
            with SceneWriter(out, split, first // per_scene) as scene_writer:
                for i in range(first, min(first + per_scene, num)):
                    rng = np.random.default_rng([seed, i])
                    scene = only_visible_in(sampler.draw(rng), K, height, width)
                    image, buffers = photographer.shoot(scene, K, height, width, rng)
                    known = [
                        j for j, index in enumerate(scene.object_index) if index >= 0 and (buffers.mask == j + 1).any()
                    ]
                    scene_writer.add(
                        image,
                        K,
                        [objects[scene.object_index[j]].obj_id for j in known],
                        [scene.instances[j].cam_T_obj for j in known],
                        [renderer.render([scene.instances[j]], K, height, width).mask > 0 for j in known],
                        [buffers.mask == j + 1 for j in known],
                        buffers.depth,
                    )
                    progress.update()
    write_targets(out / f"{split}_targets_bop19.json", targets_of(BopDataset(out, split)))
