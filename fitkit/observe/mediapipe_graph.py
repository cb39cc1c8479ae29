"""MediaPipe's pose networks, straight from its wheel, in two graphs of our own.

The packaged `mediapipe.solutions.pose` returns one person, and not one of our choosing. Its parts do not have
that limit: `PoseDetectionCpu` returns every person it sees, `PoseLandmarkByRoiCpu` finds 33 landmarks, their
places in metres and a mask inside any square that is given. Nothing is downloaded: both networks
(BlazePose, Bazarevsky et al. 2020, arXiv:2006.10204) lie in the wheel.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

DETECTION_SCORE = 0.5  # of the detector over a whole photo or tile
BOX_DETECTION_SCORE = 0.05  # inside a box that the user vouches for
ROI_SCALE = 1.25  # side of the square around the circle given by the two alignment points

_DETECTION_GRAPH = """
input_stream: "image"
output_stream: "detections"
node {
  calculator: "PoseDetectionCpu"
  input_stream: "IMAGE:image"
  output_stream: "DETECTIONS:detections"
}
"""

_LANDMARK_GRAPH = """
input_stream: "image"
input_stream: "roi"
output_stream: "landmarks"
output_stream: "auxiliary"
output_stream: "world"
output_stream: "mask"
input_side_packet: "model_complexity"
input_side_packet: "enable_segmentation"
node {
  calculator: "PoseLandmarkByRoiCpu"
  input_side_packet: "MODEL_COMPLEXITY:model_complexity"
  input_side_packet: "ENABLE_SEGMENTATION:enable_segmentation"
  input_stream: "IMAGE:image"
  input_stream: "ROI:roi"
  output_stream: "LANDMARKS:landmarks"
  output_stream: "AUXILIARY_LANDMARKS:auxiliary"
  output_stream: "WORLD_LANDMARKS:world"
  output_stream: "SEGMENTATION_MASK:mask"
}
"""


class DetectorUnavailable(ImportError):
    """MediaPipe cannot be imported; the message says how to install it and what works without it."""


@dataclass(frozen=True)
class Roi:
    """A square to look into: centre and side in pixels, angle in radians (clockwise on the photo)."""

    x: float
    y: float
    side: float
    angle: float = 0.0

    @staticmethod
    def from_points(center: np.ndarray, top: np.ndarray) -> Roi:
        """The square in which a person stands upright: mid-hip `center`, circle through `top`, both (2,)."""
        along = top - center
        angle = math.pi / 2 - math.atan2(-along[1], along[0])
        angle -= 2 * math.pi * math.floor((angle + math.pi) / (2 * math.pi))
        side = 2 * ROI_SCALE * float(np.hypot(along[0], along[1]))
        return Roi(float(center[0]), float(center[1]), side, angle)

    def bounds(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Pixels (x0, y0, x1, y1) of the photo that the turned square touches; may be empty."""
        half = self.side / 2 * (abs(math.cos(self.angle)) + abs(math.sin(self.angle))) + 2
        x0, x1 = math.floor(self.x - half), math.ceil(self.x + half)
        y0, y1 = math.floor(self.y - half), math.ceil(self.y + half)
        return max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)


@dataclass(frozen=True)
class Detection:
    """One hit of the detector: score, mid-hip, top of the circle, mid-shoulder; points (2,) in pixels."""

    score: float
    hip: np.ndarray
    top: np.ndarray
    shoulder: np.ndarray

    def roi(self) -> Roi:
        """Where to look for this person's landmarks."""
        return Roi.from_points(self.hip, self.top)


@dataclass(frozen=True)
class Landmarks:
    """One person as the landmark network sees it.

    xy (33, 2) pixels; visibility, presence (33,); world (33, 3) metres, x right, y down, z forward, origin at
    mid-hip; mask (h, w) float32 in [0, 1] over the pixels `window` = (x0, y0, x1, y1) of the photo, 0 outside;
    next_roi: the square that the network itself proposes for another look.
    """

    xy: np.ndarray
    visibility: np.ndarray
    presence: np.ndarray
    world: np.ndarray
    mask: np.ndarray
    window: tuple[int, int, int, int]
    next_roi: Roi


class PoseGraphs:
    """The detection and landmark graphs of one process; safe to call from several threads, one at a time."""

    def __init__(self) -> None:
        self._mp = _import_mediapipe()
        self._lock = threading.Lock()
        with silent_stderr():
            self._detectors = {
                score: _Graph(self._mp, _DETECTION_GRAPH, ("detections",), score=score)
                for score in (DETECTION_SCORE, BOX_DETECTION_SCORE)
            }
            sides = {
                "model_complexity": self._mp.create_int(1),  # the only landmark network in the wheel
                "enable_segmentation": self._mp.create_bool(True),
            }
            outputs = ("landmarks", "auxiliary", "world", "mask")
            self._landmarker = _Graph(self._mp, _LANDMARK_GRAPH, outputs, sides=sides)
            # The networks load, and complain on stderr, at their first picture: let that happen in here.
            blank = np.zeros((64, 48, 3), np.uint8)
            for score in self._detectors:
                self.detect(blank, score)
            self.landmarks(blank, Roi(24.0, 32.0, 64.0))

    def detect(self, pixels: np.ndarray, score: float = DETECTION_SCORE) -> list[Detection]:
        """Everyone that the detector sees in (H, W, 3) uint8 RGB; it works on 224 x 224 pixels."""
        height, width = pixels.shape[:2]
        with self._lock:
            packets = self._detectors[score](image=self._image(pixels))
            found = packets.get("detections")
            if found is None or found.is_empty():
                return []
            messages = [self._mp.Detection.FromString(data) for data in self._mp.serialized_list(found)]
        detections = []
        for message in messages:
            points = [(p.x * width, p.y * height) for p in message.location_data.relative_keypoints]
            hip, top, shoulder = (np.array(p, np.float64) for p in points[:3])
            if math.hypot(*(top - hip)) >= 1:
                detections.append(Detection(float(message.score[0]), hip, top, shoulder))
        return detections

    def landmarks(self, pixels: np.ndarray, roi: Roi) -> Landmarks | None:
        """Landmarks of the person in the square `roi` of (H, W, 3) uint8 RGB, or None when nobody is there."""
        x0, y0, x1, y1 = roi.bounds(pixels.shape[1], pixels.shape[0])
        if x1 - x0 < 1 or y1 - y0 < 1 or roi.side < 1:
            return None
        # Only the part around the square is handed over: the mask then costs the same in a photo of any size.
        crop, _ = shrink(pixels[y0:y1, x0:x1], 640)
        height, width = crop.shape[:2]
        rect = self._mp.NormalizedRect(
            x_center=(roi.x - x0) / (x1 - x0),
            y_center=(roi.y - y0) / (y1 - y0),
            width=roi.side / (x1 - x0),
            height=roi.side / (y1 - y0),
            rotation=roi.angle,
        )
        with self._lock:
            packets = self._landmarker(image=self._image(crop), roi=self._mp.create_proto(rect))
            if any(name not in packets or packets[name].is_empty() for name in self._landmarker.outputs):
                return None
            points, auxiliary = (self._points(packets[n]) for n in ("landmarks", "auxiliary"))
            world = self._points(packets["world"], world=True)
            mask = np.array(self._mp.get_image(packets["mask"]).numpy_view(), np.float32)
        to_photo = np.array([x1 - x0, y1 - y0], np.float64)
        origin = np.array([x0, y0], np.float64)
        around = auxiliary[:2, :2] * to_photo + origin
        return Landmarks(
            xy=points[:, :2] * to_photo + origin,
            visibility=points[:, 3],
            presence=points[:, 4],
            world=world[:, :3],
            mask=mask.reshape(height, width),
            window=(x0, y0, x1, y1),
            next_roi=Roi.from_points(around[0], around[1]),
        )

    def _image(self, pixels: np.ndarray) -> Any:
        data = np.ascontiguousarray(pixels)
        return self._mp.create_image_frame(image_format=self._mp.SRGB, data=data)

    def _points(self, packet: Any, world: bool = False) -> np.ndarray:
        kind = self._mp.LandmarkList if world else self._mp.NormalizedLandmarkList
        rows = kind.FromString(self._mp.serialized(packet)).landmark
        return np.array([(p.x, p.y, p.z, p.visibility, p.presence) for p in rows], np.float64)


class _Graph:
    """One running MediaPipe graph; a call sends packets in and returns what came out, by stream name."""

    def __init__(
        self,
        mp: SimpleNamespace,
        text: str,
        outputs: tuple[str, ...],
        sides: dict[str, Any] | None = None,
        score: float | None = None,
    ) -> None:
        self.outputs = outputs
        config = mp.text_format.Parse(text, mp.CalculatorGraphConfig())
        if score is not None:
            config = _with_score(mp, config, score)
        self._graph = mp.CalculatorGraph(graph_config=config)
        self._received: dict[str, Any] = {}
        self._time = 0
        for name in outputs:
            self._graph.observe_output_stream(name, self._received.__setitem__, True)
        self._graph.start_run(sides or {})

    def __call__(self, **packets: Any) -> dict[str, Any]:
        self._time += 1  # timestamps must increase; pictures are unrelated all the same
        self._received.clear()
        for name, packet in packets.items():
            self._graph.add_packet_to_input_stream(stream=name, packet=packet.at(self._time))
        self._graph.wait_until_idle()
        return dict(self._received)


def _with_score(mp: SimpleNamespace, config: Any, score: float) -> Any:
    """The graph with every subgraph unfolded and the detector's score threshold replaced."""
    validated = mp.ValidatedGraphConfig()
    validated.initialize(graph_config=config)
    unfolded = mp.CalculatorGraphConfig.FromString(validated.binary_config)
    for node in unfolded.node:
        if node.calculator != "TensorsToDetectionsCalculator":
            continue
        if node.options.HasExtension(mp.DetectionOptions.ext):
            node.options.Extensions[mp.DetectionOptions.ext].min_score_thresh = score
        for packed in node.node_options:
            if packed.Is(mp.DetectionOptions.DESCRIPTOR):
                options = mp.DetectionOptions()
                packed.Unpack(options)
                options.min_score_thresh = score
                packed.Pack(options)
    return unfolded


def shrink(pixels: np.ndarray, longest: int) -> tuple[np.ndarray, float]:
    """The picture with its longer side at most `longest` pixels (averaging), and new size / old size."""
    import cv2

    height, width = pixels.shape[:2]
    if max(height, width) <= longest:
        return pixels, 1.0
    scale = longest / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), scale


_cache: dict[int, PoseGraphs] = {}
_cache_lock = threading.Lock()


def pose_graphs() -> PoseGraphs:
    """The graphs of this process, built at the first call (about half a second).

    Errors: DetectorUnavailable when MediaPipe is not installed; RuntimeError in a process forked off one that
    had built its graphs: MediaPipe's threads do not survive that, and it ends the process without a word.
    """
    with _cache_lock:
        process = os.getpid()
        if process not in _cache:
            if _cache:
                raise RuntimeError(
                    "MediaPipe was used in the parent process before this one was forked; start workers with "
                    'multiprocessing.get_context("spawn"), or find people in the parent process only'
                )
            _cache[process] = PoseGraphs()
        return _cache[process]


_stderr_lock = threading.RLock()


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """File descriptor 2 goes nowhere meanwhile: MediaPipe's C++ log lines cannot be silenced otherwise."""
    with _stderr_lock:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            sys.stderr.flush()
        try:
            kept = os.dup(2)
        except OSError:  # a process without stderr has nothing to silence
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            with contextlib.suppress(AttributeError, OSError, ValueError):
                sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


def _import_mediapipe() -> SimpleNamespace:
    """The few names of MediaPipe that are used, from its private modules, in one place."""
    names = {
        "mediapipe.python.packet_creator": (
            "create_int",
            "create_bool",
            "create_image_frame",
            "create_proto",
        ),
        "mediapipe.python.packet_getter": ("get_image",),
        "mediapipe.python._framework_bindings.calculator_graph": ("CalculatorGraph",),
        "mediapipe.python._framework_bindings.validated_graph_config": ("ValidatedGraphConfig",),
        "mediapipe.framework.calculator_pb2": ("CalculatorGraphConfig",),
        "mediapipe.framework.formats.rect_pb2": ("NormalizedRect",),
        "mediapipe.framework.formats.detection_pb2": ("Detection",),
        "mediapipe.framework.formats.landmark_pb2": ("LandmarkList", "NormalizedLandmarkList"),
        "google.protobuf": ("text_format",),
    }
    try:
        with silent_stderr(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            package = importlib.import_module("mediapipe")
            found = {n: getattr(importlib.import_module(m), n) for m, ns in names.items() for n in ns}
            options = importlib.import_module(
                "mediapipe.calculators.tensor.tensors_to_detections_calculator_pb2"
            )
            bindings = importlib.import_module("mediapipe.python._framework_bindings")
    except (ImportError, AttributeError) as error:
        raise DetectorUnavailable(
            f"finding people in photos needs MediaPipe 0.10.14 ({type(error).__name__}: {error}). "
            'Install it with:  pip install "fitkit-body[detect]"  (Python 3.10 to 3.12). Without it, keypoints '
            "of any other detector can be read from a file: fitkit.observe.keypoints_from_file"
        ) from error
    bindings.resource_util.set_resource_dir(str(Path(str(package.__file__)).parents[1]))
    getter = bindings._packet_getter
    return SimpleNamespace(
        **found,
        DetectionOptions=options.TensorsToDetectionsCalculatorOptions,
        SRGB=bindings.image_frame.ImageFormat.SRGB,
        # The public getters go through a protobuf call that warns; these are what they wrap.
        serialized=getter._get_serialized_proto,
        serialized_list=getter._get_serialized_proto_list,
    )
