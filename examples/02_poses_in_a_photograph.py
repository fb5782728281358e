"""Find objects in one photograph, in ten lines.

python examples/02_poses_in_a_photograph.py CHECKPOINT.safetensors PHOTOGRAPH.png CAMERA.json
"""

import sys
from pathlib import Path

from glimpose import PoseEstimator, read_camera, read_image

checkpoint, photograph, camera = map(Path, sys.argv[1:4])
estimator = PoseEstimator.from_checkpoint(checkpoint)
for pose in estimator(read_image(photograph), read_camera(camera).K):
    x, y, z = pose.cam_T_obj[:3, 3]
    print(f"{pose.model.name:12s} score {pose.score:.2f}  at {x:+.3f} {y:+.3f} {z:.3f} m in the camera frame")
