"""Bridges on planted latents, the round trip through the decoder, and what is refused."""
import argparse

import pytest
import torch

import adapt
from common import find_model, load_features, load_items, load_pt, load_video_vae, load_yaml, plant_features, save_yaml


def split(n=90):
    return {"train": torch.arange(0, n - 40), "val": torch.arange(n - 40, n - 20), "test": torch.arange(n - 20, n)}


def planted(seed=0):
    """Tokens and latents of 90 items: the latents are a rotation of the tokens."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(90, 4, 4, 6, generator=g)
    return x, x @ torch.linalg.qr(torch.randn(6, 6, generator=g))[0]


@pytest.mark.parametrize("kind", list(adapt.BRIDGES))
def test_a_bridge_from_noise_learns_no_more_than_the_mean(kind):
    x, y = planted()
    _, loss = adapt.train_bridge(kind, torch.randn(x.shape, generator=torch.Generator().manual_seed(9)), y, split(), 0, 10, 32, "cpu")
    assert loss > 0.9 * y[split()["val"]].var()


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(adapt.BRIDGES))
def test_a_bridge_finds_a_planted_map(kind):
    x, y = planted()
    x = torch.cat([x] + [planted(s)[0] for s in range(1, 8)])
    y = x @ torch.linalg.lstsq(planted()[0].flatten(0, 2), planted()[1].flatten(0, 2)).solution
    n = len(x)
    _, loss = adapt.train_bridge(kind, x, y, split(n), 0, 60, 32, "cpu")
    assert loss < 0.5 * y[split(n)["val"]].var()


def test_the_same_seed_trains_the_same_bridge_and_another_does_not():
    x, y = planted()
    losses = [adapt.train_bridge("mlp", x, y, split(), seed, 2, 32, "cpu")[1] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_items():
    x, y = planted()
    with pytest.raises(FloatingPointError, match="epoch 0, items"):
        adapt.train_bridge("mlp", x, y / 0, split(), 0, 2, 32, "cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapt")
    args = argparse.Namespace(seed=0, out=None)
    adapt.smoke_input(args, folder)
    arguments = ["--features", args.features, "--latents", args.latents, "--point", "rotated", "--epochs", "2", "--vae", args.vae, "--judge", args.judge, "--out", args.out]
    return folder, arguments, adapt.main(arguments)


def test_decoding_stored_latents_equals_the_autoencoders_own_reconstruction(made):
    folder, arguments, _ = made
    vae, _ = load_video_vae(find_model(str(folder / "vae")))
    items, _ = load_items(folder / "data")
    frames = torch.cat([i["frames"] for i in items[:4]])
    with torch.no_grad():
        x = frames.permute(0, 3, 1, 2)[:, :, None].float() / 127.5 - 1
        z = vae.encode(x).latent_dist.mode()
        own = ((vae.decode(z).sample[:, :, 0] + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    normalised = (z.permute(0, 2, 3, 4, 1) - vae.latents_mean) / vae.latents_std
    assert (adapt.decode(vae, normalised).int() - own.int()).abs().max() <= 1


def test_every_score_stands_between_floors_and_the_autoencoders_ceiling_in_the_yaml(made):
    folder, _, result = made
    found = load_yaml(folder / "adapt-latents.yaml", "adapt")
    for name in ("ssim", "edge_f1", "recon_spatial_iou", "recon_map50"):
        assert set(found["criteria"][name]["floors"]) == {"mean_image", "other_item"} and found[f"{name}_ceiling"] is not None
    assert found["judge_spatial_iou_originals"] > 0.6  # the judge sees the squares in the originals, so it may be asked about pictures
    assert found["bridge"] == result["bridge"] and (folder / "adapter.pt").is_file()


def test_the_saved_adapter_is_the_bridge_that_made_the_pictures(made):
    folder, _, _ = made
    saved = load_pt(folder / "adapter.pt", "foresight.adapter.v1")
    meta = saved["meta"]
    bridge = adapt.BRIDGES[meta["bridge"]](meta["grid"][:2], meta["grid"][2], tuple(meta["out_grid"][:2]), meta["out_grid"][2])
    bridge.load_state_dict(saved["weights"])
    features = load_pt(folder / "features" / "rotated" / "00000.pt", "foresight.features.v1")["features"][:, 0].float()
    items, _ = load_items(folder / "data")
    from common import split_indices
    parts = split_indices(items, folder)
    x = (features - features[parts["train"]].mean((0, 1, 2))) / features[parts["train"]].std((0, 1, 2)).clamp(min=1e-6)
    vae, _ = load_video_vae(find_model(str(folder / "vae")))
    with torch.no_grad():
        pictures = adapt.decode(vae, bridge(x[parts["test"][:8]])[:, None])
    assert (pictures.int() - load_pt(folder / "adapt-latents.pt", "foresight.result.v1")["bridge"].int()).abs().max() <= 1


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as e:
        adapt.main([str(a) for a in arguments])
    err = capsys.readouterr().err
    assert e.value.code == 2 and err.count("error:") == 1, err
    return err


def test_bad_input_is_refused_in_one_sentence(made, tmp_path, capsys):
    folder, arguments, _ = made

    def changed(**new):
        flags = dict(zip(arguments[::2], arguments[1::2], strict=True)) | {f"--{k}": v for k, v in new.items()}
        return [x for pair in flags.items() for x in pair]

    assert "does not exist" in refused(capsys, *changed(features=tmp_path / "nowhere"))
    assert "'vision.7'" in refused(capsys, *changed(point="vision.7"))
    assert "known: mlp" in refused(capsys, *changed(bridges="resampler"))
    assert "unknown model" in refused(capsys, *changed(vae="tiny-vea"))
    assert "a vae and an encoder are needed" in refused(capsys, *changed(vae=str(folder / "judge")))
    assert "--align" in refused(capsys, "--features", folder / "features", "--latents", folder / "latents")
    save_yaml(tmp_path / "align.yaml", {"stage": "align", "linear_r2_layer": None})  # what align.py says where no layer has a grid
    assert "linear_r2_layer" in refused(capsys, "--features", folder / "features", "--latents", folder / "latents", "--align", tmp_path / "align.yaml")
    gridless = load_yaml(folder / "features" / "index.yaml")
    gridless["points"] |= {"merger": {"shape": [1, 1, 5, 8], "grid": False}}
    save_yaml(tmp_path / "gridless" / "index.yaml", gridless)
    err = refused(capsys, *changed(features=tmp_path / "gridless", point="merger"))
    assert "merger have no place in the picture" in err and "--point one of rotated" in err
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(capsys, *changed(out=tmp_path / "file" / "x.yaml"))
    half = {"latents": load_features(folder / "latents")[1]("latents") / 2 + 1}  # as if normalised one way only
    plant_features(tmp_path / "half", load_yaml(folder / "latents" / "index.yaml")["ids"], half, folder / "data", size=64)
    assert "does not hold latents of" in refused(capsys, *changed(latents=tmp_path / "half"))
    index = load_yaml(folder / "latents" / "index.yaml")
    save_yaml(tmp_path / "other" / "index.yaml", index | {"ids": index["ids"][::-1]})
    assert "same items" in refused(capsys, *changed(latents=tmp_path / "other"))
