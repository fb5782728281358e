"""Training on a recording: batches of frames, losses, and what is measured on frames held out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from glimpose.config import to_dict
from glimpose.data.backgrounds import Backgrounds
from glimpose.data.images import equalised
from glimpose.data.led_h5 import Recording
from glimpose.metrics.robot_errors import bearing_error_rad, pixel_error_px
from glimpose.robots.augment import AugmentConfig, Change, draw_motion, zoomed
from glimpose.robots.estimator import DecodeConfig, RobotModel, find_robots, image_maps
from glimpose.robots.labels import Labels, labels_of, resize, scaled
from glimpose.robots.placement import focal_px
from glimpose.training.loader import load_batches

Batch = dict[str, Tensor]
NEIGHBOURS = 12
"""Frames before and after one among which its opposite is looked for."""


@dataclass(frozen=True)
class BatchConfig:
    """How much goes into one step, and what is held out."""

    frames: int = 32
    views: int = 8
    """So many of them are seen a second time, larger or smaller, for the range to be learned from, once training has
    started."""
    twins: int = 0
    """So many of them are seen once more with their LEDs painted over, and in another light, once training has started:
    where a robot is and from which side it's seen doesn't depend on its LEDs."""
    start_steps: int = 0
    """Until then frames are changed less than `AugmentConfig` says, for what nothing is known of is hard to find;
    networks with a map of positions lean on what glows, less and less: it shows the way, but a robot's middle isn't its
    LEDs; and `LatentPose` learns by the published loss."""
    validation_share: float = 0.1
    """Of the recording's frames: the last ones, for their neighbours in time look like them."""
    validation_frames: int = 256
    """At most so many of those are looked at."""

    def __post_init__(self) -> None:
        if self.frames % 2 or not 0 <= self.views <= self.frames:
            raise ValueError(f"got {self.frames} frames and {self.views} views, expected even frames and fewer views")
        if not 0 <= self.twins <= self.frames:
            raise ValueError(f"twins: got {self.twins}, expected 0 to as many as there are frames, {self.frames}")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share: got {self.validation_share}, expected 0 to 1, exclusive")


class LedBatches(Dataset[Batch]):
    """Batches of couples: a frame, and one from about the same time in which as many LEDs as possible are other.

    Before anything is known, the gradient is the mean picture of frames with an LED on, less that of those with it
    off. In couples that are augmented alike, what has nothing to do with LEDs, a bright wall or a dark frame, nearly
    cancels, and the rest is seen much sooner (docs/lab-book.md).

    Batch i is a function of (seed, i) alone; in every epoch each frame leads one couple.
    """

    def __init__(
        self,
        recording: Recording,
        frames: Sequence[int],
        model: RobotModel,
        augmentation: AugmentConfig,
        config: BatchConfig,
        seed: int,
    ) -> None:
        if recording.led_names != model.robot.led_names:
            raise ValueError(
                f"{recording.path}: LEDs {', '.join(recording.led_names)}, but {model.robot.name} has "
                f"{', '.join(model.robot.led_names)}; name the LEDs in the robot's file as the recording does"
            )
        if len(frames) < config.frames:
            raise ValueError(
                f"{recording.path}: {len(frames)} frames to train on, fewer than batch.frames={config.frames}"
            )
        self.recording = recording
        self.frames = np.array(frames)
        self.scale, self.clip_limit = model.network.input_scale, model.network.clip_limit
        self.focal_px = float(recording.width) if recording.camera is None else focal_px(recording.camera)
        self.mirrored = model.robot.mirrored if augmentation.flip_prob else ()
        self.augmentation = augmentation
        self.texture = Backgrounds(augmentation.photographs).texture
        self.config = config
        self.seed = seed
        self.batches_per_step = 1
        """As many as there are processes."""
        self.states = [recording.led_states(i) for i in self.frames]
        self.max_targets = max(map(len, self.states))

    def __getitem__(self, index: int) -> Batch:
        """Draw batch ``index``: couples, and after them dark twins and second views of some of their frames."""
        num_couples, num_frames = self.config.frames // 2, len(self.frames)
        steps = self.config.start_steps * self.batches_per_step
        started = min(1.0, index / steps) if steps else 1.0
        augmentation = self.augmentation.eased(started)
        orders: dict[int, np.ndarray] = {}
        frames: list[int] = []
        changes: list[Change] = []
        for couple in range(index * num_couples, (index + 1) * num_couples):
            epoch, place = divmod(couple, num_frames)
            if epoch not in orders:
                orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(num_frames)
            first = int(orders[epoch][place])
            frames += [int(self.frames[first]), int(self.frames[self._opposite(first)])]
            motion = draw_motion(augmentation, np.random.default_rng([self.seed, index, couple]))
            changes += 2 * [Change(motion, augmentation, (self.seed, index, couple, 1), self.texture)]
        twin_of, view_of = (range(num if started == 1 else 0) for num in (self.config.twins, self.config.views))
        for i in twin_of:
            frames.append(frames[i])
            changes.append(replace(changes[i], seed=(self.seed, index, i, 4), is_dark=True))
        for i in view_of:
            rng = np.random.default_rng([self.seed, index, i, 2])
            frames.append(frames[i])
            motion = zoomed(changes[i].motion, augmentation, rng)
            changes.append(Change(motion, augmentation, (self.seed, index, i, 3), self.texture))
        batch = self.collate(frames, changes)
        twins = torch.arange(len(twin_of))
        batch["twin"] = torch.stack([twins, self.config.frames + twins], 1)
        batch["is_there"][batch["twin"][:, 1]] = 0  # their LEDs are painted over, so they tell no states
        if started < 1:
            batch["started"] = torch.tensor(started)
        size = self.recording.height, self.recording.width, self.scale
        matrices = [change.motion.matrix(*size) for change in changes]
        seconds = matrices[self.config.frames + len(twin_of) :]
        view_A = [second @ np.linalg.inv(matrices[i]) for i, second in zip(view_of, seconds, strict=True)]
        batch["view_A"] = torch.tensor(np.array(view_A), dtype=torch.float32).reshape(-1, 3, 3)
        return batch

    def labels(self) -> Iterator[Labels]:
        """Give the labels of all frames to train on, in the network's input, without reading a picture."""
        size = np.array([self.recording.width, self.recording.height])
        factor_u, factor_v = np.round(size * self.scale) / size
        for i in self.frames:
            robots = self.recording.robots(int(i))
            yield scaled(labels_of(robots, len(self.recording.led_names), self.focal_px), factor_u, factor_v)

    def _opposite(self, first: int) -> int:
        """Find the neighbour in time that differs in most LEDs, the nearest of those."""
        others = [i for i in range(first - NEIGHBOURS, first + NEIGHBOURS + 1) if 0 <= i < len(self.frames)]
        states = self.states[first]

        def num_same(i: int) -> int:
            return int((states == self.states[i]).sum()) if len(self.states[i]) == len(states) else states.size

        return min(others, key=lambda i: (num_same(i), abs(i - first)))

    def collate(self, frames: Sequence[int], changes: Sequence[Change] | None = None) -> Batch:
        """Read frames, change each as told, or none, and stack them; T is that of the recording."""
        each: Sequence[Change | None] = [None] * len(frames) if changes is None else changes
        images, columns = [], []
        for i, change in zip(frames, each, strict=True):
            frame = self.recording[i]
            labels = labels_of(frame.robots, len(self.recording.led_names), self.focal_px)
            if change is None:
                image, labels = resize(frame.image, labels, self.scale)
            else:
                image, labels = change(frame.image, labels, self.mirrored, self.scale)
            images.append(equalised(image, self.clip_limit))
            columns.append((labels.led_on, labels.uv_px, labels.log_range, labels.bearing_rad, labels.is_visible))
        names = ("led_on", "uv", "log_range", "bearing_rad", "is_visible")
        batch = {
            name: torch.from_numpy(np.stack([self._padded(row[k], name) for row in columns]))
            for k, name in enumerate(names)
        }
        is_there = [[t < len(row[0]) for t in range(self.max_targets)] for row in columns]
        return {
            "image": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),  # in memory: channels last
            "is_there": torch.tensor(is_there, dtype=torch.float32),
            "frame": torch.tensor(frames),
            "view_A": torch.zeros(0, 3, 3),
            "twin": torch.zeros(0, 2, dtype=torch.long),
            **batch,
        }

    def _padded(self, rows: np.ndarray, name: str) -> np.ndarray:
        missing = self.max_targets - len(rows)
        filler = np.full((missing, *rows.shape[1:]), 0 if name == "led_on" else np.nan)
        return np.concatenate([rows, filler]).astype(np.float32)


class RobotsTask:
    """The task `training.loop.fit` trains."""

    def __init__(
        self,
        model: RobotModel,
        recording: Recording,
        validation: Recording | None,
        augmentation: AugmentConfig,
        batch: BatchConfig,
        seed: int,
        num_workers: int,
    ) -> None:
        self.description = model
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.model = model.build()
        num_held_out = 0 if validation else max(1, round(batch.validation_share * len(recording)))
        frames = range(len(recording) - num_held_out)
        self.batches = LedBatches(recording, frames, model, augmentation, batch, seed)
        unread = replace(augmentation, photographs=None)  # frames held out are never changed
        self.held_out = LedBatches(
            validation or recording, range(len(validation or recording)), model, unread, batch, seed
        )
        rows = range(len(validation)) if validation else range(len(frames), len(recording))
        self.held_out_frames = [rows[i] for i in range(0, len(rows), -(-len(rows) // batch.validation_frames))]
        self.num_workers = num_workers
        self._validation: list[Batch] | None = None

    def metadata(self) -> dict:
        """What a checkpoint needs besides weights to predict."""
        return {"kind": "robots", "model": to_dict(self.description), "scale_m": self.description.pretext.scale_m}

    def loader(self, start_step: int, num_steps: int, rank: int, world_size: int) -> Iterable[Batch]:
        """Batches of steps start_step.. for one of several processes."""
        self.batches.batches_per_step = world_size
        return load_batches(self.batches, start_step, num_steps, rank, world_size, self.num_workers)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms whose sum is minimised."""
        image = batch["image"].float() / 255
        maps = model(image, glow_weight=1 - batch["started"]) if "started" in batch else model(image)
        terms = self.description.pretext.terms(maps, batch)
        return {name: term.mean() for name, term in terms.items()}

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Losses on frames held out; ``score`` is minus their sum, so poses choose no checkpoint.

        Where the recording tells poses, also median errors of the surest robot in frames that show just one.
        """
        if self._validation is None:
            chunks = [self.held_out_frames[i : i + 32] for i in range(0, len(self.held_out_frames), 32)]
            self._validation = [self.held_out.collate(chunk) for chunk in chunks]
        device = next(model.parameters()).device
        sums: dict[str, float] = {}
        pixels, bearings = [], []
        for batch in self._validation:
            batch = {name: value.to(device) for name, value in batch.items()}
            maps = model(batch["image"].float() / 255)
            for name, term in self.description.pretext.terms(maps, batch).items():
                sums[name] = sums.get(name, 0.0) + float(term.sum())
            for i in torch.nonzero((batch["is_visible"] == 1).sum(1) == 1).flatten().tolist():
                robot = find_robots(
                    image_maps(maps, i), self.description.pretext.has_presence, DecodeConfig(max_robots=1)
                )[0]
                target = int(batch["is_visible"][i].nan_to_num().argmax())
                pixels.append(pixel_error_px(torch.from_numpy(robot.uv_px).float(), batch["uv"][i, target].cpu()))
                bearing = torch.tensor(robot.bearing_rad)
                bearings.append(bearing_error_rad(bearing, batch["bearing_rad"][i, target].cpu()))
        means = {name: total / len(self.held_out_frames) for name, total in sums.items()}
        measured = {**means, "score": -sum(means.values())}
        if pixels:
            measured["uv_px"] = float(torch.stack(pixels).median()) / self.description.network.input_scale
            measured["psi_deg"] = float(torch.stack(bearings).rad2deg().median())
        return measured
