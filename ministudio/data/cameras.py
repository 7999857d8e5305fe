"""Pinhole cameras as pure functions: where they are, what they look at, the rays of their pixels.

The world is right-handed with z up; azimuth 0 is +x (the front), +90 degrees is +y. A camera looks
along its own -z, with x right and y up; row 0 of an image is its top.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def positions(
    elevation: Tensor,  # [B] degrees
    azimuth: Tensor,  # [B] degrees
    distances: Tensor,  # [B]
) -> Tensor:  # [B, 3]
    """Spherical to Cartesian: r (cos e cos a, cos e sin a, sin e)."""
    e, a = torch.deg2rad(elevation), torch.deg2rad(azimuth)
    directions = torch.stack([e.cos() * a.cos(), e.cos() * a.sin(), e.sin()], dim=-1)
    return distances[:, None] * directions


def look_at(
    position: Tensor,  # [B, 3]
    center: Tensor,  # [B, 3] the point that is seen in the middle of the image
    up: Tensor,  # [B, 3]
) -> Tensor:  # [B, 4, 4] camera to world, columns right, up, backward, position
    """Camera-to-world matrices; straight up or down, where `up` says nothing, x stays horizontal."""
    forward = F.normalize(center - position, dim=-1)
    right = torch.linalg.cross(forward, up, dim=-1)
    vertical = right.norm(dim=-1, keepdim=True) < 1e-6
    right = F.normalize(torch.where(vertical, right.new_tensor([0.0, 1.0, 0.0]), right), dim=-1)
    true_up = torch.linalg.cross(right, forward, dim=-1)
    top = torch.stack([right, true_up, -forward, position], dim=-1)
    bottom = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(top), 1, 4)
    return torch.cat([top, bottom], dim=1)


def pixel_directions(
    height: int,
    width: int,
    fovy: Tensor,  # [B] vertical field of view, radians
) -> Tensor:  # [B, H, W, 3] in camera space, z = -1
    """Directions through the pixel centres."""
    focal = 0.5 * height / torch.tan(0.5 * fovy)[:, None, None]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    x, y = (x - 0.5 * width) / focal, -(y - 0.5 * height) / focal
    return torch.stack([x, y, -torch.ones_like(x)], dim=-1)


def rays(
    directions: Tensor,  # [B, H, W, 3] in camera space
    c2w: Tensor,  # [B, 4, 4]
    normalize: bool = True,
) -> tuple[Tensor, Tensor]:  # [B, H, W, 3] each
    """Origins and directions of the rays in world space."""
    rays_d = torch.einsum("bhwj,bij->bhwi", directions, c2w[:, :3, :3])
    rays_o = c2w[:, None, None, :3, 3].expand_as(rays_d)
    return rays_o, F.normalize(rays_d, dim=-1) if normalize else rays_d


def projection_matrix(
    fovy: Tensor,  # [B] radians
    aspect: float,  # width / height
    near: float = 0.01,
    far: float = 100.0,
) -> Tensor:  # [B, 4, 4]
    """OpenGL's perspective matrix with y pointing down, so that row 0 of the raster is the top."""
    matrix = torch.zeros(len(fovy), 4, 4)
    matrix[:, 0, 0] = 1.0 / (torch.tan(0.5 * fovy) * aspect)
    matrix[:, 1, 1] = -1.0 / torch.tan(0.5 * fovy)
    matrix[:, 2, 2] = -(far + near) / (far - near)
    matrix[:, 2, 3] = -2.0 * far * near / (far - near)
    matrix[:, 3, 2] = -1.0
    return matrix


def mvp_matrix(c2w: Tensor, projection: Tensor) -> Tensor:
    """World to clip space, (B, 4, 4)."""
    return projection @ torch.linalg.inv(c2w)


def light_around_camera(
    camera_positions: Tensor,  # [B, 3]
    distances: Tensor,  # [B]
    perturb: float,
) -> Tensor:  # [B, 3]
    """DreamFusion's light: the direction of the camera, blurred by a normal distribution."""
    direction = F.normalize(camera_positions + torch.randn_like(camera_positions) * perturb, dim=-1)
    return direction * distances[:, None]


def light_above_camera(camera_positions: Tensor, distances: Tensor) -> Tensor:  # [B, 3]
    """Magic3D's light: within 60 degrees of the camera's axis, at any angle around it."""
    z = F.normalize(camera_positions, dim=-1)
    x = F.normalize(torch.stack([z[:, 1], -z[:, 0], torch.zeros_like(z[:, 0])], dim=-1), dim=-1)
    frame = torch.stack([x, torch.linalg.cross(z, x, dim=-1), z], dim=-1)  # columns
    azimuth = torch.rand(len(z)) * 360.0
    elevation = torch.rand(len(z)) * 60.0 + 30.0
    return (frame @ positions(elevation, azimuth, distances)[..., None])[..., 0]


def pack(
    elevation: Tensor,  # [B] degrees
    azimuth: Tensor,  # [B] degrees
    distances: Tensor,  # [B]
    fovy: Tensor,  # [B] radians
    c2w: Tensor,  # [B, 4, 4]
    lights: Tensor,  # [B, 3]
    height: int,
    width: int,
    normalize: bool,
) -> dict[str, Tensor]:
    """Everything a renderer or a guidance may ask of B cameras."""
    rays_o, rays_d = rays(pixel_directions(height, width, fovy), c2w, normalize)
    projection = projection_matrix(fovy, width / height)
    return {
        "rays_o": rays_o,
        "rays_d": rays_d,
        "mvp_mtx": mvp_matrix(c2w, projection),
        "proj_mtx": projection,
        "c2w": c2w,
        "camera_positions": c2w[:, :3, 3],
        "light_positions": lights,
        "elevation": elevation,
        "azimuth": azimuth,
        "camera_distances": distances,
        "fovy": fovy,
    }


def uniform(low: float, high: float, n: int) -> Tensor:  # [n]
    return low + (high - low) * torch.rand(n)


def stratified(low: float, high: float, n: int) -> Tensor:  # [n]
    """One uniform draw from each of n equal parts of the range."""
    return low + (high - low) * (torch.rand(n) + torch.arange(n)) / n


def uniform_on_sphere(low: float, high: float, n: int) -> Tensor:  # [n] degrees
    """Elevations of points uniform on the sphere between two latitudes (degrees)."""
    sines = uniform(math.sin(math.radians(low)), math.sin(math.radians(high)), n)
    return torch.rad2deg(torch.asin(sines.clamp(-1, 1)))
