"""The report in words and rows: what the table in the terminal and the page both say."""

from typing import Any

ARMS = ("base_with_p", "base_without_p", "adapter")
NAMES = ("base with P", "base, no P", "student")  # of the arms, as a reader sees them
TEACHER = "teacher with P"


def is_base_the_teacher(report: dict[str, Any]) -> bool:
    """Return whether the student's own base, with P in front, is the teacher."""
    return report["model"]["teacher"].get("revision") == report["model"]["base_revision"]


def headings(report: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the table's columns; a teacher that is another model has one of its own."""
    return (*(() if is_base_the_teacher(report) else (TEACHER,)), *NAMES)


def table_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return (what, a cell for each of `headings`) as texts."""
    validity, agreement, kl = report["validity"], report["agreement"], report["kl"]
    tokens, latency = report["tokens"], report["latency"]
    short, long = f"{tokens['prompt_without_p']:.0f}", f"{tokens['prompt_with_p']:.0f}"
    valid, valid_base, valid_student = map(percent, (validity["teacher"], validity["base"], validity["student"]))
    rows: list[tuple[str, ...]] = [
        ("valid answers", valid, "", valid_base, valid_student),
        ("  asked as plain text", "", "", "", percent(validity["student_raw"])),
    ]
    if agreement["student"] is not None:
        rows.append(("same labels as the teacher", "", "", "", percent(agreement["student"])))
        rows.append(("  best constant answer", "", "", "", percent(agreement["majority"])))
    if kl["student"] is not None:
        rows.append(("KL to the teacher, nats/token", "0", "", f"{kl['base']:.3f}", f"{kl['student']:.3f}"))
        low, high = kl["gap_closed_interval"]
        rows.append(("  gap closed", "", "", "", percent(kl["gap_closed"])))
        rows.append(("  95 % interval over queries", "", "", "", f"{percent(low)} to {percent(high)}"))
    rows.append(("prompt tokens", "", long, short, short))
    seconds = (f"{latency[f'{arm}_seconds']:.2f}" for arm in ARMS)
    rows.append((f"seconds, 1 at once, {latency['tokens_each']} tokens", "", *seconds))
    rates = (f"{latency[f'{arm}_tokens_per_second']:.0f}" for arm in ARMS)
    rows.append((f"tokens/s, {latency['at_once']} at once", "", *rates))
    if is_base_the_teacher(report):  # what the teacher says is then what the base with P says: one column
        return [(what, teacher or with_p, *rest) for what, teacher, with_p, *rest in rows]
    return rows


def sentences(report: dict[str, Any]) -> list[str]:
    """Return what must be said beside the numbers: where the adapter is slower, what was asked, what time it took."""
    said = [f"The prompt is {percent(report['tokens']['reduction'])} shorter: P is in the weights."]
    if report["kl"]["student"] is not None:
        said.append(_describe_kl(report))
    latency = report["latency"]
    ours, theirs = latency["adapter_seconds"], latency["base_with_p_seconds"]
    if ours > theirs:
        said.append(
            f"SLOWER: a lone request takes {ours:.2f} s by the adapter and {theirs:.2f} s by the base with P. "
            f"Merged weights would take what the base takes without P: {latency['base_without_p_seconds']:.2f} s."
        )
    ours, theirs = latency["adapter_tokens_per_second"], latency["base_with_p_tokens_per_second"]
    if ours < theirs:
        said.append(
            f"SLOWER: {latency['at_once']} at once give {ours:.0f} tokens/s by the adapter and {theirs:.0f} by the "
            f"base with P. Merged weights would give {latency['base_without_p_tokens_per_second']:.0f}."
        )
    difference = report["kl"]["served_difference"]
    if difference is not None:
        said.append(f"Served log-probabilities differ from the published files' by {difference:.3f} nat on average.")
    counts = report["counts"]
    if counts:
        dropped = ", ".join(f"{number} {reason}" for reason, number in sorted(counts["dropped"].items())) or "0"
        said.append(f"Examples: {counts['asked']} asked, {counts['kept']} kept, dropped: {dropped}.")
    stages = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in report["seconds"].items())
    said.append(f"Seconds: {stages}.")
    return said


def _describe_kl(report: dict[str, Any]) -> str:
    if is_base_the_teacher(report):
        return "KL is KL(base with P || arm): the base with P is the teacher."
    teacher = report["model"]["teacher"]["model"]
    return f"KL is KL(teacher with P || arm); the teacher, {teacher}, is another model than the base."


def percent(share: float) -> str:
    """Return a share as whole percent, "<1 %" and ">99 %" where rounding would claim none or all."""
    if 0 < share < 0.005:
        return "<1\u00a0%"
    if 0.995 <= share < 1:
        return ">99\u00a0%"
    return f"{100 * share:.0f}\u00a0%"
