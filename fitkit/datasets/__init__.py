"""Motion capture: read, repaired, retargeted to SMPL's joints, split by subject."""

from fitkit.datasets.amass import read_amass
from fitkit.datasets.believable import believable
from fitkit.datasets.bvh import BvhClip, read_bvh
from fitkit.datasets.cmu import repair_cmu
from fitkit.datasets.deepmimic import read_deepmimic, read_deepmimic_arrays
from fitkit.datasets.folders import Conversion, read_folders, read_motion
from fitkit.datasets.motion import COUPLES, Motion, split_by_subject
from fitkit.datasets.retarget import Family, family_of, retarget

__all__ = [
    "COUPLES",
    "BvhClip",
    "Conversion",
    "Family",
    "Motion",
    "believable",
    "family_of",
    "read_amass",
    "read_bvh",
    "read_deepmimic",
    "read_deepmimic_arrays",
    "read_folders",
    "read_motion",
    "repair_cmu",
    "retarget",
    "split_by_subject",
]
