"""Synthesised datasets in BOP's layout, for other programs and for looking at."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from glimpose.data.backgrounds import Backgrounds
from glimpose.data.bop import BopDataset, Camera, read_models_info, write_camera
from glimpose.data.bop_results import targets_of, write_targets
from glimpose.data.bop_writer import SceneWriter, write_models
from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.synthesis import Photographer, SceneSampler, SynthesisConfig, only_visible_in
from glimpose.render.mesh import Mesh
from glimpose.render.scene import make_renderer
from glimpose.training.loader import set_up_worker

DEPTH_SCALE = 0.1


@dataclass(frozen=True)
class LabelledPhotograph:
    """One image and all that is known about it."""

    image: np.ndarray
    depth_m: np.ndarray
    obj_ids: list[int]
    cam_T_objs: list[np.ndarray]
    masks: list[np.ndarray]
    visible_masks: list[np.ndarray]


class LabelledPhotographs(Dataset[LabelledPhotograph]):
    """Photograph i is a function of (seed, i) alone, whichever process takes it."""

    def __init__(
        self,
        objects: Sequence[ObjectModel],
        meshes: Sequence[Mesh],
        synthesis: SynthesisConfig,
        seed: int,
        renderer: Literal["auto", "gl", "raster"] = "auto",
    ) -> None:
        self.objects = list(objects)
        self.sampler = SceneSampler(synthesis.simplified(meshes), synthesis)
        self.seed = seed
        self.renderer_kind = renderer
        self._photographer: Photographer | None = None

    def __getitem__(self, index: int) -> LabelledPhotograph:
        """Draw photograph ``index``; objects that show no pixel are not labelled."""
        synthesis = self.sampler.config
        if self._photographer is None:  # a renderer belongs to the process that made it
            self._photographer = Photographer(make_renderer(self.renderer_kind), Backgrounds(synthesis.backgrounds))
        height, width, K = synthesis.height, synthesis.width, synthesis.K
        rng = np.random.default_rng([self.seed, index])
        scene = only_visible_in(self.sampler.draw(rng), K, height, width)
        image, buffers = self._photographer.shoot(scene, K, height, width, rng)
        labelled = [i for i, known in enumerate(scene.object_index) if known >= 0 and (buffers.mask == i + 1).any()]
        return LabelledPhotograph(
            image=image,
            depth_m=buffers.depth,
            obj_ids=[self.objects[scene.object_index[i]].obj_id for i in labelled],
            cam_T_objs=[scene.instances[i].cam_T_obj for i in labelled],
            masks=self._photographer.renderer.silhouettes([scene.instances[i] for i in labelled], K, height, width),
            visible_masks=[buffers.mask == i + 1 for i in labelled],
        )


def write_dataset(
    out: Path,
    split: str,
    objects: Sequence[ObjectModel],
    meshes: Sequence[Mesh],
    models: Path,
    synthesis: SynthesisConfig,
    num: int,
    *,
    seed: int = 0,
    renderer: Literal["auto", "gl", "raster"] = "auto",
    num_workers: int = 0,
    per_scene: int = 1000,
) -> None:
    """Write num photographs with poses, masks and depth, their CAD models, camera and targets.

    :raises ValueError: where the split exists already.
    """
    if num < 1:
        raise ValueError(f"num: got {num}, expected at least 1")
    infos = read_models_info(models)
    write_models(
        out / "models",
        {model.obj_id: mesh for model, mesh in zip(objects, meshes, strict=True)},
        {model.obj_id: infos[model.obj_id] for model in objects},
    )
    write_camera(out / "camera.json", Camera(synthesis.K, synthesis.width, synthesis.height), depth_scale=DEPTH_SCALE)
    photographs = DataLoader(
        LabelledPhotographs(objects, meshes, synthesis, seed, renderer),
        batch_size=None,
        sampler=range(num),
        num_workers=num_workers,
        worker_init_fn=set_up_worker,
        multiprocessing_context="spawn" if num_workers else None,
    )
    with tqdm(total=num, desc="synth", unit="image") as progress:
        drawn = iter(photographs)
        for first in range(0, num, per_scene):
            with SceneWriter(out, split, first // per_scene, depth_scale=DEPTH_SCALE) as scene:
                for _ in range(first, min(first + per_scene, num)):
                    one = next(drawn)
                    scene.add(
                        one.image,
                        synthesis.K,
                        one.obj_ids,
                        one.cam_T_objs,
                        one.masks,
                        one.visible_masks,
                        one.depth_m,
                    )
                    progress.update()
    write_targets(out / f"{split}_targets_bop19.json", targets_of(BopDataset(out, split)))
