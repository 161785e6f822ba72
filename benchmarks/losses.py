"""Memory and speed of the losses: streamed over a million labels, and against the full-matrix
formulas.

    python -m benchmarks.losses [--json FILE] [--threads 1] [--labels 1000000]

Each case runs in a fresh process. `rise` is the peak resident memory above the inputs and their
gradients, which are allocated and touched before the loss is called; `matrix` is the size of one B
x L float32 matrix.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional

from losses import LOSSES, Positives

ROOT = Path(__file__).resolve().parent.parent

POSITIVES = 5  # per query
TAU = 0.05


def resident(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def make(
    num_queries: int,
    num_labels: int,
    dim: int,
):
    """Unit embeddings that require grad, and POSITIVES distinct known positives per query."""
    torch.manual_seed(0)
    queries = functional.normalize(torch.randn(num_queries, dim)).requires_grad_()
    labels = torch.randn(num_labels, dim)
    labels = labels.div_(labels.norm(dim=1, keepdim=True)).requires_grad_()
    first = torch.randint(num_labels, (num_queries, 1))
    # [B, POSITIVES]
    cols = (first + torch.arange(POSITIVES) * (num_labels // POSITIVES)) % num_labels
    rows = torch.arange(num_queries).repeat_interleave(POSITIVES)
    return queries, labels, Positives.build(rows, cols.reshape(-1), num_queries)


def naive(name: str, queries, labels, positives, tau):
    """The full-matrix formulas, differentiated by autograd; soft top-k by 32 bisections."""
    scores = queries @ labels.T / tau  # [B, L]
    own = scores[positives.rows, positives.cols]
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[positives.rows, positives.cols] = True
    share = 1 / (len(queries) * positives.per_row[positives.rows])
    if name == "softmax":
        return (scores.logsumexp(1)[positives.rows] - own).sum() / len(queries)
    if name == "decoupled-softmax":
        negatives = scores.masked_fill(mask, -torch.inf).logsumexp(1)
        return (share * functional.softplus(negatives[positives.rows] - own)).sum()
    if name == "bce":
        return functional.binary_cross_entropy_with_logits(scores, mask.float())
    shift = FullSoftTopK.apply(scores, 5, 2.0)
    return -(share * functional.logsigmoid(2 * (own + shift[positives.rows]))).sum()


class FullSoftTopK(torch.autograd.Function):
    """The threshold by bisection; its gradient is -v / sum v."""

    @staticmethod
    def forward(ctx, scores, k, alpha):
        low, high = -scores.amax(1) - 10, -scores.amin(1) + 10
        for _ in range(32):
            middle = (low + high) / 2
            too_far = torch.sigmoid(alpha * (scores + middle[:, None])).sum(1) > k
            low, high = torch.where(too_far, low, middle), torch.where(too_far, middle, high)
        p = torch.sigmoid(alpha * (scores + high[:, None]))
        ctx.save_for_backward(p * (1 - p))
        return high

    @staticmethod
    def backward(ctx, grad):
        (v,) = ctx.saved_tensors
        return -v * (grad / v.sum(1))[:, None], None, None


def measure(case: dict) -> dict:
    """Run one case in this process: seconds (best of `repeats`) and the rise of the peak."""
    torch.set_num_threads(case["threads"])
    queries, labels, positives = make(*case["shape"])
    for tensor in (queries, labels):
        # touched: gradients are not counted as a rise
        tensor.grad = torch.zeros_like(tensor).add_(0.0)
    before = resident("VmRSS")
    seconds = []
    for tensor in (queries, labels):
        tensor.grad = None  # backward hands over its own
    for _ in range(case["repeats"]):
        queries.grad = labels.grad = None
        start = time.perf_counter()
        if case["how"] == "streamed":
            value = LOSSES[case["loss"]](
                queries=queries, labels=labels, positives=positives, tau=TAU
            )
        else:
            value = naive(case["loss"], queries, labels, positives, TAU)
        value.backward()
        seconds.append(time.perf_counter() - start)
    rise = resident("VmHWM") - before
    check = float(queries.grad.norm())
    return case | {
        "seconds": min(seconds),
        "rise_mb": rise,
        "value": float(value.detach()),
        "gradient_norm": check,
    }


def cases(threads: int, num_labels: int) -> list[dict]:
    large = [
        ("decoupled-softmax", "streamed"),
        ("softmax", "streamed"),
        ("bce", "streamed"),
        ("soft-topk", "streamed"),
    ]
    small = [(name, how) for name in LOSSES for how in ("naive", "streamed")]
    shapes = [((512, num_labels, 64), 2, large), ((512, 6491, 384), 7, small)]
    return [
        {"loss": name, "how": how, "shape": shape, "repeats": repeats, "threads": threads}
        for shape, repeats, pairs in shapes
        for name, how in pairs
    ]


def run_fresh(case: dict) -> dict:
    command = [sys.executable, "-m", "benchmarks.losses", "--case", json.dumps(case)]
    return json.loads(
        subprocess.run(
            command,
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )


def table(results: list[dict]) -> str:
    lines = [
        "| loss | how | B x L x D | seconds | rise MB | matrix MB | value |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        num_queries, num_labels, dim = r["shape"]
        matrix = num_queries * num_labels * 4 / 2**20
        size = f"{num_queries} x {num_labels:,} x {dim}"
        numbers = f"{r['seconds']:.3f} | {r['rise_mb']:.0f} | {matrix:.0f} | {r['value']:.6f}"
        lines.append(f"| {r['loss']} | {r['how']} | {size} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--labels", type=int, default=1_000_000, help="labels of the large cases")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(json.loads(options.case))))
        return
    results = [run_fresh(case) for case in cases(options.threads, options.labels)]
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
