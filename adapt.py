"""Stage 4. Can a small adapter turn a model's tokens into pictures through a frozen video decoder?

    python adapt.py --features results/tiny/shapes/features --latents results/tiny-vae/shapes/features --align results/tiny/shapes/align.yaml \\
        --vae tiny-vae --judge tiny-dinov2 --out results/tiny/shapes/adapt-latents.yaml

Reads features and latents of the same pictures (extract.py), the recommended layer (align.py; or --point). Trains two bridges, five seeds each,
on the train split; the better one on val is decoded by the VAE. Writes adapt-latents.yaml, adapt-latents.pt (pictures of eight test items) and
adapter.pt (the first seed's weights and all that is needed to load them alone). Scores of the decoded test pictures:

    lpips, ssim, edge_f1    against the original at the decoder's resolution
    recon_spatial_iou       foreground that the frozen judge's tokens show through a linear map fitted on the originals
    recon_map50             mAP@0.5 of a set probe on the judge's tokens, fitted on the originals

beside the VAE's own reconstruction (ceiling), the mean image and another item's picture (floors), and the same bridge from an untrained network.
"""
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from common import (
    MASK,
    RESULT,
    ap_criterion,
    ap_runs,
    box_truth,
    check_writable,
    choose_device,
    criterion,
    edge_f1,
    find_model,
    foreground,
    frames_of,
    from_cells,
    join,
    load_encoder,
    load_features,
    load_items,
    load_lpips,
    load_video_vae,
    load_yaml,
    made_up_folder,
    mask_scores,
    parser,
    refuse,
    run_info,
    save_pt,
    save_yaml,
    say,
    split_indices,
    ssim,
    to_cells,
    token_ridge,
    train_set_probe,
    with_grid,
)

SEEDS = 5


# ---------------------------------------------------------------- bridges: tokens [n, h, w, D] -> latents [n, H, W, C]

class Mlp(torch.nn.Module):
    """Tokens resampled to the latent grid, then the same two-layer MLP at every place."""

    def __init__(self, grid, dim, out_grid, channels, width=256):
        super().__init__()
        self.out_grid = out_grid
        self.net = torch.nn.Sequential(torch.nn.LayerNorm(dim), torch.nn.Linear(dim, width), torch.nn.GELU(), torch.nn.Linear(width, width), torch.nn.GELU(), torch.nn.Linear(width, channels))

    def forward(self, x):
        x = F.interpolate(x.permute(0, 3, 1, 2), self.out_grid, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
        return self.net(x)


class Queries(torch.nn.Module):
    """One learned query for every latent place attends to all tokens (the plan's query adapter)."""

    def __init__(self, grid, dim, out_grid, channels, width=96, layers=1):
        super().__init__()
        self.out_grid = out_grid
        self.embed, self.position = torch.nn.Linear(dim, width), torch.nn.Parameter(torch.randn(grid[0] * grid[1], width) * 0.1)
        self.query = torch.nn.Parameter(torch.randn(out_grid[0] * out_grid[1], width) * 0.1)
        self.layers = torch.nn.ModuleList(torch.nn.TransformerDecoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True) for _ in range(layers))
        self.out = torch.nn.Linear(width, channels)

    def forward(self, x):
        memory = self.embed(F.layer_norm(x.flatten(1, 2), x.shape[-1:])) + self.position
        q = self.query.expand(len(x), -1, -1)
        for layer in self.layers:  # queries see the tokens, then one another
            q = layer(q, memory)
        return self.out(q).unflatten(1, self.out_grid)


BRIDGES = {"mlp": Mlp, "queries": Queries}


def train_bridge(kind, x, y, split, seed, epochs, batch, device):
    """Fit a bridge to normalised latents (mean squared error), keep the epoch that is best on val. Returns (module, val loss)."""
    torch.manual_seed(seed)
    model = BRIDGES[kind](tuple(x.shape[1:3]), x.shape[3], tuple(y.shape[1:3]), y.shape[3]).to(device)
    batch = min(batch, len(split["train"]))
    steps = epochs * (len(split["train"]) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    g = torch.Generator().manual_seed(seed)
    best, kept = float("inf"), None
    for epoch in range(epochs):
        model.train()
        for pick in split["train"][torch.randperm(len(split["train"]), generator=g)].split(batch)[:len(split["train"]) // batch]:
            loss = (model(x[pick].to(device)) - y[pick].to(device)).square().mean()
            if not torch.isfinite(loss):
                raise FloatingPointError(f"{kind}: loss {loss.item()} in epoch {epoch}, items {pick.tolist()}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            loss = (model(x[split["val"]].to(device)) - y[split["val"]].to(device)).square().mean().item()
        if loss < best:
            best, kept = loss, {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(kept)
    return model, best


@torch.inference_mode()
def decode(vae, latents, batch=16):
    """Normalised latents [n, t, h, w, C] -> pictures uint8 [n, H, W, 3] (the first frame)."""
    out = []
    for z in latents.split(batch):
        z = (z.to(vae.device, vae.dtype) * vae.latents_std + vae.latents_mean).permute(0, 4, 1, 2, 3)
        # 0.05 is the decode_timestep of LTX-Video's own pipelines, for autoencoders that are conditioned on it
        more = {"temb": torch.full((len(z),), 0.05, device=z.device, dtype=z.dtype)} if vae.config.timestep_conditioning else {}
        x = vae.decode(z, **more).sample[:, :, 0].float().cpu()
        out.append(((x + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1))
    return torch.cat(out)


@torch.inference_mode()
def round_trip(vae, frames, latents):
    """How far, on the mean and of 255, what stored latents [n,t,h,w,C] decode to lies from the autoencoder's own reconstruction of uint8 frames [n,H,W,3]:
    nothing but rounding, unless they are another autoencoder's, or normalised one way only."""
    x = frames.permute(0, 3, 1, 2)[:, :, None].to(vae.device, vae.dtype) / 127.5 - 1
    own = vae.encode(x).latent_dist.mode().permute(0, 2, 3, 4, 1)
    own = decode(vae, (own - vae.latents_mean) / vae.latents_std)
    return (decode(vae, latents).int() - own.int()).abs().float().mean().item()


@torch.inference_mode()
def judge_tokens(model, processor, size, pictures, device, batch=32):
    """Patch tokens of the frozen judge, [n, h, w, D] fp32, of uint8 pictures [n, H, W, 3]."""
    out = []
    for x in pictures.split(batch):
        frames = frames_of({"frames": x}, size).permute(0, 3, 1, 2)
        pixels = processor(list(frames), do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"].to(device, model.dtype)
        tokens = model(pixels).last_hidden_state[:, 1 + getattr(model.config, "num_register_tokens", 0):]
        out.append(tokens.float().cpu().unflatten(1, (size // model.config.patch_size,) * 2))
    return torch.cat(out)


# ---------------------------------------------------------------- the stage

def judged(tokens, rows, items, split, epochs, seed):
    """Spatial IoU and mAP of decoded pictures as the judge sees them. tokens: {name: [n or S*n_test, h, w, D]}; `originals` holds all items.

    Returns {name: IoU [S, n_test]}, {name: ap runs}. The linear map, its threshold and the set probe are fitted on the originals' train and val.
    """
    test, n = split["test"], len(items)
    soft_truth = foreground(items, MASK)
    solid = soft_truth >= 0.5
    _, h, w, d = tokens["originals"].shape
    s = max(-(-MASK // h), 1)
    cells = to_cells(F.interpolate(soft_truth[:, None], (h * s, w * s), mode="bilinear", align_corners=False, antialias=True), h, w)
    names = list(rows)
    every = torch.cat([tokens["originals"]] + [tokens[k] for k in names]).flatten(1, 2)
    nothing = torch.zeros(len(every) - n, *cells.shape[1:])
    soft = from_cells(token_ridge(every, {"mask": torch.cat([cells, nothing])}, split["train"], split["val"])["mask"], h, w, 1, MASK)[:, 0]
    of_test = {"originals": mask_scores(soft[:n], solid, split)[test]}
    start = n
    for k in names:
        part = soft[start:start + len(tokens[k])].unflatten(0, (-1, len(test)))
        start += len(tokens[k])
        both = [torch.cat([soft[:n], p]) for p in part]
        truth = torch.cat([solid, solid[test]])
        of_test[k] = torch.stack([mask_scores(b, truth, split)[n:] for b in both])

    _, truth, classes = box_truth(items)
    side = min(h, 6), min(w, 6)

    def shrink(x):
        return F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), side).permute(0, 2, 3, 1).flatten(1, 2)

    sources = [items[i]["source"] for i in test]
    predict = train_set_probe(shrink(tokens["originals"]), side, truth, len(classes), split["train"], split["val"], 1, epochs=epochs, seed=seed)
    test_truth, everything = [truth[i] for i in test], torch.arange(len(test))
    runs = {"originals": ap_runs(predict, shrink(tokens["originals"]), truth, test, sources=sources)}
    for k in names:
        each = [ap_runs(predict, x, test_truth, everything, sources=sources) for x in shrink(tokens[k]).unflatten(0, (-1, len(test)))]
        runs[k] = {key: torch.cat([e[key] for e in each]) for key in ("ap", "draws")}
    return of_test, runs


def smoke_input(args, folder):
    """A small random autoencoder and Dinov2 judge, squares as pictures, and features that are the latents themselves, rotated."""
    from diffusers import AutoencoderKLLTXVideo
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    from common import plant_features, write_items
    torch.manual_seed(args.seed)
    one = (16,)
    AutoencoderKLLTXVideo(latent_channels=4, block_out_channels=one, decoder_block_out_channels=one, down_block_types=("LTXVideoDownBlock3D",), layers_per_block=(1, 1),
                          decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(False,), decoder_spatio_temporal_scaling=(False,), decoder_inject_noise=(False, False),
                          upsample_residual=(False,), upsample_factor=(1,), patch_size=8).save_pretrained(folder / "vae")
    Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=28)).save_pretrained(folder / "judge")
    BitImageProcessor().save_pretrained(folder / "judge")
    corner = torch.rand(40, 2) * 40
    boxes = torch.cat([corner, corner + 12 + torch.rand(40, 2) * 10], 1).round()
    frames = torch.arange(40, dtype=torch.uint8).view(-1, 1, 1, 1, 1).repeat(1, 1, 64, 64, 3)  # no two pictures alike, whatever the boxes
    for f, (x1, y1, x2, y2) in zip(frames, boxes.int().tolist(), strict=True):
        f[0, y1:y2, x1:x2] = 255
    ids = [f"box-{i}" for i in range(40)]
    write_items(folder / "data", [{"id": i, "source": i, "width": 64, "height": 64, "frames": f, "boxes": b[None], "labels": ["box"]}
                                  for i, f, b in zip(ids, frames, boxes, strict=True)], {"data": "synthetic", "name": "boxes"})
    vae, _ = load_video_vae(find_model(str(folder / "vae")))
    with torch.no_grad():
        z = vae.encode(frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1).latent_dist.mode().permute(0, 2, 3, 4, 1)
    for name, point, x in (("features", "rotated", z @ torch.linalg.qr(torch.randn(4, 4))[0]), ("latents", "latents", z)):
        plant_features(folder / name, ids, {point: x}, folder / "data", size=64)
    args.features, args.latents, args.point, args.epochs = str(folder / "features"), str(folder / "latents"), "rotated", 2
    args.vae, args.judge, args.out = str(folder / "vae"), str(folder / "judge"), args.out or str(folder / "adapt-latents.yaml")


def get_args(argv):
    p = parser(__doc__)
    p.add_argument("--features", default="results/tiny/shapes/features", help="the model's features (default: %(default)s)")
    p.add_argument("--latents", default="results/tiny-vae/shapes/features", help="the decoder's latents of the same pictures (default: %(default)s)")
    p.add_argument("--random", help="features of the untrained network: a floor")
    p.add_argument("--align", help="align.yaml whose recommended layer (linear R2, chosen on val) is taken")
    p.add_argument("--point", help="take this point instead")
    p.add_argument("--vae", default="tiny-vae", help="the decoder (default: %(default)s)")
    p.add_argument("--judge", default="tiny-dinov2", help="the frozen encoder that looks at decoded pictures (default: %(default)s)")
    p.add_argument("--bridges", default="mlp,queries", help="which to try (default: %(default)s)")
    p.add_argument("--epochs", type=int, default=30, help="at most; the best on val is kept (default: %(default)s)")
    p.add_argument("--batch", type=int, default=32, help="(default: %(default)s)")
    p.add_argument("--out", help="default: adapt-latents.yaml beside --features")
    return p.parse_args(argv)


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.smoke:
        smoke_input(args, made_up_folder())
    index, read = load_features(args.features)
    target, read_target = load_features(args.latents)
    random_index, read_random = load_features(args.random) if args.random else (None, None)
    for other, where in ((target, args.latents), (random_index, args.random)):
        if other and other["ids"] != index["ids"]:
            refuse(f"{where} and {args.features} do not hold the same items; extract both from the same data folder")
    items, data = load_items(index["data_path"])
    items = join(items, index, args.features)
    split = split_indices(items, args.features)
    if "boxes" not in items[0]:
        refuse(f"{index['data_path']} has no boxes, by which decoded pictures are judged; use a set that has them")
    point = args.point or (load_yaml(args.align, "align")["linear_r2_layer"] if args.align else None)
    if point is None:
        refuse("no layer is named; give --point, or --align with an align.yaml that recommends one (linear_r2_layer)")
    if point not in index["points"]:
        refuse(f"{args.features} has no point {point!r}; its points are {', '.join(index['points'])}")
    if point not in with_grid(index):
        refuse(f"the tokens of {point} have no place in the picture, and a bridge goes from places to places; give --point one of {', '.join(with_grid(index))}")
    if unknown := [b for b in args.bridges.split(",") if b not in BRIDGES]:
        refuse(f"unknown bridge {unknown[0]!r}; known: {', '.join(BRIDGES)}")
    vae_entry, judge_entry = find_model(args.vae), find_model(args.judge)
    if vae_entry["kind"] != "vae" or judge_entry["kind"] != "encoder":
        refuse(f"--vae {args.vae} is a {vae_entry['kind']} and --judge {args.judge} a {judge_entry['kind']}; a vae and an encoder are needed")
    out = Path(args.out or Path(args.features).parent / "adapt-latents.yaml")
    check_writable(out)

    x, y = read(point)[:, 0], read_target("latents")[:, 0]
    x = (x - x[split["train"]].mean((0, 1, 2))) / x[split["train"]].std((0, 1, 2)).clamp(min=1e-6)
    device, dtype, why = choose_device()
    print(f"device {device.type} ({why})")
    test, size = split["test"], target["size"]
    vae, _ = load_video_vae(vae_entry, device, dtype)
    originals = torch.cat([frames_of(i, size) for i in items])
    if (away := round_trip(vae, originals[:4], y[:4, None])) > 2:
        refuse(f"{args.latents} does not hold latents of {args.vae}: decoded, they lie {away:.1f} of 255 from its own reconstruction; extract them with --model {args.vae}")
    trained, seconds = {}, {}
    for kind in args.bridges.split(","):
        began = time.time()
        trained[kind] = [train_bridge(kind, x, y, split, args.seed + s, args.epochs, args.batch, device) for s in tqdm(range(SEEDS), desc=kind, unit="seed")]
        seconds[kind] = time.time() - began
    val_loss = {k: sum(v for _, v in runs) / SEEDS for k, runs in trained.items()}
    bridge = min(val_loss, key=val_loss.get)

    def pictures_of(models, x):
        with torch.inference_mode():
            return torch.cat([decode(vae, m(x[test].to(device)).cpu()[:, None]) for m, _ in models])  # seeds one after another

    n = len(test)
    rows = {"bridge": pictures_of(trained[bridge], x), "vae": decode(vae, y[test][:, None]),
            "mean_image": originals[split["train"]].float().mean(0).round().byte().expand(n, -1, -1, -1)}
    rows["other_item"] = rows["bridge"].unflatten(0, (SEEDS, n)).roll(1, 1).flatten(0, 1)
    if read_random:
        r = read_random(point)[:, 0]
        r = (r - r[split["train"]].mean((0, 1, 2))) / r[split["train"]].std((0, 1, 2)).clamp(min=1e-6)
        rows["random_init"] = pictures_of([train_bridge(bridge, r, y, split, args.seed + s, args.epochs, args.batch, device) for s in tqdm(range(SEEDS), desc="untrained", unit="seed")], r)

    lpips, lpips_name = load_lpips(device)
    sources = [items[i]["source"] for i in test]
    scores = {}
    for key, measure in ((lpips_name, lpips), ("ssim", ssim), ("edge_f1", edge_f1)):
        scores[key] = {k: measure(p.contiguous(), originals[test].repeat(len(p) // n, 1, 1, 1)).unflatten(0, (-1, n)) for k, p in rows.items()}
    judge, processor = load_encoder(judge_entry, device, dtype)
    tokens = {k: judge_tokens(judge, processor, judge_entry["size"], p, device) for k, p in tqdm((rows | {"originals": originals}).items(), desc="judge", unit="set")}
    scores["recon_spatial_iou"], runs = judged(tokens, rows, items, split, args.epochs, args.seed)

    # The untrained network is a control here, not a floor: its first layers still hold nearly every pixel, and a faithful copy is what is asked for.
    criteria, floors, controls = {}, ["mean_image", "other_item"], [k for k in rows if k == "random_init"]
    for key, table in scores.items():
        criteria[key] = criterion(table["bridge"], {k: table[k] for k in floors}, sources, ceiling=table["vae"].mean().item(),
                                  better="lower" if key.startswith("lpips") else "higher", seed=args.seed, layer=point, options_searched=len(trained),
                                  controls={k: table[k].mean() for k in controls})
    criteria["recon_map50"] = ap_criterion(runs["bridge"], {k: runs[k] for k in floors}, sources, ceiling=runs["vae"]["ap"].mean().item(), layer=point, options_searched=len(trained),
                                           controls={k: runs[k]["ap"].mean() for k in controls})
    result = {"stage": "adapt", "mode": "latents", "model": index["model"], "decoder": vae_entry["name"], "judge": judge_entry["name"], "weights": index["weights"],
              "decoder_weights": vae_entry["weights"], "data": index["data"], "data_name": data["name"], "bridge": bridge, "layer": point,
              "parameters": sum(p.numel() for p in trained[bridge][0][0].parameters())}
    for name, c in criteria.items():
        result |= {name: c["score"], f"{name}_low": c["low"], f"{name}_high": c["high"], f"{name}_floor": c["floor"], f"{name}_ceiling": c["ceiling"], f"{name}_skill": c["skill"]}
    if lpips_name != "lpips":
        result |= {"lpips": None, "lpips_reason": "the backbone's published weights are neither in torch's cache nor within reach of the network"}
    result |= {"judge_spatial_iou_originals": scores["recon_spatial_iou"]["originals"].mean(), "judge_map50_originals": runs["originals"]["ap"].mean(),
               "criteria": criteria, "bridges": {k: {"val_mse": val_loss[k], "seconds": seconds[k], "parameters": sum(p.numel() for p in v[0][0].parameters())} for k, v in trained.items()},
               "run": run_info(args, started, script="adapt.py", device=f"{device.type} ({why})", dtype=str(dtype))}
    ids = [items[i]["id"] for i in test]
    save_pt(out.with_suffix(".pt"), RESULT, ids[:8], {"stage": "adapt"}, original=originals[test[:8]].clone(), vae=rows["vae"][:8].clone(), bridge=rows["bridge"][:8].clone())
    save_pt(out.parent / "adapter.pt", "foresight.adapter.v1", [], {"bridge": bridge, "point": point, "grid": list(x.shape[1:]), "out_grid": list(y.shape[1:]), "model": index["model"],
                                                                    "decoder": vae_entry["name"]}, weights=trained[bridge][0][0].state_dict())
    save_yaml(out, result)
    say(result)
    return result


if __name__ == "__main__":
    main()
