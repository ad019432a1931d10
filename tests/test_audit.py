"""The audit (verify.py --audit): whoever changes a number, a frame, an id or leaves out a clip is named; who changes nothing is not."""
import argparse
import shutil

import pytest
import torch

import predict
import verify
from common import RESULT, load_items, load_pt, load_yaml, save_pt, save_yaml, split_of, write_items

FLAGS = "model", "judge", "data", "frames", "size", "steps", "past", "horizon", "out"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a run of mode continue on squares that move right, two draws of two continuations."""
    folder = tmp_path_factory.mktemp("audit")
    args = argparse.Namespace(mode="continue", seed=0, out=None)
    predict.smoke_input(args, folder)
    predict.main(["--mode", "continue", "--seeds", "2", "--continuations", "past,first+text", *(x for k in FLAGS for x in (f"--{k}", str(getattr(args, k))))])
    return folder


@pytest.fixture
def world(made, tmp_path):
    """A copy that can be tampered with."""
    for name in ("predict-continue-parts", "films", "data"):
        shutil.copytree(made / name, tmp_path / name)
    shutil.copy(made / "predict-continue.yaml", tmp_path)
    return tmp_path


def ask(world):
    return verify.audit(world / "predict-continue.yaml", world / "data")["disagreements"]


def tampered(folder, change):
    """Write the items of a data folder once more, as `change` leaves them."""
    items, index = load_items(folder)
    items = [{k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in i.items()} for i in items]
    by_id = {i["id"]: i for i in items}
    gone = change(by_id)
    write_items(folder, [i for i in items if i["id"] != gone], {k: index[k] for k in ("name", "data", "data_path") if k in index})


def part(world, name, change):
    """The same of a file of films as made: change(ids, films) -> (ids, films)."""
    path = world / "predict-continue-parts" / f"{name}.pt"
    found = load_pt(path, RESULT)
    ids, films = change(list(found["ids"]), found["films"].clone())
    save_pt(path, RESULT, ids, found["meta"], films=films, seconds=found["seconds"])


def clips(world):
    return [i["id"] for i in load_items(world / "data")[0] if split_of(i["source"]) == "test"]


def test_who_changes_nothing_is_not_named(made, world, capsys):
    result = verify.main(["--audit", str(world / "predict-continue.yaml"), "--strict"])
    assert result["agrees"] and result["disagreements"] == [] and result["checked"] > 100 and result["films"] == 5 * len(clips(world))
    assert load_yaml(world / "audit.yaml", "audit")["checked"] == result["checked"] and "agrees True" in capsys.readouterr().out


def test_what_films_cannot_gainsay_may_be_changed(world):
    path = world / "predict-continue.yaml"
    told = load_yaml(path)
    save_yaml(path, told | {"notes": {}, "run": told["run"] | {"seconds": 1.0}})
    assert ask(world) == []


def test_changed_numbers_are_named_each_with_what_its_films_say(world):
    path, wanted = world / "predict-continue.yaml", set()
    told = load_yaml(path)
    for keys in ("moving_l1", "gain_over_copy_low", "clips", "conditioning", "continuations.past.moving_l1_high", "continuations.real.best_shift", "continuations.copy.static",
                 "criteria.l1.floors.flow", "criteria.l1.floor_name", "gains.l1.copy.first+text.p_holm", "horizons.2.flow.l1_low", "steps", "seconds.past-1"):
        *way, key = keys.split(".")
        x = told
        for k in way:
            x = x[k]
        before = x[key]
        x[key] = {bool: lambda x: not x, str: lambda x: "other", int: lambda x: x + 1, float: lambda x: float(f"{x * 1.0001 + 1e-6:.6g}")}[type(before)](before)
        wanted.add(f"{path} says {keys} {x[key]}, its films say {before}")
    save_yaml(path, told)
    assert set(ask(world)) == wanted


def test_numbers_that_are_gone_or_new_are_named(world):
    path = world / "predict-continue.yaml"
    told = load_yaml(path)
    gone = told["continuations"]["vae"].pop("flicker")
    save_yaml(path, told | {"moving_l1_oracle": 0.0})
    assert set(ask(world)) == {f"{path} says continuations.vae.flicker nothing, its films say {gone}", f"{path} says moving_l1_oracle 0.0, its films say nothing"}


def test_one_pixel_of_a_film_that_is_shown_is_named_with_its_frame(world):
    clip = clips(world)[1]

    def change(films):
        films[f"{clip}/past"]["frames"][3, 5, 5, 0] ^= 255
    tampered(world / "films", change)
    found, = ask(world)
    assert f"'{clip}/past'" in found and "past-0.pt" in found and "from frame 3 on" in found


def test_a_copy_that_is_not_the_last_frame_seen_throughout_is_named(world):
    clip = clips(world)[0]

    def change(films):
        films[f"{clip}/copy"]["frames"][4] += 1
    tampered(world / "films", change)
    found, = ask(world)
    assert f"'{clip}/copy'" in found and "from frame 4 on" in found


def test_one_pixel_of_a_film_as_made_is_named_and_the_numbers_with_it(world):
    clip = clips(world)[2]

    def change(ids, films):
        films[ids.index(clip), 1, 5, 5] = 0
        return ids, films
    part(world, "past-0", change)
    found = ask(world)
    assert f"'{clip}/past'" in found[0] and "from frame 2 on" in found[0] and any(" says continuations.past.l1 " in x for x in found)
    assert all(" says " in x and "continuations.first" not in x and "continuations.copy" not in x for x in found[1:])


def test_of_a_second_draw_the_numbers_tell(world):
    part(world, "past-1", lambda ids, films: (ids, 255 - films))
    found = ask(world)
    assert found and all(" says " in x for x in found) and any(" says l1 " in x for x in found)


@pytest.mark.parametrize("frame", [0, 2, 5])
def test_one_pixel_of_a_clip_is_named(world, frame):
    clip = clips(world)[1]

    def change(items):
        items[clip]["frames"][frame, 5, 5, 0] ^= 255
    tampered(world / "data", change)
    found = ask(world)
    assert any("has not the clips that" in x for x in found)
    if frame == 2:  # the last one seen stands in all films of the clip
        assert sum(f"'{clip}/" in x and "from frame 0 on" in x for x in found) == 5
    if frame == 5:
        assert f"'{clip}/real'" in found[0] and "from frame 3 on" in found[0] and sum(f"'{clip}/" in x for x in found) == 1


def test_two_films_that_change_places_are_named_both(world):
    a, b = clips(world)[:2]

    def change(films):
        x, y = films[f"{a}/past"], films[f"{b}/past"]
        x["frames"], y["frames"] = y["frames"], x["frames"]
    tampered(world / "films", change)
    found = ask(world)
    assert len(found) == 2 and all(any(f"'{x}/past' not as it is" in s and s.endswith(f"that of '{y}/past'") for s in found) for x, y in ((a, b), (b, a)))


def test_two_ids_that_change_places_are_named_in_the_file_the_films_and_the_numbers(world):
    a, b = clips(world)[:2]
    part(world, "first+text-0", lambda ids, films: ([{a: b, b: a}.get(i, i) for i in ids], films))
    found = ask(world)
    assert any("first+text-0.pt has" in x and repr(b) in x and repr(a) in x for x in found) and sum(" not as it is in " in x for x in found) == 2
    assert any(" says continuations.first+text.l1 " in x for x in found)


def test_two_clips_that_change_ids_are_named(world):
    a, b = clips(world)[:2]

    def change(items):
        x, y = items[a], items[b]
        x["frames"], y["frames"] = y["frames"], x["frames"]
    tampered(world / "data", change)
    assert any(f"'{a}/real'" in x for x in ask(world)) and any(f"'{b}/real'" in x for x in ask(world))


def test_files_that_change_places_are_named(world):
    folder = world / "predict-continue-parts"
    (folder / "past-0.pt").rename(folder / "x")
    (folder / "past-1.pt").rename(folder / "past-0.pt")
    (folder / "x").rename(folder / "past-1.pt")
    assert any("past-0.pt was made as past-1" in x for x in ask(world))


def test_a_missing_clip_is_named_wherever_it_is_missing(made, world, tmp_path):
    clip = clips(world)[3]
    tampered(world / "films", lambda films: f"{clip}/past")
    found, = ask(world)
    assert found == f"{world / 'films'} holds no '{clip}/past'"
    shutil.rmtree(world / "films")
    shutil.copytree(made / "films", world / "films")

    part(world, "vae", lambda ids, films: (ids[:-1], films[:-1].clone()))
    last = clips(world)[-1]
    assert any(f"vae.pt holds no film of '{last}'" in x for x in ask(world))
    part(world, "vae", lambda ids, films: ([*ids, last], films))
    assert any("vae.pt holds" in x and "films of" in x for x in ask(world))
    shutil.copy(made / "predict-continue-parts" / "vae.pt", world / "predict-continue-parts")

    tampered(world / "data", lambda items: clip)
    assert any(f"{world / 'data'} has no test clip '{clip}'" in x for x in ask(world))
    (world / "predict-continue-parts" / "past-1.pt").unlink()
    assert ask(world) == [f"{world / 'predict-continue-parts' / 'past-1.pt'} is missing"]


def test_disagreement_is_no_failure_unless_strict(world, refused):
    path = world / "predict-continue.yaml"
    save_yaml(path, load_yaml(path) | {"l1": 0.5})
    line = ["--audit", str(path), "--data", str(world / "data"), "--judge", load_yaml(path)["run"]["arguments"]["judge"]]
    assert len(verify.main(line)["disagreements"]) == 1 and not load_yaml(world / "audit.yaml", "audit")["agrees"]
    with pytest.raises(SystemExit, match="3"):
        verify.main([*line, "--strict"])
    save_yaml(path, load_yaml(path) | {"mode": "futures"})
    refused(lambda: verify.main(line), "predict-continue.yaml is of mode futures")
