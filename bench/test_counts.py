"""No kernel takes more instructions, or fewer, than counts.json says; and that the comparison can fail."""

import json

import counts
import pytest


@pytest.mark.skipif(bool(counts.missing()), reason=f"not found: {', '.join(counts.missing())}")
def test_counts_are_those_of_the_file(tmp_path):
    old, new = json.loads(counts.FILE.read_text()), counts.measured(counts.build(tmp_path))
    if reason := counts.incomparable(old, new):
        pytest.skip(reason)
    _, bad = counts.compare(old["counts"], new["counts"])
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (1000, 1010, None),
        (1000, 990, None),
        (1000, 1011, "ROSE"),
        (1000, 989, "fell"),
        (None, 1000, "not in the file"),
        (1000, None, "no longer counted"),
    ],
)
def test_what_is_said_of_a_count(old, new, said):
    lines, bad = counts.compare(*({"name": n} if n else {} for n in (old, new)))
    assert len(lines) == 1
    assert bad == (lines if said else [])
    assert (said or "") in lines[0]


@pytest.mark.parametrize(
    ("compiler", "processor", "comparable"),
    [("GNU 12.9.1", "x86_64", True), ("GNU 13.2.0", "x86_64", False), ("GNU 12.2.0", "aarch64", False)],
)
def test_what_is_compared(compiler, processor, comparable):
    old, new = {"compiler": "GNU 12.2.0", "processor": "x86_64"}, {"compiler": compiler, "processor": processor}
    assert (counts.incomparable(old, new) is None) == comparable
