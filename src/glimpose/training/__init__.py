"""Training: the loop, its checkpoints and the averaged weights; what is learned is the task's business."""
