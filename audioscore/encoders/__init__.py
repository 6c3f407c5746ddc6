"""Encoders that turn recordings into features: MuQ for music, CAM++ for the voice; and the store for the features."""
