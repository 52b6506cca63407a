"""A judge of persons: whose face it is, by dlib's face descriptor; nothing is downloaded.

It learns each person from the base's own pictures of that person, so it says whether the edited model
still draws the face that the base drew, not whether that is anybody's face. Weights: the detector in
dlib (Boost), and from `face-recognition-models` the five landmarks and the descriptor (both CC0); the
68 landmarks there were trained on pictures for research alone and are not read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editforge.ground.disk import sha256_file, sha256_text
from editforge.judges.core import NONE

APART = 0.6  # the distance that the descriptor was trained to keep between two persons
_SOFT = 0.05
_SIDE = 150  # of a face, as the descriptor reads it
_LARGEST_MISSED = 400  # smaller pictures are doubled: the detector sees faces of 80 pixels and more
_LANDMARKS = "shape_predictor_5_face_landmarks.dat"
_DESCRIPTOR = "dlib_face_recognition_resnet_model_v1.dat"


class FaceJudge:
    """Persons, or none: a softmax over distances to each person's mean descriptor.

    Args:
        labels: the persons.
    """

    names_things = False

    def __init__(self, labels: Sequence[str]) -> None:
        self.name = "faces"
        self.source = {"package": "face-recognition-models", "license": "CC0-1.0"}
        self.sha256 = sha256_text("".join(sha256_file(_file(n)) for n in (_LANDMARKS, _DESCRIPTOR)))
        self.labels = (*labels, NONE)
        self._people: dict[str, NDArray[np.float64]] = {}
        self._seen: dict[bytes, NDArray[np.float64]] = {}
        self.why_not: dict[tuple[str, ...], str] = {}

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The nearest face of each picture decides; a picture without a face is `none`."""
        rows = np.zeros((len(images), len(self.labels)), np.float32)
        for row, faces in zip(rows, self._faces(images), strict=True):
            scores = np.full(len(self.labels), -np.inf)
            scores[-1] = -APART / _SOFT
            for at, label in enumerate(self.labels[:-1]):
                if len(faces) and label in self._people:
                    distance = np.linalg.norm(faces - self._people[label], axis=1).min()
                    scores[at] = -distance / _SOFT
            shares = np.exp(scores - scores.max())
            row[:] = shares / shares.sum()
        return rows

    def threshold(self, labels: tuple[str, ...]) -> float:
        """A half, until it is calibrated: nearer than `APART`."""
        return 0.5

    def features(self, images: NDArray[np.uint8]) -> None:
        """None: its features are not compared."""

    def fitted(self, images: NDArray[np.uint8], labels: Sequence[tuple[str, ...]]) -> FaceJudge:
        """Knows the persons by the faces of the base's own pictures of them."""
        found = copy(self)  # and what it has seen
        found._people, found.why_not = {}, {}
        for label in self.labels[:-1]:
            own = [at for at, one in enumerate(labels) if label in one]
            faces = [face for faces in self._faces(images[own]) for face in faces[:1]]
            if faces:
                found._people[label] = np.mean(faces, axis=0)
            elif own:
                why = f"no face found in the base's own pictures of {label}"
                found.why_not[next(one for one in labels if label in one)] = why
        return found

    def _faces(self, images: NDArray[np.uint8]) -> list[NDArray[np.float64]]:
        """(faces, 128) of each picture, the largest face first; each looked at once."""
        keys = [hashlib.sha256(image.tobytes()).digest() for image in images]
        for key, image in zip(keys, images, strict=True):
            if key not in self._seen:
                self._seen[key] = self._described(image)
        return [self._seen[key] for key in keys]

    def _described(self, image: NDArray[np.uint8]) -> NDArray[np.float64]:
        import dlib

        detect, landmarks, describe = self._tools
        boxes = detect(image, int(max(image.shape[:2]) < _LARGEST_MISSED))
        boxes = sorted(boxes, key=lambda box: -box.area())
        faces = [dlib.get_face_chip(image, landmarks(image, box), _SIDE) for box in boxes]
        rows = [np.array(describe.compute_face_descriptor(face)) for face in faces]
        return np.array(rows).reshape(-1, 128)

    @cached_property
    def _tools(self) -> tuple[Any, Any, Any]:
        import dlib

        return (
            dlib.get_frontal_face_detector(),
            dlib.shape_predictor(str(_file(_LANDMARKS))),
            dlib.face_recognition_model_v1(str(_file(_DESCRIPTOR))),
        )


def _file(name: str) -> Path:
    spec = find_spec("face_recognition_models")  # found, not imported: its code needs pkg_resources
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "models" / name
