"""How near an answer is to the truth, each number under a named protocol: joints in space, and points in the photo."""

from fitkit.metrics.image import BOX_FILL, COCO_SIGMAS, box_iou, mask_iou, match_people, oks, pck, within
from fitkit.metrics.pose import LIMBS, joint_angle_error, mpjpe, pa_mpjpe, procrustes
from fitkit.metrics.surface import GPS_KAPPA, gps, gpsm

__all__ = [
    "BOX_FILL",
    "COCO_SIGMAS",
    "GPS_KAPPA",
    "LIMBS",
    "box_iou",
    "gps",
    "gpsm",
    "joint_angle_error",
    "mask_iou",
    "match_people",
    "mpjpe",
    "oks",
    "pa_mpjpe",
    "pck",
    "procrustes",
    "within",
]
