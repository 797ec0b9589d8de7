"""A plan for the eyes: what the compiler measured, what was counted, what is assumed."""

from collections.abc import Iterable, Mapping

from launch.plan.collectives import Collective
from launch.plan.plan import Plan
from launch.plan.topology import COMPILED
from train.console import Console, duration, size

ROWS = 10  # of the longer tables


def show(console: Console, plan: Plan) -> None:
    """Prints a plan."""
    axes = ", ".join(f"{axis} {n}" for axis, n in plan.mesh.items() if n > 1) or "one device"
    slices = f"{plan.slices} × " if plan.slices > 1 else ""
    console.say(f"{plan.config} on {slices}{plan.topology}: {plan.num_chips:,} chips ({plan.chip}), mesh: {axes}")
    console.say(_method(plan))
    console.say(_verdict(plan))
    rows = [
        [kind, size(held) if held or kind != "temporaries" else "-", _share(kind, plan), _origin(kind, plan)]
        for kind, held in plan.bytes.items()
        if held or kind != "host"
    ]
    console.table("memory of one device", ["bytes", "", "of usable", "from"], rows)
    if plan.buffers:
        console.table(f"largest arrays at the fullest moment ({_named(plan)})", *_buffers(plan))
    if plan.replicated:
        wasted = sum(weight.wasted for weight in plan.replicated)
        console.table(f"held in several copies: {size(wasted)} on all devices together", *_replicated(plan))
    if plan.collectives:
        console.table("collectives of one step, of one device", *_collectives(plan.collectives))
    for name, value in _speed(plan).items():
        console.say(f"{name:<10} {value}")


def _method(plan: Plan) -> str:
    seconds = f"{plan.compile_seconds:.1f} s"
    if plan.method == COMPILED:
        return f"the training step, compiled by libtpu for {plan.chip} in {seconds}; times are a bound, nothing was run"
    return (
        f"the training step, compiled in {seconds} for {plan.num_devices} emulated CPU devices: what is given is "
        "exact, what is made is counted (an upper bound of activations, no temporaries); arrays and collectives are "
        "those of the CPU's program"
    )


def _verdict(plan: Plan) -> str:
    if plan.problem:
        return f"DOES NOT FIT: {plan.problem}"
    if plan.fits is None or plan.limit_bytes is None:
        return f"needs {size(plan.bytes['total'])} a device"
    total, whole = size(plan.bytes["total"]), size(plan.limit_bytes)
    if plan.method == COMPILED:
        return f"{'fits' if plan.fits else 'DOES NOT FIT'}: {total} of {whole} usable a device"
    return f"{'may fit' if plan.fits else 'MAY NOT FIT'}: {total} of {whole} usable a device, by count"


def _origin(kind: str, plan: Plan) -> str:
    if kind in ("parameters", "optimizer", "batch"):
        return "shapes and shardings"
    if kind in ("total", "host"):
        return {"total": "sum", "host": "shapes and shardings: in the host's memory, beside the total"}[kind]
    if plan.problem:
        return "the compiler's message"
    if plan.method != COMPILED:
        return {"padding": "the compiler", "temporaries": "not known"}.get(kind, "counted")
    return "the compiler, shared out by its schedule" if kind in ("gradients", "activations") else "the compiler"


def _named(plan: Plan) -> str:
    made = sum(plan.bytes.get(kind, 0) for kind in ("gradients", "activations", "temporaries"))
    if plan.method != COMPILED or not made:
        return "of the CPU's program"
    return f"a walk through the schedule names {min(plan.named_bytes / made, 1):.0%} of what a step makes"


def _buffers(plan: Plan) -> tuple[list[str], list[list[str]]]:
    rows = [[b.shape, size(b.bytes), _short(b.op), _file(b.source)] for b in plan.buffers[:ROWS]]
    return ["array", "bytes", "made by", "line"], rows


def _replicated(plan: Plan) -> tuple[list[str], list[list[str]]]:
    rows = [[w.name, size(w.bytes), f"{w.copies:,}", size(w.wasted)] for w in plan.replicated[:ROWS]]
    if rest := plan.replicated[ROWS:]:
        rows.append([f"and {len(rest)} more", "", "", size(sum(w.wasted for w in rest))])
    return ["weight and statistics", "a device", "copies", "too much in all"], rows


def _collectives(collectives: Iterable[Collective]) -> tuple[list[str], list[list[str]]]:
    """A row for each kind, axes and scope, the largest first."""
    sums: dict[tuple[str, str, str], list[int]] = {}
    for c in collectives:
        total = sums.setdefault((c.kind, "+".join(c.axes), _short(c.where)), [0, 0])
        total[0] += c.bytes * c.times
        total[1] += c.times
    ordered = sorted(sums.items(), key=lambda item: -item[1][0])
    rows = [[kind, axes, size(moved), f"{times:,}", where] for (kind, axes, where), (moved, times) in ordered[:ROWS]]
    if rest := ordered[ROWS:]:
        moved, times = (sum(pair[i] for _, pair in rest) for i in (0, 1))
        rows.append([f"and {len(rest)} more", "", size(moved), f"{times:,}", ""])
    moved, times = (sum(pair[i] for _, pair in ordered) for i in (0, 1))
    return ["kind", "axes", "bytes", "times", "scope"], [*rows, ["total", "", size(moved), f"{times:,}", ""]]


def _speed(plan: Plan) -> Mapping[str, str]:
    lines = {
        "work": f"{plan.tokens_per_step:,} tokens a step, {plan.flops_per_step:.3g} useful FLOPs; executed are "
        f"{plan.executed_flops_per_step:.3g}; both count all positions of causal attention, recomputation adds",
    }
    if plan.memory_seconds is None:
        return {**lines, "speed": f"no bound: there is no data sheet of {plan.chip}"}
    compute = "-: no data sheet gives the peak in float32"
    if plan.compute_seconds is not None:
        compute = f"{_time(plan.compute_seconds)} at the bf16 peak"
    if plan.problem:
        return {**lines, "speed": f"{compute}, if it did fit"}
    wires = ", ".join(f"{axes} {_time(seconds)}" for axes, seconds in plan.collective_seconds.items()) or "none"
    read = "read and written" if plan.method == COMPILED else "of the state alone, read and written once"
    lines |= {
        "compute": compute,
        "memory": f"{_time(plan.memory_seconds)} for {size(plan.traffic)} {read} a device",
        "wires": f"{wires} (rings at full bandwidth, no latency)",
    }
    if plan.mfu_bound is None:
        return {**lines, "MFU": "-"}
    step, serial, days, hours = (
        seconds or 0.0 for seconds in (plan.step_seconds, plan.serial_step_seconds, plan.days, plan.chip_hours)
    )
    return {
        **lines,
        "step": f"{_time(step)} at best, if all three overlap; {_time(serial)} if nothing does",
        "MFU": f"{plan.mfu_bound:.1%} at most",
        "tokens": f"{plan.tokens_per_day or 0:,.0f} a day at most; {plan.tokens:.3g} take {duration(86_400 * days)}, "
        f"{hours:,.0f} chip-hours at least",
    }


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _share(kind: str, plan: Plan) -> str:
    return f"{plan.bytes[kind] / plan.limit_bytes:.1%}" if plan.limit_bytes and kind != "host" else ""


def _short(scopes: str, most: int = 60) -> str:
    """The last of the named scopes, which say most, without the marks of tracing."""
    parts = [p for p in scopes.split("/") if p not in ("while", "body", "closed_call", "jit(train_step)", "checkpoint")]
    text = "/".join(parts)
    return text if len(text) <= most else f"…{text[-most + 1 :]}"


def _file(source: str) -> str:
    """model/attention.py:141 of a whole path."""
    return "/".join(source.split("/")[-2:])
