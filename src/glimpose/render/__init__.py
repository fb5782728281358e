"""Images, depth, instance masks and object coordinates from meshes, poses and cameras."""
