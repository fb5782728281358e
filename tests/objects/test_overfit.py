"""The whole of training, on one batch: what cannot learn one batch cannot learn."""

import numpy as np
import torch

from glimpose.objects.samples import SampleConfig
from glimpose.objects.task import BatchConfig, CurriculumConfig, GlanceGazeTask, LambdaConfig


def test_one_batch_can_be_learned(parts):
    torch.manual_seed(0)
    task = GlanceGazeTask(
        parts.objects,
        parts.meshes,
        parts.network,
        parts.synthesis,
        SampleConfig(),
        BatchConfig(windows=2, crops=6),
        CurriculumConfig(),
        LambdaConfig(uncertainty=0.0),
        num_workers=0,
    )
    batch = task.batches[0]
    model = task.model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    history = []
    for _ in range(120):
        loss = sum(task.losses(model, batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert np.mean(history[-5:]) < 0.25 * history[0]
