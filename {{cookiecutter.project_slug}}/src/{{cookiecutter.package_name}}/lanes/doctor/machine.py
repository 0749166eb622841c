"""Whether this machine has what the lanes' workers need."""

import locale
from collections.abc import Iterator

from .. import descriptors
from ..config import Lanes
from .finding import Finding

_AREA = "machine"


def find(lanes: Lanes) -> Iterator[Finding]:
    """Look at the limits of this process, which workers that are started from here get, too."""
    wanted, allowed = max(map(descriptors.needed, lanes)), descriptors.allowed()
    if allowed < wanted:
        yield Finding(
            _AREA,
            "note",
            f"a process may open {allowed:,.0f} files here, and a worker needs {wanted:,}",
            descriptors.way_out(wanted),
        )
    else:
        yield Finding(_AREA, "ok", f"a worker may open the {wanted:,} files that it needs")
    encoding = locale.getencoding()
    if encoding.lower().replace("-", "") != "utf8":
        yield Finding(
            _AREA,
            "note",
            f"the locale's encoding is {encoding}, so other characters are shown as escapes",
            "export LC_ALL=C.UTF-8",
        )
