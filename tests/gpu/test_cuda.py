"""What a CUDA device computes is what the CPU computes: encoding, rendering, noise, gradients, random streams.

Every helper takes the device, so that it can be tried on a CPU as well.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import ministudio
from lmc_guidance import DDS, LMCSDS, MSSDS, NFSD, SDS, Cond, DiffusionModel, NoiseSource, TextPair, load_corrective
from lmc_guidance.checkpoint import FILE_NAME
from ministudio.data.uncond import RandomCameraDataModule
from ministudio.models.encodings.hash_grid import hash_encode
from ministudio.models.encodings.layout import GridLayout
from ministudio.models.geometry.implicit_volume import ImplicitVolume
from ministudio.models.renderers import compositing, marching_nerfacc
from ministudio.models.renderers.marching import march
from ministudio.utils import misc
from ministudio.utils.callbacks import AtomicCheckpointIO, RandomState

pytestmark = pytest.mark.gpu
MODEL = Path(__file__).resolve().parents[2] / "models" / "toybox"
METHODS = ("sds", "cond", "lmc", "dds", "nfsd", "ms-sds")
BOX = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0])


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Without TensorFloat-32, whose ten bits would hide an error; and the device that a test chooses stays its own."""
    monkeypatch.setattr(misc, "_chosen", [])
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


def relative(a, b):
    return ((a.cpu() - b.cpu()).norm() / b.cpu().norm()).item()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- the hash grid -------------------------------------------------------------------------------


def encoded(device, n_levels):
    """Features of 300 points, their gradients at points and table, and those of a loss on the former of the two."""
    layout = GridLayout(n_levels=5, n_features_per_level=2, log2_hashmap_size=9, base_resolution=4, per_level_scale=1.7)
    g = seeded()
    x, params = torch.rand(300, 3, generator=g), torch.randn(layout.n_params, generator=g)
    along = torch.randn(300, layout.n_output_dims, generator=g).to(device)
    x, params = x.to(device).requires_grad_(), params.to(device).requires_grad_()
    y = hash_encode(x, params, layout, n_levels)
    slope, table = torch.autograd.grad((y * along).sum(), (x, params), create_graph=True)
    return [y, slope, table, *torch.autograd.grad(slope.square().sum(), (x, params))]


@pytest.mark.parametrize("n_levels", [2, 5])
def test_the_hash_grid_and_its_first_and_second_derivatives(n_levels):
    for cuda, cpu in zip(encoded("cuda", n_levels), encoded("cpu", n_levels)):
        assert relative(cuda.detach(), cpu.detach()) < 1e-5


# --- rendering -----------------------------------------------------------------------------------


def composited(device):
    """Pixels of 40 rays, some without samples, and the gradients at densities and values."""
    g = seeded()
    counts = torch.randint(0, 12, (40,), generator=g)
    counts[3] = counts[-1] = 0
    starts = torch.cat([torch.arange(int(c)) * 0.1 for c in counts]).to(device)
    rays = torch.repeat_interleave(torch.arange(40), counts).to(device)
    density = (torch.rand(len(rays), generator=g) * 8).to(device).requires_grad_()
    values = torch.randn(len(rays), 3, generator=g).to(device).requires_grad_()
    weights = compositing.render_weights(density, starts, starts + 0.1, rays, 40)
    pixels = compositing.accumulate(weights, values, rays, 40)
    (pixels * torch.linspace(-1, 1, 120, device=device).view(40, 3)).sum().backward()
    return pixels.detach(), density.grad, values.grad


def test_compositing_and_its_gradients():
    for cuda, cpu in zip(composited("cuda"), composited("cpu")):
        assert relative(cuda, cpu) < 1e-5


def marched(device, share):
    """(ray, distance) of each sample of 500 rays in a grid of which a share is occupied."""
    g = seeded()
    origins, directions = torch.randn(500, 3, generator=g) * 1.5, F.normalize(torch.randn(500, 3, generator=g), dim=-1)
    occupied, jitter = torch.rand(16, 16, 16, generator=g) < share, torch.rand(500, generator=g)
    inputs = (tensor.to(device) for tensor in (origins, directions, occupied, BOX))
    samples = march(*inputs, 0.03, jitter=jitter.to(device))
    return {(r, round(t, 3)) for r, t in zip(samples.ray_indices.tolist(), samples.t_starts.tolist())}


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("by", ["plain torch", "nerfacc"])
def test_marching(by, share, monkeypatch):
    if by == "nerfacc" and not marching_nerfacc.is_built():
        pytest.skip("nerfacc with compiled kernels is not installed")
    monkeypatch.setattr(marching_nerfacc, "is_built", lambda: by == "nerfacc")
    cuda, cpu = marched("cuda", share), marched("cpu", share)
    assert len(cuda ^ cpu) <= 5e-3 * max(len(cpu), 1)  # middles on a wall, and roundings, may fall either way
    assert (len(cuda) == 0) == (share == 0.0)


def rendered(device, training):
    """Images of two views of a rough coloured volume with lit normals, and the gradients at all its parameters."""
    misc.set_device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        grid = dict(otype="HashGrid", n_levels=4, n_features_per_level=2, log2_hashmap_size=12, base_resolution=4)
        geometry = ImplicitVolume({"radius": 0.8, "finite_difference_normal_eps": 0.05, "density_blob_std": 0.6,
                                   "pos_encoding_config": {**grid, "per_level_scale": 1.6}})
        geometry.encoding.encoding.encoding.params.data.uniform_(-0.5, 0.5)
    lit = dict(ambient_only_steps=0, diffuse_prob=1.0, textureless_prob=0.0)
    material = ministudio.find("diffuse-with-point-light-material")(lit)
    background = ministudio.find("solid-color-background")({})
    scene = dict(geometry=geometry, material=material, background=background)
    renderer = ministudio.find("nerf-volume-renderer")({"num_samples_per_ray": 96, "randomized": False}, **scene)
    for module in (*scene.values(), renderer):
        module.to(device).train(training)
        module.do_update_step(0, 0)
    renderer.estimator.update(0, renderer._density, renderer.step_size)  # as the training would have
    views = RandomCameraDataModule(dict(eval_height=24, eval_width=24, n_test_views=3, eval_fovy_deg=50.0)).test_dataset
    batch = views.collate([views[i] for i in range(2)])
    out = renderer(**{key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()})
    images = {key: value.detach() for key, value in out.items() if value.shape[:3] == (2, 24, 24)}
    if not training:
        return images, []
    ramp = torch.linspace(-1, 1, out["comp_rgb"].numel(), device=device).view_as(out["comp_rgb"])
    return images, torch.autograd.grad((out["comp_rgb"] * ramp).sum(), list(geometry.parameters()))


@pytest.mark.parametrize("training", [True, False])
def test_a_whole_rendering_and_its_gradients(training):
    """A sample at the edge of an occupied cell may fall either way, hence the tolerance."""
    (cuda, cuda_grads), (cpu, cpu_grads) = rendered("cuda", training), rendered("cpu", training)
    assert cuda.keys() == cpu.keys() and 0.1 < cpu["opacity"].mean() < 0.9
    assert cuda["comp_rgb"].is_cuda
    for key in set(cpu) - {"z_variance"}:  # cut off at an opacity of a half
        assert relative(cuda[key], cpu[key]) < 5e-3, key
    for a, b in zip(cuda_grads, cpu_grads):
        assert relative(a, b) < 2e-2


# --- the guidance --------------------------------------------------------------------------------


def gradients(device, dtype=torch.float32):
    """Method → its gradient at the same images, text, noise (LMC's own among it) and t on any device; and t."""
    model = DiffusionModel.load(MODEL, device, dtype=dtype)
    x = (torch.rand(2, 3, 64, 64, generator=seeded()) * 2 - 1).to(device)
    text = TextPair(model.embed(["a red cube"] * 2), model.embed([""] * 2))
    noise, where = NoiseSource(5, "lmc"), dict(step=3, device=model.device)
    t, drawn = noise.timesteps(20, 980, 2, **where), noise.draw(x.shape, **where)
    dds = DDS(model, model.embed(["a green cone"]))
    dds.reference = x.flip(0)
    lmc = LMCSDS(model, load_corrective(MODEL / FILE_NAME, model).corrective)
    nfsd = NFSD(model, model.embed(["blurry"]))
    methods = dict(zip(METHODS, (SDS(model), Cond(model), lmc, dds, nfsd, MSSDS(model))))
    return {name: method(x, text, t, drawn, 10.0).gradient.cpu() for name, method in methods.items()}, t.cpu()


@pytest.fixture(scope="module")
def on_cpu():
    return gradients("cpu")


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (torch.float16, 0.02), (torch.bfloat16, 0.1)])
def test_the_gradient_of_every_method(on_cpu, dtype, tolerance):
    """Half precision: eight times finer in float16 than in bfloat16, which differs by 3% on a CPU, too."""
    (expected, t), (got, u) = on_cpu, gradients("cuda", dtype)
    assert torch.equal(t, u)
    errors = {name: relative(got[name], expected[name]) for name in METHODS}
    print(dtype, {name: f"{error:.1e}" for name, error in errors.items()})  # shown by -rP
    assert all(error < tolerance for error in errors.values()), errors


@pytest.mark.parametrize("fixed, mix", [("none", 0.0), ("lmc", 0.0), ("all", 0.5)])
def test_noise_and_timesteps_are_the_same_numbers(fixed, mix):
    source, shape = NoiseSource(7, fixed, mix), (3, 3, 16, 16)
    cuda, cpu = (source.draw(shape, 11, torch.device(device)) for device in ("cuda", "cpu"))
    assert cuda.cond.is_cuda and cuda.shared == cpu.shared
    assert torch.equal(cuda.cond.cpu(), cpu.cond) and torch.equal(cuda.lmc.cpu(), cpu.lmc)
    times = [source.timesteps(20, 980, 3, 11, torch.device(device)).cpu() for device in ("cuda", "cpu")]
    assert torch.equal(*times)


# --- random streams ------------------------------------------------------------------------------


def drawn(device):
    return [torch.rand(5, device=device).cpu(), torch.rand(5)]


def resumed_draws(device, path):
    """Random numbers after a checkpoint, and again after the checkpoint has been read by another run."""
    io = AtomicCheckpointIO()
    io.save_checkpoint({"state_dict": {}, "epoch": 0, "global_step": 1, "streams": RandomState().state_dict()}, path)
    first = drawn(device)
    torch.rand(999, device=device)
    later = RandomState()
    later.load_state_dict(io.load_checkpoint(path)["streams"])
    later.on_train_start(None, None)
    return first, drawn(device)


def test_the_random_streams_of_a_checkpoint(tmp_path):
    first, again = resumed_draws("cuda", tmp_path / "last.ckpt")
    assert all(map(torch.equal, first, again))
