"""toybox: a procedural, captioned 3D world whose geometry is known exactly.

Frame: right-handed, z up, one unit is a metre; objects sit at the origin inside a ball of radius
`shapes.RADIUS`, with their front, where they have one, towards +x.
"""

import os
import sys

# numba starts a thread for each core and, through the OpenMP runtime that the two share, makes torch use as many: who gave a
# number for the one means both (torchrun gives 1 to each process).
if "numba" not in sys.modules and os.environ.get("OMP_NUM_THREADS", "").strip("0").isdigit():
    os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
