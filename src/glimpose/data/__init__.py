"""Data at rest: datasets in BOP's layout, image files, backgrounds, and what a camera's sensor does to a picture."""
