"""Prediction in latent space: found where the future can be known, not found where it cannot, and never by having seen it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import changed, plant_features, random_autoencoder
from torch.nn import functional as F

import data
import extract
import metrics
import predict
from common import load_features, load_items, load_yaml, write_items
from stats import signed_rank

PAST, LENGTH, N = 4, 14, 90
NAMES = [f"clip-{k}" for k in range(N)]


def world(folder, kind):
    """Clips whose future has one of four colours, which the tokens of the past name and no frame of it shows ("known"); whose every frame is noise, and so are the tokens ("noise");
    or whose frames never change ("still"). Returns the command line."""
    g = torch.Generator().manual_seed(1)
    which = torch.arange(N) % 4
    colours = torch.tensor([[220, 40, 40], [40, 200, 60], [50, 60, 220], [230, 220, 60]])
    frames = torch.randint(0, 256, (N, LENGTH, 32, 32, 3), generator=g).byte()
    frames = F.interpolate(frames.flatten(0, 1).permute(0, 3, 1, 2).float(), scale_factor=0.25, mode="area")
    frames = (
        frames.repeat_interleave(4, 2)
        .repeat_interleave(4, 3)
        .byte()
        .permute(0, 2, 3, 1)
        .unflatten(0, (N, LENGTH))
    )
    if kind == "known":
        fading = (1 - 0.04 * torch.arange(LENGTH - PAST)).view(1, -1, 1, 1, 1)
        frames[:, PAST:] = (colours[which][:, None, None, None] * fading).byte()
    if kind == "still":
        frames = frames[:, :1].expand_as(frames).clone()
    items = []
    for name, f, action in zip(NAMES, frames, which.tolist(), strict=True):
        items.append(
            {
                "id": name,
                "source": name,
                "width": 32,
                "height": 32,
                "frames": f.clone(),
                "action": str(action),
            }
        )
    write_items(folder / "clips", items, {"data": "synthetic", "name": "clips"})
    for name, first, count in (("past", 0, PAST), ("last", PAST - 1, 1)):
        data.main(
            f"cut --clips {folder}/clips --first {first} --frames {count} --out {folder}/{name}".split()
        )
        t = max(count // 2, 1)
        told = F.one_hot(which, 4).view(N, 1, 1, 1, 4).expand(-1, t, 2, 2, -1) * float(kind == "known")
        x = told + 0.1 * torch.randn(N, t, 2, 2, 4, generator=g)
        plant_features(folder / f"{name}-features", NAMES, {"language.0": x}, folder / name, size=32)
    torch.manual_seed(0)
    vae = random_autoencoder(patch_size=8, scaling=(False,))
    vae.latents_mean.zero_()  # what is noise must stay noise: with a common mean all latents are alike
    vae.latents_std.fill_(1)
    vae.save_pretrained(folder / "vae")
    own = f"--data {folder}/clips --features {folder}/past-features --last {folder}/last-features --vae {folder}/vae --out {folder}/predict-latents.yaml"
    return f"{own} --past {PAST} --size 32 --seeds 2 --epochs 30 --batch 16 --lr 3e-3".split()


def run(line, *more, **new):
    return predict.main(changed(line, **new) + list(more))


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    line = world(folder, "known")
    return folder, line, run(line, variants="sanity,single,multi,causal,delta,contrastive")


# ---------------------------------------------------------------- nulls, then what can be known


def test_noise_is_not_predictable_though_everything_beats_its_copy(tmp_path):
    found = run(world(tmp_path, "noise"), "--no-scaling", variants="multi,delta")
    rows = found["variants"]
    assert found["predicts"] == "none"
    # a mean is nearer to noise than other noise is: copy alone would be a floor that flatters
    assert rows["multi"]["gain"] > 0.1
    assert all(rows[n]["gain_over_mean_future"] < 0.01 for n in ("multi", "delta"))
    assert found["criteria"]["prediction"]["gain_low"] <= 0
    assert found["criteria"]["prediction"]["floor_name"] in ("mean_future", "blind", "latents")


@pytest.mark.slow
def test_where_nothing_moves_copying_is_perfect_and_nothing_gains(tmp_path):
    found = run(world(tmp_path, "still"), "--no-scaling", variants="delta")
    assert found["cosine_copy"] == pytest.approx(1)
    assert found["baselines"]["flow"]["l1"] <= found["baselines"]["oracle"]["l1"] + 0.05
    assert found["predicts"] == "none" and found["variants"]["delta"]["gain_high"] <= 1e-9
    assert found["motion"] == pytest.approx([0, 0, 0, 0])


def test_a_future_that_the_tokens_name_is_found_predictable(known):
    folder, _, found = known
    # a difference has to take the present's noise away as well, which takes longer
    assert {"single", "multi", "causal"} <= set(found["predicts"].split(", "))
    rows, c = found["variants"], found["criteria"]["prediction"]
    assert rows["multi"]["cosine"] > 0.9
    assert max(rows["blind"]["cosine"], rows["latents"]["cosine"]) < rows["multi"]["cosine"] - 0.1
    assert c["gain_low"] > 0 and c["floors"].keys() == {"copy", "mean_future", "nearest", "blind", "latents"}
    assert found["variant"] in rows and found["gain"] > 0.3
    assert not rows["multi"]["static"] and rows["multi"]["p_holm"] < 0.01
    assert set(found["horizons"]["multi"]) == {1, 2, 4, 8}
    # it reconstructs the present, and predicts nothing
    assert "sanity" not in rows and found["sanity_cosine"] > found["sanity_cosine_mean"] - 0.05
    assert load_yaml(folder / "predict-latents.yaml", "predict")["cosine"] == pytest.approx(
        found["cosine"], rel=1e-4
    )
    assert not (folder / "predict-latents.training").exists()


def test_the_oracle_is_the_ceiling_copy_has_neither_gain_nor_skill_and_more_clips_are_better(known):
    rows, scaling = known[2]["baselines"], known[2]["scaling"]
    assert rows["oracle"]["cosine"] == pytest.approx(1) and rows["oracle"]["skill"] == pytest.approx(1)
    assert rows["oracle"]["movement"] == pytest.approx(1)
    assert rows["copy"]["gain"] == 0 and rows["copy"]["skill"] == 0 and rows["copy"]["static"]
    assert rows["copy"]["p"] == 1
    assert all(rows["oracle"]["l1"] <= rows[n]["l1"] for n in ("copy", "linear", "mean_future", "nearest"))
    sizes, errors = list(scaling["sizes"]), [r["error"] for r in scaling["sizes"].values()]
    assert len(sizes) == 5 and sizes == sorted(sizes) and sizes[-1] == known[2]["train_clips"]
    assert errors[-1] < errors[0] and scaling["fit"]["exponent"] > 0 and scaling["copy_error"] > errors[-1]


# ---------------------------------------------------------------- leaks


@pytest.mark.slow
def test_features_of_the_past_do_not_change_with_the_future(tmp_path):
    data.main(f"moving --n 4 --frames 12 --out {tmp_path}/clips".split())
    items, _ = load_items(tmp_path / "clips")
    for k, i in enumerate(items):
        i["frames"] = i["frames"].clone()
        i["frames"][4:] = k
    write_items(tmp_path / "other", items, {"data": "synthetic", "name": "clips"})
    for name in ("clips", "other"):
        data.main(f"cut --clips {tmp_path}/{name} --frames 4 --out {tmp_path}/{name}-past".split())
        extract.main(
            f"--model tiny --data {tmp_path}/{name}-past --points language.0,language.1 --out {tmp_path}/{name}-features".split()
        )
    (a, read_a), (_, read_b) = (load_features(tmp_path / f"{name}-features") for name in ("clips", "other"))
    assert all(torch.equal(read_a(p), read_b(p)) for p in ("language.0", "language.1"))
    assert a["points"]["language.0"]["shape"][0] == 2


def test_features_that_may_have_seen_the_future_are_refused(known, refused, tmp_path):
    folder, line, _ = known
    data.main(f"cut --clips {folder}/clips --frames {PAST + 1} --out {tmp_path}/longer".split())
    for path in (folder / "clips", tmp_path / "longer"):
        plant_features(tmp_path / "x", NAMES, {"language.0": torch.randn(N, 2, 2, 2, 4)}, path)
        refused(
            lambda: run(line, features=tmp_path / "x"),
            "may have seen the future",
            f"--first 0 --frames {PAST}",
        )
    refused(lambda: run(line, features=folder / "last-features"), f"is not frames 0 to {PAST - 1}")
    refused(lambda: run(line, last=folder / "past-features"), f"is not frames {PAST - 1} to {PAST - 1}")


def test_the_time_of_a_prediction_that_is_some_frames_off_is_found():
    z = torch.cumsum(torch.randn(20, 30, 2, 2, 3, generator=torch.Generator().manual_seed(0)), 1)
    facts = {"args": SimpleNamespace(past=8), "length": 30, "z": z, "split": {"test": torch.arange(20)}}
    w = SimpleNamespace(**facts, horizons=[1, 2, 4, 8, 16])
    for shift in metrics.SHIFTS:
        own = torch.stack([z[:, 7 + h + shift] for h in w.horizons], 1)[None]
        assert predict.best_shift(w, own) == shift
    # a copy is most like the earliest truth there is
    assert predict.best_shift(w, z[:, 7:8].expand(-1, 5, -1, -1, -1)[None]) == -2
    assert predict.best_shift(SimpleNamespace(**facts, horizons=[1]), own[:, :, :1]) is None


def test_a_causal_past_sees_nothing_later_and_a_joined_one_does():
    x, seen = torch.randn(3, 4, 2, 2, 5), []
    later = x.clone()
    later[:, 3] = torch.randn(3, 2, 2, 5)
    for time in ("causal", "both"):
        torch.manual_seed(0)
        m = predict.Predictor((4, 2, 2, 5), (2, 2), 3, [1, 2], time).eval()
        m.over_time.register_forward_hook(lambda module, given, out: seen.append(out))
        with torch.no_grad():
            for given in (x, later):
                m(
                    given,
                    torch.zeros(3, dtype=torch.long),
                    torch.zeros(3, 2, 2, 3),
                    torch.zeros(3, dtype=torch.long),
                )
    assert torch.allclose(seen[0][:, :3], seen[1][:, :3], atol=1e-6)
    assert not torch.allclose(seen[2][:, :3], seen[3][:, :3], atol=1e-3)


# ---------------------------------------------------------------- parts


def test_a_difference_starts_as_a_copy():
    present = torch.randn(3, 2, 2, 3)
    z = predict.Predictor((4, 2, 2, 5), (2, 2), 3, [1, 2], "causal", delta=True)(
        torch.randn(3, 4, 2, 2, 5), torch.tensor([0, 1, 0]), present, torch.zeros(3, dtype=torch.long)
    )
    assert torch.equal(z, present)


@pytest.mark.parametrize(
    ("grid", "shape"),
    [
        ((4, 8, 8, 3), (4, 4, 4, 12)),
        ((1, 12, 12, 3), (1, 6, 6, 12)),
        ((2, 6, 6, 3), (2, 6, 6, 3)),
        ((1, 16, 16, 3), (1, 4, 4, 48)),
        ((1, 13, 13, 3), (1, 6, 6, 3)),
        ((1, 1, 9, 3), (1, 1, 6, 3)),
        ((1, 96, 96, 2), (1, 6, 6, 2)),
    ],
)
def test_neighbours_are_put_together_without_loss_where_the_grid_allows(grid, shape):
    x = torch.randn(2, *grid)
    y = predict.merged(x)
    assert tuple(y.shape[1:]) == shape
    if x.numel() == y.numel():
        assert torch.equal(x.flatten().sort().values, y.flatten().sort().values)
        assert torch.equal(y[:, :, 0, 0, :3], x[:, :, 0, 0])


def test_info_nce_is_cross_entropy_and_minds_the_present():
    g = torch.Generator().manual_seed(0)
    truth, hard = torch.randn(5, 2, 3, generator=g), torch.randn(5, 2, 2, 3, generator=g)
    own, losses = truth + 0.1 * torch.randn(truth.shape, generator=g), []
    for k in range(5):
        others = F.normalize(torch.cat([truth, hard[k]]).flatten(1), dim=1)
        similar = others @ F.normalize(own[k].flatten(), dim=0) / predict.TEMPERATURE
        losses.append(-similar.log_softmax(0)[k])
    assert torch.allclose(predict.info_nce(own, truth, hard), torch.stack(losses).mean(), atol=1e-6)
    assert predict.info_nce(hard[:, 0], truth, hard) > predict.info_nce(own, truth, hard) + 1
    # where the present is the truth it is no negative
    alone = predict.info_nce(truth, truth, truth[:, None])
    assert torch.allclose(alone, predict.info_nce(truth, truth, -truth[:, None]), atol=1e-5)


@pytest.mark.slow
def test_action_is_told_and_so_never_chosen_nor_said_to_predict(known):
    folder, line, _ = known
    found = run(line, "--no-scaling", variants="action,single", out=str(folder / "told.yaml"))
    assert found["variant"] == "single" and found["predicts"] == "single"
    assert found["variants"]["action"]["gain"] > 0.3


@pytest.mark.slow
def test_an_untrained_network_is_a_floor_where_its_features_are_given(known, refused, tmp_path):
    folder, line, _ = known
    for name, ids in (("random", NAMES), ("other", NAMES[::-1])):
        plant_features(tmp_path / name, ids, {"language.0": torch.randn(N, 2, 2, 2, 4)}, folder / "past")
    more = {"variants": "single", "random": tmp_path / "random", "out": folder / "untrained.yaml"}
    found = run(line, "--no-scaling", **more)
    assert "untrained" in found["criteria"]["prediction"]["floors"] and found["predicts"] == "single"
    assert found["variants"]["untrained"]["cosine"] < found["variants"]["single"]["cosine"]
    refused(lambda: run(line, random=tmp_path / "other"), "--random")


def test_signed_rank_is_scipys_over_means_of_sources_and_small_no_oftener_than_it_says_where_there_is_nothing():
    from scipy.stats import wilcoxon

    g = torch.Generator().manual_seed(0)
    x = torch.randn(12, generator=g)
    assert signed_rank(x, list("abcdefghijkl")) == wilcoxon(x.double().numpy()).pvalue
    assert signed_rank(x, list("aabbccddeeff")) == wilcoxon(x.double().view(6, 2).mean(1).numpy()).pvalue
    assert signed_rank(torch.zeros(4), list("abcd")) == 1.0
    draws = torch.tensor([signed_rank(torch.randn(20, generator=g), list(range(20))) for _ in range(1000)])
    assert all(abs((draws < p).float().mean() - p) < 0.05 for p in (0.05, 0.25, 0.5, 0.75))


def test_a_planted_power_law_is_found():
    n = np.array([10, 20, 40, 80, 160])
    fit = predict.power_law(n.tolist(), (0.1 + 0.3 * (n / 160) ** -0.5).tolist())
    assert fit["floor"] == pytest.approx(0.1, abs=0.01) and fit["exponent"] == pytest.approx(0.5, abs=0.05)
    assert predict.power_law([1, 2], [0.2, 0.1]) is None


def test_flow_carries_on_what_moves_and_leaves_what_stands():
    films = torch.full((2, 14, 48, 48, 3), 90, dtype=torch.uint8)
    for t in range(14):
        films[0, t, 20:30, 6 + 2 * t : 16 + 2 * t] = torch.tensor([240, 200, 30], dtype=torch.uint8)
    films[1, :, 20:30, 10:20] = 200
    on = metrics.carried_on(films[:, :6], 8)
    errors = metrics.pixel_errors(on, films[:, 6:], films[:, 5])
    copied = metrics.pixel_errors(films[:, 5:6].expand_as(films[:, 6:]), films[:, 6:], films[:, 5])
    assert (errors["l1"][0] < 0.6 * copied["l1"][0]).all() and torch.equal(on[1], films[1, 6:])
    assert errors["moving_l1"][1].isnan().all() and (errors["still_l1"][1] == 0).all()
    whole = metrics.pixel_errors(films[:, 6:], films[:, 6:], films[:, 5])
    assert (whole["l1"] == 0).all()


@pytest.mark.slow
def test_lora_starts_as_the_frozen_model_and_reads_the_rows_that_extract_reads(tmp_path):
    data.main(f"moving --n 40 --frames 9 --out {tmp_path}/clips".split())
    data.main(f"cut --clips {tmp_path}/clips --first 0 --frames 4 --out {tmp_path}/past".split())
    extract.main(
        f"--model tiny --data {tmp_path}/past --points language.0,language.1 --out {tmp_path}/features".split()
    )
    found = predict.main(
        f"--data {tmp_path}/clips --features {tmp_path}/features --past 4 --variants lora,language --seeds 1 --epochs 6 --no-scaling --out {tmp_path}/x.yaml".split()
    )
    assert list(found["variants"])[:2] == ["language", "lora"]
    assert found["variants"]["lora"]["cosine"] != found["variants"]["language"]["cosine"]
    # goes on from there
    assert found["training"]["lora"]["steps"][0] < found["training"]["language"]["steps"][0]


# ---------------------------------------------------------------- what is refused


def test_bad_input_costs_one_sentence(known, refused):
    def check(*words, **new):
        refused(lambda: run(known[1], **new), *words)

    check("unknown variant 'detla'", "delta", variants="detla")
    check("--features", features=None)
    check("give --last its features", last=None, variants="single")
    check("--point language.9", "language.0", point="language.9")
    check("a vae is needed", vae="tiny-dinov2")
    check("may have seen the future", past=PAST + 1)
