"""From a folder of CAD models to a trained checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from glimpose.data.bop import model_path, read_models_info
from glimpose.nets.glance_gaze import GlanceGazeConfig
from glimpose.objects.catalogue import ObjectModel, object_model
from glimpose.objects.samples import SampleConfig
from glimpose.objects.self_supervision import SelfSupervisionConfig
from glimpose.objects.synthesis import SynthesisConfig
from glimpose.objects.task import BatchConfig, CurriculumConfig, GlanceGazeTask, LambdaConfig
from glimpose.render.mesh import Mesh, load_mesh
from glimpose.training.loop import TrainingConfig, fit


@dataclass(frozen=True)
class DataConfig:
    """Which objects, and where their CAD models are."""

    models: Path = Path("models")
    """Folder with obj_000001.ply … and models_info.json, as BOP has it."""
    object_ids: tuple[int, ...] = ()
    """Which of them; all when empty."""
    names: tuple[str, ...] = ()
    """Their names for pictures, in the order of object_ids; obj_1 and so on when empty."""
    mesh_scale_to_m: float = 1e-3
    """Metres per unit of the mesh files; BOP's are in millimetres."""


@dataclass(frozen=True)
class ObjectsConfig:
    """One experiment of the object track."""

    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    lambdas: LambdaConfig = field(default_factory=LambdaConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    network: GlanceGazeConfig = field(default_factory=GlanceGazeConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    samples: SampleConfig = field(default_factory=SampleConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    self_supervision: SelfSupervisionConfig = field(default_factory=SelfSupervisionConfig)
    """For `adapt`, which training ends with if training.use_self_supervised says so."""
    imagenet: Path | None = None
    """torchvision's MobileNetV2 file, .pth or .safetensors, which the gaze's encoder starts from."""


def load_objects(data: DataConfig, num_keypoints: int) -> tuple[list[ObjectModel], list[Mesh]]:
    """Read the CAD models and describe each object."""
    info = read_models_info(data.models)
    ids = data.object_ids or tuple(sorted(info))
    if data.names and len(data.names) != len(ids):
        raise ValueError(f"data.names: got {len(data.names)} names for {len(ids)} objects; give one each or none")
    names = data.names or tuple(f"obj_{obj_id}" for obj_id in ids)
    objects, meshes = [], []
    for obj_id, name in zip(ids, names, strict=True):
        if obj_id not in info:
            raise ValueError(f"{data.models / 'models_info.json'}: no entry for object {obj_id}; it has {sorted(info)}")
        mesh = load_mesh(model_path(data.models, obj_id), scale_to_m=data.mesh_scale_to_m)
        objects.append(object_model(obj_id, name, mesh, num_keypoints, info[obj_id].discrete, info[obj_id].continuous))
        meshes.append(mesh)
    return objects, meshes


def build_task(config: ObjectsConfig, objects: Sequence[ObjectModel], meshes: Sequence[Mesh]) -> GlanceGazeTask:
    """Assemble the task."""
    task = GlanceGazeTask(
        objects,
        config.synthesis.simplified(meshes),
        config.network,
        config.synthesis,
        config.samples,
        replace(config.batch, seed=config.training.seed),
        config.curriculum,
        config.lambdas,
        config.training.num_workers,
    )
    if config.imagenet is not None:
        task.model.gaze.encoder.load_imagenet(config.imagenet)
    return task


def train(config: ObjectsConfig, run_dir: Path, resume: bool = False) -> Path:
    """Train glance and gaze, adapt them to photographs if the config says so; returns the best checkpoint."""
    objects, meshes = load_objects(config.data, config.network.num_keypoints)
    best = fit(build_task(config, objects, meshes), config.training, run_dir, resume=resume)
    if config.training.use_self_supervised:
        from glimpose.objects.adapt import adapt  # which trains, too

        return adapt(config, best, run_dir / "adaptation", resume=resume)
    return best
