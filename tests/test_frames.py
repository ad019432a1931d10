"""Which frames of a clip are shown: motion gets the budget; flicker, noise and shake do not; of a video only what is needed is decoded."""

import contextlib

import av
import numpy as np
import pytest
import torch

import common
import data
import explain
import extract
import media
import synthetic
from common import load_items
from media import CHOICES, choose_frames, frames_at, motion_of, placed, presented

T, K, SIDE = 60, 12, 128


@pytest.fixture(scope="module")
def photograph():
    """Grey [H, W], 0 to 255, from dark to over-exposed."""
    from skimage.data import astronaut

    return astronaut().mean(-1)


def clip(photograph, moving=None, noise=0, flicker=0, shake=0, when=slice(None), seed=0, side=SIDE):
    """uint8 [T, side, side, 3]: a disc that goes 4 px a frame while `moving` (from, to) and else stands, before a photograph; what disturbs does so in the frames `when`.

    noise: grey levels; flicker: of the brightness, and as much of an offset of 60; shake: px in each direction. All standard deviations.
    """
    rng = np.random.default_rng(seed)
    x = 20.0
    out = []
    y = np.mgrid[:side, :side]
    here = np.zeros(T)
    here[when] = 1
    for t in range(T):
        x += 4 * bool(moving and moving[0] < t <= moving[1])
        down, right = (rng.normal(size=2).clip(-3, 3) * shake * here[t]).round().astype(int)
        frame = photograph[120 + down : 120 + down + side, 120 + right : 120 + right + side].copy()
        frame[np.hypot(y[0] + down - 64, y[1] + right - x) < 9] = 220
        frame = frame * (1 + here[t] * flicker * rng.normal()) + here[t] * (
            60 * flicker * rng.normal() + noise * rng.normal(size=frame.shape)
        )
        out.append(frame.clip(0, 255).round())
    return torch.from_numpy(np.stack(out)).byte()[..., None].expand(-1, -1, -1, 3).contiguous()


DISTURBED = {"nothing": {}, "noise": {"noise": 10}, "flicker": {"flicker": 0.05}, "shake": {"shake": 2}}
DISTURBED["all three"] = {"noise": 6, "flicker": 0.04, "shake": 1.5}


# ---------------------------------------------------------------- nothing moves


@pytest.mark.parametrize("when", [slice(None), slice(20, 40)], ids=["throughout", "in a third"])
@pytest.mark.parametrize("how", DISTURBED)
def test_where_nothing_moves_flicker_noise_and_shake_leave_the_choice_nearly_uniform(photograph, how, when):
    chosen = choose_frames(clip(photograph, when=when, **DISTURBED[how]), K)
    assert (chosen[0], chosen[-1], len(set(chosen))) == (0, T - 1, K)
    even = (T - 1) / (K - 1)
    assert 0.5 * even <= np.diff(chosen).min() and np.diff(chosen).max() <= 1.8 * even, chosen


# ---------------------------------------------------------------- something does


@pytest.mark.parametrize("how", DISTURBED)
def test_the_budget_goes_where_something_moves_whatever_disturbs(photograph, how):
    chosen = choose_frames(clip(photograph, moving=(35, 50), **DISTURBED[how]), K)
    inside = sum(35 <= n <= 50 for n in chosen)
    # a quarter of the clip, 3 of 12 by chance
    assert (chosen[0], chosen[-1]) == (0, T - 1) and inside >= 8, chosen
    assert (
        sum(35 <= n <= 50 for n in choose_frames(clip(photograph, moving=(5, 20), **DISTURBED[how]), K)) <= 3
    )


def test_a_steady_motion_is_shown_evenly():
    for item in list(synthetic.moving(12, 64, 7))[::2]:
        assert choose_frames(item["frames"], 8) == choose_frames(item["frames"], 8, "uniform")


def test_what_moves_is_no_shake_and_what_fades_no_motion(photograph):
    x = clip(photograph, moving=(0, T))
    moving, still = motion_of(x), motion_of(clip(photograph, flicker=0.05))
    assert len(moving) == T and moving[0] == 0 and moving[1:15].min() > 10 * still.max()
    plain = torch.full((20, 64, 64, 3), 120, dtype=torch.uint8)  # nothing but the disc could be registered
    for t in range(20):
        plain[t, 20:40, 10 + t : 30 + t] = 200
    assert motion_of(plain)[1:].min() > 5 * still.max()


# ---------------------------------------------------------------- what must be kept


def test_first_last_and_boundary_frame_are_shown_and_no_gap_is_larger_than_allowed(photograph):
    x = clip(photograph, moving=(35, 50))
    assert np.diff(choose_frames(x, 8)).max() > 12
    chosen = choose_frames(x, 8, boundary=7, largest_gap=12)
    assert (
        {0, 7, T - 1} <= set(chosen) and np.diff(chosen).max() <= 12 and len(chosen) == 8 == len(set(chosen))
    )
    assert sum(35 <= n <= 50 for n in chosen) >= 2
    for how in ("motion", "uniform"):
        assert choose_frames(x, 3, how, boundary=22) == [0, 22, T - 1]
        assert max(np.diff(choose_frames(x, 11, how, largest_gap=6))) <= 6


@pytest.mark.parametrize("how", CHOICES)
def test_every_way_gives_k_different_frames_in_order_and_the_same_ones_again(photograph, how):
    x = clip(photograph, moving=(10, 30), noise=3)
    for k in (1, 2, 5, T):
        chosen = choose_frames(x, k, how, seed=(3, 1))
        assert (
            chosen == sorted(set(chosen)) == choose_frames(x.numpy(), k, how, seed=(3, 1))
            and len(chosen) == k
            and 0 <= chosen[0] <= chosen[-1] < T
        )


def test_uniform_is_even_random_follows_the_seed_and_scenes_share_by_length(photograph):
    assert choose_frames(torch.zeros(17, 8, 8, 3).byte(), 5, "uniform") == [0, 4, 8, 12, 16]
    assert choose_frames(torch.zeros(17, 8, 8, 3).byte(), 1, "uniform") == [8]
    x = clip(photograph)
    drawn = np.array([choose_frames(x, K, "random", seed) for seed in range(200)])
    assert len(np.unique(drawn, axis=0)) > 190 and abs(drawn.mean() - (T - 1) / 2) < 1.5
    x[40:] = 255 - x[40:] // 2  # another shot
    assert media.shots_of(x) == ([0, 40], T)
    assert choose_frames(x, 3, "scene") == [10, 30, 50]
    assert choose_frames(x[:40], 4, "scene") == [5, 15, 25, 35]


def test_shares_are_equal_as_the_best_of_all_choices(photograph):
    import itertools

    steps = np.random.default_rng(0).exponential(size=12)
    for must, gap in (((), None), ((5,), None), ((), 4), ((3, 8), 5)):

        def cost(chosen):
            return sum((steps[a + 1 : b + 1].sum()) ** 2 for a, b in itertools.pairwise(chosen))

        allowed = [
            (0, *c, 11)
            for c in itertools.combinations(range(1, 11), 4)
            if set(must) <= set(c) and max(np.diff((0, *c, 11))) <= (gap or 12)
        ]
        assert cost(placed(steps, 6, must, gap)) == pytest.approx(min(map(cost, allowed)), rel=1e-6)
    assert placed(steps, 3, (), 4) is None is placed(steps, 2, (5,))


def test_what_cannot_be_is_refused_in_one_sentence(refused, tmp_path):
    x = torch.zeros(10, 8, 8, 3).byte()
    refused(lambda: choose_frames(x, 11), "11 of 10 frames", "1 to 10")
    refused(lambda: choose_frames(x, 3, "uniform", largest_gap=3), "3 of 10 frames", "more than 3")
    refused(lambda: choose_frames(x, 3, "random", boundary=5), "random", "boundary")
    (tmp_path / "text.mp4").write_text("no video")
    refused(lambda: choose_frames(tmp_path / "text.mp4", 3), "text.mp4", "cannot be read")


# ---------------------------------------------------------------- files


def film(path, frames, keys=20, codec="libx264", **options):
    """A video with a key frame every `keys` frames."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=15)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.gop_size = "rgb8" if codec == "gif" else "yuv420p", keys
        stream.options = (
            {"crf": "12", "b": "0"} if codec == "libvpx-vp9" else {"crf": "12", "sc_threshold": "0"} | options
        )
        for frame in frames.numpy():
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        file.mux(stream.encode())
    return path


@pytest.fixture
def decoded(monkeypatch):
    """How many frames PyAV hands out, counted where it does."""
    count, opener = [0], media.opened

    class Counted:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def decode(self, *args, **kwargs):
            for frame in self.file.decode(*args, **kwargs):
                count[0] += 1
                yield frame

    @contextlib.contextmanager
    def counting(path):
        with opener(path) as file:
            yield Counted(file)

    monkeypatch.setattr(media, "opened", counting)
    return count


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.avi"])
def test_a_video_gives_the_frames_asked_for_and_decodes_no_more_than_from_their_key_frames(
    tmp_path, photograph, decoded, name
):
    x = clip(photograph, moving=(35, 50))
    path = film(tmp_path / name, x, codec="libvpx-vp9" if name.endswith("webm") else "libx264")
    assert len(presented(path)) == T and decoded == [0]
    got, n = frames_at(path, [2, 21, 24, 59])
    assert (got.float() - x[[2, 21, 24, 59]].float()).abs().mean((1, 2, 3)).max() < 4
    assert [(got[i].float() - x.float()).abs().mean((1, 2, 3)).argmin().item() for i in (0, 3)][0] <= 35
    assert decoded == [n] and (name.endswith("avi") or n == 3 + 5 + 20)  # AVI holds no time stamps


ENCODED = {
    "a.mp4": ("libx264", {}),
    "a.ts": ("mpeg2video", {"bf": "2"}),
    "a.webm": ("libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "open.mkv": ("libx264", {"x264-params": "open-gop=1:bframes=4:keyint=20"}),
    "a.gif": ("gif", {}),
    "a.avi": ("libx264", {}),
}


@pytest.mark.parametrize("name", ENCODED)
def test_the_frame_asked_for_is_the_one_that_comes(tmp_path, name):
    bits = torch.arange(T)[:, None] >> torch.arange(6) & 1  # six stripes, black or white
    numbered = (255 * bits).repeat_interleave(16, 1)[:, None, :, None].expand(T, 32, 96, 3).byte()
    codec, options = ENCODED[name]
    path, asked = film(tmp_path / name, numbered, codec=codec, **options), [59, 0, 33, 34, 20, 19]
    shown = frames_at(path, asked)[0][:, 8:24, :, 0].float().mean(1).unflatten(1, (6, 16)).mean(2) > 127
    assert (shown << torch.arange(6)).sum(1).tolist() == asked


def test_motion_is_found_in_a_file_too_and_uniform_decodes_nothing(tmp_path, photograph, decoded):
    x = clip(photograph, moving=(35, 50), side=192)
    path = film(tmp_path / "a.mp4", x)
    assert choose_frames(path, 6, "uniform") == choose_frames(x, 6, "uniform") and decoded == [0]
    assert choose_frames(path, 6, "random", 1) == choose_frames(x, 6, "random", 1)
    chosen = choose_frames(path, K)
    assert decoded == [T] and sum(35 <= n <= 50 for n in chosen) >= 8, chosen
    assert np.diff(choose_frames(film(tmp_path / "still.mp4", clip(photograph)), K)).max() <= 10
    shown, (numbers, length, _) = explain.watched(path, K, 64, "motion")
    assert numbers == chosen and length == T and torch.equal(shown, frames_at(path, chosen, 64)[0])


def test_a_file_that_breaks_off_is_refused(tmp_path, photograph, refused):
    path = film(tmp_path / "a.mkv", clip(photograph))
    refused(lambda: frames_at(path, [60]), "a.mkv has 60 frames", "59")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 8])
    refused(lambda: frames_at(path, [0, 59]), "a.mkv")


# ---------------------------------------------------------------- extract.py --frames


@pytest.fixture(scope="module")
def waiting(tmp_path_factory):
    """24 clips in which something moves in 17 of 41 frames, before they stand still and after."""
    folder = tmp_path_factory.mktemp("data") / "waiting"
    data.main(["moving", "--n", "24", "--wait", "24", "--out", str(folder)])
    return folder


def test_waiting_clips_move_in_the_middle_as_those_they_are_made_of(waiting, moving_folder):
    (items, index), (plain, _) = load_items(waiting), load_items(moving_folder)
    assert index["wait"] == 24 and [i["id"] for i in items] == [i["id"] for i in plain]
    starts = set()
    for item, own in zip(items, plain, strict=True):
        shown, moving = item["frames"].float(), own["frames"].float()
        assert len(shown) == len(item["mask"]) == len(item["boxes"]) == 41 and item["turns"] == own["turns"]
        errors = [(shown[s : s + 17] - moving).abs().mean().item() for s in range(25)]
        starts.add(start := min(range(25), key=errors.__getitem__))
        assert (
            errors[start] < 2 and (shown[-1] - moving[-1]).abs().mean() < 2 and (shown[0] != shown[1]).any()
        )
        assert torch.equal(item["boxes"][start : start + 17], own["boxes"])
    assert len(starts) > 5


def test_features_are_those_of_the_frames_chosen_and_the_index_says_which(
    waiting, small_dino, tmp_path, refused
):
    def go(folder, out, *more):
        command = f"--model {small_dino} --size 48 --points last --data {folder} --out {out}"
        return extract.main([*command.split(), *more])

    motion = ("--frames", "motion", "--count", "6")
    index = go(waiting, tmp_path / "features", *motion)
    items, _ = load_items(waiting)
    assert (index["frames"], index["count"], len(index["shown"])) == ("motion", 6, 24)
    assert index["shown"][3] == choose_frames(items[3]["frames"], 6)
    cut = [i | {"frames": i["frames"][at].clone()} for i, at in zip(items, index["shown"], strict=True)]
    common.write_items(tmp_path / "cut", cut, {"data": "synthetic", "name": "cut"})
    go(tmp_path / "cut", tmp_path / "same")
    for name in index["points"]:
        a, b = (common.load_features(tmp_path / folder)[1](name) for folder in ("features", "same"))
        assert a.shape[1] == 6 and torch.equal(a, b)
    refused(
        lambda: go(waiting, tmp_path / "features", "--frames", "uniform", "--count", "6"),
        "frames",
        "delete the folder",
    )
    assert go(waiting, tmp_path / "features", *motion)["shown"] == index["shown"]


WRONG = {
    "--frames moton": "motion",
    "--frames motion,uniform": "'motion,uniform'",
    "--frames motion --count 99": "41 frames",
    "--frames motion --count 5 --largest-gap 9": "41 frames",
    "--frames random --largest-gap 9": "motion",
    "--largest-gap 9": "--frames",
}


@pytest.mark.parametrize("given", WRONG)
def test_wrong_choices_of_frames_are_refused_before_a_model_is_loaded(waiting, tmp_path, refused, given):
    command = f"--model tiny --data {waiting} --out {tmp_path}/out {given}"
    refused(lambda: extract.main(command.split()), WRONG[given])


@pytest.mark.slow
def test_ways_are_compared_at_equal_frames_and_at_equal_time_and_nothing_is_asked_twice(waiting, tmp_path):
    out = tmp_path / "frames.pt"
    command = f"frames --model tiny --data {waiting} --frames motion,uniform,random --count 8 --out {out}"
    found = explain.main(command.split())
    equal = {"motion8", "uniform8", "random8"}
    assert (
        equal <= set(found["ways"])
        and found["first"] == "motion8"
        and set(found["gains"]) == set(found["ways"]) - {"motion8"}
    )
    kept = common.load_pt(out, common.ANSWERS)
    truth = {i["id"]: i["direction"] for i in load_items(waiting)[0]}
    for name, row in found["ways"].items():
        said, count = kept["answers"][name], int("".join(c for c in name if c.isdigit()))
        assert row["right"] == pytest.approx(
            sum(a == truth[i] for a, i in zip(said, kept["ids"], strict=True)) / len(said)
        )
        assert all(len(at) == count for at in kept["facts"][name]["shown"]) and row["seconds_answering"] > 0
    assert found["gain_over_uniform8"] == pytest.approx(found["right_motion8"] - found["right_uniform8"])
    even = min(found["ways"][name]["seconds_answering"] for name in equal)
    most = 8 * (1 + found["ways"]["motion8"]["seconds_choosing"] / even)
    assert found["equal_time"] == [f"uniform{n}" for n in (16, 32) if n <= most]
    written = out.read_bytes()
    assert explain.main(command.split())["ways"] == found["ways"] and out.read_bytes() == written
