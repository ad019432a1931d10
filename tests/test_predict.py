"""predict.py: a future that can be known is predicted, noise is not, and no future frame is ever read."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import changed, holds, plant_features, random_autoencoder
from torch.nn import functional as F

import data
import predict
import predictors
from common import load_yaml, write_items

PAST, LENGTH, N = 4, 14, 90
GRIDS = [((4, 8, 8, 3), (4, 4, 4, 12)), ((2, 6, 6, 3), (2, 6, 6, 3)), ((1, 16, 16, 3), (1, 4, 4, 48))]
GRIDS += [((1, 13, 13, 3), (1, 6, 6, 3)), ((1, 1, 9, 3), (1, 1, 6, 3)), ((1, 96, 96, 2), (1, 6, 6, 2))]
NAMES = [f"clip-{k}" for k in range(N)]
COLOURS = torch.tensor([[220, 40, 40], [40, 200, 60], [50, 60, 220], [230, 220, 60]])


def world(folder, kind):
    """The command line for clips of noise, 32 px. known: the future has one of four colours, which only the
    tokens of the past name; still: no frame differs from the first."""
    g, which = torch.Generator().manual_seed(1), torch.arange(N) % 4
    frames = torch.randint(95, 160, (N, LENGTH, 8, 8, 3), generator=g).byte()
    frames = frames.repeat_interleave(4, 2).repeat_interleave(4, 3)
    if kind == "known":
        fading = (1 - 0.04 * torch.arange(LENGTH - PAST)).view(1, -1, 1, 1, 1)
        frames[:, PAST:] = (COLOURS[which][:, None, None, None] * fading).byte()
    if kind == "still":
        frames = frames[:, :1].expand_as(frames).clone()
    items = [{"id": name, "source": name, "width": 32, "height": 32} for name in NAMES]
    for item, f, k in zip(items, frames, which.tolist(), strict=True):
        item |= {"frames": f.clone(), "action": str(k)}
    write_items(folder / "clips", items, {"data": "synthetic", "name": "clips"})
    cut = f"cut --clips {folder}/clips --first"
    for name, first, count in (("past", 0, PAST), ("last", PAST - 1, 1)):
        data.main(f"{cut} {first} --frames {count} --out {folder}/{name}".split())
        t = max(count // 2, 1)
        x = F.one_hot(which, 4).view(N, 1, 1, 1, 4).expand(-1, t, 2, 2, -1) * float(kind == "known")
        x = x + 0.1 * torch.randn(x.shape, generator=g)
        plant_features(folder / f"{name}-features", NAMES, {"language.0": x}, folder / name, size=32)
    torch.manual_seed(0)
    vae = random_autoencoder(patch_size=8, scaling=(False,))
    vae.latents_mean.zero_()  # with a common mean, latents of noise would be alike
    vae.latents_std.fill_(1)
    vae.save_pretrained(folder / "vae")
    paths = f"--data {folder}/clips --vae {folder}/vae --out {folder}/predict-latents.yaml"
    paths += f" --features {folder}/past-features --last {folder}/last-features"
    return f"{paths} --past {PAST} --size 32 --seeds 1 --epochs 30 --batch 16 --lr 3e-3".split()


def run(line, *more, **new):
    return predict.main([*changed(line, **new), *more])


@pytest.mark.slow
def test_noise_is_not_predictable_and_where_nothing_moves_copying_is_perfect(tmp_path):
    line, how = world(tmp_path / "noise", "noise"), {"seeds": 2, "epochs": 15}
    found = run(line, "--no-scaling", variants="multi,delta", **how)
    rows, record = found["variants"], found["criteria"]["prediction"]
    assert found["predicts"] == "none" and rows["multi"]["gain"] > 0.1  # over copy, as a mean has
    assert all(rows[n]["gain_over_mean_future"] < 0.01 for n in ("multi", "delta"))
    assert record["gain_low"] <= 0 and record["baseline_name"] in ("mean_future", "blind", "latents")
    found = run(world(tmp_path / "still", "still"), "--no-scaling", variants="delta", epochs=5)
    holds(found, "cosine_copy == 1, predicts == none, variants.delta.gain_high <= 0.000000001")
    assert found["baselines"]["flow"]["l1"] <= found["baselines"]["oracle"]["l1"] + 0.05


@pytest.mark.slow
def test_a_future_that_the_tokens_name_is_predicted_and_more_clips_are_better(tmp_path):
    line, noise = world(tmp_path, "known"), {"language.0": torch.randn(N, 2, 2, 2, 4)}
    random = plant_features(tmp_path / "random", NAMES, noise, tmp_path / "past")
    found = run(line, random=random, variants="sanity,single,multi,contrastive,action,pixels")
    assert {"single", "multi", "causal"} <= set(found["predicts"].split(", "))
    rows, record = found["variants"], found["criteria"]["prediction"]
    holds(rows["multi"], "cosine > 0.9, p_holm < 0.01, static == False")
    # pixels goes on from the heads of causal, which are trained for it: half of the steps, at the full rate
    pixels, causal = (found["training"][name] for name in ("pixels", "causal"))
    assert pixels["steps"] == causal["steps"] and pixels["lr"] == causal["lr"] == 3e-3
    assert rows["pixels"]["l1"] < rows["causal"]["l1"] + 0.01
    assert max(rows[n]["cosine"] for n in predict.CONTROLS) < rows["multi"]["cosine"] - 0.1
    assert record["gain_low"] > 0 and found["variant"] in rows and found["gain"] > 0.3
    assert set(record["baselines"]) == {"copy", "mean_future", "nearest", *predict.CONTROLS}
    table, quarters = found["horizons"]["multi"], found["quarters_of_motion"]["multi"].values()
    mean = np.mean([float(row["cosine"]) for row in table.values()])
    assert set(table) == {1, 2, 4, 8} and mean == pytest.approx(float(rows["multi"]["cosine"]))
    assert len(quarters) == 4 and sum(row["clips"] for row in quarters) == found["clips"]
    # action has the answer as input: never chosen, never said to predict
    assert rows["action"]["gain"] > 0.3 and "action" not in (found["variant"], *found["predicts"].split(", "))
    assert "sanity" not in rows and found["sanity_cosine"] > found["sanity_cosine_mean"] - 0.05
    saved = load_yaml(tmp_path / "predict-latents.yaml", "predict")["cosine"]
    assert saved == pytest.approx(found["cosine"], rel=1e-4)
    rows, scaling = found["baselines"], found["scaling"]
    holds(rows["oracle"], "cosine == 1, skill == 1, movement == 1, l1_gain > 0")
    holds(rows["copy"], "gain == 0, skill == 0, static == True, p == 1")
    assert all(rows["oracle"]["l1"] <= rows[n]["l1"] for n in ("copy", "linear", "mean_future", "nearest"))
    sizes, errors = list(scaling["sizes"]), [r["error"] for r in scaling["sizes"].values()]
    assert len(sizes) == 5 and sizes == sorted(sizes) and sizes[-1] == found["train_clips"]
    assert errors[-1] < errors[0] and scaling["copy_error"] > errors[-1]


def test_baselines_read_the_past_and_train_clips(monkeypatch):
    g, n = torch.Generator().manual_seed(0), 12  # random latents and frames; the last four clips are of test
    split = {"train": torch.arange(n - 4).flip(0), "test": torch.arange(n - 4, n)}
    z = torch.randn(n, PAST + 2, 2, 2, 3, generator=g).cumsum(1)
    z[8, :PAST] = z[3, :PAST] + 0.01  # the first test clip is nearest to train clip 3
    now, future = z[:, PAST - 1], z[:, PAST:]
    w = SimpleNamespace(args=SimpleNamespace(past=PAST), split=split, z=z, horizons=[1, 2], length=PAST + 2)
    w.present, w.future, w.vae, w.ahead = now, future, None, [PAST, PAST + 1]
    w.frames = torch.randint(0, 256, (n, PAST + 2, 16, 16, 3), generator=g).byte()
    monkeypatch.setattr(predict.ltx, "encode_generated_clips", lambda vae, x: torch.zeros(len(x), 1, 2, 2, 3))
    latent, pixels = predict.baseline_predictions(w)
    assert torch.equal(latent["copy"][0, :, 1], now[8:]) and torch.equal(latent["oracle"][0], future[8:])
    assert torch.equal(latent["nearest"][0, 0], future[3])
    assert torch.allclose(latent["mean_future"][0, 2], future[:8].mean(0))
    linear = now[8:] + 2 * (now[8:] - z[8:, 0]) / (PAST - 1)
    assert torch.allclose(latent["linear"][0, :, 1], linear, atol=1e-6)
    assert torch.equal(pixels["copy"][:, 1], w.frames[8:, PAST - 1])


def test_causal_attention_reads_nothing_later_and_a_difference_starts_as_a_copy():
    x, seen, none = torch.randn(3, 4, 2, 2, 5), [], torch.zeros(3, dtype=torch.long)
    later, present = torch.cat([x[:, :3], torch.randn(3, 1, 2, 2, 5)], 1), torch.randn(3, 2, 2, 3)
    for time in ("causal", "both"):
        torch.manual_seed(0)
        m = predictors.Predictor((4, 2, 2, 5), (2, 2), 3, 2, time, delta=True).eval()
        m.over_time.register_forward_hook(lambda module, given, out: seen.append(out))
        with torch.no_grad():
            assert all(torch.equal(m(given, none, present, none), present) for given in (x, later))
    assert torch.allclose(seen[0][:, :3], seen[1][:, :3], atol=1e-6)
    assert not torch.allclose(seen[2][:, :3], seen[3][:, :3], atol=1e-3)


@pytest.mark.parametrize(("grid", "shape"), GRIDS)
def test_neighbours_are_merged_without_loss_where_the_grid_allows(grid, shape):
    x = torch.randn(2, *grid)
    y, f = predictors.merged(x), grid[1] // shape[1]
    assert tuple(y.shape[1:]) == shape
    if x.numel() == y.numel():
        assert torch.equal(y[:, :, 1, 0], x[:, :, f : 2 * f, :f].flatten(2))


def test_info_nce_is_cross_entropy_and_ignores_negatives_that_equal_the_truth():
    g = torch.Generator().manual_seed(0)
    truth, hard = torch.randn(5, 2, 3, generator=g), torch.randn(5, 2, 2, 3, generator=g)
    near, loss = truth + 0.1 * torch.randn(truth.shape, generator=g), 0
    for k in range(5):
        similar = F.cosine_similarity(torch.cat([truth, hard[k]]).flatten(1), near[k].flatten(), dim=1)
        loss -= (similar / predictors.TEMPERATURE).log_softmax(0)[k] / 5
    assert torch.allclose(predictors.info_nce(near, truth, hard), loss, atol=1e-6)
    alone = predictors.info_nce(truth, truth, truth[:, None])
    assert torch.allclose(alone, predictors.info_nce(truth, truth, -truth[:, None]), atol=1e-5)


def test_bad_input_and_features_that_may_hold_the_future_cost_one_sentence(tmp_path, refused):
    line, x = world(tmp_path, "known"), {"language.0": torch.randn(N, 2, 2, 2, 4)}
    data.main(f"cut --clips {tmp_path}/clips --frames {PAST + 1} --out {tmp_path}/five".split())
    longer = plant_features(tmp_path / "longer", NAMES, x, tmp_path / "five")
    other = plant_features(tmp_path / "other", NAMES[::-1], x, tmp_path / "past")
    refused(lambda: run(line, past=PAST + 1), "future frames may leak")
    refused(lambda: run(line, last=None, variants="single"), "single needs --last")
    assert run(line, choose=tmp_path / "layers.yaml")["points"] == "language.0"
    refused(lambda: run(line, features=longer), "future frames may leak", f"--first 0 --frames {PAST}")
    refused(lambda: run(line, random=other), "--random")
    refused(lambda: run(line, last=tmp_path / "past-features"), f"is not frames {PAST - 1} to {PAST - 1}")
