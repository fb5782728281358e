"""Rigid motions, cameras, poses from correspondences and symmetric objects: pure functions on tensors."""
