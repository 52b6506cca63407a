"""Where text enters a model, as data; models and their text encoders."""
