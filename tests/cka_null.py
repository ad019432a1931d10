"""What is CKA of two encoders that have nothing to do with each other? Independent Gaussians, debiased and as it is usually computed.

python tests/cka_null.py        results/cka-null.yaml and results/cka-null.png
"""

import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import align  # noqa: E402
import common  # noqa: E402

# numbers of the two encoders; draws for each number of items, for single ones scatter by about 1.4 / n
WIDTHS, DRAWS = (3584, 128), {50: 200, 100: 100, 500: 20, 2000: 5}


def measure(n, draws, seed=0):
    """{debiased, biased: mean, debiased_sd} of `draws` pairs of independent Gaussians [n, 3584] and [n, 128]."""
    g = torch.Generator().manual_seed(seed)
    pairs = [[torch.randn(n, width, generator=g) for width in WIDTHS] for _ in range(draws)]
    debiased = torch.tensor(
        [align.pairs([align.space_of(x)], [align.space_of(y)], "cka").item() for x, y in pairs]
    )
    return {
        "debiased": debiased.mean().item(),
        "debiased_sd": debiased.std().item(),
        "biased": sum(align.biased_cka(x, y) for x, y in pairs) / draws,
        "draws": draws,
    }


def picture(rows, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    axis.plot(
        list(rows),
        [r["biased"] for r in rows.values()],
        "s--",
        color="C3",
        label="as usually computed (biased)",
    )
    axis.errorbar(
        list(rows),
        [r["debiased"] for r in rows.values()],
        [2 * r["debiased_sd"] for r in rows.values()],
        fmt="o-",
        color="C0",
        capsize=3,
        label="debiased, with two standard deviations of a single value",
    )
    axis.axhline(0, color="black", lw=0.8)
    axis.set(
        xscale="log",
        xlabel="items",
        ylabel="CKA",
        ylim=(-0.1, 1),
        title=f"CKA of independent noise, {WIDTHS[0]} numbers against {WIDTHS[1]}: the truth is 0",
    )
    axis.set_xticks(list(rows), [str(n) for n in rows])
    axis.minorticks_off()
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(argv=None):
    p = common.parser(__doc__)
    p.add_argument("--out", default=str(ROOT / "results" / "cka-null.yaml"))
    args, started = p.parse_args(argv), time.time()
    common.check_writable(args.out)
    rows = {n: measure(n, draws, args.seed) for n, draws in DRAWS.items()}
    result = {
        "stage": "cka-null",
        **{f"{k}_{n}": r[k] for k in ("debiased", "biased") for n, r in rows.items()},
        "rows": rows,
        "run": common.run_info(args, started, script="tests/cka_null.py"),
    }
    common.save_yaml(args.out, result)
    picture(rows, Path(args.out).with_suffix(".png"))
    common.say(result)
    return result


if __name__ == "__main__":
    main()
