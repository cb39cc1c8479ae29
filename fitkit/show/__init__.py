"""Results as pictures, meshes, plots, tables and a report; every function takes plain arrays or tensors."""

from fitkit.show.files import atomic_write, output_folder, plain, write_json
from fitkit.show.inputs import person_colors
from fitkit.show.mesh import scene_glb, write_glb, write_obj
from fitkit.show.overlay import draw_keypoints, overlay
from fitkit.show.plots import trace_plot, write_trace_table
from fitkit.show.report import write_report
from fitkit.show.result import save_result, show_result, to_json
from fitkit.show.stages import draw_stages
from fitkit.show.texture import atlas_template, paint_texture
from fitkit.show.views import side_view

__all__ = [
    "atlas_template",
    "atomic_write",
    "draw_keypoints",
    "draw_stages",
    "output_folder",
    "overlay",
    "paint_texture",
    "person_colors",
    "plain",
    "save_result",
    "scene_glb",
    "show_result",
    "side_view",
    "to_json",
    "trace_plot",
    "write_glb",
    "write_json",
    "write_obj",
    "write_report",
    "write_trace_table",
]
