"""A zoo of image and video generators: one training loop, one sampling command, one set of measures."""
