"""Networks: fully convolutional, image in, named maps out."""
