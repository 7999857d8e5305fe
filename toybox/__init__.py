"""toybox: a procedural, captioned 3D world whose geometry is known exactly.

Frame: right-handed, z up, one unit is a metre; objects sit at the origin inside a ball of radius
`shapes.RADIUS`, with their front, where they have one, towards +x.
"""
