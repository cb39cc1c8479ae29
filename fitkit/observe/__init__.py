"""Photo -> Observation: MediaPipe, and files of other detectors and of networks that label pixels."""

from fitkit.observe.densepose import (
    DensePoseAnnotation,
    densepose_from_coco,
    densepose_from_detectron2,
    densepose_from_png,
    parts_of_iuv,
)
from fitkit.observe.files import (
    keypoints_from_file,
    observation_from_keypoints,
    read_array,
    read_coco,
    read_openpose,
)
from fitkit.observe.image import Photo, load_image
from fitkit.observe.maps import (
    mask_from_file,
    normals_from_file,
    part_map_from_file,
    part_map_from_probabilities,
)
from fitkit.observe.matching import maps_for
from fitkit.observe.mediapipe_graph import DetectorUnavailable
from fitkit.observe.part_labels import Vocabulary, vocabulary, vocabulary_names
from fitkit.observe.people import choose_people, observe, photo_camera

__all__ = [
    "DensePoseAnnotation",
    "DetectorUnavailable",
    "Photo",
    "Vocabulary",
    "choose_people",
    "densepose_from_coco",
    "densepose_from_detectron2",
    "densepose_from_png",
    "keypoints_from_file",
    "load_image",
    "maps_for",
    "mask_from_file",
    "normals_from_file",
    "observation_from_keypoints",
    "observe",
    "part_map_from_file",
    "part_map_from_probabilities",
    "parts_of_iuv",
    "photo_camera",
    "read_array",
    "read_coco",
    "read_openpose",
    "vocabulary",
    "vocabulary_names",
]
