"""What comes next (video.py continue, futures): films whose answer is known, the windows, what a film may know, what is refused, what a kill leaves."""

import pytest
import torch
from helpers import changed, video_world

import common
import metrics
import models
import stats
import video
from common import RESULT, load_items, load_pt, load_yaml, split_of, write_items


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, arguments, result) of a run on squares that move right, 7 frames of 32 px, 3 of them seen, with a small random pipeline whose films have 5."""
    folder = tmp_path_factory.mktemp("continue")
    video_world(folder)
    own = (
        f"--model {folder}/ltx --judge {folder}/judge --data {folder}/data --out {folder}/video-continue.yaml"
    )
    arguments = f"{own} --frames 5 --size 32 --steps 2 --past 3 --horizon 4".split()
    return folder, arguments, video.main(["continue", *arguments])


@pytest.fixture
def drawn(made, monkeypatch, tmp_path):
    """Run the stage with films that are `new(shown frames, number of the window)` after the frames shown, without pictures."""

    def run(new, job="continue", **more):
        def films(run, timesteps, ids, shape, shown, prompt, seed, **rest):
            given = shown[0][1]
            return torch.cat([given, new(given, int(str(seed).split()[1]))], 1)[:, : shape[0]]

        monkeypatch.setattr(video, "films", films)
        for name in ("continued_picture", "futures_picture"):
            monkeypatch.setattr(video, name, lambda *args: None)
        return video.main([job, *changed(made[1], out=tmp_path / "x.yaml", **more)])

    return run


def held_out(folder):
    return [i for i in load_items(folder / "data")[0] if split_of(i["source"]) == "test"]


def hold(given, number):
    """A film that goes on with the last frame shown."""
    return given[:, -1:].expand(-1, 4, -1, -1, -1)


# ---------------------------------------------------------------- nulls and plants


def test_films_that_hold_the_last_frame_gain_nothing_over_copy_and_are_named_static(drawn):
    found = drawn(hold, continuations="past,first")
    assert found["static"] and found["l1"] == found["l1_copy"] > 0
    assert found["moving_l1"] == found["moving_l1_copy"] and found["temporal_ratio"] == 0
    for prefix in ("", "moving_"):
        assert [
            found[f"{prefix}gain_over_copy{end}"] for end in ("", "_low", "_high", "_p", "_p_wilcoxon")
        ] == [0, 0, 0, 1, 1]
        assert found[f"{prefix}gain_over_flow"] < 0  # the squares go on as they went
    assert found["direction_right"] == 0 and found["direction_right_real"] == 1
    assert found["criteria"]["temporal_ratio"]["gain"] <= 0
    table = found["continuations"]
    assert table["copy"]["static"] and table["mean"]["l1"] > 0 and not table["vae"]["static"]


def test_films_that_equal_the_reconstruction_reach_the_ceiling(made, drawn):
    vae = load_pt(made[0] / "video-continue-parts" / "vae.pt", RESULT)["films"]
    found = drawn(lambda given, number: vae[:, 2 * number : 2 * number + 2], continuations="past")
    table, criteria = found["continuations"], found["criteria"]
    assert table["past"] == table["vae"] and table["past"]["decoded_closeness"] == 1
    for m in ("temporal_ratio", "l1", "moving_l1"):
        assert criteria[m]["score"] == pytest.approx(criteria[m]["ceiling"])
    for row in found["horizons"].values():
        assert all(row["past"][m] == row["vae"][m] for m in ("l1", "moving_l1"))


@pytest.mark.parametrize("shift", [-2, -1, 0, 1, 2])
def test_films_that_run_ahead_or_lag_are_told_by_how_many_frames(made, drawn, shift):
    clips = torch.stack([i["frames"] for i in held_out(made[0])])
    found = drawn(
        lambda given, number: clips[:, (torch.arange(2) + 3 + 2 * number + shift).clamp(max=6)],
        continuations="past",
    )
    assert found["best_shift"] == shift and found["continuations"]["real"]["best_shift"] == 0
    if shift == 0:
        assert found["l1"] == 0 and found["direction_right"] == 1
        assert found["temporal_ratio"] == pytest.approx(1) and found["gain_over_copy_low"] > 0


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize(
    "j, asked",
    [
        (5, [[3, 4, 5, 6, 7], [7, 8, 9, 10, 11], [11, 12, 13, 14, 15], [15, 16, 17, 18, 19]]),
        (1, [[7], [11, 12, 13, 14, 15], [15, 16, 17, 18, 19]]),
        (0, [[], [12, 13, 14, 15, 16], [16, 17, 18, 19, 20]]),
    ],
)
def test_windows_go_on_from_the_last_frames_there_are(j, asked):
    """Frames are numbers, the last one seen 7; a film of 9 goes on from what it is shown, and from nothing at 8."""
    # r*j+1 of them, at most half of a film
    for past, frames, r, k in ((8, 9, 2, 5), (8, 17, 8, 1), (9, 17, 8, 9), (4, 9, 2, 3), (1, 9, 2, 1)):
        assert video.span(past, frames, r) == k
    seen = []

    def shoot(given, number):
        seen.append((given.flatten().tolist(), number))
        start = int(given[0, 0, 0, 0, 0]) if given.shape[1] else 8
        return (start + torch.arange(9)).view(1, 9, 1, 1, 1)

    out = video.continued(shoot, torch.arange(8).view(1, 8, 1, 1, 1)[:, 8 - j :], 5, 16)
    assert out.flatten().tolist() == list(range(8, 24))
    assert seen == [(x, n) for n, x in enumerate(asked)]


def test_the_first_window_is_shown_the_frames_before_the_horizon_and_noise_and_prompt_are_its_own(
    made, tmp_path, monkeypatch
):
    folder, arguments, _ = made
    clips, asked, films = torch.stack([i["frames"] for i in held_out(folder)]), [], video.films
    monkeypatch.setattr(video, "films", lambda *args, **more: asked.append(args) or films(*args, **more))
    video.main(
        [
            "continue",
            *changed(arguments, out=tmp_path / "x.yaml", seeds=2, continuations="past,first+text,text"),
        ]
    )
    shown = [args[4][0][1] if args[4] else None for args in asked]
    assert len(asked) == 2 * (2 + 1 + 1)  # past has 2 new frames a film, first 4, text 5
    assert torch.equal(shown[0], clips[:, :3]) and torch.equal(shown[1][:, :1], clips[:, 2:3])
    assert not torch.equal(shown[1][:, 1:], clips[:, 3:5])
    assert torch.equal(shown[4], clips[:, 2:3]) and shown[6] is None
    assert [args[6] for args in asked] == ["0 0", "0 1", "1 0", "1 1", "0 0", "1 0", "0 0", "1 0"]
    assert all(args[4] == [] or args[4][0][0] == 0 for args in asked)
    assert asked[0][5][0].shape[1] == 1 < asked[4][5][0].shape[1]  # the empty prompt is one token


def test_films_do_not_depend_on_the_batch_or_on_which_other_clips_there_are(made, tmp_path):
    folder, arguments, _ = made
    video.main(["continue", *changed(arguments, out=tmp_path / "x.yaml", batch=1, clips=2)])
    for name in video.CONTINUATIONS:
        few, every = (
            load_pt(f / f"{name}-0.pt", RESULT)
            for f in (tmp_path / "x-parts", folder / "video-continue-parts")
        )
        assert (
            few["ids"] == every["ids"][:2]
            and (few["films"].int() - every["films"][:2].int()).abs().float().mean() < 0.1
        ), name


def test_no_frame_of_the_future_reaches_a_continuation(made, tmp_path):
    items, index = load_items(made[0] / "data")
    for i in items:
        if split_of(i["source"]) == "test":
            i["frames"] = torch.cat([i["frames"][:3], 255 - i["frames"][3:].flip(0)])
    write_items(tmp_path / "data", items, {"data": "synthetic", "name": index["name"]})
    video.main(["continue", *changed(made[1], out=tmp_path / "x.yaml", data=tmp_path / "data")])

    def same(name):
        own, there = (
            load_pt(folder / f"{name}.pt", RESULT)["films"]
            for folder in (tmp_path / "x-parts", made[0] / "video-continue-parts")
        )
        return torch.equal(own, there)

    assert not same("vae") and all(same(f"{name}-0") for name in video.CONTINUATIONS)


# ---------------------------------------------------------------- baselines


def test_the_mean_and_the_nearest_future_are_those_of_train_clips_alone():
    x = torch.randint(256, (3, 5, 32, 32, 3), generator=torch.Generator().manual_seed(0)).byte()
    train = [
        {"id": f"t{k}", "source": f"t{k}", "width": 32, "height": 32, "frames": frames}
        for k, frames in enumerate(x)
    ]
    mean, nearest = metrics.remembered(train, x[[2, 0], :3], 5, 32)
    assert torch.equal(nearest, x[[2, 0], 3:])
    assert mean.shape == (2, 2, 32, 32, 3)
    assert (mean[1].double() - x[:, 3:].double().mean(0)).abs().max() <= 0.5


def test_the_reconstruction_takes_as_many_frames_before_as_the_autoencoder_asks_for(made):
    vae, _ = models.load_video_vae(models.autoencoder_of(models.find_model(str(made[0] / "ltx"))))
    clips = torch.stack([i["frames"] for i in held_out(made[0])[:2]])
    whole = models.decode_films(vae, models.encode_films(vae, clips[:, 2:]))
    assert torch.equal(video.reconstructed(vae, clips, 4, 2, 16), whole[:, -4:])
    assert torch.equal(video.reconstructed(vae, clips, 3, 2, 16), whole[:, -3:])
    again = torch.cat([clips[:, :1].expand(-1, 2, -1, -1, -1), clips], 1)
    assert torch.equal(
        video.reconstructed(vae, clips, 7, 8, 16),
        models.decode_films(vae, models.encode_films(vae, again))[:, -7:],
    )


def test_a_gain_is_that_of_clips_in_which_something_is_scored_and_without_any_difference_it_is_none():
    own = torch.tensor([[1.0, 2, torch.nan, 3, 4, 5, 6]], dtype=torch.float64)
    base = own + 1
    found = stats.gained(own, base, list("abcdefg"), 0)
    assert found["gain"] == 1 and found["p_wilcoxon"] == pytest.approx(2 / 2**6) and found["gain_low"] == 1
    assert stats.gained(own, own, list("abcdefg"), 0)["p_wilcoxon"] == 1
    assert stats.gained(own * torch.nan, base, list("abcdefg"), 0) is None


# ---------------------------------------------------------------- the stage


def test_the_yaml_holds_every_row_and_the_headline_is_the_main_ones(made):
    folder, _, result = made
    found, names = load_yaml(folder / "video-continue.yaml", "video"), list(video.CONTINUATIONS)
    table, criteria = found["continuations"], found["criteria"]
    assert found["conditioning"] == "past" and found["model"] is None
    assert list(table) == ["real", *metrics.BASELINES, *names] and found["shown"] == 3
    assert list(found["horizons"]) == ["1", "2", "4"]
    assert list(found["horizons"]["1"]) == [*metrics.BASELINES, *names]
    assert result["clips"] == len(held_out(folder))
    assert found["l1"] == table["past"]["l1"] == pytest.approx(criteria["l1"]["score"])
    assert found["gain_over_copy"] == pytest.approx(found["l1_copy"] - found["l1"], abs=1e-5)
    assert set(criteria["temporal_ratio"]["floors"]) == {"copy", "mean"}
    assert criteria["temporal_ratio"]["controls"]["shuffled"] > 1
    assert set(criteria["l1"]["floors"]) == set(metrics.BASELINES) - {"vae"}
    assert criteria["l1"]["ceiling"] == pytest.approx(found["l1_vae"], abs=1e-5)
    assert all(g["p_holm"] >= g["p"] for g in found["gains"]["l1"]["copy"].values())
    # what moves steadily is carried on
    assert found["direction_right_real"] == 1 and table["flow"]["l1"] < found["l1_copy"]


def test_films_begin_with_the_last_frame_seen_and_keep_the_truth_of_what_they_show(made):
    films, index = load_items(made[0] / "films")
    clips = {i["id"]: i for i in load_items(made[0] / "data")[0]}
    names = ["real", "vae", "copy", *video.CONTINUATIONS]
    assert index["conditioning"] == "past" and index["commonest"] == "right" and index["actions"] == ["right"]
    assert len(films) == len(names) * len(held_out(made[0]))
    for film in films:
        clip, _, name = film["id"].partition("/")
        own = clips[clip]
        assert film["conditioning"] == name and name in names and film["frames"].shape == (5, 32, 32, 3)
        assert film["source"] == own["source"]
        assert all(torch.equal(film[key], own[key][2:]) for key in ("mask", "boxes"))
        assert torch.equal(film["frames"][0], own["frames"][2])
        assert name != "real" or torch.equal(film["frames"], own["frames"][2:])


def test_a_run_cut_short_goes_on_to_the_same_end_and_another_horizon_is_made_anew(
    made, tmp_path, monkeypatch
):
    arguments = changed(made[1], out=tmp_path / "x.yaml", clips=3, continuations="past,first")
    result = video.main(["continue", *arguments])
    (tmp_path / "x-parts" / "past-0.pt").unlink()
    seen, films = [], video.films
    monkeypatch.setattr(video, "films", lambda *args, **more: seen.append(args[2]) or films(*args, **more))
    # its windows
    assert video.main(["continue", *arguments])["continuations"] == result["continuations"] and len(seen) == 2
    video.main(["continue", *changed(arguments, horizon=3)])
    assert len(seen) == 2 + 2 + 1


def test_one_frame_ahead_of_one_seen_has_no_motion_to_compare_and_says_so(drawn):
    found = drawn(hold, continuations="past", past=1, horizon=1)
    assert found["shown"] == 1 and found["temporal_ratio"] is None and found["best_shift"] is None
    assert found["gain_over_flow"] == 0
    assert list(found["horizons"]) == [1] and found["l1"] == found["l1_copy"] == found["l1_flow"] > 0
    assert not found["static"]


def test_bad_input_is_refused_in_one_sentence_before_a_model_is_loaded(made, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(video, "load_video_pipeline", None)
    monkeypatch.setattr(video, "load_encoder", None)
    test, mute = held_out(made[0]), []
    for i in load_items(made[0] / "data")[0]:
        mute.append({k: v for k, v in i.items() if k not in ("text", "direction")})
    for name, items in (("test", test), ("mute", mute)):
        write_items(tmp_path / name, items, {"data": "synthetic", "name": name})

    def check(*words, job="continue", **new):
        refused(lambda: video.main([job, *changed(made[1], out=tmp_path / "x.yaml", **new)]), *words)

    check("clip-", "has 7 frames, 19 are needed", "--past or --horizon", horizon=16)
    check("--past 0 is not positive", past=0)
    check("'frist'", "'first'", continuations="past,frist")
    check("--candidates 1", "2 or more", job="futures", candidates=1)
    check("no clips in its train split", data=tmp_path / "test")
    check("no text", "past+text and first+text and text of --continuations", data=tmp_path / "mute")
    check("no text", "expert", data=tmp_path / "mute", job="futures")


# ---------------------------------------------------------------- several futures


def test_what_agrees_carries_on_and_hardly_jumps_is_believed():
    seen = torch.full((1, 3, 4, 4, 3), 100, dtype=torch.uint8)
    seen[:, 1:] += torch.tensor([2, 4]).view(1, 2, 1, 1, 1).byte()
    steady = seen[:, -1:] + (2 * torch.arange(1, 3)).view(1, 2, 1, 1, 1).byte()  # a step of 2, as before
    x = torch.stack([steady + 50, steady, steady + 1])
    found = video.beliefs(
        x, seen, steady, {k: torch.tensor([[0.1], [0.9], [0.8]]).double() for k in ("consistency", "cycle")}
    )
    assert [s.argmax(0).item() for s in found.values()] == [1 if n != "agreement" else 2 for n in found]
    assert all(s[0, 0] < s[1:, 0].min() for s in found.values())


def test_among_equal_candidates_there_is_nothing_to_choose(drawn, tmp_path, monkeypatch):
    def last_seen(vae, clips, most, *more):  # not even of the truth
        return clips[:, -most - 1 : -most].expand(-1, most, -1, -1, -1)

    monkeypatch.setattr(video, "reconstructed", last_seen)
    found = drawn(hold, job="futures", candidates=3)
    assert found["truth_preferred"] == 0.5
    assert all(x["share"] == 0.5 for x in found["truth_preferred_by"].values())
    assert found["gain_over_one"] == 0 and found["gain_over_one_p"] == 1 and found["oracle_share"] is None
    assert list(found["curve"]) == [1, 2, 3]
    saved = load_pt(tmp_path / "x.pt", RESULT)
    assert all(torch.equal(b, b[:1].expand_as(b)) for b in saved["beliefs"].values())
    assert (saved["pick"] == 0).all()


def test_where_a_film_carried_on_backwards_comes_to_the_frames_seen_is_at_its_end_and_the_other_way_round():
    # 0 to 4 seen, of which 2, 3 and 4 were shown; 5 to 8 a candidate, of which 8 and 7 are shown backwards
    frames = torch.arange(10, dtype=torch.uint8).view(1, 10, 1, 1, 1).expand(-1, -1, 2, 2, 3)
    back = frames[:, [6, 5, 4, 3, 2]]
    assert video.undone(back, frames[:, :5], 3).tolist() == [0]
    assert video.undone(back.flip(1), frames[:, :5], 3)[0] == pytest.approx((4 + 2 + 0) / 3 / 255)
    assert video.undone(back + 51, frames[:, :5], 3)[0] == pytest.approx(0.2)


@pytest.mark.parametrize("past, shown, horizon, back", [(3, 3, 2, 1), (1, 1, 4, 3)])
def test_the_cycle_picks_the_candidate_whose_film_leads_back_to_the_frames_seen(
    made, drawn, tmp_path, monkeypatch, past, shown, horizon, back
):
    first = (7 - past - 4) // 2  # of the middle past + 4 of 7 frames one film is long enough for 5
    clips, ends = torch.stack([i["frames"] for i in held_out(made[0])])[:, first : first + 5], []
    films = [
        255 - clips[:, past - 1 : past].expand(-1, horizon, -1, -1, -1),
        255 - clips[:, past:],
        clips[:, past:],
        clips[:, past:].flip(0),
    ]

    def new(given, number):
        if number == 0:
            ends.append(given)
            return films[len(ends) - 1]
        # all its own, the last first
        i = next(i for i, x in enumerate(films) if torch.equal(given, x[:, -back:].flip(1)))
        return clips.flip(1)[:, back:] if i == 2 else given[:, -1:].expand(-1, 5 - back, -1, -1, -1)

    monkeypatch.setattr(video, "reconstructed", lambda vae, clips, most, *_: clips[:, -most:])
    found = drawn(new, job="futures", candidates=4, past=past)
    assert found["truth_preferred_by"]["cycle"]["share"] == 3.5 / 4  # one candidate is the truth
    assert (found["shown"], found["horizon"], found["shown_backwards"]) == (shown, horizon, back)
    assert all(torch.equal(x, clips[:, past - shown : past]) for x in ends)
    saved = load_pt(tmp_path / "x.pt", RESULT)
    cycle, l1 = saved["beliefs"]["cycle"], saved["errors"]["l1"]
    assert (cycle[2] == 0).all() and (cycle[[0, 1, 3]] < 0).all() and found["pickers"]["cycle"]["l1"] == 0
    assert found["pickers"]["cycle"]["l1_oracle_share"] == 1
    assert saved["candidates"] == [f"candidate-{i}" for i in range(4)]
    assert saved["ids"] == [i["id"] for i in held_out(made[0])] and l1.shape == cycle.shape == (4, len(clips))
    assert (l1[2] == 0).all() and l1[0].mean() == pytest.approx(found["l1_one"], rel=1e-5)
    assert l1.gather(0, saved["pick"][None]).mean() == pytest.approx(found["l1"], rel=1e-5)


def test_the_oracle_finds_the_one_that_is_true_and_the_curve_never_gets_worse_for_it(made, drawn):
    clips = torch.stack([i["frames"] for i in held_out(made[0])])[:, :5]
    true, still, wrong = clips[:, 3:], clips[:, 2:3].expand(-1, 2, -1, -1, -1), 255 - clips[:, 3:]
    films = iter([still, wrong, true, wrong])
    # with a number: backwards
    found = drawn(
        lambda given, number: hold(given, number) if number else next(films), job="futures", candidates=4
    )
    pickers, oracle = found["pickers"], [c["oracle"]["l1"] for c in found["curve"].values()]
    assert found["l1_oracle"] == 0 and pickers["oracle"]["l1_oracle_share"] == 1
    assert pickers["one"]["l1_oracle_share"] == 0 and pickers["worst"]["l1"] > 0.1
    assert oracle == sorted(oracle, reverse=True)
    assert all(row["l1"] == found["l1_one"] for row in found["curve"][1].values())
    # flow knows a square that goes on
    assert pickers["flow"]["l1"] == 0 and pickers["flow"]["direction_right"] == 1
    assert found["gains"]["l1"]["flow"]["gain_low"] > 0


def test_the_plain_candidate_is_what_continue_makes_from_the_same_moment_on_and_resumes(
    made, tmp_path, monkeypatch
):
    video.main(["continue", *changed(made[1], out=tmp_path / "c.yaml", continuations="past")])
    ask = ["futures", *changed(made[1], out=tmp_path / "f.yaml", candidates=6)]
    asked = []
    films = video.films
    monkeypatch.setattr(
        video, "films", lambda *args, **more: asked.append((args, more)) or films(*args, **more)
    )
    found = video.main(ask)
    assert len(asked) == 13
    # backwards: one noise for all, the empty prompt
    assert all(
        args[6] == "0 1" and args[5][0].shape[1] == 1 and "guidance" not in more for args, more in asked[6:]
    )
    different = [load_pt(tmp_path / "f-parts" / f"candidate-{i}.pt", RESULT)["films"] for i in range(6)]
    assert torch.equal(different[0], load_pt(tmp_path / "c-parts" / "past-0.pt", RESULT)["films"][:, :2])
    assert all(not torch.equal(a, b) for i, a in enumerate(different) for b in different[:i])
    assert load_pt(tmp_path / "f.pt", RESULT)["last"] == [
        common.digest(i["frames"][2].numpy().tobytes()) for i in held_out(made[0])
    ]
    monkeypatch.setattr(video, "load_video_pipeline", None)
    assert video.main(ask)["pickers"] == found["pickers"]


# ---------------------------------------------------------------- the small models


@pytest.mark.slow
def test_tiny_ltx_shown_the_past_beats_a_copy_where_something_moves(tmp_path):
    import data

    data.main(f"moving --frames 12 --n 140 --seed 83 --out {tmp_path}/moving".split())
    found = video.main(
        f"continue --data {tmp_path}/moving --horizon 4 --clips 20 --continuations past,first --out {tmp_path}/x.yaml".split()
    )
    at, table = found["horizons"][4], found["continuations"]
    assert found["clips"] == 20 and found["shown"] == 5 and not found["static"] and table["copy"]["static"]
    assert at["past"]["moving_gain_over_copy_low"] > 0
    assert at["vae"]["moving_l1"] < at["past"]["moving_l1"] < at["first"]["moving_l1"]
    assert found["direction_right_real"] > 0.9
    assert found["direction_right"] > table["first"]["direction_right"]
    assert table["copy"]["direction_right"] == 0
