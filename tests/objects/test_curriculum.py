from types import SimpleNamespace

import pytest
import torch
from torch import nn

from glimpose.nets.glance_gaze import GlanceGazeConfig
from glimpose.objects import task as task_module
from glimpose.objects.samples import SampleConfig
from glimpose.objects.synthesis import SynthesisConfig
from glimpose.objects.task import BatchConfig, CurriculumConfig, SynthesisBatches, SynthesisTask


class Nothing(SynthesisTask):
    def losses(self, model, batch):
        return {}


def test_scenes_get_harder_until_they_are_as_hard_as_they_get():
    curriculum = CurriculumConfig(steps=10, start=0.2)
    assert [curriculum.hardest(step) for step in (0, 5, 10, 99, -1)] == pytest.approx([0.2, 0.6, 1, 1, 1])
    assert CurriculumConfig(steps=0).hardest(0) == 1


@pytest.mark.parametrize("num_processes", [1, 2])
def test_scenes_get_harder_as_fast_whatever_the_number_of_processes(monkeypatch, num_processes):
    monkeypatch.setattr(
        task_module, "draw_samples", lambda make, num, hardest, seed: {"hardest": torch.tensor([hardest])}
    )
    batches = SynthesisBatches(
        [], [], SynthesisConfig(), GlanceGazeConfig(), SampleConfig(), BatchConfig(), CurriculumConfig(steps=10)
    )
    batches._maker = SimpleNamespace(glance=None, gaze=None)
    task = Nothing(nn.Identity(), batches, num_workers=0)
    for rank in range(num_processes):
        drawn = [float(batch["gaze"]["hardest"]) for batch in task.loader(0, 4, rank, num_processes)]
        assert drawn == pytest.approx([0.1 * step + 0.1 * rank / num_processes for step in range(4)])
