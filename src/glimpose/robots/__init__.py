"""Relative poses of robots, learned from the states of their LEDs."""
