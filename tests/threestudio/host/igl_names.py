"""libigl under the names that threestudio imports, which libigl 2.6 has no more."""
import numpy as np


def install():
    """Give the installed libigl its older names; without one, importing threestudio fails."""
    import igl

    if hasattr(igl, "read_obj"):
        return
    distance = igl.point_mesh_squared_distance
    igl.read_obj = lambda path, dtype: igl.readOBJ(path)
    igl.fast_winding_number_for_meshes = lambda v, f, points: igl.fast_winding_number(*_exact(v, f, points))
    igl.point_mesh_squared_distance = lambda points, v, f: distance(_exact(points)[0], *_exact(v, f))


def _exact(v, *others):
    """Vertices and points as float64, faces as int64: newer versions take nothing else."""
    return tuple(np.asarray(a, np.int64 if a.dtype.kind == "i" else np.float64) for a in (v, *others))
