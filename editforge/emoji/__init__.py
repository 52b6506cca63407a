"""What always works offline: the embedded emoji model, its CLIP, its judges, its manifest."""

from editforge.emoji.assets import (
    CREDIT,
    attribution,
    folder,
    judge_digest,
    load_clip,
    load_judge,
    load_pipeline,
    manifest,
    pipeline_digest,
    verified,
    words,
)
from editforge.emoji.manifest import Broad, EmojiConcept, Manifest, Near, Style

__all__ = [
    "CREDIT",
    "Broad",
    "EmojiConcept",
    "Manifest",
    "Near",
    "Style",
    "attribution",
    "folder",
    "judge_digest",
    "load_clip",
    "load_judge",
    "load_pipeline",
    "manifest",
    "pipeline_digest",
    "verified",
    "words",
]
