"""threestudio's configurations that another guidance can enter, and which of them a CPU can train."""

# Swapping the guidance type is enough.
SWAPS = (
    "dreamfusion-sd dreamfusion-if dreamfusion-sd-eff hifa magic3d-coarse-sd magic3d-coarse-if magic3d-refine-sd "
    "latentnerf latentnerf-refine sketchshape sketchshape-refine sjc textmesh-if fantasia3d fantasia3d-texture "
    "prolificdreamer-geometry "
    "gradio/dreamfusion-sd gradio/dreamfusion-if gradio/fantasia3d gradio/latentnerf gradio/sjc gradio/textmesh-if "
    "experimental/imagecondition experimental/imagecondition_zero123nerf experimental/textmesh-if-importance"
).split()

# The guidance that they name calls its loss something else, so they also need system.loss.lambda_sds.
OTHER_LOSS = (
    "prolificdreamer prolificdreamer-patch prolificdreamer-hifa prolificdreamer-scene prolificdreamer-scene-hifa "
    "prolificdreamer-texture magic123-coarse-sd magic123-refine-sd magic123-hifa-coarse-sd magic123-hifa-refine-sd "
    "experimental/prolificdreamer-neus-importance experimental/prolificdreamer-propnet "
    "experimental/unified-guidance/dreamfusion-sd experimental/unified-guidance/hifa "
    "experimental/unified-guidance/prolificdreamer experimental/unified-guidance/prolificdreamer-hifa"
).split()

# nvdiffrast, which draws the mesh, needs CUDA.
RASTERISED = (
    "magic3d-refine-sd fantasia3d fantasia3d-texture prolificdreamer-geometry gradio/fantasia3d "
    "prolificdreamer-texture magic123-refine-sd magic123-hifa-refine-sd"
).split()

# Their second guidance, which stays, needs the Zero123 model.
ZERO123 = "magic123-coarse-sd magic123-hifa-coarse-sd".split()

TRAINED = [name for name in SWAPS + OTHER_LOSS if name not in RASTERISED + ZERO123]
