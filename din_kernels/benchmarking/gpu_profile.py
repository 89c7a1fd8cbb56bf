"""What one call does on a GPU, apart from how long it takes in all: its kernels by torch's profiler, and the host."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

CALLS = 5  # that are profiled, and as many before them that are not
LARGEST = 8  # kernels that are named


def kernels(call: Callable[[], Any]) -> dict[str, Any]:
    """The kernels of a call: how many, their milliseconds in all, and those of the longest by name."""
    from torch.profiler import ProfilerActivity, profile

    for _ in range(CALLS):
        call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
    return summary(
        [(event.key, event.self_device_time_total / 1e3, event.count) for event in profiler.key_averages()], CALLS
    )


def summary(events: list[tuple[str, float, int]], calls: int) -> dict[str, Any]:
    """Of (name, milliseconds, launches) over `calls` calls, for one call."""
    on_device = sorted((event for event in events if event[1] > 0), key=lambda event: -event[1])
    longest = {name[:60]: round(ms / calls, 5) for name, ms, _ in on_device[:LARGEST]}
    launches = sum(count for _, _, count in on_device) / calls
    return {"kernels_ms": sum(ms for _, ms, _ in on_device) / calls, "launches": launches, "longest": longest}


def host_ms(call: Callable[[], Any], calls: int = 15) -> float:
    """Median milliseconds until a call returns; the GPU is idle when it begins."""
    taken = []
    for _ in range(calls):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - begin))
    torch.cuda.synchronize()
    return statistics.median(taken)


def profiled(call: Callable[[], Any]) -> dict[str, Any]:
    """`kernels` and `host_ms` of a call; "not profiled" where the profiler fails."""
    found: dict[str, Any] = {"host_ms": host_ms(call)}
    try:
        return found | kernels(call)
    except Exception as error:  # the profiler needs more of the driver than the kernels do
        return found | {"not profiled": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
