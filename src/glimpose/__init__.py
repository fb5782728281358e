"""6D poses of objects and robots, learned from CAD models and photographs that nobody labelled."""

__version__ = "0.1.0"
