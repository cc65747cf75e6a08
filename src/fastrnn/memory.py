"""How much memory there is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# A control group's limit, what of it is in use, and of this what is but a cache of files, as the group that this
# process sees as the root has them: version 2, version 1.
_GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def memory_available(root: str = "/") -> int:
    """Bytes of memory that the system could give this process now, with what it keeps only as a cache and within the
    limit of a control group; a large number where it does not say."""
    available = [_of_system(Path(root)), *(_of_group(Path(root), *names) for names in _GROUPS)]
    return max(0, min(available))


def _of_system(root):
    try:
        return 1024 * _field(root / "proc/meminfo", "MemAvailable:")
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


def _of_group(root, directory, limit, usage, cache):
    group = root / directory.lstrip("/")
    try:
        used = int((group / usage).read_text()) - _field(group / "memory.stat", cache)
        return int((group / limit).read_text()) - used  # "max" is no number: no limit
    except (OSError, ValueError):
        return sys.maxsize


def _field(path, name):
    """The number after a name in a file of such lines."""
    for line in path.read_text().splitlines():
        key, *values = line.split()
        if key == name:
            return int(values[0])
    raise ValueError(f"{path}: no {name}")
