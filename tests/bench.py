"""Speed as ratios against named peers, both measured in this run: medians of alternating rounds after a warm-up.

    make bench                       every row, results/bench.yaml
    python tests/bench.py reading    some rows

A row says what was measured, its peer, the ratio (peer's seconds / ours), the ratio aimed at, and whether the two gave the same numbers.
"""
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common  # noqa: E402
import extract  # noqa: E402


def seconds(call):
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def race(ours, theirs, rounds=5):
    """(median seconds of ours, of the peer's, the median of the rounds' ratios), in turn, after a warm-up of each."""
    ours(), theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    return *(statistics.median(p[k] for p in pairs) for k in (0, 1)), statistics.median(b / a for a, b in pairs)


def row(ours, theirs, aim, same, rounds=5, **more):
    a, b, ratio = race(ours, theirs, rounds)
    return {"ratio": ratio, "aim": aim, "met": bool(ratio >= aim and same), "same_numbers": bool(same), "seconds": a, "peer_seconds": b, **more}


# ---------------------------------------------------------------- rows

def early_exit():
    """One forward pass that stops at the middle language layer, against the library's output_hidden_states=True."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(
        vision_config={"depth": 4, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 256, "fullatt_block_indexes": [1, 3]},
        text_config={"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 4,
                     "vocab_size": 32000, "bos_token_id": None, "eos_token_id": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}},
        image_token_id=31000, vision_start_token_id=31001, tie_word_embeddings=False)).eval()
    grid = torch.tensor([[1, 16, 16]] * 4)
    ids = torch.tensor([[31001, *[31000] * 64, *range(40)]] * 4)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(4 * 256, 1176), "image_grid_thw": grid, "mm_token_type_ids": (ids == 31000).long()}
    points = {f"language.{i}": f"model.language_model.layers.{i}" for i in (0, 2, 5)}

    def whole():
        with torch.inference_mode():
            return model(**given, output_hidden_states=True).hidden_states

    ours, peer = extract.capture(model, given, points), whole()
    same = all(torch.equal(ours[f"language.{i}"], peer[i + 1]) for i in (0, 2, 5))
    return row(lambda: extract.capture(model, given, points), whole, 2.5, same, rounds=9, peer="transformers output_hidden_states=True", what="exit at language layer 6 of 12")


def reading():
    """Eight random items of a 1 GB shard, mapped, against reading the whole file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.pt"
        common.save_pt(path, common.FEATURES, [str(i) for i in range(64)], {}, features=torch.randn(64, 1, 45, 45, 4096).half())
        pick = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:8]

        def ours():
            return common.load_pt(path, common.FEATURES)["features"][pick]  # indexing by a tensor copies

        def peer():
            return torch.load(path, weights_only=True)["features"][pick]

        return row(ours, peer, 10, torch.equal(ours(), peer()), peer="torch.load of the whole file", what=f"8 items of {path.stat().st_size / 1e9:.2f} GB, warm")


def start():
    """A stage that only reads tensors, from nothing to its --help, against `import torch`: here the ratio must stay above 1 / 1.15."""
    def run(*command):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    return row(lambda: run("probe.py", "--help"), lambda: run("-c", "import torch"), 1 / 1.15, True, peer="import torch", what="probe.py --help")


ROWS = {"early_exit": early_exit, "reading": reading, "start": start}


def main(names):
    started, rows = time.time(), {}
    for name in names or ROWS:
        rows[name] = common.known(name, ROWS, "row")()
        print(name, common.plain(rows[name]), flush=True)
    if not names:
        out = {"stage": "bench", "threads": torch.get_num_threads(), **{f"{k}_ratio": r["ratio"] for k, r in rows.items()}, "rows": rows,
               "run": {"seconds": time.time() - started, "versions": {"torch": str(torch.__version__)}}}
        common.save_yaml(ROOT / "results" / "bench.yaml", out)


if __name__ == "__main__":
    main(sys.argv[1:])
