"""Scenes to media: real pixels, samples and frames."""

from anyloop.world.render.clip import render_clip
from anyloop.world.render.picture import render_picture
from anyloop.world.render.sound import render_sound

__all__ = ["render_clip", "render_picture", "render_sound"]
