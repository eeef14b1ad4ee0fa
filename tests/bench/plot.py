"""Draws build/bench.json or build/soak.json, as .svg and .png. Needs matplotlib and nothing of the server."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl  # type: ignore[import-not-found] # it has a virtual environment of its own

mpl.use("agg")  # no screen is needed
from matplotlib import pyplot as plt

_INK, _BAR, _BASELINE, _LIMIT = "#24292f", "#2f6f9f", "#b8c4cf", "#b3541e"
_RPCS = {
    # key: title, the limit of its ratio to an empty call
    "get_balance": ("GetBalance", 0.75),
    "verify_otp": ("VerifyOtp", 0.55),
    "send_otp_spread": ("SendOtp, 10,000 organizations", 0.50),
    "send_otp_hot": ("SendOtp, one organization", 0.50),
}


def main() -> None:
    """Draw the given file; the images get its name."""
    path = Path(sys.argv[1])
    figures = json.loads(path.read_text())
    plt.rcParams |= {"font.size": 10, "text.color": _INK, "svg.hashsalt": "pulsa", "svg.fonttype": "none"}
    figure, axes = plt.subplots(4 if "samples" in figures else 1, figsize=(9, 3.6), layout="constrained")
    if "samples" in figures:
        figure.set_size_inches(9, 7)
        _draw_soak(axes, figures)
    else:
        _draw(axes, figures)
    for suffix in (".svg", ".png"):
        figure.savefig(path.with_suffix(suffix), dpi=160, metadata={"Date": None} if suffix == ".svg" else None)


def _draw_soak(axes: Any, figures: dict[str, Any]) -> None:
    samples = figures["samples"]
    minutes = [sample["seconds"] / 60 for sample in samples]
    first, last = samples[0], samples[-1]
    sends = [sample["sends"] - first["sends"] for sample in samples[1:]]
    for table, color, side in (
        ("ledger_entries", _BASELINE, "top"),
        ("otps", _BAR, "bottom"),
        ("deliveries", _INK, "top"),
    ):
        sizes = [sample["bytes"][table] - first["bytes"][table] for sample in samples[1:]]
        each = [size / max(count, 1) for size, count in zip(sizes, sends, strict=True)]
        axes[2].plot(minutes[1:], each, color=color)
        axes[2].annotate(table, (minutes[-1], each[-1]), va=side, ha="right", fontsize=8, color=color)
    for name, color in (("first", _BAR), ("second", _BASELINE)):
        axes[0].plot(minutes, [sample["megabytes"][name] for sample in samples], color=color)
        axes[0].annotate(name, (minutes[-1], last["megabytes"][name]), va="bottom", ha="right", fontsize=8, color=color)
    axes[1].plot(minutes, [sample["connections"] for sample in samples], color=_BAR)
    axes[3].plot(minutes, [sample["bytes"]["outbox"] / 1e6 for sample in samples], color=_BAR)
    titles = ("memory of a replica, MB", "connections to PostgreSQL", "bytes of a table per send", "outbox table, MB")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, loc="left", fontsize=9)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
        for fault in figures["faults"]:
            axis.axvline(fault["seconds"] / 60, color=_LIMIT, linewidth=0.3)
    axes[-1].set_xlabel(f"minutes at {figures['rate']:.0f} sends per second; a line for each fault")


def _draw(axes: Any, figures: dict[str, Any]) -> None:
    bars = [_bar(figures, key, title, limit) for key, (title, limit) in _RPCS.items()]
    plain = figures["plain_transactions"]["send_otp"]["per_second"]
    bars.append(("SendOtp by plain transactions", plain / figures["empty_call"]["per_second"], (0, 0), plain, None))
    bars.reverse()
    for row, (_, ratio, (below, above), _, limit) in enumerate(bars):
        color = _BASELINE if limit is None else _BAR
        axes.barh(row, ratio, xerr=[[below], [above]], height=0.6, color=color, ecolor=_INK, capsize=3)
        if limit:
            axes.plot([limit, limit], [row - 0.4, row + 0.4], color=_LIMIT, linewidth=2)
    axes.axvline(1, color=_INK, linewidth=1)
    axes.set_yticks(range(len(bars)), [f"{title}\n{rate:,.0f} per second" for title, _, _, rate, _ in bars])
    axes.set_xlabel(
        "share of an empty gRPC call's rate, measured at the same time (line: the limit; whiskers: all rounds)"
    )
    machine = figures["machine"]
    axes.set_title(
        f"Empty call {figures['empty_call']['per_second']:,.0f} per second; one process, "
        f"{machine['cores']} cores of {machine['processor']}, {figures['date'][:10]}",
        fontsize=10,
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _bar(
    figures: dict[str, Any], key: str, title: str, limit: float
) -> tuple[str, float, tuple[float, float], float, float | None]:
    ratio = figures[key]["ratio_to_empty_call"]
    low, high = figures[key]["ratio_to_empty_call_spread"]
    return title, ratio, (ratio - low, high - ratio), figures[key]["per_second"], limit


if __name__ == "__main__":
    main()
