"""nerfacc's CUDA calls in plain torch: just those that threestudio's renderers make, slow and CPU-only.

A packed call has its samples one after another, (N,), with the ray of each, in the order of the rays.
"""
import torch


def sampling(self, rays_o, rays_d, sigma_fn=None, alpha_fn=None, near_plane=0.0, far_plane=1e10, t_min=None, t_max=None,
             render_step_size=1e-3, early_stop_eps=1e-4, alpha_thre=0.0, stratified=False, cone_angle=0.0):
    """OccGridEstimator.sampling without the grid: every step inside the box, less those of low opacity."""
    starts, inside = _steps(self.aabbs[0], rays_o, rays_d, near_plane, render_step_size, stratified)
    rays, starts = torch.arange(len(starts))[:, None].expand_as(starts)[inside], starts[inside]
    ends = starts + render_step_size
    if (sigma_fn is None and alpha_fn is None) or not len(starts):
        return rays, starts, ends
    alpha = alpha_fn(starts, ends, rays) if sigma_fn is None else _alpha(sigma_fn(starts, ends, rays), render_step_size)
    seen = alpha >= min(alpha_thre, self.occs.mean().item())
    return rays[seen], starts[seen], ends[seen]


def _steps(box, rays_o, rays_d, near, step, stratified):
    """Starts of all steps, (rays, steps), and which of them lie inside the box."""
    low, high = box[:3], box[3:]
    a, b = (low - rays_o) / rays_d, (high - rays_o) / rays_d
    enter, leave = torch.minimum(a, b).amax(-1).clamp_min(near), torch.maximum(a, b).amin(-1)
    starts = enter[:, None] + torch.arange(int(((high - low).norm() / step).ceil()))[None] * step
    if stratified:
        starts = starts + torch.rand(len(starts), 1) * step
    return starts, starts + step <= leave[:, None]


def _alpha(density, length):
    return 1 - torch.exp(-density * length)


def weights_from_density(t_starts, t_ends, sigmas, packed_info=None, ray_indices=None, n_rays=None, prefix_trans=None):
    """Weights, transmittances and opacities of packed samples."""
    alpha = _alpha(sigmas, t_ends - t_starts)
    return *weights_from_alpha(alpha, ray_indices=ray_indices, n_rays=n_rays), alpha


def weights_from_alpha(alphas, packed_info=None, ray_indices=None, n_rays=None, prefix_trans=None):
    """Weights and transmittances of packed samples: a product along each row of a table with one ray a row."""
    counts = torch.bincount(ray_indices, minlength=n_rays)
    column = torch.arange(len(ray_indices)) - (counts.cumsum(0) - counts)[ray_indices]
    passes = alphas.new_ones(n_rays, int(counts.max()) + 1).index_put((ray_indices, column + 1), 1 - alphas)
    through = passes.cumprod(1)[ray_indices, column]
    return through * alphas, through


def importance_sampling(intervals, cdfs, n_intervals_per_ray, stratified=False):
    """New edges (rays, n + 1) by the inverse of each ray's cdf, as nerfacc's own reference in Python finds them."""
    from nerfacc.data_specs import RayIntervals
    from nerfacc.pdf import _sample_from_weighted

    edges, low, high = intervals.vals, intervals.vals.min(), intervals.vals.max()
    edges, _ = _sample_from_weighted(edges, cdfs.diff(), n_intervals_per_ray, stratified, low.item(), high.item())
    return RayIntervals(vals=edges), None


def searchsorted(sorted_sequence, values):
    """The edges to the left and to the right of each value, (rays, n); beyond the ends those of the last interval."""
    edges = sorted_sequence.vals.contiguous()
    right = torch.searchsorted(edges, values.vals.contiguous(), right=True).clamp(1, edges.shape[-1] - 1)
    return right - 1, right


def install():
    import nerfacc
    from nerfacc import pdf
    from nerfacc.estimators import prop_net

    nerfacc.OccGridEstimator.sampling = sampling
    nerfacc.render_weight_from_density, nerfacc.render_weight_from_alpha = weights_from_density, weights_from_alpha
    for module in (pdf, prop_net):
        module.importance_sampling, module.searchsorted = importance_sampling, searchsorted
