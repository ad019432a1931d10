"""Which work step is being done? OpenPack: its reader and split, and the answers of vision-language models.

    python operations.py draw --out data/operations-raw --seed 42         a synthetic set in OpenPack's own layout
    python operations.py read --root data/operations-raw --seed 42        clips, labelled with the operation at the end
    python operations.py score --models tiny results/tiny/operations/tuned/model

`read` writes data/operations/, items as data.py's with: operation (at the last frame), next, previous, earlier (one second before);
start, end, seconds (s from the last frame; s since the session began); boundary (the clip ends within a second of a change), fixed
(one of the first 30 clips of U0108, the fixed test), subject, times. The split is by subject, the source a session. `grammar` in
index.yaml holds statistics of train's labels, from which the baselines answer without images.

`score` asks models (the base first, the one that tune.py trained last) for the operation at the end, its start, its end, and the next
operation. An answer without JSON counts as wrong; a missing time counts as 0. operations.yaml holds, of the last model:

    macro_f1, accuracy     of the operation, beside majority, clock (train's most frequent in those ten seconds of a session) and
                           bigram (the most frequent successor of the true previous one). copy repeats the truth of a second earlier:
                           it is nearly always correct, and so no baseline. _fixed: on the fixed test
    next_accuracy          beside majority and bigram (the most frequent successor of the true operation)
    start_error, end_error mean absolute error in seconds, beside median: train's
    segmental_f1_10 ... boundary_error   of a session's clips in order, the session being the unit; boundary_error in seconds
    answer                 PASS: macro_f1 is above the base's and every baseline's, by the interval of the paired difference over
                           sessions; FAIL: it is not; or INCONCLUSIVE
    pair                   the two operations confused most, and the share of these clips at a change

operations.png shows the answers for each operation, and frames of clips of that pair.

Copy with it: answering.py, augment.py, checkpoints.py, cogvlm2.py, common.py, media.py, models.py,
models.yaml, motion.py, stats.py, synthetic.py.
"""

import csv
import io
import itertools
import json
import re
import sys
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from tqdm import tqdm

from answering import cached, check_asked, load_to_answer, precision_of
from augment import preview
from checkpoints import fingerprint, resolved_commit
from common import (
    ANSWERS,
    Items,
    check_writable,
    choose_device,
    digest,
    fail,
    load_pt,
    load_yaml,
    positive,
    print_summary,
    run_info,
    save_bytes,
    save_yaml,
    split_of,
    subcommands,
)
from media import CHOICES, Unusable, choose_frames, open_image, read_frames, stacked, write_whole
from models import answers_to, find_model
from motion import boundary_error, segmental_f1
from stats import clusters, criterion, holm, mean_and_interval, paired_test, resampled, verdict, widened
from synthetic import FRAMES_AT, JAPAN, NULL, OPERATIONS, draw_operations

# ---------------------------------------------------------------- reading OpenPack

FIXED = "U0108", 30  # subject of the fixed test, and number of its clips, from the first on
CHANGE = 1  # seconds: a boundary clip ends at most this far from a change of operation
# short, for the tokens of the smallest models are nearly letters
ASK_OPERATION = "What is done now, since when, until when, and what is next?"


def table_of(path, columns):
    """Rows of a CSV file as dicts. Raises ValueError if it cannot be read or lacks one of the columns."""
    try:
        table = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")))
    except OSError as e:
        raise ValueError(e) from e
    if missing := [c for c in columns if c not in (table.fieldnames or ())]:
        raise ValueError(f"lacks the columns {', '.join(missing)}; its header is {table.fieldnames}")
    return list(table)


def read_openpack(root):
    """([{user, session, work: [(start, end, id)], folder, names and times of frames, ends}], [(name, problem)]).
    All in Unix time; ends: the seconds at which a clip may end."""
    found, problems = [], []
    files = sorted(root.glob("*/annotation/openpack-operations/*.csv"))
    if not files:
        fail(f"{root} holds no U####/annotation/openpack-operations/*.csv; give --root the folder above")
    for path in tqdm(files, desc="sessions", unit="session"):
        user, session, work = path.parents[2].name, path.stem, []
        by_second = path.parents[1] / "openpack-operations-1hz" / path.name
        name = f"{user}/{session}"
        try:
            table = table_of(path, ("id", "start", "end"))
        except ValueError as e:
            problems.append((name, f"openpack-operations/{path.name} {e}"))
            continue
        for line, row in enumerate(table, 2):
            try:
                start, end = (datetime.fromisoformat(row[k]) for k in ("start", "end"))
                start, end = ((x if x.tzinfo else x.replace(tzinfo=JAPAN)).timestamp() for x in (start, end))
                operation = int(row["id"])
            except (TypeError, ValueError) as e:
                problems.append((name, f"line {line} of {path.name} is not an operation ({e})"))
                continue
            if end <= start:
                problems.append((name, f"line {line} of {path.name} ends before it starts"))
            elif operation not in (*OPERATIONS, NULL):
                problems.append((name, f"line {line} of {path.name} has the unknown id {operation}"))
            else:
                work.append((start, end, operation))
        work.sort()
        for a, b in itertools.pairwise(work):
            if a[1] - b[0] > 1:
                when = datetime.fromtimestamp(b[0], JAPAN)
                problems.append((name, f"two operations overlap by {a[1] - b[0]:.1f} s, from {when} on"))
        folder, times, names = root / user / FRAMES_AT / session, [], []
        for image in sorted(folder.rglob("*.jpg"), key=lambda p: p.name):
            try:
                taken = datetime.strptime(image.stem, "%Y%m%d_%H%M%S_%f").replace(tzinfo=JAPAN)
                times.append(taken.timestamp())
                names.append(str(image.relative_to(folder)))
            except ValueError:
                problems.append((name, f"{image.name} is not named YYYYMMDD_hhmmss_mmm.jpg"))
        if not names or not work:
            problems.append((name, "has no frames" if work else "has no operations"))
            continue
        ends = np.arange(np.ceil(work[0][0]), work[-1][1])  # whole seconds, without labels of each
        if by_second.is_file():
            try:
                table = table_of(by_second, ("unixtime", "id"))
                labels = [(int(row["unixtime"]) / 1000, int(row["id"])) for row in table]
            except (TypeError, ValueError) as e:
                problems.append((name, f"openpack-operations-1hz/{path.name} {e}"))
                continue
            other = []
            for t, o in labels:
                if o not in ({x for start, end, x in work if start - 1 <= t <= end + 1} or {NULL}):
                    other.append(datetime.fromtimestamp(t, JAPAN))
            if other:
                reason = f"{len(other)} of {len(labels)} seconds differ in openpack-operations-1hz"
                problems.append((name, f"{reason}, first at {other[0]}"))
            ends = np.unique([t for t, _ in labels])
        one = {"user": user, "session": session, "work": work, "folder": folder, "names": names}
        found.append(one | {"times": np.array(times), "ends": ends})
    return found, problems


def subjects_of(users, test, val):
    """{user: split}. test, val: names separated by commas. By default, of the ring of subjects from U0108 on (if
    present), the first 30% are test and the last tenth val, at least one each."""
    named = {u: part for part, flag in (("test", test), ("val", val)) for u in (flag or "").split(",") if u}
    if unknown := sorted(set(named) - set(users)):
        fail(f"there is no subject {unknown[0]}; give some of {', '.join(users)}")
    first = users.index(FIXED[0]) if FIXED[0] in users else 0
    ring = [u for u in users[first:] + users[:first] if u not in named]
    if not test:
        k = max(1, round(0.3 * len(users)))
        named, ring = named | dict.fromkeys(ring[:k], "test"), ring[k:]
    if not val:
        named |= dict.fromkeys(ring[-max(1, len(users) // 10) :], "val")
    return {u: named.get(u, "train") for u in users}


def most_frequent(counts):
    """The most frequent name of {name: count}; of several, the first in alphabetical order."""
    return max(sorted(counts), key=counts.get)


def grammar(sessions):
    """Statistics of train's labels. bigram: {previous operation or "(start)": {operation: count}}; seconds: {operation:
    total}; clock: the majority operation in every ten seconds of a session; start, end: medians over all seconds."""
    pairs, seconds, clock, apart = {}, Counter(), {}, []
    for s in sessions:
        work = [w for w in s["work"] if w[2] in OPERATIONS]
        for before, (_, _, o) in zip(["(start)", *(OPERATIONS[w[2]] for w in work)], work, strict=False):
            pairs.setdefault(before, Counter())[OPERATIONS[o]] += 1
        for start, end, o in work:
            for t in np.arange(np.ceil(start), end):
                seconds[OPERATIONS[o]] += 1
                clock.setdefault(int((t - s["work"][0][0]) // 10), Counter())[OPERATIONS[o]] += 1
                apart.append((start - t, end - t))
    start, end = np.median(apart, 0).tolist()
    bigram = {k: dict(sorted(v.items())) for k, v in sorted(pairs.items())}
    at = [most_frequent(clock.get(k, seconds)) for k in range(max(clock) + 1)]
    times = {"seconds": dict(sorted(seconds.items())), "clock": at, "start": start, "end": end}
    return {"bigram": bigram} | times


def operation_at(s, t):
    """(start, end, id) of the operation at a time of a session; id NULL where there is none."""
    k = int(np.searchsorted([w[0] for w in s["work"]], t, "right")) - 1
    return s["work"][k] if k >= 0 and t < s["work"][k][1] else (0, 0, NULL)


def clip_ends(s, window, count):
    """Possible clips of a session: (second, first and last frame of the window, does it end at a change?), one for each
    second with an operation at its last frame and frames of at least three quarters of `window` seconds before it."""
    times, changes = s["times"], np.unique([x for w in s["work"] for x in w[:2]])
    for t in s["ends"]:
        last = int(np.searchsorted(times, t, "right")) - 1
        first = int(np.searchsorted(times, times[last] - window, "right"))
        if last < 0 or t - times[last] > 1 or operation_at(s, times[last])[2] == NULL:
            continue
        if last - first + 1 >= count and times[last] - times[first] >= 0.75 * window:
            boundary = bool(np.abs(changes - times[last]).min() <= CHANGE)
            yield int(t - s["work"][0][0] + 1e-6), first, last, boundary


def clip_row(s, part, count, second, first, last, boundary):
    """The true labels of a clip, and the `paths` of its window."""
    now, work = s["times"][last], [w for w in s["work"] if w[2] in OPERATIONS]
    start, end, o = operation_at(s, now)
    k, name = work.index((start, end, o)), OPERATIONS[o]
    after, before = (OPERATIONS[work[j][2]] if 0 <= j < len(work) else None for j in (k + 1, k - 1))
    answer = {"operation": name, "start": round(start - now), "end": round(end - now), "next": after}
    return {
        "id": f"{s['user']}-{s['session']}-{second:05d}",
        "source": f"{part}:{s['user']}-{s['session']}",
        "subject": s["user"],
        "action": name,
        "text": name,
        **answer,
        "start": float(start - now),
        "end": float(end - now),
        "previous": before,
        "earlier": OPERATIONS.get(operation_at(s, now - 1)[2]),
        "seconds": float(now - s["work"][0][0]),
        "boundary": boundary,
        "turns": [[ASK_OPERATION, json.dumps(answer)]],
        "paths": [s["folder"] / x for x in s["names"][first : last + 1]],
        "seconds_of_frames": s["times"][first : last + 1].tolist(),
    }


def chosen_rows(sessions, split, args):
    """Rows of the selected clips. Train: --n drawn, a share --boundary of them (if there are as many) at a change.
    Test: --test-clips, val a quarter: every --every seconds, equally many of a session; FIXED are marked `fixed`."""
    n, count, boundary = args.n, args.count, args.boundary
    of = {"train": [], "val": [], "test": []}
    for s in sessions:
        of[split[s["user"]]].append((s, list(clip_ends(s, args.window, count))))
    every_train = [(s, *end) for s, ends in of["train"] for end in ends]
    order = [every_train[k] for k in np.random.default_rng(args.seed).permutation(len(every_train))]
    near = [end for end in order if end[-1]][: round(n * boundary)]
    rest = [end for end in order if not end[-1]] if boundary else order
    rows = [clip_row(s, "train", count, *end) for s, *end in near + rest[: n - len(near)]]
    rows.sort(key=lambda r: r["id"])
    for part, most in (("val", args.test_clips // 4), ("test", args.test_clips)):
        for s, ends in of[part]:
            ends = [end for end in ends if end[0] % args.every == 0][: max(1, -(-most // len(of[part])))]
            rows += [clip_row(s, part, count, *end) for end in ends]
    for r in [r for r in rows if r["subject"] == FIXED[0] and r["source"].startswith("test:")][: FIXED[1]]:
        r["fixed"] = True
    return rows


def operation_clips(rows, count, how, size, skip_bad, notes, seed):
    """Items of rows: `count` frames of each window, chosen `how`. notes: (id, kind, reason) of unreadable clips; after
    the first of these the rest is checked but not yielded, unless skip_bad."""
    for n, row in enumerate(tqdm(rows, desc="clips", unit="clip")):
        paths, times = row.pop("paths"), torch.tensor(row.pop("seconds_of_frames"), dtype=torch.float64)
        try:
            small = torch.zeros(len(paths), 1, 1, 3, dtype=torch.uint8)
            if how not in ("uniform", "random"):
                small = read_frames(paths, Path, len(paths), 64).frames
            chosen = choose_frames(small, count, how, (seed, n))
            frames = read_frames([paths[k] for k in chosen], Path, count, size).frames
        except Unusable as e:
            notes.append((row["id"], *e.args))
            continue
        if skip_bad or not notes:
            row |= {"frames": frames, "times": times[chosen] - times[chosen[0]]}
            yield row | {"height": frames.shape[1], "width": frames.shape[2]}


def write_openpack(out, args, meta):
    """Write data/<out> from a set in OpenPack's layout; made.yaml marks a synthetic set."""
    least = min(args.count - 1, args.test_clips, args.every)
    if least < 1 or args.window <= 0 or not 0 <= args.boundary <= 1:
        fail("--count, --window, --test-clips, --every, --boundary: give at least 2, above 0, 1, 1, 0 to 1")
    sessions, problems = read_openpack(root := Path(args.root))
    sys.stderr.writelines(f"{name}: {reason}\n" for name, reason in problems)
    if problems and not args.skip_bad:
        fail(f"{len(problems)} problems in {root}, listed above; correct them or give --skip-bad")
    split = subjects_of(sorted({s["user"] for s in sessions}), args.test, args.val)
    rows = chosen_rows(sessions, split, args)
    if lacking := {"train", "val", "test"} - {split_of(r["source"]) for r in rows}:
        fail(f"{root} has no clip for {min(lacking)}; give another --test, --val or --window")
    size = args.size or min(224, *open_image(rows[0]["paths"][0]).shape[:2])
    made = root / "made.yaml"
    meta["data"] = load_yaml(made)["data"] if made.is_file() else "real"
    meta |= {"size": size, "frames": args.count, "window": args.window, "chosen": args.frames}
    meta |= {"every": args.every, "boundary": args.boundary, "subjects": split, "problems": len(problems)}
    train = [s for s in sessions if split[s["user"]] == "train"]
    meta |= {"operations": [*OPERATIONS.values()], "grammar": grammar(train)}
    notes = []
    items = operation_clips(rows, args.count, args.frames, size, args.skip_bad, notes, args.seed)

    def verdict(index):
        sys.stderr.writelines(f"{name}: {reason}\n" for name, _, reason in notes)
        if notes and not args.skip_bad:
            fail(f"{len(notes)} of {len(rows)} clips have problems, listed above; add --skip-bad")
        if not index["items"]:
            fail(f"none of {len(rows)} clips is usable; repair the images that are listed above")
        return {"skipped": len(notes), "skipped_kinds": dict(Counter(kind for _, kind, _ in notes))}

    write_whole(out, items, meta, verdict)


# ---------------------------------------------------------------- the answers of models

ANSWER_FORMAT = (
    'Answer with nothing but JSON of four keys: "operation", what is done at the end of the clip, one of {}; "start" and "end", in seconds from the end of the clip on, when it began'
    # for a model that was not trained on this format
    ' (below 0) and when it will end; "next", the operation that will follow.'
)
SCORES = ["macro_f1", "accuracy", "next_accuracy", "start_error", "end_error"]
SCORES += ["segmental_f1_10", "segmental_f1_25", "segmental_f1_50", "boundary_error"]
LEAKING = ("copy",)  # has the truth of a second ago, which rarely changes: no baseline


def parse_operation(text, operations):
    """{operation, next: index in `operations` or None; start, end: seconds or None; json}, of the first JSON object."""
    for found in re.finditer(r"\{[^{}]*\}", text):
        try:
            parsed = json.loads(found[0])
        except ValueError:
            continue
        number = {o.lower(): k for k, o in enumerate(operations)}
        found = {key: number.get(str(parsed.get(key)).strip().lower()) for key in ("operation", "next")}
        for key in ("start", "end"):
            seconds = parsed.get(key)
            found[key] = float(seconds) if isinstance(seconds, (int, float)) and abs(seconds) < 1e6 else None
        return found | {"json": True}
    return {"operation": None, "next": None, "start": None, "end": None, "json": False}


def confusions(truth, answers, sources, n):
    """Confusion matrices by source, float64 [sources, n (truth), n + 1 (answers; the last for none)]; indices or None."""
    cluster, counts = clusters(sources), torch.zeros(len(set(sources)), n, n + 1, dtype=torch.float64)
    for s, a, b in zip(cluster.tolist(), truth, answers, strict=True):
        counts[s, a, n if b is None else b] += 1
    return counts


def macro_f1(counts):
    """Macro-F1 [...] of counts [..., n, n + 1], over the operations that occur in truth."""
    hits, true = counts.diagonal(dim1=-2, dim2=-1), counts.sum(-1)
    f1 = 2 * hits / (true + counts.sum(-2)[..., :-1]).clamp(min=1e-9)
    return (f1 * (true > 0)).sum(-1) / (true > 0).sum(-1)


def macro_tested(counts, other, seed, n=2000):
    """Macro-F1 of `counts` and its gain over `other`, both [sources, n, n + 1]: intervals by resampling sources, p by
    exchanging the two within random sources."""
    g = torch.Generator().manual_seed(seed)
    weights = resampled(len(counts), n, g)
    a, b = (macro_f1(torch.einsum("ks,sij->kij", weights, x)) for x in (counts, other))
    at = torch.tensor([0.025, 0.975], dtype=torch.float64)
    score, gain = macro_f1(counts.sum(0)).item(), (macro_f1(counts.sum(0)) - macro_f1(other.sum(0))).item()
    low, high = widened(score, *a.quantile(at).tolist(), len(counts))
    gain_low, gain_high = widened(gain, *(a - b).quantile(at).tolist(), len(counts))
    swap = torch.randint(2, (n, len(counts)), generator=g).double()
    mixed = []
    for s in (swap, 1 - swap):
        mixed.append(torch.einsum("ks,sij->kij", s, counts) + torch.einsum("ks,sij->kij", 1 - s, other))
    exceed = ((macro_f1(mixed[0]) - macro_f1(mixed[1])).abs() >= abs(gain) - 1e-12).sum().item()
    gains = {"gain": gain, "gain_low": gain_low, "gain_high": gain_high, "p": (1 + exceed) / (1 + n)}
    return {"score": score, "low": low, "high": high} | gains


def without_images(items, grammar, operations):
    """Answers of the baselines without images: {name: {operation, next, start, end: a list each}, or some of these}."""
    number = {o: k for k, o in enumerate(operations)}

    after = {o: most_frequent(counts) for o, counts in grammar["bigram"].items()}
    majority, clock, n = most_frequent(grammar["seconds"]), grammar["clock"], len(items)
    every = sum(map(Counter, grammar["bigram"].values()), Counter())
    return {
        "majority": {"operation": [number[majority]] * n, "next": [number[most_frequent(every)]] * n},
        "clock": {"operation": [number[clock[min(int(i["seconds"] // 10), len(clock) - 1)]] for i in items]},
        "copy": {"operation": [number.get(i["earlier"]) for i in items]},
        "bigram": {
            "operation": [number[after.get(i["previous"] or "(start)", majority)] for i in items],
            "next": [number[after.get(i["operation"], majority)] for i in items],
        },
        "median": {"start": [grammar["start"]] * n, "end": [grammar["end"]] * n},
    }


def timelines(items, truth, answers, seed, every):
    """Segmental F1 and boundary error (seconds) of each session's clips in order; the session is the unit."""
    sessions, keys = {}, ("segmental_f1_10", "segmental_f1_25", "segmental_f1_50", "boundary_error")
    found = {key: {} for key in keys}
    for k in sorted(range(len(items)), key=lambda k: items[k]["seconds"]):
        sessions.setdefault(items[k]["source"], []).append(k)
    for session in dict.fromkeys(i["source"] for i in items):
        a = [truth[k] + 1 for k in sessions[session]]
        b = [0 if answers[k] is None else answers[k] + 1 for k in sessions[session]]
        values = [segmental_f1(a, b, least) for least in (0.1, 0.25, 0.5)] + [every * boundary_error(a, b)]
        for key, value in zip(keys, values, strict=True):
            if value == value:  # nan: no operation changes
                found[key][session] = value
    row = {}
    for key, values in found.items():
        row |= mean_and_interval(key, torch.tensor(list(values.values())), list(values))
    return row


def hits(truth, answers, key, at):
    """[len(at)] 1.0 where the answer to `key` is correct, else 0.0; at: item numbers."""
    return torch.tensor([float(answers[key][k] == truth[key][k]) for k in at])


def seconds_off(items, answers, key):
    """[n] absolute error in seconds of `start` or `end`; a missing answer counts as 0."""
    return torch.tensor([abs((s or 0.0) - i[key]) for s, i in zip(answers[key], items, strict=True)])


def operation_row(items, truth, answers, seed, every, counts):
    """A row of the table of scores, of answers {operation, next, start, end: a list each}, or some of these."""
    sources, row = [i["source"] for i in items], {}
    fixed = [k for k, i in enumerate(items) if i.get("fixed")]

    def f1(key, at):
        a, b = ([labels[key][k] for k in at] for labels in (truth, answers))
        return macro_f1(confusions(a, b, [0] * len(at), counts)[0])

    if "operation" in answers:
        matrices = confusions(truth["operation"], answers["operation"], sources, counts)
        test = macro_tested(matrices, matrices, seed)
        row |= {"macro_f1": test["score"], "macro_f1_low": test["low"], "macro_f1_high": test["high"]}
        accuracy = hits(truth, answers, "operation", range(len(items)))
        row |= mean_and_interval("accuracy", accuracy, sources)
        if fixed:
            row["accuracy_fixed"] = accuracy[fixed].sum().item() / len(fixed)
            row["macro_f1_fixed"] = f1("operation", fixed)
        row |= timelines(items, truth["operation"], answers["operation"], seed, every)
    if "next" in answers:
        at = [k for k, t in enumerate(truth["next"]) if t is not None]
        accuracy = hits(truth, answers, "next", at)
        row |= mean_and_interval("next_accuracy", accuracy, [sources[k] for k in at])
        row["next_macro_f1"] = f1("next", at)
    for key in ("start", "end"):
        if key in answers:
            row |= mean_and_interval(f"{key}_error", seconds_off(items, answers, key), sources)
    return row


def trained_by_tune(entry):
    """Was this model trained by tune.py train?"""
    note = Path(entry["path"]) / "weights.yaml"
    return "adapter" in entry or note.is_file() and load_yaml(note).get("trained_by") == "tune.py train"


def operation_answers(entry, model, processor, items, operations, size, batch, most):
    """The answers of a model to the question of each clip (text)."""
    texts, together = [""] * len(items), {}
    hint = f" {ANSWER_FORMAT.format(', '.join(operations))}"
    if trained_by_tune(entry) or entry["weights"] == "small":
        hint = ""
    for k, i in enumerate(items):
        together.setdefault((i["turns"][0][0], len(i["frames"])), []).append(k)
    with tqdm(total=len(items), desc=entry["name"], unit="clip") as bar:
        for (question, length), members in together.items():
            for some in (members[k : k + batch] for k in range(0, len(members), batch)):
                shown = stacked([items[k] for k in some], size)
                answers = answers_to(model, processor, shown, question + hint, (range(length), length), most)
                for k, text in zip(some, answers, strict=True):
                    texts[k] = text
                bar.update(len(some))
    return texts


def confused_most(items, truth, answers, operations):
    """(the two operations confused most and facts about these clips, the clips' numbers); (None, []) without any."""
    pairs = {}
    for k, (a, b) in enumerate(zip(truth, answers, strict=True)):
        if b is not None and a != b:
            pairs.setdefault(tuple(sorted((a, b))), []).append(k)
    if not pairs:
        return None, []
    pair = max(sorted(pairs), key=lambda p: len(pairs[p]))
    at, names = pairs[pair], [operations[k] for k in pair]
    either = [k for k, a in enumerate(truth) if a in pair]
    return {
        **{"pair": names, "clips": len(at), "of": len(either)},
        "share_of_errors": len(at) / sum(map(len, pairs.values())),
        "at_change": sum(items[k]["boundary"] for k in at) / len(at),
        "at_change_all": sum(items[k]["boundary"] for k in either) / len(either),
        "answered_previous": sum(items[k]["previous"] == operations[answers[k]] for k in at) / len(at),
        "answered_next": sum(items[k]["next"] == operations[answers[k]] for k in at) / len(at),
        "ids": [items[k]["id"] for k in at[:8]],
    }, at


def draw_confusions(path, tables, operations, items, at, answers):
    """operations.png: confusion matrices of some models, and frames of up to four of the clips `at`."""
    import matplotlib
    from matplotlib.figure import Figure

    shown = at[:: -(-len(at) // 4)][:4] if at else []
    short = [o if len(o) < 15 else f"{o[:13]}." for o in operations]
    with matplotlib.rc_context({"font.size": 8}):
        figure = Figure((5.6 * len(tables), 5.4 + 1.15 * len(shown)), layout="constrained")
        heights = [5.4, *[1.15] * len(shown)]
        parts = figure.subfigures(1 + len(shown), 1, height_ratios=heights, squeeze=False)[:, 0]
        axes = parts[0].subplots(1, len(tables), squeeze=False)[0]
        for axis, (name, counts) in zip(axes, tables.items(), strict=True):
            share = counts / counts.sum(1, keepdim=True).clamp(min=1)
            axis.imshow(share.numpy(), cmap="cividis", vmin=0, vmax=1)
            for a, b in (share >= 0.005).nonzero().tolist():
                x, style = share[a, b].item(), {"ha": "center", "va": "center", "fontsize": 7}
                axis.text(b, a, f"{100 * x:.0f}", color="black" if x > 0.5 else "white", **style)
            axis.set_xticks(range(len(operations) + 1), [*short, "none"], rotation=90)
            axis.set_yticks(range(len(operations)), short)
            axis.set_title(f"{name}: % of the true operation's clips", fontsize=9)
        for part, k in zip(parts[1:], shown, strict=True):
            item, axis = items[k], part.subplots()
            axis.imshow(torch.cat(list(item["frames"]), 1).numpy(), interpolation="nearest")
            axis.set_axis_off()
            true = f"{item['id']}: {item['operation']}, since {-item['start']:.1f} s"
            axis.set_title(f"{true}; answer: {operations[answers[k]]}", fontsize=8, loc="left")
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=100)
    save_bytes(path, content.getvalue())


def check_score(args):
    """Check everything before a model is loaded."""
    w = SimpleNamespace(entries={}, every=Items(args.data))
    w.index = w.every.index
    if not {"operations", "grammar", "every"} <= set(w.index):
        fail(f"{args.data} holds no operations; give --data a folder that operations.py read wrote")
    w.items = [w.every[k] for k, s in enumerate(w.every.sources) if split_of(s) == "test"]
    positive(args, "clips", "batch", "size")
    w.items = w.items[: args.clips]
    if not w.items:
        fail(f"{args.data} has no test clips; give a folder with more clips")
    for name in args.models:
        entry = find_model(name)
        check_asked(entry, "--models")
        if entry["name"] in w.entries:
            fail(f"--models gives {entry['name']} twice; give each model once, the base first")
        w.entries[entry["name"]] = entry
    w.out = Path(args.out or f"results/{next(iter(w.entries))}/{Path(args.data).name}/operations.yaml")
    check_writable(w.out)
    return w


def compared_with(rivals, answers, items, truth, seed):
    """(criteria, paired tests of the next operation) of `answers` against {rival: answers}."""
    sources, followed = (
        [i["source"] for i in items],
        [k for k, x in enumerate(truth["next"]) if x is not None],
    )
    every_item, of_followed = range(len(items)), [sources[k] for k in followed]

    now = {}
    after = {}
    for name, other in rivals.items():
        if "operation" in other and name not in LEAKING:
            now[name] = hits(truth, other, "operation", every_item)
        if "next" in other:
            after[name] = hits(truth, other, "next", followed)
    mine = hits(truth, answers, "next", followed)
    criteria = {
        "accuracy": criterion(hits(truth, answers, "operation", every_item), now, sources, seed=seed),
        "next_accuracy": criterion(mine, after, of_followed, seed=seed),
    }
    for key in ("start", "end"):
        off = {name: seconds_off(items, other, key) for name, other in rivals.items() if key in other}
        lower = {"upper_bound": 0.0, "better": "lower", "seed": seed}
        criteria[f"{key}_error"] = criterion(seconds_off(items, answers, key), off, sources, **lower)
    tests = {}
    for name, other in after.items():
        tests[f"next_accuracy_over_{name}"] = paired_test(mine, other, of_followed, seed=seed)
    return criteria, tests


def run_score(args, started):
    """Score the answers of each model beside the baselines; the first model is the base, the last is the one in question."""
    w = check_score(args)
    names, every, n = w.index["operations"], w.index["every"], len(w.index["operations"])
    number = {o: k for k, o in enumerate(names)}
    device, dtype, why = choose_device()
    print(f"device {device.type} ({why})")
    cache = w.out.with_name(f"{w.out.stem}-answers.pt")
    earlier = load_pt(cache, ANSWERS).get("answers", {}) if cache.is_file() else {}
    clips_digest = digest(b"".join(digest(i["frames"].numpy().tobytes()).encode() for i in w.items))
    longest = max(len(i["turns"][0][1]) for i in w.items)
    texts, costs = {}, {}
    for label, entry in w.entries.items():
        size = args.size or entry["clip"]
        w.precision = precision_of(entry, device, dtype)

        def answer_all(entry=entry, size=size):
            model, processor = load_to_answer(entry, device, dtype)
            encode = getattr(processor, "tokenizer", processor)
            most = max(len(encode(i["turns"][0][1]).input_ids) for i in w.items) + 32
            return operation_answers(entry, model, processor, w.items, names, size, args.batch, most)

        turns = [i["turns"] for i in w.items]
        inputs = clips_digest, turns, longest, fingerprint(entry), size, args.batch, str(dtype)
        stamp = digest(repr(inputs).encode())
        costs[label] = cached(label, stamp, answer_all, earlier, cache, "operations")
        texts[label] = costs[label]["texts"]

    truth = {key: [number.get(i[key]) for i in w.items] for key in ("operation", "next")}
    sources, base, main = [i["source"] for i in w.items], next(iter(w.entries)), list(w.entries)[-1]
    parsed = {label: [parse_operation(x, names) for x in rows] for label, rows in texts.items()}
    answers = {}
    for label, rows in parsed.items():
        answers[label] = {key: [p[key] for p in rows] for key in ("operation", "next", "start", "end")}
    baselines = without_images(w.items, w.index["grammar"], names)
    table = {}
    for label, rows in (answers | baselines).items():
        table[label] = operation_row(w.items, truth, rows, args.seed, every, n)
    for label, rows in parsed.items():
        table[label]["no_json"] = sum(not p["json"] for p in rows) / len(w.items)
        table[label]["seconds_per_clip"] = costs[label]["seconds"] / len(w.items)

    rivals = ({base: answers[base]} if base != main else {}) | baselines
    counts = {}
    for label, rows in (answers | baselines).items():
        if "operation" in rows:
            counts[label] = confusions(truth["operation"], rows["operation"], sources, n)
    criteria, tests = compared_with(rivals, answers[main], w.items, truth, args.seed)
    gains = {}
    for name in counts:
        if name != main:
            gains[f"macro_f1_over_{name}"] = macro_tested(counts[main], counts[name], args.seed)
    tests = gains | tests
    for name, p_value in holm({name: test["p"] for name, test in tests.items()}).items():
        tests[name]["p_holm"] = p_value
    above = verdict(*(tests[f"macro_f1_over_{name}"] for name in counts if name not in (main, *LEAKING)))
    pair, at = confused_most(w.items, truth["operation"], answers[main]["operation"], names)
    shown = {name: counts[name].sum(0) for name in dict.fromkeys((base, main))}
    draw_confusions(w.out.with_suffix(".png"), shown, names, w.items, at, answers[main]["operation"])

    result = {
        "stage": "operations",
        "model": base,
        "tuned": main if main != base else None,
        "weights": w.entries[main]["weights"],
        "data": w.index["data"],
        "data_name": w.index["name"],
        "answer": {"yes": "PASS", "no": "FAIL"}.get(above, "INCONCLUSIVE"),
        "above_every_baseline": above,
    }
    for key in SCORES:
        result |= {f"{key}{end}": table[main][f"{key}{end}"] for end in ("", "_low", "_high")}
        result |= {f"{key}_{name}": row[key] for name, row in table.items() if name != main and key in row}
    for key in ("no_json", "accuracy_fixed", "macro_f1_fixed"):
        result[key] = table[main].get(key)
        if base != main:
            result[f"{key}_{base}"] = table[base].get(key)
    confusion = {}
    for o, row in zip(names, counts[main].sum(0).tolist(), strict=True):
        confusion[o] = {b: int(x) for b, x in zip([*names, "none"], row, strict=True) if x}
    examples = {}
    for k, i in enumerate(w.items[:3]):
        examples[i["id"]] = {"truth": i["turns"][0][1]} | {name: rows[k] for name, rows in texts.items()}
    where = {"device": f"{device.type} ({why})", "dtype": w.precision}
    where["model_revision"] = resolved_commit(w.entries[main])
    result |= {
        "confused_most": " / ".join(pair["pair"]) if pair else None,
        "clips": len(w.items),
        "sessions": len(set(sources)),
        "every": every,
        "fixed": sum(bool(i.get("fixed")) for i in w.items),
        "answers": table,
        "criteria": criteria,
        "comparisons": tests,
        "pair": pair,
        "confusion": confusion,
        "examples": examples,
        "run": run_info(args, started, script="operations.py", **where),
    }
    save_yaml(w.out, result)
    print_summary(result)
    return result


def get_args(argv):
    about = {
        "draw": "a synthetic set in OpenPack's own layout",
        "read": "clips of OpenPack, labelled with the operation at the end",
        "score": "the answers of vision-language models",
    }
    p, jobs = subcommands(__doc__, about)
    add = jobs["draw"].add_argument
    add("--n", type=int, default=4, help="sessions of each subject")
    add("--size", type=int, default=64, help="side in pixels")
    add("--out", default="data/operations-raw", help="the folder to write")
    add = jobs["read"].add_argument
    add("--root", help="folder of the published files, or of `draw` (default: drawn beside --out)")
    add("--n", type=int, default=2000, help="clips of train")
    add("--size", type=int, help="side in pixels (default: the files', at most 224)")
    add("--frames", choices=CHOICES, default="uniform", help="how --count frames are chosen")
    add("--count", type=int, default=8, help="frames of a clip")
    add("--window", type=float, default=8, help="seconds from which they are chosen")
    add("--test", help="subjects, with commas (default: U0108 and those after it, 30%% of all)")
    add("--val", help="subjects, with commas (default: those before U0108, a tenth of all)")
    add("--test-clips", type=int, default=600, help="clips of test; a quarter as many of val")
    add("--every", type=int, default=2, help="seconds between clips of test and val")
    add("--boundary", type=float, default=0.5, help="share of train clips that end near a change")
    add("--skip-bad", action="store_true", help="leave out sessions and clips with problems")
    add("--preview", action="store_true", help="also write preview.png, a contact sheet")
    add("--out", default="data/operations", help="the folder to write")
    add = jobs["score"].add_argument
    add("--data", default="data/operations", help="a folder that `read` wrote")
    add("--models", nargs="+", default=["tiny"], help="the base first, the one in question last")
    add("--clips", type=int, help="at most so many test clips")
    add("--size", type=int, help="side in pixels (default: the registry's)")
    add("--batch", type=int, default=16, help="clips at a time")
    add("--out", help="default: results/<base>/<data>/operations.yaml")
    return p.parse_args(argv)


def run_draw(args):
    out = Path(args.out)
    if args.n < 1 or args.size < 16:
        fail(f"--n {args.n} and --size {args.size} leave nothing to draw; give 1 or more, and 16 or more")
    check_writable(out / "made.yaml")
    print_summary(result := draw_operations(out, args.size, args.seed, sessions=args.n))
    return result


def run_read(args):
    out = Path(args.out)
    if args.n < 1 or args.size is not None and args.size < 16:
        fail(f"--n {args.n} and --size {args.size} leave nothing to write; give 1 or more, and 16 or more")
    check_writable(out / "index.yaml")
    if not args.root:
        args.root = out.with_name("operations-raw")
        if not (args.root / "made.yaml").is_file():
            draw_operations(args.root, 64, args.seed)
    meta = {"name": out.name, "source_kind": "openpack", "data": "real", "seed": args.seed}
    write_openpack(out, args, meta)
    items = Items(out)
    if args.preview:
        preview(items, out / "preview.png")
    print_summary(items.index, ("items", "sources", "train", "val", "test", "skipped", "rotated"))
    return items.index


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.mode == "score":
        return run_score(args, started)
    return run_draw(args) if args.mode == "draw" else run_read(args)


if __name__ == "__main__":
    main()
