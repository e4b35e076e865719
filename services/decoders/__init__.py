"""Media files to codec codes and back: image, audio and video."""
