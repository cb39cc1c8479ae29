"""Pose correctives: what linear blend skinning from the T-pose lacks of Anny's own posing.

The target is a hybrid. Dual quaternion skinning keeps elbows, knees and buttocks full; around shoulders and
collars it bulges, so there the target is Anny's linear blending from its A-pose, which artists painted for.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_matrix, diags
from scipy.spatial.transform import Rotation

from fitkit.body.build.anny import BATCH, Source
from fitkit.body.build.mesh import LightMesh
from fitkit.body.build.skeleton import JOINT, JOINT_MIRROR, JOINT_NAMES, NUM_BODY_JOINTS, PARENTS, Array

POSES = 900
RIDGE = 1e-3  # per pose, in squared units of (R - I)


def random_body_poses(count: int, rng: np.random.Generator, wide_shoulders: float = 0.0) -> Array:
    """(count,55,3,3) plausible everyday poses; hands, face and root at rest.

    `wide_shoulders` is the share of people whose arms are drawn from -95..+85 degrees of elevation.
    """
    out = np.tile(np.eye(3), (count, len(JOINT_NAMES), 1, 1))

    def put(name: str, degrees: Array, rows: np.ndarray | slice = slice(None)) -> None:
        out[rows, JOINT[name]] = Rotation.from_rotvec(np.radians(degrees)).as_matrix()

    def normal(sd: tuple[float, ...], mean: tuple[float, ...] = (0, 0, 0), n: int = count) -> Array:
        return rng.normal(size=(n, 3)) * sd + mean

    for side, q in (("left", 1), ("right", -1)):
        put(f"{side}_hip", normal((30, 12, 12), (-20, 0, 0)))
        put(f"{side}_knee", normal((0, 4, 4)) + np.outer(rng.uniform(0, 1, count) ** 1.5 * 110, [1, 0, 0]))
        put(f"{side}_ankle", normal((15, 6, 6)))
        put(f"{side}_foot", normal((8, 2, 2)))
        put(f"{side}_collar", normal((4, 6, 8)))
        put(f"{side}_shoulder", normal((25, 30, 30), (0, -15 * q, -45 * q)))
        bend = rng.uniform(0, 1, count) ** 1.2 * 130
        put(f"{side}_elbow", normal((20, 0, 6)) + np.outer(-q * bend, [0, 1, 0]))
        put(f"{side}_wrist", normal((15, 12, 20)))
        wide = np.nonzero(rng.random(count) < wide_shoulders)[0]
        if len(wide):
            elevated = normal((25, 40, 0), n=len(wide))
            elevated[:, 2] = rng.uniform(-95, 85, len(wide)) * q
            put(f"{side}_shoulder", elevated, wide)
    for name, sd in (("spine1", 8), ("spine2", 7), ("spine3", 5)):
        put(name, normal((1.5 * sd, sd, sd), (0.8 * sd, 0, 0)))
    put("neck", normal((10, 12, 7)))
    put("head", normal((12, 15, 8)))
    return out


def skin(
    vertices: Array, joints: Array, rotations: Array, weights: Array
) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear blend skinning: vertices (N,V,3) or (1,V,3), joints (N,55,3), rotations (N,55,3,3), weights (V,55).

    Returns the posed vertices (N,V,3) and the blended rotation of each (N,V,3,3).
    """
    v, j, r, w = (
        torch.as_tensor(np.asarray(x), dtype=torch.float32) for x in (vertices, joints, rotations, weights)
    )
    turn, move = [r[:, 0]], [j[:, 0]]
    for k, parent in enumerate(PARENTS[1:].tolist(), start=1):
        turn.append(turn[parent] @ r[:, k])
        move.append(move[parent] + (turn[parent] @ (j[:, k] - j[:, parent])[..., None])[..., 0])
    turns, moves = torch.stack(turn, 1), torch.stack(move, 1)
    moves = moves - (turns @ j[..., None])[..., 0]
    blended = torch.einsum("vj,njk->nvk", w, torch.cat([turns, moves[..., None]], -1).flatten(2))
    blended = blended.unflatten(-1, (3, 4))
    return (blended[..., :3] @ v[..., None])[..., 0] + blended[..., 3], blended[..., :3]


def feature(rotations: Array) -> Array:
    """(N,189) R - I of the 21 body joints, row by row: what posedirs multiplies."""
    return (rotations[:, 1 : 1 + NUM_BODY_JOINTS] - np.eye(3)).reshape(len(rotations), -1)


def subtree_weights(weights: Array) -> Array:
    """(V,55) how much of each vertex hangs on a joint or anything below it."""
    out = weights.astype(np.float64).copy()
    for j in range(len(PARENTS) - 1, 0, -1):
        out[:, PARENTS[j]] += out[:, j]
    return out


def shoulder_zone(weights: Array, faces: np.ndarray) -> Array:
    """(V,) 1 where collars and shoulders bend the skin, fading to 0 over a few edges."""
    below = subtree_weights(weights)
    joints = [JOINT[f"{s}_{n}"] for s in ("left", "right") for n in ("collar", "shoulder")]
    zone = np.clip(8 * np.minimum(below, 1 - below)[:, joints].max(1), 0, 1)
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    graph = coo_matrix((np.ones(len(ends)), ends.T), shape=(len(weights),) * 2).tocsr()
    graph = ((graph + graph.T) > 0).astype(float)
    mean = diags(1 / np.asarray(graph.sum(1)).ravel()) @ graph
    for _ in range(8):
        zone = (zone + mean @ zone) / 2
    return np.clip(1.3 * zone, 0, 1)


def posed_by_anny(source: Source, rows: np.ndarray, rotations: Array, people: tuple, skinning: str) -> Array:
    """(N,v,3) the given vertices posed by Anny; people = (phenotypes, changes), one row per pose."""
    phenotypes, changes = people
    out = np.empty((len(rotations), len(rows), 3), np.float32)
    for s in range(0, len(rotations), BATCH):
        b = slice(s, s + BATCH)
        some = {k: v[b] for k, v in phenotypes.items()}
        out[b] = source.posed(rotations[b], some, changes[b], skinning)[0][:, rows]
    return out


def hybrid_target(
    source: Source, mesh: LightMesh, rows: np.ndarray, weights: Array, rotations: Array, people: tuple
) -> Array:
    """(N,v,3) dual quaternion skinning, and linear blending in the shoulder zone; rows index the light mesh."""
    zone = shoulder_zone(weights, mesh.faces)[rows, None].astype(np.float32)
    linear = posed_by_anny(source, mesh.index[rows], rotations, people, "lbs")
    dual = posed_by_anny(source, mesh.index[rows], rotations, people, "dqs")
    return zone * linear + (1 - zone) * dual


def fit_correctives(source: Source, mesh: LightMesh, weights: Array, seed: int) -> Array:
    """(V,3,189) ridge fit over random poses, left half only, mirrored to the right.

    Each vertex listens only to the joints that bend its surroundings.
    """
    rng = np.random.default_rng(seed + 5)
    rotations = random_body_poses(POSES, rng, wide_shoulders=0.6)
    # In a third of the people most joints rest, so that single joints are seen alone.
    rest = rng.random((POSES, len(JOINT_NAMES))) < 0.35
    rest[POSES // 2 :] = False
    rotations[rest] = np.eye(3)
    still, subject = rotations[:1] * 0 + np.eye(3), source.average_adult(1)
    template, joints = source.posed(still, *subject)
    middle = mesh.mirror == np.arange(len(mesh.mirror))
    rows = np.nonzero((template[0, mesh.index, 0] > 0) | middle)[0]
    target = hybrid_target(source, mesh, rows, weights, rotations, source.average_adult(POSES))
    start = template[:, mesh.index[rows]]
    offsets = _pulled_back(start, joints, rotations, weights[rows], target)
    left = _ridge(feature(rotations), offsets, subtree_weights(weights)[rows])
    out = np.zeros((len(weights), 3, left.shape[-1]))
    out[rows] = left
    return _mirrored(out, mesh.mirror, middle, rows)


def _pulled_back(start: Array, joints: Array, rotations: Array, weights: Array, target: Array) -> Array:
    """(N,v,3) offsets in the T-pose that would land on the target after skinning.

    The inverse of the blended rotation is regularised: it may be near singular in sharp bends.
    """
    out = np.empty_like(target)
    for s in range(0, len(rotations), BATCH):
        b = slice(s, s + BATCH)
        n = len(rotations[b])
        reached, blended = skin(start, np.repeat(joints, n, 0), rotations[b], weights)
        gap = torch.as_tensor(target[b]) - reached
        transposed = blended.transpose(-1, -2)
        normal = transposed @ blended + 1e-2 * torch.eye(3)
        out[b] = torch.linalg.solve(normal, transposed @ gap[..., None])[..., 0].numpy()
    return out


def _ridge(features: Array, offsets: Array, below: Array) -> Array:
    """(v,3,189) regression of offsets on the features of each vertex's own joints."""
    bends = (below > 0.004) & (below < 0.996)
    bends[:, 0] = False
    bends[:, 1 + NUM_BODY_JOINTS :] = False
    out = np.zeros((offsets.shape[1], 3, features.shape[1]))
    patterns, group = np.unique(bends, axis=0, return_inverse=True)
    for g, pattern in enumerate(patterns):
        active = np.nonzero(pattern)[0]
        if not len(active):
            continue
        columns = (9 * (active[:, None] - 1) + np.arange(9)).ravel()
        rows = np.nonzero(group.ravel() == g)[0]
        x = features[:, columns]
        gram = x.T @ x + RIDGE * len(x) * np.eye(len(columns))
        solution = np.linalg.solve(gram, x.T @ offsets[:, rows].reshape(len(x), -1))
        out[np.ix_(rows, np.arange(3), columns)] = solution.reshape(len(columns), len(rows), 3).transpose(
            1, 2, 0
        )
    return out


def _mirrored(dirs: Array, mirror: np.ndarray, middle: np.ndarray, rows: np.ndarray) -> Array:
    """Fill the right half with the mirror of the left: vertex, joint, and the sign of every reflected axis."""
    s = np.array([-1.0, 1, 1])
    shaped = dirs.reshape(len(dirs), 3, NUM_BODY_JOINTS, 3, 3)
    reflected = shaped[:, :, JOINT_MIRROR[1 : 1 + NUM_BODY_JOINTS] - 1]
    reflected = reflected * s[:, None, None, None] * s[:, None] * s
    out = shaped.copy()
    left = rows[~middle[rows]]
    out[mirror[left]] = reflected[left]
    out[middle] = (shaped[middle] + reflected[middle]) / 2
    return out.reshape(dirs.shape)
