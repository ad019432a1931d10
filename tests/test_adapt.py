"""adapt.py: adapters on planted latents, the decoder's round trip, the jobs on planted data, refusals."""

import functools
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import adapter_world, changed, plant_features, random_autoencoder

import adapt
import adapters
import data
import ltx
import metrics
import training
from common import HERE, RESULT, load_features, load_items, load_pt, load_yaml, save_yaml, split_indices
from models import find_model, load_video_vae


def split(n=90):
    parts = {"train": (0, n - 40), "val": (n - 40, n - 20), "test": (n - 20, n)}
    return {name: torch.arange(*ends) for name, ends in parts.items()}


def planted(n=90):
    """Tokens and latents of n items: the latents are a rotation of the tokens."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, 4, 6, generator=g)
    return x, x @ torch.linalg.qr(torch.randn(6, 6, generator=g))[0]


def trained(kind, x, y, epochs, noise=0.0):
    """Val loss of an adapter that was trained on the squared error of latents, with noise."""

    def loss_of(module, items, g, part, warm):
        more = noise * torch.randn(len(items), *y.shape[1:], generator=g)[part]
        return (module(x[items[part]]) + more - y[items[part]]).square().mean()

    shape = [tuple(x.shape[1:3])], [x.shape[3]], tuple(y.shape[1:3]), y.shape[3]
    how = adapt.SETTINGS["latents"] | {"epochs": epochs}
    build = functools.partial(adapters.ADAPTERS[kind], *shape)
    return training.train(build, loss_of, split(len(x)), 0, how)[1]["val"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in adapters.ADAPTERS if kind != "fusion"])
def test_an_adapter_learns_a_planted_map_and_nothing_from_noise(kind):
    x, y = planted(360)
    epochs, most = (20, 0.97) if kind == "perceiver" else (40, 0.5)  # 16 places do not pass its few vectors
    assert trained(kind, x, y, epochs) < most * y[split(360)["val"]].var()
    noise, y = torch.randn(90, 4, 4, 6, generator=torch.Generator().manual_seed(9)), planted()[1]
    assert trained(kind, noise, y, 10) > 0.9 * y[split()["val"]].var()


@pytest.mark.parametrize("kind", list(adapters.ADAPTERS))
def test_an_adapter_of_every_size_has_its_parameters_within_five_percent(kind):
    sets = 2 if kind == "fusion" else 1
    shape = [(16, 16)] * sets, [3584] * sets, (7, 7), 128
    for millions in adapt.LADDER:
        free = adapters.sized(kind, millions * 1e6, *shape)
        with torch.device("meta"):
            count = adapters.parameters(adapters.ADAPTERS[kind](*shape, **free))
        assert count == pytest.approx(millions * 1e6, rel=0.05)


def test_the_pixel_loss_is_lpips_and_a_tenth_of_l2_of_the_decoded_image():
    torch.manual_seed(0)
    vae, lpips = random_autoencoder(patch_size=8, scaling=(False,)).eval(), metrics.lpips_model()[0]
    images = torch.randint(0, 256, (6, 64, 64, 3)).byte()
    decode = functools.partial(ltx.images_of, vae)
    z, items = torch.randn(3, 8, 8, 4, requires_grad=True), torch.tensor([4, 0, 2])
    loss = metrics.pixel_loss(decode, lpips, images)(z, items)
    x, target = decode(z), metrics.to_floats(images[items])
    plain = lpips(x, target).mean() + 0.1 * (x - target).square().mean()
    assert torch.allclose(loss, plain, atol=1e-6)
    assert torch.allclose(torch.autograd.grad(loss, z)[0], torch.autograd.grad(plain, z)[0], atol=1e-6)


@pytest.mark.slow
def test_two_ranks_train_the_same_adapter_as_one(tmp_path):
    code = "import sys, torch, test_adapt as t; loss = t.trained('queries', *t.planted(), 3, 1.0); "
    (tmp_path / "run.py").write_text(code + "torch.save(loss, f'{sys.argv[1]}/{t.training.ranks()[0]}.pt')")
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{HERE}/tests", "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*run, tmp_path / "run.py", tmp_path], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    losses, x = [torch.load(tmp_path / f"{k}.pt") for k in (0, 1)], planted()
    assert losses == pytest.approx([trained("queries", *x, 3, 1.0)] * 2, abs=1e-5)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapt")
    adapter_world(folder)
    paths = " ".join(f"--{x} {folder}/{x}" for x in ("features", "latents", "vae", "evaluator", "random"))
    line = f"latents {paths} --point rotated --epochs 2 --seeds 2 --out {folder}/adapt-latents.yaml".split()
    return folder, line, adapt.main(line), load_video_vae(find_model(f"{folder}/vae"))[0]


def test_decoding_stored_latents_equals_the_autoencoders_own_reconstruction(made):
    frames, vae = torch.cat([i["frames"] for i in load_items(made[0] / "data")[0][:4]]), made[3]
    with torch.no_grad():
        z = vae.encode(metrics.to_floats(frames)[:, :, None]).latent_dist.mode()
    normalised = ((z.permute(0, 2, 3, 4, 1) - vae.latents_mean) / vae.latents_std)[:, 0]
    assert adapters.round_trip(vae, frames, normalised) < 0.01
    assert adapters.round_trip(vae, frames, z[:, :, 0].permute(0, 2, 3, 1)) > 2  # not normalised


def test_scores_have_baselines_and_an_upper_bound_and_the_saved_adapter_gives_the_saved_images(made):
    folder, _, result, vae = made
    found = load_yaml(folder / "adapt-latents.yaml", "adapt")
    for name, record in found["criteria"].items():
        assert set(record["baselines"]) == {"mean_image", "other_item"}
        assert set(record["controls"]) == {"random_init"} and found[f"{name}_upper_bound"] is not None
        assert (record["better"] == "lower") == name.startswith("lpips")
    assert found["evaluator_spatial_iou_originals"] > 0.6  # the evaluator shows the squares of the originals
    assert result["adapter"] == min(result["adapters"], key=lambda k: result["adapters"][k]["val_mse"])
    use, _ = adapters.load_adapter(folder / "adapter.pt")
    features = load_features(folder / "features")[1]("rotated")[:, 0]
    test = split_indices(load_items(folder / "data")[0], folder)["test"][:8]
    saved = load_pt(folder / "adapt-latents.pt", RESULT)["adapter"]
    assert (adapters.decode(vae, use(features[test])).int() - saved.int()).abs().max() <= 1


def test_baselines_and_answers_of_a_hybrid(monkeypatch):
    images = torch.arange(6).view(6, 1, 1, 1)  # two seeds of three items
    assert adapters.of_other_items(images, 3).flatten().tolist() == [2, 0, 1, 5, 3, 4]
    parts = {"train": torch.arange(2), "test": torch.arange(2, 4)}
    originals = torch.tensor([10, 20, 90, 90], dtype=torch.uint8).view(4, 1, 1, 1)
    w = SimpleNamespace(vae=None, y=torch.arange(4), split=parts, originals=originals)
    monkeypatch.setattr(adapters, "decode", lambda vae, z: z)
    assert adapters.controls(w)["mean_image"].flatten().tolist() == [15, 15]
    assert adapters.controls(w)["vae"].tolist() == [2, 3]
    x = torch.tensor([0.0, 2, 90]).view(3, 1, 1, 1, 1)
    z, (mean, std) = training.standardised(x, torch.tensor([0, 1]))  # of train items
    assert (mean.item(), std.item()) == (1, pytest.approx(2**0.5))
    assert z.flatten().tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5, 89 / 2**0.5], rel=1e-3)
    for low, high, answer in ((0.01, 0.2, "yes"), (-0.1, 0.04, "no"), (-0.1, 0.06, "inconclusive")):
        assert adapt.answer_of({"gain_low": low, "gain_high": high}, -0.5) == answer


@pytest.mark.slow
def test_scaling_trains_every_size_for_equally_many_steps(made, tmp_path, monkeypatch):
    monkeypatch.setattr(adapt, "REFERENCE_WIDTH", 200)  # tokens of width 4: 2,000 to 40,000 parameters
    line = changed(made[1], "scaling", adapters="mlp", epochs=3, random=None, out=tmp_path / "s.yaml")
    found, steps = adapt.main(line), set()
    for row in found["sizes"].values():
        steps.add(row["steps"])
    record = found["criteria"]["parameter_efficiency"]
    assert len(steps) == 1 and record["low"] < record["score"] < record["high"]
    assert record["score"] == pytest.approx(2 - record["lpips_small"] / record["lpips_large"])
    assert found["small"] in found["sizes"] and record["by_skill"]["low"] < record["by_skill"]["score"]
    rates = found["sizes"][found["small"]]["val_by_lr"]
    assert len(rates) == 3 and f"{found['sizes'][found['small']]['lr']:.1e}" == min(rates, key=rates.get)


@pytest.fixture(scope="module")
def halves(made, tmp_path_factory):
    """80 images; as features, latents of the small autoencoder: all channels, either half, noise."""
    folder = tmp_path_factory.mktemp("halves")
    data.main(f"shapes --n 80 --size 64 --out {folder}/data".split())
    items, (vae, _) = load_items(folder / "data")[0], load_video_vae(find_model("tiny-vae"))
    with torch.inference_mode():
        x = metrics.to_floats(torch.cat([i["frames"] for i in items]))[:, :, None]
        z = vae.encode(x).latent_dist.mode().permute(0, 2, 3, 4, 1)
        z = ((z - vae.latents_mean) / vae.latents_std).clone()
    noise = torch.randn(z[..., 8:].shape, generator=torch.Generator().manual_seed(0))
    for name, x in (("latents", z), ("spatial", z[..., :8]), ("model", z[..., 8:]), ("random", noise)):
        points = {"latents" if name == "latents" else "tokens": x}
        plant_features(folder / name, [i["id"] for i in items], points, folder / "data", size=64)
    paths = " ".join(f"--{k} {folder}/{k}" for k in ("latents", "spatial", "random"))
    how = f"--point tokens --seeds 1 --epochs 8 --lr 3e-3 --loss latents --evaluator {made[0]}/evaluator"
    return f"hybrid --features {folder}/model {paths} {how} --out {folder}/h.yaml".split()


@pytest.mark.slow
def test_a_hybrid_gains_by_the_missing_half_over_the_best_rival(halves):
    found = adapt.main(halves)
    arms, key = found["arms"], next(k for k in found["criteria"] if k.startswith("lpips"))
    error = {k: row[key] for k, row in arms.items()}
    rivals = {"zero", "noise", "shuffled", "twice", "random", "spatial", "spatial_wide"}
    assert set(found["criteria"][key]["baselines"]) == rivals | {"mean_image"}
    assert found["model_adds"] == "yes" and error["oracle"] < error["fused"] < min(error[k] for k in rivals)
    assert found["model_adds_gain"] == pytest.approx(error[found["rival"]] - error["fused"])
    alone = min(error["model"], error["model_twice"])
    assert found["spatial_adds_gain"] == pytest.approx(alone - error["fused"])
    sizes = [arms[k]["parameters"] / arms["fused"]["parameters"] for k in ("spatial_wide", "model")]
    assert sizes == pytest.approx([1, 1], abs=0.05)


@pytest.mark.slow
def test_an_ablation_compares_adapters_samples_and_a_start_from_a_trained_adapter(halves, tmp_path):
    more = {"spatial": None, "random": None, "adapters": "mlp", "seeds": 2, "epochs": 12}
    adapt.main(changed(halves, "ablation", **more, out=tmp_path / "first.yaml"))
    more |= {"init": tmp_path / "adapter-ablation.pt", "adapters": "mlp,queries,bottleneck", "epochs": 3}
    found = adapt.main(changed(halves, "ablation", **more, out=tmp_path / "a.yaml"))
    groups, arm = found["groups"], found["arms"]["from --init"]
    assert groups["adapter"] == ["mlp", "queries", "bottleneck"] and len(groups["samples"]) == 4
    assert arm["worse_high"] < 0 and arm["copied_parameters"] == arm["parameters"]  # everything fits


@pytest.mark.slow
def test_an_adapter_learns_prompts_from_words_nothing_from_noise_and_is_applied_alone(tmp_path):
    data.main(f"moving --n 60 --frames 9 --out {tmp_path}/clips".split())
    items, gains = load_items(tmp_path / "clips")[0], {}
    ids, texts = [i["id"] for i in items], [(*i["names"][-1].split(), i["direction"]) for i in items]
    words = sorted({w for row in texts for w in row})
    known = torch.tensor([[float(w in row) for w in words] for row in texts])
    known = known[:, None, None, None].expand(-1, 2, 2, 2, -1)
    noise = torch.randn(known.shape, generator=torch.Generator().manual_seed(0))
    for name, x, epochs in (("known", known, 30), ("noise", noise, 15)):
        at = plant_features(tmp_path / name, ids, {"language.0": x}, tmp_path / "clips", size=64)
        line = f"prompt --features {at} --lr 3e-3 --epochs {epochs} --seeds 1 --out {at}/prompt.yaml"
        found = adapt.main(line.split())["criteria"]
        gains[name] = [found[k]["gain_low"] for k in ("embedding_error",)]
    assert min(gains["known"]) > 0 and gains["noise"][0] < 0.02, gains
    at, again = tmp_path / "known", tmp_path / "again.pt"
    saved = load_pt(at / "conditioning-prompt.pt", RESULT)
    assert saved["ids"] == ids and saved["meta"]["into"] == "prompt"
    adapt.main(f"apply --adapter {at}/adapter-prompt.pt --features {at} --out {again}".split())
    assert torch.equal(load_pt(again, RESULT)["embeds"], saved["embeds"])


def test_bad_input_costs_one_sentence(made, tmp_path, refused):
    folder, line, *_ = made
    index = load_yaml(folder / "latents/index.yaml")
    half = {"latents": load_features(folder / "latents")[1]("latents") / 2 + 1}  # normalised one way only
    plant_features(tmp_path / "half", index["ids"], half, folder / "data", size=64)
    save_yaml(tmp_path / "other/index.yaml", index | {"ids": index["ids"][::-1]})
    save_yaml(tmp_path / "align.yaml", {"stage": "align", "linear_r2_layer": None})  # no layer has a grid
    alone = {"latents": None, "vae": None, "evaluator": None, "random": None}
    bad = {"the smallest queries adapter": {"job": "scaling", "adapters": "queries"}}
    bad["no layer is given"] = {"job": "prompt", **alone, "point": None}
    bad["does not hold latents of"] = {"latents": tmp_path / "half"}
    bad["same items"] = {"latents": tmp_path / "other"}
    bad["linear_r2_layer"] = {"point": None, "align": tmp_path / "align.yaml"}
    for words, new in bad.items():
        refused(lambda given=new: adapt.main(changed(line, **given)), words)
    apply = f"apply --adapter {folder}/adapter.pt --features {folder}/features".split()
    refused(lambda: adapt.main(apply), "gives latents")
