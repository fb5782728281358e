"""Turn a robot into an object, and a recording into photographs: how robots are found from their CAD model instead.

python examples/03_a_robot_as_an_object.py RECORDING.h5 ROBOT.toml OUT

writes OUT/models, OUT/camera.json and OUT/test/000000/rgb, with which the object track goes on:

glimpose train    configs/robots/cad-supervised.toml --out run data.models=OUT/models
glimpose predict  run/best.safetensors OUT/test --camera OUT/camera.json --out poses.csv --instances 1
glimpose evaluate poses.csv --recording RECORDING.h5 --robot ROBOT.toml --out scores
"""

import sys
from pathlib import Path

from glimpose.data.bop import Camera, ModelInfo, write_camera
from glimpose.data.bop_writer import write_models
from glimpose.data.files import write_image
from glimpose.data.led_h5 import open_recording
from glimpose.render.mesh import diameter_m
from glimpose.robots.body import assemble, led_plate, robot_body
from glimpose.robots.leds import load_leds

recording = open_recording(Path(sys.argv[1]), allow_constant_leds=True)
robot = load_leds(Path(sys.argv[2]))
out = Path(sys.argv[3])

mesh = assemble([robot_body(robot), *(led_plate(led) for led in robot.leds)])
write_models(out / "models", {1: mesh}, {1: ModelInfo(diameter_m(mesh))})

assert recording.camera is not None, "without its camera a recording shows directions, but no places"
write_camera(out / "camera.json", Camera(recording.camera.K, recording.width, recording.height))
rgb = out / "test" / "000000" / "rgb"
rgb.mkdir(parents=True)
for i in range(len(recording)):
    write_image(rgb / f"{i:06d}.png", recording.image(i))
print(f"{out}: the robot as object 1, {diameter_m(mesh):.3f} m across, and {len(recording)} photographs")
