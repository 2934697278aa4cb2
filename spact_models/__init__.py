"""The pure half: networks, losses and the game. Tensors in, tensors out; knows no Flower and no video file."""

__version__ = "0.1.0"
