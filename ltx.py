"""LTX-Video (diffusers): its autoencoder's latents, its pipeline, and prompts of generated clips.

Latents are normalised per channel, (mode - latents_mean) / latents_std, as the transformer expects. The
autoencoder takes 8k+1 frames and silently drops others.
"""

import functools
import math
import types
from pathlib import Path

import torch

from checkpoints import attempt, config_of, reachable
from common import fail
from models import find_model, load_video_vae


def flatten_stills(model):
    """Make an autoencoder three times as fast on single images, with the same arithmetic.

    It pads a clip in time with copies of the end frames, so on one frame a 3D convolution is a 2D one by the
    kernel's sum over time.
    """
    from diffusers.models.autoencoders.autoencoder_kl_ltx import LTXVideoCausalConv3d

    def convolve(self, x):
        if x.shape[2] > 1:
            return LTXVideoCausalConv3d.forward(self, x)
        more = self.conv.bias, self.conv.stride[1:], self.conv.padding[1:]
        return torch.nn.functional.conv2d(x[:, :, 0], self.conv.weight.sum(2), *more)[:, :, None]

    for module in model.modules():
        if isinstance(module, LTXVideoCausalConv3d):
            module.forward = types.MethodType(convolve, module)
    return model


# of LTX-Video's pipelines, for autoencoders that are conditioned on a time step
DECODE_STEP, DECODE_NOISE = 0.05, 0.025


def from_latents(vae, z, noise=None):
    """Normalised latents [n, t, h, w, C] -> clips [n, 3, T, H, W] in -1..1, not clipped; differentiable."""
    z = z.to(vae.device, vae.dtype)
    z = z * vae.latents_std.to(z) + vae.latents_mean.to(z)
    if noise is not None:
        z = (1 - DECODE_NOISE) * z + DECODE_NOISE * noise.to(z)
    step = z.new_full((len(z),), DECODE_STEP) if vae.config.timestep_conditioning else None
    return vae.decode(z.permute(0, 4, 1, 2, 3), step).sample.float()


def clips_at_once(pixels):
    """How many clips of so many pixels take 2 GB, at 64 fp32 activations a pixel; at least 1."""
    return max(1, int(2e9 // (64 * 4 * pixels)))


@torch.inference_mode()
def decode_generated_clips(vae, latents, generators=None):
    """Normalised latents [n, t, h, w, C] -> clips uint8 [n, T, H, W, 3].

    generators: one a clip, of the noise that a pipeline adds for an autoencoder conditioned on a time step.
    """
    t, h, w, channels = latents.shape[1:]
    frames = (t - 1) * vae.temporal_compression_ratio + 1
    batch, clips = clips_at_once(frames * h * w * vae.spatial_compression_ratio**2), []
    for k in range(0, len(latents), batch):
        noise = None
        if generators and vae.config.timestep_conditioning:
            drawn = [torch.randn(channels, t, h, w, generator=g) for g in generators[k : k + batch]]
            noise = torch.stack(drawn).movedim(1, -1)
        x = (from_latents(vae, latents[k : k + batch], noise).cpu() + 1) * 127.5
        x = x.round().clamp(0, 255).byte()
        clips.append(x.permute(0, 2, 3, 4, 1))
    return torch.cat(clips)


@torch.inference_mode()
def encode_generated_clips(vae, clips):
    """Clips uint8 [n, T, H, W, 3] -> normalised latents [n, t, h, w, C] (the mode), fp32 on the CPU."""
    out = []
    for x in clips.split(clips_at_once(math.prod(clips.shape[1:4]))):
        x = x.permute(0, 4, 1, 2, 3).to(vae.device, vae.dtype) / 127.5 - 1
        z = vae.encode(x).latent_dist.mode().permute(0, 2, 3, 4, 1)
        out.append(((z - vae.latents_mean.to(z)) / vae.latents_std.to(z)).float().cpu())
    return torch.cat(out)


def autoencoder_of(entry):
    """The entry of a pipeline's autoencoder: in its folder, the registry's, or the folder vae beside it."""
    where = Path(entry["path"])
    if where.is_dir() and not (where / "vae").is_dir():
        return find_model(entry.get("vae") or str(where.with_name("vae")))
    return entry | {"kind": "vae", "subfolder": "vae"}


def load_video_pipeline(entry, device="cpu", dtype=torch.float32):
    """(diffusers' LTXImageToVideoPipeline, None); its components serve LTXConditionPipeline (several frames).

    Its autoencoder is in fp32: generate with output_type="latent", then call decode_generated_clips.
    """
    import diffusers
    import transformers

    entry = reachable(entry | {"kind": "video", "subfolder": None})
    where, more = Path(entry["path"]), {"revision": entry["revision"]} if entry.get("revision") else {}
    stored = attempt(lambda: diffusers.LTXImageToVideoPipeline.load_config(entry["path"], **more), entry)
    parts = {}
    # one by one, since the pipeline would silently draw missing weights
    for part, library in (("transformer", diffusers), ("text_encoder", transformers)):
        name = (stored.get(part) or [None, None])[1]
        if name:
            load = getattr(library, name).from_pretrained
            arguments = more | {"subfolder": part, "output_loading_info": True}
            arguments |= {"torch_dtype" if library is diffusers else "dtype": dtype}
            named = entry | {"path": str(where / part)} if where.is_dir() else entry
            parts[part] = attempt(functools.partial(load, entry["path"], **arguments), named)
    parts["vae"] = load_video_vae(autoencoder_of(entry), device)[0]
    whole = diffusers.LTXImageToVideoPipeline.from_pretrained
    pipeline = attempt(lambda: whole(entry["path"], torch_dtype=dtype, **parts, **more), entry)
    return pipeline.to(device), None


def geometry(entry):
    """From the pipeline's configurations: frames (time) and pixels (space) of a latent, channels (latents),
    the prompt's width before (prompt) and after (caption) projection."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKLLTXVideo

    t, vae = config_of(entry, "transformer/config.json"), autoencoder_of(entry)
    vae = config_of(vae, "/".join(filter(None, (vae.get("subfolder"), "config.json"))))
    with init_empty_weights():
        vae = AutoencoderKLLTXVideo.from_config(vae)
    return {
        "time": vae.temporal_compression_ratio,
        "space": vae.spatial_compression_ratio,
        "latents": vae.config.latent_channels,
        "prompt": t["caption_channels"],
        "caption": t["num_attention_heads"] * t["attention_head_dim"],
    }


def check_shape(frames, size, shape, name):
    """Exit 2 for sizes that the pipeline cannot take: its autoencoder would silently drop frames."""
    r, side = shape["time"], math.lcm(32, shape["space"])
    if frames < r + 1 or frames % r != 1:
        below = max((frames - 1) // r, 1) * r + 1
        fail(f"--frames {frames} is not {r}k+1, as {name} needs; give {below} or {below + r}")
    if size < side or size % side:
        below = max(size // side, 1) * side
        fail(f"--size {size} is not a multiple of {side}, as {name} needs; give {below} or {below + side}")


def images_of(vae, z):
    """Normalised latents [n, h, w, C] -> images [n, 3, H, W] in -1..1 (not clipped); differentiable."""
    return from_latents(vae, z[:, None])[:, :, 0]
