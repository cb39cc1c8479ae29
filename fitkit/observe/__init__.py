"""Photo -> Observation: MediaPipe, and files of other detectors."""

from fitkit.observe.files import (
    keypoints_from_file,
    observation_from_keypoints,
    read_array,
    read_coco,
    read_openpose,
)
from fitkit.observe.image import Photo, load_image
from fitkit.observe.mediapipe_graph import DetectorUnavailable
from fitkit.observe.people import choose_people, observe, photo_camera

__all__ = [
    "DetectorUnavailable",
    "Photo",
    "choose_people",
    "keypoints_from_file",
    "load_image",
    "observation_from_keypoints",
    "observe",
    "photo_camera",
    "read_array",
    "read_coco",
    "read_openpose",
]
